"""Streams of tasks give the values that the task's calls have."""

from __future__ import annotations

from collections.abc import AsyncIterator

from entangle.dataflow import dataflow
from entangle.process import process
from entangle.task import Call
from entangle.thread import thread
from entangle.workflow import workflow


@process
def named(x: int) -> str:
    return str(x)


@thread(timeout=3)
async def later(x: int) -> float:
    return float(x)


@workflow
def written(x: int) -> Call[str]:
    return named(x)


@dataflow
@process
def node(x: int) -> int:
    return x


class Scale:
    @process
    def times(self, x: int) -> bytes:
        return bytes(x)


async def endless() -> AsyncIterator[int]:
    while True:
        yield 1


def tell(*what: object) -> None:
    print(what)


texts: list[str] = list(named.stream(range(3)))
numbers: list[float] = list(later.stream([1], ordered=False))
resolved: list[str] = list(written.stream(iter([1]), inflight=3))
of_a_method: list[bytes] = list(Scale().times.stream([1], on_error="skip", start="spawn"))
leaves: list[tuple[object, ...]] = list(node().stream([1]))

for text in named.stream(endless(), on_error=tell):
    text.upper()


async def listen() -> None:
    async for text in named.stream(endless()):
        text.upper()
    values = named.stream([1])
    await values.aclose()


with named.stream([1]) as stream:
    first: str = next(stream)
    left_out: int = stream.skipped
    stream.close()
