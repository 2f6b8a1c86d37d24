"""@fargate: ECS tasks that run as containers in ministack; and, with stubs that answer in the
format of AWS, what no emulator does."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from entangle._aws import container_jobs, ecs_cluster, fargate_tasks, policies
from entangle._aws.account import Account
from entangle._aws.fargate_tasks import FargateTasks
from entangle._aws.machine_options import fargate_size
from entangle._services import OVER, PENDING, RUNNING, Submission
from entangle._services.caller import open_watchers
from entangle.aws import aws as at_aws
from entangle.aws import fargate as on_fargate
from entangle.errors import (
    EntangleError,
    ImageError,
    OptionError,
    ProcessTerminatedException,
    ProcessTimeoutException,
    RunTimeoutException,
    UnfitPythonError,
    UnpicklableError,
    UnreachableError,
)
from entangle.process import process
from entangle.task import Task

from ..callers import ROOT, Caller
from ..evidence import wait_until
from ..services.aws_clients import listed_clients
from ..services.emulators import Emulator, FargateCluster, new_name
from . import bodies

#: A role that may write logs; ministack checks no permissions.
ROLE = "arn:aws:iam::123456789012:role/entangle-tests"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def there(
    aws_environment_with_ecs: Emulator, fargate: FargateCluster, bucket: str, test_image: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """The decorators, with the least options that they need."""
    monkeypatch.setenv("ENTANGLE_BUCKET", bucket)
    clients = listed_clients(monkeypatch)

    def decorated(function: Any, **options: Any) -> Task[..., Any]:
        given = {"image": test_image, "cluster": fargate.name, "cpu": 0.25, "ram": 512, **options}
        return at_aws()(on_fargate(**given)(function))

    yield decorated
    open_watchers.close_all()
    for made in clients:
        made.close()


# --- Calls ----------------------------------------------------------------------------------------


def test_values_prints_and_many_at_once(there: Callable[..., Any], fargate: FargateCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert there(bodies.square).map(range(5))() == [0, 1, 4, 9, 16]
    shown = capsys.readouterr().out
    assert sorted(re.findall(r"squaring \d", shown)) == [f"squaring {x}" for x in range(5)]
    assert shown.startswith(f"[fargate:{fargate.name} ")


def test_graphs_of_it(there: Callable[..., Any]) -> None:
    size = there(bodies.size)
    assert size(size(size(b"ab" * 100_000)))() == b"ba" * 100_000


def test_errors_are_those_of_the_body(there: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="who says so"):
        there(bodies.fail)("who says so")()
    with pytest.raises(UnpicklableError, match="argument 1 of task 'square'"):
        there(bodies.square)(threading.Lock())()


def test_the_account_may_be_said_above_or_below(there: Callable[..., Any], fargate: FargateCluster, test_image: str, bucket: str) -> None:
    on = on_fargate(image=test_image, cluster=fargate.name, env={"MODE": "fast"})
    mode = on(at_aws(bucket=bucket, region="us-east-1")(os.getenv))
    assert mode("MODE")() == "fast"
    assert mode("AWS_SECRET_ACCESS_KEY")() is None


def test_records_say_where_it_ran(
    there: Callable[..., Any], fargate: FargateCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from entangle import records

    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    assert there(bodies.square)(2)() == 4
    (node,) = records.run("last").nodes
    assert node.place == f"fargate:{fargate.name}"
    assert re.fullmatch(r"[0-9a-f-]{32,36}", node.ticket or "")


def test_a_job_uses_its_mailbox_as_its_role(there: Callable[..., Any], aws: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's credentials expire in two seconds; ministack provides those of the role."""
    monkeypatch.setattr(Account, "expires", lambda self: 2.0)
    assert there(bodies.square, job_role=ROLE)(3)() == 9
    arns = aws("ecs").list_task_definitions()["taskDefinitionArns"]
    assert ROLE in {aws("ecs").describe_task_definition(taskDefinition=arn)["taskDefinition"].get("taskRoleArn") for arn in arns}
    with pytest.raises(OptionError, match="job_role="):
        there(bodies.square)(3)()


