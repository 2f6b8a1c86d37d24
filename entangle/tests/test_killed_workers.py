"""Workers that are killed: the death is noticed and named, and survived if `retry` allows it.

The heaviest of these tests are repeated many times in `drill/`.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from entangle.process import ProcessRetryException, ProcessTerminatedException, ProcessTimeoutException, process

from . import bodies
from .evidence import note, notes, text_of
from .killing import Killer, graph_with_a_victim, kill_and_compare, kill_at_any_moment, victims

one = process(bodies.one)
total = process(bodies.total)


@pytest.fixture
def killer() -> Iterator[Killer]:
    """A process that kills workers of this one. A thread would change how workers are started."""
    with Killer() as ready:
        yield ready


def test_a_worker_killed_in_a_body_is_survived_with_retry(killer: Killer, tmp_path: Path) -> None:
    """A graph of 200 nodes, any of which may be the victim. The worker that runs it is killed."""
    for number in range(10):
        kill_and_compare(killer, tmp_path / str(number), seed=number)


def test_a_worker_killed_in_a_body_is_told_without_retry(killer: Killer, tmp_path: Path) -> None:
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        call, _ = graph_with_a_victim(folder, seed=number, retry=0)
        killer.kill_when_noted(folder / "victim")
        with pytest.raises(ProcessTerminatedException) as caught:
            call()
        assert killer.killed() == victims(folder)
        told = text_of(caught.value)
        assert "SIGKILL" in told
        assert "victim" in told
        assert len(victims(folder)) == 1


def test_a_worker_killed_at_any_moment(killer: Killer) -> None:
    """Also between two bodies, while it takes a node, and while it publishes a value."""
    kill_at_any_moment(killer, range(15), retry=3)


def test_a_worker_killed_at_any_moment_without_retry(killer: Killer) -> None:
    """The right value if it ran no body just then, or the right error; never anything else, and
    never a hang."""
    kill_at_any_moment(killer, range(1000, 1015), retry=0)


def test_all_workers_killed_at_once(tmp_path: Path, start: str) -> None:
    """Four bodies wait for each other, each in its own process, and all four are killed. At the
    second attempt they are not."""
    met = str(tmp_path / "met")

    @process(retry=3)
    def fall(met: str, mine: str) -> int:
        note(mine, os.getpid())
        if len(notes(mine)) == 1:
            bodies.meet(met, 4)
            os.kill(os.getpid(), signal.SIGKILL)
        return 1

    assert total(*(fall(met, str(tmp_path / f"{n}")) for n in range(4)))() == 4
    assert [len(notes(tmp_path / f"{n}")) for n in range(4)] == [2] * 4


def test_a_body_that_dies_on_every_attempt(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with pytest.raises(ProcessRetryException) as caught:
        process(retry=2)(bodies.die_until)(log, 100)()
    assert len(notes(log)) == 3
    assert isinstance(caught.value.__cause__, ProcessTerminatedException)


def test_a_stopped_worker_is_killed_at_its_deadline(tmp_path: Path, start: str) -> None:
    """SIGSTOP does not end a process, so only the deadline ends it."""

    @process(timeout=1)
    def stop() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    with pytest.raises(ProcessTimeoutException):
        stop()()
