"""Calls inside lists, tuples, dicts and sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from entangle.process import process
from entangle.workflow import workflow


class Shape: ...


class Circle(Shape): ...


@process
def one() -> int:
    return 1


@process
def ints() -> list[int]:
    return [1]


@process
def word() -> str:
    return "a"


@process
def circle() -> Circle:
    return Circle()


@process
async def later() -> int:
    return 1


@workflow
def train(*models: int) -> int:
    return sum(models)


@process
def total(values: list[int]) -> int:
    return sum(values)


@process
def more(values: list[int], k: int = 0, name: str = "") -> int:
    return k


@process
def second(k: int, values: list[int]) -> int:
    return k


@process
def third(k: int, name: str, values: list[int]) -> int:
    return k


@process
def sequence(values: Sequence[float]) -> float:
    return sum(values)


@process
def iterable(values: Iterable[int], k: int = 0) -> int:
    return k


@process
def counts(of: dict[str, int] | None = None, n: int = 0) -> int:
    return n


@process
def mapping(of: Mapping[str, int]) -> int:
    return len(of)


@process
def numbers(values: tuple[int, ...]) -> int:
    return len(values)


@process
def pair(values: tuple[int, str], k: int = 0) -> int:
    return k


@process
def triple(values: tuple[int, str, float]) -> int:
    return 1


@process
def unique(values: set[int]) -> int:
    return len(values)


@process
def shapes(values: Sequence[Shape], n: int = 0) -> int:
    return n


@process
def both(values: list[int], names: dict[str, int]) -> int:
    return 1


@process
def three(values: list[int], names: dict[str, int], rest: tuple[int, ...]) -> int:
    return 1


@process
def rows(values: list[list[int]], k: int = 0) -> int:
    return k


@process
def pairs(values: Iterable[tuple[str, int]], k: int = 0) -> int:
    return k


@process
def records(values: Sequence[dict[str, int]]) -> int:
    return 1


@process
def groups(of: Mapping[str, list[int]]) -> int:
    return 1


@process
def lists(*values: list[int]) -> int:
    return 1


@process
def mixed(values: list[int], names: dict[str, int] | None = None, *rest: int, k: int = 0) -> int:
    return k


def in_lists() -> None:
    plain = [1, 2]
    calls = [one() for _ in range(3)]
    total([1])
    total([])
    total(plain)
    total(calls)
    total([one(), one()])
    total([one(), 2])
    total([2, one()])
    total([later(), one(), 3])
    total([one() for _ in range(3)])
    total([one(), *calls])
    more([one(), 3], one())
    more([one(), 3], one(), name="a")
    more([one(), 3], name="a")
    more(plain, one())
    more(calls, 1, word())
    more(calls, k=one())
    second(1, [one(), 2])
    second(one(), plain)
    second(one(), calls)
    third(one(), word(), [one(), 2])
    third(1, "a", calls)
    sequence([one(), 1.5])
    sequence(calls)
    sequence((one(), 2))
    iterable(ints())
    iterable([one()])
    iterable(range(3), one())
    iterable({1, one()})
    shapes([circle(), Circle()])
    shapes([circle()], one())
    shapes((circle(), Shape()))


def in_dicts_tuples_and_sets() -> None:
    counts({"a": one(), "b": 2})
    counts({"a": one()}, one())
    counts({word: one() for word in "abc"})
    counts(None, one())
    mapping({"a": one(), "b": 2})
    numbers((1, one()))
    numbers((one(), one()))
    numbers(tuple(one() for _ in range(3)))
    pair((one(), "a"))
    pair((one(), word()), one())
    triple((one(), word(), 1.5))
    unique({1, one()})
    unique({one() for _ in range(3)})


def in_two_and_more() -> None:
    both([one()], {"a": 1})
    both([1], {"a": one()})
    both([one(), 2], {"a": one(), "b": 2})
    three([1], {"a": 1}, (1, 2))
    three([one()], {"a": one()}, (1, 2))
    three([one()], {"a": one()}, (1, one()))
    lists([one()], [1])
    mixed([one(), 2], {"a": one()}, one(), 3, k=one())
    mixed([1])({"a": 2}, 3, k=4)


def deep() -> None:
    rows([[1]])
    rows([ints(), [2]])
    rows([[one()], [2]])
    rows([[one(), one()], [2, 3]], 1)
    pairs([("a", one())])
    pairs([(word(), 1), ("a", one())], one())
    records([{"a": one()}, {"a": 1}])
    groups({"a": ints()})
    groups({"a": [1], "b": ints()})
    groups({"a": [one(), 2]})


def by_keyword() -> None:
    calls = [one() for _ in range(3)]
    total(values=[one(), one()])
    total(values=[2, one()])
    total(values=calls)
    more(values=calls, k=1)
    more(k=1, values=[1, one()])
    more(k=one(), values=calls)
    more(calls, name=word())
    counts(of={"a": one(), "b": 3}, n=4)
    counts(of=None, n=one())
    counts(n=one(), of={})
    numbers(values=(one(), 2))
    unique(values={one(), 2})
