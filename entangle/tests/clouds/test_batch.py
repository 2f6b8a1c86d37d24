"""@aws and @batch with moto, whose jobs are real containers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from entangle._aws import batch_jobs
from entangle._aws.account import Account
from entangle._aws.batch_jobs import BatchJobs
from entangle._services import OVER, PENDING, RUNNING, Submission
from entangle._services.caller import open_watchers
from entangle.aws import aws as in_account
from entangle.aws import batch
from entangle.errors import (
    ImageError,
    OptionError,
    ProcessRetryException,
    ProcessTerminatedException,
    ProcessTimeoutException,
    RunTimeoutException,
    UnpicklableError,
    UnreachableError,
)
from entangle.process import process

from ..callers import Caller
from ..evidence import wait_until
from ..services.emulators import CREDENTIALS, REGION, Emulator, JobQueue
from ..shown_programs import run_shown
from . import bodies

Client = Callable[[str], Any]


class Batch:
    """Tasks that run in moto's Batch."""

    def __init__(self, moto: Emulator, queue: JobQueue, bucket: str, image: str) -> None:
        self.moto, self.queue, self.bucket, self.image = moto, queue, bucket, image

    def __call__(self, function: Callable[..., Any], **options: Any) -> Any:
        given = {"queue": self.queue.name, "image": self.image, "memory": 512, **options}
        return process(in_account(bucket=self.bucket)(batch(**given)(function)))

    def containers(self) -> list[str]:
        return self.moto.containers()


@pytest.fixture
def there(aws_environment: Emulator, job_queue: JobQueue, bucket: str, test_image: str) -> Iterator[Batch]:
    yield Batch(aws_environment, job_queue, bucket, test_image)
    open_watchers.close_all()


# --- values and errors ----------------------------------------------------------------------------


def test_a_value_comes_back_and_prints_are_shown(there: Batch, capfd: pytest.CaptureFixture[str]) -> None:
    assert there(bodies.square)(7)() == 49
    out = capfd.readouterr().out
    assert f"[batch:{there.queue.name} square] squaring 7" in out


