"""What tests have created in an AWS account, and its removal.

Resources that entangle creates are those that were not there before. Resources that the tests
create have a name prefix, so leftovers of killed test sessions are found, too.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from entangle._aws.account import Account
from entangle._aws.bucket import PREFIX
from entangle._aws.instances import ours
from entangle._aws.inventory import inventory

#: The prefix of names that the tests choose.
NAMES = "entangle-tests-"
#: How long to wait for instances to terminate (seconds).
_ENDING = 300.0


def new_name() -> str:
    """A name that is unique in an account that others use, too."""
    return f"{NAMES}{os.urandom(6).hex()}"


class Leftovers:
    """What has been created in the account since this object was made."""

    def __init__(self, account: Account, cluster: str, queue: str) -> None:
        self.account, self.cluster, self.queue = account, cluster, queue
        self.before = self._there()

    def _there(self) -> set[tuple[str, str]]:
        things, troubles = inventory(self.account)
        assert not troubles, troubles
        pairs = self.account.client("ec2").describe_key_pairs()["KeyPairs"]
        return {
            *((thing.kind, thing.name) for thing in things),
            *(("instance", one.id) for one in ours(self.account)),
            *(("key pair", pair["KeyName"]) for pair in pairs if pair["KeyName"].startswith("entangle-")),
        }

    def _of_the_tests(self) -> Iterator[tuple[str, str]]:
        for url in self.account.client("sqs").list_queues(QueueNamePrefix=NAMES).get("QueueUrls", ()):
            yield "queue", url
        for page in self.account.client("lambda").get_paginator("list_functions").paginate():
            for each in page["Functions"]:
                if each["FunctionName"].startswith(NAMES):
                    yield "function", each["FunctionName"]

    def now(self) -> list[tuple[str, str]]:
        """The kind and name of each resource."""
        return sorted({*(self._there() - self.before), *self._of_the_tests()})

    def sweep(self) -> list[str]:
        """Remove all of it. Return what could not be removed, and why."""
        troubles = []
        remove: dict[str, Callable[[str], object]] = {
            "instance": lambda name: self._client("ec2").terminate_instances(InstanceIds=[name]),
            "key pair": lambda name: self._client("ec2").delete_key_pair(KeyName=name),
            "function": self._remove_function,
            "queue": lambda name: self._client("sqs").delete_queue(QueueUrl=name),
            "job definition": self._remove_job_definition,
            "task definition": self._remove_task_definition,
            "box": self._remove_box,
        }
        for kind, name in self.now():
            try:
                remove[kind](name)
            except Exception as error:
                troubles.append(f"{kind} {name}: {error}")
        until = time.monotonic() + _ENDING
        while any(kind == "instance" for kind, _ in self.now()) and time.monotonic() < until:
            time.sleep(1)
        # SQS lists a queue for a minute after its removal.
        return [*(f"{kind} {name}" for kind, name in self.now() if kind != "queue"), *troubles]

    def _client(self, service: str) -> Any:
        return self.account.client(service)

    def _remove_function(self, name: str) -> None:
        self._client("lambda").delete_function(FunctionName=name)
        with contextlib.suppress(Exception):  # a function that printed nothing has no log group
            self._client("logs").delete_log_group(logGroupName=f"/aws/lambda/{name}")

    def _remove_job_definition(self, name: str) -> None:
        batch = self._client("batch")
        for status in ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING"):
            for job in batch.list_jobs(jobQueue=self.queue, jobStatus=status)["jobSummaryList"]:
                if f"/{name}:" in job.get("jobDefinition", ""):
                    batch.terminate_job(jobId=job["jobId"], reason="the tests are over")
        for each in batch.describe_job_definitions(jobDefinitionName=name, status="ACTIVE")["jobDefinitions"]:
            batch.deregister_job_definition(jobDefinition=each["jobDefinitionArn"])

    def _remove_task_definition(self, name: str) -> None:
        ecs = self._client("ecs")
        for task in ecs.list_tasks(cluster=self.cluster, family=name)["taskArns"]:
            ecs.stop_task(cluster=self.cluster, task=task, reason="the tests are over")
        for arn in ecs.list_task_definitions(familyPrefix=name, status="ACTIVE")["taskDefinitionArns"]:
            ecs.deregister_task_definition(taskDefinition=arn)

    def _remove_box(self, name: str) -> None:
        s3, bucket = self._client("s3"), self.account.bucket_name()
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{PREFIX}{name}/"):
            for each in page.get("Contents", ()):
                s3.delete_object(Bucket=bucket, Key=each["Key"])
