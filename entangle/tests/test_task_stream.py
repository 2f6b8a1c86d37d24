"""`task.stream(xs)`: values as they are done, with back-pressure, wherever the bodies run."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle.dataflow import dataflow
from entangle.errors import ArgumentError, OptionError, ProcessRetryException, ProcessTerminatedException, ProcessTimeoutException
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.task import task
from entangle.thread import thread
from entangle.workflow import workflow

from .callers import output_of
from .ways import WAYS, Way, needed

#: A global that cannot be pickled: its module's tasks are pickled by name.
GUARD = threading.Lock()


@process
def square(x: int) -> int:
    with GUARD:
        return x * x


@thread
def in_thread(x: int) -> tuple[int, int]:
    return x, os.getpid()


@workflow
def written(x: int) -> Any:
    return add(square(x), 1)


@process
def add(x: int, y: int) -> int:
    return x + y


@process
async def later(x: int) -> int:
    await asyncio.sleep(0.001)
    return -x


@task
def plain(x: int) -> int:
    return x + 100


class Scaled:
    """A class with tasks."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    @process
    def times(self, x: int) -> int:
        return self.factor * x

    @thread
    async def plus(self, x: int) -> int:
        return self.factor + x


@process
def picky(x: int) -> int:
    if x % 3 == 0:
        raise ValueError(f"no {x}")
    return x


@process
def anything(x: Any) -> Any:
    return x


def endless() -> Iterator[int]:
    yield from itertools.count()


async def slowly(count: int) -> AsyncIterator[int]:
    for x in range(count):
        await asyncio.sleep(0.001)
        yield x


# What comes out ----------------------------------------------------------------------------------


def test_plain_values_in_order() -> None:
    assert list(square.stream(range(200))) == [x * x for x in range(200)]


def test_every_kind_of_task() -> None:
    """Processes, threads, async functions, workflows, methods, and tasks without a place."""
    assert {pid for _, pid in in_thread.stream(range(20))} == {os.getpid()}
    assert list(later.stream([1, 2])) == [-1, -2]
    assert list(written.stream([2, 3])) == [5, 10]
    assert list(plain.stream([1])) == [101]
    assert list(Scaled(3).times.stream([1, 2])) == [3, 6]
    assert list(Scaled(3).plus.stream(range(3))) == [3, 4, 5]


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_every_way_of_starting(start: Any) -> None:
    assert list(square.stream(range(5), start=start)) == [0, 1, 4, 9, 16]
    assert list(Scaled(2).times.stream(range(3), start=start)) == [0, 2, 4]


@pytest.mark.parametrize("way", [way for way in WAYS if not way.here], ids=lambda way: way.name)
def test_every_place(way: Way) -> None:
    import math

    there = way.process(math.factorial)
    assert list(there.stream(range(8))) == [math.factorial(x) for x in range(8)]


def test_layers_of_all_kinds() -> None:
    bound = scheduler(cpus=1)(process(retry=1)(os.sched_getaffinity))
    assert all(len(cpus) == 1 for cpus in bound.stream([0, 0, 0]))


def test_an_item_is_one_argument() -> None:
    """Tuples are not unpacked. Falsy values and exceptions are ordinary values."""
    error = ValueError("a value")
    items: list[Any] = [(1, 2), (), None, 0, "", [], error]
    assert [repr(value) for value in anything.stream(items)] == [repr(item) for item in items]


def test_an_item_may_be_a_call() -> None:
    """The call runs where its value is used."""
    assert list(square.stream([add(1, 2), 4, square(square(2))])) == [9, 16, 256]


def test_no_items_and_one() -> None:
    assert list(square.stream([])) == []
    assert list(square.stream(iter([7]))) == [49]


def test_unordered_values_come_as_they_are_done(tmp_path: Path) -> None:
    """The first item waits until the second one has come."""

    @process
    def wait_for(name: str) -> str:
        until = time.monotonic() + 30
        while name == "first" and not (tmp_path / "second").exists() and time.monotonic() < until:
            time.sleep(0.005)
        return name

    came = []
    for name in wait_for.stream(["first", "second"], ordered=False, inflight=2):
        came.append(name)
        (tmp_path / name).touch()
    assert came == ["second", "first"]


def test_a_function_of_several_parameters_with_defaults() -> None:
    @process
    def power(x: int, exponent: int = 3) -> int:
        return int(x**exponent)

    assert list(power.stream([1, 2])) == [1, 8]


# Sources and consumers ---------------------------------------------------------------------------


def test_an_endless_source_and_a_loop_that_is_left() -> None:
    """The source is not asked while enough items are under way. Its `finally` has run when the loop
    ends."""
    closed = []

    def source() -> Iterator[int]:
        try:
            for x in itertools.count():
                pulled.append(x)
                yield x
        finally:
            closed.append(True)

    pulled: list[int] = []
    with square.stream(source(), inflight=4) as values:
        for value in values:
            if value > 100:
                break
        assert len(pulled) <= 11 + 4 + 1
    assert closed == [True]
    assert not any(thread.name.startswith("entangle-s") for thread in threading.enumerate())


