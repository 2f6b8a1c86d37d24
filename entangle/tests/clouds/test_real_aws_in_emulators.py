"""The tests of test_real_aws.py, run against emulators, so that each of their lines has run; and
the checks that keep them from starting, or from costing more than allowed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from entangle._aws.account import Account

from ..callers import ROOT
from ..services import aws_budget, aws_leftovers
from ..services.aws_clients import listed_clients
from ..services.aws_leftovers import Leftovers
from ..services.ec2_machines import Cloud
from ..services.emulators import CREDENTIALS, Emulator, FargateCluster, JobQueue, new_name
from ..services.lambda_functions import LambdaFunctions

FILE = str(Path(__file__).with_name("test_real_aws.py"))


def begin(*words: str, **variables: str) -> subprocess.Popen[str]:
    """Start those tests with these environment variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ENTANGLE_TEST_AWS")}
    command = [sys.executable, "-m", "pytest", "-v", "-s", "-p", "no:cacheprovider", FILE, *words]
    return subprocess.Popen(
        command, cwd=ROOT, env={**environment, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def said_by(tests: subprocess.Popen[str]) -> str:
    with tests:
        return tests.communicate(timeout=400)[0]


@pytest.mark.timeout(480)
def test_all_of_them_pass_and_leave_nothing(
    cloud: Cloud,
    moto: Emulator,
    ministack: Emulator,
    fargate: FargateCluster,
    job_queue: JobQueue,
    lambda_functions: LambdaFunctions,
    test_image: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for service, endpoint in (("EC2", cloud), ("SSM", cloud), ("ECS", ministack), ("LAMBDA", lambda_functions)):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", endpoint.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.endpoint)
    bucket, queue = new_name("real"), new_name("real-queue")
    words = ["--bucket", bucket, "--queue", queue, "--cluster", new_name("real-cluster"), "--service-role", job_queue.role]
    made = subprocess.run(
        [sys.executable, str(Path(ROOT, "deploy", "aws", "make.py")), *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert made.returncode == 0, made.stderr
    said = dict(re.findall(r'(\w+)="([^"]*)"', made.stdout))
    group = cloud.ec2.create_security_group(GroupName=new_name("ssh"), Description="tests")["GroupId"]
    settings = {"BUCKET": bucket, "QUEUE": queue, "ROLE": said["execution_role"], "LAMBDA_ROLE": said["role"], "GROUP": group}
    settings |= {"CLUSTER": said["cluster"], "IMAGE": test_image}
    out = said_by(begin(ENTANGLE_TEST_AWS="1", **{f"ENTANGLE_TEST_AWS_{name}": value for name, value in settings.items()}))
    assert re.search(r"\b9 passed in", out), out
    assert "nothing is left in the account" in out
    assert (most := re.search(r"cost (\d\.\d+) USD at most", out)), out
    assert 0 < float(most[1]) < aws_budget.BUDGET
    assert all(cloud.state(instance) == "terminated" for instance in cloud.machines)


def test_what_they_have_made_is_removed_or_said(
    aws_environment_with_ecs: Emulator,
    aws: Callable[[str], Any],
    job_queue: JobQueue,
    fargate: FargateCluster,
    bucket: str,
    test_image: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sqs, ecs, batch = (aws(service) for service in ("sqs", "ecs", "batch"))
    name, role = f"entangle-{os.urandom(10).hex()}", job_queue.role
    kept = f"entangle-{os.urandom(10).hex()}"
    function = {"Runtime": "python3.12", "Handler": "a.b", "Role": role, "Code": {"ZipFile": b"PK\x05\x06" + bytes(18)}}
    container = {"image": test_image, "command": ["sleep", "100"], "vcpus": 1, "memory": 128}
    batch.register_job_definition(jobDefinitionName=kept, type="container", containerProperties=container)
    clients = listed_clients(monkeypatch)
    left = Leftovers(Account(bucket=bucket), fargate.name, job_queue.name)
    assert left.now() == []
    try:
        aws("lambda").create_function(FunctionName=name, Tags={"entangle": "function"}, **function)
        aws("lambda").create_function(FunctionName=aws_leftovers.new_name(), **function)
        aws("ec2").create_key_pair(KeyName=name)
        aws("s3").put_object(Bucket=bucket, Key="entangle/p1-0123456789abcdef@here/lease", Body=b"-")
        sqs.create_queue(QueueName=aws_leftovers.new_name())
        batch.register_job_definition(jobDefinitionName=name, type="container", containerProperties=container)
        batch.submit_job(jobName="left", jobQueue=job_queue.name, jobDefinition=name)
        told = [{"name": "left", "image": test_image, "command": ["sleep", "100"]}]
        ecs.register_task_definition(family=name, containerDefinitions=told, cpu="256", memory="512", networkMode="awsvpc")
        where = {"awsvpcConfiguration": {"subnets": [fargate.subnet], "securityGroups": [fargate.security_group]}}
        ecs.run_task(cluster=fargate.name, taskDefinition=name, launchType="FARGATE", networkConfiguration=where)
        made = [kind for kind, _ in left.now()]
        assert made == ["box", "function", "function", "job definition", "key pair", "queue", "task definition"]
        with pytest.MonkeyPatch.context() as refusing:
            refusing.setattr(left, "_remove_box", lambda name: 1 / 0)
            told_of = left.sweep()
        box = "box p1-0123456789abcdef@here"
        assert told_of == [box, f"{box}: division by zero"]
    finally:
        assert left.sweep() == []
    assert left.now() == []
    for client in clients:
        client.close()
    assert [
        one["jobDefinitionName"] for one in batch.describe_job_definitions(jobDefinitionName=kept, status="ACTIVE")["jobDefinitions"]
    ] == [kept]


# --- checks before they start ---------------------------------------------------------------------


@pytest.fixture
def counting() -> Iterator[tuple[str, list[str]]]:
    """A server in place of AWS that refuses and notes every request: its address, and the
    requests."""
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def __getattr__(self, name: str) -> Callable[[], None]:
            if not name.startswith("do_"):
                raise AttributeError(name)
            return self._refuse

        def _refuse(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            said = b"<Error><Code>AccessDenied</Code><Message>not here</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.timeout(240)
def test_nothing_is_asked_of_aws_before_it_is_sure_that_they_may_begin(
    counting: tuple[str, list[str]], aws_environment: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = counting
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    names = {f"ENTANGLE_TEST_AWS_{name}": "arn:aws:of-nobody" for name in ("BUCKET", "QUEUE", "ROLE", "LAMBDA_ROLE", "GROUP")}
    on = {"ENTANGLE_TEST_AWS": "1", **names}
    # In parallel, because each starts a Python.
    off = begin()
    dear = begin(**on, ENTANGLE_TEST_AWS_BUDGET="0.01")
    unnamed = begin(ENTANGLE_TEST_AWS="1")
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    nobody = begin(**on)
    for tests, told, how in (
        (off, "ENTANGLE_TEST_AWS=1 runs it in your account of AWS", "9 skipped"),
        (dear, "and the budget is 0.01: nothing was begun", "9 errors"),
        (unnamed, "ENTANGLE_TEST_AWS_BUCKET is not set", "9 errors"),
        (nobody, "there are no credentials: set AWS_PROFILE", "9 errors"),
    ):
        said = said_by(tests)
        assert told in said, said
        assert re.search(rf"{how} in", said), said
    assert asked == []
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    assert "AccessDenied" in said_by(begin("-k", "who", **on))
    assert asked, "what counts requests counts none"


def test_the_sum_is_kept_to_and_what_is_optional_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def cheap() -> None: ...
    def large() -> None: ...
    def unbounded() -> None: ...

    bounded_ones = [aws_budget.bounded(60, 0.2)(cheap), aws_budget.bounded(60, 0.4, optional=True)(large)]
    total, left_out = aws_budget.within_budget(bounded_ones)
    # Twice the price in the most expensive region.
    assert (round(total, 9), left_out) == (0.4, [large])
    monkeypatch.setenv("ENTANGLE_TEST_AWS_BUDGET", "1.21")
    total, left_out = aws_budget.within_budget(bounded_ones)
    assert (round(total, 9), left_out) == (1.2, [])
    for budget, told in (("0.39", "up to 0.40 USD, and the budget is 0.39"), ("nan", "nothing was begun"), ("much", "a number of USD")):
        monkeypatch.setenv("ENTANGLE_TEST_AWS_BUDGET", budget)
        with pytest.raises(pytest.fail.Exception, match=told):
            aws_budget.within_budget(bounded_ones)
    monkeypatch.delenv("ENTANGLE_TEST_AWS_BUDGET")
    with pytest.raises(pytest.fail.Exception, match="nothing says what unbounded may cost"):
        aws_budget.within_budget([*bounded_ones, unbounded])


def test_an_upper_bound_grows_with_the_time_limit() -> None:
    hour = aws_budget.FARGATE_CPU + 2 * aws_budget.FARGATE_GB
    assert aws_budget.container(3600) > hour
    assert aws_budget.container(7200) - aws_budget.container(3600) == pytest.approx(hour + aws_budget.ADDRESS)
    assert aws_budget.instance(3600) > aws_budget.T3_MICRO
    assert aws_budget.function(900, calls=2) > 2 * 900 * aws_budget.LAMBDA_GB
