"""AWS Batch as a service: a job a call, in arrays where many are ready at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import socket
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from entangle._aws.account import Account, asking
from entangle._aws.bucket import PREFIX, TAG
from entangle._aws.bucket_addresses import COMMAND, brought, unsigned
from entangle._aws.container_jobs import START, about, end_of_log, ended, job_name
from entangle._services import OVER, PENDING, RUNNING, Limits, Service, State, Submission
from entangle.errors import OptionError

#: Jobs in one request of DescribeJobs, and in one array. Source: the Batch API reference.
MANY, LARGEST_ARRAY = 100, 10_000
#: The least time of a job that Batch takes (seconds).
LEAST = 60
#: The job of an array reads which of its commands it is to run. moto names no index.
PICK = (
    "import json,os,sys,urllib.request as u,zlib;"
    "i=os.environ.get('AWS_BATCH_JOB_ARRAY_INDEX')or os.environ['AWS_BATCH_JOB_ID'].rpartition(':')[2];"
    "sys.argv[1:]=json.loads(zlib.decompress({read}))[int(i)];"
    "exec(sys.argv.pop(1))"
)


@dataclass(frozen=True)
class BatchJobs(Service):
    """Jobs of AWS Batch with these options."""

    account: Account
    queue: str | None
    image: str
    vcpus: float = 1
    #: In MiB.
    memory: int = 2048
    gpus: int = 0
    job_role: str | None = None
    execution_role: str | None = None
    architecture: str | None = None
    interpreter: str = "python3"
    environment: tuple[tuple[str, str], ...] = ()
    #: How long a job may run where its task does not say (seconds).
    life: float | None = None

    name: ClassVar[str] = "batch"
    every: ClassVar[float] = 2.0
    grace: ClassVar[float] = 3.0

    @property
    def place(self) -> str:
        """The queue."""
        return f"batch:{self.queue.rpartition('/')[2]}" if self.queue else "batch"

    @property
    def python(self) -> Sequence[str]:
        """The Python of the image."""
        return [self.interpreter]

    def limits(self) -> Limits:
        """Two signed addresses fit into a command, even with the token of a session."""
        return Limits(message=16 << 10, life=self.life, at_once=LARGEST_ARRAY)

    # What there is ------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """The Python of the image, told by its tag where that says it, else by a job."""
        self._job_queue()
        return about(self, self.account, self.image)

    def _job_queue(self) -> str:
        """The queue: the one that is named, else the only one there is. Raises OptionError."""
        key = self.account, self.queue
        if key not in _queues:
            batch = self.account.client("batch")
            with asking(self.account, "batch"):
                found = batch.describe_job_queues(**({"jobQueues": [self.queue]} if self.queue else {}))["jobQueues"]
            usable = [each for each in found if each["state"] == "ENABLED"]
            if self.queue and not found:
                raise OptionError(f"@batch: there is no job queue {self.queue!r} in this region; {self._those_there()}")
            if self.queue and not usable:
                why = found[0].get("statusReason", "")
                raise OptionError(f"@batch: the job queue {self.queue!r} is disabled; enable it, or name another one. {why}".rstrip())
            if len(usable) != 1:
                raise OptionError(f"@batch: name a job queue, queue='…'; {self._those_there()}")
            kinds = self._kinds_of(usable[0])
            _queues[key] = usable[0]["jobQueueArn"], kinds
        return _queues[key][0]

    def _those_there(self) -> str:
        with asking(self.account, "batch"):
            found = [each["jobQueueName"] for each in self.account.client("batch").describe_job_queues()["jobQueues"]]
        return f"there are {', '.join(sorted(found))}" if found else "there is none; deploy/aws tells how to make one"

    def _kinds_of(self, queue: dict[str, Any]) -> frozenset[str]:
        """The kinds of machines behind a queue: EC2, SPOT, FARGATE, FARGATE_SPOT."""
        names = [each["computeEnvironment"] for each in queue.get("computeEnvironmentOrder", ())]
        if not names:
            return frozenset()
        with asking(self.account, "batch"):
            found = self.account.client("batch").describe_compute_environments(computeEnvironments=names)["computeEnvironments"]
        return frozenset(each.get("computeResources", {}).get("type", "") for each in found)

    def _definition(self) -> str:
        """The job definition for these options, made once: its name is the hash of its content."""
        self._job_queue()
        fargate = any(kind.startswith("FARGATE") for kind in _queues[self.account, self.queue][1])
        wanted = self._wanted(fargate)
        name = f"entangle-{hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:20]}"
        key = self.account, name
        if key not in _definitions:
            batch = self.account.client("batch")
            with asking(self.account, "batch"):
                found = batch.describe_job_definitions(jobDefinitionName=name, status="ACTIVE")["jobDefinitions"]
                made = (
                    found[0] if found else batch.register_job_definition(jobDefinitionName=name, tags={"entangle": "definition"}, **wanted)
                )
            _definitions[key] = made["jobDefinitionArn"]
        return _definitions[key]

    def _wanted(self, fargate: bool) -> dict[str, Any]:
        if fargate and self.gpus:
            raise OptionError("@batch: the machines behind this queue are Fargate's, which have no GPUs; name another queue")
        needs = [("VCPU", f"{self.vcpus:g}"), ("MEMORY", str(self.memory)), *([("GPU", str(self.gpus))] if self.gpus else [])]
        container: dict[str, Any] = {
            "image": self.image,
            "command": [*self.python, "-c", "pass"],
            "resourceRequirements": [{"type": kind, "value": value} for kind, value in needs],
            "environment": [{"name": name, "value": value} for name, value in self.environment],
        }
        if self.job_role:
            container["jobRoleArn"] = self.job_role
        if self.execution_role:
            container["executionRoleArn"] = self.execution_role
        if fargate:
            container["networkConfiguration"] = {"assignPublicIp": "ENABLED"}
            if self.architecture:
                container["runtimePlatform"] = {"operatingSystemFamily": "LINUX", "cpuArchitecture": self.architecture}
        else:
            container["linuxParameters"] = {"initProcessEnabled": True}
        return {
            "type": "container",
            "platformCapabilities": ["FARGATE" if fargate else "EC2"],
            "containerProperties": container,
            # The platform never runs a job again: whether a body may run twice, the task says.
            "retryStrategy": {"attempts": 1, "evaluateOnExit": [{"onReason": "*", "action": "EXIT"}]},
        }

    # The verbs ----------------------------------------------------------------------------------

    def submit(self, messages: Sequence[Submission]) -> Sequence[str]:
        """One job, or one array of all; those without a `timeout` in an array of their own."""
        tickets: dict[str, str] = {}
        for seconds in dict.fromkeys(message.seconds for message in messages):
            some = [message for message in messages if message.seconds == seconds]
            life = seconds if seconds is not None else self.life
            limit = max(LEAST, math.ceil(life) + START) if life is not None else None
            name = job_name(some)
            with asking(self.account, "batch"):
                if len(some) == 1:
                    tickets[some[0].id] = self._submit_job(name, some[0].command, limit)
                    continue
                key, pick, address = self._listed(some)
                job = self._submit_job(name, [*self.python, "-c", pick, address], limit, len(some))
            _left[job], _lists[job] = len(some), key
            tickets.update({message.id: f"{job}:{index}" for index, message in enumerate(some)})
        return [tickets[message.id] for message in messages]

    def _submit_job(self, name: str, command: Sequence[str], seconds: int | None, size: int = 0) -> str:
        more: dict[str, Any] = {"arrayProperties": {"size": size}} if size else {}
        if seconds is not None:
            more["timeout"] = {"attemptDurationSeconds": seconds}
        job: str = self.account.client("batch").submit_job(
            jobName=name,
            jobQueue=self._job_queue(),
            jobDefinition=self._definition(),
            containerOverrides={"command": list(command)},
            tags={"entangle": "call"},
            **more,
        )["jobId"]
        return job

    def _listed(self, messages: Sequence[Submission]) -> tuple[str, str, str]:
        """The commands of an array, one for each index: their key in the bucket, what reads them
        there, and its address."""
        start = len(self.python) + 1
        data = zlib.compress(json.dumps([message.command[start:] for message in messages]).encode())
        s3, bucket = self.account.client("s3"), self.account.bucket_name()
        # As a box: what is left of a caller that was killed is removed by the next one.
        key = f"{PREFIX}p{os.getpid()}-{os.urandom(6).hex()}@{socket.gethostname()}/array"
        s3.put_object(Bucket=bucket, Key=key, Body=data, Tagging=TAG)
        if all(message.command[start] == COMMAND for message in messages):
            return key, PICK.format(read="u.urlopen(sys.argv[1],timeout=60).read()"), self.account.address("get_object", key)
        # The jobs have a role, since signed addresses would expire.
        return key, brought() + PICK.format(read="r.fetched(sys.argv[1])"), f"{unsigned(self.account, key)}#{s3.meta.region_name}"

    def _remove_list(self, job: str) -> None:
        if (key := _lists.pop(job, None)) is not None:
            with contextlib.suppress(Exception):  # a rule of the bucket removes it
                self.account.client("s3").delete_object(Bucket=self.account.bucket_name(), Key=key)

    def outcomes(self, tickets: Collection[str]) -> Mapping[str, State]:
        """A hundred jobs in a request. Of an array, those that have failed are asked for only when
        their number has changed."""
        batch = self.account.client("batch")
        parents: dict[str, list[str]] = {}
        for ticket in tickets:
            parents.setdefault(ticket.partition(":")[0], []).append(ticket)
        states: dict[str, State] = {}
        jobs = list(parents)
        for at in range(0, len(jobs), MANY):
            with asking(self.account, "batch"):
                found = batch.describe_jobs(jobs=jobs[at : at + MANY])["jobs"]
            for job in found:
                if "arrayProperties" in job and job["arrayProperties"].get("size"):
                    states.update(self._of_array(job, parents[job["jobId"]]))
                else:
                    states[job["jobId"]] = _state(job)
        return {ticket: states[ticket] for ticket in tickets if ticket in states}

    def _of_array(self, job: dict[str, Any], tickets: Sequence[str]) -> Mapping[str, State]:
        """What is said of the jobs of an array."""
        name, counts = job["jobId"], dict(job["arrayProperties"].get("statusSummary") or {})
        if _counts.get(name) != counts or name not in _children:
            _counts[name] = counts
            known = _children.setdefault(name, {})
            for status in ("FAILED", "RUNNING"):  # those that have succeeded have put an outcome
                if counts.get(status) or not counts:
                    known.update({child["jobId"]: _state(child) for child in self._listed_jobs(name, status)})
        known, whole = _children[name], _state(job)
        if whole.state == OVER:
            self._remove_list(name)
            return {ticket: state if (state := known.get(ticket)) is not None and state.state == OVER else whole for ticket in tickets}
        return {ticket: known.get(ticket, State(PENDING, whole.reason if whole.state == PENDING else "")) for ticket in tickets}

    def _listed_jobs(self, job: str, status: str) -> Iterator[dict[str, Any]]:
        with asking(self.account, "batch"):
            for page in self.account.client("batch").get_paginator("list_jobs").paginate(arrayJobId=job, jobStatus=status):
                yield from page["jobSummaryList"]

    def cancel(self, tickets: Collection[str]) -> None:
        """End these; a whole array by one request."""
        batch = self.account.client("batch")
        parents: dict[str, list[str]] = {}
        for ticket in tickets:
            parents.setdefault(ticket.partition(":")[0], []).append(ticket)
        for job, some in parents.items():
            for each in [job] if len(some) >= _left.get(job, 1) else some:
                with asking(self.account, "batch"):
                    batch.terminate_job(jobId=each, reason="nobody waits for it any more")
            self._gone(job, len(some))

    def logs(self, ticket: str) -> str:
        """The end of its log in CloudWatch."""
        with asking(self.account, "batch"):
            found = self.account.client("batch").describe_jobs(jobs=[ticket])["jobs"]
        stream = found[0].get("container", {}).get("logStreamName") if found else None
        if not stream:
            return ""
        return end_of_log(self.account, "/aws/batch/job", stream)

    def kept(self, ticket: str) -> str:
        """Where people find it."""
        return f"job {ticket} of {self.place}; its log is in the group /aws/batch/job of CloudWatch" if ticket else ""

    def forget(self, tickets: Collection[str]) -> None:
        """Of an array whose jobs have all given values, nothing is kept here."""
        for ticket in tickets:
            if ":" in ticket:
                self._gone(ticket.partition(":")[0], 1)

    def _gone(self, job: str, count: int) -> None:
        if job in _left:
            _left[job] -= count
            if _left[job] <= 0:
                self._remove_list(job)
                for known in (_left, _counts, _children):
                    known.pop(job, None)


#: What this process knows: queues with the kinds of their machines, and definitions.
_queues: dict[tuple[Account, str | None], tuple[str, frozenset[str]]] = {}
_definitions: dict[tuple[Account, str], str] = {}
#: Of arrays: how many jobs are wanted, the key of their commands in the bucket, how many were in
#: each state, and what was said of each.
_left: dict[str, int] = {}
_lists: dict[str, str] = {}
_counts: dict[str, dict[str, int]] = {}
_children: dict[str, dict[str, State]] = {}


def _state(job: Mapping[str, Any]) -> State:
    """What a job of Batch's is to a call."""
    status, reason = job.get("status", ""), job.get("statusReason", "") or ""
    container = job.get("container") or {}
    if status in ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING"):
        return State(PENDING, f"{status}: {reason}" if reason else status)
    if status == "RUNNING":
        return State(RUNNING)
    return ended(status, (reason, container.get("reason", "")), container.get("exitCode"), "memory=")
