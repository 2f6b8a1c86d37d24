"""O1: how long it takes to find a value that was computed before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.contestants import Contestant, DiskCache, EntangleDepot, JoblibMemory
from benchmarks.row import Line, Measured, row, seconds

NUMBERS = 13_107_200
"""Of 8 bytes each: an array of 100 MB."""


def double(n: int) -> int:
    return 2 * n


def ramp(n: int) -> Any:
    import numpy

    return numpy.arange(n, dtype=numpy.int64)


@row(
    "O1",
    "a value that was computed before",
    group="hits",
    lines=[
        Line("a small one", "µs", "small", EntangleDepot.name, 100),
        Line("an array of 100 MB, after its first read", "ms", "large", EntangleDepot.name, 2),
    ],
    others=(JoblibMemory.name, DiskCache.name),
    note="in one process; one item of the array is looked at. joblib.Memory maps it as well, diskcache reads it",
)
def hits(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Ask for the same two values over and over."""
    small, large = contestant.task(double), contestant.task(ramp)
    for task, argument in ((small, 21), (large, NUMBERS)):
        for _ in range(2):
            contestant.value(task(argument))
    for _ in rounds:
        yield {
            "small": seconds(lambda: contestant.value(small(21)), 42, most=200) * 1e6,
            "large": seconds(lambda: int(contestant.value(large(NUMBERS))[-1]), NUMBERS - 1) * 1e3,
        }
