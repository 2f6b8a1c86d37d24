"""@lmbda while Lambda is busy, slow, or gone: no thread waits, and no request is sent twice.

The server answers as Lambda does; it has no functions.
"""

# Decorators are passed as values here, and are untyped.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import entangle
from entangle._aws.account import Account, keep_keys
from entangle._tasks import web_client, web_exchange
from entangle.aws import aws, lmbda
from entangle.errors import LinkLostError, OptionError, ProcessRetryException, RunTimeoutException, UnreachableError
from entangle.process import process

from ..evidence import wait_until
from ..services.emulators import CREDENTIALS, REGION
from ..services.scripted_server import ScriptedServer
from ..ways import installed

installed("httpx")
installed("boto3")

#: How the server answers a function's successive requests. After the last step, it returns the
#: value.
Steps = list[Any]


class Lambda(ScriptedServer):
    """Each function has a list of steps: a status with an error and its body, or another fault."""

    def __init__(self) -> None:
        self.steps: dict[str, Steps] = {}
        self.headers: list[dict[str, str]] = []
        super().__init__()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        event = await reader.readexactly(int(lines.get("content-length", 0)))
        name = head.split(" ", 2)[1].split("/")[3]
        self.asked.append(name)
        self.headers.append(lines)
        steps = self.steps.get(name, [])
        step = steps.pop(0) if steps else "value"
        if step == "gate":
            self.waiting += 1
            await self.gate.wait()
            self.waiting -= 1
        if step == "reset":
            writer.transport.abort()
            return False
        if step == "half":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            return False
        status, kind, body = step if isinstance(step, tuple) else (200, "", event)
        more = f"x-amzn-ErrorType: {kind}\r\n" if kind else ""
        writer.write(f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\nx-amzn-RequestId: r-7\r\n{more}\r\n".encode() + body)
        return True


def refusal(status: int, kind: str, **said: str) -> tuple[int, str, bytes]:
    return status, kind, json.dumps({"Type": "User", "message": "no", **said}).encode()


BUSY = refusal(429, "TooManyRequestsException", Reason="ConcurrentInvocationLimitExceeded")


@pytest.fixture
def server() -> Iterator[Lambda]:
    """A server that answers as Lambda does."""
    made = Lambda()
    yield made
    made.close()


@pytest.fixture
def ask(server: Lambda) -> Callable[..., Any]:
    """Returns the task of a function that answers with these steps."""

    def asks(*steps: Any) -> Any:
        server.steps["f"] = list(steps)
        return lmbda(function="f")(aws(endpoint=server.url, region=REGION, keys=list(CREDENTIALS.values()))(proxy))

    return asks


def proxy() -> Any:
    raise AssertionError("the body of a proxy is not run")


def ours() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("entangle")]


