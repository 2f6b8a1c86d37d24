"""What a run has done, by task name, and how long the rest may take. Read from its table.

A look must cost next to nothing for 100,000 nodes too. So nodes are compared in blocks with the
last look, and only a block in which a state has changed is counted again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from entangle._run.history import History
from entangle._shared.summaries import cut
from entangle._shared.table import (
    BEGUN,
    DONE,
    FAILED,
    NODE,
    RECORD,
    RUNNING,
    SINCE,
    SKIPPED,
    SLOT,
    STRETCH_HIGH,
    STRETCH_LOW,
    UNARMED,
    Table,
)
from entangle.flow import AWAY, Body, Flow

#: Nodes of a block. Smaller ones are more to compare, larger ones more to count again.
BLOCK = 1024
#: How many nodes of a block are asked how long they took, at one look.
_SAMPLES = 32
#: Over how many seconds it is averaged how many nodes run at once.
_RECENT = 5.0
#: The most characters of a name.
_LONGEST = 60
_STATES = (DONE, FAILED, SKIPPED, RUNNING)
#: Turns a state into whether it is DONE.
_IS_DONE = bytes(state == DONE for state in range(256))


@dataclass
class Count:
    """The nodes of one task name: how many there are, and how many of them are in which state."""

    name: str
    total: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    running: int = 0
    #: Those that will never run: of a run that is over.
    lost: int = 0

    @property
    def left(self) -> int:
        """How many are to run yet, those that run now included."""
        return self.total - self.done - self.failed - self.skipped - self.lost

    def add(self, other: Count) -> None:
        """Add the nodes of another run."""
        self.total += other.total
        self.done += other.done
        self.failed += other.failed
        self.skipped += other.skipped
        self.running += other.running
        self.lost += other.lost


@dataclass
class Left:
    """How long the rest of a run may take: the bodies that are left, one after the other (seconds),
    and the longest of them. `unknown`: nodes of whose task none has ended yet."""

    work: float = 0.0
    longest: float = 0.0
    unknown: int = 0
    known: int = 0

    def add(self, other: Left) -> None:
        """Add what another run has left."""
        self.work += other.work
        self.longest = max(self.longest, other.longest)
        self.unknown += other.unknown
        self.known += other.known


@dataclass
class _Group:
    count: Count
    #: Nodes that were asked how long they took, and the sum of that (seconds).
    asked: int = 0
    spent: float = 0.0
    #: Since when the nodes run that run now (ns).
    since: list[int] = field(default_factory=list)
    #: How many of its nodes only wait for runs of their own.
    waiting: int = 0


class Tally:
    """What one run has done: from the states of its nodes or, of a stream (`many`), from the items
    that its stages have done. `history` is that of a rearmed run."""

    def __init__(self, flow: Flow, history: History | None = None, many: bool = False) -> None:
        self._history, self._many = history, many
        numbers: dict[tuple[str, bool], int] = {}
        of_body = [numbers.setdefault((printable(body.name), body.ours), len(numbers)) for body in flow.bodies]
        self._group_of = [of_body[body] for body in flow.body_of]
        self._groups = [_Group(Count(name)) for name, _ in numbers]
        ours = {number for (_, of_ours), number in numbers.items() if of_ours}
        for number, total in Counter(self._group_of).items():
            self._groups[number].count.total = total
        self._shown = [self._groups[number] for number in dict.fromkeys(self._group_of) if number not in ours]
        #: By task name, in the order of the nodes: what comes first stands first.
        self.counts = [group.count for group in self._shown]
        if history is not None:
            by_body = dict(zip(map(id, flow.bodies), of_body, strict=True))
            self._stages = [self._groups[by_body[id(stage.body)]] for stage in history.stages]
        self._last = bytes(flow.count)
        self._at_once = 0.0
        self._looked = 0
        #: Nodes that run elsewhere: in no slot.
        self._away: list[int] = []
        if history is None and not flow.inline and any(map(_begins_away, flow.bodies)):
            self._away = [node for node in range(flow.count) if _begins_away(flow.body(node))]

    def look(self, table: Table, queued: Collection[int] = frozenset()) -> None:
        """Count what has changed since the last look. `queued` are nodes that wait elsewhere."""
        states = bytes(table.states)
        self._look_at_workers(table, states, queued)
        if self._many:
            self._count_items()
        elif self._history is not None and states.count(UNARMED) == len(states):
            return  # the value has gone through, and its rows are free again
        elif states != self._last:
            self._compare(states, self._last, table)
        self._last = states

    def _count_items(self) -> None:
        history = self._history
        assert history is not None
        for group in self._stages:
            count = group.count
            count.done = count.failed = count.skipped = group.asked = 0
            count.running, group.spent = len(group.since), 0.0
        for group, (done, failed, skipped), busy in zip(self._stages, history.counts(), history.busy, strict=True):
            count = group.count
            count.done += done
            count.failed += failed
            count.skipped += skipped
            group.asked += done + failed
            group.spent += busy / 1e9

    def _compare(self, states: bytes, last: bytes, table: Table) -> None:
        for at in range(0, len(states), BLOCK):
            now, before = states[at : at + BLOCK], last[at : at + BLOCK]
            if now == before:
                continue
            groups = self._group_of[at : at + len(now)]
            if groups.count(groups[0]) == len(groups):
                for state in _STATES:
                    self._change(groups[0], state, now.count(state) - before.count(state))
            else:
                for (number, state), count in Counter(zip(groups, now, strict=True)).items():
                    self._change(number, state, count)
                for (number, state), count in Counter(zip(groups, before, strict=True)).items():
                    self._change(number, state, -count)
            self._ask(at, now, before, table)

    def _change(self, number: int, state: int, by: int) -> None:
        count = self._groups[number].count
        if state == DONE:
            count.done += by
        elif state == RUNNING:
            count.running += by
        elif state == FAILED:
            count.failed += by
        elif state == SKIPPED:
            count.skipped += by

    def _ask(self, at: int, now: bytes, before: bytes, table: Table) -> None:
        """Ask some of the nodes that have ended since the last look how long they took."""
        ended = int.from_bytes(now.translate(_IS_DONE), "little") & ~int.from_bytes(before.translate(_IS_DONE), "little")
        marks = ended.to_bytes(len(now), "little")
        place = marks.find(1)
        for _ in range(_SAMPLES):
            if place < 0:
                break
            began, ended_at, *_ = RECORD.unpack_from(table.records, (at + place) * RECORD.size)
            group = self._groups[self._group_of[at + place]]
            group.asked += 1
            group.spent += max(0, ended_at - began) / 1e9
            place = marks.find(1, place + 1)

    def _look_at_workers(self, table: Table, states: bytes, queued: Collection[int]) -> None:
        """Which nodes run now, and since when."""
        slots, now = table.slots, time.monotonic_ns()
        for group in self._groups:
            group.since.clear()
        running = 0
        for base in range(SLOT, table.slot_count * SLOT, SLOT):
            if slots[base + BEGUN]:
                node, since = slots[base + NODE], slots[base + SINCE]
                within = slots[base + STRETCH_LOW] <= node < slots[base + STRETCH_HIGH]
                if 0 <= node < len(states) and (within or states[node] == RUNNING):
                    self._groups[self._group_of[node]].since.append(since or now)
                    running += 1
        here = {slots[base + NODE] for base in range(SLOT, table.slot_count * SLOT, SLOT)} if self._away else ()
        for node in self._away:
            if states[node] == RUNNING and node not in here and node not in queued:
                self._groups[self._group_of[node]].since.append(table.started[node] or now)
                running += 1
        passed = (now - self._looked) / 1e9 if self._looked else _RECENT
        share = min(1.0, passed / _RECENT)
        self._at_once += share * (running - self._at_once)
        self._looked = now

    @property
    def at_once(self) -> float:
        """How many nodes have run at once of late."""
        return self._at_once

    def left(self, waiting: set[int]) -> Left:
        """How long the rest may take. `waiting` are nodes that only wait for runs of their own."""
        found, now = Left(), time.monotonic_ns()
        for group in self._shown:
            group.waiting = 0
        for node in waiting:
            self._groups[self._group_of[node]].waiting += self._last[node] == RUNNING
        for group in self._shown:
            left = group.count.left - group.waiting
            if left <= 0:
                continue
            if not group.asked:
                found.unknown += left
                continue
            mean = group.spent / group.asked
            past = [(now - since) / 1e9 for since in group.since]
            # One that runs far longer than others did will not end when they did, either.
            overdue = sum(seconds > 2 * mean + 1 for seconds in past)
            found.unknown += overdue
            left -= overdue
            if left <= 0:
                continue
            past = [min(mean, seconds) for seconds in past if seconds <= 2 * mean + 1]
            found.known += left
            found.work += max(0.0, left * mean - sum(past))
            found.longest = max(found.longest, mean if left > len(past) else mean - min(past, default=0.0))
        return found

    def close(self) -> None:
        """The run is over: what has not ended will not."""
        if self._history is not None:
            self._count_items()
        for group in self._groups:
            group.count.lost = group.count.left
            group.since.clear()
        self._at_once = 0.0


def printable(name: str) -> str:
    """A name that a terminal shows and does not obey, of a length that leaves room for others."""
    return cut(name if name.isprintable() else "".join(char if char.isprintable() else "\ufffd" for char in name), _LONGEST)


def _begins_away(body: Body) -> bool:
    """Whether nodes of this body are, at least at first, in no slot while they run."""
    return body.carrier == AWAY or body.ahead is not None
