"""P9: a graph of a million tasks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from benchmarks import work
from benchmarks.contestants import Contestant, DaskProcesses, Entangle, Futures, Ray
from benchmarks.row import Line, Measured, check, row
from benchmarks.watch import watching

LEAVES = 500_000
SHARE = 200
"""A peer runs a two-hundredth of the graph, times 200: the whole would take minutes."""


@row(
    "P9",
    "1,000,000 tasks in one graph",
    group="size",
    lines=[
        Line("building and running", "s", "time", Entangle.name, 15),
        Line("all processes together", "MB", "memory", Entangle.name, 2000, worst=True),
    ],
    others=(Futures.name, Ray.name, DaskProcesses.name),
    note=f"the peers ran {1_000_000 // SHARE:,} tasks, times {SHARE}; memory is the largest sum of PSS, seen in a run of "
    "its own that is not timed",
)
def million(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Add up half a million leaves, two at a time, and pass the sum through one more task."""
    leaf, add, total = contestant.task(work.leaf), contestant.task(work.add), contestant.task(work.total)
    ours = isinstance(contestant, Entangle)
    share = 1 if ours else SHARE
    leaves = LEAVES // share

    def once(leaves: int) -> tuple[float, float]:
        began = time.perf_counter()
        level = [leaf(i) for i in range(leaves)]
        while len(level) > 1:
            paired = [add(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
            level = paired + level[len(paired) * 2 :]
        root = total(level[0])
        del level
        built = time.perf_counter()
        value = contestant.value(root)
        ended = time.perf_counter()
        check(value, leaves * (leaves - 1) // 2)
        return built - began, ended - built

    once(100)
    memory: Measured = {}
    if ours:
        with watching("memory") as seen:
            once(leaves)
        memory = {"memory": seen["largest"] / 1e6}
    for _ in rounds:
        building, running = once(leaves)
        yield {"time": (building + running) * share, "building": building * share, "running": running * share, **memory}
