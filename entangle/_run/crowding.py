"""Which bodies of a crowded run compute: measured here, used by workers
(`_worker/admission.py`)."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import NamedTuple

from entangle._run.worker_process import WorkerProcess
from entangle._shared.table import (
    BEGUN,
    BUSY,
    COMMITTED,
    CROWDED,
    HELD_BACK,
    NESTED,
    NODE,
    RIGHT,
    RUNS,
    SHARE,
    SINCE,
    SLOT,
    STATE,
    THREADS_USE,
    UNCLAIMED,
    Table,
)
from entangle._worker.admission import CPU, WAITS, demand_of_thread, scaled, share_of
from entangle.flow import Flow

#: A worker that uses less than this waits (CPUs).
_LITTLE = 0.05


#: What runs of this process have learned of a body, by its name: habit, calls and span.
_known: dict[tuple[str, int], tuple[int, int, int]] = {}
_MOST_KNOWN = 4096


class _Seen:
    """What has been measured of a worker during one body."""

    __slots__ = ("body", "looks", "lows", "of", "share", "taken", "used", "written")

    def __init__(self) -> None:
        self.of = (-1, -1)
        self.body = -1
        self.looks = self.lows = 0
        #: The use at the last look, and the use that it is taken to have. They differ, since one
        #: look may be a lock or a page fault.
        self.share = self.taken = 1.0
        #: What we have written into its slot as its use, -1 if nothing. Others may have written
        #: since.
        self.written = -1
        #: CPU time that a thread had wanted by the last look (ns).
        self.used = 0


class WorkerThread(NamedTuple):
    """A thread of the caller's process that works for a run."""

    slot: int
    native_id: int | None


