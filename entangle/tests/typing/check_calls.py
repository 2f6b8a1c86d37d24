"""Calls are accepted where values are expected, wherever an argument may hold one."""

from __future__ import annotations

from typing_extensions import assert_type

from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow


@process
def one() -> int:
    return 1


@process
def add(a: int, b: int) -> int:
    return a + b


@process
def total(values: list[int], names: dict[str, int] | None = None, *more: int, k: int = 0) -> int:
    return sum(values) + sum(more) + k


@thread
def greet(name: str) -> str:
    return name


@workflow
def train(*models: int) -> int:
    return sum(models)


def check() -> None:
    assert_type(add(1, 2)(), int)
    assert_type(add(one(), 2)(), int)
    assert_type(add(one(), add(one(), one()))(), int)
    assert_type(add(a=one(), b=2)(), int)
    assert_type(total([one(), 2], {"a": one()}, one(), 3, k=one())(), int)
    assert_type(greet(greet("x"))(), str)
    assert_type(train(one(), add(1, one()), 3)(), int)

    # More arguments, and how to run, with the call of the call.
    assert_type(total([1])({"a": 2}, 3, k=4), int)
    assert_type(one()(progress=True), int)
    assert_type(one()(start="spawn"), int)
