"""Whole graphs on Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle import gather
from entangle._engines import chosen
from entangle.errors import LinkLostError, MissingModuleError, OptionError, ProcessTerminatedException, UnreachableError

from ..evidence import notes, notes_of, wait_until
from ..services.ray_head import RayHead, what_is_missing
from ..services.ray_head import ray_head as a_head
from ..ways import missing
from . import graph_bodies as bodies
from .whole_graphs import WholeGraphs

#: A head takes 40 s to notice that its prestarted server for the first client does not start.
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def connected(ray_head: RayHead) -> Iterator[RayHead]:
    """A head to which this process stays connected, since connecting takes seconds."""
    chosen._connected(ray_head.client)
    yield ray_head
    chosen._release(ray_head.client)


@pytest.fixture
def engine(connected: RayHead) -> Any:
    return entangle.engine(connected.client)


def test_nobody_answers() -> None:  # the first test: this process must not be connected yet
    with pytest.raises(UnreachableError, match="ray start"), entangle.engine("ray://127.0.0.2:9"):
        pass


class TestOnRay(WholeGraphs):
    pass


def begun(path: Path) -> list[tuple[int, int]]:
    """The calls that have begun, in order, each with its pid."""
    return [(int(line[1]), int(line[2])) for line in notes(path) if line[0] == "begins"]


def ended(path: Path) -> set[int]:
    return {int(line[1]) for line in notes(path) if line[0] == "ends"}


def kill_a_worker(path: Path) -> None:
    """Kill the process of a running body."""
    wait_until(lambda: len(begun(path)) >= 6)
    while True:
        for number, pid in reversed(begun(path)):
            if number not in ended(path):
                os.kill(pid, signal.SIGKILL)
                return


def test_a_killed_worker_runs_no_body_twice(engine: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with engine:
        future = bodies.total(bodies.noted.starmap([(str(path), x, 0.2) for x in range(50)]))(proc=True)
        kill_a_worker(path)
        with pytest.raises(ProcessTerminatedException, match=r"(?s)worker is gone.*idempotent=True.*Ray") as caught:
            future.result(timeout=60)
        assert "call path: total" in notes_of(caught.value)
        time.sleep(0.3)
        numbers = [number for number, _ in begun(path)]
        assert len(numbers) == len(set(numbers)) < 50
        assert bodies.square(3)() == 9


def test_a_killed_worker_and_bodies_that_may_run_again(engine: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with engine:
        running = bodies.total(bodies.again.starmap([(str(path), x, 0.1) for x in range(50)]))(proc=True)
        kill_a_worker(path)
        assert running.result(timeout=60) == sum(range(50))
    assert {number for number, _ in begun(path)} == set(range(50))
    assert len(begun(path)) > 50


def test_a_killed_worker_as_a_value(engine: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with engine:
        calls = [bodies.noted(str(path), x, 0.2) for x in range(12)]
        after = bodies.same(gather(*[bodies.square(call) for call in calls], return_exceptions=True))
        running = after(proc=True)
        kill_a_worker(path)
        values = running.result(timeout=60)
    lost = [x for x, value in enumerate(values) if isinstance(value, ProcessTerminatedException)]
    assert len(lost) == 1
    assert [value for x, value in enumerate(values) if x not in lost] == [x * x for x in range(12) if x not in lost]
    assert len(begun(path)) == 12


@pytest.fixture
def own_head() -> Iterator[RayHead]:
    """A head of the test's own, which it may kill."""
    if lacking := what_is_missing():
        missing(lacking)
    with a_head() as head:
        yield head


PROGRAM = """
import sys, entangle
from entangle.tests.engines import graph_bodies as bodies
if sys.argv[2] == "block":
    with entangle.engine(sys.argv[1]):
        bodies.total(bodies.noted.starmap([(sys.argv[3], x, 0.2) for x in range(200)]))()
else:
    print(bodies.total(bodies.square.map(range(10)))(), bodies.pid()())
"""


def program(*arguments: str, **settings: str) -> subprocess.Popen[str]:
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", **settings}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_head_ends_while_a_run_is_under_way(own_head: RayHead, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    caller = program("ray", "block", str(path), RAY_ADDRESS=own_head.address)
    wait_until(lambda: len(begun(path)) >= 2)
    for pid in own_head.processes():
        with contextlib.suppress(ProcessLookupError):  # some die with others
            os.kill(pid, signal.SIGKILL)
    _, said = caller.communicate(timeout=60)
    assert LinkLostError.__name__ in said


