"""O3 and O4: what it costs to keep a run, and how soon an interrupted run goes on."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator

import entangle
from benchmarks import work
from benchmarks.contestants import Contestant, EntangleFork
from benchmarks.row import Line, Measured, check, row, seconds

NODES = work.HALF * 2


@contextlib.contextmanager
def records() -> Iterator[str]:
    """A temporary directory for records, and with them for durable runs."""
    before = os.environ.get("ENTANGLE_RECORD_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ENTANGLE_RECORD_DIR"] = folder
        try:
            yield folder
        finally:
            del os.environ["ENTANGLE_RECORD_DIR"]
            if before is not None:
                os.environ["ENTANGLE_RECORD_DIR"] = before


@row(
    "O3",
    "a durable tree of 1,023 tasks beside the same not durable",
    group="durable",
    lines=[Line("more, a task", "µs", "more", EntangleFork.name, 30)],
    note="each durable run is a new one; entering and leaving it is counted",
)
def kept(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Add up 512 leaves, two at a time, kept and not kept."""
    leaf, add = contestant.task(work.leaf), contestant.task(work.add)
    names = iter(range(1 << 30))

    def once() -> int:
        level = [leaf(i) for i in range(512)]
        while len(level) > 1:
            level = [add(level[i], level[i + 1]) for i in range(0, len(level), 2)]
        value: int = contestant.value(level[0])
        return value

    def durably() -> int:
        with entangle.durable(f"tree {next(names)}"):
            return once()

    with records():
        once()
        durably()
        for _ in rounds:
            wanted = 512 * 511 // 2
            yield {"more": (seconds(durably, wanted) - seconds(once, wanted)) / 1023 * 1e6}


@row(
    "O4",
    f"a durable run of {NODES:,} nodes, half done, is taken up",
    group="durable",
    lines=[Line("until the first new node begins", "s", "time", EntangleFork.name, 3)],
    note="building the graph included; the half that is done are leaves of one sum",
)
def taken_up(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Do half of the leaves, leave the block by an error, and enter it again."""
    leaf, total = contestant.task(work.marked), contestant.task(work.total)
    for number in rounds:
        with records() as folder:
            mark = os.environ["BENCHMARK_MARK"] = os.path.join(folder, "mark")
            with contextlib.suppress(LookupError), entangle.durable(f"run {number}"):
                check(contestant.value(total(*[leaf(n) for n in range(NODES // 2)])), sum(range(NODES // 2)))
                raise LookupError
            began = time.monotonic()
            with entangle.durable(f"run {number}"):
                check(contestant.value(total(*[leaf(n) for n in range(NODES)])), sum(range(NODES)))
            with open(mark, encoding="ascii") as file:
                yield {"time": min(map(float, file)) - began}
