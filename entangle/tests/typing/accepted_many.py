"""Many calls as one, and the ways to run a call."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from typing_extensions import assert_type

import entangle
from entangle import as_completed, gather
from entangle.process import process
from entangle.task import Call, Start
from entangle.thread import thread
from entangle.workflow import workflow


@process
def one() -> int:
    return 1


@process
def word() -> str:
    return "a"


@process
def half() -> float:
    return 0.5


@process
def square(x: int) -> int:
    return x * x


@thread
def power(x: int, y: int = 2) -> int:
    return x * y


@process
def total(values: list[int]) -> int:
    return sum(values)


@process
def three(a: int, b: str, c: float) -> str:
    return b


@process
async def later(x: int) -> str:
    return str(x)


@workflow
def flow(x: int) -> Call[int]:
    return square(x)


@process
def texts() -> list[str]:
    return ["a"]


@process
def read(path: str | Path) -> bytes:
    return b""


@process
def parse(data: bytes) -> dict[str, int]:
    return {}


@process
def untyped(*values: Any) -> Any:
    return values


async def source() -> AsyncIterator[int]:
    yield 1


def gathered(calls: list[Call[int]]) -> None:
    assert_type(gather(one(), one())(), list[int])
    assert_type(gather(*[square(x) for x in range(3)])(), list[int])
    assert_type(gather(*calls)(), list[int])
    assert_type(gather(one(), word())(), list[int | str])
    assert_type(gather(one(), word(), half())(), list[int | str | float])
    assert_type(gather(one(), one(), return_exceptions=True)(), list[int | BaseException])
    assert_type(gather(one(), word(), return_exceptions=True)(), list[int | str | BaseException])
    assert_type(gather(later(1), later(2))(), list[str])
    assert_type(gather(flow(1), flow(2))(), list[int])
    total(gather(one(), square(2)))
    total(gather(*calls))
    assert_type(gather(one(), later(1))(), list[int | str])
    assert_type(gather(later(1), half(), one())(), list[str | float | int])
    assert_type(gather(one(), half(), one(), later(1))(), list[int | float | str])
    assert_type(gather(flow(1), later(1), return_exceptions=True)(), list[int | str | BaseException])
    assert_type(gather(gather(one()), gather(later(1)))(), list[list[int] | list[str]])
    gather()
    gather(one())
    gather(gather(one()), square.map([1]))


def mapped(pairs: Iterable[tuple[int, int]]) -> None:
    assert_type(square.map([1, 2])(), list[int])
    assert_type(square.map(range(10), chunksize=3)(), list[int])
    assert_type(square.map([one(), 2])(), list[int])
    assert_type(square.map(x for x in (1, 2))(), list[int])
    assert_type(square.map({1: "a"})(), list[int])
    assert_type(later.map([1, 2])(), list[str])
    assert_type(flow.map([1, 2])(), list[int])
    assert_type(power.map([1, 2])(), list[int])
    assert_type(power.map([1, 2], itertools.count())(), list[int])
    assert_type(three.map([1], "a", [0.5])(), list[str])
    assert_type(total(square.map([1, 2]))(), int)
    assert_type(parse.map(read.map(["a", Path("b")]))(), list[dict[str, int]])
    square.map([])
    total.map([[1, 2], [3]])
    read.map(texts())
    untyped.map([1], ["a"], [None])
    assert_type(power.starmap([(1, 2), (3, 4)])(), list[int])
    assert_type(power.starmap([(1,), (3,)])(), list[int])
    assert_type(power.starmap([(one(), 2)])(), list[int])
    assert_type(power.starmap(pairs)(), list[int])
    power.starmap(zip([1], [2], strict=True))
    power.starmap(itertools.product([1, 2], repeat=2))
    power.starmap(itertools.combinations([1, 2, 3], 2))
    power.starmap([[1, 2]])
    three.starmap([(1, "a", 0.5)])
    later.starmap([(1,)])


def streamed() -> None:
    for value in square.stream(range(10), inflight=3):
        assert_type(value, int)
    for text in later.stream([1, 2], ordered=False):
        assert_type(text, str)
    for number in flow.stream(itertools.count(), on_error="skip"):
        assert_type(number, int)
    square.stream(source())
    square.stream([1], on_error=lambda task, item, error: print(task, item, error))


def completed() -> None:
    for future in as_completed([square(x) for x in range(3)], timeout=3):
        assert_type(future.result(), int)
        assert_type(future.call, Call[int])
    for awaited in as_completed([later(1), later(2)]):
        assert_type(awaited.result(), str)
    for named in as_completed({square(1), square(2)}):
        print(named.call.name)


def asked_for(warm: entangle.Session) -> None:
    assert_type(entangle.session(), entangle.Session)
    with entangle.Executor(2) as executor:
        assert_type(executor.submit(square.__wrapped__, 3).result(), int)
    assert_type(entangle.process.process(len)("a")(), int)
    assert_type(square.__wrapped__(3), int)
    print(entangle.errors.EntangleError, entangle.executor.BrokenExecutorError, warm.pids)


def ways_to_run(start: Start, **options: Any) -> None:
    call = square(3)
    assert_type(call.run(), int)
    assert_type(call.run(timeout=3, workers=2, start="fork", progress=True), int)
    assert_type(flow(1).run(), int)
    assert_type(later(1).run(timeout=0.5), str)
    assert_type(call(progress=True), int)
    assert_type(call(start="spawn"), int)
    assert_type(call(start=start), int)
    assert_type(call(proc=False), int)
    assert_type(call(proc=True).result(), int)
    assert_type(flow(1)(proc=True).result(timeout=3), int)
    assert_type(later(1).future().result(), str)
    assert_type(flow(1).future().entangle(), int)
    assert_type(call.named("fold 3")(), int)
    assert_type(square(call.named("fold 3"))(), int)
    assert_type(total([call.named("a"), call.named("b")])(), int)
    future: Future[int] = call.future(callback=lambda done: print(done.result() + 1))
    call.future(callback=print)
    call(**options)
    print(future, call.name, call == call, {call: 1}, {call})


async def awaited() -> None:
    assert_type(await square(1), int)
    assert_type(await flow(1), int)
    assert_type(await later(1), str)
    assert_type(await gather(one(), word()), list[int | str])
    async for value in square.stream(source()):
        assert_type(value, int)
