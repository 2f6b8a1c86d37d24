"""Deadlines: `timeout` limits how long a body runs, `wait` how long its arguments take; what is
late is killed.

A body that is to be late is late by half a minute. A body that is not to be late has many
seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import entangle
from entangle._shared.table import BEGUN, RUNS, SINCE
from entangle._worker import holding
from entangle._worker import worker as worker_loop
from entangle._worker.worker import here
from entangle.flow import THREAD
from entangle.process import ProcessTimeoutException, process
from entangle.scheduler import scheduler
from entangle.thread import ThreadTimeoutException, thread
from entangle.workflow import workflow

from . import bodies
from .callers import gone
from .evidence import alive, note, notes, pids_in, text_of, wait_until

one = process(bodies.one)
add = process(bodies.add)
gather = process(bodies.gather)


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


# --- processes ------------------------------------------------------------------------------------


def test_a_body_that_is_late(log: str, start: str) -> None:
    with pytest.raises(ProcessTimeoutException) as caught:
        add(1, process(timeout=0.6)(bodies.linger)(log))()
    assert isinstance(caught.value, TimeoutError)
    told = text_of(caught.value)
    assert "linger" in told
    assert "0.6" in told
    assert "add(1, linger(…)) → linger" in told
    gone(pids_in(log))


def test_a_body_that_is_not_late() -> None:
    assert process(timeout=30)(bodies.add)(1, 2)() == 3


def test_a_body_has_begun_once_its_time_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that looked between the two writes would compute the body's age from a time of
    0."""
    seen = []

    def clock() -> int:
        worker = here.worker
        if worker is not None and worker.lane == THREAD:
            slots, base = worker.site.table.slots, worker.base
            seen.append((slots[base + BEGUN] == RUNS, slots[base + SINCE] > 0))
        return time.monotonic_ns()

    for module in (holding, worker_loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), "monotonic_ns": clock}))
    body = thread(timeout=30, retry=1)(bodies.add)
    assert entangle.gather(body(1, 2), thread(bodies.add)(3, 4), body(5, 6))() == [3, 7, 11]
    assert (False, False) in seen, "before a body"
    assert (True, True) in seen, "after one"
    assert (True, False) not in seen
    assert process(timeout=30.5)(bodies.add)(process(timeout=30)(bodies.one)(), 2)() == 3


def test_a_body_that_computes_for_ever(log: str) -> None:
    @process(timeout=0.6)
    def compute(path: str) -> None:
        note(path, os.getpid())
        while True:
            pass

    with pytest.raises(ProcessTimeoutException):
        compute(log)()
    gone(pids_in(log))


def test_only_the_body_is_bounded_not_its_arguments(log: str) -> None:
    """The argument takes longer than the timeout of the task that takes it."""
    slow = process(bodies.spanned)(log, 1.5)
    assert process(timeout=1)(bodies.pid_and)(slow)() > 0


@pytest.mark.parametrize("own_session", [False, True])
def test_everything_that_the_body_started_is_killed(log: str, own_session: bool, start: str) -> None:
    with pytest.raises(ProcessTimeoutException):
        process(timeout=1)(bodies.linger_with_child)(log, own_session)()
    assert len(set(pids_in(log))) == 2
    gone(pids_in(log))


def test_a_whole_family_is_killed(log: str) -> None:
    @process(timeout=1)
    def family(path: str) -> None:
        note(path, os.getpid())
        script = f"echo $$ >> {path}; (echo $BASHPID >> {path}; sleep 100 & echo $! >> {path}; sleep 100)"
        subprocess.run(["bash", "-c", script])

    with pytest.raises(ProcessTimeoutException):
        family(log)()
    assert len(set(pids_in(log))) >= 4
    gone(pids_in(log))


