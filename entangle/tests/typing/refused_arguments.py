"""Wrong arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from entangle.process import process
from entangle.task import Call
from entangle.thread import thread
from entangle.workflow import workflow


@process
def one() -> int:
    return 1


@process
def word() -> str:
    return "a"


@process
def nothing() -> None:
    return None


@process
def load(number: int) -> str:
    return str(number)


@process
def size(text: str, *, scale: float = 1.0) -> float:
    return len(text) * scale


@thread
def join(*parts: str) -> str:
    return "".join(parts)


@process
def add(a: int, b: int) -> int:
    return a + b


@process
def defaults(a: int, b: int = 2, *, name: str = "", on: bool = False) -> int:
    return a + b


@process
def by_position(a: int, b: int, /, c: int) -> int:
    return c


@process
def literal(mode: Literal["a", "b"], n: int) -> int:
    return n


@process
def apply(f: Callable[[int], str], n: int) -> str:
    return f(n)


@process
def total(values: list[int]) -> int:
    return sum(values)


@process
def more(values: list[int], k: int = 0) -> int:
    return k


@process
def sequence(values: Sequence[str]) -> int:
    return 1


@process
def counts(of: dict[str, int] | None = None) -> int:
    return 1


@process
def numbers(values: tuple[int, ...]) -> int:
    return 1


@process
def pair(values: tuple[int, str]) -> int:
    return 1


@process
def unique(values: set[int]) -> int:
    return 1


@process
def rows(values: list[list[int]]) -> int:
    return 1


@process
def both(values: list[int], names: dict[str, int]) -> int:
    return 1


@process
def six(a: int, b: str, c: int, d: str, e: int, f: str) -> int:
    return 1


@process
async def later() -> int:
    return 1


@workflow
def flow() -> Call[int]:
    return one()


def values() -> None:
    load("3")  # error
    load(3.5)  # error
    load(None)  # error
    load()  # error
    load(3, 4)  # error
    load([3])  # error
    add(1)  # error
    add(1, 2, 3)  # error
    add("a", 2)  # error
    add(1, "b")  # error
    join("a", 2)  # error
    literal("c", 1)  # error
    by_position(1, 2)  # error
    by_position(1, b=2, c=3)  # error
    apply(len, 1)  # error
    load(load)  # error


def keywords() -> None:
    load(count=3)  # error
    load(number="3")  # error
    load(number=None)  # error
    add(a=1, c=2)  # error
    add(1, c=2)  # error
    add(1, 2, a=3)  # error
    size("a", scale="2")  # error
    size("a", scal=2)  # error
    defaults(1, nam="a")  # error
    defaults(1, name=3)  # error
    defaults(1, 2, onn=True)  # error
    size("a", 2)  # error


def calls() -> None:
    load(load(3))  # error
    load(nothing())  # error
    load(one(), one())  # error
    size(later())  # error
    size(flow())  # error
    size(load(3), scale="2")  # error
    size(load(3), scal=2)  # error
    join(load(1), 2)  # error
    join(load(1), one())  # error
    add(one())  # error
    add(one(), word())  # error
    add(word(), 1)  # error
    add(word(), b=1)  # error
    add(one(), b="2")  # error
    defaults(one(), nam="")  # error
    six(one(), word(), one(), word(), one(), one())  # error
    six(one(), one(), 1, "", 1, "")  # error
    six(one(), word(), 1)  # error


def containers() -> None:
    total(["a"])  # error
    total((1, 2))  # error
    total("abc")  # error
    total([load(1)])  # error
    total([load(1), 1])  # error
    total([one(), "a"])  # error
    total((1, one()))  # error
    total({1: one()})  # error
    total([flow(), word()])  # error
    more([one()], "a")  # error
    more([word()], 1)  # error
    more([one()], word())  # error
    sequence([1, word()])  # error
    counts({1: one()})  # error
    counts({"a": word()})  # error
    numbers((1, word()))  # error
    pair((word(), 1))  # error
    pair((one(), "a", 2))  # error
    unique({word()})  # error
    rows([["a"]])  # error
    rows([[word()]])  # error
    both([one()], {"a": word()})  # error
    both([word()], {"a": one()})  # error
