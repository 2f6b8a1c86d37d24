"""@lmbda above a body: it runs in Lambda, in warm processes of AWS's own runtime client."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from entangle._aws import lambda_calls, lambda_handler
from entangle._services.caller import open_watchers
from entangle.aws import aws as in_account
from entangle.aws import lmbda
from entangle.errors import (
    OptionError,
    ProcessTerminatedException,
    ProcessTimeoutException,
    RunTimeoutException,
    UnreachableError,
)
from entangle.process import process

from ..callers import Caller
from ..evidence import note, notes, wait_until
from ..services.emulators import REGION, Emulator, new_name
from ..services.lambda_functions import LambdaFunctions
from . import bodies

Client = Callable[[str], Any]
ROLE = "arn:aws:iam::123456789012:role/of-the-body"


class There:
    """Tasks that run in Lambda."""

    def __init__(self, moto: Emulator, functions: LambdaFunctions, bucket: str) -> None:
        self.moto, self.functions, self.bucket = moto, functions, bucket

    def __call__(self, function: Callable[..., Any], **options: Any) -> Any:
        # Functions are cached for an account, and each test has an emulator of its own.
        return process(in_account(bucket=self.bucket, region=REGION)(lmbda(role=ROLE, **options)(function)))

    def sandboxes(self) -> list[int]:
        return [pid for name in self.functions.functions for pid in self.functions.processes(name)]


@pytest.fixture
def there(
    aws_environment: Emulator, lambda_functions: LambdaFunctions, bucket: str, aws: Client, tmp_path: Path, monkeypatch: Any
) -> Iterator[There]:
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", lambda_functions.endpoint)
    temporary = tmp_path / "sandbox-tmp"
    temporary.mkdir()
    lambda_functions.environment["TMPDIR"] = str(temporary)
    _make_role(aws)
    _forget()
    yield There(aws_environment, lambda_functions, bucket)
    open_watchers.close_all()
    for made in aws("lambda").list_functions()["Functions"]:
        aws("lambda").delete_function(FunctionName=made["FunctionName"])
    _forget()


def _make_role(aws: Client) -> None:
    with contextlib.suppress(aws("iam").exceptions.EntityAlreadyExistsException):
        aws("iam").create_role(RoleName=ROLE.rpartition("/")[2], AssumeRolePolicyDocument="{}")


def _forget() -> None:
    """Clients are cached, and each test has its own endpoint for Lambda."""
    from entangle._aws import account

    account._known_client.cache_clear()
    lambda_calls._functions.clear()
    lambda_calls._known.clear()


# --- values and errors ----------------------------------------------------------------------------


def test_a_value_comes_back_and_prints_are_shown(there: There, capfd: pytest.CaptureFixture[str]) -> None:
    assert there(bodies.square)(7)() == 49
    assert "[lambda square] squaring 7" in capfd.readouterr().out


def test_an_error_is_raised_as_it_is(there: There) -> None:
    with pytest.raises(ValueError, match="on purpose"):
        there(bodies.fail)("on purpose")()


def test_many_at_once(there: There) -> None:
    assert there(bodies.square).map(range(12))() == [x * x for x in range(12)]


def test_large_values_in_both_directions(there: There) -> None:
    data = os.urandom(1000) * 5000
    assert there(bodies.size)(data)() == data[::-1]


def test_calls_in_calls_and_two_places(there: There) -> None:
    far = there(bodies.add)
    assert process(bodies.add)(far(1, far(2, 3)), process(bodies.add)(4, 5))() == 15


def test_both_orders_of_the_decorators(there: There) -> None:
    task = lmbda(role=ROLE)(in_account(bucket=there.bucket, region=REGION)(bodies.add))
    assert task(1, 2)() == 3


def test_a_run_within_the_body(there: There) -> None:
    def outer(n: int) -> int:
        return sum(process(bodies.square).map(range(n))())

    assert there(outer)(5)() == 30


def where() -> tuple[int, int, str]:
    return os.getppid(), os.getpid(), os.environ["MODE"]


def test_a_warm_sandbox_is_used_again_by_a_process_of_its_own(there: There) -> None:
    task = there(where, env={"MODE": "fast"})
    first, pid, mode = task()()
    wait_until(lambda: all(map(there.functions.idle, there.functions.functions)))
    second, other, _ = task()()
    assert (first, mode) == (second, "fast")
    assert pid != other
    assert there.sandboxes() == [first]


# --- the function ---------------------------------------------------------------------------------


def test_a_function_is_made_once_and_used_again(there: There, aws: Client) -> None:
    assert there(bodies.add)(1, 2)() == 3
    assert there(bodies.square)(3)() == 9
    _forget()
    assert there(bodies.add)(3, 4)() == 7
    (made,) = aws("lambda").list_functions()["Functions"]
    assert re.fullmatch(r"entangle-[0-9a-f]{20}", made["FunctionName"])
    assert (made["Role"], made["MemorySize"], made["Timeout"]) == (ROLE, 1769, 900)
    config = aws("lambda").get_function_event_invoke_config(FunctionName=made["FunctionName"])
    assert config["MaximumRetryAttempts"] == 0
    tags = aws("lambda").get_function(FunctionName=made["FunctionName"])["Tags"]
    assert tags == {"entangle": "function", "used": time.strftime("%Y-%m-%d", time.gmtime())}
    assert there(bodies.add, memory="512MB", timeout=60)(1, 2)() == 3
    assert len(aws("lambda").list_functions()["Functions"]) == 2


def test_a_function_that_was_removed_is_made_again(there: There, aws: Client) -> None:
    assert there(bodies.add)(1, 2)() == 3
    (made,) = aws("lambda").list_functions()["Functions"]
    there.functions.functions.clear()
    aws("lambda").delete_function(FunctionName=made["FunctionName"])
    assert there(bodies.add)(3, 4)() == 7


def test_two_callers_may_make_it_at_once(there: There, tmp_path: Path) -> None:
    found: list[Any] = []
    tasks = [there(bodies.add) for _ in range(3)]
    threads = [threading.Thread(target=lambda n=n: found.append(tasks[n](n, 1)())) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [1, 2, 3]


def test_nothing_is_left_in_the_bucket(there: There, aws: Client) -> None:
    assert there(bodies.square).map(range(5))() == [0, 1, 4, 9, 16]
    assert there(bodies.sleep)(2)() == "slept"
    open_watchers.close_all()
    assert "Contents" not in aws("s3").list_objects_v2(Bucket=there.bucket)


# --- calls that run twice, too long, or die -------------------------------------------------------


def noted(path: str) -> int:
    note(path, "ran")
    time.sleep(1.5)
    return os.getpid()


def test_an_event_that_is_delivered_twice_runs_once(there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke = lambda_calls.LambdaCalls._invoke

    def twice(service: Any, function: str, message: Any) -> str:
        invoke(service, function, message)
        return invoke(service, function, message)

    monkeypatch.setattr(lambda_calls.LambdaCalls, "_invoke", twice)
    path = str(tmp_path / "noted")
    assert there(noted).map([path, path])()
    assert len(notes(path)) == 2


def die() -> None:
    print("about to die", flush=True)
    time.sleep(2)
    os.kill(os.getpid(), signal.SIGKILL)


def test_its_process_dies(there: There) -> None:
    with pytest.raises(ProcessTerminatedException, match=r"was killed by signal 9[\s\S]*about to die") as caught:
        there(die)()()
    assert any("request" in one and "/aws/lambda/entangle-" in one for one in vars(caught.value)["__notes__"])
    assert there(bodies.add)(1, 2)() == 3
    assert len(there.sandboxes()) == 1  # it has survived that


def die_first(path: str) -> int:
    note(path, "ran")
    if len(notes(path)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(notes(path))


def test_one_that_died_is_invoked_again_by_retry(there: There, tmp_path: Path) -> None:
    task = in_account(bucket=there.bucket, region=REGION)(lmbda(role=ROLE)(process(retry=1)(die_first)))
    assert task(str(tmp_path / "noted"))() == 2


def leave(path: str) -> None:
    import subprocess
    import sys

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    note(path, child.pid)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_it_has_started_ends_with_it(there: There, tmp_path: Path) -> None:
    path = str(tmp_path / "noted")
    with pytest.raises(ProcessTerminatedException):
        there(leave)(path)()
    ((pid,),) = notes(path)
    assert not psutil.pid_exists(int(pid))


def test_it_takes_longer_than_it_may(there: There) -> None:
    with pytest.raises(ProcessTimeoutException, match=r"its time was over; timeout= of @lmbda"):
        there(bodies.sleep, timeout=3)(600)()
    wait_until(lambda: not _bodies(there), 30, "its end")
    assert len(there.sandboxes()) == 1  # Lambda did not have to end the sandbox


def test_a_sandbox_that_is_gone(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lambda_calls, "STALE", 3.0)
    future = there(bodies.sleep)(600)(proc=True)
    wait_until(lambda: any(call.tag for calls in lambda_calls._known.values() for call in calls.values()), 30, "it to be seen")
    (sandbox,) = there.sandboxes()
    all_of_it = [psutil.Process(sandbox), *psutil.Process(sandbox).children(recursive=True)]
    for one in all_of_it:
        one.suspend()  # nor does Lambda say anything
    try:
        with pytest.raises(ProcessTerminatedException, match=r"its sandbox has said nothing for 3 s"):
            future.result(60)
    finally:
        for one in all_of_it:
            one.resume()


def test_a_cancelled_call_ends_there(there: There, tmp_path: Path) -> None:
    with pytest.raises(RunTimeoutException):
        there(bodies.sleep)(600).run(timeout=4)
    wait_until(lambda: not _bodies(there), 30, "its end")
    assert len(there.sandboxes()) == 1


def _bodies(there: There) -> list[int]:
    """The pids of the calls' processes."""
    return [child.pid for pid in there.sandboxes() for child in psutil.Process(pid).children(recursive=True)]