def test_a_definition_is_made_once(there: Callable[..., Any], aws: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def families() -> list[str]:
        return [arn for arn in aws("ecs").list_task_definitions()["taskDefinitionArns"] if "/entangle-" in arn]

    monkeypatch.setattr(fargate_tasks, "_definitions", {})
    assert there(bodies.square, env={"ONCE": "1"})(2)() == 4
    before = families()
    monkeypatch.setattr(fargate_tasks, "_definitions", {})  # like another process
    assert there(bodies.square, env={"ONCE": "1"})(2)() == 4
    assert families() == before
    assert there(bodies.square, env={"ONCE": "2"})(2)() == 4
    assert len(families()) == len(before) + 1
    found = aws("ecs").describe_task_definition(taskDefinition=families()[-1])["taskDefinition"]
    assert (found["cpu"], found["memory"], found["networkMode"]) == ("256", "512", "awsvpc")


def test_spot(there: Callable[..., Any], aws: Callable[[str], Any]) -> None:
    providers = {"capacityProviders": ["FARGATE", "FARGATE_SPOT"], "defaultCapacityProviderStrategy": []}
    aws("ecs").create_cluster(clusterName="with-spot")
    with pytest.raises(OptionError, match="cluster 'with-spot' has no capacity provider FARGATE_SPOT; add it: aws ecs"):
        there(bodies.square, spot=True, cluster="with-spot")(1)()
    aws("ecs").put_cluster_capacity_providers(cluster="with-spot", **providers)
    assert there(bodies.square, spot=True, cluster="with-spot")(2)() == 4
    tasks = aws("ecs").list_tasks(cluster="with-spot", desiredStatus="STOPPED")["taskArns"]
    (task,) = aws("ecs").describe_tasks(cluster="with-spot", tasks=tasks, include=["TAGS"])["tasks"]
    assert task["capacityProviderName"] == "FARGATE_SPOT"
    assert task["tags"] == [{"key": "entangle", "value": "call"}]
    assert task["startedBy"] == "entangle-square"


# --- Faults ---------------------------------------------------------------------------------------


def test_an_image_that_cannot_be_had(there: Callable[..., Any]) -> None:
    with pytest.raises(ImageError, match=r"CannotPullContainerError.*: the image cannot be had; name another one, image="):
        there(bodies.square, image="127.0.0.1:1/entangle-nowhere:1")(1)()


def test_an_image_without_that_python(there: Callable[..., Any], test_image: str) -> None:
    with pytest.raises(UnfitPythonError, match=f"image '{test_image}' cannot be used: .*exit status 127.*name its Python, python="):
        there(bodies.square, python="python9")(1)()
    with pytest.raises(UnfitPythonError, match=f"image '{test_image}' has no Python at 'true' that entangle can use"):
        there(bodies.square, python="true")(1)()


def test_a_killed_container(there: Callable[..., Any], ministack: Emulator, aws: Callable[[str], Any]) -> None:
    future = there(bodies.sleep, execution_role=ROLE)(600)(proc=True)
    _kill(ministack)
    with pytest.raises(ProcessTerminatedException, match=r"is over and has given no outcome: STOPPED .*exit status 137") as caught:
        future.result()
    assert "sleeping" in str(caught.value)
    assert any("in the group /entangle/fargate of CloudWatch" in note for note in getattr(caught.value, "__notes__", ()))
    assert [group["logGroupName"] for group in aws("logs").describe_log_groups(logGroupNamePrefix="/entangle/")["logGroups"]] == [
        "/entangle/fargate"
    ]


def test_a_task_whose_spot_capacity_is_taken_back(there: Callable[..., Any], ministack: Emulator) -> None:
    future = there(bodies.sleep)(600)(proc=True)
    _take_back(ministack)
    with pytest.raises(ProcessTerminatedException, match=r"interrupted.*: its spot capacity was taken back; retry=1 submits it again"):
        future.result()


def test_retry_submits_it_again(there: Callable[..., Any], ministack: Emulator, bucket: str, aws: Callable[[str], Any]) -> None:
    mark = aws("s3").generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "tries"}, ExpiresIn=600)
    future = there(process(retry=1, sleep=0)(bodies.second))(mark)(proc=True)
    _take_back(ministack)
    assert future.result() == "second"


def _sleeping(ministack: Emulator) -> str:
    """The container of the call, once its body sleeps. An earlier one may ask an image for its
    Python."""

    def sleeping() -> str:
        for container in ministack.containers():
            said = subprocess.run(["docker", "logs", container], capture_output=True, timeout=60, check=False)
            if b"sleeping" in said.stdout:
                return container
        return ""

    return str(wait_until(sleeping, 60, "its body to begin"))


