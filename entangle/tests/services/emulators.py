"""Emulators of AWS on this machine: moto's server, whose Batch and Lambda run containers, and
ministack, whose ECS does. Each is a process of its own, with a port on loopback."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..evidence import alive
from . import emulator_process
from .given import IMAGE
from .lifeline import Lifeline

REGION = "us-east-1"
#: Invented: emulators accept any.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIAENTANGLETESTS000", "AWS_SECRET_ACCESS_KEY": "entangle-tests-secret"}
_numbers = itertools.count(1)


def what_is_missing() -> str:
    """Why there can be no emulators here; an empty string if nothing is missing."""
    lacking = [name for name in ("boto3", "moto", "awslambdaric") if importlib.util.find_spec(name) is None]
    return f"no package {' and no package '.join(lacking)} here: make test-clouds" if lacking else ""


def _ministack_python() -> Path:
    return Path(f"{sys.prefix}-ministack/bin/python")


def what_ministack_is_missing() -> str:
    """Why there can be no ministack here; an empty string if nothing is missing."""
    there = _ministack_python().exists()
    return what_is_missing() or ("" if there else f"no ministack in {_ministack_python().parents[1]}: make test-clouds")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def new_name(what: str) -> str:
    """A name that is unused in this process's emulators."""
    return f"entangle-{what}-{next(_numbers)}"


class Emulator:
    """An emulator at `endpoint` ("http://127.0.0.1:port")."""

    def __init__(self, which: str, folder: Path) -> None:
        self.which = which
        self.folder = folder
        self._lifeline = Lifeline(folder)
        self.port = 0
        self.pid = 0
        self.endpoint = ""

    def start(self, python: Path, health: str, **environment: str) -> None:
        """Start it with this Python, and wait until it answers at the path `health`."""
        for _ in range(3):  # another program may take the free port before the emulator does
            self.port = _free_port()
            self.endpoint = f"http://127.0.0.1:{self.port}"
            if self._started(python, health, environment):
                return
        raise RuntimeError(f"{self.which} does not start: {self.log()[-2000:]}")

    def _started(self, python: Path, health: str, environment: dict[str, str]) -> bool:
        folder = str(self.folder)
        command = [str(python), emulator_process.__file__, self.which, str(self.port), IMAGE, folder]
        settings = {**CREDENTIALS, "AWS_DEFAULT_REGION": REGION, "TMPDIR": folder, "HOME": folder}
        settings |= {"GATEWAY_PORT": str(self.port), "STATE_DIR": folder, "S3_DATA_DIR": f"{folder}/s3"}  # of ministack
        (self.folder / f"{self.which}.pid").unlink(missing_ok=True)
        self.pid = self._lifeline.start(self.which, command, **settings, **environment)
        until = time.monotonic() + 60
        # Also check the log: another program may answer at that port.
        while not (f"Running on {self.endpoint}" in self.log() and self._answers(health)):
            if not alive(self.pid) or time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.endpoint + path, timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def log(self) -> str:
        """Its output so far."""
        return self._lifeline.log(self.which)

    def environment(self) -> dict[str, str]:
        """Environment variables with which a program uses this emulator in place of AWS. The user's
        credentials, configuration files and instance metadata are hidden from it."""
        nowhere = str(self.folder / "none")
        return {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_CONFIG_FILE": nowhere,
            "AWS_SHARED_CREDENTIALS_FILE": nowhere,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str, **options: Any) -> Any:
        """A boto3 client for a service, whatever the environment says. Close it after use."""
        given = {"endpoint_url": self.endpoint, "region_name": REGION, **_keys(), **options}
        return _session().client(service, **given)

    def bucket(self, name: str = "bucket") -> str:
        """Create a bucket. Return its name."""
        made = new_name(name).lower().replace("_", "-")
        with contextlib.closing(self.client("s3")) as s3:
            s3.create_bucket(Bucket=made)
        return made

    def containers(self, *, all: bool = False) -> list[str]:
        """The ids of this emulator's running containers; with `all`, also those that have ended and
        are not removed yet."""
        mine = ["--filter", f"label={emulator_process.LABEL}={self.port}"]
        command = ["docker", "ps", "--quiet", "--no-trunc", *(["--all"] if all else []), *mine]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()

    @contextlib.contextmanager
    def permissions(self) -> Iterator[None]:
        """Make moto check the callers' policies during this block. Outside it, everybody may do
        everything, even with credentials that moto did not issue."""
        self._check_from("0")
        try:
            yield
        finally:
            self._check_from("inf")

    def _check_from(self, number: str) -> None:
        """Check policies from the request with this number on."""
        text = {"Content-Type": "text/plain"}  # otherwise urllib sends it as a form
        request = urllib.request.Request(f"{self.endpoint}/moto-api/reset-auth", number.encode(), text, method="POST")
        with urllib.request.urlopen(request, timeout=20):
            pass

    def stop(self) -> None:
        """Stop it, and remove its containers."""
        self._lifeline.end()


