"""The emulators of these tests can be started, and each does real work without entangle."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from ..evidence import wait_until
from ..services.emulators import Emulator, JobQueue, new_name

_Clients = Callable[[str], Any]


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


def _said(logs: Any, stream: str) -> list[str]:
    return [event["message"] for event in logs.get_log_events(logGroupName="/aws/batch/job", logStreamName=stream)["events"]]


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
