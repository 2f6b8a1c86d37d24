"""Delivery: how the value of a node reaches the nodes that take it, and what a failure does to the
rest of the run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from entangle import records
from entangle.errors import ProcessTerminatedException, ThreadTerminatedException
from entangle.process import ProcessRetryException, process
from entangle.thread import thread
from entangle.workflow import workflow

from . import bodies
from .callers import output_of
from .evidence import note, notes, text_of


class Told:
    """A value that notes when it is pickled."""

    def __init__(self, log: str, steps: int = 0) -> None:
        self.log, self.steps = log, steps

    def __reduce__(self) -> Any:
        note(self.log, "pickled")
        return Told, (self.log, self.steps)


def begin(log: str) -> Told:
    """The first node of a chain."""
    return Told(log)


def step(value: Told) -> Told:
    """A further node."""
    value.steps += 1
    return value


def steps(*values: Told) -> list[int]:
    """The number of steps of each value."""
    return [value.steps for value in values]


@pytest.fixture
def log(tmp_path: Path) -> str:
    """The file in which bodies note what they see."""
    return str(tmp_path / "log")


def test_a_chain_of_calls_stays_in_one_worker_and_pickles_nothing(log: str, start: Any) -> None:
    call: Any = process(begin)(log)
    for _ in range(5):
        call = process(step)(call)
    assert process(steps)(call)(start=start) == [5]
    assert notes(log) == []


def test_several_takers_each_have_a_value_of_their_own_which_is_pickled_once(log: str) -> None:
    first = process(begin)(log)
    branches = [process(step)(process(step)(first)) for _ in range(3)]
    assert process(steps)(*branches)() == [2, 2, 2]
    # The first value is pickled once for all that take it, and each branch at most once.
    assert 1 <= len(notes(log)) <= 4


def test_where_a_body_may_be_tried_again_what_it_takes_is_kept(log: str) -> None:
    """The body changes its argument, and fails at the first attempt."""

    @process(retry=1)
    def twice(value: Told, tries: str) -> int:
        value.steps += 10
        note(tries, "tried")
        if len(notes(tries)) == 1:
            raise ValueError("once more")
        return value.steps

    assert twice(process(step)(process(begin)(log)), log + ".tries")() == 11


@pytest.mark.parametrize("carrier", [process, thread])
def test_after_a_failure_nothing_more_begins(carrier: Any, log: str) -> None:
    def fail() -> None:
        raise ValueError("at once")

    def slow(value: int) -> int:
        note(log, value)
        time.sleep(0.05)
        return value + 1

    call: Any = 0
    for _ in range(100):
        call = carrier(slow)(call)
    with pytest.raises(ValueError, match="at once"):
        carrier(bodies.total)(carrier(fail)(), call)()
    assert len(notes(log)) < 60


def test_the_first_of_two_failures_is_told(tmp_path: Path) -> None:
    def fail(word: str, mine: str, others: str) -> Any:
        note(mine, word)
        end = time.monotonic() + 20
        while word == "second" and not notes(others + ".over") and time.monotonic() < end:
            time.sleep(0.01)
        if word == "first":
            note(mine + ".over", "x")
        raise ValueError(word)

    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    with pytest.raises(ValueError, match="first"):
        thread(bodies.total)(thread(fail)("second", other, one), thread(fail)("first", one, other))()


@pytest.mark.parametrize(("carrier", "kind"), [(process, ProcessTerminatedException), (thread, ThreadTerminatedException)])
def test_a_body_that_exits_fails_and_its_call_and_status_are_told(carrier: Any, kind: type[Exception]) -> None:
    def leave(status: int) -> None:
        raise SystemExit(status)

    with pytest.raises(kind, match=r"'leave' ended by raising SystemExit\(3\)") as caught:
        carrier(leave)(3)()
    assert "leave(3)" in text_of(caught.value)


def test_a_body_in_the_callers_thread_that_raises_what_no_signal_has_raised_fails_as_any_other() -> None:
    """Only Ctrl-C, and what a signal handler raises, pass through it to the caller."""

    class Odd(BaseException):
        pass

    def raises(error: BaseException) -> None:
        raise error

    for error in (Odd("odd"), SystemExit(4), GeneratorExit()):
        with pytest.raises(ThreadTerminatedException, match=type(error).__name__):
            workflow(raises)(error)()
    with pytest.raises(KeyboardInterrupt):
        workflow(raises)(KeyboardInterrupt())()


def test_a_value_that_cannot_be_made_again_names_both_tasks() -> None:
    """The task that returned it, and the task that was to take it."""

    class Broken:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    def give() -> Broken:
        return Broken()

    def take(value: Any) -> None:
        pass

    with pytest.raises(Exception, match=r"the value of task 'give' cannot be .* in the process of task 'take'"):
        thread(take)(process(give)())()


@pytest.mark.parametrize("size", [10, 20_000])
def test_a_record_has_the_hash_and_size_of_what_went_between_processes(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))

    def make(n: int) -> bytes:
        return bytes(n)

    made = process(make)(size)
    assert process(bodies.total)(process(len)(made), process(len)(made))() == 2 * size
    run = records.run()
    (node,) = [node for node in run.nodes if node.name == "make"]
    assert node.state == "done"
    assert node.pid not in (None, os.getpid())
    assert [each.name for each in records.made(records.hash_of(make(size)))] == ["make"]


def test_the_attempt_that_failed_for_good_is_told() -> None:
    def fail() -> None:
        raise ValueError("again")

    for retry in (1, 2):
        with pytest.raises(ProcessRetryException) as caught:
            process(retry=retry)(fail)()()
        assert f"attempt {retry + 1}" in text_of(caught.value)


def test_half_a_line_that_a_body_prints_comes_before_the_caller_goes_on(tmp_path: Path) -> None:
    source = """
        import os
        from entangle.process import process

        @process
        def half():
            print("half", end="")

        half()()
        os.write(1, b" and the rest\\n")
    """
    assert output_of(tmp_path, source, ENTANGLE_START="fork") == "half and the rest\n"
