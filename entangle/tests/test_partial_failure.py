"""`return_exceptions`: a failure becomes a value, what depends on it is skipped, the rest
continues."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle._run.run import Run
from entangle._shared.table import DONE, FAILED, SKIPPED
from entangle._tasks.tree import compile_call
from entangle.errors import (
    ProcessRetryException,
    ProcessTerminatedException,
    ProcessTimeoutException,
    RemoteTraceback,
    RunCancelledError,
    ThreadTimeoutException,
)
from entangle.process import process
from entangle.task import task
from entangle.thread import thread
from entangle.workflow import workflow

from .evidence import notes_of, wait_until

gather: Any = entangle.gather

KINDS: dict[str, Any] = {"process": process, "thread": thread, "fresh": process(fresh=True), "here": task}


@process
def square(x: int) -> int:
    return x * x


@process
def fail(x: int) -> int:
    raise ValueError(f"no {x}")


@process
def some(x: int) -> int:
    """Fails for every third number."""
    if x % 3 == 0:
        raise ValueError(f"no {x}")
    return x


@process
def add(a: Any, b: Any) -> Any:
    return a + b


@process
def kinds_of(values: list[Any]) -> list[str]:
    return [type(value).__name__ for value in values]


@process
def note(directory: str, value: Any = None) -> Any:
    (Path(directory) / f"{os.getpid()}-{time.monotonic_ns()}").touch()
    return value


def names(values: list[Any]) -> list[Any]:
    return [type(value).__name__ if isinstance(value, BaseException) else value for value in values]


@pytest.mark.parametrize("start", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.drill)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_a_value(kind: str, start: Any) -> None:
    bad, good = KINDS[kind](fail.function), KINDS[kind](square.function)
    got = gather(good(2), bad(3), good(4), return_exceptions=True).run(start=start)
    assert names(got) == [4, "ValueError", 16]
    assert str(got[1]) == "no 3"
    assert f"call path: gather(square(…), {bad.__name__}(…), square(…)) → {bad.__name__}" in notes_of(got[1])
    assert "call: fail(3)" in notes_of(got[1])


def test_the_traceback_of_the_worker_is_the_cause() -> None:
    (error,) = gather(fail(1), return_exceptions=True)()
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in fail" in str(error.__cause__)


@pytest.mark.parametrize("start", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.drill)])
def test_what_depends_on_a_failure_is_skipped(start: Any, tmp_path: Path) -> None:
    skipped = note(str(tmp_path), add(fail(1), square(2)))
    got = gather(skipped, add(skipped, 1), square(3), note(str(tmp_path), 5), return_exceptions=True).run(start=start)
    assert names(got) == ["ValueError", "ValueError", 9, 5]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_as_an_argument_of_a_task() -> None:
    assert kinds_of(gather(square(1), fail(2), add(fail(3), 1), return_exceptions=True))() == ["int", "ValueError", "ValueError"]
    in_thread = thread(kinds_of.function)
    assert in_thread(gather(square(1), fail(2), return_exceptions=True))() == ["int", "ValueError"]
    mixed = thread(fail.function)
    assert kinds_of(gather(mixed(1), square(2), return_exceptions=True))() == ["ValueError", "int"]


def test_threads_that_fail_and_are_skipped_leave_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad, plus = thread(fail.function), thread(add.function)
    assert names(gather(plus(bad(1), 1), bad(2), return_exceptions=True)()) == ["ValueError", "ValueError"]
    assert list(tmp_path.iterdir()) == []


def test_a_failure_ends_the_run_where_some_path_meets_nobody_who_accepts_it() -> None:
    shared = fail(1)
    with pytest.raises(ValueError, match="no 1"):
        gather(gather(shared, return_exceptions=True), shared)()
    with pytest.raises(ValueError, match="no 1"):
        add(gather(shared, return_exceptions=True), shared)()
    with pytest.raises(ValueError, match="no 1"):
        gather(square(1), fail(1))()


def test_a_gather_that_accepts_nothing_is_one_value_of_one_that_does() -> None:
    got = gather(gather(square(1), fail(2)), square.map([2, 3]), some.map([1, 3]), square(4), return_exceptions=True)()
    assert names(got) == ["ValueError", [4, 9], "ValueError", 16]
    got = gather(gather(square(1), fail(2), return_exceptions=True), square(4), return_exceptions=True)()
    assert names(got[0]) == [1, "ValueError"]
    assert got[1] == 16


def test_a_task_that_takes_failures_may_fail_itself() -> None:
    @process
    def strict(values: list[Any]) -> int:
        for value in values:
            if isinstance(value, BaseException):
                raise LookupError("one is missing") from value
        return len(values)

    with pytest.raises(LookupError, match="one is missing"):
        strict(gather(fail(1), return_exceptions=True))()
    assert names(gather(strict(gather(fail(1), return_exceptions=True)), square(1), return_exceptions=True)()) == ["LookupError", 1]


def test_an_exception_that_is_a_value_is_one() -> None:
    same = process(lambda x: x)
    got = gather(add(same(1), 1), same(ValueError("a value")), return_exceptions=True)()
    assert got[0] == 2
    assert isinstance(got[1], ValueError)
    assert got[1].__cause__ is None


@pytest.mark.parametrize("start", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.drill)])
def test_a_worker_that_dies_is_a_value(start: Any) -> None:
    @process
    def die(how: str) -> int:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(3)

    got = gather(square(1), die("kill"), add(die("exit"), 1), square(2), return_exceptions=True).run(start=start)
    assert names(got) == [1, "ProcessTerminatedException", "ProcessTerminatedException", 4]
    assert "SIGKILL" in str(got[1])
    assert "exit code 3" in str(got[2])
    assert "call: die('kill')" in notes_of(got[1])


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_deadline_is_a_value(start: Any) -> None:
    slow = process(timeout=0.3)(lambda: time.sleep(60))
    got = gather(square(1), slow(), add(slow(), 1), square(2), return_exceptions=True).run(start=start)
    assert names(got) == [1, "ProcessTimeoutException", "ProcessTimeoutException", 4]
    hanging = thread(timeout=0.2)(lambda: time.sleep(1))
    got = gather(hanging(), square(2), return_exceptions=True)()
    assert isinstance(got[0], ThreadTimeoutException)
    assert got[1] == 4


def test_arguments_that_come_too_late_are_a_value() -> None:
    late = process(lambda: time.sleep(1.0))
    impatient = process(wait=0.2)(lambda a, b: 3)
    got = gather(impatient(late(), square(1)), square(3), return_exceptions=True)()
    assert isinstance(got[0], ProcessTimeoutException)
    assert got[1] == 9


def test_retries_come_first(tmp_path: Path) -> None:
    @process(retry=2)
    def third_time(path: str) -> int:
        tries = len(list(Path(path).iterdir()))
        (Path(path) / str(tries)).touch()
        if tries < 2:
            raise ValueError(tries)
        return tries

    always = process(retry=1)(fail.function)
    dying = process(retry=1)(lambda: os.kill(os.getpid(), signal.SIGKILL))
    got = gather(third_time(str(tmp_path)), always(1), dying(), return_exceptions=True)()
    assert got[0] == 2
    assert isinstance(got[1], ProcessRetryException)
    assert isinstance(got[1].__cause__, ValueError)
    assert isinstance(got[2], ProcessRetryException)
    assert isinstance(got[2].__cause__, ProcessTerminatedException)


def test_a_value_that_cannot_be_sent_is_a_failure() -> None:
    bad = process(lambda: open(os.devnull))
    got = gather(bad(), square(2), return_exceptions=True)()
    assert names(got) == ["UnpicklableError", 4]


def test_an_error_that_ends_the_interpreter_is_a_value() -> None:
    leave = process(lambda: exit(4))
    got = gather(leave(), square(2), return_exceptions=True)()
    assert names(got) == ["ProcessTerminatedException", 4]


def test_nested_runs_and_workflows() -> None:
    @workflow
    def inner(x: int) -> Any:
        return add(some(x), 1)

    assert names(gather(*[inner(x) for x in (1, 3, 4)], return_exceptions=True)()) == [2, "ValueError", 5]

    @process
    def outer() -> list[Any]:
        return names(gather(*[some(x) for x in (1, 3)], return_exceptions=True)())

    assert outer()() == [1, "ValueError"]


def test_cancelling_is_no_value() -> None:
    slow = process(lambda: time.sleep(60))
    future = gather(slow(), return_exceptions=True)(proc=True)
    time.sleep(0.3)
    assert future.cancel()
    with pytest.raises((RunCancelledError, entangle.errors.EntangleError)):
        future.result(10)


def test_ctrl_c_is_no_value() -> None:
    @process
    def interrupts() -> None:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        gather(interrupts(), return_exceptions=True).run(start="fork")


def test_the_states_of_the_nodes_tell() -> None:
    seen: dict[str, list[int]] = {}

    class Watch:
        def started(self, run: Any) -> None: ...
        def looked(self, run: Any) -> None: ...
        def ended(self, run: Any) -> None:
            for node in range(run.flow.count):
                seen.setdefault(run.flow.name(node), []).append(run.table.states[node])

    Run(compile_call(gather(square(1), add(fail(1), square(2)), return_exceptions=True)), None, Watch()).value()
    assert seen == {"square": [DONE, DONE], "fail": [FAILED], "add": [SKIPPED], "gather": [DONE]}


def test_many_failures_and_long_chains_of_skipped_nodes() -> None:
    chain: Any = fail(1)
    for _ in range(3000):
        chain = add(chain, 1)
    got = gather(chain, *[some(x) for x in range(1000)], return_exceptions=True)()
    assert names(got)[0] == "ValueError"
    assert sum(isinstance(value, ValueError) for value in got) == 335
    assert [value for value in got if not isinstance(value, ValueError)] == [x for x in range(1000) if x % 3]
    assert len({str(value) for value in got[1:] if isinstance(value, ValueError)}) == 334


def test_what_a_skipped_task_would_have_read_is_given_back(tmp_path: Path) -> None:
    """Files of large values in shared memory are removed although their reader was skipped."""

    @process
    def large(x: int) -> bytes:
        return bytes(1_000_000)

    @process
    def left() -> int:
        from entangle._worker.worker import here

        worker = here.worker
        assert worker is not None
        directory = worker.site.directory
        wait_until(lambda: _files(directory) <= 6, 10)
        return _files(directory)

    @process
    def after(*values: Any) -> int:
        return 0

    skipped = [after(large(x), add(fail(x), large(-x))) for x in range(12)]
    got = gather(gather(*skipped, return_exceptions=True), left(), return_exceptions=True)()
    assert got[1] <= 6


def _files(directory: str) -> int:
    return sum(name.startswith("v") and name != "values" for name in os.listdir(directory))


def test_workers_that_are_killed_at_random_are_values() -> None:
    """Every node has a value or a failure that names it. Nothing hangs and nothing is lost."""

    @process
    def maybe(x: int) -> int:
        if random.Random(x).random() < 0.2:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    got = gather(*[add(maybe(x), 1) for x in range(60)], return_exceptions=True)()
    for x, value in enumerate(got):
        if random.Random(x).random() < 0.2:
            assert isinstance(value, ProcessTerminatedException), (x, value)
            assert f"maybe({x})" in notes_of(value)
        else:
            assert value == x + 1


class Odd(Exception):
    """Its `__init__` takes other arguments than its `args`."""

    def __init__(self, code: int, url: str) -> None:
        super().__init__(f"{code} for {url}")
        self.code = code


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_failures_travel_on_inside_values(start: Any) -> None:
    """A task that receives failures may return them, at any depth, with all their details."""
    import json

    raises_odd = process(lambda: (_ for _ in ()).throw(Odd(503, "x")))
    raises_own = process(lambda: json.loads("{"))
    on = process(lambda values: {"all": [values]})
    got = on(on(gather(raises_odd(), raises_own(), fail(3), return_exceptions=True))).run(start=start)
    odd, own, plain = got["all"][0]["all"][0]
    assert (type(odd).__name__, odd.code, str(odd)) == ("Odd", 503, "503 for x")
    assert (type(own).__name__, own.pos) == ("JSONDecodeError", 1)
    assert str(plain) == "no 3"
    for error in (odd, own, plain):
        assert "call: " in notes_of(error)
        assert isinstance(error.__cause__, RemoteTraceback)


def test_errors_show_failures_among_arguments_by_their_type() -> None:
    @process
    def strict(values: list[Any]) -> None:
        raise LookupError

    with pytest.raises(LookupError) as caught:
        strict(gather(fail(3), return_exceptions=True))()
    assert "call: strict([<ValueError>])" in notes_of(caught.value)
    killed = process(lambda values: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ProcessTerminatedException) as lost:
        killed(gather(fail(3), return_exceptions=True))()
    assert "bytes" not in notes_of(lost.value)


def test_a_thread_that_was_given_up_ends_no_other_node() -> None:
    """Its body raises while the last node of the flow runs."""

    @thread(timeout=0.2)
    def late() -> None:
        time.sleep(0.8)
        raise LookupError("too late")

    @process
    def last(values: list[Any]) -> list[str]:
        time.sleep(1.5)
        return [type(value).__name__ for value in values]

    assert last(gather(late(), return_exceptions=True))() == ["ThreadTimeoutException"]
    in_thread = thread(last.function)
    assert in_thread(gather(late(), return_exceptions=True))() == ["ThreadTimeoutException"]
