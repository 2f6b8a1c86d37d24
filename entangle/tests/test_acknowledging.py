"""A source that asks for it is told once for each of its items that the item has ended."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from entangle._worker import inline
from entangle.dataflow import dataflow, process, thread, window
from entangle.process import process as in_process
from entangle.sources import every, merge

from .evidence import wait_until


class Told(Iterator[Any]):
    """An iterator that records what it is told."""

    stops_at_once = True

    def __init__(self, values: Iterable[Any]) -> None:
        self._values = iter(values)
        self.ended: list[tuple[int, bool]] = []
        self.closed = threading.Event()
        self.asked = 0

    def __next__(self) -> Any:
        return next(self._values)

    def acknowledging(self) -> Callable[[int, bool], None]:
        self.asked += 1
        return lambda number, well: self.ended.append((number, well))

    def stop(self) -> None:
        """`__next__` never blocks here, so there is nothing to stop."""

    def close(self) -> None:
        self.closed.set()


@dataflow
@process
def half(x: int) -> float:
    if x == 3:
        raise ValueError("not three")
    return x / 2


@dataflow
@thread
def same(x: Any) -> Any:
    return x


@in_process
def plain(x: int) -> float:
    if x == 3:
        raise ValueError("not three")
    return x / 2


WELL = [(number, number != 3) for number in range(50)]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("inflight", [None, 1, 7])
def test_each_item_is_told_once(ordered: bool, inflight: int | None) -> None:
    source = Told(range(50))
    got = [value for (value,) in half().stream(source, inflight=inflight, ordered=ordered, on_error="skip")]
    assert len(got) == 49
    assert sorted(source.ended) == WELL
    assert source.asked == 1
    assert source.closed.is_set()


def test_a_stream_of_a_task_and_an_asynchronous_consumer() -> None:
    source = Told(range(50))

    async def consume() -> int:
        return len([value async for value in plain.stream(source, on_error="skip")])

    assert asyncio.run(consume()) == 49
    assert sorted(source.ended) == WELL


def test_an_item_has_ended_when_the_next_one_is_asked_for() -> None:
    source = Told(range(5))
    with same().stream(source) as values:
        next(values)
        assert source.ended == []
        next(values)
        assert source.ended == [(0, True)]
    assert source.ended == [(0, True)]
    assert source.closed.is_set()


def test_the_item_that_ends_a_stream_has_failed() -> None:
    source = Told(range(50))
    with pytest.raises(ValueError, match="not three"):
        list(half().stream(source))
    assert (3, False) in source.ended
    assert [number for number, well in source.ended if well] == [0, 1, 2]
    assert source.closed.is_set()


def test_an_item_in_a_window_ends_with_its_list() -> None:
    source = Told(range(5))
    flow = same(window(same(), count=2))
    with flow.stream(source) as values:
        assert next(values) == ([0, 1],)
        assert source.ended == []
        assert next(values) == ([2, 3],)
        assert source.ended == [(0, True), (1, True)]
        assert list(values) == [([4],)]
    assert source.ended == [(number, True) for number in range(5)]


def test_merged_sources_are_each_told() -> None:
    one, two = Told(range(20)), Told(range(100, 130))
    assert len(list(same().stream(merge(one, iter(range(7)), merge(two)), ordered=False))) == 57
    assert sorted(one.ended) == [(number, True) for number in range(20)]
    assert sorted(two.ended) == [(number, True) for number in range(30)]
    assert one.closed.is_set()
    assert two.closed.is_set()


def test_merged_without_a_stream() -> None:
    one = Told(range(20))
    assert sorted(merge(one, [1])) == sorted([*range(20), 1])
    assert sorted(one.ended) == [(number, True) for number in range(20)]
    assert one.closed.is_set()


def test_sources_that_do_not_ask() -> None:
    assert not hasattr(iter(every(1)), "acknowledging")
    assert not hasattr(iter(merge(every(1), [1])), "acknowledging")


def test_a_stopped_stream_says_nothing_of_what_was_under_way() -> None:
    going = threading.Event()

    def endless() -> Iterator[int]:
        yield 0
        yield 1
        going.wait(20)

    source = Told(endless())
    values = same().stream(source)
    assert next(values) == (0,)
    going.set()
    values.close()
    wait_until(source.closed.is_set)
    assert source.ended == []


def test_in_an_inline_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "on", True)
    source = Told(range(10))
    assert len(list(half().stream(source, on_error="skip"))) == 9
    assert source.ended == WELL[:10]
    source = Told(range(5))
    flow = same(window(same(), count=2))
    assert list(flow.stream(source)) == [([0, 1],), ([2, 3],), ([4],)]
    assert source.ended == [*WELL[:3], (3, True), (4, True)]


def test_a_merge_that_is_dropped_ends() -> None:
    one = Told(range(20))
    values = iter(merge(one, every(0.01)))
    next(values)
    gc.disable()
    try:
        del values
        assert one.closed.is_set()
    finally:
        gc.enable()
