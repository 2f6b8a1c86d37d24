"""Retries: how often, after which pauses, on which errors, and what the error says when all
attempts failed."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from entangle.dataflow import dataflow
from entangle.errors import ProcessRetryException, ProcessTerminatedException, ProcessTimeoutException, ThreadTimeoutException
from entangle.process import process
from entangle.thread import thread

from . import bodies
from .evidence import note, notes, notes_of, text_of, wait_until

gather = process(bodies.gather)


def gaps(log: str) -> list[float]:
    """The seconds between successive attempts."""
    times = [float(line[0]) for line in notes(log)]
    return [after - before for before, after in itertools.pairwise(times)]


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


@pytest.mark.parametrize("decorator", [process, thread])
@pytest.mark.parametrize("needed", [1, 2, 4])
def test_as_many_attempts_as_it_takes(decorator: Any, needed: int, log: str) -> None:
    assert decorator(retry=3)(bodies.fail_until)(log, needed)() == "done"
    assert len(notes(log)) == needed


@pytest.mark.parametrize("decorator", [process, thread])
def test_used_up(decorator: Any, log: str) -> None:
    with pytest.raises(ProcessRetryException) as caught:
        gather(decorator(retry=2)(bodies.fail_until)(log, 99), 1)()
    assert len(notes(log)) == 3
    cause = caught.value.__cause__
    assert type(cause) is ValueError
    assert str(cause) == "attempt 3"
    told = notes_of(caught.value)
    assert "attempt 1" in told
    assert "attempt 2" in told
    assert "gather(fail_until(…), 1) → fail_until\n" in told
    assert "in fail_until" in text_of(caught.value)  # the last attempt's traceback


def test_the_error_that_retry_does_not_wait_for(log: str) -> None:
    with pytest.raises(ValueError, match="attempt 1"):
        process(retry=3, on=(KeyError, OSError))(bodies.fail_until)(log, 3)()
    assert len(notes(log)) == 1


@pytest.mark.parametrize("on", [ValueError, (ValueError,), (KeyError, ValueError), Exception])
def test_the_errors_that_retry_waits_for(on: Any, log: str) -> None:
    assert process(retry=3, on=on)(bodies.fail_until)(log, 3)() == "done"
    assert len(notes(log)) == 3


def test_one_kind_of_error_and_then_another(log: str) -> None:
    @process(retry=5, on=ValueError)
    def first_this_then_that(path: str) -> None:
        note(path, "x")
        if len(notes(path)) < 3:
            raise ValueError("this")
        raise KeyError("that")

    with pytest.raises(KeyError, match="that"):
        first_this_then_that(log)()
    assert len(notes(log)) == 3


def test_a_killed_process_counts_as_terminated(log: str, start: str) -> None:
    assert process(retry=3, on=ProcessTerminatedException)(bodies.die_until)(log, 3)() == "done"
    assert len(notes(log)) == 3
    with pytest.raises(ProcessTerminatedException):
        process(retry=3, on=ValueError)(bodies.die_until)(log + "2", 3)()
    assert len(notes(log + "2")) == 1


def test_an_exit_is_tried_again_as_well(log: str) -> None:
    @process(retry=2)
    def leave(path: str) -> str:
        note(path, "x")
        if len(notes(path)) < 3:
            raise SystemExit(1)
        return "stayed"

    assert leave(log)() == "stayed"


@pytest.mark.parametrize("decorator", [process, thread])
def test_an_exit_may_be_all_that_is_tried_again(decorator: Any, log: str) -> None:
    """Inside, it becomes another error; the author of `on` need not know that."""

    @decorator(retry=5, on=SystemExit)  # type: ignore[untyped-decorator, unused-ignore]
    def leave(path: str) -> str:
        note(path, "x")
        if len(notes(path)) < 3:
            raise SystemExit(1)
        raise ValueError("no exit")

    with pytest.raises(ValueError, match="no exit"):
        leave(log)()
    assert len(notes(log)) == 3
    with pytest.raises(ValueError, match="no exit"):
        dataflow(leave)()(log + "2")
    assert len(notes(log + "2")) == 3


def test_seconds_between_attempts(log: str) -> None:
    assert process(retry=3, sleep=0.1)(bodies.fail_until)(log, 3)() == "done"
    assert all(gap >= 0.1 for gap in gaps(log))


def test_backoff_makes_them_longer(log: str) -> None:
    assert process(retry=3, sleep=0.05, backoff=3)(bodies.fail_until)(log, 4)() == "done"
    first, second, third = gaps(log)
    assert first >= 0.05
    assert second >= 0.15
    assert third >= 0.45


def test_a_pause_that_grows_beyond_all_numbers() -> None:
    """Without a pause, a backoff factor of any size changes nothing."""
    with pytest.raises(ProcessRetryException):
        thread(retry=200, sleep=0, backoff=1000)(_in_vain)()()


def _in_vain() -> None:
    raise ValueError("always")


def test_jitter_adds_to_them(log: str) -> None:
    assert process(retry=3, sleep=0.05, jitter=0.05)(bodies.fail_until)(log, 3)() == "done"
    assert all(gap >= 0.05 for gap in gaps(log))


def test_nobody_waits_for_a_body_that_sleeps_between_attempts(log: str, tmp_path: Path) -> None:
    """The sleeper succeeds once the others have run. If it kept its worker while it sleeps, they
    never would."""
    others = str(tmp_path / "others")

    @process(retry=200, sleep=0.02)
    def sleeper(path: str) -> int:
        if len(notes(path)) < 20:
            raise ValueError("not yet")
        return len(notes(path))

    noted = process(bodies.noted)
    values, _ = gather(sleeper(others), *(noted(others) for _ in range(20)))()
    assert values[0] == 20


def test_the_arguments_are_not_made_again(log: str, tmp_path: Path) -> None:
    """Wherever the second attempt runs, and however the process of the first one ended."""
    made = str(tmp_path / "made")
    noted = process(bodies.noted)
    argument = noted(made, b"x" * 300_000)
    again = process(retry=3)(bodies.die_until)(log, 3, argument)
    assert again() == b"x" * 300_000
    assert len(notes(made)) == 1


def test_an_attempt_gets_its_arguments_as_they_were(log: str) -> None:
    """The second attempt does not see what the first one did to its list."""

    @process(retry=2)
    def spoil(path: str, values: list[int], more: list[int]) -> list[list[int]]:
        values.append(9)
        more.append(9)
        note(path, "x")
        if len(notes(path)) < 3:
            raise ValueError("again")
        return [values, more]

    assert spoil(log, [1], process(bodies.same)([2]))() == [[1, 9], [2, 9]]


def test_retry_and_timeout(log: str) -> None:
    @process(retry=2, timeout=1)
    def slow_at_first(path: str) -> str:
        note(path, os.getpid())
        if len(notes(path)) < 3:
            time.sleep(30)
        return "quick"

    assert slow_at_first(log)() == "quick"
    assert len(notes(log)) == 3

    with pytest.raises(ProcessRetryException) as caught:
        process(retry=1, timeout=1)(bodies.linger)(log + "2")()
    assert isinstance(caught.value.__cause__, ProcessTimeoutException)
    assert len(notes(log + "2")) == 2


def test_retry_of_a_thread_past_its_deadline(log: str) -> None:
    import threading

    release = threading.Event()

    @thread(retry=1, timeout=0.3)
    def slow_at_first(path: str) -> str:
        note(path, "x")
        if len(notes(path)) == 1:
            release.wait(30)
            return "too late"
        return "quick"

    try:
        assert slow_at_first(log)() == "quick"
        release.set()
        release.clear()
        with pytest.raises(ProcessRetryException) as caught:
            thread(retry=1, timeout=0.3)(lambda: release.wait(30))()()
        assert isinstance(caught.value.__cause__, ThreadTimeoutException)
    finally:
        release.set()


def test_all_options_together(log: str) -> None:
    task = process(retry=4, sleep=0.01, backoff=2, jitter=0.01, on=(ValueError, ProcessTerminatedException), timeout=20, wait=20)

    @task
    def bad_luck(path: str, value: int) -> int:
        note(path, "x")
        tried = len(notes(path))
        if tried == 1:
            raise ValueError("first")
        if tried == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if tried == 3:
            os._exit(9)
        return value

    assert bad_luck(log, process(bodies.one)())() == 1
    assert len(notes(log)) == 4


def test_a_failure_elsewhere_ends_the_attempts(log: str) -> None:
    @process(retry=200, sleep=0.01)
    def forever(path: str) -> None:
        note(path, "x")
        raise ValueError("again")

    fail = process(bodies.fail_once_there)
    with pytest.raises(ValueError, match="no such thing"):
        gather(forever(log), fail(log))()
    tried = len(notes(log))
    wait_until(lambda: True)
    assert len(notes(log)) == tried


def test_the_documented_example(log: str) -> None:
    @process(retry=5, sleep=0.01)
    def five(path: str) -> int:
        note(path, "x")
        if len(notes(path)) != 5:
            raise Exception("Not a FIVE!")
        return 5

    assert process(bodies.add)(five(log), 1)() == 6
