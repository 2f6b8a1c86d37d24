"""Sessions: runs share warm workers."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from entangle import records, session
from entangle._warm.session import Session
from entangle.errors import EntangleError, OptionError
from entangle.process import process


@process
def pid_of_worker() -> int:
    return os.getpid()


@process
def add(a: int, b: int) -> int:
    return a + b


@process
def fails() -> None:
    raise ValueError("on purpose")


@process
def ends(signal: int) -> None:
    os.kill(os.getpid(), signal)
    time.sleep(60)


@pytest.fixture
def opened() -> Iterator[Session]:
    with session(workers=1) as found:
        yield found


def test_runs_use_the_same_worker(opened: Session) -> None:
    assert {pid_of_worker()() for _ in range(20)} == set(opened.pids)


def test_a_run_outside_has_a_worker_of_its_own() -> None:
    with session(workers=1):
        warm = pid_of_worker()()
    assert pid_of_worker()() != warm


def test_a_session_ends_its_workers() -> None:
    with session():
        warm = pid_of_worker()()
    with pytest.raises(ProcessLookupError):
        os.kill(warm, 0)


def test_a_graph_runs_in_a_session() -> None:
    with session():
        row = [add(n, n) for n in range(64)]
        while len(row) > 1:
            row = [add(one, other) for one, other in zip(row[::2], row[1::2], strict=True)]
        assert row[0]() == 64 * 63


def test_a_worker_outlives_the_error_of_a_body(opened: Session) -> None:
    before = pid_of_worker()()
    with pytest.raises(ValueError, match="on purpose"):
        fails()()
    assert pid_of_worker()() == before


def test_a_worker_that_is_killed_is_replaced(opened: Session) -> None:
    before = pid_of_worker()()
    with pytest.raises(Exception, match="SIGKILL"):
        ends(9)()
    assert pid_of_worker()() != before


def test_a_session_within_a_session_is_that_one(opened: Session) -> None:
    before = pid_of_worker()()
    with session() as inner:
        assert inner is opened
    assert pid_of_worker()() == before
    with pytest.raises(OptionError, match="can state nothing"), session(workers=2):
        pass


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"workers": 1.5}, {"idle": 0}, {"idle": "long"}, {"max_memory": "much"}, {"max_memory": -1}]
)
def test_options_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        session(**wrong)  # type: ignore[arg-type]


def test_a_frame_serves_again_after_the_death_of_a_worker(opened: Session) -> None:
    pid_of_worker()()
    for _ in range(3):
        with pytest.raises(Exception, match="SIGKILL"):
            ends(9)()
        pid_of_worker()()
    assert len(opened._frames) <= 2


@process
def joined(*parts: str, between: str = "") -> str:
    return between.join(parts)


@process
def lowers_a_limit() -> None:
    """Makes its worker retire."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Unwanted:
    """Cannot be unpickled in a worker."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted

    def __reduce__(self) -> tuple[object, ...]:
        return _made_here, (os.getpid(), self.wanted)


def _made_here(pid: int, wanted: bool) -> Unwanted:
    if not wanted and pid != os.getpid():
        raise ValueError("not here")
    return Unwanted(wanted)


@process
def is_wanted(this: Unwanted, that: Unwanted) -> bool:
    return this.wanted and that.wanted


def test_calls_of_one_task_have_their_own_arguments(opened: Session) -> None:
    for n in range(5):
        assert joined(str(n), "b")() == f"{n}b"
        assert joined("a", between=str(n))() == "a"
        assert joined("a", "b", between=str(n))() == f"a{n}b"
        assert joined(*map(str, range(n)))() == "".join(map(str, range(n)))
        assert add(n, n)() == 2 * n


def test_an_argument_that_cannot_be_unpickled_is_named(opened: Session) -> None:
    good, bad = Unwanted(True), Unwanted(False)
    assert is_wanted(good, good)()
    for _ in range(2):
        with pytest.raises(EntangleError, match=r"argument 2 of is_wanted\(.*\) cannot be unpickled in a worker"):
            is_wanted(good, bad)()
        assert is_wanted(good, good)()


def test_a_module_that_a_body_has_loaded_anew_is_used(opened: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loaded_twice.py").write_text(
        "import importlib, sys, time\n"
        "from entangle.process import process\n"
        "@process\n"
        "def imported(at=time.monotonic_ns()):\n"
        "    return at\n"
        "@process\n"
        "def load():\n"
        "    importlib.reload(sys.modules[__name__])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import loaded_twice  # type: ignore[import-not-found]

    first = loaded_twice.imported()()
    assert loaded_twice.imported()() == first
    loaded_twice.load()()
    assert loaded_twice.imported()() > first


def test_a_run_that_comes_while_its_worker_retires_has_another(opened: Session) -> None:
    pids = set()
    for n in range(4):
        pids.add(pid_of_worker()())
        lowers_a_limit()()
        assert add(n, 1)() == n + 1
    assert len(pids) == 4


def test_short_runs_are_recorded_when_they_are_over(opened: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    for n in range(3):
        add(n, b=n + 1)()
        (node,) = records.run().nodes
        taken = [(found.argument, found.value and found.value.text) for found in node.inputs]
        assert (node.value and node.value.text, taken) == (str(2 * n + 1), [("a", str(n)), ("b", str(n + 1))])
    monkeypatch.setenv("ENTANGLE_RECORD", "0")
    add(8, 8)()
    assert [node.value and node.value.text for node in records.run().nodes] == ["5"]


_HOME_GONE = """
import shutil
from entangle import session
from entangle._shared.home import home
from entangle.process import process

@process
def add(a, b):
    return a + b

with session(workers=1):
    add(1, 1)()
    shutil.rmtree(home().path)
    print(add(1, 2)(), add(add(1, 2), add(3, 4))())
"""


def test_a_home_that_is_gone_is_made_again() -> None:
    told = subprocess.run([sys.executable, "-c", _HOME_GONE], capture_output=True, text=True, timeout=60)
    assert (told.stdout, told.stderr) == ("3 10\n", "")
