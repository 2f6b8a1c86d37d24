"""Layers, tasks and schedulers of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from typing_extensions import assert_type

from entangle.process import process
from entangle.scheduler import DefaultScheduler, scheduler
from entangle.task import Decorated, Layer, Task, task

P = ParamSpec("P")
R = TypeVar("R")


class Loud(Layer):
    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        print("before")
        return inner(*args, **kwargs)


class Elsewhere(Layer):
    ships = True

    def ship(self, rest: Decorated) -> Callable[..., Any]:
        return rest.function

    def lift(self, rest: Decorated) -> dict[str, Any]:
        return {"timeout": rest.body.timeout}


def loud(function: Callable[P, R]) -> Task[P, R]:
    return task(function, Loud())


class Mine(DefaultScheduler):
    def register(self, f: Callable[..., Any], cpus: int = 12) -> Callable[..., Any]:
        return super().register(f, cpus=cpus)


@process
@loud
def shout(word: str) -> str:
    return word.upper()


@scheduler(cpus=2, impl=f"{__name__}.Mine")
@process
def count(n: int) -> int:
    return n


def check() -> None:
    assert_type(shout("a")(), str)
    assert_type(count(3)(), int)
