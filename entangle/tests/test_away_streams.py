"""Calls that run elsewhere over a stream: they occupy no thread here, and a fault of one place does
not affect another."""

# Decorators are passed around as values here, and have no types then.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle.errors import LinkLostError, ProcessRetryException, RunCancelledError, RunTimeoutException, UnfitPythonError, UnpicklableError
from entangle.interpreter import interpreter
from entangle.limit import limit
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.task import task
from entangle.thread import thread

from . import bodies
from .evidence import alive, most_at_once, notes, notes_of, pids_in, span, wait_until, when
from .far_bodies import held, size
from .places import far_pythons
from .services import given
from .services.hosts import Hosts
from .ways import by_ssh, needed

#: More than the calling thread, the away worker, the watcher and two threads of tests.
FEW_THREADS = 8


@task
def together(*values: Any) -> tuple[Any, ...]:
    return values


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """A file that lets bodies continue once it exists."""
    return tmp_path / "go"


def another() -> Any:
    """A place other than that of plain `interpreter`: a Python of another version."""
    return interpreter(python=far_pythons(same=False))


@pytest.fixture(scope="session")
def hosts() -> Hosts:
    """The three hosts, shared by all tests that need one."""
    return given.shared_hosts()


def test_three_hundred_calls_under_way_in_another_python_cost_no_thread(log: str, go: Path) -> None:
    _three_hundred(interpreter(held), log, go)


def test_three_hundred_calls_under_way_by_ssh_cost_no_thread(hosts: Hosts, log: str, go: Path) -> None:
    _three_hundred(by_ssh(held), log, go)


def _three_hundred(there: Any, log: str, go: Path) -> None:
    threads: list[int] = []

    def look() -> None:
        threads.append(threading.active_count())
        go.touch()

    with when(lambda: len(notes(log)) == 300, look):
        assert there.starmap([(log, str(go), number) for number in range(300)])() == list(range(300))
    assert threads[0] <= FEW_THREADS
    assert threading.active_count() == 1


def test_values_that_are_false_come_back() -> None:
    same = interpreter(bodies.same)
    values: list[Any] = [None, 0, "", [], False, b"", (), {}]
    assert together(*[same(same(value)) for value in values])() == tuple(values)


def test_the_value_of_one_place_goes_to_the_next(log: str) -> None:
    here, there = interpreter(bodies.inc), another()(bodies.inc)
    assert together(*[there(here(there(here(number)))) for number in range(8)])() == tuple(range(4, 12))


def test_large_arrays_come_and_go() -> None:
    numpy = needed("numpy")
    same = interpreter(bodies.same)
    arrays = [numpy.full(500_000, number) for number in range(8)]
    found = same.map(arrays)()
    assert [int(array.sum()) for array in found] == [number * 500_000 for number in range(8)]


