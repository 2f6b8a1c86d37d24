"""Lambda, without entangle: in moto's containers, and by AWS's own runtime client."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..evidence import wait_until
from ..services.emulators import Emulator, new_name
from ..services.lambda_functions import LambdaFunctions

_Clients = Callable[[str], Any]
_Call = Callable[..., Any]

# --- in containers --------------------------------------------------------------------------------

_HANDLER = """
import os
def handle(event, context):
    print("it is said")
    if "boom" in event:
        raise ValueError("boom")
    left = context.get_remaining_time_in_millis()
    return {"sum": event["a"] + event["b"], "memory": os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"], "left": 0 < left <= 7000}
"""


@pytest.fixture
def function(aws: _Clients) -> Iterator[str]:
    """The name of a Lambda function."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("app.py", _HANDLER)
    name, role = new_name("function"), aws("iam").create_role(RoleName=new_name("role"), AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    code = {"ZipFile": packed.getvalue()}
    aws("lambda").create_function(
        FunctionName=name, Runtime="python3.12", Handler="app.handle", Role=role, Code=code, MemorySize=128, Timeout=7
    )
    yield name
    aws("lambda").delete_function(FunctionName=name)


def test_lambda_runs_a_function_in_a_container(aws: _Clients, function: str) -> None:
    answer = aws("lambda").invoke(FunctionName=function, Payload=b'{"a": 1, "b": 2}', LogType="Tail")
    assert json.loads(answer["Payload"].read()) == {"sum": 3, "memory": "128", "left": True}
    assert "FunctionError" not in answer
    assert b"it is said" in base64.b64decode(answer["LogResult"])


def test_lambda_tells_of_an_error(aws: _Clients, function: str) -> None:
    answer = aws("lambda").invoke(FunctionName=function, Payload=b'{"boom": 1}')
    assert answer["FunctionError"] == "Unhandled"
    told = json.loads(answer["Payload"].read())
    assert (told["errorType"], told["errorMessage"]) == ("ValueError", "boom")


def test_lambda_runs_later_what_is_asynchronous(aws: _Clients, moto: Emulator, function: str) -> None:
    answer = aws("lambda").invoke(FunctionName=function, Payload=b'{"a": 1, "b": 2}', InvocationType="Event")
    assert answer["StatusCode"] == 202

    def said() -> bool:
        logs, group = aws("logs"), {"logGroupName": f"/aws/lambda/{function}"}
        streams = [one["logStreamName"] for one in logs.describe_log_streams(**group)["logStreams"]]
        events = [event for one in streams for event in logs.get_log_events(**group, logStreamName=one)["events"]]
        return "it is said" in [event["message"] for event in events]

    wait_until(lambda: moto.containers() or said(), 30, "the container")
    wait_until(said, 30, "what it prints")


# --- by AWS's own runtime client ------------------------------------------------------------------

_BODY = """
import os, time
calls = 0
def handle(event, context):
    global calls
    calls += 1
    print("call", calls, flush=True)
    if "boom" in event:
        raise ValueError("boom")
    if "end" in event:
        os._exit(3)
    if "note" in event:
        with open(event["note"], "a") as file:
            file.write("x")
        raise OSError("noted")
    time.sleep(event.get("sleep", 0))
    return {"sum": event["a"] + event["b"], "calls": calls, "id": context.aws_request_id, "left": context.get_remaining_time_in_millis()}
"""


@pytest.fixture
def calls(lambda_functions: LambdaFunctions, moto: Emulator) -> Iterator[_Call]:
    """Returns a function that calls the Lambda function "f" with boto3."""
    client = moto.client("lambda", endpoint_url=lambda_functions.endpoint, config=_once())

    def call(event: Any, **options: Any) -> Any:
        answer = client.invoke(**{"FunctionName": "f", "Payload": json.dumps(event).encode(), "LogType": "Tail", **options})
        return answer, json.loads(answer["Payload"].read() or b"null")

    yield call
    client.close()


def _once() -> Any:
    import botocore.config

    return botocore.config.Config(retries={"total_max_attempts": 1})


def test_the_runtime_client_runs_calls_in_a_warm_process(lambda_functions: LambdaFunctions, calls: _Call) -> None:
    lambda_functions.add("f", _BODY, timeout=20)
    told = [calls({"a": 1, "b": 2}) for _ in range(3)]
    assert [(value["sum"], value["calls"]) for _, value in told] == [(3, 1), (3, 2), (3, 3)]
    assert len({value["id"] for _, value in told}) == 3
    assert all(0 < value["left"] <= 20_000 for _, value in told)
    assert [base64.b64decode(answer["LogResult"]).split() for answer, _ in told][2] == [b"call", b"3"]
    assert len(lambda_functions.processes("f")) == 1


def test_the_runtime_client_tells_of_errors(lambda_functions: LambdaFunctions, calls: _Call) -> None:
    lambda_functions.add("f", _BODY, timeout=5)
    answer, told = calls({"boom": 1})
    assert (answer["FunctionError"], told["errorType"], told["errorMessage"]) == ("Unhandled", "ValueError", "boom")
    assert "boom" in told["stackTrace"][0]
    answer, told = calls({"end": 1})
    assert (answer["FunctionError"], told["errorType"]) == ("Unhandled", "Runtime.ExitError")
    assert told["errorMessage"].endswith("Runtime exited with error: exit status 3")
    assert calls({"a": 1, "b": 2})[1]["calls"] == 1, "a process that has ended is followed by a new one"


def test_a_call_of_lambda_that_takes_too_long_is_ended(lambda_functions: LambdaFunctions, calls: _Call) -> None:
    lambda_functions.add("f", _BODY, timeout=1)
    answer, told = calls({"sleep": 100})
    assert (answer["FunctionError"], told["errorType"]) == ("Unhandled", "Sandbox.Timedout")
    assert told["errorMessage"].endswith("Task timed out after 1.00 seconds")
    assert lambda_functions.processes("f") == []


def test_a_handler_that_cannot_be_loaded_is_an_error(lambda_functions: LambdaFunctions, calls: _Call) -> None:
    lambda_functions.add("f", "import nothing_of_this_name")
    answer, told = calls({})
    assert (answer["FunctionError"], told["errorType"]) == ("Unhandled", "Runtime.ImportModuleError")


def test_lambda_tries_an_asynchronous_call_three_times(lambda_functions: LambdaFunctions, calls: _Call, tmp_path: Path) -> None:
    lambda_functions.add("f", _BODY)
    noted = tmp_path / "noted"
    answer, _ = calls({"note": str(noted)}, InvocationType="Event")
    assert answer["StatusCode"] == 202
    wait_until(lambda: noted.exists() and noted.read_text() == "xxx", 30, "three tries")


def test_lambda_refuses_what_it_cannot_take(lambda_functions: LambdaFunctions, calls: _Call) -> None:
    import botocore.exceptions

    def refused(**options: Any) -> tuple[int, str]:
        try:
            calls({}, **options)
        # Keeping the error would keep a socket open.
        except botocore.exceptions.ClientError as error:
            return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
        raise AssertionError("it was not refused")

    lambda_functions.add("f", _BODY, most=0)
    assert refused() == (429, "TooManyRequestsException")
    assert refused(FunctionName="nobody") == (404, "ResourceNotFoundException")
    assert refused(Payload=b'"' + b"x" * (6 << 20) + b'"') == (413, "RequestEntityTooLargeException")
