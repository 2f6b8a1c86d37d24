"""P15: the lock of the table, which all workers of a run share."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks import work
from benchmarks.contestants import Contestant, EntangleFork
from benchmarks.row import Line, Measured, check, row

LEAVES = 512
WORKERS = 40


@row(
    "P15",
    "the lock of the table",
    group="lock",
    lines=[
        Line(f"held while a tree of {2 * LEAVES - 1} tasks runs", "% of the time", "tree", EntangleFork.name, None),
        Line("held while 1,000 leaves go into one sum", "% of the time", "sum", EntangleFork.name, None),
        Line("a claim of leaves with 64 slots", "us", "few", EntangleFork.name, None),
        Line("… with 512 slots", "times that", "growth", EntangleFork.name, 1.5),
    ],
    note="two workers. Where they hold it for a share of the time, as many workers as would hold it all the time are the most that "
    "tasks of no length can keep busy; tasks of a millisecond can keep a hundred times as many. Measuring adds about 0.3 us to each hold",
)
def lock(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Measure how long the lock is held, and what a claim costs with few and with many slots."""
    leaf, add, total = (contestant.task(task) for task in (work.leaf, work.add, work.total))

    def tree() -> Any:
        level = [leaf(i) for i in range(LEAVES)]
        while len(level) > 1:
            level = [add(level[i], level[i + 1]) for i in range(0, len(level), 2)]
        return level[0]

    for _ in rounds:
        few = _claims(64)
        yield {
            "tree": _held(contestant, tree(), LEAVES * (LEAVES - 1) // 2),
            "sum": _held(contestant, total(*[leaf(i) for i in range(1000)]), 499_500),
            "few": few,
            "growth": _claims(512) / few,
        }


def _held(contestant: Contestant, call: Any, wanted: int) -> float:
    """The per cent of a run's time during which a process held the lock of its table."""
    from entangle._shared.table import Table

    held = memoryview(mmap.mmap(-1, 8 * 1024)).cast("q")
    taken, let_go = Table.lock, Table.unlock
    since: dict[int, tuple[int, int]] = {}

    def lock(table: Table, owner: int) -> None:
        taken(table, owner)
        since[id(table)] = (owner, time.monotonic_ns())

    def unlock(table: Table) -> None:
        owner, began = since.pop(id(table), (0, 0))
        if began:
            held[owner] += time.monotonic_ns() - began
        let_go(table)

    Table.lock, Table.unlock = lock, unlock  # type: ignore[method-assign,assignment]
    try:
        began = time.monotonic_ns()
        check(contestant.value(call), wanted)
        took = time.monotonic_ns() - began
    finally:
        Table.lock, Table.unlock = taken, let_go  # type: ignore[method-assign,assignment]
    return 100 * sum(held) / took


def _claims(slots: int) -> float:
    """The microseconds of a claim, where 40 workers go through 20,000 leaves."""
    from entangle._shared.table import HIGH, LOW, PLANNED, SLOT, Table
    from entangle.flow import PROCESS, Body, Flow, Shape

    count = 20_000
    one = array("i", bytes(4 * count))
    flow = Flow(
        [Body(work.leaf, "leaf")], [Shape(0)], one, array("i", one), array("q", bytes(8 * (count + 1))), array("q"), [], leaves=count
    )
    spent = claims = seen = 0
    with tempfile.TemporaryDirectory() as place:
        table = Table.create(flow, slots, [PROCESS], os.path.join(place, "table"))
        table.header[PLANNED] = WORKERS
        working = list(range(1, WORKERS + 1))
        while working:
            for slot in list(working):
                base = slot * SLOT
                left = table.slots[base + HIGH] - table.slots[base + LOW]
                if left > 0:
                    step = min(left, slot)  # slots differ in speed, so that claims must take leaves from others
                    table.slots[base + LOW] += step
                    seen += step
                    continue
                began = time.perf_counter_ns()
                node = table.claim_leaves(slot)
                spent += time.perf_counter_ns() - began
                claims += 1
                if node < 0:
                    working.remove(slot)
                else:
                    seen += 1
        table.close()
    check(seen, count)
    return spent / claims / 1000
