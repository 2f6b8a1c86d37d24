"""Agents in other Pythons, on hosts and in containers: they stay for a session, and end with it."""

# Decorators are passed as values here, and are untyped.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entangle import records, session
from entangle._remote.caller import channel
from entangle.docker import docker
from entangle.errors import LinkLostError, ProcessTerminatedException
from entangle.interpreter import interpreter
from entangle.process import process
from entangle.ssh import ssh

from . import far_bodies
from .evidence import alive, pids_in, wait_until
from .services import given
from .services.hosts import Hosts
from .ways import installed


def stays_with_the_session(door: Callable[[Any], Any], ended: Callable[[int], bool]) -> None:
    agent, worker = door(far_bodies.ids), door(process(far_bodies.ids))
    with session(workers=1):
        host, pid, _ = agent()()
        assert {agent()() for _ in range(3)} == {agent()()}
        far_worker = worker()()
        assert far_worker[0] == host
        assert {worker()() for _ in range(3)} == {far_worker}
        assert door(process(far_bodies.changes))()() is None
        assert worker()() == far_worker
        assert door(process(far_bodies.state))()() == door(far_bodies.state)()()
        before = door(far_bodies.state)()()
        door(far_bodies.changes)()()
        assert door(far_bodies.state)()() == before
        nested = process(far_bodies.calls)(agent)
        others = {nested() for _ in range(3)}
        assert len(others) == 1
        assert others != {agent()()}
    wait_until(lambda: ended(pid), 10)
    assert agent()() not in others


def test_another_python(tmp_path: Path) -> None:
    stays_with_the_session(interpreter, lambda pid: not alive(pid))


@pytest.fixture(scope="session")
def hosts() -> Hosts:
    return given.shared_hosts()


def test_a_host(hosts: Hosts) -> None:
    before = hosts["carol"].handshakes()
    stays_with_the_session(ssh(**hosts.options("carol")), lambda pid: not alive(pid))
    assert hosts["carol"].handshakes() <= before + 2  # one login in the session, one after it


def test_a_container() -> None:
    installed("docker")
    image = given.image()
    before = set(given.containers())
    stays_with_the_session(docker(image=image), lambda pid: set(given.containers()) <= before)


def test_an_agent_from_before_the_session_outlives_it() -> None:
    pid = interpreter(os.getpid)
    before = pid()()
    with session():
        within = pid()()
        assert within != before
    assert pid()() == before
    wait_until(lambda: not alive(within))


def test_an_agent_with_nothing_to_do_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MARGIN", 0.1)
    pid = interpreter(os.getpid)
    with session(idle=0.1):
        first = pid()()
        wait_until(lambda: not alive(first))
        assert pid()() != first


@pytest.mark.drill
def test_calls_at_the_moment_of_the_idle_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MARGIN", 3.0)
    add = interpreter(far_bodies.add)
    with session(idle=0.05):
        for turn in range(8):
            assert add(turn, 1)() == turn + 1
            time.sleep(0.04 + 0.004 * turn)


def test_the_death_of_an_agent_is_named_and_mended(tmp_path: Path) -> None:
    pid, log = interpreter(os.getpid), str(tmp_path / "log")
    with session(), ThreadPoolExecutor(1) as threads:
        first = pid()()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not alive(first))
        second = pid()()
        assert second != first
        slow = threads.submit(interpreter(far_bodies.slow)(log).__call__)
        wait_until(lambda: pids_in(log) == [second])
        os.kill(second, signal.SIGKILL)
        with pytest.raises(LinkLostError):
            slow.result(20)
        assert pid()() != second


def test_a_session_that_ends_during_a_call_of_another_thread(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    slow = interpreter(process(far_bodies.slow))
    with ThreadPoolExecutor(1) as threads:
        with session():
            under_way = threads.submit(slow(log, 0.5).__call__)
            wait_until(lambda: bool(pids_in(log)))
        assert under_way.result(20) == 1


def test_runs_in_other_places_are_recorded_in_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    add = interpreter(process(far_bodies.add))
    with session():
        for turn in range(3):
            assert add(turn, 1)() == turn + 1
        with pytest.raises(ProcessTerminatedException):
            interpreter(process(os._exit))(3)()
        # Brings the reason, which was known too late for the earlier answer.
        assert add(4, 4)() == 8
    assert [[child.value and child.value.text for child in run.children] for run in records.runs()[2:]] == [["3"], ["2"], ["1"]]
    (died,) = records.runs()[1].children
    assert [ended.reason for ended in died.retirements] == ["it ended with exit status 3"]