@pytest.fixture
def many_files() -> Iterator[None]:
    """Raises the limit on descriptors as far as possible, up to 8192."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], min(before[1], 8192)), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_thousand_calls_under_way_cost_no_thread_each(server: Lambda, ask: Any, many_files: None) -> None:
    task = ask(*["gate"] * 1000)
    future = entangle.gather(*(task({"n": n}) for n in range(1000)))(proc=True)
    wait_until(lambda: server.waiting == 1000, 120, "all requests to be under way")
    threads = ours()
    server.open()
    assert future.result(120) == [{"n": n} for n in range(1000)]
    assert {"entangle-away", "entangle-request"} <= set(threads)
    assert len(threads) <= 8, threads


def test_connections_stay_between_runs_and_their_thread_does_not(server: Lambda, ask: Any) -> None:
    task = ask("value", "value", "reset")
    for n in range(2):
        assert task({"n": n})() == {"n": n}
        assert not ours()
    assert server.opened == 1
    with pytest.raises(LinkLostError):
        task({"n": 2})()
    if (pid := os.fork()) == 0:  # a forked child opens connections of its own
        with contextlib.suppress(BaseException):
            os._exit(task({"n": 3})()["n"])
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert entangle.gather(task({"n": 4}), task({"n": 5}))() == [{"n": 4}, {"n": 5}]
    web_client.close_connections()
    assert task({"n": 6})() == {"n": 6}


def test_credentials_that_must_be_had_first_may_take_a_while() -> None:
    account = Account(region=REGION, keys=keep_keys(tuple(CREDENTIALS.values())))
    assert not account.waits_to_sign()
    assert replace(account, role="arn:aws:iam::123456789012:role/other").waits_to_sign()


def test_connections_are_used_again(server: Lambda, ask: Any) -> None:
    task = ask()
    with entangle.session():
        for n in range(5):
            assert task({"n": n})() == {"n": n}
    assert server.opened == 1
    (signed,) = {headers["authorization"].partition("/")[0] for headers in server.headers}
    assert signed == f"aws4-hmac-sha256 credential={next(iter(CREDENTIALS.values()))}".lower()
    assert {headers["x-amz-invocation-type"] for headers in server.headers} == {"requestresponse"}


@pytest.mark.parametrize(
    "busy",
    [
        BUSY,
        refusal(502, "EC2ThrottledException"),
        refusal(409, "ResourceConflictException"),
        refusal(409, "SnapStartNotReadyException"),
    ],
)
def test_while_it_is_busy_it_is_asked_again(server: Lambda, ask: Any, busy: Any) -> None:
    assert ask(busy, busy, busy)(1)() == {"args": [1]}
    assert len(server.asked) == 4


def test_many_go_on_beside_those_that_wait(server: Lambda, ask: Any) -> None:
    task = ask(*[BUSY] * 30)
    assert task.map([{"n": n} for n in range(60)])() == [{"n": n} for n in range(60)]
    assert len(server.asked) == 90


def test_one_that_stays_busy_is_an_error_at_last(server: Lambda, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_exchange, "PATIENCE", 0.3)
    with pytest.raises(UnreachableError, match=r"a quota of the account is used up \(lambda:Invoke: TooManyRequestsException: no\)"):
        ask(*[BUSY] * 100)(1)()
    assert len(server.asked) > 1


def test_waiting_can_be_ended(server: Lambda, ask: Any) -> None:
    with pytest.raises(RunTimeoutException):
        ask(*[BUSY] * 1000)(1).run(timeout=0.5)
    wait_until(lambda: not ours())


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("reset", r"the connection to lambda:f ended before its answer came \(\w+: .*The function may have run, so it was not asked again"),
        ("half", r"the connection to lambda:f ended before its answer came"),
        (refusal(500, "ServiceException"), r"lambda:f did not answer: ServiceException: no\. The function may have run"),
        ((503, "", b"nobody here"), r"lambda:f did not answer: 503: nobody here\. The function may have run"),
    ],
)
def test_where_it_may_have_run_it_is_not_asked_again(server: Lambda, ask: Any, step: Any, told: str) -> None:
    with pytest.raises(LinkLostError, match=told):
        ask(step)(1)()
    assert len(server.asked) == 1
    assert process(retry=1)(ask(step))(1)() == {"args": [1]}
    assert len(server.asked) == 3


def test_a_connection_that_has_been_used_is_no_excuse(server: Lambda, ask: Any) -> None:
    task = ask("value", "reset")
    with entangle.session():
        assert task(1)() == {"args": [1]}
        with pytest.raises(LinkLostError, match="may have run"):
            task(2)()
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (refusal(403, "AccessDeniedException"), r"you may not lambda:Invoke: no\. The policies"),
        (refusal(403, "UnrecognizedClientException"), r"AWS does not know these credentials"),
        (refusal(403, "ExpiredTokenException"), r"the credentials have expired"),
        (refusal(400, "InvalidRuntimeException"), r"lambda:Invoke was refused: InvalidRuntimeException: no"),
    ],
)
def test_a_refusal_is_told_once(server: Lambda, ask: Any, step: Any, told: str) -> None:
    with pytest.raises(UnreachableError, match=told):
        ask(step)(1)()
    assert len(server.asked) == 1


def test_nobody_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_exchange, "PATIENCE", 0.3)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{sock.getsockname()[1]}"
        task = lmbda(function="f")(aws(endpoint=endpoint, region=REGION, keys=list(CREDENTIALS.values()))(proxy))
        with pytest.raises(UnreachableError, match=r"lambda cannot be reached \(http://127.0.0.1:\d+\): ConnectError"):
            task(1)()


def test_keys_are_in_no_error_and_no_pickle(server: Lambda, ask: Any) -> None:
    secret = CREDENTIALS["AWS_SECRET_ACCESS_KEY"]
    with pytest.raises(ProcessRetryException) as caught:
        process(retry=1)(ask("reset", "reset"))(1)()
    assert secret not in repr(caught.value) + str(caught.value.__cause__)
    with pytest.raises(OptionError) as refused:
        aws(keys=[secret])
    assert secret not in str(refused.value)