def _kill(ministack: Emulator) -> None:
    subprocess.run(["docker", "kill", _sleeping(ministack)], capture_output=True, timeout=60, check=True)


def _take_back(ministack: Emulator) -> None:
    """As AWS does with spot capacity: SIGTERM, and the reason."""
    _sleeping(ministack)
    ecs = ministack.client("ecs")
    for cluster in ecs.list_clusters()["clusterArns"]:
        for task in ecs.list_tasks(cluster=cluster)["taskArns"]:
            ecs.stop_task(cluster=cluster, task=task, reason="Your Spot Task was interrupted.")
    ecs.close()


def test_out_of_memory(there: Callable[..., Any]) -> None:
    with pytest.raises(ProcessTerminatedException, match=r"OutOfMemoryError.*it needed more memory than it had"):
        there(bodies.hungry)(900)()


def test_time_is_over(there: Callable[..., Any]) -> None:
    with pytest.raises(ProcessTimeoutException, match=r"its time is over.*timeout= of a layer below says"):
        there(bodies.sleep, time=3)(600)()
    with pytest.raises(OptionError, match=r"timeout=60 is longer than fargate:.* lets anything run \(3 s\)"):
        there(process(timeout=60)(bodies.sleep), time=3)(1)()


def test_a_run_that_is_over_stops_its_tasks(there: Callable[..., Any], ministack: Emulator) -> None:
    """The fixture checks that no container runs afterwards."""
    with pytest.raises(RunTimeoutException):
        there(bodies.sleep)(600).run(timeout=6)
    future = there(bodies.sleep)(600)(proc=True)
    wait_until(ministack.containers, 60, "the container")
    future.cancel()
    wait_until(lambda: not ministack.containers(), 60, "its end")


def test_a_killed_caller_leaves_nothing(
    there: Callable[..., Any], ministack: Emulator, fargate: FargateCluster, test_image: str, tmp_path: Path
) -> None:
    source = f"""
        from entangle.aws import aws, fargate
        from entangle.tests.clouds.bodies import sleep

        aws()(fargate(image={test_image!r}, cluster={fargate.name!r})(sleep))(600)()
    """
    caller = Caller(tmp_path, source, ENTANGLE_LEASE="4", ENTANGLE_RECORD="0").start()
    assert caller.started is not None
    try:
        _sleeping(ministack)
    finally:
        caller.started.kill()
        caller.started.communicate()
    wait_until(lambda: not ministack.containers(), 60, "the end of what it started")


def test_a_task_that_is_started_twice_runs_its_body_once(
    there: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fargate: FargateCluster, aws: Callable[[str], Any]
) -> None:
    submit, extra = FargateTasks.submit, list[str]()

    def twice(tasks: FargateTasks, messages: Sequence[Submission]) -> Sequence[str]:
        if any(message.name == "square" for message in messages):
            extra.extend(submit(tasks, messages))
        return submit(tasks, messages)

    monkeypatch.setattr(FargateTasks, "submit", twice)
    assert there(bodies.square, execution_role=ROLE)(4)() == 16

    def stopped() -> Any:
        arns = aws("ecs").list_tasks(cluster=fargate.name, desiredStatus="STOPPED")["taskArns"]
        return [arn for arn in arns if arn.rpartition("/")[2] in extra]

    wait_until(stopped, 60, "the end of the other one")
    streams = aws("logs").describe_log_streams(logGroupName=ecs_cluster.GROUP, orderBy="LastEventTime", descending=True)["logStreams"][:2]
    said = "".join(container_jobs.end_of_log(Account(), ecs_cluster.GROUP, stream["logStreamName"]) for stream in streams)
    assert said.count("squaring 4") == 1
    assert len(extra) == 1


def test_no_cluster(there: Callable[..., Any], fargate: FargateCluster) -> None:
    with pytest.raises(
        OptionError, match=rf"there is no cluster 'nowhere' in this region; there are .*{fargate.name}.* aws ecs create-cluster"
    ):
        there(bodies.square, cluster="nowhere")(1)()


# --- The policies and resources of deploy/aws -----------------------------------------------------


