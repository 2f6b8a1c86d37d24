"""The emulators of these tests can be started, and each does real work without entangle."""

from __future__ import annotations

import base64
import io
import json
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..evidence import wait_until
from ..services.emulators import REGION, Emulator, FargateCluster, JobQueue, new_name
from ..services.lambda_functions import LambdaFunctions

_Clients = Callable[[str], Any]
_Call = Callable[..., Any]


# --- S3 -------------------------------------------------------------------------------------------


def test_s3_refuses_the_second_of_two_conditional_writes(aws: _Clients, bucket: str) -> None:
    s3 = aws("s3")
    s3.put_object(Bucket=bucket, Key="claim", Body=b"first", IfNoneMatch="*")
    with pytest.raises(s3.exceptions.ClientError) as caught:
        s3.put_object(Bucket=bucket, Key="claim", Body=b"second", IfNoneMatch="*")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert caught.value.response["Error"]["Code"] == "PreconditionFailed"
    assert s3.get_object(Bucket=bucket, Key="claim")["Body"].read() == b"first"


def test_s3_takes_and_gives_by_presigned_addresses(aws: _Clients, bucket: str) -> None:
    there = {"Bucket": bucket, "Key": "by-address"}
    put, get = (aws("s3").generate_presigned_url(verb, Params=there, ExpiresIn=60) for verb in ("put_object", "get_object"))
    # urllib would say that it is a form, and moto would take it for one.
    request = urllib.request.Request(put, data=b"value", method="PUT", headers={"Content-Type": "application/octet-stream"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(get, timeout=20) as answer:
        assert answer.read() == b"value"


def test_boto3_finds_the_emulator_by_the_environment(aws_environment: Emulator, bucket: str) -> None:
    import boto3

    s3 = boto3.session.Session().client("s3")
    try:
        assert s3.meta.endpoint_url == aws_environment.endpoint
        assert bucket in [one["Name"] for one in s3.list_buckets()["Buckets"]]
    finally:
        s3.close()


# --- Batch ----------------------------------------------------------------------------------------


def _definition(batch: Any, image: str, body: str, **more: Any) -> str:
    resources = [{"type": "VCPU", "value": "0.25"}, {"type": "MEMORY", "value": "64"}]
    properties = {"image": image, "command": ["python3", "-c", body], "resourceRequirements": resources, **more}
    name = new_name("definition")
    return str(batch.register_job_definition(jobDefinitionName=name, type="container", containerProperties=properties)["jobDefinitionArn"])


def _ended(batch: Any, job: str) -> Any:
    def told() -> Any:
        found = batch.describe_jobs(jobs=[job])["jobs"][0]
        return found if found["status"] in ("SUCCEEDED", "FAILED") else None

    return wait_until(told, 50, f"the job {job}")


def _said(logs: Any, stream: str, group: str = "/aws/batch/job") -> list[str]:
    return [event["message"] for event in logs.get_log_events(logGroupName=group, logStreamName=stream)["events"]]


def test_batch_runs_a_container_and_keeps_its_log(aws: _Clients, job_queue: JobQueue, test_image: str) -> None:
    batch = aws("batch")
    definition = _definition(batch, test_image, "import os; print('hello', os.environ['X'], os.environ['AWS_BATCH_JOB_ID'])")
    with_x = {"environment": [{"name": "X", "value": "42"}]}
    job = batch.submit_job(jobName="one-job", jobQueue=job_queue.name, jobDefinition=definition, containerOverrides=with_x)["jobId"]
    told = _ended(batch, job)
    assert (told["status"], told["container"]["exitCode"]) == ("SUCCEEDED", 0)
    assert _said(aws("logs"), told["container"]["logStreamName"]) == [f"hello 42 {job}"]


def test_batch_tells_of_a_failure(aws: _Clients, job_queue: JobQueue, test_image: str) -> None:
    batch = aws("batch")
    definition = _definition(batch, test_image, "raise SystemExit(3)")
    told = _ended(batch, batch.submit_job(jobName="fails", jobQueue=job_queue.name, jobDefinition=definition)["jobId"])
    assert (told["status"], told["container"]["exitCode"]) == ("FAILED", 3)
    assert told["statusReason"] == "Essential container in task exited"
    assert told["attempts"][0]["container"]["exitCode"] == 3


def test_batch_keeps_memory_limits(aws: _Clients, job_queue: JobQueue, test_image: str) -> None:
    batch = aws("batch")
    definition = _definition(batch, test_image, "bytearray(b'x' * (200 << 20))")
    told = _ended(batch, batch.submit_job(jobName="hungry", jobQueue=job_queue.name, jobDefinition=definition)["jobId"])
    assert (told["status"], told["container"]["exitCode"]) == ("FAILED", 137)
    assert told["container"]["reason"].startswith("OutOfMemoryError")


def test_batch_ends_what_takes_too_long(aws: _Clients, job_queue: JobQueue, test_image: str) -> None:
    batch = aws("batch")
    definition = _definition(batch, test_image, "import time; time.sleep(100)")
    limit = {"attemptDurationSeconds": 1}
    job = batch.submit_job(jobName="slow", jobQueue=job_queue.name, jobDefinition=definition, timeout=limit)["jobId"]
    told = _ended(batch, job)
    assert (told["status"], told["statusReason"]) == ("FAILED", "Job attempt duration exceeded timeout")


def test_batch_says_that_there_is_no_image(aws: _Clients, job_queue: JobQueue) -> None:
    batch = aws("batch")
    definition = _definition(batch, "127.0.0.1:1/entangle-nowhere:1", "pass")
    told = _ended(batch, batch.submit_job(jobName="no-image", jobQueue=job_queue.name, jobDefinition=definition)["jobId"])
    assert (told["status"], told["statusReason"]) == ("FAILED", "Task failed to start")
    assert told["container"]["reason"].startswith("CannotPullContainerError")


def test_batch_terminates_a_job(aws: _Clients, moto: Emulator, job_queue: JobQueue, test_image: str) -> None:
    batch = aws("batch")
    definition = _definition(batch, test_image, "import time; time.sleep(100)")
    job = batch.submit_job(jobName="unwanted", jobQueue=job_queue.name, jobDefinition=definition)["jobId"]
    wait_until(moto.containers, 30, "the container")
    batch.terminate_job(jobId=job, reason="nobody wants it")
    told = _ended(batch, job)
    assert (told["status"], told["statusReason"]) == ("FAILED", "nobody wants it")


def test_batch_runs_an_array(aws: _Clients, job_queue: JobQueue, test_image: str) -> None:
    batch = aws("batch")
    body = "import os; print(os.environ['AWS_BATCH_JOB_ARRAY_INDEX'], os.environ['AWS_BATCH_JOB_ID'], os.environ['X'])"
    definition = _definition(batch, test_image, body)
    given: Any = {"arrayProperties": {"size": 3}, "containerOverrides": {"environment": [{"name": "X", "value": "x"}]}}
    job = batch.submit_job(jobName="array", jobQueue=job_queue.name, jobDefinition=definition, **given)["jobId"]
    assert _ended(batch, job)["arrayProperties"]["statusSummary"]["SUCCEEDED"] == 3
    children = batch.describe_jobs(jobs=[f"{job}:{index}" for index in range(3)])["jobs"]
    assert [child["arrayProperties"]["index"] for child in children] == [0, 1, 2]
    said = [_said(aws("logs"), child["container"]["logStreamName"]) for child in children]
    assert said == [[f"{index} {job}:{index} x"] for index in range(3)]


def test_an_array_fails_with_one_of_its_jobs(aws: _Clients, job_queue: JobQueue, test_image: str) -> None:
    batch = aws("batch")
    definition = _definition(batch, test_image, "import os; raise SystemExit(int(os.environ['AWS_BATCH_JOB_ARRAY_INDEX']))")
    size = {"size": 2}
    job = batch.submit_job(jobName="half", jobQueue=job_queue.name, jobDefinition=definition, arrayProperties=size)["jobId"]
    told = _ended(batch, job)
    assert (told["status"], told["statusReason"]) == ("FAILED", "Array Child Job failed")
    summary = told["arrayProperties"]["statusSummary"]
    assert (summary["SUCCEEDED"], summary["FAILED"]) == (1, 1)


# --- ECS ------------------------------------------------------------------------------------------


def _task(ecs: Any, cluster: FargateCluster, image: str, body: str, memory: int = 512) -> str:
    logged = {"awslogs-group": cluster.log_group, "awslogs-region": REGION, "awslogs-stream-prefix": "p"}
    container = {
        "name": "main",
        "image": image,
        "command": ["python3", "-c", body],
        "logConfiguration": {"logDriver": "awslogs", "options": logged},
    }
    definition = ecs.register_task_definition(
        family=new_name("family"),
        containerDefinitions=[container],
        requiresCompatibilities=["FARGATE"],
        networkMode="awsvpc",
        cpu="256",
        memory=str(memory),
    )["taskDefinition"]["taskDefinitionArn"]
    network = {"awsvpcConfiguration": {"subnets": [cluster.subnet], "securityGroups": [cluster.security_group]}}
    variables = [{"name": "X", "value": "42"}]
    started = ecs.run_task(
        cluster=cluster.name,
        taskDefinition=definition,
        launchType="FARGATE",
        networkConfiguration=network,
        overrides={"containerOverrides": [{"name": "main", "environment": variables}]},
    )
    assert started["failures"] == []
    return str(started["tasks"][0]["taskArn"])


def _stopped(ecs: Any, cluster: FargateCluster, task: str) -> Any:
    def told() -> Any:
        (found,) = ecs.describe_tasks(cluster=cluster.name, tasks=[task])["tasks"]
        return found if found["lastStatus"] == "STOPPED" else None

    return wait_until(told, 50, f"the task {task}")


def test_ecs_runs_a_container_tells_its_exit_code_and_keeps_its_log(aws: _Clients, fargate: FargateCluster, test_image: str) -> None:
    ecs = aws("ecs")
    task = _task(ecs, fargate, test_image, "import os; print('hello', os.environ['X']); raise SystemExit(3)")
    told = _stopped(ecs, fargate, task)
    assert (told["stopCode"], told["stoppedReason"]) == ("EssentialContainerExited", "Essential container in task exited")
    assert told["containers"][0]["exitCode"] == 3
    stream = f"p/main/{task.rpartition('/')[2]}"
    assert wait_until(lambda: _said(aws("logs"), stream, fargate.log_group), 20, "the log") == ["hello 42"]


def test_ecs_tasks_reach_the_bucket(aws: _Clients, fargate: FargateCluster, bucket: str, test_image: str) -> None:
    there = {"Bucket": bucket, "Key": "from-ecs"}
    address = aws("s3").generate_presigned_url("put_object", Params=there, ExpiresIn=60)
    send = f"Request({address!r}, data=b'value', method='PUT', headers={{'Content-Type': 'application/octet-stream'}})"
    told = _stopped(aws("ecs"), fargate, _task(aws("ecs"), fargate, test_image, f"from urllib.request import *; urlopen({send})"))
    assert told["containers"][0]["exitCode"] == 0
    assert aws("s3").get_object(**there)["Body"].read() == b"value"


def test_ecs_keeps_memory_limits(aws: _Clients, fargate: FargateCluster, test_image: str) -> None:
    told = _stopped(aws("ecs"), fargate, _task(aws("ecs"), fargate, test_image, "bytearray(b'x' * (900 << 20))"))
    assert told["containers"][0]["exitCode"] == 137
    assert told["containers"][0]["reason"].startswith("OutOfMemoryError")


def test_ecs_stops_a_task(aws: _Clients, fargate: FargateCluster, ministack: Emulator, test_image: str) -> None:
    ecs = aws("ecs")
    task = _task(ecs, fargate, test_image, "import time; time.sleep(100)")
    wait_until(ministack.containers, 30, "the container")
    ecs.stop_task(cluster=fargate.name, task=task, reason="nobody wants it")
    told = _stopped(ecs, fargate, task)
    assert (told["stopCode"], told["stoppedReason"]) == ("UserInitiated", "nobody wants it")


def test_ecs_says_that_there_is_no_image(aws: _Clients, fargate: FargateCluster) -> None:
    told = _stopped(aws("ecs"), fargate, _task(aws("ecs"), fargate, "127.0.0.1:1/entangle-nowhere:1", "pass"))
    assert told["stopCode"] == "TaskFailedToStart"
    assert told["stoppedReason"].startswith("CannotPullContainerError")


# --- Lambda in containers -------------------------------------------------------------------------

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
    """The name of a function of Lambda."""
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
        logs = aws("logs")
        streams = [one["logStreamName"] for one in logs.describe_log_streams(logGroupName=f"/aws/lambda/{function}")["logStreams"]]
        return any("it is said" in _said(logs, stream, f"/aws/lambda/{function}") for stream in streams)

    wait_until(lambda: moto.containers() or said(), 30, "the container")
    wait_until(said, 30, "what it prints")


# --- Lambda by AWS's own runtime client -----------------------------------------------------------

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
    """How to call the function "f" by boto3."""
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
        except botocore.exceptions.ClientError as error:  # whoever keeps it keeps a socket open
            return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
        raise AssertionError("it was not refused")

    lambda_functions.add("f", _BODY, most=0)
    assert refused() == (429, "TooManyRequestsException")
    assert refused(FunctionName="nobody") == (404, "ResourceNotFoundException")
    assert refused(Payload=b'"' + b"x" * (6 << 20) + b'"') == (413, "RequestEntityTooLargeException")