class Admission:
    """Measures what running bodies use, and notes whether the run is crowded."""

    def __init__(self, table: Table, flow: Flow) -> None:
        self.table = table
        self.flow = flow
        self._seen: dict[int, _Seen] = {}
        self._looked_at = time.monotonic_ns()
        #: Whether the run has ever been crowded: bodies may have waited for others.
        self.was_crowded = False
        self._names: list[tuple[str, int]] = []

    def _recall(self) -> bool:
        """Take over what other runs of this process have learned of bodies that are new here.
        Return whether there was any."""
        table, found = self.table, False
        if not self._names:
            self._names = [(body.name, body.carrier) for body in self.flow.bodies]
        for body, name in enumerate(self._names):
            if not table.learned[body] and name in _known:
                habit, learned, span = _known[name]
                found = found or habit < share_of(table, body)
                table.habits[body], table.learned[body], table.spans[body] = habit, learned, span
        return found

    def remember(self) -> None:
        """Keep what was learned for other runs of this process."""
        table = self.table
        for body, name in enumerate(self._names):
            if table.learned[body]:
                if len(_known) > _MOST_KNOWN:
                    _known.clear()
                _known[name] = (table.habits[body], 1, table.spans[body])

    @property
    def crowded(self) -> bool:
        """Whether the run has more workers than it has a right to CPUs."""
        return bool(self.table.header[CROWDED])

    def entitle(self, cpus: int) -> None:
        """Give the run a right to so many CPUs from now on."""
        header = self.table.header
        if header[RIGHT] != cpus * CPU:
            more = cpus * CPU > header[RIGHT]
            header[RIGHT] = cpus * CPU
            if more:
                header[HELD_BACK] = 0

    def crowd(self, slots: Collection[int]) -> None:
        """Mark the run as crowded from now on. `slots` are those of its workers."""
        table = self.table
        self._recall()
        with table.locked(UNCLAIMED):
            self._take_stock(slots)
            table.header[HELD_BACK] = 0
            table.header[CROWDED] = 1
            self.was_crowded = True

    def thin_out(self) -> None:
        """Mark the run as not crowded from now on."""
        with self.table.locked(UNCLAIMED):
            self.table.header[CROWDED] = self.table.header[HELD_BACK] = 0

    def look(self, now: int, processes: Iterable[WorkerProcess], threads: Collection[WorkerThread]) -> float:
        """Measure what running bodies use, and correct what they are taken to use. `now` is in ns,
        of the monotonic clock. Return how many CPUs the threads use."""
        table = self.table
        header, slots = table.header, table.slots
        elapsed, self._looked_at = max(1, now - self._looked_at), now
        live = [thread.slot for thread in threads]
        for worker in processes:
            live.append(worker.slot)
            base = worker.slot * SLOT
            nested = slots[base + NESTED]
            # A worker that waits for a nested run also supervises it. That takes little CPU, and no
            # place.
            share = nested / CPU if nested >= 0 and worker.share < 0.3 else max(worker.share, nested / CPU)
            seen = self._seen.get(worker.slot)
            doubtful = share > WAITS / CPU or (seen is not None and seen.taken > share + 0.1)
            if nested < 0 and share < 0.9 and doubtful and worker.runnable():
                share = 1.0  # it would compute if it had a CPU
            self._saw(worker.slot, share, now)
        together = self._look_at_threads(threads, elapsed, now) if threads else 0.0
        if header[CROWDED]:
            with table.locked(UNCLAIMED):
                self._take_stock(live)
        return together

    def _look_at_threads(self, threads: Collection[WorkerThread], elapsed: int, now: int) -> float:
        shares = {}
        for thread in threads:
            seen = self._seen.setdefault(thread.slot, _Seen())
            used = demand_of_thread(thread.native_id)
            shares[thread.slot] = min(1.0, max(0, used - seen.used) / elapsed)
            seen.used = used
        together = sum(shares.values())
        self.table.header[THREADS_USE] = int(together * CPU)

        def busy() -> int:
            return sum(self.table.slots[slot * SLOT + STATE] == BUSY for slot in shares)

        for slot, share in shares.items():
            nested = self.table.slots[slot * SLOT + NESTED]
            self._saw(slot, max(scaled(share, together, busy), nested / CPU), now)
        return together

    def _saw(self, slot: int, share: float, now: int) -> None:
        """Note the share of a CPU that a worker has used since the last look."""
        table = self.table
        slots, base = table.slots, slot * SLOT
        node, since = slots[base + NODE], slots[base + SINCE]
        seen = self._seen.setdefault(slot, _Seen())
        if node < 0 or slots[base + STATE] != BUSY:
            seen.of, seen.body = (-1, -1), -1
            return
        body = self.flow.body_of[node]
        if seen.of != (node, since) or seen.body < 0:
            seen.of, seen.body = (node, since), body
            seen.looks = seen.lows = 0
            seen.share, seen.written = 1.0, -1
            seen.taken = share_of(table, body) / CPU
            return
        seen.looks += 1
        if share >= seen.taken:
            seen.taken, seen.lows = share, 0
        else:
            seen.lows += 1
            if seen.lows > 1:
                seen.taken = max(share, seen.share)
                usual = 2 * table.spans[body] > now - since
                if table.learned[body] and usual and slots[base + BEGUN] == RUNS:
                    # It waits now, and is going to compute before it ends.
                    seen.taken = max(seen.taken, table.habits[body] / CPU)
        seen.share = share

    def _take_stock(self, live: Collection[int]) -> None:
        """Write into the table what running bodies are taken to use, and guess for tasks that have
        not ended yet. Lock held."""
        table = self.table
        header, slots = table.header, table.slots
        crowded = header[CROWDED]
        committed = 0
        running: dict[int, list[float]] = {}
        for slot in live:
            base = slot * SLOT
            node = slots[base + NODE]
            if slots[base + STATE] != BUSY or node < 0:
                if not crowded:
                    slots[base + SHARE] = 0
                committed += slots[base + SHARE]
                continue
            seen = self._seen.get(slot)
            if seen is not None and seen.of == (node, slots[base + SINCE]):
                if seen.written not in (-1, slots[base + SHARE]):
                    # The nested run that it waits for has written more.
                    seen.taken, seen.lows = slots[base + SHARE] / CPU, 0
                slots[base + SHARE] = int(seen.taken * CPU) if seen.taken > _LITTLE else 0
                seen.written = slots[base + SHARE]
                if seen.looks > 1:
                    running.setdefault(seen.body, []).append(seen.taken)
            elif not crowded:
                slots[base + SHARE] = share_of(table, self.flow.body_of[node])
            committed += slots[base + SHARE]
        fell = committed + _LITTLE * CPU < header[COMMITTED]
        header[COMMITTED] = committed
        for body, shares in running.items():
            if not table.learned[body]:
                habit = int(sum(shares) / len(shares) * CPU)
                fell = fell or habit < share_of(table, body)
                table.habits[body] = habit
                if _known.get(self._names[body], (0, 0, 0))[1] == 0:
                    _known[self._names[body]] = (habit, 0, 0)
        if header[HELD_BACK]:
            fell = self._recall() or fell
        if fell and crowded:
            header[HELD_BACK] = 0
