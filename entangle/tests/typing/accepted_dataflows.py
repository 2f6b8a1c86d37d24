"""Dataflows: what a node takes, and the leaves as a tuple of their types."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

from typing_extensions import assert_type

from entangle.dataflow import Node, dataflow, process, thread, window
from entangle.local import local
from entangle.scheduler import scheduler


@dataflow
def read(path: str) -> bytes:
    return b""


@dataflow(executor="process", maxworkers=3)
def parse(data: bytes) -> list[int]:
    return []


@dataflow
@thread
def total(values: list[int]) -> int:
    return sum(values)


@process
@dataflow
def longest(values: list[int], otherwise: str = "") -> str:
    return str(max(values))


@scheduler(cpus=2)
@dataflow(callback=print)
@process(timeout=3)
@local
def halves(values: list[int]) -> list[float]:
    return []


@dataflow
async def later(value: int) -> str:
    return str(value)


@dataflow
def show(value: object) -> None:
    print(value)


@dataflow
def anything(value: Any) -> Any:
    return value


@dataflow
def number(value: float) -> complex:
    return value


@dataflow
def totals(values: list[list[int]]) -> int:
    return len(values)


class Parser:
    @dataflow
    def lines(self, data: bytes) -> int:
        return len(data)


async def source() -> AsyncIterator[str]:
    yield "a"


def leaves(parser: Parser) -> None:
    assert_type(read()("a"), tuple[bytes])
    assert_type(read(parse())("a"), tuple[list[int]])
    assert_type(read(parse(total()))("a"), tuple[int])
    assert_type(parse(total(), longest())(b"a"), tuple[int, str])
    assert_type(read(parse(total(), longest()))("a"), tuple[int, str])
    assert_type(parse(total(), longest(), halves())(b"a"), tuple[int, str, list[float]])
    assert_type(read(parse(total(), longest()), show())("a"), tuple[int, str, None])
    assert_type(read(show(), parse(total(), longest()))("a"), tuple[None, int, str])
    assert_type(parse(total(later()), halves(show()))(b"a"), tuple[str, None])
    assert_type(parse(total(later(show())))(b"a"), tuple[None])
    assert_type(total(number())([1]), tuple[complex])
    assert_type(read(parser.lines())("a"), tuple[int])
    assert_type(parse(total(), start := longest())(b"a"), tuple[int, str])
    print(start)


def decided_at_run_time() -> None:
    values: tuple[Any, ...] = read(lambda path: read(parse()) if path else None)("a")
    values = read(lambda path: [read(), show()])("a")
    values = parse(total(), lambda data: parse(total()))(b"")
    values = parse([total(), longest()])(b"")
    values = parse(total(), longest(), halves(), show(), total())(b"")
    print(values)


def of_any_type() -> None:
    anything(anything(), read(), parse())
    read(anything(parse()))("a")


def windows() -> None:
    assert_type(parse(window(totals(), count=3))(b"a"), tuple[int])
    window(totals(), totals(), seconds=0.5)


def ways_to_push(flow: Node[str, tuple[bytes]]) -> None:
    assert_type(flow("a", start="fork"), tuple[bytes])
    assert_type(flow.future("a").result(), tuple[bytes])
    flow.future("a", callback=lambda future: print(future.result()))
    for (data,) in flow.stream(["a", "b"], inflight=3, ordered=False, on_error="skip"):
        assert_type(data, bytes)
    for count, text in read(parse(total(), longest())).stream(itertools.repeat("a")):
        assert_type(count, int)
        assert_type(text, str)
    flow.stream(source())
    flow.graph()
    ways_to_push(read())


async def awaited() -> None:
    assert_type(await read(parse()).push("a"), tuple[list[int]])
    async for (data,) in read().stream(source()):
        assert_type(data, bytes)
