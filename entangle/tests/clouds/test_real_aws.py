"""Each decorator once in a real AWS account, with the least work that shows that it works there.

These tests run if ENTANGLE_TEST_AWS=1, in the account and region that boto3 finds, and cost some
cents. Before the first request, the most that they can cost is added up. If that exceeds
ENTANGLE_TEST_AWS_BUDGET (USD; 1.00 by default), no test starts. `deploy/aws/make.py` creates what
they need, once:

- ENTANGLE_TEST_AWS_BUCKET: a bucket
- ENTANGLE_TEST_AWS_QUEUE: a job queue of Batch
- ENTANGLE_TEST_AWS_ROLE: the ARN of the role that starts containers
- ENTANGLE_TEST_AWS_LAMBDA_ROLE: the ARN of the role of functions
- ENTANGLE_TEST_AWS_GROUP: a security group that lets this machine in at port 22
- ENTANGLE_TEST_AWS_CLUSTER, _SUBNETS, _IMAGE: a cluster of ECS, subnets separated by commas, and an
  image. Defaults: "default", the subnets of the default network, and Python's official image

What they create is removed at the end, also after a failure, and anything left is reported. Without
an account, test_real_aws_in_emulators.py runs this file.
"""

# Decorators are passed as values here, and are untyped.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from entangle._aws.account import Account
from entangle._remote.caller.open_channels import close_all
from entangle._services.caller import open_watchers
from entangle.aws import aws, batch, ec2, fargate, lmbda
from entangle.dataflow import dataflow, thread
from entangle.process import process
from entangle.sources import sqs

from ..evidence import wait_until
from ..services import aws_budget
from ..services.aws_budget import bounded, within_budget
from ..services.aws_clients import listed_clients
from ..services.aws_leftovers import Leftovers, new_name
from . import bodies

pytestmark = pytest.mark.skipif(
    os.environ.get("ENTANGLE_TEST_AWS") != "1",
    reason="ENTANGLE_TEST_AWS=1 runs it in your account of AWS, for some cents; what it needs there: docs/architecture/clouds_in_tests.md",
)

#: More than fits into one part of an upload (bytes).
LARGE = 101 << 20


def named(what: str) -> str:
    """The value of a variable. If it is not set, the test fails."""
    variable = f"ENTANGLE_TEST_AWS_{what}"
    value = os.environ.get(variable)
    if not value:
        why = f"{variable} is not set; `python deploy/aws/make.py` makes what it names: docs/architecture/clouds_in_tests.md"
        pytest.fail(why, pytrace=False)
    return value


def several(what: str) -> list[str]:
    return [one for one in os.environ.get(f"ENTANGLE_TEST_AWS_{what}", "").split(",") if one]


def cluster() -> str:
    return os.environ.get("ENTANGLE_TEST_AWS_CLUSTER") or "default"


def image() -> str | None:
    return os.environ.get("ENTANGLE_TEST_AWS_IMAGE") or None


@pytest.fixture(scope="module")
def left_out(request: pytest.FixtureRequest) -> list[Any]:
    """The optional tests that the budget leaves out. Fails if it is too small for the others."""
    tests = {item.function for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path}
    most, left = within_budget(tests)
    print(f"\nthese tests cost {most:.2f} USD at most")
    return left


@pytest.fixture(scope="module")
def clients() -> Iterator[list[Any]]:
    """The boto3 clients that these tests use."""
    with pytest.MonkeyPatch.context() as patched:
        yield listed_clients(patched)


@pytest.fixture(scope="module")
def leftovers(left_out: list[Any], clients: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Leftovers]:
    """The account, and what the tests leave in it, which is removed at the end."""
    import boto3

    if boto3.Session().get_credentials() is None:
        pytest.fail("ENTANGLE_TEST_AWS=1, and there are no credentials: set AWS_PROFILE, or log in (aws sso login)", pytrace=False)
    found = Leftovers(Account(bucket=named("BUCKET")), cluster(), named("QUEUE"))
    with pytest.MonkeyPatch.context() as patched:
        # @ec2 creates a key there.
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield found
        close_all()
        open_watchers.close_all()
        if left := found.sweep():
            pytest.fail(f"left in the account: {'; '.join(left)}", pytrace=False)
        print("\nnothing is left in the account")


@pytest.fixture(autouse=True)
def account(leftovers: Leftovers, clients: list[Any], left_out: list[Any], request: pytest.FixtureRequest) -> Iterator[Account]:
    """The account, if the budget lets this test run. Its connections are closed after the test."""
    if request.function in left_out:
        pytest.skip(f"ENTANGLE_TEST_AWS_BUDGET is too small for it: it may cost {request.function.bound.usd:.2f} USD")
    yield leftovers.account
    for client in clients:
        client.close()


