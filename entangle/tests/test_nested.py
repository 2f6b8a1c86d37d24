"""Runs inside runs: bodies that run calls, bodies that return calls, and what they share."""

# Decorators are passed as values here, and are untyped.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entangle.errors import ProcessRetryException, ProcessTerminatedException
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.task import task
from entangle.thread import thread
from entangle.workflow import workflow

from . import bodies
from .callers import gone
from .evidence import most_at_once, note, notes, pids_in, text_of, wait_until
from .ways import needed

one = process(bodies.one)
num = process(bodies.num)
add = process(bodies.add)
gather = process(bodies.gather)
total = process(bodies.total)


@process
def fibonacci(n: int) -> Any:
    """Decides at run time whether to return another call of itself."""
    return n if n < 2 else add(fibonacci(n - 1), fibonacci(n - 2))


@thread
def threaded_fibonacci(n: int) -> Any:
    return n if n < 2 else add(threaded_fibonacci(n - 1), threaded_fibonacci(n - 2))()


def test_a_task_that_calls_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fibonacci(6)() == 8


@pytest.mark.parametrize("how", ["forkserver", "spawn"])
def test_a_task_that_calls_itself_without_fork(how: Any) -> None:
    assert fibonacci(3)(start=how) == 2


def test_a_thread_that_calls_itself() -> None:
    assert threaded_fibonacci(5)() == 5


def test_a_countdown_of_twenty_runs(tmp_path: Path) -> None:
    @process
    def count(n: int) -> Any:
        return 0 if n == 0 else add(count(n - 1), 1)

    assert count(20)() == 20