def test_arguments_that_have_left_make_room_for_those_of_other_calls(log: str, go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entangle._worker.away_worker.HELD", 1 << 20)
    there = interpreter(held)
    with when(lambda: len(notes(log)) == 12, go.touch):
        found = together(*[there(log, str(go), bytes([number]) * (1 << 20)) for number in range(12)])()
    assert [value[:1] for value in found] == [bytes([number]) for number in range(12)]


def test_what_cannot_travel_is_named() -> None:
    same = interpreter(bodies.same)
    with pytest.raises(UnpicklableError, match="argument 1 of task 'same'"):
        same.map([1, threading.Lock(), 3])()
    assert same.map([1, 2])() == [1, 2]


def test_prints_have_the_path_of_their_call(capfd: pytest.CaptureFixture[str]) -> None:
    @interpreter
    def says(word: str) -> None:
        print("it says", word)

    together(says("one"), says("two"))()
    lines = sorted(capfd.readouterr().out.splitlines())
    assert [line.split("] ")[1] for line in lines] == ["it says one", "it says two"]
    assert all("together → says" in line for line in lines)


@pytest.mark.parametrize(("below", "count"), [(process(retry=2), 4), (thread(retry=2), 50)], ids=["process", "thread"])
def test_an_agent_that_is_killed_is_replaced_for_calls_with_retry(below: Any, count: int, log: str, go: Path) -> None:
    there = interpreter(below(held))
    agent = interpreter(os.getpid)()()

    def kill() -> None:
        os.kill(agent, signal.SIGKILL)
        go.touch()

    with when(lambda: len(notes(log)) == count, kill):
        assert there.starmap([(log, str(go), number) for number in range(count)])() == list(range(count))
    assert interpreter(os.getpid)()() != agent
    assert threading.active_count() == 1


def test_an_agent_that_is_killed_fails_each_call_with_an_error_of_its_own(log: str, go: Path) -> None:
    there = interpreter(held)
    agent = interpreter(os.getpid)()()
    with when(lambda: len(notes(log)) == 50, lambda: os.kill(agent, signal.SIGKILL)):
        found = entangle.gather(*[there(log, str(go), number) for number in range(50)], return_exceptions=True)()
    assert len({id(error) for error in found}) == 50
    assert all(type(error) is LinkLostError for error in found)
    assert "ended during the call" in str(found[0])
    assert len(notes(log)) == 50  # none has begun twice


def test_connections_that_are_lost_again_and_again_use_attempts_up() -> None:
    @interpreter
    @thread(retry=2)
    def dies(number: int) -> None:
        os._exit(3)

    with pytest.raises(ProcessRetryException, match=r"failed 3 times; the last time with LinkLostError: .*exit status 3") as caught:
        dies.map(range(3))()
    assert notes_of(caught.value).count("attempt ") >= 2


def test_an_attempt_of_the_engine_begins_on_a_new_connection(log: str) -> None:
    @thread(retry=1)
    @interpreter
    def dies_once(log: str, number: int) -> int:
        if not os.path.exists(log):
            Path(log).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert together(dies_once(log, 1), dies_once(log, 2))() == (1, 2)


def test_a_place_that_is_not_there_fails_each_call(tmp_path: Path) -> None:
    from entangle._remote.caller.far import Far
    from entangle._remote.transport.interpreter import InterpreterTransport
    from entangle.task import decorate

    nowhere: Any = decorate("interpreter", bodies.num, Far(InterpreterTransport(str(tmp_path / "python"))))
    found = entangle.gather(nowhere(1), nowhere(2), return_exceptions=True)()
    assert [type(error) for error in found] == [UnfitPythonError] * 2
    assert found[0] is not found[1]
    assert threading.active_count() == 1


def test_a_place_that_is_stopped_in_a_large_argument_holds_up_no_other(log: str) -> None:
    """One agent stops reading in the middle of a large argument. Meanwhile another agent finishes
    all its calls."""
    stopped, other = interpreter(size), another()(bodies.inc)
    agent = interpreter(os.getpid)()()
    other(1)()
    done: list[Any] = []

    @thread
    def note_that(values: list[int]) -> list[int]:
        done.append(values)
        return values

    os.kill(agent, signal.SIGSTOP)
    try:
        with when(lambda: bool(done), lambda: os.kill(agent, signal.SIGCONT)):
            chain = [other(other(number)) for number in range(50)]
            found = together(note_that(chain), *[stopped(bytes(30 << 20)) for _ in range(6)], stopped(b""))()
    finally:
        os.kill(agent, signal.SIGCONT)
    assert found == (list(range(2, 52)), *[30 << 20] * 6, 0)


def test_a_run_that_is_cancelled_takes_back_a_thousand_calls(log: str, go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entangle._remote.caller.far_place.MOST_PROCESSES", 8)  # the others wait here
    there = interpreter(scheduler(cpus=2)(process(held)))
    call = there.starmap([(log, str(go), number) for number in range(1000)])
    future = call(proc=True)
    wait_until(lambda: notes(log), 60)
    future.cancel()
    with pytest.raises(RunCancelledError):
        future.result(20)
    wait_until(lambda: not any(alive(pid) for pid in pids_in(log)))
    begun = len(notes(log))
    assert begun < 1000
    go.touch()
    assert there.starmap([(log, str(go), number) for number in range(2)])() == [0, 1]
    assert len(notes(log)) == begun + 2  # nothing of the first run continues
    wait_until(lambda: threading.active_count() == 1)


def test_a_run_past_its_time_cancels_what_is_away(log: str, go: Path) -> None:
    there = interpreter(process(held))
    interpreter(os.getpid)()()
    with pytest.raises(RunTimeoutException):
        together(*[there(log, str(go), number) for number in range(4)]).run(timeout=1.5)
    wait_until(lambda: not any(alive(pid) for pid in pids_in(log)))
    assert threading.active_count() == 1


def test_the_first_failure_ends_the_run_and_cancels_the_others(log: str, go: Path) -> None:
    @interpreter
    @process
    def fails(log: str) -> None:
        while not os.path.exists(log):
            time.sleep(0.01)
        raise LookupError("that one")

    there = interpreter(process(held))
    with pytest.raises(LookupError, match="that one"):
        together(there(log, str(go), 1), there(log, str(go), 2), fails(log))()
    wait_until(lambda: not any(alive(pid) for pid in pids_in(log)))


def test_an_interrupt_ends_the_run_and_leaves_the_agent(log: str, go: Path) -> None:
    there = interpreter(process(held))
    agent = interpreter(os.getpid)()()
    with when(lambda: len(notes(log)) >= 2, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        together(*[there(log, str(go), number) for number in range(10)])()
    wait_until(lambda: not any(alive(pid) for pid in pids_in(log)))
    assert interpreter(os.getpid)()() == agent
    assert threading.active_count() == 1


def test_a_child_that_is_forked_meanwhile_has_channels_of_its_own(log: str, go: Path, tmp_path: Path) -> None:
    there, where = interpreter(held), tmp_path / "child"
    agent = interpreter(os.getpid)()()
    found: list[Any] = []
    running = threading.Thread(target=lambda: found.append(there.starmap([(log, str(go), number) for number in range(20)])()))
    running.start()
    wait_until(lambda: len(notes(log)) == 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the process has threads is intended here
        child = os.fork()
    if not child:
        try:
            numbers = interpreter(bodies.inc).map(range(30))()
            where.write_text(f"{interpreter(os.getpid)()()} {sum(numbers)}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    go.touch()
    running.join(20)
    assert found == [list(range(20))]
    other, total = where.read_text().split()
    assert int(other) != agent
    assert int(total) == 30 * 31 // 2
    wait_until(lambda: not alive(int(other)))


def test_two_runs_at_once_share_the_watcher(log: str, go: Path) -> None:
    there = interpreter(held)
    interpreter(os.getpid)()()
    found: list[Any] = []
    threads: list[threading.Thread] = []

    def run(first: int) -> None:
        found.append(there.starmap([(log, str(go), first + number) for number in range(40)])())

    def look() -> None:
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("entangle-streams") == 1, names
        go.touch()

    with when(lambda: len(notes(log)) == 80, look):
        threads = [threading.Thread(target=run, args=(first,)) for first in (0, 100)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(30)
    assert sorted(found) == [list(range(40)), list(range(100, 140))]
    assert threading.active_count() == 1


def test_a_thread_that_waits_and_calls_that_are_away_share_an_agent() -> None:
    """A thread waits on a channel that is at the same time the channel of another run."""
    same = interpreter(bodies.same)
    over = threading.Event()
    wrong: list[Any] = []

    def calls() -> None:
        while not over.is_set():
            if same(b"x" * 300_000)() != b"x" * 300_000:
                wrong.append(1)

    waits = threading.Thread(target=calls)
    waits.start()
    for _ in range(5):
        assert same.map(range(200))() == list(range(200))
    over.set()
    waits.join(20)
    assert not waits.is_alive()
    assert not wrong


def test_a_limit_holds_for_calls_that_are_away(log: str) -> None:
    @limit("few", at_once=2)
    @interpreter
    def few(log: str) -> None:
        with span(log):
            time.sleep(0.02)

    together(*[few(log) for _ in range(10)])()
    assert most_at_once(log) <= 2


def test_a_worker_process_has_calls_away_too(log: str, go: Path) -> None:
    @process
    def caller(first: int) -> Any:
        there = interpreter(bodies.inc)
        values = there.map(range(first, first + 50))()
        return values, threading.active_count()

    for number, (values, threads) in enumerate(together(caller(0), caller(100))()):
        assert values == list(range(number * 100 + 1, number * 100 + 51))
        assert threads == 1