def _keys() -> dict[str, str]:
    return {name.lower(): value for name, value in CREDENTIALS.items()}


@functools.lru_cache(maxsize=1)
def _session() -> Any:
    import boto3

    return boto3.session.Session()


@contextlib.contextmanager
def _emulator(which: str, python: Path, health: str, **environment: str) -> Iterator[Emulator]:
    folder = Path(tempfile.mkdtemp(prefix=f"entangle-{which}-"))
    emulator = Emulator(which, folder)
    try:
        emulator.start(python, health, **environment)
        yield emulator
    finally:
        emulator.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def moto_server() -> Iterator[Emulator]:
    """moto's server for the time of the block: S3, Batch, Lambda, SQS, SSM, IAM, EC2, logs …"""
    with _emulator("moto", Path(sys.executable), "/moto-api/", MOTO_DOCKER_NETWORK_MODE="host", MOTO_DOCKER_LAMBDA_IMAGE=IMAGE) as moto:
        yield moto


@contextlib.contextmanager
def ministack_server(logs: Emulator) -> Iterator[Emulator]:
    """A ministack for the time of the block, for its ECS. The output of its tasks goes to the logs
    of another emulator, so that a program finds all logs at one endpoint."""
    settings = {"BIND_HOST": "127.0.0.1", "MINISTACK_HOST": "127.0.0.1", "ENTANGLE_LOGS": logs.endpoint}
    with _emulator("ministack", _ministack_python(), "/_ministack/health", **settings) as ministack:
        yield ministack


class JobQueue:
    """A job queue of Batch in moto, with a compute environment of type FARGATE."""

    def __init__(self, moto: Emulator) -> None:
        self.name, self.compute_environment = new_name("queue"), new_name("compute")
        with contextlib.ExitStack() as stack:
            ec2, iam, batch = (stack.enter_context(contextlib.closing(moto.client(name))) for name in ("ec2", "iam", "batch"))
            self.subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
            self.security_group = ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]
            role = iam.create_role(RoleName=new_name("role"), AssumeRolePolicyDocument="{}")["Role"]
            self.role: str = role["Arn"]
            resources = {"type": "FARGATE", "maxvCpus": 16, "subnets": [self.subnet], "securityGroupIds": [self.security_group]}
            batch.create_compute_environment(
                computeEnvironmentName=self.compute_environment,
                type="MANAGED",
                state="ENABLED",
                serviceRole=self.role,
                computeResources=resources,
            )
            order = [{"order": 1, "computeEnvironment": self.compute_environment}]
            made = batch.create_job_queue(jobQueueName=self.name, state="ENABLED", priority=1, computeEnvironmentOrder=order)
            self.arn: str = made["jobQueueArn"]


class FargateCluster:
    """A cluster of ECS in ministack, in moto's default network, and the log group of its tasks."""

    def __init__(self, ministack: Emulator, moto: Emulator) -> None:
        self.name, self.log_group = new_name("cluster"), f"/ecs/{new_name('tasks')}"
        with contextlib.ExitStack() as stack:
            ec2, logs = (stack.enter_context(contextlib.closing(moto.client(name))) for name in ("ec2", "logs"))
            ecs = stack.enter_context(contextlib.closing(ministack.client("ecs")))
            self.subnet: str = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
            self.security_group: str = ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]
            logs.create_log_group(logGroupName=self.log_group)
            ecs.create_cluster(clusterName=self.name)