@pytest.mark.timeout(120)
def test_the_page_on_aws_shows_what_runs(there: Batch, tmp_path: Path) -> None:
    settings = {**{name.lower(): value for name, value in CREDENTIALS.items()}, "region": REGION}
    profiles = tmp_path / "config"
    profiles.write_text("[profile lab]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    # Each call is a container of its own on this machine.
    replaced = {
        'bucket="lab-calls"': f"bucket={there.bucket!r}",
        'queue="short", vcpus=4, memory="8GB"': f"queue={there.queue.name!r}, image={there.image!r}, memory=512",
        "range(1000)": "range(3)",
        "999000": "6",
    }
    run_shown("how_to/aws.md", "in_aws.py", tmp_path, replaced, AWS_CONFIG_FILE=str(profiles))


def test_an_error_is_raised_with_its_path(there: Batch) -> None:
    with pytest.raises(ValueError, match="on purpose"):
        there(bodies.fail)("on purpose")()


def test_what_is_ready_together_is_one_array(there: Batch, aws: Client) -> None:
    before = len(_requests(there.moto, "submitjob"))
    assert there(bodies.square).map(range(6))() == [0, 1, 4, 9, 16, 25]
    assert len(_requests(there.moto, "submitjob")) - before <= 2
    open_watchers.close_all()
    assert "Contents" not in aws("s3").list_objects_v2(Bucket=there.bucket)


def test_a_definition_is_made_once(there: Batch, aws: Client) -> None:
    def named() -> set[str]:
        found = aws("batch").describe_job_definitions()["jobDefinitions"]
        return {f"{each['jobDefinitionName']}:{each['revision']}" for each in found}

    assert there(bodies.add)(1, 2)() == 3
    known = named()
    batch_jobs._definitions.clear()
    assert there(bodies.add)(3, 4)() == 7
    assert named() == known
    there(bodies.add, vcpus=2)(1, 2)()
    assert len(named()) == len(known) + 1


def test_large_values_in_both_directions(there: Batch) -> None:
    data = os.urandom(1000) * 5000
    assert there(bodies.size)(data)() == data[::-1]


def test_a_value_above_100_megabytes(there: Batch) -> None:
    assert len(there(bodies.many, memory=2048)(110 << 20)()) == 110 << 20


def test_calls_in_calls_and_two_places(there: Batch) -> None:
    here = process(bodies.add)
    far = there(bodies.add)
    assert here(far(1, far(2, 3)), here(4, 5))() == 15


def test_an_argument_that_cannot_travel(there: Batch) -> None:
    import threading

    with pytest.raises(UnpicklableError, match="add"):
        there(bodies.add)(threading.Lock(), 1)()


def test_options_reach_the_job_and_credentials_do_not(there: Batch) -> None:
    found = there(bodies.environment, env={"MODE": "fast"})()()
    assert found["MODE"] == "fast"
    told = json.dumps(found)
    for secret in there.moto.environment().values():
        if "entangle-tests" in secret or secret.startswith("AKIA"):
            assert secret not in told


def test_both_orders_of_the_decorators(there: Batch) -> None:
    task = process(batch(queue=there.queue.name, image=there.image)(in_account(bucket=there.bucket)(bodies.add)))
    assert task(1, 2)() == 3


# --- faults ---------------------------------------------------------------------------------------


def test_a_container_that_is_killed(there: Batch) -> None:
    call = there(bodies.sleep)(60)
    with pytest.raises(ProcessTerminatedException, match="has given no outcome") as caught:
        _with(there, lambda: _kill(there.containers()), call)
    assert "sleeping" in str(caught.value)


def test_a_body_that_dies_is_tried_again_and_said(there: Batch) -> None:
    task = in_account(bucket=there.bucket)(batch(queue=there.queue.name, image=there.image)(process(retry=1)(bodies.die)))
    with pytest.raises(ProcessRetryException, match="failed 2 times"):
        task()()


def test_an_image_that_is_not_there(there: Batch) -> None:
    with pytest.raises((ImageError, ProcessTerminatedException, UnreachableError), match="entangle-nowhere"):
        there(bodies.add, image="entangle-nowhere/python:3.13")(1, 2)()


def test_an_image_without_a_python(there: Batch) -> None:
    with pytest.raises(Exception, match="entangle-nowhere-python") as caught:
        there(bodies.add, python="entangle-nowhere-python")(1, 2)()
    assert there.image in str(caught.value)


def test_no_permission(there: Batch, aws: Client) -> None:
    """A user who may use the bucket but not Batch."""
    iam = aws("iam")
    iam.create_user(UserName="entangle-lacking")
    allowed = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="entangle-lacking", PolicyName="bucket", PolicyDocument=json.dumps(allowed))
    made = iam.create_access_key(UserName="entangle-lacking")["AccessKey"]
    keys = [made["AccessKeyId"], made["SecretAccessKey"]]
    task = in_account(keys=keys, bucket=there.bucket)(batch(queue=there.queue.name, image=there.image)(bodies.add))
    with there.moto.permissions(), pytest.raises(UnreachableError, match=r"(?s)you may not batch:DescribeJobQueues.*deploy/aws"):
        task(1, 2)()


def test_no_queue_and_no_bucket(there: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"no job queue 'nowhere' in this region; there are .*entangle-queue"):
        there(bodies.add, queue="nowhere")(1, 2)()
    with pytest.raises(OptionError, match="name one, @aws"):
        batch(queue=there.queue.name, image=there.image)(bodies.add)(1, 2)()
    with pytest.raises(UnreachableError, match="there is no bucket"):
        in_account(bucket="entangle-no-bucket")(batch(queue=there.queue.name, image=there.image)(bodies.add))(1, 2)()


