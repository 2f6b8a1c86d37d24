"""@ec2: a function runs on an instance, which is launched, shared, and terminates itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle._aws import at_instance, instance_keys, instance_script, instance_watch, policies
from entangle._aws.account import Account
from entangle._aws.instance_options import InstanceOptions
from entangle._aws.instances import Instances
from entangle._remote.caller.open_channels import close_all
from entangle.aws import aws, ec2
from entangle.errors import HostKeyError, ImageError, LinkLostError, OptionError, UnfitPythonError, UnreachableError
from entangle.process import process

from ..evidence import wait_until
from ..services import ec2_machines
from ..services.ec2_machines import Cloud
from ..services.hosts import make_key, this_python


def on_ec2(function: Any, **options: Any) -> Any:
    """A task that runs on an instance in this test's cloud."""
    return aws(endpoint=os.environ["AWS_ENDPOINT_URL"])(ec2(**{"idle": 60, "python": this_python(), **options})(function))


def _where() -> str:
    return os.readlink("/proc/self/ns/pid")


def _add(one: int, other: int) -> int:
    return one + other


def _wait_for(path: str) -> str:
    Path(path, "begun").touch()
    until = time.monotonic() + 50
    while not Path(path, "go").exists() and time.monotonic() < until:
        time.sleep(0.02)
    return os.readlink("/proc/self/ns/pid")


# --- An instance, and who uses it -----------------------------------------------------------------


def test_a_function_runs_on_an_instance_that_a_second_run_uses_again(cloud: Cloud) -> None:
    there = on_ec2(_where)()()
    assert there != os.readlink("/proc/self/ns/pid")
    assert on_ec2(_where)()() == there
    assert on_ec2(_add)(1, 2)() == 3
    (instance,) = cloud.machines
    assert cloud.asked.count("RunInstances") == 1
    said = cloud.ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    tags = {tag["Key"]: tag["Value"] for tag in said["Tags"]}
    assert tags["entangle-owner"].endswith(f"@{os.uname().nodename}")
    assert len(tags["entangle"]) == 16
    assert said["InstanceType"] == "t3.micro"


def test_parentheses_may_be_left_out_and_aws_may_stand_above_or_below(cloud: Cloud) -> None:
    def one() -> int:
        return 1

    # The bare decorator uses the machine's own Python: the first one on its PATH.
    above: Any = aws(endpoint=cloud.endpoint, keys=["an-id", "a-secret"])(ec2(process(one)))
    assert above()() == 1
    below: Any = ec2(aws(endpoint=cloud.endpoint, keys=["an-id", "a-secret"])(process(one)))
    assert below()() == 1
    on_top: Any = process(cache=True)(aws(endpoint=cloud.endpoint, keys=["an-id", "a-secret"])(ec2(_where)))
    assert on_top()() != os.readlink("/proc/self/ns/pid")
    assert len(cloud.machines) == 1


def test_an_instance_that_aws_does_not_find_by_its_tags_yet_is_not_launched_twice(cloud: Cloud) -> None:
    assert on_ec2(_add)(1, 2)() == 3
    (instance,) = cloud.machines
    cloud.ec2.delete_tags(Resources=[instance], Tags=[{"Key": "entangle"}])
    assert on_ec2(_add)(1, 2)() == 3
    assert len(cloud.machines) == 1


def test_other_options_are_another_instance(cloud: Cloud) -> None:
    first = on_ec2(_where)
    second = on_ec2(_where, type="t3.small")
    assert first()() != second()()
    assert sorted(cloud.asked).count("RunInstances") == 2


def test_calls_of_one_run_share_an_instance(cloud: Cloud) -> None:
    from entangle.thread import thread

    @thread
    def gather(*places: str) -> set[str]:
        return set(places)

    where = on_ec2(_where)
    assert len(gather(*[where() for _ in range(8)])()) == 1
    assert cloud.asked.count("RunInstances") == 1


