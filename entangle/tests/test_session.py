"""Sessions: runs that use the same warm workers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from entangle import session
from entangle._warm.session import Session
from entangle.errors import OptionError
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
