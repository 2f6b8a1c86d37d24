"""`gather`, `map`, `starmap`, `named` and `run`: many calls as one, and options for a whole run."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle.errors import ArgumentError, OptionError, RunTimeoutException
from entangle.process import process
from entangle.task import Task, task
from entangle.thread import thread
from entangle.workflow import workflow

from .evidence import alive, note, notes_of, pids_in, wait_until

gather: Any = entangle.gather


@process
def square(x: int) -> int:
    return x * x


@process
def add(a: int, b: int = 0) -> int:
    return a + b


@process
def add_then_fail(a: int, b: int = 0) -> None:
    raise ValueError(a + b)


@process
def fails(x: int) -> int:
    raise ValueError(x)


@process
def total(values: list[int], more: int = 0) -> int:
    return sum(values) + more


@process
async def later(x: int) -> int:
    return x + 1


@workflow
def nested(x: int) -> Any:
    return add(square(x), 1)


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @process
    def times(self, x: int, extra: int = 0) -> int:
        return self.factor * x + extra

    @classmethod
    @process
    def named_here(cls, x: int) -> str:
        return f"{cls.__name__} {x}"

    @staticmethod
    @thread
    def half(x: int) -> float:
        return x / 2


def test_gather_gives_the_values_in_order() -> None:
    assert gather(square(3), add(1, 2), later(4))() == [9, 3, 5]


def test_gather_composes() -> None:
    assert total(gather(square(1), square(2)), more=total(gather(square(3))))() == 14
    assert gather(square.map([1, 2]), total(square.map([3, 4])), square(5))() == [[1, 4], 25, 25]
    assert gather(gather(), square.map([]))() == [[], []]


def test_one_call_in_two_gathers_runs_once(tmp_path: Path) -> None:
    @process
    def once() -> int:
        (tmp_path / f"{time.monotonic_ns()}").touch()
        return 4

    shared = once()
    assert gather(square.map([shared, shared]), gather(shared), add(shared, shared))() == [[16, 16], [4], 8]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("start", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.drill)])
def test_map_in_every_way(start: Any) -> None:
    assert square.map(range(100)).run(start=start) == [x * x for x in range(100)]
    assert total(square.map(range(10))).run(start=start) == 285


def test_map_of_every_kind_of_task() -> None:
    plain = task(lambda x: x + 1)
    in_thread = thread(lambda x: x + 2)
    assert plain.map([1, 2])() == [2, 3]
    assert in_thread.map([1, 2])() == [3, 4]
    assert repr(later.map([1, 2])()) == "[2, 3]"
    assert nested.map([1, 2])() == [2, 5]
    scale = Scale(3)
    assert scale.times.map([1, 2])() == [3, 6]
    assert scale.times.map([1, 2], [10, 20])() == [13, 26]
    assert scale.times.starmap([(1,), (2, 5)])() == [3, 11]
    assert Scale.half.map([1, 2])() == [0.5, 1.0]
    assert Scale.named_here(4)() == "Scale 4"


class Kept:
    """A class with a class method, which Python binds to the class in a special way."""

    @classmethod
    @process
    def made_with(cls, x: int = 0) -> tuple[str, int]:
        return cls.__name__, x


class Other(Kept):
    pass


@pytest.mark.parametrize("way", ["map", "starmap", "stream"])
def test_items_of_a_class_method_get_its_class_or_are_refused(way: str) -> None:
    items: Any = [(1,), (2,)] if way == "starmap" else [1, 2]
    if sys.version_info < (3, 13):
        made = getattr(Other.made_with, way)(items)
        assert list(made if way == "stream" else made()) == [("Other", 1), ("Other", 2)]
        return
    with pytest.raises(ArgumentError, match=r"Kept\.made_with is a class method.*gather"):
        getattr(Other.made_with, way)(items)
    assert gather(*[Other.made_with(x) for x in (1, 2)])() == [("Other", 1), ("Other", 2)]


def test_map_takes_what_the_builtin_takes() -> None:
    assert add.map([1, 2, 3], itertools.count(10))() == [11, 13, 15]
    assert square.map(x for x in (1, 2))() == [1, 4]
    assert square.map({3: "three", 4: "four"})() == [9, 16]
    assert add.map([square(2), 3], [1, square(3)])() == [5, 12]
    nothing: Any = ""
    assert square.map(nothing)() == []
    assert add.starmap([])() == []


def test_items_that_a_call_gives_are_mapped_when_they_are_there() -> None:
    @process
    def numbers(count: int) -> list[int]:
        return list(range(count))

    assert square.map(numbers(4))() == [0, 1, 4, 9]
    assert total(square.map(numbers(4)))() == 14
    assert add.map(numbers(3), square.map(numbers(3)))() == [0, 2, 6]
    pairs = process(lambda: [(1, 2), (3, 4)])
    assert add.starmap(pairs())() == [3, 7]
    assert Scale(2).times.map(numbers(3))() == [0, 2, 4]


def test_falsy_and_strange_values_are_values() -> None:
    same = process(lambda x: x)
    values: list[Any] = [None, 0, "", [], ValueError("a value"), {}, float("inf"), b"x" * 100_000]
    got = same.map(values)()
    assert repr(got) == repr(values)


def test_a_value_is_its_own_list_each_time() -> None:
    @thread
    def grow(values: list[int]) -> int:
        values.append(1)
        return len(values)

    shared = square.map([1, 2])
    assert gather(grow(shared), grow(shared), shared)() == [3, 3, [1, 4]]


@pytest.mark.parametrize("chunksize", [1, 7, 1000])
def test_chunksize_says_how_many_a_worker_takes(chunksize: int) -> None:
    assert square.map(range(50), chunksize=chunksize)() == [x * x for x in range(50)]


def test_a_failed_item_is_named() -> None:
    @process
    def inverse(x: int) -> float:
        return 1 / x

    with pytest.raises(ZeroDivisionError) as caught:
        inverse.map([1, 0, 2])()
    said = notes_of(caught.value)
    assert "call path: inverse.map(inverse(…), inverse(…), inverse(…)) → inverse\n" in said
    assert "inverse(0)" in said


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: gather([square(1)]), r"gather\(\*calls\)"),
        (lambda: gather(square(x) for x in (1, 2)), r"gather\(\*calls\)"),
        (lambda: gather(3), "gather takes calls, not 3"),
        (lambda: square.map(3), "square.map takes iterables, not 3"),  # type: ignore[call-overload]
        (lambda: square.map([1], return_exceptions=True), r"write gather\(\*\[square\(x\) for x in xs\], return_exceptions=True\)"),  # type: ignore[call-overload]
        (lambda: add.map([1], b=3), r"write gather\(\*\[add\(x, b=…\) for x in xs\]\)"),  # type: ignore[call-overload]
        (lambda: square.starmap([1]), "item 0 is 1"),  # type: ignore[list-item]
        (lambda: square.starmap(5), "iterable of tuples, not 5"),  # type: ignore[call-overload]
        (lambda: square.starmap([(1, 2, 3)]), "square"),  # type: ignore[list-item]
        (lambda: square.map([1], [2]), "square"),  # type: ignore[call-overload]
    ],
)
def test_bad_arguments_are_refused_when_built(build: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        build()


@pytest.mark.parametrize("chunksize", [0, -1, True, 1.5, "3"])
def test_a_bad_chunksize_is_refused(chunksize: Any) -> None:
    with pytest.raises(OptionError, match="chunksize="):
        square.map([1], chunksize=chunksize)


def test_a_named_call_is_another_call() -> None:
    call = square(3)
    named = call.named("three")
    assert named is not call
    assert named() == 9
    assert named.name == "three"
    assert call.name is None
    assert repr(named) == "<call square(3) 'three'>"
    assert gather(square(1).named("a"), square(2)).named("both")() == [1, 4]
    assert total(square.map([1, 2]).named("squares"))() == 5


def test_arguments_that_are_added_leave_name_and_options_as_they_are() -> None:
    failed, value = gather(fails(3), return_exceptions=True)(square(2))
    assert isinstance(failed, ValueError)
    assert value == 4
    with pytest.raises(ValueError) as caught:
        add_then_fail(1).named("fold 3")(2)
    assert "call path: fold 3" in notes_of(caught.value)


@pytest.mark.parametrize("add_to", [lambda call: call(2), lambda call: call(square(2), return_exceptions=True), lambda call: call([3])])
def test_what_is_no_call_cannot_be_added_to_gathered_calls(add_to: Any) -> None:
    with pytest.raises(ArgumentError, match="takes more calls"):
        add_to(square.map([1]))


def test_errors_show_the_name_of_a_call() -> None:
    @process
    def fail(x: int) -> int:
        raise ValueError(x)

    with pytest.raises(ValueError, match="3") as caught:
        total(gather(square(1), fail(3).named("fold 3")))()
    assert "call path: total([square(…), fold 3]) → fold 3\n" in notes_of(caught.value)


def test_names_cannot_move_the_cursor() -> None:
    bad = process(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        gather(bad().named("a\x1b[31m\nb"))()
    assert r"→ a\x1b[31m\nb" in notes_of(caught.value)


@pytest.mark.parametrize("name", ["", "  ", 3, None])
def test_a_bad_name_is_refused(name: Any) -> None:
    with pytest.raises(OptionError, match="a name is a string"):
        square(1).named(name)


# Options of a whole run ---------------------------------------------------------------------------


@process
def sleeps(seconds: float, path: str = "") -> float:
    if path:
        note(path, os.getpid())
    time.sleep(seconds)
    return seconds


@pytest.mark.parametrize(("start", "seconds"), [("fork", 1), ("forkserver", 3), pytest.param("spawn", 8, marks=pytest.mark.drill)])
def test_a_run_past_its_timeout_is_stopped(start: Any, seconds: int, tmp_path: Path) -> None:
    with pytest.raises(RunTimeoutException, match=rf"its timeout of {seconds} s: .*sleeps\(60"):
        gather(square(1), sleeps(60.0, str(tmp_path / "pid"))).run(timeout=seconds, start=start)
    (pid,) = pids_in(tmp_path / "pid")
    wait_until(lambda: not alive(pid))


def test_a_timeout_is_no_value() -> None:
    with pytest.raises(RunTimeoutException):
        gather(sleeps(60.0), return_exceptions=True).run(timeout=0.3)


def test_a_timeout_reaches_what_runs_in_the_calling_thread() -> None:
    @workflow
    def inner() -> Any:
        return sleeps(60.0)

    with pytest.raises(RunTimeoutException, match=r"timeout of 0.5 s"):
        inner().run(timeout=0.5)

    @task
    def busy() -> int:
        time.sleep(0.2)
        return 1

    with pytest.raises(RunTimeoutException, match=r"timeout of 0.1 s"):
        busy().run(timeout=0.1)


def test_a_timeout_in_a_body_is_its_error() -> None:
    @process
    def outer() -> str:
        try:
            sleeps(60.0).run(timeout=0.2)
        except RunTimeoutException as error:
            return str(error)
        return "no timeout"

    assert "timeout of 0.2 s" in outer()()


def test_a_run_that_is_quick_enough_gives_its_value() -> None:
    assert gather(sleeps(0.01)).run(timeout=30) == [0.01]
    assert nested(3).run(timeout=30) == 10


@process
def at_once(directory: str) -> int:
    """The largest number of these bodies that run at once, counted by files in a directory."""
    mine = Path(directory) / f"{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}"
    mine.touch()
    most = 0
    for _ in range(10):
        most = max(most, len(list(Path(directory).iterdir())))
        time.sleep(0.005)
    mine.unlink()
    return most


@pytest.mark.parametrize("kind", ["process", "thread", "fresh"])
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_bounds_how_many_run(workers: int, kind: str, tmp_path: Path) -> None:
    body = at_once.function
    counted: Task[..., int] = {"process": at_once, "thread": thread(body), "fresh": process(fresh=True)(body)}[kind]
    most = counted.map([str(tmp_path)] * 12).run(workers=workers)
    assert max(most) <= workers


def test_workers_bounds_nested_runs_too(tmp_path: Path) -> None:
    @process
    def outer() -> int:
        return max(at_once.map([str(tmp_path)] * 6)())

    assert outer().run(workers=1) == 1


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": -1}, {"timeout": "5"}, {"timeout": True}, {"timeout": float("nan")}])
def test_a_bad_timeout_is_refused(options: Any) -> None:
    with pytest.raises(OptionError, match=r"run: timeout="):
        square(1).run(**options)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True])
def test_a_bad_number_of_workers_is_refused(workers: Any) -> None:
    with pytest.raises(OptionError, match=r"run: workers="):
        square(1).run(workers=workers)


def test_a_bad_way_to_start_is_refused() -> None:
    with pytest.raises(OptionError, match="frok"):
        square(1).run(start="frok")  # type: ignore[arg-type]


def test_a_future_waits_for_the_run_with_options() -> None:
    call = square(4)
    future = call.future()
    assert call.run(workers=1) == 16
    assert future.result() == 16


def test_the_names_of_the_package_are_functions() -> None:
    assert callable(entangle.gather)


def test_nodes_of_a_dataflow_say_how_many_values_are_pushed() -> None:
    from entangle.dataflow import dataflow

    node: Any = dataflow(square.function)
    builds: list[Any] = [lambda: node.map([1]), lambda: node.starmap([(1,)])]
    for build in builds:
        with pytest.raises(ArgumentError, match=r"for y in square\(\)\.stream"):
            build()