def test_async_for_and_async_sources() -> None:
    async def both() -> tuple[list[int], list[int]]:
        first = [value async for value in square.stream(slowly(5))]
        second = []
        async for value in square.stream(endless()):
            second.append(value)
            if len(second) == 3:
                break
        return first, second

    assert asyncio.run(both()) == ([0, 1, 4, 9, 16], [0, 1, 4])
    assert list(square.stream(slowly(3))) == [0, 1, 4]


def test_a_stream_inside_a_body() -> None:
    @process
    def outer(count: int) -> int:
        return sum(square.stream(range(count)))

    assert outer(10)() == 285
    assert list(outer.stream([2, 3])) == [1, 5]


def test_a_stream_of_a_stream() -> None:
    """A stream as the source of another one."""
    assert list(square.stream(square.stream(range(4)))) == [0, 1, 16, 81]


# Errors ------------------------------------------------------------------------------------------


def test_an_error_ends_the_stream_unless_said_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    values = picky.stream([1, 2, 3, 4])
    assert [next(values), next(values)] == [1, 2]
    with pytest.raises(ValueError, match="no 3") as caught:
        next(values)
    assert any("picky(3)" in note for note in getattr(caught.value, "__notes__", []))
    assert list(values) == []

    with caplog.at_level(logging.WARNING):
        kept = picky.stream(range(7), on_error="skip")
        assert (list(kept), kept.skipped) == ([1, 2, 4, 5], 3)
    assert "task 'picky' failed with ValueError: no 3 (picky(3))" in caplog.text

    told: list[Any] = []
    assert list(picky.stream([2, 3, 4], on_error=lambda *what: told.append(what))) == [2, 4]
    ((who, item, error),) = told
    assert (who, item, str(error)) == (picky, 3, "no 3")


def test_deadlines_deaths_and_retries_are_those_of_each_item() -> None:
    @process(timeout=0.2)
    def sleepy(x: float) -> float:
        time.sleep(x)
        return x

    @process
    def deadly(x: int) -> int:
        if x == 1:
            os._exit(3)
        return x

    @process(retry=2)
    def stubborn(x: int) -> int:
        if x == 1:
            raise ValueError("never")
        return x

    cases: Any = (
        (sleepy, [0, 30, 0.001], ProcessTimeoutException),
        (deadly, [0, 1, 2], ProcessTerminatedException),
        (stubborn, [0, 1, 2], ProcessRetryException),
    )
    for made, items, kind in cases:
        errors: list[Any] = []
        assert list(made.stream(items, on_error=lambda *what, into=errors: into.append(what))) == [items[0], items[2]]
        assert [type(error) for _, _, error in errors] == [kind]


def test_an_error_of_the_source() -> None:
    def source() -> Iterator[int]:
        yield 2
        raise KeyError("the source")

    values = square.stream(source())
    assert next(values) == 4
    with pytest.raises(KeyError, match="the source"):
        next(values)


def test_what_is_wrong_is_said_at_once() -> None:
    @process
    def of_two(x: int, y: int) -> int:
        return x + y

    @process
    def of_none() -> int:
        return 1

    wrong: Any
    for wrong in (of_two, of_none):
        with pytest.raises(ArgumentError, match=rf"{wrong.__name__}\.stream gives the task one item at a time"):
            wrong.stream([1])
    with pytest.raises(ArgumentError, match=r"square\.stream takes an iterable of values, not int"):
        square.stream(3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"<call add\(1, 2\)> has not run: call it, or take square\.map"):
        square.stream(add(1, 2))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"inflight=0"):
        square.stream([1], inflight=0)
    with pytest.raises(OptionError, match=r"a function of \(task, value, error\)"):
        square.stream([1], on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inflght"):
        square.stream([1], inflght=1)  # type: ignore[call-arg]


# How it travels ----------------------------------------------------------------------------------


def test_a_task_of_a_dataflow_is_a_task_as_well() -> None:
    @dataflow
    @process
    def node(x: int) -> int:
        return x + 1

    assert list(node.stream([1, 2])) == [2, 3]


def test_the_doors_alone_do_not_import_dataflows(tmp_path: Path) -> None:
    """The module is imported with the first stream."""
    source = """
    import sys
    from entangle.process import process

    @process
    def one(x):
        return x

    if __name__ == "__main__":
        one(1)()
        print([name for name in sys.modules if "dataflow" in name])
        print(list(one.stream([1, 2])))
    """
    assert output_of(tmp_path, source) == "[]\n[1, 2]\n"


def test_functions_of_a_script_and_lambdas(tmp_path: Path) -> None:
    source = """
    import os
    from entangle.process import process

    @process
    def tagged(x):
        return f"{x}!", os.getpid() != parent

    parent = os.getpid()
    print(list(tagged.stream("ab")), list(process(lambda x: x + 1).stream([1])))
    """
    assert output_of(tmp_path, source) == "[('a!', True), ('b!', True)] [2]\n"


def test_arrays_are_not_copied_on_the_way() -> None:
    """Large values behave as elsewhere: they are writable, and private to each task."""
    numpy = needed("numpy")

    @process
    def doubled(a: Any) -> Any:
        a *= 2
        return a

    source = [numpy.ones(100_000) * n for n in range(3)]
    assert [float(a[0]) for a in doubled.stream(source)] == [0.0, 2.0, 4.0]
    assert [float(a[0]) for a in source] == [0.0, 1.0, 2.0]