def test_the_policy_is_enough(there: Callable[..., Any], ministack: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The actions that are used are those of the policy."""
    from botocore import client as clients

    used, base = set[str](), vars(clients)["BaseClient"]
    request = base._make_api_call

    def call(client: Any, operation: str, given: Any) -> Any:
        used.add(f"{client.meta.service_model.endpoint_prefix}:{operation}")
        return request(client, operation, given)

    monkeypatch.setattr(base, "_make_api_call", call)
    for cached in (ecs_cluster.where, ecs_cluster.why_no_log):
        cached.cache_clear()
    monkeypatch.setattr(container_jobs, "_abouts", {})
    assert there(bodies.square, execution_role=ROLE, env={"POLICY": "1"}).map([1, 2])() == [1, 4]
    with pytest.raises(ProcessTerminatedException, match="exit status 3"):
        there(bodies.leave, execution_role=ROLE)(3)()
    future = there(bodies.sleep)(600)(proc=True)
    _sleeping(ministack)
    future.cancel()
    wait_until(lambda: "ecs:StopTask" in used, 60, "its task to be stopped")
    with pytest.raises(OptionError):
        there(bodies.sleep, cluster="nowhere")(600)()
    used = {action for action in used if not action.startswith("s3:")}
    assert {"ecs:RunTask", "ecs:StopTask", "ecs:DescribeTasks", "ec2:DescribeSubnets", "logs:GetLogEvents"} <= used
    assert used <= set(policies.ACTIONS["fargate"])


def test_what_deploy_makes_is_enough(there: Callable[..., Any], aws: Callable[[str], Any]) -> None:
    role = aws("iam").create_role(RoleName=new_name("batch"), AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    lab, queue, cluster = new_name("lab"), new_name("queue"), new_name("made")
    made = ["--bucket", lab, "--queue", queue, "--cluster", cluster, "--service-role", role]
    for _ in range(2):  # the second time, everything exists and stays
        done = subprocess.run(
            [sys.executable, str(Path(ROOT, "deploy", "aws", "make.py")), *made], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("@fargate")]
    found = re.fullmatch(r'@fargate\(cluster="(.*)", execution_role="(.*)"\)', told)
    assert found is not None
    assert found[1] == cluster
    assert there(bodies.square, cluster=found[1], execution_role=found[2], spot=True)(3)() == 9


# --- Answers that no emulator gives ---------------------------------------------------------------


class _Stubs:
    """Clients that return the given answers in order, and refuse all other requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import boto3
        from botocore.stub import Stubber

        keys = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "none", "region_name": "eu-central-1"}
        self.clients = {name: boto3.session.Session().client(name, **keys) for name in ("ecs", "ec2", "logs")}
        self.stubs = {name: Stubber(client) for name, client in self.clients.items()}
        for stub in self.stubs.values():
            stub.activate()
        monkeypatch.setattr(Account, "client", lambda account, service: self.clients[service])
        self.cluster = "arn:aws:ecs:eu-central-1:123456789012:cluster/default"
        self.ecs = self.stubs["ecs"]

    def there_is_a_cluster(self) -> None:
        cluster = {"clusterArn": self.cluster, "status": "ACTIVE"}
        self.ecs.add_response("describe_clusters", {"clusters": [cluster]}, {"clusters": ["default"]})

    def there_is_a_definition(self) -> None:
        self.there_is_a_cluster()
        self.ecs.add_response("describe_task_definition", {"taskDefinition": {"taskDefinitionArn": "arn:definition"}})

    def begun(self, number: int) -> None:
        arn = f"arn:aws:ecs:eu-central-1:123456789012:task/default/{number:032x}"
        self.ecs.add_response("run_task", {"tasks": [{"taskArn": arn}], "failures": []})

    def done(self) -> None:
        for stub in self.stubs.values():
            stub.assert_no_pending_responses()


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Stubs]:
    pytest.importorskip("boto3")
    monkeypatch.setattr(fargate_tasks, "AT_ONCE", 1)  # answers must come in order
    for name in ("_definitions", "_early", "_lives", "_ends"):
        monkeypatch.setattr(fargate_tasks, name, {})
    for cached in (ecs_cluster.where, ecs_cluster.why_no_log):
        cached.cache_clear()
    made = _Stubs(monkeypatch)
    yield made
    for client in made.clients.values():
        client.close()
    for cached in (ecs_cluster.where, ecs_cluster.why_no_log):
        cached.cache_clear()


