"""The processes that a process has started are found in any session or group, and killed only if
their numbers still belong to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from entangle._run import descendants

from .evidence import wait_until

_TREE = """
import os, subprocess, threading, time
subprocess.Popen(["sleep", "60"])
subprocess.Popen(["sleep", "60"], start_new_session=True)
subprocess.Popen(["sh", "-c", "sleep 60 & wait"])
threading.Thread(target=lambda: (subprocess.Popen(["sleep", "60"]), time.sleep(60)), daemon=True).start()
time.sleep(60)
"""


@pytest.fixture
def tree() -> Iterator[psutil.Process]:
    """A process with five descendants, among them one in a session of its own, one that a thread
    has started, and one of a child."""
    with subprocess.Popen([sys.executable, "-c", _TREE]) as process:
        root = psutil.Process(process.pid)
        wait_until(lambda: len(root.children(recursive=True)) == 5, 20)
        family = root.children(recursive=True)
        yield root
        for one in [root, *family]:
            if one.is_running():
                one.kill()


@pytest.mark.parametrize("listed", [True, False])
def test_all_are_found(tree: psutil.Process, listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the kernel's lists of children, and without them."""
    if listed and not descendants.listed():
        pytest.skip("this kernel lists no children")
    monkeypatch.setattr(descendants, "listed", lambda: listed)
    expected = sorted(process.pid for process in tree.children(recursive=True))
    assert sorted(descendants.of([tree.pid])) == expected
    # A process that is passed in is not reported itself, and its descendants are reported once.
    assert sorted(descendants.of([tree.pid, expected[0]])) == expected[1:]
    assert len(descendants.of([tree.pid], most=2)) <= 5
    assert sorted(process.pid for process in descendants.started_by([tree.pid])) == expected


def test_many_children_are_found() -> None:
    """More than the kernel returns at a time."""
    script = "import os, time\nfor _ in range(900):\n    if not os.fork(): time.sleep(60)\nprint(flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = descendants.of([process.pid])
        os.killpg(process.pid, 9)
    assert len(set(found)) == len(found) == 900


@pytest.mark.parametrize("listed", [True, False])
def test_no_other_process_is_killed(tree: psutil.Process, listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with another start time is not the one that was found: its number was used
    again."""
    if listed and not descendants.listed():
        pytest.skip("this kernel lists no children")
    monkeypatch.setattr(descendants, "listed", lambda: listed)
    family = tree.children(recursive=True)
    found = descendants.started_by([tree.pid])
    descendants.kill([process._replace(began=process.began - 1) for process in found])
    assert all(process.status() != psutil.STATUS_ZOMBIE for process in family)
    descendants.kill(found)
    wait_until(lambda: not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family), 10)
    descendants.kill(found)  # they are gone


def test_nothing_is_known_of_no_process() -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    assert descendants.of([process.pid, 0, -1]) == []
    assert descendants.started_by([]) == []
