"""The tasks of ``work.py`` as a user of entangle writes them: decorated where they are defined.

Bodies are written out rather than wrapped, so that the figures contain the cost of sending a
decorated function.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from benchmarks import work
from entangle.process import process

if TYPE_CHECKING:
    from benchmarks.work import Array


@process
def leaf(i: int) -> int:
    """Give the number that was given."""
    return i


@process
def marked(n: int) -> int:
    """Give the number that was given; the first one of HALF or more writes down when."""
    mark = os.environ["BENCHMARK_MARK"]
    if n >= work.HALF and not os.path.exists(mark):
        with open(mark, "a", encoding="ascii") as file:
            file.write(f"{time.monotonic()}\n")
    return n


@process
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@process
def square(x: int) -> int:
    """Multiply a number with itself."""
    return x * x


@process
def fails_for_hundredth(x: int) -> int:
    """Fail for each hundredth number."""
    if x % 100 == 50:
        raise ValueError(x)
    return x


@process
def increment(x: int) -> int:
    """Add one."""
    return x + 1


@process
def total(*numbers: int) -> int:
    """Add many numbers."""
    return sum(numbers)


@process
def busy(i: int, seconds: float) -> int:
    """Use a CPU for so many seconds of CPU time."""
    return work.busy(i, seconds)


@process
def pause(i: int, seconds: float) -> int:
    """Sleep."""
    time.sleep(seconds)
    return i


@process
def crunch(number: int, seconds: float) -> tuple[float, float]:
    """Use a CPU for so many seconds of CPU time, and tell from when to when."""
    return work.crunch(number, seconds)


@process
def together(*spans: tuple[float, float]) -> int:
    """Count how many of these went on at one moment, at most."""
    return work.together(*spans)


@process
def make(items: int) -> Array:
    """Make an array of ones."""
    return work.make(items)


@process
def touch(array: Array) -> Array:
    """Read every item and write it into a new array."""
    return array * 1.0


@process
def summed(array: Array) -> float:
    """Add up an array."""
    return float(array.sum())


@process
def signed(items: int, number: int) -> Array:
    """Make an array that tells which process made it."""
    return work.signed(items, number)


@process
def stamped(items: int, number: int) -> tuple[Array, int]:
    """Make an array, and tell when it was there."""
    return work.stamped(items, number)


@process
def modules() -> list[str]:
    """Name the modules that this process has loaded."""
    return work.modules()


@process
def gather_others(*arrays: Array) -> tuple[Array, str, int]:
    """Give back an array that another process made."""
    return work.gather_others(*arrays)


@process
def gather_own(*arrays: Array) -> tuple[Array, str, int]:
    """Give back an array that this process made in an earlier task."""
    return work.gather_own(*arrays)


@process
def gather_new(*arrays: Array) -> tuple[Array, str, int]:
    """Give an array made in this very body."""
    return work.gather_new(*arrays)


@process
def innermost(seconds: float) -> int:
    """Run five busy tasks from inside a task."""
    return total(*[busy(1, seconds) for _ in range(5)])()  # type: ignore[operator,no-any-return,unused-ignore]


@process
def inner(seconds: float) -> int:
    """Run five tasks from inside a task: four of them do it again, the fifth works."""
    return total(  # type: ignore[operator,no-any-return,unused-ignore]
        *[innermost(seconds) for _ in range(4)], busy(1, seconds)
    )()
