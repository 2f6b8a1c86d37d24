"""A call or its value, used as what it is not."""

from __future__ import annotations

from entangle.process import process
from entangle.task import Call, Task
from entangle.workflow import workflow


@process(timeout=3)
def add(a: int, b: int) -> int:
    return a + b


@workflow
def flow() -> int:
    return 1


@workflow
def inner() -> Call[int]:
    return add(1, 2)


@process
async def later() -> str:
    return "a"


def values() -> None:
    word: str = add(1, 2)()  # error
    number: int = add(1, 2)  # error
    add(1, 2)().upper()  # error
    letters: list[str] = flow()()  # error
    add(1, 2).no_such_thing()  # error
    add(1, 2) + 3  # error
    text: str = inner()()  # error
    count: int = later()()  # error
    call: Call[str] = add(1, 2)  # error
    task: Task[[str], int] = add  # error
    name: int = add(1, 2).name  # error
    print(word, number, letters, text, count, call, task, name)


def ways_to_run() -> None:
    add(1, 2)(start="frok")  # error
    add(1, 2)(progress="yes")  # error
    add(1, 2).run(start="frok")  # error
    add(1, 2).run(timeout="3")  # error
    add(1, 2).run(worker=2)  # error
    add(1, 2).run(workers=1.5)  # error
    add(1, 2).named(3)  # error
    add(1, 2).named()  # error
    word: str = add(1, 2).run()  # error
    text: str = add(1, 2)(proc=True).result()  # error
    more: str = add(1, 2).future().result()  # error
    add(1, 2).future(callback=3)  # error
    print(word, text, more)


async def awaited() -> None:
    word: str = await add(1, 2)  # error
    number: int = await later()  # error
    print(word, number)
