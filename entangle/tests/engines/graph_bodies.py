"""Tasks for the tests of whole graphs. Workers import them by name, as they do a program's
modules."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow

from ..evidence import note


@process
def square(x: int) -> int:
    return x * x


@process
def total(xs: list[int]) -> int:
    return sum(xs)


@process
def add(a: int, b: int = 0) -> int:
    return a + b


@process
def same(x: Any) -> Any:
    return x


@process
async def soon(x: int) -> int:
    await asyncio.sleep(0.01)
    return x + 1


@thread
def in_thread(x: int) -> int:
    return -x


@workflow
def squares(n: int) -> Any:
    return total(square.map(range(n)))


@process
def nested(n: int) -> tuple[int, int]:
    """The value of a run inside a body, and the pid of the body."""
    return total(square.map(range(n)))(), os.getpid()


@process(timeout=60)
def nested_deep(n: int) -> tuple[int, int]:
    """A run inside a run inside a body, in a worker process of its own."""
    return nested(n)()


@process
def nested_failure(n: int) -> int:
    return fail(n)()


@process
def fail(x: int) -> int:
    raise ValueError(f"no {x}")


@process
def fail_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


@process
def grow(xs: list[int]) -> list[int]:
    xs.append(len(xs))
    return xs


@process
def leave(code: int) -> None:
    raise SystemExit(code)


@process
def pid(_: Any = None) -> int:
    return os.getpid()


@process
def noted(path: str, x: int, seconds: float) -> int:
    """Writes a line when it begins and one when it ends."""
    note(path, "begins", x, os.getpid())
    time.sleep(seconds)
    note(path, "ends", x)
    return x


@process(idempotent=True)
def again(path: str, x: int, seconds: float) -> int:
    """Like `noted`, and it may run again."""
    note(path, "begins", x, os.getpid())
    time.sleep(seconds)
    note(path, "ends", x)
    return x


@process(retry=2, sleep=0.01, on=ValueError)
def third_time(path: str) -> int:
    note(path, "attempt")
    with open(path, encoding="utf-8") as file:
        attempt = len(file.readlines())
    if attempt < 3:
        raise ValueError(f"attempt {attempt}")
    return attempt


@process(retry=1)
def never(path: str) -> int:
    note(path, "attempt")
    raise KeyError("gone")


@process(timeout=0.5)
def late(path: str) -> None:
    note(path, os.getpid())
    time.sleep(600)


@process
def spin(path: str) -> None:
    """Computes until it is stopped."""
    note(path, os.getpid())
    while True:
        for _ in range(1000):
            pass
        note(path, "spins")
        time.sleep(0.02)


@process
def when(_: Any) -> tuple[float, float]:
    """The times at which it began and ended."""
    began = time.time()
    time.sleep(0.05)
    return began, time.time()


@process
def late_value(x: float) -> float:
    """Takes this many seconds, and can be stopped."""
    until = time.monotonic() + x
    while time.monotonic() < until:
        time.sleep(0.02)
    return x


@process
def loud(x: int) -> int:
    """Prints lines, and one without a newline."""
    print("begins", x, flush=True)
    print("warns", x, file=sys.stderr)
    sys.stdout.write(f"half of a line of {x}")
    return x


@process
def loud_for_long() -> None:
    print("this comes at once")
    while True:
        time.sleep(0.02)


@process(timeout=60)
def loud_inside(x: int) -> int:
    """Like `loud`, in a worker process of its own."""
    print("within", x)
    return x


@process
def length(data: Any, _: int) -> int:
    return len(data)


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @process
    def of(self, x: int) -> int:
        return self.factor * x