TASKS = FargateTasks(Account(), "python:3.13-slim", 256, 512, subnets=("subnet-1",), note="")


def _messages(count: int) -> list[Submission]:
    return [Submission(f"{number}", "fit", ("python3", "-c", "pass", f"{number}")) for number in range(count)]


@pytest.mark.parametrize(
    "failure",
    [
        {"reason": "Capacity is unavailable at this time. Please try again later or in a different availability zone"},
        {"reason": "RESOURCE:ENI", "detail": "no network interface is free"},
    ],
)
def test_what_there_is_no_room_for_comes_again(stubs: _Stubs, caplog: pytest.LogCaptureFixture, failure: dict[str, str]) -> None:
    stubs.there_is_a_definition()
    stubs.begun(1)
    stubs.ecs.add_response("run_task", {"tasks": [], "failures": [failure]})
    assert TASKS.submit(_messages(3)) == [f"{1:032x}"]
    stubs.done()
    assert failure["reason"] in caplog.text


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("ThrottlingException", "Rate exceeded"),
        ("ClientException", "You've reached the limit on the number of vCPUs you can run concurrently"),
    ],
)
def test_quotas_are_waited_for(stubs: _Stubs, code: str, text: str) -> None:
    stubs.there_is_a_definition()
    stubs.ecs.add_client_error("run_task", code, text)
    assert TASKS.submit(_messages(2)) == []
    stubs.begun(2)
    stubs.begun(3)
    assert TASKS.submit(_messages(2)) == [f"{2:032x}", f"{3:032x}"]
    stubs.done()


def test_what_is_refused_is_an_error_that_says_so(stubs: _Stubs) -> None:
    text = "User: arn:aws:iam::123456789012:user/me is not authorized to perform: ecs:RunTask"
    stubs.there_is_a_definition()
    stubs.ecs.add_client_error("run_task", "AccessDeniedException", text)
    with pytest.raises(UnreachableError, match=r"you may not ecs:RunTask: .*deploy/aws"):
        TASKS.submit(_messages(1))
    stubs.ecs.add_response("run_task", {"tasks": [], "failures": [{"reason": "ATTRIBUTE", "detail": "no Fargate here"}]})
    with pytest.raises(UnreachableError, match="ecs:RunTask gives no task: ATTRIBUTE: no Fargate here"):
        TASKS.submit(_messages(1))
    stubs.done()


def test_an_error_after_some_have_begun_is_that_of_the_others(stubs: _Stubs) -> None:
    """Tasks that have begun are not forgotten, and do not begin twice."""
    stubs.there_is_a_definition()
    stubs.begun(1)
    stubs.ecs.add_client_error("run_task", "AccessDeniedException", "no more")
    messages = _messages(2)
    assert TASKS.submit(messages) == [f"{1:032x}"]
    stubs.ecs.add_client_error("run_task", "AccessDeniedException", "no more")
    with pytest.raises(UnreachableError, match="no more"):
        TASKS.submit(messages[1:])
    stubs.done()


