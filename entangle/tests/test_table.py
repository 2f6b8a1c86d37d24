"""The table: what a killed worker leaves half done, and what a claim of leaves costs."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle._shared.table import BUSY, DONE, FINISHED, HIGH, LOW, NODE, OWNER, PLANNED, READY, RUNNING, SLOT, STATE, UNCLAIMED, Table
from entangle.flow import PROCESS, Body, Flow, Shape

LEAVES = 40


class Counted:
    """The slots of a table: counts how often they are read and written, and ends the process after so many writes."""

    def __init__(self, slots: Any, last: int = 0) -> None:
        self.slots, self.last = slots, last
        self.read = self.written = 0

    def __getitem__(self, at: int) -> Any:
        self.read += 1
        return self.slots[at]

    def __setitem__(self, at: int, value: int) -> None:
        self.slots[at] = value
        self.written += 1
        if self.written == self.last:
            os._exit(9)


def table_of(path: Path | None, slots: int, leaves: int = LEAVES) -> Table:
    zeros = array("i", bytes(4 * leaves))
    flow = Flow([Body(int, "nothing")], [Shape(0)], zeros, zeros[:], array("q", bytes(8 * (leaves + 1))), array("q"), [0], leaves=leaves)
    table = Table.create(flow, slots, [PROCESS], str(path) if path else None)
    table.header[PLANNED] = 2
    return table


@pytest.fixture(params=["unclaimed", "another's"])
def half_done(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Table]:
    """Nodes 0 to 18 are done, 19 runs, 20 to 39 nobody has, or slot 2 has. Slot 1 had a range before, which it has used up."""
    table = table_of(tmp_path / "table", 6)
    slots = table.slots
    slots[UNCLAIMED * SLOT + LOW] = 20 if request.param == "unclaimed" else LEAVES
    if request.param != "unclaimed":
        slots[2 * SLOT + LOW], slots[2 * SLOT + HIGH] = 20, LEAVES
    slots[1 * SLOT + LOW] = slots[1 * SLOT + HIGH] = 5
    for node in range(19):
        table.states[node] = DONE
    table.states[19] = RUNNING
    for slot, node in ((1, -1), (2, 19)):
        slots[slot * SLOT + STATE], slots[slot * SLOT + NODE] = BUSY, node
    yield table
    table.close()


@pytest.mark.parametrize("last", range(1, 10))
def test_a_worker_that_dies_while_it_claims_leaves_loses_none_and_repeats_none(half_done: Table, last: int) -> None:
    table = half_done
    pid = os.fork()
    if pid == 0:
        table.lock(1)
        table.slots = Counted(table.slots, last)  # type: ignore[assignment]
        table.claim_leaves(1)
        table.unlock()
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with table.locked(UNCLAIMED):
        ranges = [range(table.slots[at + LOW], table.slots[at + HIGH]) for at in range(0, table.slot_count * SLOT, SLOT)]
    held = [node for one in ranges for node in one]
    assert len(held) == len(set(held))
    waiting = {node for node in range(LEAVES) if table.states[node] == READY} | set(held)
    assert not waiting & set(range(20))
    assert len(waiting) == (20 if ended else 19)  # who has lived has taken one


def test_a_claim_looks_at_as_many_slots_whatever_their_number() -> None:
    def looked(slots: int) -> int:
        """Reads and writes of slots while 40 workers claim a thousand leaves one by one, to the last."""
        table = table_of(None, slots, 1000)
        table.slots = counted = Counted(table.slots)  # type: ignore[assignment]
        taken, claims, idle = set(), 0, 0
        while idle < 100:
            slot = 1 + claims % 40
            low, high = counted.slots[slot * SLOT + LOW], counted.slots[slot * SLOT + HIGH]
            if low < high and claims % 3:
                counted.slots[slot * SLOT + LOW] = low + 1
                taken.add(low)
            elif low >= high:
                node = table.claim_leaves(slot)
                idle += node < 0
                taken |= {node} - {-1}
            claims += 1
        assert taken == set(range(1000))
        table.slots = counted.slots
        table.close()
        return counted.read + counted.written

    few, many = looked(64), looked(512)
    # Once in a while all slots are looked at: when the ranges that are known are used up.
    assert many < few * 1.5


def test_the_value_of_the_run_is_there_though_its_worker_died_before_it_said_so(tmp_path: Path) -> None:
    table = table_of(tmp_path / "table", 3, 1)
    table.states[0] = DONE
    table.header[OWNER] = 2  # slot 1 has died with the lock
    with table.locked(UNCLAIMED):
        assert table.header[FINISHED] == 1
    table.close()
