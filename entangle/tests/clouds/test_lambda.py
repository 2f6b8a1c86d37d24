"""@lmbda above a function that exists in Lambda: events, values and errors."""

# Decorators are passed as values here, and are untyped.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle import records
from entangle._aws.lambda_function import not_json
from entangle.aws import aws, lmbda
from entangle.errors import (
    ArgumentError,
    LambdaError,
    OptionError,
    ProcessRetryException,
    ProcessTimeoutException,
    UnreachableError,
)
from entangle.process import process
from entangle.thread import thread

from .. import bodies
from ..evidence import notes
from ..services.emulators import CREDENTIALS, REGION, Emulator, new_name
from ..services.lambda_functions import LambdaFunctions

KEYS = list(CREDENTIALS.values())
#: The code of these tests' functions. The event says what to do.
CODE = """
import os, sys, time

class OfItsOwn(Exception):
    pass

def deep(event):
    print("it goes wrong now")
    raise OfItsOwn(f"not with {event['fails']!r}")

def handle(event, context):
    if not isinstance(event, dict):
        return event
    if "note" in event:
        with open(event["note"], "a") as file:
            file.write("x\\n")
    if "fails" in event:
        deep(event)
    if "sleeps" in event:
        time.sleep(event["sleeps"])
    if "exits" in event:
        os._exit(event["exits"])
    if "large" in event:
        return "x" * event["large"]
    if "unwritable" in event:
        return {1, 2}
    if "pid" in event:
        return os.getpid()
    return {"event": event}
"""


def proxy() -> Any:
    raise AssertionError("the body of a proxy is not run")


@pytest.fixture
def function(lambda_functions: LambdaFunctions) -> Callable[..., Any]:
    """Creates a function in Lambda, and returns the task that calls it."""

    def made(name: str = "f", code: str = CODE, **options: Any) -> Any:
        lambda_functions.add(name, code, **options)
        return at(lambda_functions.endpoint, name)

    return made


def at(endpoint: str, function: str = "f", **options: Any) -> Any:
    return lmbda(function=function, **options)(aws(endpoint=endpoint, region=REGION, keys=KEYS)(proxy))


# --- events and values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "event"),
    [
        ((1, 2, 3), {}, {"args": [1, 2, 3]}),
        ((), {"a": 1, "b": None}, {"kwargs": {"a": 1, "b": None}}),
        ((1,), {"b": "ü"}, {"args": [1], "kwargs": {"b": "ü"}}),
        (({"key": [True, 2.5]},), {}, {"key": [True, 2.5]}),
        (({"key": 1},), {"k": 2}, {"args": [{"key": 1}], "kwargs": {"k": 2}}),
        (({"key": 1}, 2), {}, {"args": [{"key": 1}, 2]}),
        (([1, (2, 3)],), {}, {"args": [[1, [2, 3]]]}),
        ((), {}, {}),
    ],
)
def test_the_arguments_are_the_event(function: Any, args: Any, kwargs: Any, event: Any) -> None:
    assert function()(*args, **kwargs)() == {"event": event}


def test_an_answer_may_be_anything_in_json(lambda_functions: LambdaFunctions) -> None:
    lambda_functions.add("f", "def handle(event, context): return event['args'][0]")
    proxies = at(lambda_functions.endpoint)
    values: list[Any] = [None, 0, "", [], {"a": [1.5, "ü"]}, False, 2**70]
    for value in values:
        assert proxies(value, 1)() == value


def test_the_example_of_the_first_document(function: Any) -> None:
    function()

    @process
    def total(answer: Any) -> int:
        return sum(answer["event"]["args"])

    task = function("g")
    assert total(task(1, 2, process(bodies.add)(1, 2)))() == 6


def test_either_decorator_may_stand_above(lambda_functions: LambdaFunctions) -> None:
    lambda_functions.add("f", CODE)
    whose, what = aws(endpoint=lambda_functions.endpoint, region=REGION, keys=KEYS), lmbda(function="f")
    for task in (whose(what(proxy)), what(whose(proxy)), process(what(whose(proxy))), whose(what(process(proxy)))):
        assert task(1)() == {"event": {"args": [1]}}


def test_the_environment_says_whose_account(lambda_functions: LambdaFunctions, aws_environment: Emulator, monkeypatch: Any) -> None:
    lambda_functions.add("f", CODE)
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", lambda_functions.endpoint)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.delenv("AWS_PROFILE")
    region = "eu-west-3"  # clients are cached for an account: there is none for this region yet
    assert lmbda(function="f")(aws(keys=[], region=region)(proxy))(1)() == {"event": {"args": [1]}}


def test_calls_are_warm_and_mapped(function: Any) -> None:
    task = function(most=3)
    assert [value["event"] for value in task.map([{"n": n} for n in range(40)])()] == [{"n": n} for n in range(40)]
    assert len({task({"pid": 1})() for _ in range(3)}) == 1