def test_a_key_of_the_users_is_used(cloud: Cloud, tmp_path: Path) -> None:
    make_key(tmp_path / "mine")
    public = (tmp_path / "mine.pub").read_text().split()
    (tmp_path / "mine.pub").unlink()  # ssh-keygen derives the public key
    assert on_ec2(_add, key=str(tmp_path / "mine"))(1, 2)() == 3
    assert [key.split()[:2] for key in cloud.keys.values()] == [public[:2]]
    assert not (tmp_path / "state" / "entangle" / "ec2" / "key").exists()


def test_keys_of_aws_do_not_travel(cloud: Cloud) -> None:
    def environment() -> dict[str, str]:
        return dict(os.environ)

    where: Any = aws(endpoint=cloud.endpoint, keys=["an-id", "a-secret"])(ec2(idle=60, python=this_python())(environment))
    found = repr(where()())
    assert "a-secret" not in found
    assert "AWS_SECRET" not in found
    assert "a-secret" not in cloud.only().folder.joinpath("user-data").read_text()


# --- Its end --------------------------------------------------------------------------------------


def test_an_instance_terminates_itself_when_it_is_idle_and_the_next_call_has_another(cloud: Cloud) -> None:
    add = on_ec2(_add, idle=1)
    assert add(1, 2)() == 3
    (instance,) = cloud.machines
    wait_until(lambda: cloud.state(instance) == "terminated", 30, f"the end of the instance: {cloud.only().log()}")
    assert add(2, 2)() == 4
    assert len(cloud.machines) == 2


def test_an_instance_that_has_an_agent_is_not_idle(cloud: Cloud, tmp_path: Path) -> None:
    run = on_ec2(_wait_for, idle=0.5)(str(tmp_path))(proc=True)
    wait_until((tmp_path / "begun").exists, 40, "the body")
    time.sleep(2)  # four times `idle`: an idle instance would have ended
    assert cloud.only().runs
    (tmp_path / "go").touch()
    run.result()


_CALLER = """
import sys
sys.path.insert(0, {root!r})
from entangle.tests.clouds.test_ec2 import _wait_for, on_ec2
if __name__ == "__main__":
    print(on_ec2(_wait_for, idle=1)({folder!r})(), flush=True)
"""


def test_an_instance_ends_when_its_caller_is_killed(cloud: Cloud, tmp_path: Path) -> None:
    import entangle

    script = tmp_path / "caller.py"
    script.write_text(_CALLER.format(root=str(Path(entangle.__file__).parents[1]), folder=str(tmp_path)))
    caller = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    try:
        wait_until((tmp_path / "begun").exists, 40, "the body")
    finally:
        os.killpg(caller.pid, signal.SIGKILL)
        caller.wait()
    (instance,) = cloud.machines
    wait_until(lambda: cloud.state(instance) == "terminated", 40, f"the end of the instance: {cloud.only().log()}")
    assert not cloud.only().runs


def test_an_instance_whose_caller_is_killed_before_it_logs_in_ends(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_script, "FIRST", 1.0)
    # And the caller does nothing more.
    launched = Instances(Account(endpoint=cloud.endpoint), InstanceOptions(idle=0.5).checked()).take(())
    wait_until(lambda: cloud.state(launched.id) == "terminated", 30, f"the end of the instance: {cloud.only().log()}")


@pytest.mark.parametrize(
    ("type", "idle", "first"),
    [("t3.micro", 60, 300), ("t2.micro", 60, 900), ("p5.48xlarge", 60, 300), ("g3s.xlarge", 2, 900), ("m7i.large", 1200, 1200)],
)
def test_how_long_an_instance_waits_for_its_caller(type: str, idle: float, first: float) -> None:
    assert f"/watch {idle} {first} - " in instance_script.user_data(idle, False, type)


def test_an_instance_that_ends_is_not_used_by_whoever_comes_then(cloud: Cloud) -> None:
    add = on_ec2(_add)
    assert add(1, 2)() == 3
    machine = cloud.only()
    # Do what the watch does just before it shuts the instance down.
    (pid,) = [one for one in Path("/proc").glob("[0-9]*/cmdline") if b"/run/entangle/watch" in one.read_bytes() and _is_of(machine, one)]
    os.kill(int(pid.parent.name), signal.SIGSTOP)
    Path(f"/proc/{pid.parent.name}/root/run/entangle/ending").write_text("entangle: this instance ends\n")
    assert add(2, 2)() == 4
    assert len(cloud.machines) == 2


