"""D1: many small items through three stages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from benchmarks import work
from benchmarks.contestants import Contestant, Entangle, ImapInChunks, MpireStream, PoolImap
from benchmarks.row import Line, Measured, check, row, within
from benchmarks.watch import watching

ITEMS = 100_000
STAGES = (work.increment, work.leaf, work.increment)


@row(
    "D1",
    "a stream of 100,000 small items through 3 process stages, in order",
    group="stream",
    lines=[
        Line("", "µs an item", "time", Entangle.name, 1e6 / 30_000),
        Line("all processes together", "MB", "memory", Entangle.name, None, worst=True),
    ],
    others=(PoolImap.name, ImapInChunks.name, MpireStream.name),
    note="the target is 30,000 items a second; the peers' workers are warm, entangle starts its own in that time. Memory is the "
    "largest sum of PSS, seen in a run of its own that is not timed",
)
def stream(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Push the numbers through three functions and check every one that comes out."""

    def once(items: int) -> float:
        began = time.perf_counter()
        wanted = 2
        for value in contestant.stream(STAGES, range(items)):
            if value != wanted:
                check(value, wanted)
            wanted += 1
        check(wanted, items + 2)
        return time.perf_counter() - began

    once(1000)
    with watching("memory") as seen:
        once(ITEMS)
    for _ in within(rounds, 60.0):
        yield {"time": once(ITEMS) / ITEMS * 1e6, "memory": seen["largest"] / 1e6}
