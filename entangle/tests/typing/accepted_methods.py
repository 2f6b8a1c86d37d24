"""Tasks in classes, and in attributes."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from typing_extensions import assert_type

from entangle.process import process
from entangle.task import Call, Method, Task
from entangle.thread import thread
from entangle.workflow import workflow


@process
def one() -> int:
    return 1


@process
def word() -> str:
    return "a"


@process
def square(x: int) -> int:
    return x * x


class Account:
    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.worker = square

    @process
    def after(self, amount: int, *, note: str = "") -> int:
        return self.amount + amount

    @thread(timeout=3)
    def total(self, amounts: list[int]) -> int:
        return sum(amounts)

    @workflow
    def twice(self, amount: int) -> Call[int]:
        return square(self.after(amount))

    @process
    async def later(self) -> str:
        return "a"

    @classmethod
    @process
    def named(cls, name: str, amount: int = 0) -> str:
        return name

    @staticmethod
    @process
    def double(amount: int) -> int:
        return 2 * amount

    @staticmethod
    @process
    def show(value: Any, width: int = 3) -> str:
        return str(value)


class Savings(Account): ...


@dataclasses.dataclass
class Step:
    run: Task[[int], int]
    then: Task[..., Any] | None = None


class Steps:
    first: ClassVar[Any] = square


def methods(account: Account, savings: Savings) -> None:
    assert_type(account.after(20)(), int)
    assert_type(account.after(one())(), int)
    assert_type(account.after(1, note=word())(), int)
    assert_type(account.twice(one())(), int)
    assert_type(account.later()(), str)
    account.after(amount=one(), note="a")
    account.after(amount=1, note="a")
    account.total([one(), 2])
    savings.after(one())
    square(account.after(20))
    square(account.twice(1))
    assert_type(account.after.map([1, one()])(), list[int])
    made: Method[..., int] = account.after
    assert_type(made(1)(), int)
    assert_type(account.worker(3)(), int)


def of_the_class(account: Account) -> None:
    assert_type(Account.after(account, 20)(), int)
    assert_type(Account.after(account, one())(), int)
    assert_type(Account.after(Savings(3), 20)(), int)


def class_methods(account: Account) -> None:
    name: str = Account.named("a")()
    name = Account.named("a", 3)()
    name = Account.named(word(), one())()
    name = account.named(word())()
    name = Savings.named("a")()
    print(name)


def static_methods(account: Account) -> None:
    number: int = Account.double(3)()
    number = Account.double(one())()
    number = account.double(one())()
    text: str = Account.show(3)()
    text = Account.show(one(), width=one())()
    text = account.show(one(), 3)()
    print(number, text)


def in_attributes(step: Step, steps: Steps) -> None:
    Step(square).run(3)
    step.run(one())
    if step.then is not None:
        step.then(1, one())
    steps.first(3)
    process(Account(3).after)(20)