PROGRAM = """
    import sys
    from entangle.aws import aws, lmbda
    from entangle.tests.clouds import bodies

    task = aws(bucket=sys.argv[1])(lmbda(role=sys.argv[2])(bodies.sleep))
    if __name__ == "__main__":
        print(task(600)())
"""


def test_the_caller_is_killed(there: There, tmp_path: Path) -> None:
    environment = {**there.moto.environment(), "AWS_ENDPOINT_URL_LAMBDA": there.functions.endpoint}
    caller = Caller(tmp_path, PROGRAM, ENTANGLE_LEASE="5", **environment).start(there.bucket, ROLE)
    try:
        wait_until(lambda: _bodies(there), 60, "the body")
    finally:
        caller.process.send_signal(signal.SIGKILL)
        caller.process.communicate(timeout=20)
    wait_until(lambda: not _bodies(there), 60, "its end")


# --- errors before a call -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, r"needs function='…'.*or role="),
        ({"role": "name"}, r"role='name'; it must be the ARN of a role"),
        ({"role": ROLE, "memory": 64}, r"memory=64 MiB; it must be 128 to 10,240 MiB"),
        ({"role": ROLE, "memory": "11GB"}, r"memory=11264 MiB"),
        ({"role": ROLE, "timeout": 901}, r"timeout=901; Lambda runs nothing for more than 900 s"),
        ({"role": ROLE, "timeout": 0}, r"timeout=0"),
        ({"role": ROLE, "python": "3"}, r"python='3'; it must be the version of a runtime"),
        ({"role": ROLE, "python": "3.12", "image": "x"}, r"an image has its own"),
        ({"role": ROLE, "architecture": "sparc"}, r"architecture='sparc'; it must be 'x86_64' or 'arm64'"),
        ({"role": ROLE, "env": {"A": 1}}, r"env must be a dict of strings"),
        ({"role": ROLE, "layers": "arn:x"}, r"layers= must be a list"),
        ({"role": ROLE, "qualifier": "3"}, r"qualifier= is for function="),
        ({"role": ROLE, "function": "f"}, r"function= names one that stands in Lambda, and role= is for the body below"),
        ({"role": ROLE, "memroy": 3}, r"memroy.*memory"),
    ],
)
def test_options_that_cannot_be(options: Any, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        lmbda(**options)


def test_a_timeout_below_that_is_longer_than_lambda_has(there: There) -> None:
    with pytest.raises(OptionError, match=r"timeout=1000 is longer than lambda lets anything run \(900 s\)"):
        lmbda(role=ROLE)(process(timeout=1000)(bodies.add))(1, 2)()


def test_a_role_that_is_not_there(there: There) -> None:
    with pytest.raises(OptionError, match=r"role='arn:aws:iam::123456789012:role/nobody' cannot be assumed by Lambda"):
        in_account(bucket=there.bucket, region=REGION)(lmbda(role="arn:aws:iam::123456789012:role/nobody")(bodies.add))(1, 2)()


def test_whoever_may_not_make_a_function_is_told(there: There, aws: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    iam, user = aws("iam"), new_name("user")
    iam.create_user(UserName=user)
    made = iam.create_access_key(UserName=user)["AccessKey"]
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", there.moto.endpoint)
    keys = [made["AccessKeyId"], made["SecretAccessKey"]]
    task = lmbda(role=ROLE)(in_account(bucket=there.bucket, region=REGION, keys=keys)(bodies.add))
    client = task.layers[0].account.client("lambda")  # type: ignore[attr-defined]

    def unknown(**_: Any) -> None:  # moto does not accept the signature of a request without a body
        raise client.exceptions.ResourceNotFoundException({"Error": {}}, "GetFunction")

    monkeypatch.setattr(client, "get_function", unknown)
    with there.moto.permissions(), pytest.raises(UnreachableError, match=r"you may not lambda:CreateFunction.*[\s\S]*deploy/aws"):
        task(1, 2)()


# --- in containers --------------------------------------------------------------------------------


def test_in_a_container_with_another_python(aws_environment: Emulator, bucket: str, aws: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    _make_role(aws)
    _forget()
    task = in_account(bucket=bucket, region=REGION)(lmbda(role=ROLE, python="3.11")(process(bodies.square)))
    try:
        assert task.map(range(3))() == [0, 1, 4]
        with pytest.raises(ValueError, match="on purpose"):
            in_account(bucket=bucket, region=REGION)(lmbda(role=ROLE, python="3.11")(bodies.fail))("on purpose")()
    finally:
        open_watchers.close_all()
        for made in aws("lambda").list_functions()["Functions"]:
            aws("lambda").delete_function(FunctionName=made["FunctionName"])
        _forget()


#: The options of a container like Lambda's sandbox: no shared memory, one writable directory, no
#: root.
SANDBOX = ["--rm", "-i", "--ipc=none", "--read-only", "--tmpfs=/tmp", "--user=993:990", "--network=host"]
SANDBOX += ["--env=HOME=/home/sbx", "--env=PYTHONPATH=/var/task"]
CALL = """
import json, os, sys, time
from entangle_handler import handler
class Context:
    aws_request_id, log_group_name, log_stream_name = "r-1", "", ""
    def get_remaining_time_in_millis(self):
        return 60000
print(handler(json.load(sys.stdin), Context()), [files for _, _, files in os.walk("/tmp") if files])
"""


def test_without_shared_memory_and_in_a_temporary_directory_alone(
    there: There, test_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tmp_path / "task"
    task.mkdir()
    (task / "entangle_handler.py").write_bytes(Path(lambda_handler.__file__).read_bytes())
    task.chmod(0o755)
    said: list[str] = []

    def invoke(service: Any, function: str, message: Any) -> str:
        addresses = {"began": "http://127.0.0.1:1/", "ended": "http://127.0.0.1:1/"}
        event = json.dumps({"command": message.command, **addresses})
        command = ["docker", "run", *SANDBOX, "--volume", f"{task}:/var/task:ro", test_image, "python3", "-c", CALL]
        done = subprocess.run(command, input=event, capture_output=True, text=True, timeout=50, check=False)
        said.append(done.stdout + done.stderr)
        return "r-1"

    monkeypatch.setattr(lambda_calls.LambdaCalls, "_invoke", invoke)

    def outer(n: int) -> tuple[int, int]:
        square = process(bodies.square)
        large = process(bodies.many)(1 << 20)
        return sum(square.map(range(n))()), len(large())

    value = there(outer, python="3.11")(5)()
    assert value == (30, 1 << 20), said
    # Only the code is kept.
    assert re.search(r"\{'ended': 'well'\} \[\['[0-9a-f]{32}'(, '[0-9a-f]{32}')*\]\]\n$", said[0]), said