@pytest.mark.parametrize("under", [process, thread, lambda f: f], ids=["process", "thread", "alone"])
def test_whatever_stands_above(function: Any, under: Any) -> None:
    assert under(function())(process(bodies.add)(1, 2))() == {"event": {"args": [3]}}


def test_from_within_a_body(function: Any) -> None:
    task = function()

    @process
    def outer() -> Any:
        return task(1)()

    assert outer()() == {"event": {"args": [1]}}


def test_records_say_where_and_which_request(function: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    function()(1)()
    (node,) = records.run("last").nodes
    assert node.place == "lambda:f"
    secrets = [path for path in tmp_path.rglob("*") if path.is_file() and KEYS[1].encode() in path.read_bytes()]
    assert not secrets


# --- errors in Lambda -----------------------------------------------------------------------------


def test_an_error_of_the_function(function: Any) -> None:
    with pytest.raises(LambdaError) as caught:
        function()({"fails": "that"})()
    error = caught.value
    assert (error.error_type, error.error_message) == ("OfItsOwn", "not with 'that'")
    assert any("in deep" in line for line in error.stack)
    assert "it goes wrong now" in error.log
    assert str(error).startswith("task 'proxy': the function lambda:f has failed: OfItsOwn: not with 'that'\n")
    assert "it goes wrong now" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.error_type, again.stack, str(again)) == (error.error_type, error.stack, str(error))


def test_an_error_reaches_the_caller_from_a_worker_whole(function: Any) -> None:
    task = function()

    @process
    def outer() -> Any:
        return task({"fails": "that"})()

    with pytest.raises(LambdaError, match="OfItsOwn") as caught:
        outer()()
    assert caught.value.error_type == "OfItsOwn"


def test_the_function_takes_longer_than_it_may(function: Any) -> None:
    with pytest.raises(LambdaError, match=r"Task timed out after 1.00 seconds; its own timeout was over") as caught:
        function(timeout=1.0)({"sleeps": 60})()
    assert caught.value.error_type == "Sandbox.Timedout"


def test_a_sandbox_that_ends(function: Any) -> None:
    with pytest.raises(LambdaError, match=r"Runtime exited with error: exit status 3"):
        function()({"exits": 3})()


def test_an_answer_that_is_too_large(function: Any) -> None:
    with pytest.raises(LambdaError, match=r"Response payload size exceeded .* have it put the value into S3"):
        function()({"large": 7 << 20})()
    assert len(function("g")({"large": 5 << 20})()) == 5 << 20


def test_an_answer_that_is_no_json(function: Any) -> None:
    with pytest.raises(LambdaError, match=r"MarshalError|not JSON serializable"):
        function()({"unwritable": 1})()


@pytest.mark.parametrize(("retry", "error"), [(2, ProcessRetryException), (0, LambdaError)])
def test_a_failed_one_is_asked_again_by_retry_alone(function: Any, tmp_path: Path, retry: int, error: Any) -> None:
    noted = tmp_path / "noted"
    with pytest.raises(error):
        process(retry=retry)(function())({"note": str(noted), "fails": 1})()
    assert len(notes(noted)) == 1 + retry


def test_retry_and_timeout_of_a_layer_below_hold_here(lambda_functions: LambdaFunctions, tmp_path: Path) -> None:
    lambda_functions.add("f", CODE)
    whose, what = aws(endpoint=lambda_functions.endpoint, region=REGION, keys=KEYS), lmbda(function="f")
    noted = tmp_path / "noted"
    with pytest.raises(ProcessRetryException):
        what(whose(process(retry=1)(proxy)))({"note": str(noted), "fails": 1})()
    assert len(notes(noted)) == 2
    with pytest.raises(ProcessTimeoutException):
        what(process(timeout=0.3)(whose(proxy)))({"sleeps": 1})()


def test_a_deadline_here(function: Any, lambda_functions: LambdaFunctions) -> None:
    with pytest.raises(ProcessTimeoutException):
        process(timeout=0.3)(function())({"sleeps": 1})()


