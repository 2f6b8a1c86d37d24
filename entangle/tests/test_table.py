"""The table: what a killed worker leaves unfinished, and what claiming leaves costs."""

from __future__ import annotations

import os
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle._shared.table import (
    BUSY,
    DONE,
    FAILED,
    FAILED_NODE,
    FINISHED,
    HIGH,
    IDLE,
    LANE,
    LIMIT_RUNNING,
    LOW,
    NEXT_NODE,
    NOBODY,
    NODE,
    OWNER,
    PLANNED,
    READY,
    READY_COUNT,
    READY_HEAD,
    RESTING,
    RUNNING,
    SINKS_LEFT,
    SLOT,
    STARTING,
    STATE,
    STOP,
    UNCLAIMED,
    WAITING_POOL,
    Table,
)
from entangle.flow import PROCESS, THREAD, Body, Flow, Shape
from entangle.pools import cpus

LEAVES = 40


class Counted:
    """The slots of a table. Counts reads and writes, and kills the process after a given number of
    writes."""

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


def graph_of(bodies: list[Body], nodes: list[tuple[int, tuple[int, ...]]]) -> Flow:
    """A flow of nodes. Each node is its body's index and the nodes that it takes; leaves come
    first."""
    starts, inputs = array("q", [0]), array("q")
    for _, taken in nodes:
        inputs.extend(taken)
        starts.append(len(inputs))
    zeros = array("i", bytes(4 * len(nodes)))
    leaves = sum(not taken for _, taken in nodes)
    return Flow(bodies, [Shape(0)], array("i", [body for body, _ in nodes]), zeros, starts, inputs, [], leaves=leaves)


@pytest.fixture(params=["unclaimed", "unclaimed, worn", "another's", "another's, worn"])
def half_done(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Table]:
    """Nodes 0 to 18 are done and 19 runs. Nodes 20 to 39 are unclaimed, or in the range of slot 2.
    Slot 1 may have had an earlier range, which is used up."""
    table = table_of(tmp_path / "table", 6)
    slots = table.slots
    slots[UNCLAIMED * SLOT + LOW] = 20 if "unclaimed" in request.param else LEAVES
    if "unclaimed" not in request.param:
        slots[2 * SLOT + LOW], slots[2 * SLOT + HIGH] = 20, LEAVES
    slots[1 * SLOT + LOW] = slots[1 * SLOT + HIGH] = 5 if "worn" in request.param else 0
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
    assert len(waiting) == (20 if ended else 19)  # the worker was not killed: it claimed one
    assert ended in (0, 9)  # no worker failed with an exception


def test_a_claim_looks_at_as_many_slots_whatever_their_number() -> None:
    def looked(slots: int) -> int:
        """Reads and writes of slots while 40 workers claim a thousand leaves, one at a time."""
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
    # All slots are read only when no known range has leaves left, which is rare.
    assert many < few * 1.5


