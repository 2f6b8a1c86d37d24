"""The emulators of these tests can be started, and each does real work without entangle."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..evidence import alive, wait_until
from ..services.emulators import REGION, Emulator, FargateCluster, JobQueue, new_name

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
    # By default, urllib declares the content a form, and moto would parse it as one.
    request = urllib.request.Request(put, data=b"value", method="PUT", headers={"Content-Type": "application/octet-stream"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(get, timeout=20) as answer:
        assert answer.read() == b"value"


@pytest.mark.parametrize("version", ["s3v4", "s3"])
def test_s3_refuses_an_address_whose_time_is_over(moto: Emulator, bucket: str, version: str) -> None:
    import botocore.config

    with contextlib.closing(moto.client("s3", config=botocore.config.Config(signature_version=version))) as s3:
        s3.put_object(Bucket=bucket, Key="old", Body=b"value")
        address = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "old"}, ExpiresIn=1)

    def refused() -> Any:
        try:
            urllib.request.urlopen(address, timeout=20).close()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        return None

    status, told = wait_until(refused, 20, "the address to expire")
    assert status == 403
    assert b"Request has expired" in told


def test_boto3_finds_the_emulator_by_the_environment(aws_environment: Emulator, bucket: str) -> None:
    import boto3

    s3 = boto3.session.Session().client("s3")
    try:
        assert s3.meta.endpoint_url == aws_environment.endpoint
        assert bucket in [one["Name"] for one in s3.list_buckets()["Buckets"]]
    finally:
        s3.close()


# --- permissions ----------------------------------------------------------------------------------


def test_moto_looks_at_policies_when_it_is_asked_to(aws: _Clients, moto: Emulator, bucket: str) -> None:
    iam, name = aws("iam"), new_name("user")
    iam.create_user(UserName=name)
    allowed = {"Effect": "Allow", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName=name, PolicyName="writes", PolicyDocument=document)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    keys = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    with moto.permissions(), contextlib.closing(moto.client("s3", **keys)) as s3:
        s3.put_object(Bucket=bucket, Key="allowed", Body=b"")
        with pytest.raises(s3.exceptions.ClientError, match="AccessDenied"):
            s3.delete_object(Bucket=bucket, Key="allowed")
    aws("s3").delete_object(Bucket=bucket, Key="allowed")


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


def test_a_test_can_play_a_reclaimed_instance(aws: _Clients, moto: Emulator, job_queue: JobQueue, test_image: str) -> None:
    batch, reason = aws("batch"), "Host EC2 (instance i-0123456789abcdef0) terminated."
    definition = _definition(batch, test_image, "import time; time.sleep(100)")
    job = batch.submit_job(jobName="reclaimed", jobQueue=job_queue.name, jobDefinition=definition)["jobId"]
    wait_until(moto.containers, 30, "the container")
    batch.terminate_job(jobId=job, reason=reason)
    told = _ended(batch, job)
    assert (told["status"], told["statusReason"], told["attempts"][0]["statusReason"]) == ("FAILED", reason, reason)
    assert "exitCode" not in told["container"]


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


def test_a_test_can_play_an_interruption_of_spot(aws: _Clients, fargate: FargateCluster, ministack: Emulator, test_image: str) -> None:
    ecs = aws("ecs")
    task = _task(ecs, fargate, test_image, "import time; time.sleep(100)")
    wait_until(ministack.containers, 30, "the container")
    ecs.stop_task(cluster=fargate.name, task=task, reason="Your Spot Task was interrupted.")
    assert _stopped(ecs, fargate, task)["stopCode"] == "SpotInterruption"


def test_ecs_says_that_there_is_no_image(aws: _Clients, fargate: FargateCluster) -> None:
    told = _stopped(aws("ecs"), fargate, _task(aws("ecs"), fargate, "127.0.0.1:1/entangle-nowhere:1", "pass"))
    assert told["stopCode"] == "TaskFailedToStart"
    assert told["stoppedReason"].startswith("CannotPullContainerError")


# --- nothing is left behind -----------------------------------------------------------------------

_KILLED = """
import os, signal, sys, time
from entangle.tests.services import emulators
with emulators.moto_server() as moto:
    queue = emulators.JobQueue(moto)
    batch = moto.client("batch")
    properties = {"image": sys.argv[1], "command": ["sleep", "1000"], "vcpus": 1, "memory": 64}
    batch.register_job_definition(jobDefinitionName="sleeps", type="container", containerProperties=properties)
    batch.submit_job(jobName="sleeps", jobQueue=queue.name, jobDefinition="sleeps")
    while not moto.containers():
        time.sleep(0.05)
    print(moto.pid, moto.folder, *moto.containers(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_emulator_and_its_containers_end_with_a_killed_test_process(moto: Emulator, test_image: str) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, test_image], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, folder, container = done.stdout.split()
    wait_until(lambda: not alive(int(pid)), 30, "the end of the emulator")
    listed = subprocess.run(["docker", "ps", "--all", "--quiet", "--no-trunc"], capture_output=True, text=True, timeout=50, check=True)
    assert container not in listed.stdout.split()
    assert not Path(folder).exists()