def test_one_that_has_begun_behind_another_keeps_its_task(stubs: _Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests run in parallel: the second may be accepted and the first not."""
    monkeypatch.setattr(fargate_tasks, "AT_ONCE", 2)
    answers: dict[str, list[Any]] = {"0": [None, "zero"], "1": ["one"]}
    monkeypatch.setattr(FargateTasks, "_run_task", lambda tasks, message: answers[message.id].pop(0))
    stubs.there_is_a_definition()
    messages = _messages(2)
    assert TASKS.submit(messages) == []
    assert TASKS.submit(messages) == ["zero", "one"]
    answers.update({"0": [UnreachableError("no")], "1": ["one"]})
    stubs.ecs.add_response("stop_task", {}, {"cluster": stubs.cluster, "task": "one", "reason": "nobody waits for it any more"})
    with pytest.raises(UnreachableError, match="no"):
        TASKS.submit(messages)
    stubs.done()


def test_all_are_stopped_that_can_be(stubs: _Stubs) -> None:
    """A task that does not exist is ignored, and a failure to stop one does not prevent stopping
    others."""
    stubs.there_is_a_cluster()
    stubs.ecs.add_client_error("stop_task", "InvalidParameterException", "The referenced task was not found.")
    stubs.ecs.add_client_error("stop_task", "AccessDeniedException", "not you")
    stubs.ecs.add_response("stop_task", {})
    with pytest.raises(UnreachableError, match="you may not ecs:StopTask: not you"):
        TASKS.cancel(["1", "2", "3"])
    stubs.done()


def test_a_command_that_ecs_would_not_take(stubs: _Stubs) -> None:
    stubs.there_is_a_definition()
    with pytest.raises(OptionError, match=r"ECS takes 8,192 characters of command, and that of task 'fit' has 9,\d\d\d: .* token of"):
        TASKS.submit([dataclasses.replace(_messages(1)[0], command=("python3", "-c", "x" * 9000))])
    stubs.done()


def test_two_addresses_with_the_token_of_a_session_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A role's session token has about 1,000 characters, and many of them are escaped in a URL."""
    import boto3
    from botocore.config import Config

    token = "IQoJ/+b3JpZ2=" * 90
    keys = {"aws_access_key_id": "ASIA" + "X" * 16, "aws_secret_access_key": "none", "aws_session_token": token}
    s3 = boto3.session.Session().client("s3", region_name="ap-southeast-2", config=Config(signature_version="s3v4"), **keys)
    where = {"Bucket": "b" * 63, "Key": f"entangle/p1234567-{'a' * 12}@{'h' * 64}/addresses/{'i' * 32}"}
    address = s3.generate_presigned_url("get_object", Params=where, ExpiresIn=604800)
    s3.close()
    command = ["python3", "-c", "x" * 80, address, address, "i" * 32, "40"]
    assert sum(map(len, command)) + 200 < fargate_tasks.OVERRIDES


def test_the_default_network(stubs: _Stubs) -> None:
    asked = {"Filters": [{"Name": "default-for-az", "Values": ["true"]}]}
    stubs.stubs["ec2"].add_response("describe_subnets", {"Subnets": []}, asked)
    tasks = dataclasses.replace(TASKS, subnets=())
    stubs.there_is_a_cluster()
    with pytest.raises(OptionError, match=r"this region has no default network \(VPC\); name subnets=.*aws ec2 create-default-vpc"):
        tasks.about()
    stubs.there_is_a_cluster()
    found = [{"SubnetId": f"subnet-{number:02}"} for number in range(20)]
    stubs.stubs["ec2"].add_response("describe_subnets", {"Subnets": found}, asked)
    assert tasks._where()["networkConfiguration"]["awsvpcConfiguration"] == {
        "subnets": [f"subnet-{number:02}" for number in range(16)],
        "assignPublicIp": "ENABLED",
    }
    stubs.done()


def test_without_a_log(stubs: _Stubs) -> None:
    """The error of a task that dies says why it has no log."""
    assert TASKS.logs("ticket") == "(a task has a log if it has a role that may write it: execution_role=)"
    stubs.stubs["logs"].add_client_error("describe_log_groups", "AccessDeniedException", "not you")
    tasks = dataclasses.replace(TASKS, execution_role=ROLE)
    assert tasks.logs("ticket").startswith("(the task has no log: aws: you may not logs:DescribeLogGroups: not you")
    assert tasks.kept("7") == "task 7 of cluster default"
    stubs.done()


def _task(status: str, code: str = "", why: str = "", **container: Any) -> dict[str, Any]:
    return {"taskArn": "arn:task/7", "lastStatus": status, "stopCode": code, "stoppedReason": why, "containers": [container]}


@pytest.mark.parametrize(
    ("task", "state", "error", "text"),
    [
        (_task("PROVISIONING"), PENDING, None, "PROVISIONING: Fargate looks for a machine"),
        (_task("PENDING"), PENDING, None, "PENDING: the image is fetched"),
        (_task("RUNNING"), RUNNING, None, ""),
        (_task("STOPPING", "UserInitiated", "Task stopped by user"), RUNNING, None, ""),
        (
            _task("DEPROVISIONING", "EssentialContainerExited", "Essential container in task exited", exitCode=1),
            *(OVER, ProcessTerminatedException, "Essential container in task exited, exit status 1)"),
        ),
        (
            _task(
                *("STOPPED", "EssentialContainerExited", "Essential container in task exited"),
                exitCode=137,
                reason="OutOfMemoryError: Container killed due to memory usage",
            ),
            *(OVER, ProcessTerminatedException, "exit status 137): it needed more memory than it had; ask for more: ram="),
        ),
        (
            _task("STOPPED", "SpotInterruption", "Your Spot Task was interrupted.", exitCode=143),
            *(OVER, ProcessTerminatedException, "its spot capacity was taken back; retry=1 submits it again"),
        ),
        (
            _task("STOPPED", "TaskFailedToStart", "CannotPullContainerError: pull image manifest has been retried 5 time(s): i/o timeout"),
            *(OVER, ImageError, "the image cannot be had"),
        ),
        (
            _task("STOPPED", "TaskFailedToStart", "Capacity is unavailable at this time. Please try again later"),
            *(OVER, ProcessTerminatedException, "it has not begun; retry=1 submits it again"),
        ),
        (
            _task("STOPPED", "TaskFailedToStart", "ResourceInitializationError: unable to pull secrets or registry auth: i/o timeout"),
            *(OVER, UnreachableError, "see the network and the execution role"),
        ),
        (_task("STOPPED", "UserInitiated", "somebody"), OVER, ProcessTerminatedException, "STOPPED (UserInitiated, somebody)"),
    ],
)
def test_what_ecs_says_of_a_task(task: dict[str, Any], state: str, error: type[EntangleError] | None, text: str) -> None:
    found = fargate_tasks._state(task)
    assert found.state == state
    assert text in found.reason
    if error is not None:
        assert found.error is error


# --- Sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpu", "ram", "size", "note"),
    [
        (None, None, (1024, 2048), ""),
        (4, None, (4096, 8192), ""),
        ("4 vCPU", "8GB", (4096, 8192), ""),
        (0.25, 512, (256, 512), ""),
        (None, "2GB", (256, 2048), ""),
        (None, "12GB", (2048, 12288), ""),
        (1, "2000MB", (1024, 2048), ""),
        (4, "2GB", (4096, 8192), "cpu=4 with ram='2GB' is no size of Fargate; it has 4 vCPU and 8 GB"),
        (3, "2GB", (4096, 8192), "cpu=3 with ram='2GB' is no size of Fargate; it has 4 vCPU and 8 GB"),
        (1, "2.5GiB", (1024, 3072), "cpu=1 with ram='2.5GiB' is no size of Fargate; it has 1 vCPU and 3 GB"),
        (1, "16GB", (2048, 16384), "cpu=1 with ram='16GB' is no size of Fargate; it has 2 vCPU and 16 GB"),
        (16, "120GiB", (16384, 122880), ""),
    ],
)
def test_sizes_are_rounded_up(cpu: Any, ram: Any, size: tuple[int, int], note: str) -> None:
    assert fargate_size(cpu, ram) == (*size, note)


