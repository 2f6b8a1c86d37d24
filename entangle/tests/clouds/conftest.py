"""The emulators that these tests share: the first test that needs one starts it, and it ends with
the test session. If one cannot be started, the test fails in CI, and is skipped elsewhere.

What they lack compared to AWS: docs/architecture/clouds_in_tests.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import PATIENCE
from ..services import ec2_machines, emulators, given
from ..services.ec2_machines import Cloud
from ..services.emulators import Emulator, FargateCluster, JobQueue
from ..services.lambda_functions import LambdaFunctions
from ..ways import missing

#: The emulators that run.
_started: list[Emulator] = []


@pytest.fixture(scope="session")
def test_image() -> str:
    """The name of an image with a Python that is in the local docker daemon."""
    return given.image()


@pytest.fixture(scope="session")
def moto(test_image: str) -> Iterator[Emulator]:
    """moto's server: S3, Batch, Lambda, SQS, SSM, IAM, EC2, CloudWatch's logs."""
    if lacking := emulators.what_is_missing():
        missing(lacking)
    with emulators.moto_server() as server:
        _started.append(server)
        yield server
    _started.remove(server)


@pytest.fixture(scope="session")
def ministack(moto: Emulator) -> Iterator[Emulator]:
    """ministack, for its ECS. Its tasks' output goes to moto's logs."""
    if lacking := emulators.what_ministack_is_missing():
        missing(lacking)
    with emulators.ministack_server(logs=moto) as server:
        _started.append(server)
        yield server
    _started.remove(server)


@pytest.fixture
def aws_environment(moto: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Environment variables with which programs for AWS use moto instead."""
    _set(moto.environment(), monkeypatch)
    return moto


@pytest.fixture
def aws_environment_with_ecs(aws_environment: Emulator, ministack: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Like `aws_environment`, with ministack for ECS, by AWS_ENDPOINT_URL_ECS. Returns
    ministack."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_ECS", ministack.endpoint)
    return ministack


def _set(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def aws(moto: Emulator, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """Makes boto3 clients by the name of the service: for ministack if it is "ecs" (the test needs
    that fixture, too), else for moto. They are closed when the test ends."""
    made: dict[str, Any] = {}

    def client(service: str) -> Any:
        if service not in made:
            emulator = request.getfixturevalue("ministack") if service == "ecs" else moto
            made[service] = emulator.client(service)
        return made[service]

    yield client
    for one in made.values():
        one.close()


@pytest.fixture(scope="module")
def bucket(moto: Emulator, request: pytest.FixtureRequest) -> str:
    """A bucket in moto for the tests of one file."""
    return moto.bucket(request.module.__name__.rpartition(".")[2].removeprefix("test_"))


@pytest.fixture(scope="session")
def job_queue(moto: Emulator) -> JobQueue:
    """A job queue of Batch in moto."""
    return JobQueue(moto)


@pytest.fixture(scope="session")
def fargate(ministack: Emulator, moto: Emulator) -> FargateCluster:
    """A cluster of ECS in ministack, for Fargate tasks."""
    return FargateCluster(ministack, moto)


@pytest.fixture
def lambda_functions(moto: Emulator, tmp_path: Path) -> Iterator[LambdaFunctions]:
    """Lambda functions that AWS's own runtime client runs, in warm processes. Those that are
    deployed to moto run, too. boto3 finds them by AWS_ENDPOINT_URL_LAMBDA."""
    functions = LambdaFunctions(tmp_path, moto.endpoint)
    yield functions
    functions.close()


@pytest.fixture
def cloud(aws_environment: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """EC2 with instances that start, and a user who has none yet."""
    if lacking := ec2_machines.what_is_missing():
        missing(lacking)
    with ec2_machines.cloud_over(aws_environment, tmp_path) as cloud:
        monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.endpoint)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        monkeypatch.setenv("ENTANGLE_SSH_COMMAND", f"ssh -F {cloud.ssh_configuration}")
        yield cloud


@pytest.fixture(autouse=True)
def _leaves_no_container() -> Iterator[None]:
    """Fail a test that leaves a container running, which would cost money."""
    yield
    until = time.monotonic() + PATIENCE
    while (left := {one.which: running for one in _started if (running := one.containers())}) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left, f"containers still run: {left}"