def entangle(*words: str) -> Any:
    """The output of the command line, parsed as JSON."""
    command = [sys.executable, "-m", "entangle", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.strip(), done.stderr
    return json.loads(done.stdout)


@bounded(120, aws_budget.bucket())
def test_who_one_is(account: Account) -> None:
    who = account.client("sts").get_caller_identity()["Arn"]
    found = {each["what"]: each for each in entangle("doctor", "--aws", "--bucket", account.bucket_name())}
    assert who in found["aws"]["detail"]
    assert "objects are put once" in found["@aws bucket"]["detail"]


@bounded(600, aws_budget.container(600) + aws_budget.bucket())
def test_batch(account: Account) -> None:
    at = batch(queue=named("QUEUE"), image=image(), execution_role=named("ROLE"), time=300)
    task = aws(bucket=account.bucket)(at(process(timeout=300)(bodies.size)))
    data = os.urandom(1 << 20)
    assert task(data)() == data[::-1]


@bounded(900, aws_budget.container(900) + aws_budget.bucket(gb_out=0.11), optional=True)
def test_a_large_value_goes_through_s3_in_parts(account: Account) -> None:
    at = batch(queue=named("QUEUE"), image=image(), execution_role=named("ROLE"), time=600)
    assert len(aws(bucket=account.bucket)(at(process(timeout=600)(bodies.many)))(LARGE)()) == LARGE


@bounded(600, aws_budget.container(600) + aws_budget.bucket())
def test_fargate(account: Account) -> None:
    at = fargate(image=image(), execution_role=named("ROLE"), cluster=cluster(), subnets=several("SUBNETS"), time=300)
    assert aws(bucket=account.bucket)(at(process(timeout=300)(bodies.add)))([1], [2])() == [1, 2]


@bounded(180, aws_budget.function(30, calls=1, gb=0.125))
def test_a_function_that_stands_in_lambda(account: Account) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("app.py", "def handle(event, context):\n    return {'sum': sum(event['args'])}\n")
    name, client = new_name(), account.client("lambda")
    client.create_function(
        **{"FunctionName": name, "Role": named("LAMBDA_ROLE"), "Handler": "app.handle", "Timeout": 30},
        Runtime=f"python3.{sys.version_info[1]}",
        Code={"ZipFile": packed.getvalue()},
    )
    client.get_waiter("function_active_v2").wait(FunctionName=name)
    assert lmbda(function=name)(aws()(bodies.add))(1, 2)() == {"sum": 3}


@bounded(300, aws_budget.function(90, calls=3) + aws_budget.bucket())
def test_a_body_in_lambda(account: Account) -> None:
    task = aws(bucket=account.bucket)(lmbda(role=named("LAMBDA_ROLE"), timeout=60)(process(bodies.square)))
    assert task(7)() == 49
    with pytest.raises(ValueError, match="on purpose"):
        aws(bucket=account.bucket)(lmbda(role=named("LAMBDA_ROLE"), timeout=60)(bodies.fail))("on purpose")()


@bounded(900, aws_budget.instance(900))
def test_ec2_and_its_end(leftovers: Leftovers) -> None:
    subnet = next(iter(several("SUBNETS")), None)
    add = aws()(ec2(security_groups=[named("GROUP")], subnet=subnet, idle=5)(bodies.add))
    assert add(1, 2)() == 3
    assert [kind for kind, _ in leftovers.now() if kind == "instance"] == ["instance"]
    close_all()
    wait_until(lambda: not [kind for kind, _ in leftovers.now() if kind == "instance"], 300, "the end of the instance")


@bounded(180, aws_budget.messages(500))
def test_a_queue_is_a_source(account: Account) -> None:
    name, client = f"{new_name()}.fifo", account.client("sqs")
    url = client.create_queue(QueueName=name, Attributes={"FifoQueue": "true", "ContentBasedDeduplication": "true"})["QueueUrl"]
    sent = [[group, number] for group in "ab" for number in range(3)]
    for one in sent:
        client.send_message(QueueUrl=url, MessageBody=json.dumps(one), MessageGroupId=one[0])

    @dataflow
    @thread
    def same(x: Any) -> Any:
        time.sleep(0.1)
        return x

    got = [value for (value,) in same().stream(sqs(url, wait=1, idle=5))]
    assert sorted(got) == sent
    for group in "ab":
        assert [number for name, number in got if name == group] == [0, 1, 2]


@bounded(600, aws_budget.bucket())
def test_what_is_there_is_told_and_removed(leftovers: Leftovers, account: Account) -> None:
    open_watchers.close_all()
    made = {name for kind, name in leftovers.now() if kind == "function" and not name.startswith("entangle-tests-")}
    others = {name for kind, name in leftovers.before if kind == "function"}
    gone = entangle("aws", "gc", "--unused", "0", *(["--dry-run"] if others else []))
    assert made <= {each["name"] for each in gone}
    assert leftovers.sweep() == []
    known = {name for _, name in leftovers.before}
    listed = entangle("aws", "ls", "--bucket", account.bucket_name())
    assert [each for each in listed if each.get("instance", each.get("name")) not in known] == []
