"""SQS queues as sources of streams, with moto."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle._aws import policies
from entangle.dataflow import dataflow, process, thread
from entangle.errors import OptionError, UnreachableError
from entangle.process import process as in_process
from entangle.sources import lines, merge, sqs

from ..callers import Caller
from ..evidence import wait_until
from ..services.emulators import CREDENTIALS, REGION, Emulator, new_name

Client = Callable[[str], Any]


class Queue:
    """A queue of moto, and a test's view of it."""

    def __init__(self, client: Any, visibility: int, **attributes: str) -> None:
        self.client = client
        self.name = new_name("queue") + (".fifo" if "FifoQueue" in attributes else "")
        attributes |= {"VisibilityTimeout": str(visibility)}
        self.url: str = client.create_queue(QueueName=self.name, Attributes=attributes)["QueueUrl"]

    def send(self, *bodies: Any, **more: Any) -> None:
        """Send messages, as JSON."""
        for body in bodies:
            self.client.send_message(QueueUrl=self.url, MessageBody=json.dumps(body), **more)

    def counts(self) -> tuple[int, int]:
        """How many messages are visible, and how many are received and not deleted."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return int(found[names[0]]), int(found[names[1]])

    def bodies(self) -> list[Any]:
        """Receive all visible messages. Return their bodies."""
        found = []
        while some := self.client.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10, WaitTimeSeconds=0).get("Messages"):
            found += [json.loads(one["Body"]) for one in some]
        return sorted(found)


@pytest.fixture
def new_queue(aws: Client, aws_environment: Emulator) -> Callable[..., Queue]:
    """Makes queues whose received messages stay hidden for this many seconds."""
    return lambda visibility=30, **attributes: Queue(aws("sqs"), visibility, **attributes)


@dataflow
@process
def double(x: Any) -> Any:
    if x == "bad":
        raise ValueError("it is bad")
    return x * 2


@dataflow
@thread
def same(x: Any) -> Any:
    return x


@in_process
def plain(x: Any) -> Any:
    return x


@pytest.mark.parametrize("ordered", [True, False])
def test_each_message_is_an_item_and_is_deleted(new_queue: Callable[..., Queue], ordered: bool) -> None:
    queue = new_queue()
    queue.send(*range(25))
    assert sorted(value for (value,) in double().stream(sqs(queue.name, idle=1), ordered=ordered)) == [2 * x for x in range(25)]
    assert queue.counts() == (0, 0)


def test_a_stream_of_a_task_by_the_address_of_the_queue(new_queue: Callable[..., Queue]) -> None:
    queue = new_queue()
    queue.send("a", {"b": 1})
    queue.client.send_message(QueueUrl=queue.url, MessageBody="no JSON {")
    by_arn = f"arn:aws:sqs:{REGION}:123456789012:{queue.name}"
    source = sqs(queue.url, idle=1, endpoint=os.environ["AWS_ENDPOINT_URL"], region=REGION, keys=list(CREDENTIALS.values()))
    assert sorted(map(str, plain.stream(source))) == ["a", "no JSON {", "{'b': 1}"]
    queue.send(5)
    assert list(sqs(by_arn, idle=1)) == [5]
    assert queue.counts() == (0, 0)


def test_whole_messages(new_queue: Callable[..., Queue]) -> None:
    queue = new_queue()
    queue.send(7, MessageAttributes={"kind": {"DataType": "String", "StringValue": "x"}})
    (message,) = sqs(queue.name, raw=True, idle=1)
    assert message["Body"] == "7"
    assert message["MessageAttributes"]["kind"]["StringValue"] == "x"
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"


def test_a_message_is_there_until_its_item_has_ended(new_queue: Callable[..., Queue]) -> None:
    queue = new_queue()
    queue.send(*range(4))
    with same().stream(sqs(queue.name)) as values:
        next(values)
        assert sum(queue.counts()) == 4
        next(values)
        wait_until(lambda: sum(queue.counts()) == 3)
    assert queue.counts() == (3, 0)  # unhandled messages become visible at once


def test_a_failing_item_stays(new_queue: Callable[..., Queue], caplog: pytest.LogCaptureFixture) -> None:
    queue = new_queue(2)
    queue.send("a", "bad", "c")
    with caplog.at_level(logging.CRITICAL, "entangle.dataflow"):
        values = double().stream(sqs(queue.name, idle=1), on_error="skip")
        assert sorted(values) == [("aa",), ("cc",)]
    assert sum(queue.counts()) == 1
    wait_until(lambda: queue.counts() == (1, 0))
    with pytest.raises(ValueError, match="it is bad"):
        list(double().stream(sqs(queue.name)))
    assert queue.counts() == (0, 1)  # not at once, but after its visibility timeout
    wait_until(lambda: queue.counts() == (1, 0))


def test_an_endless_stream_is_stopped_at_once(new_queue: Callable[..., Queue]) -> None:
    queue = new_queue()
    queue.send(1)
    source = sqs(queue.name)
    values = same().stream(source)
    assert next(values) == (1,)
    began = time.monotonic()
    values.close()
    assert time.monotonic() - began < 10  # a request may wait for 20 seconds
    assert not [one for one in threading.enumerate() if one.name in ("entangle-source", "entangle-sqs")]
    assert queue.counts() == (1, 0)


def test_a_source_is_stopped_from_outside(new_queue: Callable[..., Queue]) -> None:
    queue = new_queue()
    queue.send(1)
    source, got, waits = sqs(queue.name), [], threading.Event()

    def read() -> None:
        for value in source:
            got.append(value)
            waits.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert waits.wait(20)
    wait_until(lambda: queue.counts() == (0, 0))  # it has requested the next message
    source.stop()
    reader.join(10)
    assert not reader.is_alive()
    assert got == [1]


def test_visibility_is_extended(new_queue: Callable[..., Queue]) -> None:
    queue, begun, seen = new_queue(1), threading.Event(), []

    @dataflow
    @thread
    def slow(x: int) -> int:
        begun.set()
        until = time.monotonic() + 4  # four times the queue's visibility timeout
        while time.monotonic() < until:
            seen.append(queue.bodies())
            time.sleep(0.1)
        return x

    queue.send(*range(3))
    assert len(list(slow().stream(sqs(queue.name, idle=1)))) == 3
    assert [found for found in seen if found] == []
    assert queue.counts() == (0, 0)


def test_two_programs_share_a_queue(new_queue: Callable[..., Queue]) -> None:
    queue = new_queue()
    queue.send(*range(60))
    one, two = (double().stream(sqs(queue.name, idle=1), inflight=4) for _ in range(2))
    got: list[list[Any]] = [[], []]
    readers = [threading.Thread(target=lambda at=at, values=values: got[at].extend(values)) for at, values in enumerate((one, two))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert got[0]
    assert got[1]
    # moto, like SQS, may deliver a message to both if they ask at the same moment.
    assert {value for (value,) in got[0] + got[1]} == {2 * x for x in range(60)}
    assert len(got[0] + got[1]) < 70
    assert queue.counts() == (0, 0)


KILLED = """
    import sys
    from entangle.dataflow import dataflow, process
    from entangle.sources import sqs

    @dataflow
    @process
    def double(x):
        return 2 * x

    if __name__ == "__main__":
        for (value,) in double().stream(sqs(sys.argv[1]), inflight=8, ordered=False):
            print(value, flush=True)
