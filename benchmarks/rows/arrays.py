"""P7 and P8: arrays of 100 MB from task to task and back to the caller."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks import work
from benchmarks.contestants import PEERS, Contestant, Entangle, OneProcess, Parsl
from benchmarks.row import Line, Measured, check, row, seconds

MOST = tuple(name for name in PEERS if name != Parsl.name)
"""All but Parsl, which sends large data as files: by its interchange P7 takes 18 seconds."""


@row(
    "P7",
    "an array of 100 MB: made, three times a * 1.0, summed, each a task",
    group="arrays",
    lines=[Line("", "ms", "time", Entangle.name, 1.15, relative_to=OneProcess.name)],
    others=(OneProcess.name, *MOST),
    note="target: 1.15 times the same lines in one process. Parsl takes 18 s and was left out",
)
def array_chain(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Hand a large array from task to task."""
    # As a program that works with arrays does at its top. Else the fresh processes of each run
    # would import numpy, too.
    import numpy  # noqa: F401

    make, touch, summed = contestant.task(work.make), contestant.task(work.touch), contestant.task(work.summed)

    def once(items: int = work.ITEMS) -> float:
        value: float = contestant.value(summed(touch(touch(touch(make(items))))))
        return value

    once()  # the first use of memory that a virtual machine has not used for a while is slow
    for _ in rounds:
        yield {"time": seconds(once, float(work.ITEMS), most=5) * 1e3}


@row(
    "P8",
    "one of 4 arrays of 100 MB back to the caller, after the task that gathered them has ended",
    group="arrays",
    lines=[
        Line("made by another worker", "ms", "other", Entangle.name, 5),
        Line("made by the same worker", "ms", "own", Entangle.name, 5),
        Line("made in the task itself", "ms", "new", Entangle.name, None),
    ],
    others=MOST,
    note="from the last statement of the gathering task to the caller that holds the array. One made in the gathering "
    "task itself has to be copied once, at the speed of memory",
)
def array_back(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Make four arrays at once, gather them, and give one to the caller."""
    import numpy  # noqa: F401

    signed = contestant.task(work.signed)
    ours = isinstance(contestant, Entangle)
    # A peer needs seconds for each of these, and treats an array alike whichever process made it.
    gathers = [work.gather_others, work.gather_own, work.gather_new] if ours else [work.gather_others]

    def once(gather: Any, items: int = work.ITEMS) -> tuple[str, float]:
        array, made_by, ended = contestant.value(gather(*[signed(items, i) for i in range(4)]))
        held = time.monotonic_ns()
        check((array.shape, float(array[2:].sum())), ((items,), float(items - 2)))
        check(int(array[1]) in range(4), True)
        return made_by, (held - ended) / 1e6

    tasks = [contestant.task(gather) for gather in gathers]
    for gather in tasks:
        once(gather, work.ITEMS if ours else 1000)
    for _ in rounds:
        measured: Measured = {}
        for gather in tasks:
            made_by, took = once(gather)
            # Which worker makes which array is chance: count it as what it is, not as what was
            # looked for.
            measured[made_by if ours else "other"] = took
        if not ours:
            measured["own"] = measured["new"] = measured["other"]
        yield measured
