"""@lmbda(image=…): an image of `entangle image build` from a registry, run in a sandbox like
Lambda's by AWS's own runtime client. The package in the image is a wheel built here; that client
comes from the index."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from entangle._aws import account, lambda_calls
from entangle._remote.caller.open_channels import close_all
from entangle._services.caller import open_watchers
from entangle.aws import aws as in_account
from entangle.aws import lmbda
from entangle.errors import ImageError, UnfitPythonError
from entangle.images import build_image
from entangle.process import process

from ..evidence import wait_until
from ..services import given
from ..services.emulators import REGION, Emulator, new_name
from ..services.lambda_functions import LambdaFunctions
from ..services.registry import registry
from . import bodies
from .test_images import wheel


@pytest.fixture(scope="module")
def image(test_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an image for Lambda, with a package of its own, in a registry. It is not in
    the local docker daemon, so it must be pulled."""
    given.packages()
    folder = tmp_path_factory.mktemp("image")
    package = wheel(folder / "wheels", "colours", "1.0", {"colours.py": "RED = 'red'\n"})
    with registry(folder / "registry") as address:
        tag = f"{address}/paint:1"
        build_image(tag, base=test_image, service="lambda", packages=[package], push=True)
        remove = ["docker", "image", "rm", "--force", tag]
        subprocess.run(remove, capture_output=True, check=True, timeout=60)
        yield tag
        close_all()
        subprocess.run([*remove, tag.replace("paint", "foreign")], capture_output=True, check=False, timeout=60)


@pytest.fixture
def there(
    aws_environment: Emulator, lambda_functions: LambdaFunctions, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Makes a task of a function in an image on Lambda."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", lambda_functions.endpoint)
    iam = aws_environment.client("iam")
    role = iam.create_role(RoleName=new_name("role"), AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    iam.close()
    _forget()
    yield lambda function, image: in_account(bucket=bucket, region=REGION)(lmbda(role=role, image=image)(function))
    open_watchers.close_all()
    _forget()


def _forget() -> None:
    """Clients are cached, and each test has its own endpoint for Lambda."""
    account._known_client.cache_clear()
    lambda_calls._functions.clear()
    lambda_calls._known.clear()


@pytest.mark.timeout(180)
def test_a_body_runs_in_an_image_from_a_registry(
    there: Callable[..., Any], lambda_functions: LambdaFunctions, image: str, capfd: pytest.CaptureFixture[str]
) -> None:
    task = there(process(bodies.paint), image)
    painted, runtime, user, file = task("dark")()
    assert painted == "dark red"
    assert runtime.startswith("127.0.0.1:")
    assert user == 993
    assert file.startswith("/opt/entangle/")
    assert "[lambda paint] painting dark" in capfd.readouterr().out
    (name,) = lambda_functions.functions
    before = lambda_functions.processes(name)
    assert len(before) == 1
    wait_until(lambda: lambda_functions.idle(name))
    data = os.urandom(1000) * 1000
    assert there(process(bodies.size), image)(data)() == data[::-1]
    assert lambda_functions.processes(name) == before, "a sandbox that is warm takes the next call"
    with pytest.raises(ValueError, match="on purpose"):
        there(bodies.fail, image)("on purpose")()


def test_an_image_that_is_not_ours_is_told(there: Callable[..., Any], image: str) -> None:
    foreign = image.replace("paint", "foreign")
    # A handler that is not ours: it returns false.
    recipe = f'FROM {image}\nCMD ["operator.contains"]\n'
    for command in (["build", "--quiet", "--tag", foreign, "-"], ["push", "--quiet", foreign], ["image", "rm", foreign, image]):
        subprocess.run(["docker", *command], input=recipe, text=True, capture_output=True, check=True, timeout=60)
    with pytest.raises(UnfitPythonError, match=r"does not answer as entangle's handler does: false; .*--for lambda"):
        there(bodies.square, foreign)(7)()


def test_an_image_that_is_not_there_is_told(there: Callable[..., Any]) -> None:
    with pytest.raises(ImageError, match=r"127\.0\.0\.1:9/nothing:1 does not exist"):
        there(bodies.square, "127.0.0.1:9/nothing:1")(7)()