def test_a_bucket_that_goes_away(there: Batch, aws: Client) -> None:
    s3 = aws("s3")
    s3.create_bucket(Bucket="entangle-goes-away")

    def remove() -> None:
        for found in s3.list_objects_v2(Bucket="entangle-goes-away").get("Contents", ()):
            s3.delete_object(Bucket="entangle-goes-away", Key=found["Key"])
        s3.delete_bucket(Bucket="entangle-goes-away")

    call = in_account(bucket="entangle-goes-away")(batch(queue=there.queue.name, image=there.image)(bodies.sleep))(60)
    with pytest.raises(UnreachableError, match="there is no bucket 'entangle-goes-away'"):
        _with(there, remove, call, "entangle-goes-away")
    open_watchers.close_all()
    _kill(there.containers())


def test_a_deadline_ends_the_job(there: Batch) -> None:
    task = process(in_account(bucket=there.bucket)(batch(queue=there.queue.name, image=there.image)(process(timeout=1)(bodies.sleep))))
    with pytest.raises(ProcessTimeoutException):
        task(60)()
    wait_until(lambda: not there.containers())


def test_a_run_that_is_over_ends_its_jobs(there: Batch) -> None:
    with pytest.raises(RunTimeoutException):
        there(bodies.sleep).map([60, 60]).run(timeout=6)
    wait_until(lambda: not there.containers())


def test_a_message_that_is_delivered_twice_runs_once(there: Batch, monkeypatch: pytest.MonkeyPatch, aws: Client) -> None:
    real = BatchJobs.submit
    twins: list[str] = []

    def twice(self: BatchJobs, messages: list[Submission]) -> Any:
        twins.extend(real(self, messages))
        twins.extend(real(self, messages))
        return twins[-len(messages) :]

    monkeypatch.setattr(BatchJobs, "submit", twice)
    assert there(bodies.square)(3)() == 9
    assert len(twins) == 2
    client = aws("batch")
    wait_until(lambda: all(job["status"] in ("SUCCEEDED", "FAILED") for job in client.describe_jobs(jobs=twins)["jobs"]))
    through = BatchJobs(Account(bucket=there.bucket), there.queue.name, there.image)
    said = "\n".join(map(through.logs, twins))
    assert said.count("squaring") == 1
    assert "it is not run here" in said or "its end is known" in said


PROGRAM = """
import sys
from entangle.aws import aws, batch
from entangle.tests.clouds import bodies

if __name__ == "__main__":
    aws(bucket=sys.argv[1])(batch(queue=sys.argv[2], image=sys.argv[3])(bodies.sleep))(600)()
"""


def test_nothing_is_left_of_a_caller_that_is_killed(there: Batch, tmp_path: Any) -> None:
    caller = Caller(tmp_path, PROGRAM, ENTANGLE_LEASE="8", **there.moto.environment()).start(there.bucket, there.queue.name, there.image)
    try:
        wait_until(partial(has_printed, there, there.bucket))
        assert there.containers()
    finally:
        caller.process.send_signal(signal.SIGKILL)
        caller.process.communicate(timeout=20)
    wait_until(lambda: not there.containers())


# --- what Batch says ------------------------------------------------------------------------------

#: In the format of DescribeJobs; the reasons are those of the troubleshooting pages of AWS Batch.
SAID: list[tuple[dict[str, Any], str, str, type[Exception] | None]] = [
    ({"status": "RUNNABLE"}, PENDING, "RUNNABLE", None),
    (
        {"status": "RUNNABLE", "statusReason": "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - no room"},
        PENDING,
        "RUNNABLE: CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - no room",
        None,
    ),
    ({"status": "RUNNING"}, RUNNING, "", None),
    ({"status": "SUCCEEDED"}, OVER, "SUCCEEDED", ProcessTerminatedException),
    (
        {"status": "FAILED", "statusReason": "Host EC2 (instance i-0a1b2c3d) terminated."},
        OVER,
        "retry=1 submits it again",
        ProcessTerminatedException,
    ),
    (
        {"status": "FAILED", "statusReason": "Job attempt duration exceeded timeout", "container": {"exitCode": 137}},
        OVER,
        "timeout= of a layer below",
        ProcessTimeoutException,
    ),
    (
        {
            "status": "FAILED",
            "statusReason": "Essential container in task exited",
            "container": {"exitCode": 137, "reason": "OutOfMemoryError: Container killed due to memory usage"},
        },
        OVER,
        "ask for more: memory=",
        ProcessTerminatedException,
    ),
    (
        {"status": "FAILED", "statusReason": "Task failed to start", "container": {"reason": "CannotPullContainerError: not found"}},
        OVER,
        "the image cannot be had",
        ImageError,
    ),
    ({"status": "FAILED", "container": {"exitCode": 3}}, OVER, "exit status 3", ProcessTerminatedException),
]