LOST = """
import os, signal, sys, time, entangle
from entangle.tests.engines import graph_bodies as bodies

def lose():
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            said = open(f"/proc/{name}/cmdline", "rb").read()
        except OSError:
            continue
        if f"={sys.argv[1]}\\0".encode() in said and b"=specific-server" in said:
            os.kill(int(name), signal.SIGKILL)
            return
    raise SystemExit("nothing serves this client")

def twice():
    print(bodies.square(2)())
    future = bodies.noted(sys.argv[2], 1, 30.0)(proc=True)
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    lose()
    try:
        future.result()
    except entangle.errors.LinkLostError as error:
        print("lost")
    print(bodies.square(3)())

if "ENTANGLE_ENGINE" in os.environ:
    twice()
else:
    with entangle.engine(sys.argv[3]):
        twice()
        with entangle.engine(sys.argv[3]):
            print(bodies.square(4)())
"""


@pytest.mark.parametrize("way", ["block", "program"])
def test_runs_go_on_when_the_connection_was_lost(way: str, own_head: RayHead, tmp_path: Path) -> None:
    """The head's server process for a client may die, for example when memory is short."""
    settings = {"ENTANGLE_ENGINE": own_head.client} if way == "program" else {}
    # Seconds for which Ray tries to reconnect; 30 by default.
    settings["RAY_CLIENT_RECONNECT_GRACE_PERIOD"] = "3"
    done = subprocess.run(
        [sys.executable, "-c", LOST, own_head.address, str(tmp_path / "notes"), own_head.client],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", **settings},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.stdout.split() == ["4", "lost", "9", *(["16"] if way == "block" else [])], done.stderr


def test_a_killed_caller_leaves_nothing_under_way(ray_head: RayHead, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    caller = program("ray", "block", str(path), RAY_ADDRESS=ray_head.address)
    wait_until(lambda: len(begun(path)) >= 2)
    caller.kill()
    caller.communicate()
    wait_until(lambda: _still(path))
    assert len(begun(path)) < 200


def _still(path: Path) -> bool:
    before = len(begun(path))
    time.sleep(1)
    return len(begun(path)) == before


def test_ctrl_c_ends_the_run(ray_head: RayHead, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    caller = program(ray_head.client, "block", str(path))
    wait_until(lambda: len(begun(path)) >= 2)
    caller.send_signal(signal.SIGINT)
    _, said = caller.communicate(timeout=30)
    assert "KeyboardInterrupt" in said
    wait_until(lambda: _still(path))
    assert len(begun(path)) < 200


def test_a_whole_program_in_a_running_head(ray_head: RayHead) -> None:
    caller = program("", "program", ENTANGLE_ENGINE="ray", RAY_ADDRESS=ray_head.address)
    said, problems = caller.communicate(timeout=60)
    value, pid = said.split()[-2:]
    assert value == "285", problems
    assert int(pid) != caller.pid


def test_a_module_that_is_missing_there(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_in_caller.py").write_text("from entangle.process import process\n@process\ndef one():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_in_caller  # type: ignore[import-not-found, unused-ignore]

    with engine, pytest.raises(MissingModuleError, match=r"task 'one' needs the module 'only_in_caller'"):
        only_in_caller.one()()


OTHER_VERSIONS = """
import os, sys, ray, entangle
from entangle.process import process
for folder in sys.argv[1:]:
    ray.init(os.environ["RAY_ADDRESS"], runtime_env={"env_vars": {"PYTHONPATH": folder}}, log_to_driver=False)
    try:
        with entangle.engine("ray"):
            print("connected")
    except entangle.errors.UnfitPythonError as error:
        print(error)
    ray.shutdown()
"""


def test_a_worker_with_another_version_or_none(ray_head: RayHead, tmp_path: Path) -> None:
    for name, text in (("old", '__version__ = "0.0.7"\n'), ("none", 'raise ImportError("there is none")\n')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "entangle.py").write_text(text)
    (tmp_path / "caller").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", OTHER_VERSIONS, str(tmp_path / "old"), str(tmp_path / "none")],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ray_head.address},
        cwd=tmp_path / "caller",  # workers first import from the caller's directory
        capture_output=True,
        text=True,
        timeout=150,
    )
    old, none = done.stdout.splitlines()[-2:]
    here = entangle.__version__
    assert f"has entangle 0.0.7 ({sys.executable}), and here it is entangle {here}; install one version" in old, done.stderr
    assert f"has no entangle ({sys.executable}), and here it is entangle {here}; install one version" in none, done.stderr


def test_one_cluster_at_a_time(engine: Any) -> None:
    with engine, pytest.raises(OptionError, match="one cluster at a time"), entangle.engine("ray://127.0.0.2:9"):
        pass
