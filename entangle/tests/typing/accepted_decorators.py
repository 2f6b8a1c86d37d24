"""Every decorator, bare, with parentheses and with options: `call()` gives the function's own
return type."""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

from entangle.local import local
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.task import Call, Task, task
from entangle.thread import thread
from entangle.workflow import workflow


@process
def bare(a: int, b: int = 2) -> int:
    return a + b


@process()
def parentheses(a: int) -> str:
    return str(a)


@process(timeout=3, wait=4.5, retry=2, sleep=0.5, backoff=2, jitter=0.1, on=ValueError, cache=True, fresh=True)
def options(a: int) -> list[int]:
    return [a]


@process(on=(ValueError, KeyError))
def several() -> None:
    return None


@thread
def in_thread(a: int) -> bytes:
    return bytes(a)


@thread()
def in_thread_parentheses() -> int:
    return 1


@thread(timeout=1)
def in_thread_options(a: str) -> float:
    return float(a)


@task
def plain(a: int) -> dict[str, int]:
    return {"a": a}


@workflow
def flow(a: int) -> Call[int]:
    return bare(a, 2)


@workflow()
def flow_of_flows(a: int) -> Call[int]:
    return flow(a)


@scheduler
@process
def scheduled_bare() -> int:
    return 1


@scheduler(cpus=2)
@process
def scheduled_above(a: int) -> str:
    return str(a)


@process
@scheduler(cpus=2, impl="entangle.scheduler.DefaultScheduler")
def scheduled_below(a: int) -> str:
    return str(a)


@scheduler(gpus=1, share=4)
@process
def scheduled_on_a_gpu(a: int) -> str:
    return str(a)


@process
@scheduler(gpus=2, cpus=1)
def scheduled_on_two_gpus() -> int:
    return 2


@process
@local
def at_home() -> complex:
    return 1j


@process(timeout=60)
@local(cpus=4)
def at_home_with_options(a: int, b: int) -> int:
    return a + b


@process
async def later(a: int) -> str:
    return str(a)


class Account:
    @process
    def after(self, amount: int) -> int:
        return amount

    @staticmethod
    @process
    def double(amount: int) -> int:
        return 2 * amount


def check() -> None:
    assert_type(bare(1)(), int)
    assert_type(bare(1, b=3)(), int)
    assert_type(parentheses(1)(), str)
    assert_type(options(1)(), list[int])
    several()()
    assert_type(in_thread(1)(), bytes)
    assert_type(in_thread_parentheses()(), int)
    assert_type(in_thread_options("1")(), float)
    assert_type(plain(1)(), dict[str, int])
    assert_type(scheduled_bare()(), int)
    assert_type(scheduled_above(1)(), str)
    assert_type(scheduled_below(1)(), str)
    assert_type(scheduled_on_a_gpu(1)(), str)
    assert_type(scheduled_on_two_gpus()(), int)
    assert_type(at_home()(), complex)
    assert_type(at_home_with_options(1, 2)(), int)
    # Behind a descriptor the checkers lose sight of it, and let it pass as anything.
    twice: int = Account.double(3)()
    number: int = Account().after(3)()
    print(twice, number)

    # A workflow's value is that of the call it gives; an async body's is what it gives in the end.
    assert_type(flow(1)(), int)
    assert_type(flow_of_flows(1)(), int)
    assert_type(later(1)(), str)

    # Tasks and calls have types of their own.
    call: Call[int] = bare(1)
    made: Task[..., int] = bare
    assert_type(made(1)(), int)
    assert_type(call(proc=False), int)

    # Functions that are decorated by hand.
    by_hand = process(lambda: 3)
    assert_type(by_hand()(), int)
    assert_type(process(timeout=3)(len)([1])(), int)


async def awaited() -> None:
    assert_type(await bare(1), int)
    assert_type(await flow(1), int)
    assert_type(await later(1), str)


def futures() -> None:
    future = bare(1).future(callback=lambda done: print(done.result()))
    future.entangle()
    value: Any = future.result(timeout=3)
    graph: Any = bare(1).graph(wait=True)
    print(value, graph)