# --- errors before a call -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "told"),
    [
        ((1, {2}), {}, r"task 'proxy': argument 2 cannot be sent to lambda:f, which takes JSON: \{2\} of type set\."),
        ((), {"a": {"b": [0, b"x"]}}, r"argument 'a' cannot be sent .*: <bytes of 1> of type bytes at \['b'\]\[1\]"),
        (({"a": {1: 2}},), {}, r"argument 1 cannot be sent .*: the key 1 of a dict at \['a'\]"),
        ((float("nan"),), {}, r"argument 1 cannot be sent .*: nan\."),
        (([1.0, float("inf")],), {}, r"argument 1 cannot be sent .*: inf at \[1\]"),
        (("x" * (6 << 20), 1), {}, r"its event has 6,291,4\d\d bytes, and Lambda takes 6,291,456 \(argument 1 has 6,291,458\)"),
    ],
)
def test_what_json_does_not_have_is_named(function: Any, args: Any, kwargs: Any, told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        function()(*args, **kwargs)()


def test_an_argument_that_contains_itself() -> None:
    ring: Any = {"a": 1}
    ring["b"] = [ring]
    assert not_json(ring) == "it contains itself"
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    assert not_json(deep) == "it is nested too deeply"


def test_an_event_of_the_largest_size(lambda_functions: LambdaFunctions) -> None:
    lambda_functions.add("f", "def handle(event, context): return len(event['a'])")
    size = (6 << 20) - len('{"a":""}')
    assert at(lambda_functions.endpoint)({"a": "x" * size})() == size


def test_there_is_no_such_function(function: Any, lambda_functions: LambdaFunctions) -> None:
    function()
    with pytest.raises(UnreachableError, match=r"there is no function 'nobody' in us-east-1 \(ResourceNotFoundException: .*name another"):
        at(lambda_functions.endpoint, "nobody")(1)()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, r"needs function=.*or role="),
        ({"function": ""}, r"function=''; it must be the name or the ARN"),
        ({"function": 3}, r"function=3; it must be the name or the ARN"),
        ({"function": "a b"}, r"function='a b'; it must be the name or the ARN"),
        ({"function": "f", "qualifier": 3}, r"qualifier=3; it must be a version"),
        ({"function": "f:3", "qualifier": "4"}, r"function='f:3' names a version or an alias already"),
        ({"function": "f", "qualifer": "3"}, r"qualifer.*qualifier"),
    ],
)
def test_options_that_cannot_be(options: Any, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        lmbda(**options)


def test_it_needs_parentheses() -> None:
    with pytest.raises(OptionError, match="@lmbda needs parentheses"):
        lmbda(proxy)  # type: ignore[call-overload]


# --- in containers of moto, which has versions, aliases and permissions --------------------------


_DEPLOYED = """
import os
def handle(event, context):
    return {{"version": {version}, "event": event, "region": os.environ["AWS_REGION"]}}
"""


def zipped(code: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("app.py", code)
    return file.getvalue()


@pytest.fixture
def deployed(moto: Emulator, aws: Callable[[str], Any]) -> Iterator[tuple[str, str]]:
    """A function with two versions in moto, and an alias "live" for the first: its name and ARN."""
    role = aws("iam").create_role(RoleName=new_name("role"), AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    name, client = new_name("function"), aws("lambda")
    made = client.create_function(
        FunctionName=name,
        Runtime="python3.12",
        Handler="app.handle",
        Role=role,
        Code={"ZipFile": zipped(_DEPLOYED.format(version=1))},
    )
    version = client.publish_version(FunctionName=name)["Version"]
    client.create_alias(FunctionName=name, Name="live", FunctionVersion=version)
    client.update_function_code(FunctionName=name, ZipFile=zipped(_DEPLOYED.format(version=2)))
    yield name, made["FunctionArn"]
    client.delete_function(FunctionName=name)


def test_versions_and_aliases(moto: Emulator, deployed: tuple[str, str]) -> None:
    name, arn = deployed
    answer = at(moto.endpoint, name)(1)()
    assert answer == {"version": 2, "event": {"args": [1]}, "region": REGION}
    assert at(moto.endpoint, name, qualifier="1")(1)()["version"] == 1
    assert at(moto.endpoint, arn)(1)()["version"] == 2
    with pytest.raises(UnreachableError, match=r"there is no function .*:9' in us-east-1"):
        at(moto.endpoint, name, qualifier="9")(1)()


def test_whoever_may_not_is_told_what(moto: Emulator, aws: Callable[[str], Any], deployed: tuple[str, str]) -> None:
    name, _ = deployed
    iam, user = aws("iam"), new_name("user")
    iam.create_user(UserName=user)
    made = iam.create_access_key(UserName=user)["AccessKey"]
    keys = [made["AccessKeyId"], made["SecretAccessKey"]]
    task = lmbda(function=name)(_account(moto, keys)(proxy))
    told = r"you may not lambda:Invoke: User: arn:.* is not authorized .*deploy/aws"
    with moto.permissions(), pytest.raises(UnreachableError, match=told) as caught:
        task(1)()
    assert keys[1] not in str(caught.value)
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "lambda:Invoke*", "Resource": "*"}]}
    iam.put_user_policy(UserName=user, PolicyName="invoke", PolicyDocument=json.dumps(policy))
    wrong = lmbda(function=name)(_account(moto, [keys[0], "another"])(proxy))
    with moto.permissions():
        assert task(1)()["event"] == {"args": [1]}  # so the signature is right
        with pytest.raises(UnreachableError, match=r"AWS does not know these credentials"):
            wrong(1)()


def _account(moto: Emulator, keys: list[str]) -> Any:
    return aws(endpoint=moto.endpoint, region=REGION, keys=keys)