@pytest.mark.parametrize(("job", "state", "reason", "error"), SAID)
def test_what_batch_says(job: dict[str, Any], state: str, reason: str, error: type[Exception] | None) -> None:
    told = batch_jobs._state(job)
    assert told.state == state
    assert reason in told.reason
    assert error is None or told.error is error


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queue": ""}, "must be a string"),
        ({"vcpus": 0}, "a number above 0"),
        ({"memory": "much"}, "'512MB' or '2GB'"),
        ({"gpus": -1}, "a whole number"),
        ({"architecture": "vax"}, "'x86_64' or 'arm64'"),
        ({"env": ["A"]}, "a dict of strings"),
        ({"time": -1}, "a number of seconds"),
        ({"qeue": "x"}, "queue"),
    ],
)
def test_wrong_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        batch(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keys": ["AKIA-SECRET"]}, "an access key's id and its secret"),
        ({"keys": ["a", "b"], "profile": "p"}, "both name credentials"),
        ({"role": "admin"}, "the ARN of a role"),
        ({"endpoint": "localhost"}, "an address"),
        ({"region": ""}, "must be a string"),
        ({"buket": "x"}, "bucket"),
    ],
)
def test_wrong_accounts(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says) as caught:
        in_account(**options)
    assert "AKIA-SECRET" not in str(caught.value)


def test_an_account_alone_runs_nothing() -> None:
    with pytest.raises(OptionError, match="needs a decorator beside it"):
        in_account()(bodies.add)(1, 2)()


def test_keys_stay_in_the_process(there: Batch) -> None:
    import cloudpickle

    keys = ["AKIAENTANGLETESTS000", "entangle-tests-secret"]
    task = in_account(keys=keys, bucket=there.bucket)(batch(queue=there.queue.name, image=there.image)(bodies.add))
    assert task(1, 2)() == 3
    assert keys[1].encode() not in cloudpickle.dumps(task)
    assert keys[1] not in repr(vars(task.layers[0]))
    program = f"import cloudpickle,sys; task = cloudpickle.loads({cloudpickle.dumps(task)!r}); task(1, 2)()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "keys= stay in the process that was given them" in done.stderr


# --- helpers --------------------------------------------------------------------------------------


def _requests(moto: Emulator, what: str) -> list[str]:
    return [line for line in moto.log().splitlines() if what in line]


def _kill(containers: list[str]) -> None:
    for container in containers:
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["docker", "kill", container], check=True, capture_output=True, timeout=60)


def has_printed(there: Batch, bucket: str) -> bool:
    """Whether a body has printed something: its output is in the bucket."""
    with contextlib.closing(there.moto.client("s3")) as s3:
        found = s3.list_objects_v2(Bucket=bucket).get("Contents", ())
    return any(each["Key"].endswith(".out") for each in found)


def _with(there: Batch, act: Callable[[], None], call: Any, bucket: str = "") -> Any:
    """Run a call, and act when its container has printed that it sleeps."""
    import threading

    def later() -> None:
        wait_until(partial(has_printed, there, bucket or there.bucket))
        act()

    thread = threading.Thread(target=later)
    thread.start()
    try:
        return call()
    finally:
        thread.join()