"""


def test_a_killed_program_loses_no_message(new_queue: Callable[..., Queue], tmp_path: Path) -> None:
    queue = new_queue(2)
    queue.send(*range(100))
    caller = Caller(tmp_path, KILLED).start(queue.name)
    assert caller.started is not None
    assert caller.started.stdout is not None
    printed = [int(caller.started.stdout.readline()) for _ in range(30)]
    wait_until(lambda: sum(queue.counts()) <= 80)
    os.kill(caller.started.pid, signal.SIGKILL)
    rest, _ = caller.started.communicate(timeout=20)
    printed += map(int, rest.split())
    left = sum(queue.counts())
    assert 0 < left <= 80
    again = [value for (value,) in double().stream(sqs(queue.name, idle=4))]
    assert len(again) == left
    assert {*printed, *again} == {2 * x for x in range(100)}
    assert len(printed) + len(again) < 130  # few messages that had been handled came twice
    assert queue.counts() == (0, 0)


def test_groups_of_a_fifo_queue_stay_in_order(new_queue: Callable[..., Queue]) -> None:
    queue = new_queue(FifoQueue="true", ContentBasedDeduplication="true")
    for number in range(6):
        for group in "ab":
            queue.send([group, number], MessageGroupId=group)
    busy: set[str] = set()
    order: dict[str, list[int]] = {"a": [], "b": []}

    @dataflow
    @thread
    def note(x: Any) -> Any:
        group, number = x
        assert group not in busy
        busy.add(group)
        time.sleep(0.02)
        order[group].append(number)
        busy.discard(group)
        return x

    # A waiting request in moto does not notice that a group has become free.
    assert len(list(note().stream(sqs(queue.name, wait=1, idle=4)))) == 12
    assert order == {"a": [*range(6)], "b": [*range(6)]}
    assert queue.counts() == (0, 0)


def test_other_groups_go_on_while_one_is_in_hand(new_queue: Callable[..., Queue]) -> None:
    queue = new_queue(FifoQueue="true", ContentBasedDeduplication="true")
    for number in range(12):  # more than one request returns
        queue.send(["slow", number], MessageGroupId="slow")
    others = [[group, number] for group in "ab" for number in range(3)]
    for one in others:
        queue.send(one, MessageGroupId=one[0])
    order: list[Any] = []
    passed, sent = threading.Event(), threading.Event()

    @dataflow
    @thread
    def note(x: Any) -> Any:
        if x == ["slow", 0]:
            assert passed.wait(20), order
            queue.send(["late", 0], MessageGroupId="late")
            sent.set()
        order.append(x)
        if len(order) == len(others):
            passed.set()
        return x

    assert len(list(note().stream(sqs(queue.name, wait=1, idle=2), ordered=False, inflight=4))) == 19
    assert sent.is_set()
    assert sorted(order[: len(others)]) == others
    for group in ("slow", "a", "b"):
        assert [number for name, number in order if name == group] == [*range(12 if group == "slow" else 3)]
    assert queue.counts() == (0, 0)
    assert not [one for one in threading.enumerate() if one.name.startswith("entangle-sqs")]


def test_a_group_whose_item_fails_comes_again_in_order_and_holds_up_no_other(
    new_queue: Callable[..., Queue], caplog: pytest.LogCaptureFixture
) -> None:
    queue = new_queue(2, FifoQueue="true", ContentBasedDeduplication="true")
    for group in "ab":
        for number in range(3):
            queue.send([group, number], MessageGroupId=group)
    order: list[Any] = []

    @dataflow
    @thread
    def note(x: Any) -> Any:
        order.append(x)
        if x == ["a", 1] and order.count(x) == 1:
            raise ValueError("the first time")
        return x

    with caplog.at_level(logging.CRITICAL, "entangle.dataflow"):
        values = list(note().stream(sqs(queue.name, wait=1, idle=3), on_error="skip", ordered=False))
    assert len(values) == 6
    assert [number for name, number in order if name == "a"] == [0, 1, 1, 2]
    assert [number for name, number in order if name == "b"] == [0, 1, 2]
    assert queue.counts() == (0, 0)


def test_a_stream_that_waits_for_other_groups_is_stopped_at_once(new_queue: Callable[..., Queue]) -> None:
    queue = new_queue(FifoQueue="true", ContentBasedDeduplication="true")
    for number in range(3):
        queue.send(number, MessageGroupId="a")
    go = threading.Event()

    @dataflow
    @thread
    def waits(x: Any) -> Any:
        if x:
            go.wait(20)
        return x

    values = waits().stream(sqs(queue.name), ordered=False)
    assert next(values) == (0,)
    wait_until(lambda: "entangle-sqs-more" in {one.name for one in threading.enumerate()}, what="a request for other groups")
    began = time.monotonic()
    go.set()
    values.close()
    assert time.monotonic() - began < 10  # a request may wait for 20 seconds
    assert not [one for one in threading.enumerate() if one.name.startswith("entangle-sqs")]
    assert queue.counts()[1] == 0


def test_merged_with_another_source(new_queue: Callable[..., Queue], tmp_path: Path) -> None:
    queue, file = new_queue(), tmp_path / "lines"
    file.write_text("x\ny\n")
    queue.send("a", "b")
    with same().stream(merge(sqs(queue.name), lines(file))) as values:
        assert sorted(next(values)[0] for _ in range(4)) == ["a", "b", "x", "y"]
        queue.send("c")
        assert next(values) == ("c",)
    assert queue.counts() == (1, 0)


def test_a_queue_that_is_not_there(aws_environment: Emulator) -> None:
    with pytest.raises(UnreachableError, match="there is no queue 'nowhere'"):
        list(same().stream(sqs("nowhere")))
    with pytest.raises(UnreachableError, match="there is no queue"):
        list(sqs(f"{aws_environment.endpoint}/123456789012/nowhere", visibility=5))


def test_a_queue_that_is_removed(new_queue: Callable[..., Queue]) -> None:
    queue = new_queue()
    queue.send(1)
    values = iter(sqs(queue.name))
    assert next(values) == 1
    queue.client.delete_queue(QueueUrl=queue.url)
    with pytest.raises(UnreachableError, match="there is no queue"):
        next(values)


def test_nobody_listens_there(free_address: str) -> None:
    with pytest.raises(UnreachableError, match="cannot be reached"):
        list(sqs("jobs", endpoint=free_address, region=REGION, keys=list(CREDENTIALS.values())))


@pytest.fixture
def free_address() -> Iterator[str]:
    """An address on which no process listens."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_no_permission(new_queue: Callable[..., Queue], moto: Emulator, aws: Client) -> None:
    queue = new_queue()
    queue.send(1)
    iam, name = aws("iam"), new_name("user")
    iam.create_user(UserName=name)
    made = iam.create_access_key(UserName=name)["AccessKey"]
    keys = [made["AccessKeyId"], made["SecretAccessKey"]]
    with moto.permissions(), pytest.raises(UnreachableError, match="you may not sqs:GetQueueUrl"):
        list(same().stream(sqs(queue.name, keys=keys)))
    # A user who may receive but not delete gets an error, and does not go on for ever.
    allowed = ["sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": allowed, "Resource": "*"}]}
    iam.put_user_policy(UserName=name, PolicyName="some", PolicyDocument=json.dumps(policy))
    with moto.permissions(), pytest.raises(UnreachableError, match="you may not sqs:DeleteMessageBatch"):
        list(same().stream(sqs(queue.name, keys=keys)))


#: The permissions that batch actions need.
SINGLE = {"DeleteMessageBatch": "DeleteMessage", "ChangeMessageVisibilityBatch": "ChangeMessageVisibility"}


def test_the_policy_is_enough(new_queue: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore import client as clients

    BaseClient: Any = clients.BaseClient  # noqa: N806
    used, real = set(), BaseClient._make_api_call

    def call(client: Any, operation: str, given: Any) -> Any:
        used.add(f"sqs:{SINGLE.get(operation, operation)}")
        return real(client, operation, given)

    queue = new_queue()
    queue.send(1, 2, 3)
    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    with same().stream(sqs(queue.name)) as values:
        next(values)
        next(values)
    assert used == {*policies.ACTIONS["sqs"]}


def test_bad_options() -> None:
    for options in ({"batch": 11}, {"wait": 21}, {"wait": 0}, {"visibility": 0}, {"idle": 0}, {"region": 5}, {"keys": ["a"]}):
        with pytest.raises(OptionError, match=f"{next(iter(options))}="):
            sqs("jobs", **options)
    with pytest.raises(OptionError, match="must be a name"):
        sqs("")
