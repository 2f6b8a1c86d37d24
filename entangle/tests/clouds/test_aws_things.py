"""`entangle aws gc`, and the list of what tasks have created in an account."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from entangle._aws.account import Account
from entangle._aws.inventory import inventory
from entangle._services.caller import open_watchers
from entangle.aws import aws as in_account
from entangle.aws import batch
from entangle.process import process

from ..services.emulators import REGION, Emulator, JobQueue, new_name
from . import bodies

Client = Callable[[str], Any]
OURS = "entangle-" + 20 * "0"


def run(moto: Emulator, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    command, environment = [sys.executable, "-m", "entangle", *words], {**os.environ, **moto.environment(), **more}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=False)


def entangle(moto: Emulator, *words: str) -> Any:
    """The output of the command, parsed as JSON."""
    done = run(moto, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def day(days: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(time.time() - days * 86400))


@pytest.fixture
def role(aws: Client) -> str:
    made: str = aws("iam").create_role(RoleName=new_name("role"), AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    return made


def function(aws: Client, role: str, name: str, **tags: str) -> None:
    code = {"ZipFile": b"PK\x05\x06" + bytes(18)}
    aws("lambda").create_function(FunctionName=name, Runtime="python3.12", Handler="a.b", Role=role, Code=code, Tags=tags)


def names(aws: Client) -> list[str]:
    return sorted(each["FunctionName"] for each in aws("lambda").list_functions()["Functions"])


def test_functions_that_were_not_used_go(moto: Emulator, aws: Client, role: str) -> None:
    old, new, another, odd = (f"entangle-{digit * 20}" for digit in "abcd")
    function(aws, role, old, entangle="function", used=day(31))
    function(aws, role, new, entangle="function", used=day(0))
    function(aws, role, another, somebody="else")
    function(aws, role, "entangle-of-a-user", entangle="function", used=day(99))
    # Never called: then the time of its creation counts.
    function(aws, role, odd, entangle="function")
    everything = sorted([old, new, another, "entangle-of-a-user", odd])
    aws("logs").create_log_group(logGroupName=f"/aws/lambda/{old}")
    try:
        told = entangle(moto, "aws", "gc", "--dry-run")
        assert [each["name"] for each in told] == [old]
        assert names(aws) == everything
        told = entangle(moto, "aws", "gc", "--unused", "30")
        assert [(each["kind"], each["name"]) for each in told] == [("function", old)]
        assert told[0]["unused"] > 30 * 86400
        assert names(aws) == [name for name in everything if name != old]
        assert not aws("logs").describe_log_groups(logGroupNamePrefix=f"/aws/lambda/{old}")["logGroups"]
        assert entangle(moto, "aws", "gc") == []
    finally:
        for name in names(aws):
            aws("lambda").delete_function(FunctionName=name)


def test_words_for_people(moto: Emulator) -> None:
    done = run(moto, "aws", "gc")
    assert (done.returncode, done.stdout) == (0, "every function of @lmbda was used in the last 30 days, or there is none\n")


def test_nobody_answers(moto: Emulator) -> None:
    for command in ("gc", "ls"):
        done = run(moto, "aws", command, AWS_ENDPOINT_URL="http://127.0.0.1:1")
        assert done.returncode == 5
        assert "cannot be reached" in done.stderr


def test_what_there_is(aws_environment: Emulator, aws: Client, role: str, job_queue: JobQueue, bucket: str, test_image: str) -> None:
    function(aws, role, OURS, entangle="function", used=day(2))
    try:
        task = process(in_account(bucket=bucket)(batch(queue=job_queue.name, image=test_image, memory=512)(bodies.add)))
        assert task(1, 2)() == 3
        found, troubles = inventory(Account(region=REGION, bucket=bucket))
        assert troubles == []
        by_kind = {thing.kind: thing for thing in found}
        assert by_kind["function"].name == OURS
        assert 86400 < (by_kind["function"].unused or 0) < 4 * 86400
        assert by_kind["job definition"].unused is None
        assert by_kind["job definition"].about == test_image
        assert by_kind["box"].name.startswith(f"p{os.getpid()}-")
        assert by_kind["box"].about.startswith("its caller lives, ")
        told = entangle(aws_environment, "aws", "ls", "--bucket", bucket)
        assert {"function", "job definition", "box"} <= {each["kind"] for each in told}
        assert OURS in run(aws_environment, "aws", "ls").stdout
        open_watchers.close_all()
        assert "box" not in {thing.kind for thing in inventory(Account(region=REGION, bucket=bucket))[0]}
    finally:
        open_watchers.close_all()
        aws("lambda").delete_function(FunctionName=OURS)
