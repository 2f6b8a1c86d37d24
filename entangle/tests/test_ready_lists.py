"""The lists of ready nodes in shared memory, compared with a deque."""

from __future__ import annotations

import collections
import random
from typing import Any

from entangle._run.rearmed import GATHER, SOURCE, Row, unroll
from entangle._shared.table import READY_COUNT, Table
from entangle.flow import HERE, PROCESS, THREAD, Body


def _table(nodes: int) -> Table:
    rows = [Row(SOURCE, ()), Row(Body(int, "body"), (0,)), Row(GATHER, (1,))]
    flow, _ = unroll([(rows, nodes // 3)], [])
    return Table.create(flow, 2, [PROCESS, PROCESS, PROCESS], None)


def test_a_ready_list_keeps_its_order_at_both_ends() -> None:
    table, chance = _table(300), random.Random(3)
    lists: dict[int, collections.deque[int]] = {lane: collections.deque() for lane in (PROCESS, THREAD, HERE)}
    out = list(range(300))
    for _ in range(5_000):
        lane = chance.choice(list(lists))
        step = chance.choice(("push", "append", "append", "pop", "pop"))
        if step == "pop":
            node = table.pop(lane)
            assert node == (lists[lane].popleft() if lists[lane] else -1)
            out += [node] if node >= 0 else []
        elif out:
            node = out.pop(chance.randrange(len(out)))
            getattr(table, step)(lane, node)
            lists[lane].appendleft(node) if step == "push" else lists[lane].append(node)
        assert table.header[READY_COUNT + lane] == len(lists[lane])
    table.close()


def test_a_node_is_put_at_the_end_without_a_look_at_those_before() -> None:
    """Appending happens under the lock of a running stream, which may have thousands of items
    waiting."""
    table = _table(3_000)
    looks = 0

    class Counted:
        def __init__(self, column: Any) -> None:
            self.column = column

        def __getitem__(self, at: int) -> int:
            nonlocal looks
            looks += 1
            return int(self.column[at])

        def __setitem__(self, at: int, value: int) -> None:
            self.column[at] = value

        def release(self) -> None:
            self.column.release()

    table.next = Counted(table.next)  # type: ignore[assignment]
    for node in range(3_000):
        table.append(PROCESS, node)
    assert looks <= 3_000
    assert [table.pop(PROCESS) for _ in range(3_000)] == list(range(3_000))
    table.close()
