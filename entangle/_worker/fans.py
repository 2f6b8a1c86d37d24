"""Fans: many leaves with one body and one consumer, which a worker runs a few at a time.

Publishing a value takes the lock, and takes longer than many bodies. Of a fan, a worker claims a
*stretch* of its leaves, publishes the value of each as soon as it is there, and tells the consumer
of all of them at once. A stretch takes about a millisecond, so nobody waits long for it.

Within a stretch, a leaf costs three writes: its value, which stands in the record itself if it is a
number, when it ended, and which leaf comes next. A leaf is done once its end is written. States and
begins follow for all of them together, at the end of the stretch; where a worker dies before that,
or where a leaf takes long, the supervisor writes them (`Table.settle_stretch`).

A leaf may take much longer than those before it. The supervisor then takes the rest of the stretch
back (`Table.take_back`), while its worker may be about to begin the next leaf. Both write first and
look then: the worker says which leaf it begins and reads where the stretch ends; the supervisor
moves the end, waits until each processor must have seen that, and reads which leaf has begun. So at
least one of them sees the other.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

from entangle._shared.notes import LASTING
from entangle._shared.pickling import why_not
from entangle._shared.site import Site, cpu
from entangle._shared.store import Place, Store
from entangle._shared.table import (
    BEGUN,
    BUSY,
    COUNT,
    CROWDED,
    FLOAT,
    HIGH,
    IN_RECORD,
    INT,
    LOW,
    NODE,
    OVER,
    RECORD,
    RUNNING,
    RUNS,
    SINCE,
    STATE,
    STOP,
    STRETCH_HIGH,
    STRETCH_LOW,
)
from entangle._shared.tracebacks import passes_on
from entangle._worker import delivery
from entangle._worker.child import end_child
from entangle._worker.holding import Holding
from entangle.flow import PROCESS, Body

#: How long a stretch should take (nanoseconds), and how many leaves it has at most.
_LASTING, _MOST = 1_000_000, 4096


class Fanning(Holding):
    """The part of a worker that runs the leaves of a fan."""

    def __init__(self, site: Site, slot: int, lane: int, serial: int, store: Store | None = None) -> None:
        super().__init__(site, slot, lane, serial, store)
        kept = site.flow.ledger is not None
        self.special = [
            bool(kept or body.retry or body.pools or body.timed or body.shared_memory or body.ahead) for body in site.flow.bodies
        ]
        #: The fans that this worker may run: first leaf, and the one after the last.
        self.fans = [fan for fan in site.flow.fans if not self.special[site.flow.body_of[fan[0]]]] if lane == PROCESS else []
        self._firsts = [first for first, _ in self.fans]
        constants = dict(zip(site.flow.fans, site.flow.fan_constants, strict=True))
        self._constants = [constants[fan] for fan in self.fans]
        self._stretch = 1

    def _fan_of(self, node: int) -> int:
        """Where the fan ends of which this worker may run this leaf and the next; 0 if in none."""
        slots, base = self.site.table.slots, self.base
        if slots[base + LOW] != node + 1 or slots[base + HIGH] <= node + 1 or self.site.table.header[CROWDED]:
            return 0
        at = bisect.bisect_right(self._firsts, node) - 1
        last = self.fans[at][1] if at >= 0 else 0
        return last if node < last - 1 else 0

    @passes_on
    def _run_stretch(self, node: int, last: int, body: Body) -> int:
        """Run a leaf, which is marked as ours, and some after it. Gives the node to go on with.

        If a leaf fails, raises its error after all before it have been published; it is still ours.
        """
        table = self.site.table
        slots, base, records, size = table.slots, self.base, table.records, RECORD.size
        numbers, fractions, kinds, ends, clock = table.numbers, table.fractions, table.kinds, table.ended, time.monotonic_ns
        function, resolved = body.in_parts() or (body.function, None)
        high = self._claim_stretch(node, last)
        self.kept_node, self.kept = -1, None
        slots[base + BEGUN] = 0
        records[node * size : high * size] = RECORD.pack(0, 0, 0, INT, IN_RECORD, delivery.pid, cpu(), self.slot) * (high - node)
        taken, width = self._taken_by(node, high)
        if width != 1:
            function = _of_all(function)
        begins, ends_at = base + NODE, base + STRETCH_HIGH
        at = node
        slots[base + SINCE] = table.started[node] = began = ended = clock()
        until = began + _LASTING
        failed: BaseException | None = None
        slots[base + BEGUN] = RUNS
        try:
            for argument in taken:
                value = function(argument)
                ended = clock()
                if self.forked:
                    end_child(None)
                kind = type(value)
                if kind is int:
                    try:
                        numbers[at] = value
                    except ValueError:  # it has more than 64 bits
                        ended = self._publish_other(at, value, ends[at - 1] if at > node else began, ended, None)
                elif kind is float:
                    fractions[at] = value
                    kinds[at] = FLOAT
                else:
                    ended = self._publish_other(at, value, ends[at - 1] if at > node else began, ended, resolved)
                # A leaf is done once its end is there. What comes next has begun from here on.
                ends[at] = ended
                at += 1
                slots[begins] = at
                # No processor keeps the write above to itself for as long as `take_back` waits.
                if at >= slots[ends_at] or ended > until:
                    break
        except BaseException as error:
            if self.forked:
                end_child(error)
            failed = error
        if self.keeps_ended:
            for leaf in range(node, at):
                self._keep_ended(leaf)
        if failed is not None:
            try:
                slots[begins] = at
                slots[base + SINCE] = ends[at - 1] if at > node else began
                table.states[at] = RUNNING
                self._publish_stretch(node, at, at + 1, going_on=False)
                raise failed
            finally:
                del failed
        slots[base + BEGUN] = OVER  # in an open stretch: nothing runs
        lasted = ended - (ends[at - 2] if at > node + 1 else began)
        if self.notes is not None and lasted > LASTING:
            self.notes.lasting(at - 1)
        each = (ended - began) // (at - node)
        self._stretch = max(1, min(8 * self._stretch, _MOST, _LASTING // max(1, each)))
        self.least = max(1, self._stretch // 8)
        return self._publish_stretch(node, at, at, going_on=True)

    def _taken_by(self, node: int, high: int) -> tuple[Iterable[Any], int]:
        """What each of these leaves takes, and how many arguments that is: one as it is, others as
        a sequence."""
        flow = self.site.flow
        starts, constants = flow.starts, flow.constants
        width = starts[node + 1] - starts[node]
        if not width:
            return repeat((), high - node), width
        fan = bisect.bisect_right(self._firsts, node) - 1
        first = self._constants[fan]
        taken: Sequence[Any]
        if first >= 0:
            first += starts[node] - starts[self._firsts[fan]]
            taken = constants[first : first + (high - node) * width]
        else:
            taken = [constants[~x] for x in flow.inputs[starts[node] : starts[high]]]
        return (taken if width == 1 else zip(*[taken[at::width] for at in range(width)], strict=True)), width

    def _publish_other(self, node: int, value: Any, started: int, ended: int, resolved: Callable[[Any], Any] | None) -> int:
        """Publish the value of a leaf that is no small number. Gives when its body ended."""
        table = self.site.table
        if resolved is not None:
            value = resolved(value)
            ended = time.monotonic_ns()
            if self.forked:
                end_child(None)
        try:
            place = self.store.put(value)
        except (OSError, MemoryError):
            raise
        except Exception:
            raise why_not(value, f"the value of task {self.site.flow.name(node)!r}") from None
        if self.notes is not None:
            self._note(node, value, started, ended, place, last=False)
        table.numbers[node], table.kinds[node], table.places[node] = place[1], place[2], place[0]
        return ended

    def _claim_stretch(self, node: int, last: int) -> int:
        """Claim leaves after this one, all in our own range; gives the one after the last."""
        table = self.site.table
        slots, base = table.slots, self.base
        most = self.site.flow.chunk or _MOST
        table.lock(self.slot)
        try:
            low = slots[base + LOW]
            high = min(slots[base + HIGH], last, node + min(self._stretch, most))
            alone = low != node + 1 or high <= low or bool(table.header[STOP])
            if alone:
                high = node + 1
            # One leaf is a stretch as well: whoever sees to a dead worker looks there for what is
            # done. Until the last write, the others are those of our range.
            slots[base + STRETCH_LOW] = node
            slots[base + STRETCH_HIGH] = high
            if not alone:
                slots[base + LOW] = high
        finally:
            table.unlock()
        return high

    def _publish_stretch(self, node: int, done: int, left: int, going_on: bool) -> int:
        """Tell the consumer that the leaves from `node` to `done` are there, and give back those
        from `left` on. Gives the node to go on with, if any is wanted."""
        site, flow, table = self.site, self.site.flow, self.site.table
        header, slots, base, pending = table.header, table.slots, self.base, table.pending
        consumer = flow.consumers[flow.consumer_starts[node]]
        removed: list[Place] = []
        woken = woken_threads = 0
        tell = pushed = False
        chosen = -1
        table.lock(self.slot)
        try:
            # The supervisor may be about to mark one of them as running (`settle_stretch`).
            table.end_leaves(node, done)
            high = slots[base + STRETCH_HIGH]
            if left < high:
                pushed = table.return_leaves(self.slot, left, high, PROCESS)
            if self.guarded is not None:
                for leaf in range(node, done):
                    if not table.readers[leaf]:
                        table.readers[leaf] = 1  # its consumer is skipped: we read it
                        self.spent.append(leaf)
            slots[base + COUNT] += done - node
            pending[consumer] -= done - node
            # Whoever recounts takes an open stretch as not yet told. Its upper end goes first: a
            # stretch that begins at leaf 0 would else be one of others' leaves for a moment.
            slots[base + STRETCH_HIGH] = 0
            slots[base + STRETCH_LOW] = 0
            ready = not pending[consumer]
            if ready:
                table.ready_at[consumer] = time.monotonic_ns()
                table.push(site.lanes[flow.body_of[consumer]], consumer)
            if self.spent:
                self._count_reads(removed)
            if going_on:
                if not header[STOP] and slots[base + STATE] == BUSY:
                    chosen = self._next_ready()
                if chosen < 0:
                    slots[base + NODE] = -1
            if pushed or (ready and chosen != consumer):
                woken, woken_threads, tell = self.count_wakes()
        finally:
            table.unlock()
        if tell:
            site.notify()
        if woken or woken_threads:
            self.wake(woken, woken_threads)
        for gone in removed:
            self.store.remove(gone)
        self._measure(chosen)
        return chosen


def _of_all(function: Callable[..., Any]) -> Callable[[Sequence[Any]], Any]:
    """The same function, for all its arguments in one."""

    @passes_on
    def called(arguments: Sequence[Any]) -> Any:
        return function(*arguments)

    return called