def test_a_program_that_has_left_its_parents_is_killed_too(log: str, start: str) -> None:
    @process(timeout=1)
    def daemon(path: str) -> None:
        subprocess.run(["bash", "-c", f"setsid bash -c 'echo $$ >> {path}; exec sleep 100' & disown"])
        time.sleep(30)

    with pytest.raises(ProcessTimeoutException):
        daemon(log)()
    pids = pids_in(log)
    try:
        gone(pids)
    finally:
        for pid in pids:
            if alive(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_body_that_does_not_listen_is_killed_all_the_same(log: str, start: str) -> None:
    with pytest.raises(ProcessTimeoutException):
        process(timeout=0.6)(bodies.linger_deaf)(log)()
    gone(pids_in(log))


def test_a_body_may_tidy_up_first(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM is sent before SIGKILL."""
    monkeypatch.setattr("entangle._run.deadlines.GRACE", 20.0)  # a busy machine may be slow

    @process(timeout=1)
    def tidy(path: str) -> None:
        def handler(*_: object) -> None:
            note(path, "tidied")
            os._exit(0)

        signal.signal(signal.SIGTERM, handler)
        note(path, "ready")
        time.sleep(30)

    with pytest.raises(ProcessTimeoutException):
        tidy(log)()
    assert notes(log) == [["ready"], ["tidied"]]


def test_a_body_that_swallows_every_exception(log: str) -> None:
    @process(timeout=0.6)
    def swallow(path: str) -> None:
        note(path, os.getpid())
        while True:
            try:
                time.sleep(30)
            except BaseException:
                pass

    with pytest.raises(ProcessTimeoutException):
        swallow(log)()
    gone(pids_in(log))


def test_a_deadline_ends_the_whole_run(log: str, tmp_path: Path) -> None:
    other, after = str(tmp_path / "other"), str(tmp_path / "after")
    noted = process(bodies.noted)
    with pytest.raises(ProcessTimeoutException):
        gather(process(timeout=0.6)(bodies.linger)(log), noted(after, process(bodies.linger)(other)))()
    assert notes(after) == []
    gone(pids_in(log) + pids_in(other))


def test_each_call_has_its_own_time(log: str) -> None:
    """Five bodies of half a second, one after the other: together they take longer than one may."""

    @process(timeout=2)
    def step(path: str, _: Any = None) -> int:
        time.sleep(0.5)
        note(path, os.getpid())
        return 1

    call = step(log)
    for _ in range(4):
        call = step(log, call)
    assert call() == 1
    assert len(notes(log)) == 5


def test_a_deadline_on_a_body_that_waits_for_a_nested_run(log: str, start: str) -> None:
    linger = process(bodies.linger_with_child)

    @process(timeout=1.5)
    def outer(path: str) -> Any:
        note(path, os.getpid())
        return gather(linger(path), linger(path, True))()

    with pytest.raises(ProcessTimeoutException, match="outer"):
        outer(log)()
    assert len(set(pids_in(log))) == 5
    gone(pids_in(log))


def test_a_deadline_inside_a_nested_run(log: str) -> None:
    late = process(timeout=0.6)(bodies.linger)

    @process
    def outer(path: str) -> str:
        try:
            late(path)()
        except ProcessTimeoutException as error:
            return f"caught {type(error).__name__}"
        return "not caught"

    assert outer(log)() == "caught ProcessTimeoutException"
    gone(pids_in(log))


def test_a_deadline_bounds_the_call_that_a_body_gives(log: str) -> None:
    """A task that decides at run time ends only when the call that it returned has ended."""
    linger = process(bodies.linger)

    @process(timeout=1)
    def decide(path: str) -> Any:
        return linger(path)

    with pytest.raises(ProcessTimeoutException, match="decide"):
        decide(log)()
    gone(pids_in(log))


def test_a_deadline_on_a_fresh_process_and_under_a_scheduler(log: str) -> None:
    with pytest.raises(ProcessTimeoutException):
        process(timeout=0.6, fresh=True)(bodies.linger)(log)()
    with pytest.raises(ProcessTimeoutException):
        scheduler(cpus=1)(process(timeout=0.6)(bodies.linger))(log)()
    gone(pids_in(log))
    # The cookie of the killed body is free again.
    assert scheduler(cpus=1)(process(timeout=30)(bodies.one))()() == 1


def test_waiting_for_a_cookie_is_not_running(tmp_path: Path) -> None:
    """Four bodies that run one after the other. None of them may run as long as all four take."""
    log = str(tmp_path / "log")
    spanned = scheduler(cpus=1)(process(timeout=2)(bodies.spanned))
    gather(*(spanned(log, 0.6) for _ in range(4)))()
    assert len(notes(log)) == 4


# --- wait -----------------------------------------------------------------------------------------


def test_arguments_that_are_late_are_named(log: str, start: str) -> None:
    values = process(wait=1)(bodies.gather)
    with pytest.raises(ProcessTimeoutException) as caught:
        values(one(), process(bodies.linger)(log))()
    assert "for its arguments, and linger('/" in str(caught.value)
    assert "one()" not in str(caught.value)
    assert "gather" in text_of(caught.value)
    gone(pids_in(log))


def test_of_many_arguments_that_are_late_some_are_named_as_they_were_called(log: str) -> None:
    values = process(wait=0.5)(bodies.gather)
    late = [process(bodies.linger)(log).named(f"shard {n}") for n in range(2)] + [process(bodies.pid_and)(process(bodies.linger)(log))]
    with pytest.raises(ProcessTimeoutException) as caught:
        values(one(), late, *[process(bodies.same)(late[0]) for _ in range(3)])()
    told = str(caught.value)
    assert "shard 0: linger('/" in told
    assert "pid_and(linger(…))" in told
    assert told.endswith("same(shard 0) and 2 more had not arrived")
    gone(pids_in(log))


def test_arguments_of_arguments_count_too(log: str) -> None:
    values = process(wait=1)(bodies.gather)
    with pytest.raises(ProcessTimeoutException, match="pid_and"):
        values(one(), process(bodies.pid_and)(process(bodies.linger)(log)))()
    gone(pids_in(log))


def test_arguments_that_arrive_in_time() -> None:
    assert process(wait=30)(bodies.add)(one(), one())() == 2
    assert process(wait=30)(bodies.one)()() == 1


def test_wait_does_not_bound_the_body(log: str) -> None:
    assert process(wait=1)(bodies.spanned)(log, 1.5, one())() > 0


def test_wait_and_timeout_together(log: str) -> None:
    both = process(wait=30, timeout=0.6)(bodies.linger)
    with pytest.raises(ProcessTimeoutException, match="linger"):
        both(log, process(bodies.num)(30))()
    gone(pids_in(log))


# --- threads --------------------------------------------------------------------------------------


def test_a_thread_that_is_late() -> None:
    """Its caller continues at the deadline. The thread cannot be killed, and its value is
    dropped."""
    release = threading.Event()
    finished: list[int] = []

    @thread(timeout=0.4)
    def late() -> int:
        release.wait(30)
        finished.append(1)
        return 1

    try:
        with pytest.raises(ThreadTimeoutException, match="late") as caught:
            gather(late(), one())()
        assert isinstance(caught.value, TimeoutError)
        assert finished == []
    finally:
        release.set()
    wait_until(lambda: finished)


def test_a_thread_that_is_not_late() -> None:
    assert thread(timeout=30)(bodies.add)(1, thread(timeout=30)(bodies.one)())() == 2


def test_a_thread_whose_arguments_are_late(log: str) -> None:
    with pytest.raises(ThreadTimeoutException, match="linger"):
        thread(wait=0.6)(bodies.gather)(one(), process(bodies.linger)(log))()
    gone(pids_in(log))


def test_a_late_thread_among_processes_ends_the_run(log: str) -> None:
    release = threading.Event()
    try:
        with pytest.raises(ThreadTimeoutException):
            gather(thread(timeout=0.6)(release.wait)(30), process(bodies.linger)(log))()
    finally:
        release.set()
    if pids_in(log):
        gone(pids_in(log))


def test_the_docstring_says_that_a_thread_cannot_be_killed() -> None:
    assert "cannot be killed" in (thread.__doc__ or "").lower().replace("\n", " ")


def test_deadlines_of_runs_side_by_side(log: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    late = process(timeout=0.6)(bodies.linger)(log)(proc=True)
    early = process(timeout=30)(bodies.spanned)(other, 1.0)(proc=True)
    with pytest.raises(ProcessTimeoutException):
        late.result(timeout=30)
    assert early.result(timeout=30) > 0


def test_the_documented_example(log: str) -> None:
    @process(timeout=3)
    def task() -> bool:
        return True

    @process(wait=20)
    def values(*args: Any) -> list[Any]:
        return list(args)

    @workflow
    def flow() -> Any:
        return values(task(), one())

    assert flow()() == [True, 1]
