"""P13: what it costs to record a run, and how long it takes to record a large one and to show
it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator

from benchmarks import work
from benchmarks.contestants import Contestant, EntangleFork
from benchmarks.row import Line, Measured, check, row, seconds

LEAVES = 50_000


@row(
    "P13",
    "P1 with recording on",
    group="small",
    lines=[
        Line("times P1", "x", "ratio", EntangleFork.name, 1.25),
        Line("100,000 nodes: to record", "s", "recorded", EntangleFork.name, 3),
        Line("100,000 nodes: to show", "s", "shown", EntangleFork.name, 2),
    ],
    note="with and without in turn, in one process; to record: what the run takes longer, and the rows of all its nodes; to show: as SVG",
)
def recorded(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Add up 512 leaves, two at a time, unrecorded and recorded; then 50,000, once in a round."""
    from entangle import records

    leaf, add = contestant.task(work.leaf), contestant.task(work.add)

    def tree(leaves: int) -> int:
        level = [leaf(i) for i in range(leaves)]
        while len(level) > 1:
            level = [add(*level[i : i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
        value: int = contestant.value(level[0])
        return value

    def once() -> int:
        return tree(512)

    def timed(leaves: int) -> float:
        began = time.perf_counter()
        check(tree(leaves), leaves * (leaves - 1) // 2)
        return time.perf_counter() - began

    before = {name: os.environ.get(name) for name in ("ENTANGLE_RECORD", "ENTANGLE_RECORD_DIR")}
    place = os.environ["ENTANGLE_RECORD_DIR"] = tempfile.mkdtemp(prefix="records-")
    try:
        once()
        for number in rounds:
            took = {}
            for way in ("0", "1") if number % 2 else ("1", "0"):
                os.environ["ENTANGLE_RECORD"] = way
                took[way] = seconds(once, 512 * 511 // 2)
            os.environ["ENTANGLE_RECORD"] = "0"
            plain = timed(LEAVES)
            records.runs(limit=1)  # takes in what has been recorded until now
            os.environ["ENTANGLE_RECORD"] = "1"
            longer = timed(LEAVES) - plain
            began = time.perf_counter()
            run = records.run()
            bound = time.perf_counter()
            check(run.node_count, 2 * LEAVES - 1)
            run.to_svg()
            shown = time.perf_counter() - bound
            records.forget(run.id)
            yield {"ratio": took["1"] / took["0"], "recorded": longer + bound - began, "shown": shown}
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(place, ignore_errors=True)
