"""Wrong items, and values of many calls used as what they are not."""

from __future__ import annotations

import entangle
from entangle import as_completed, gather
from entangle.process import process


@process
def one() -> int:
    return 1


@process
def word() -> str:
    return "a"


@process
def square(x: int) -> int:
    return x * x


@process
def power(x: int, y: int = 2) -> int:
    return x * y


@process
def three(a: int, b: str, c: float) -> str:
    return b


@process
def total(values: list[int]) -> int:
    return sum(values)


def check() -> None:
    square.map(["a"])  # error
    square.map(3)  # error
    square.map()  # error
    square.map([1], [2])  # error
    square.map([word()])  # error
    square.map([1], chunksiz=2)  # error
    square.map([1], chunksize="2")  # error
    square.map(one())  # error
    power.map([1], ["a"])  # error
    three.map([1], ["a"])  # error
    three.map([1])  # error
    power.starmap([1, 2])  # error
    power.starmap([("a", 1)])  # error
    three.starmap([(1, "a")])  # error
    power.starmap([(word(), 1)])  # error
    square.stream(["a"])  # error
    square.stream([1], inflights=3)  # error
    square.stream([1], on_error="ignore")  # error
    square.stream([1], start="frok")  # error
    gather(1, 2)  # error
    gather([one()])  # error
    gather(one(), 2)  # error
    square.__wrapped__("a")  # error
    entangle.Executer()  # error
    print(entangle.proces)  # error
    gather(one(), return_exception=True)  # error
    as_completed(one())  # error
    as_completed([1])  # error
    as_completed([one()], timeout="3")  # error
    total(gather(word(), word()))  # error
    total(square(3))  # error
    total(three.map([1], ["a"], [0.5]))  # error
    numbers: list[str] = square.map([1])()  # error
    numbers = gather(one(), one())()  # error
    print(numbers)