def test_every_kind_inside_every_kind(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {"process": process, "thread": thread, "workflow": workflow, "task": task}
    for outer_kind in kinds.values():
        for inner_kind in kinds.values():
            inner = inner_kind(bodies.add)

            @outer_kind
            def gives(n: int, inner: Any = inner) -> Any:
                return inner(num(n), 1)

            @outer_kind
            def calls(n: int, inner: Any = inner) -> Any:
                return inner(num(n), 1)()

            assert add(gives(1), calls(2))() == 5


def test_a_nested_run_sees_the_arguments_of_its_body() -> None:
    @process
    def outer(values: Any) -> Any:
        return total(*(num(v) for v in values))

    assert outer(gather(num(1), num(2))()[0])() == 3
    assert outer([num(4), num(5)])() == 9


def test_a_call_made_outside_and_called_inside() -> None:
    call = add(num(1), num(2))

    @process
    def outer() -> int:
        return int(call()) + int(call())

    assert outer()() == 6


def test_large_values_through_three_levels() -> None:
    numpy = needed("numpy")
    make = process(lambda n: numpy.ones(n))

    @process
    def inner(n: int) -> Any:
        return make(n)

    @process
    def outer(n: int) -> Any:
        return inner(n)() * 2

    array = outer(100_000)()
    assert array.sum() == 200_000
    array[0] = 5


def test_an_error_names_the_whole_way() -> None:
    fail = process(bodies.fail)

    @process
    def inner() -> Any:
        return add(1, fail())()

    @thread
    def middle() -> Any:
        return inner()

    @workflow
    def outer() -> Any:
        return add(middle(), 1)

    with pytest.raises(ValueError, match="no such thing") as caught:
        outer()()
    told = text_of(caught.value)
    for name in ("outer", "middle", "inner", "add(1, fail()) → fail", "in fail"):
        assert name in told


def test_an_error_that_the_body_catches(tmp_path: Path) -> None:
    @process
    def careful() -> str:
        try:
            process(bodies.fail)()()
        except ValueError as error:
            return f"caught: {error}"
        return "not caught"

    assert careful()() == "caught: no such thing"


def test_a_death_inside_is_told_outside(start: str) -> None:
    die = process(bodies.die)

    @process
    def outer() -> Any:
        return add(1, die(3))()

    with pytest.raises(ProcessTerminatedException) as caught:
        outer()()
    told = text_of(caught.value)
    assert "add(1, die(…)) → die" in told
    assert "outer" in told


def test_retry_around_a_nested_run(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    inner = process(bodies.die_until)

    @process(retry=3)
    def outer(path: str) -> Any:
        return inner(path, 3)

    assert outer(log)() == "done"
    with pytest.raises(ProcessRetryException):
        process(retry=1)(lambda path: inner(path, 99)())(log + "2")()
    assert len(notes(log + "2")) == 2


@pytest.mark.parametrize("kind", [process, thread])
def test_a_failure_outside_stops_nested_runs(tmp_path: Path, start: str, kind: Any) -> None:
    """A thread cannot be killed, but the nested run that it waits for can be ended."""
    log = str(tmp_path / "log")
    linger = process(bodies.linger)

    @kind
    def outer(path: str) -> Any:
        return linger(path)()

    fail = process(bodies.fail_once_there)
    with pytest.raises(ValueError, match="no such thing"):
        gather(outer(log), fail(log))()
    gone(pids_in(log))


def test_several_nested_runs_of_one_body_at_once(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    meet = process(bodies.meet)

    @process
    def outer(path: str) -> int:
        futures = [meet(path, 3)(proc=True) for _ in range(3)]
        return len({future.result(timeout=30) for future in futures})

    assert outer(log)() == 3


def test_nested_runs_from_threads_of_a_body() -> None:
    @process
    def outer(n: int) -> list[int]:
        results: list[int] = []

        def run(i: int) -> None:
            results.append(add(num(i), num(i))())

        threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return sorted(results)

    assert outer(3)() == [0, 2, 4]


def test_await_inside_an_async_body() -> None:
    @process
    async def outer() -> int:
        import asyncio

        first, second = await asyncio.gather(add(num(1), 1), add(num(2), 1))
        return int(first) + int(second)

    assert outer()() == 5


def test_many_nested_runs_at_once(tmp_path: Path) -> None:
    """Sixteen bodies each run five tasks. None waits for a worker that another one occupies."""

    @process
    def outer(n: int) -> Any:
        return total(*(num(n) for _ in range(4)))()

    assert total(*(outer(n) for n in range(16)))() == 4 * sum(range(16))


def test_busy_nested_runs_share_one_budget(tmp_path: Path) -> None:
    """At any depth, about as many bodies compute as there are CPUs."""
    log = str(tmp_path / "log")

    @process
    def work(path: str) -> int:
        from .evidence import span

        with span(path):
            return bodies.burn(0.03)

    @process
    def inner(path: str) -> Any:
        return gather(*(work(path) for _ in range(3)))()

    @process
    def outer(path: str) -> Any:
        return gather(*(inner(path) for _ in range(3)))()

    gather(*(outer(log) for _ in range(3)))()
    assert len(notes(log)) == 27
    assert most_at_once(log) <= len(os.sched_getaffinity(0)) + 2


def test_a_nested_run_under_one_cookie() -> None:
    """A body that waits for a nested run lends its cookie: one cookie is enough for three
    levels."""

    @scheduler(cpus=1)
    @process
    def leaf(n: int) -> int:
        return n

    @scheduler(cpus=1)
    @process
    def middle(n: int) -> Any:
        return add(leaf(n), leaf(n))()

    @scheduler(cpus=1)
    @process
    def outer(n: int) -> Any:
        return add(middle(n), middle(n))

    assert outer(2)() == 8


# --- runs that a body does not wait for in its own thread -----------------------------------------


@scheduler(cpus=1)
@process
def bound(n: int) -> int:
    return n + 1


def by_future() -> int:
    return int(bound(1)(proc=True).result())


def by_future_with_time() -> int:
    return int(bound(1).future().result(timeout=30))


async def by_await() -> int:
    return int(await bound(1))


async def by_several() -> int:
    return sum(await asyncio.gather(bound(0), bound(0), bound(-1)))


def by_threads() -> int:
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(lambda n: bound(n)(), [0, 0, -1]))


@pytest.mark.parametrize("way", ["fork", "forkserver"])
@pytest.mark.parametrize("body", [by_future, by_future_with_time, by_await, by_several, by_threads])
def test_the_holder_of_the_only_cookie_may_wait_in_any_way(body: Any, way: str) -> None:
    assert scheduler(cpus=1)(process(body))()(start=way) == 2


@pytest.mark.parametrize("body", [by_future, by_await, by_several])
@pytest.mark.parametrize("carrier", [thread, workflow])
def test_so_may_one_in_the_callers_process(body: Any, carrier: Any) -> None:
    assert scheduler(cpus=1)(carrier(body))()() == 2


@pytest.mark.parametrize("way", ["proc", "await"])
def test_a_failure_elsewhere_ends_what_a_body_has_started(way: str, tmp_path: Path) -> None:
    @process
    def long() -> None:
        note(tmp_path / "pid", os.getpid())
        time.sleep(120)

    @thread
    def with_proc() -> None:
        long()(proc=True).result()

    @thread
    async def with_await() -> None:
        await long()

    @process
    def fails() -> None:
        wait_until(lambda: pids_in(tmp_path / "pid"))
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        gather(with_proc() if way == "proc" else with_await(), fails())()
    gone(pids_in(tmp_path / "pid"), 10.0)


def test_what_a_body_has_started_is_remembered_as_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from entangle import records

    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))

    @process
    def body() -> int:
        return int(num(1)(proc=True).result()) + asyncio.run(later())

    async def later() -> int:
        return int(await num(2))

    assert body()() == 3
    (outer,) = records.runs()
    inner = [run for run in records.runs(nested=True) if run.id != outer.id]
    assert [run.parent.id for run in inner if run.parent] == [outer.id] * 2
