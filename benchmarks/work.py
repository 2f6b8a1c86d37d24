"""The tasks: plain functions that every contestant runs. ``decorated.py`` has the same ones for
entangle."""

from __future__ import annotations

import math
import os
import random
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

ITEMS = 12_500_000
"""How many float64 make 100 MB."""


def leaf(i: int) -> int:
    """Give the number that was given."""
    return i


HALF = 50_000


def marked(n: int) -> int:
    """Give the number that was given; the first one of HALF or more writes down when."""
    mark = os.environ["BENCHMARK_MARK"]
    if n >= HALF and not os.path.exists(mark):
        with open(mark, "a", encoding="ascii") as file:
            file.write(f"{time.monotonic()}\n")
    return n


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def increment(x: int) -> int:
    """Add one."""
    return x + 1


def total(*numbers: int) -> int:
    """Add many numbers."""
    return sum(numbers)


def busy(i: int, seconds: float) -> int:
    """Use a CPU for so many seconds of CPU time, and give ``i``.

    CPU time, not wall-clock time: by the clock, twice as many processes as there are CPUs would
    seem to work twice as fast, and a contestant's own use of a CPU would cost it nothing.
    """
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return i


def crunch(number: int, seconds: float) -> tuple[float, float]:
    """Use a CPU for so many seconds of CPU time, and give when it began and ended."""
    began = time.monotonic()
    busy(number, seconds)
    return began, time.monotonic()


def together(*spans: tuple[float, float]) -> int:
    """Count how many of these spans overlapped at most."""
    return max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans)


def spin(seconds: float) -> None:
    """Use a CPU for so many seconds."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def back(value: Any) -> Any:
    """Give what was given."""
    return value


def pause(i: int, seconds: float) -> int:
    """Sleep, and give ``i``."""
    time.sleep(seconds)
    return i


def square(x: int) -> int:
    """Square a number."""
    return x * x


def fails_for_hundredth(x: int) -> int:
    """Fail for each hundredth number."""
    if x % 100 == 50:
        raise ValueError(x)
    return x


def make(items: int) -> Array:
    """Make an array of ones."""
    import numpy as np

    return np.ones(items)


def touch(array: Array) -> Array:
    """Read every item and write it into a new array."""
    return array * 1.0


def summed(array: Array) -> float:
    """Add up an array."""
    return float(array.sum())


def signed(items: int, number: int) -> Array:
    """Make an array of ones whose first items tell which process made it, and which of the arrays
    it is."""
    array = make(items)
    array[0] = os.getpid()
    array[1] = number
    return array


def stamped(items: int, number: int) -> tuple[Array, int]:
    """Make an array of ones that begins with a number, and give the nanosecond at which the body
    ended."""
    array = make(items)
    array[0] = number
    return array, time.monotonic_ns()


def modules() -> list[str]:
    """Name the modules that this process has loaded."""
    return sorted(sys.modules)


def gather_others(*arrays: Array) -> tuple[Array, str, int]:
    """Give back an array that another process made, if there is one, and the nanosecond at which
    the body ended."""
    me = os.getpid()
    for array in arrays:
        if array[0] != me:
            return array, "other", time.monotonic_ns()
    return arrays[0], "own", time.monotonic_ns()


def gather_own(*arrays: Array) -> tuple[Array, str, int]:
    """Give back an array that this process made, if there is one, and the nanosecond at which the
    body ended."""
    me = os.getpid()
    for array in arrays:
        if array[0] == me:
            return array, "own", time.monotonic_ns()
    return arrays[0], "other", time.monotonic_ns()


def gather_new(*arrays: Array) -> tuple[Array, str, int]:
    """Give an array that this body makes, and the nanosecond at which the body ended."""
    array = arrays[0] * 1.0
    return array, "new", time.monotonic_ns()


def durations(seed: int, tasks: int = 200, mean: float = 0.010, sigma: float = 1.5) -> list[float]:
    """Give lognormal durations in seconds, scaled so that their mean is exactly ``mean``.

    Without the scaling, the sum of one sample in ten would be a fifth larger or smaller, and rounds
    could not be compared.
    """
    source = random.Random(seed)
    raw = [math.exp(source.gauss(0.0, sigma)) for _ in range(tasks)]
    scale = mean * tasks / sum(raw)
    return [one * scale for one in raw]


def lower_bound(times: list[float], cpus: int) -> float:
    """Give the seconds that every schedule needs: the longest task, or all of the work spread
    evenly."""
    return max(max(times), sum(times) / cpus)


def longest_first(times: list[float], cpus: int) -> float:
    """Give the seconds of the schedule that knows all durations and always starts the longest task
    left (Graham's LPT rule)."""
    loads = [0.0] * cpus
    for one in sorted(times, reverse=True):
        loads[loads.index(min(loads))] += one
    return max(loads)


def nothing(*_: Any) -> None:
    """Do nothing: a task to show that a pool has started."""