def test_leaves_of_hundreds_of_workers_are_all_found_by_short_looks() -> None:
    """All workers but one sleep or are dead. That one takes the leaves in their ranges."""
    table = table_of(None, 302, 900)
    table.slots[UNCLAIMED * SLOT + LOW] = 900
    for slot in range(1, 301):  # slot 1 has the last leaves
        table.slots[slot * SLOT + HIGH] = 900 - 3 * (slot - 1)
        table.slots[slot * SLOT + LOW] = 900 - 3 * slot
    table.slots = counted = Counted(table.slots)  # type: ignore[assignment]
    looks: list[int] = []
    taken: list[int] = []
    mine = 301 * SLOT
    while (node := table.claim_leaves(301)) != NOBODY:
        taken.append(node)
        while counted.slots[mine + LOW] < counted.slots[mine + HIGH]:
            taken.append(counted.slots[mine + LOW])
            counted.slots[mine + LOW] += 1
        looks.append(counted.read)
        counted.read = 0
    assert sorted(taken) == list(range(900))
    assert sorted(looks)[len(looks) * 9 // 10] < 100  # it seldom looks at all slots
    table.slots = counted.slots
    table.close()


def test_the_value_of_the_run_is_there_though_its_worker_died_before_it_said_so(tmp_path: Path) -> None:
    table = table_of(tmp_path / "table", 3, 1)
    table.states[0] = DONE
    table.header[OWNER] = 2  # slot 1 died while it held the lock
    with table.locked(UNCLAIMED):
        assert table.header[FINISHED] == 1
    table.close()


@pytest.fixture
def left_behind(tmp_path: Path) -> Iterator[Table]:
    """A table whose lock a killed worker held. All derived counts and lists are wrong.

    Leaves 0 to 3 are done. Node 4 takes 0 and 1. Node 5 takes 2 and runs in a thread. Node 6 takes
    3, belongs to a group with a limit, and runs. Node 7 is the sink and takes all three.
    """
    bodies = [Body(int, "plain", pools=tuple(map(cpus, range(1, 5)))), Body(int, "threaded"), Body(int, "limited", limits=(1,))]
    flow = graph_of(bodies, [(0, ())] * 4 + [(0, (0, 1)), (1, (2,)), (2, (3,)), (0, (4, 5, 6))])
    flow.limits = [3, 2]
    table = Table.create(flow, 6, [PROCESS, THREAD, PROCESS], str(tmp_path / "table"))
    header, slots = table.header, table.slots
    slots[UNCLAIMED * SLOT + LOW] = slots[UNCLAIMED * SLOT + HIGH]
    for node in range(4):
        table.states[node] = DONE
    table.states[6] = RUNNING
    for slot in range(1, 6):
        slots[slot * SLOT + NEXT_NODE] = NOBODY
    slots[1 * SLOT + STATE], slots[1 * SLOT + NODE] = BUSY, 6
    for slot, lane in ((2, PROCESS), (3, THREAD), (4, THREAD)):
        slots[slot * SLOT + STATE], slots[slot * SLOT + LANE] = RESTING, lane
    for field in (*range(READY_HEAD, READY_HEAD + 4), IDLE + PROCESS, IDLE + THREAD):
        header[field] = 3
    for pool in range(4):
        table.waiting[pool] = table.deferred[pool] = 3
    header[READY_COUNT + PROCESS] = header[READY_COUNT + THREAD] = 9
    header[LIMIT_RUNNING + 0] = header[LIMIT_RUNNING + 1] = 5
    header[SINKS_LEFT] = 0
    for node in range(4, 8):
        table.pending[node] = 7
    header[OWNER] = 2
    yield table
    table.close()


def test_whoever_takes_the_lock_of_a_killed_worker_makes_counts_and_lists_right(left_behind: Table) -> None:
    table = left_behind
    table.slots[5 * SLOT + STATE], table.slots[5 * SLOT + WAITING_POOL] = STARTING, 2
    table.slots[2 * SLOT + NEXT_NODE] = 4  # outdated: that worker rests
    with table.locked(UNCLAIMED):
        header = table.header
        assert [header[READY_COUNT + lane] for lane in (PROCESS, THREAD)] == [1, 1]
        assert [table.pop(PROCESS), table.pop(PROCESS), table.pop(THREAD), table.pop(THREAD)] == [4, NOBODY, 5, NOBODY]
        assert [header[READY_COUNT + lane] for lane in (PROCESS, THREAD)] == [0, 0]
        assert [table.pending[node] for node in (4, 5, 7)] == [0, 0, 3]
        assert [header[LIMIT_RUNNING + group] for group in (0, 1)] == [0, 1]
        assert [*table.waiting] == [0, 1, 0, 0]
        assert [header[IDLE + lane] for lane in (PROCESS, THREAD)] == [1, 2]
        assert (header[SINKS_LEFT], header[FINISHED], header[STOP]) == (1, 0, 0)


def test_a_node_that_a_worker_has_just_gone_on_to_is_left_to_it(left_behind: Table) -> None:
    left_behind.slots[1 * SLOT + NEXT_NODE] = 4
    with left_behind.locked(UNCLAIMED):
        assert left_behind.pop(PROCESS) == NOBODY
        assert left_behind.pop(THREAD) == 5


@pytest.mark.parametrize("node", [0, 6])
def test_a_failure_that_a_killed_worker_has_not_told_ends_the_run(left_behind: Table, node: int) -> None:
    left_behind.states[node] = FAILED
    with left_behind.locked(UNCLAIMED):
        assert (left_behind.header[FAILED_NODE], left_behind.header[STOP]) == (node, 1)


def test_nodes_that_wait_for_cookies_of_several_pools_are_kept_apart() -> None:
    flow = graph_of([Body(int, "pooled", pools=tuple(map(cpus, range(1, 17))))], [(0, ())] * LEAVES)
    table = Table.create(flow, 2, [PROCESS], None)
    for pool in (0, 1, 15):
        for node in (pool, pool + 16):
            table.defer_for_cookie(pool, node)
    assert [[table.take_deferred(pool) for _ in range(3)] for pool in (15, 1, 0)] == [[15, 31, NOBODY], [1, 17, NOBODY], [0, 16, NOBODY]]
    table.close()


def test_nodes_over_the_limit_of_a_group_become_ready_when_one_of_it_ends() -> None:
    bodies = [Body(int, "both", limits=(0, 1))]
    flow = graph_of(bodies, [(0, ())] * 5)
    flow.limits = [1, 2]
    table = Table.create(flow, 2, [PROCESS], None)
    table.header[LIMIT_RUNNING + 0], table.header[LIMIT_RUNNING + 1] = 1, 1
    assert [table.full((0, 1), flow.limits), table.full((1,), flow.limits)] == [0, NOBODY]
    for group, node in ((0, 2), (0, 3), (1, 4)):
        table.defer_for_limit(group, node)
    assert table.release_limits((0,), [PROCESS], flow.body_of) == 2
    assert {table.pop(PROCESS), table.pop(PROCESS), table.pop(PROCESS)} == {2, 3, NOBODY}
    assert table.full((0, 1), flow.limits) == NOBODY
    assert table.release_limits((0, 1), [PROCESS], flow.body_of) == 1
    assert table.pop(PROCESS) == 4
    table.close()


def test_a_table_is_its_users_alone_and_what_cannot_be_made_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "table"
    table = table_of(path, 3)
    assert path.stat().st_mode & 0o777 == 0o600
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileExistsError):
        table_of(path, 3)
    with pytest.raises(OSError, match=r"too large|No space"):
        table_of(tmp_path / "huge", 1 << 50)
    (tmp_path / "other").write_bytes(bytes(4096))
    with pytest.raises(ValueError, match="not the table"):
        Table.attach(str(tmp_path / "other"))
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        Table.attach(str(tmp_path / "link"))
    assert len(os.listdir("/proc/self/fd")) == before
    table.close()
    table.close()  # the descriptor may be another file's by now
    os.fstat(1)


def test_an_attached_table_shows_what_others_do_and_waits_for_their_lock(tmp_path: Path) -> None:
    table = table_of(tmp_path / "table", 3)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        other = Table.attach(str(tmp_path / "table"))
        other.lock(1)
        other.header[PLANNED] = 7
        os.write(write, b"x")
        time.sleep(0.2)
        other.header[PLANNED] = 8
        other.unlock()
        os._exit(0)
    os.read(read, 1)
    assert table.header[PLANNED] in (7, 8)
    with table.locked(UNCLAIMED):
        assert table.header[PLANNED] == 8
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(read)
    os.close(write)
    table.close()


def test_a_table_closes_though_the_frames_in_which_it_was_made_are_kept() -> None:
    """Another thread may inspect all frames meanwhile, and keep them alive."""
    kept: list[object] = []
    sys.setprofile(lambda frame, event, argument: kept.append(frame))
    try:
        table = table_of(None, 2)
    finally:
        sys.setprofile(None)
    table.close()
    assert len(kept) > 10