def test_a_size_that_is_none_is_said_once(stubs: _Stubs, caplog: pytest.LogCaptureFixture) -> None:
    *_, note = fargate_size(4, "2GB")
    stubs.there_is_a_cluster()
    for _ in range(2):
        dataclasses.replace(TASKS, note=note).about()
    assert caplog.text.count("@fargate: cpu=4 with ram='2GB' is no size of Fargate; it has 4 vCPU and 8 GB") == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cpu": "Xeon"}, r"cpu='Xeon'; it must be a number of vCPUs\. Fargate offers cpu=0\.25 with ram from 0\.5 GB to 2 GB; .*cpu=16"),
        ({"cpu": 32}, r"cpu=32 is more than Fargate offers: cpu=0\.25"),
        ({"ram": "500GB"}, r"ram='500GB' is more than Fargate offers"),
        ({"ram": "much"}, r"ram='much'; it must be a number of MiB, or a string"),
        ({"cpu": True}, r"cpu=True; it must be a number of vCPUs"),
        ({"subnets": [1]}, r"subnets=\[1\]; it must be a list of strings"),
        ({"architecture": "vax"}, r"architecture='vax'; it must be 'x86_64' or 'arm64'"),
        ({"spot": "no"}, r"spot='no'; it must be True or False"),
        ({"time": 0}, r"time=0; it must be a number of seconds"),
        ({"env": ["A"]}, r"env must be a dict of strings"),
        ({"cluster": ""}, r"cluster=''; it must be a string"),
        ({"memory": 1}, r"memory"),
    ],
)
def test_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        on_fargate(**options)


def test_parentheses_are_needed() -> None:
    with pytest.raises(OptionError, match="@fargate needs parentheses"):
        on_fargate(bodies.square)  # type: ignore[arg-type]