def _is_of(machine: ec2_machines.Machine, command: Path) -> bool:
    return str(machine.folder).encode() in (command.parent / "environ").read_bytes()


def test_a_spot_instance_that_aws_takes_back_ends_its_agents_and_retry_goes_on_elsewhere(cloud: Cloud, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    lost.mkdir()
    run = on_ec2(process(_wait_for), spot=True)(str(lost))(proc=True)
    wait_until((lost / "begun").exists, 40, "the body")
    (first,) = cloud.machines.values()
    first.taken_back = "2026-01-01T00:02:00Z"
    with pytest.raises(LinkLostError, match="AWS has taken the spot instance back") as caught:
        run.result()
    assert first.instance in str(caught.value)
    wait_until(lambda: cloud.state(first.instance) == "terminated", 30, f"the end of the instance: {first.log()}")

    again = on_ec2(process(retry=1)(_wait_for), spot=True)(str(tmp_path))(proc=True)
    wait_until((tmp_path / "begun").exists, 40, "the body")
    (second,) = [machine for machine in cloud.machines.values() if machine is not first]
    (tmp_path / "begun").unlink()
    second.taken_back = "2026-01-01T00:02:00Z"
    wait_until((tmp_path / "begun").exists, 40, "the body, elsewhere")
    (tmp_path / "go").touch()
    again.result()
    assert len(cloud.machines) == 3


def test_an_instance_that_is_terminated_during_a_call_is_an_error_that_says_so(cloud: Cloud, tmp_path: Path) -> None:
    run = on_ec2(_wait_for)(str(tmp_path))(proc=True)
    wait_until((tmp_path / "begun").exists, 40, "the body")
    (instance,) = cloud.machines
    # The state in moto changes at once, and the machine must follow.
    cloud.ec2.terminate_instances(InstanceIds=[instance])
    cloud.machines[instance].kill()
    with pytest.raises(LinkLostError, match=f"the instance has ended.*{instance}"):
        run.result()


# --- An instance of the user's --------------------------------------------------------------------


def _of_the_user(cloud: Cloud, behaviour: str = "stop") -> str:
    """A stopped instance that a user made: it has no script of ours."""
    key = Path(instance_keys.own_key()).with_name("key.pub").read_text()
    cloud.keys["mine"] = key
    made = cloud.ec2.run_instances(ImageId=cloud.image, MinCount=1, MaxCount=1, InstanceInitiatedShutdownBehavior=behaviour)
    instance = str(made["Instances"][0]["InstanceId"])
    cloud.launched(instance, {"KeyName": "mine", "InstanceInitiatedShutdownBehavior": behaviour}).prints_keys()
    return instance


def test_an_instance_of_the_users_is_used_and_goes_on(cloud: Cloud) -> None:
    instance = _of_the_user(cloud)
    assert on_ec2(_add, instance=instance, user="admin", idle=0.5)(1, 2)() == 3
    time.sleep(1.5)
    assert cloud.only().runs
    assert "RunInstances" not in cloud.asked


def test_a_stopped_instance_of_the_users_is_started_and_stops_itself_again(cloud: Cloud) -> None:
    instance = _of_the_user(cloud)
    _stopped(cloud, instance)
    assert on_ec2(_add, instance=instance, user="admin", idle=1)(1, 2)() == 3
    assert "StartInstances" in cloud.asked
    wait_until(lambda: cloud.state(instance) == "stopped", 30, f"its end: {cloud.only().log()}")


def test_a_stopped_instance_that_would_be_terminated_is_not_started(cloud: Cloud) -> None:
    instance = _of_the_user(cloud, "terminate")
    _stopped(cloud, instance)
    with pytest.raises(OptionError, match="its shutdown behavior must be 'stop'"):
        on_ec2(_add, instance=instance, user="admin")(1, 2)()
    assert cloud.state(instance) == "stopped"


def test_an_instance_that_is_not_there_is_an_error(cloud: Cloud) -> None:
    with pytest.raises(OptionError, match="there is none"):
        on_ec2(_add, instance="i-0123456789abcdef0", user="admin")(1, 2)()


def test_who_logs_in_at_an_unknown_image_must_be_said(cloud: Cloud) -> None:
    with pytest.raises(OptionError, match="say user="):
        on_ec2(_add, ami=cloud.ec2.register_image(Name="our-own", RootDeviceName="/dev/sda1")["ImageId"])(1, 2)()
    assert all(cloud.state(instance) == "terminated" for instance in cloud.machines)


def _stopped(cloud: Cloud, instance: str) -> None:
    cloud.ec2.stop_instances(InstanceIds=[instance])
    cloud.machines[instance].kill()
    wait_until(lambda: cloud.state(instance) == "stopped", 20, "its end")


# --- Instances that cannot be used ----------------------------------------------------------------


def test_another_machine_that_poses_as_the_instance_is_refused(cloud: Cloud) -> None:
    assert on_ec2(_add)(1, 2)() == 3
    close_all()
    (known,) = Path(os.environ["XDG_STATE_HOME"], "entangle", "ec2").glob("*.known_hosts")
    make_key(known.parent / "other")
    kind, key = (known.parent / "other.pub").read_text().split()[:2]
    known.write_text(f"* {kind} {key}\n")
    with pytest.raises(HostKeyError):
        on_ec2(_add)(1, 2)()


def test_an_instance_that_lets_nobody_in_is_told_with_what_to_open(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_instance, "_LOGIN", 1.0)
    nowhere = "Host *\n  HostName 127.0.0.1\n  Port 9\n"
    monkeypatch.setattr(cloud, "write_addresses", lambda: cloud.ssh_configuration.write_text(nowhere))
    with pytest.raises(UnreachableError) as caught:
        on_ec2(_add)(1, 2)()
    assert "authorize-security-group-ingress --group-id sg-" in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert all(cloud.state(instance) == "terminated" for instance in cloud.machines)


def test_an_instance_that_says_no_host_keys_is_told(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_instance, "_BOOT", 1.0)
    monkeypatch.setattr(Cloud, "_console", lambda cloud, instance: _QUIET)
    with pytest.raises(HostKeyError, match="cloud-init"):
        on_ec2(_add)(1, 2)()
    assert all(cloud.state(instance) == "terminated" for instance in cloud.machines)


_QUIET = (
    '<GetConsoleOutputResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>0</requestId>'
    "<instanceId>i-0</instanceId><timestamp>2026-01-01T00:00:00.000Z</timestamp></GetConsoleOutputResponse>"
)


def test_an_image_without_python_ends_at_once(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ec2_machines, "this_python", lambda: "/bin/false")
    with pytest.raises(UnreachableError, match="this image has no python3"):
        on_ec2(_add)(1, 2)()
    assert len(cloud.machines) == 1
    assert all(cloud.state(instance) == "terminated" for instance in cloud.machines)


def test_a_python_that_is_not_there_is_told(cloud: Cloud) -> None:
    with pytest.raises(UnfitPythonError, match="/nowhere/python3"):
        on_ec2(_add, python="/nowhere/python3")(1, 2)()


# --- The watch ------------------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the watching program alone. Its `shutdown` only writes a file."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "shutdown").write_text(f"#!/bin/sh\ntouch {tmp_path}/down\n")
    (tmp_path / "bin" / "shutdown").chmod(0o755)
    started = []

    def start(*words: str) -> subprocess.Popen[bytes]:
        path = f"{tmp_path}/bin:{os.environ['PATH']}"
        command = [this_python(), instance_watch.__file__, *words, str(tmp_path)]
        started.append(subprocess.Popen(command, env={"PATH": path}))
        return started[-1]

    yield start
    for process_ in started:
        process_.kill()
        process_.wait()


def test_an_instance_to_which_nobody_ever_comes_ends(watched: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    assert watched("60", "0.5", "-").wait(30) == 0
    assert (tmp_path / "down").exists()
    assert "nobody has used it for 0.5 s" in (tmp_path / "ending").read_text()


def test_a_file_of_an_agent_that_was_killed_holds_nothing(watched: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "old").write_text("1\n")
    os.utime(tmp_path / "agents" / "old", (0, 0))
    assert watched("0.5", "0.5", "-").wait(30) == 0
    assert not (tmp_path / "agents" / "old").exists()


def test_a_second_watch_leaves_it_to_the_first(watched: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    first = watched("60", "60", "-")
    wait_until((tmp_path / "watch.lock").exists, 20, "the first")
    wait_until(lambda: watched("60", "0.1", "-").wait(20) == 0, 30, "the second")
    assert first.poll() is None
    assert not (tmp_path / "down").exists()


# --- Listing --------------------------------------------------------------------------------------


def test_the_command_line_lists_instances(cloud: Cloud) -> None:
    command = [sys.executable, "-m", "entangle", "aws", "ls"]
    assert "no instances" in subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert on_ec2(_add)(1, 2)() == 3
    told = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=60).stdout)
    (one,) = [each for each in told if each["kind"] == "instance"]
    assert one["instance"] in cloud.machines
    assert one["owner"].endswith(f"@{os.uname().nodename}")
    assert one["state"] == "running"
    assert one["type"] == "t3.micro"
    assert 0 <= one["age"] < 600
    assert one["instance"] in subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_policy_is_enough(cloud: Cloud) -> None:
    assert on_ec2(_add)(1, 2)() == 3
    names = {name.partition(":")[2] for name in policies.ACTIONS["ec2"]}
    assert set(cloud.asked) <= names


# --- What AWS refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "said", "kind", "told"),
    [
        ("InvalidAMIID.NotFound", "The image id '[ami-1]' does not exist", ImageError, "there is no image 'ami-1'"),
        ("VcpuLimitExceeded", "You have requested more vCPU capacity", UnreachableError, "Service Quotas"),
        ("InsufficientInstanceCapacity", "We currently do not have sufficient capacity", UnreachableError, "another type= or subnet="),
        ("UnauthorizedOperation", "You are not authorized", UnreachableError, "you may not ec2:RunInstances"),
        ("VPCIdNotSpecified", "No default VPC for this user", UnreachableError, "@ec2(subnet="),
        ("InvalidParameterValue", "Invalid value for instanceType", UnreachableError, "InvalidParameterValue"),
    ],
)
def test_what_aws_refuses_is_one_clear_error(cloud: Cloud, code: str, said: str, kind: type[Exception], told: str) -> None:
    cloud.refusals["RunInstances"] = code, said
    with pytest.raises(kind) as caught:
        on_ec2(_add, ami="ami-1", user="admin")(1, 2)()
    assert told in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("DescribeInstances", "you may not ec2:DescribeInstances"),
        ("GetParameter", "@ec2(ami="),
        ("ImportKeyPair", "you may not ec2:ImportKeyPair"),
        ("GetConsoleOutput", "the console has the host keys"),
    ],
)
def test_each_permission_that_is_missing_is_named_and_nothing_stays(cloud: Cloud, action: str, told: str) -> None:
    cloud.refusals[action] = "AccessDenied", "You are not authorized"
    with pytest.raises(UnreachableError) as caught:
        on_ec2(_add)(1, 2)()
    assert told in str(caught.value)
    assert not [machine for machine in cloud.machines.values() if machine.runs]
    assert all(cloud.state(instance) == "terminated" for instance in cloud.machines)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ami": "debian"}, "ami-"),
        ({"instance": "i-1", "ami": "ami-1"}, "instance= is there already"),
        ({"idle": 0}, "seconds above 0"),
        ({"security_groups": "sg-1"}, "a list of ids"),
        ({"type": "-x"}, "no dash first"),
        ({"spot": "no"}, "True or False"),
        ({"machine": "t3"}, "machine"),
    ],
)
def test_options_are_checked_early(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match="@ec2") as caught:
        ec2(**options)
    assert told in str(caught.value)
