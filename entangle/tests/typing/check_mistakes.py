"""Mistakes that a type checker must find. Each line carries the ignore that shows it does."""

from __future__ import annotations

from entangle.local import local
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.thread import thread
from entangle.workflow import workflow


@process
def add(a: int, b: int) -> int:
    return a + b


@workflow
def flow() -> int:
    return 1


def values() -> None:
    word: str = add(1, 2)()  # type: ignore[assignment]
    number: int = add(1, 2)  # type: ignore[assignment]
    add(1, 2)().upper()  # type: ignore[attr-defined]
    letters: list[str] = flow()()  # type: ignore[assignment]
    add(1, 2).no_such_thing()  # type: ignore[attr-defined]
    print(word, number, letters)


def options() -> None:
    process(timout=3)  # type: ignore[call-overload]
    process(timeout="3")  # type: ignore[call-overload]
    process(retry=1.5)  # type: ignore[call-overload]
    process(on="ValueError")  # type: ignore[call-overload]
    process(3)  # type: ignore[call-overload]
    thread(fresh=True)  # type: ignore[call-overload]
    scheduler(cpus="2")  # type: ignore[call-overload]
    scheduler(cpu=2)  # type: ignore[call-overload]
    scheduler(gpus="1")  # type: ignore[call-overload]
    scheduler(share=2)  # type: ignore[call-overload]
    scheduler(gpus=1, impl="package.Class")  # type: ignore[call-overload]
    local(cpu=2)  # type: ignore[call-overload]
    workflow(timeout=3)  # type: ignore[call-overload]
