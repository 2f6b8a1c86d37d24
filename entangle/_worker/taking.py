"""How a worker finds its next node, and how it wakes others for the nodes that it leaves."""

from __future__ import annotations

import os
import posix
import sys
import time
from typing import Any

from entangle._shared import greenlets
from entangle._shared.notes import COOKIE_WAIT, SHORT, WHOLE, Notes, memory_of
from entangle._shared.site import Site
from entangle._shared.store import NOWHERE, Place, Store
from entangle._shared.table import (
    BEGUN,
    BUSY,
    CROWDED,
    FINISHED,
    HELD_BACK,
    HIGH,
    HUNGRY,
    HUNGRY_FOR_ALL,
    IDLE,
    LIMIT_RUNNING,
    LOW,
    NOBODY,
    NODE,
    NOTING,
    READY_COUNT,
    RECORD,
    RESTING,
    RUNNING,
    SHARE,
    SLOT,
    STATE,
    STOP,
    WAITING_POOL,
)
from entangle._worker.admission import MOST_TRIED, Meter, admits, commit, release, room, take
from entangle._worker.serving import Serving
from entangle.flow import DEVICE, FRESH, HERE, IN_CALLER, PROCESS, THREAD


class Taking:
    """The part of a worker that finds its next node.

    It looks in its own range of leaves, on the ready list, and in another worker's range.
    """

    def __init__(self, site: Site, slot: int, lane: int, serial: int, store: Store | None = None) -> None:
        self.site = site
        self.slot = slot
        self.serial = serial
        self._store = store
        self.base = slot * SLOT
        self.lane = lane
        self.in_process = lane not in IN_CALLER
        #: The devices of this worker, where it serves some.
        self.serving: Serving | None = None
        #: Whether it runs one node after another, and rests while there is none.
        self.stays = lane in (PROCESS, THREAD) or (lane >= DEVICE and not site.claims[lane - DEVICE].fresh)
        #: Whether it goes on with a consumer, the value in hand.
        self.goes_on = self.in_process and self.stays
        self.recent: dict[int, Any] = {}
        #: How many leaves a claim should have at least, by how long the last ones took.
        self.least = 1
        self.spent: list[int] = []
        #: Measures the CPU time of the body, if the run is crowded.
        self.meter: Meter | None = None
        noting = site.table.header[NOTING]
        memory = memory_of(site)
        self.notes = Notes(site.directory, noting, None if self.in_process else site.noted, memory) if noting in (SHORT, WHOLE) else None
        bodies = site.flow.bodies
        #: The pools of each body, as indexes into `Flow.pools`.
        self.pooled = [tuple(map(site.flow.pools.index, body.pools)) for body in bodies]
        self.limited = [body.limits for body in bodies]

    @property
    def store(self) -> Store:
        """This worker's access to the store, opened on first use: a run of threads needs none."""
        if self._store is None:
            self._store = Store(self.site.directory, self.site.table, self.slot, self.serial, self.site.spill)
            self._store.elsewhere = self.site.elsewhere
            self.site.stores.append(self._store)
        return self._store

    def note_looked_up(self, key: str, made: float | None) -> None:
        """Note for records that the value of this node was looked up in a depot, and when it was
        made there (seconds since 1970); None if it was not there."""
        if self.notes is not None:
            self.notes.looked_up(self.node(), key, made)

    def node(self) -> int:
        """The node that this worker runs now."""
        running: int = self.site.table.slots[self.base + NODE]
        return running

    def _take(self) -> int:
        """The next node to run, or NOBODY when the run is over. Sleeps while there is none."""
        site = self.site
        table = site.table
        header, slots, base = table.header, table.slots, self.base
        lane, serving = self.lane, self.serving
        wake = site.wake_of(lane)
        removed: list[Place] = []
        self.meter = None
        if self.notes is not None:
            self.notes.flush()
        while True:
            may = serving is None or serving.begin()
            again = False
            table.lock(self.slot)
            try:
                slots[base + NODE] = NOBODY
                if self.spent:
                    self._count_reads(removed)
                over = header[STOP] or header[FINISHED] or slots[base + STATE] != BUSY
                node = NOBODY if over or not may else self._next_ready()
                woken, woken_threads, tell = (0, 0, False) if over else self.count_wakes()
                over = over or slots[base + STATE] != BUSY
                again = not may and not over and bool(header[READY_COUNT + lane])
                if node < 0 and not over and self.stays and not again:
                    header[IDLE + lane] += 1
                    slots[base + STATE] = RESTING
                    tell = tell or bool(header[HELD_BACK])
            finally:
                table.unlock()
            if tell:
                site.notify()
            self.wake(woken, woken_threads)
            for gone in removed:
                self.store.remove(gone)
            removed.clear()
            if again:
                continue
            if node >= 0 or over or not self.stays:
                self._measure(node)
                return node
            self.recent.clear()
            if serving is not None:
                serving.rest()
            if lane != THREAD:
                flush()
            if (os.read(wake[0], 1) if lane != THREAD else greenlets.read_byte(wake[0])) == b".":
                # The supervisor has retired this worker, and does not count it as idle any more.
                return NOBODY
            slots[base + STATE] = BUSY

    def _next_ready(self) -> int:
        """Take a node from the ready list or from a range, and mark it as ours. Lock held.

        NOBODY if there is none.
        """
        table = self.site.table
        slots, base = table.slots, self.base
        crowded = table.header[CROWDED] and self.lane != HERE
        if crowded:
            release(table, base)
        while True:
            node = self._pop_admitted() if crowded else table.pop(self.lane)
            if node < 0:
                if crowded:
                    return NOBODY
                if self.lane != PROCESS:
                    return NOBODY
                low: int = slots[base + LOW]
                if low < slots[base + HIGH]:
                    slots[base + LOW] = low + 1
                    node = low
                else:
                    node = table.claim_leaves(self.slot, self.least)
                    if node < 0:
                        return NOBODY
            which = self.site.flow.body_of[node]
            groups = self.limited[which]
            if groups:
                full = table.full(groups, self.site.flow.limits)
                if full >= 0:
                    table.defer_for_limit(full, node)
                    continue
            pools = self.pooled[which]
            if pools:
                waiting = table.waiting
                for pool in pools:
                    if waiting[pool]:
                        # One worker sleeps already until a cookie of this pool is free. A second
                        # would help nobody.
                        table.defer_for_cookie(pool, node)
                        self._note_turns(node, table.pass_turn(pools, self.site.lanes, self.site.flow.body_of))
                        break
                else:
                    waiting[pools[0]] = 1
                    slots[base + WAITING_POOL] = pools[0] + 1
                    pools = ()
                if pools:
                    continue
            for group in groups:
                table.header[LIMIT_RUNNING + group] += 1
            if crowded:
                commit(table, base, which)
            slots[base + BEGUN] = 0
            slots[base + NODE] = node
            table.states[node] = RUNNING
            return node

    def _note_turns(self, deferred: int, ready: list[int]) -> None:
        """Note that a node waits for a cookie from now on, and that others do so no more."""
        if self.notes is not None:
            now = time.monotonic_ns()
            if deferred >= 0:
                self.notes.extra(deferred, COOKIE_WAIT, -now)
            for node in ready:
                self.notes.extra(node, COOKIE_WAIT, now)

    def _pop_admitted(self) -> int:
        """Take a node whose body may begin now, from the ready list or a range. Lock held.

        NOBODY if there is none.
        """
        table, body_of = self.site.table, self.site.flow.body_of
        slots, base = table.slots, self.base
        node = take(table, self.lane, body_of) if self.stays else table.pop(self.lane)
        if node >= 0 or self.lane != PROCESS:
            table.header[HELD_BACK] |= node < 0 and table.header[READY_COUNT + self.lane] > 0
            return node
        for _ in range(MOST_TRIED):
            low: int = slots[base + LOW]
            if low < slots[base + HIGH]:
                slots[base + LOW] = low + 1
            else:
                low = table.claim_leaves(self.slot)
                if low < 0:
                    break
            if admits(table, body_of[low]):
                return low
            table.push(PROCESS, low)
        if table.header[READY_COUNT + PROCESS]:
            table.header[HELD_BACK] = 1
        return NOBODY

    def _count_reads(self, removed: list[Place]) -> None:
        """Count the values that this worker has read. Lock held.

        Files that nobody needs any more are added to `removed`.
        """
        table = self.site.table
        readers = table.readers
        for taken in self.spent:
            left = readers[taken] - 1
            readers[taken] = left
            if left == 0:
                _, _, offset, size, where, _, _, _ = RECORD.unpack_from(table.records, taken * RECORD.size)
                if where != NOWHERE:
                    file = self.store.release((where, offset, size))
                    if file is not None:
                        removed.append(file)
                self.recent.pop(taken, None)
                self.site.local.pop(taken, None)
        self.spent.clear()

    # Waking --------------------------------------------------------------------------------------

    def count_wakes(self) -> tuple[int, int, bool]:
        """How many sleeping processes and threads to wake for what is ready. Lock held.

        The third item says whether the supervisor is needed.
        """
        header = self.site.table.header
        woken: int = header[READY_COUNT + PROCESS]
        woken_threads: int = header[READY_COUNT + THREAD]
        others = header[READY_COUNT + FRESH] or header[READY_COUNT + HERE] or (self.site.woken_lanes and self._for_others())
        if not (woken or woken_threads or others):
            return 0, 0, False
        if header[HELD_BACK]:
            most = room(self.site.table)
            woken, woken_threads = min(woken, most), min(woken_threads, most)
        idle, idle_threads = max(0, header[IDLE + PROCESS]), max(0, header[IDLE + THREAD])
        hungry = header[HUNGRY]
        tell = (hungry == HUNGRY_FOR_ALL and woken > idle) or (hungry and (woken_threads > idle_threads or others))
        if tell:
            header[HUNGRY] = 0
        woken = min(woken, idle)
        woken_threads = min(woken_threads, idle_threads)
        header[IDLE + PROCESS] -= woken
        header[IDLE + THREAD] -= woken_threads
        return woken, woken_threads, bool(tell)

    def _for_others(self) -> bool:
        """Whether nodes are ready for workers that the supervisor wakes: those that serve devices,
        and the away worker."""
        header = self.site.table.header
        return any(header[READY_COUNT + lane] for lane in self.site.woken_lanes)

    def wake(self, processes: int, threads: int) -> None:
        """Wake that many sleeping processes and threads."""
        if processes:
            posix.write(self.site.wake[1], b"!" * processes)
        if threads:
            posix.write(self.site.wake_threads[1], b"!" * threads)

    # Measuring -----------------------------------------------------------------------------------

    def _measure(self, node: int) -> None:
        """If the run is crowded, measure the CPU time of this node's body, which begins next."""
        if node >= 0 and self.site.table.header[CROWDED]:
            self.meter = Meter(self.in_process)

    def _used(self) -> tuple[int, int] | None:
        """The CPU time that the body wanted and the time it took (ns); None if not measured."""
        meter, self.meter = self.meter, None
        return meter.read(self.site.table.slots[self.base + SHARE]) if meter is not None else None


def flush() -> None:
    """Flush what bodies have printed: a worker process ends by `os._exit`, which does not."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except Exception:
            pass
