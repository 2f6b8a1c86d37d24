"""Which bodies of a crowded run compute: measured here, used by workers
(`_worker/admission.py`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from entangle._run.worker_process import WorkerProcess
from entangle._run.worker_threads import LESS, WorkerThread, WorkerThreads
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
    UNCLAIMED,
    Table,
)
from entangle._worker.admission import CPU, WAITS, share_of
from entangle.flow import Flow

#: A worker that uses less than this waits (CPUs).
_LITTLE = 0.05


#: What runs of this process have learned of a body, by its name: habit, calls and span.
_known: dict[tuple[str, int], tuple[int, int, int]] = {}
_MOST_KNOWN = 4096


class _Seen:
    """What has been measured of a worker during one body."""

    __slots__ = ("body", "looks", "lows", "of", "share", "taken", "written")

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


def _with_nested(share: float, nested: int) -> float:
    """What a worker uses, and the nested run that it waits for (thousandths of a CPU; -1 for
    none)."""
    # It also supervises that run, which takes little CPU and no place.
    return nested / CPU if nested >= 0 and share < 0.3 else max(share, nested / CPU)


class Admission:
    """Measures what running bodies use, and notes whether the run is crowded."""

    def __init__(self, table: Table, flow: Flow) -> None:
        self.table = table
        self.flow = flow
        self._seen: dict[int, _Seen] = {}
        self._threads = WorkerThreads()
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
        live = [thread.slot for thread in threads]
        for worker in processes:
            live.append(worker.slot)
            base = worker.slot * SLOT
            nested = slots[base + NESTED]
            seen = self._running(worker.slot)
            if seen is None:
                continue
            share = _with_nested(worker.share, nested)
            doubtful = share > WAITS / CPU or seen.taken > share + LESS
            if nested < 0 and share < 0.9 and doubtful and worker.runnable():
                share = 1.0  # it would compute if it had a CPU
            self._saw(worker.slot, share, now)
        together = self._look_at_threads(threads, now) if threads else 0.0
        if header[CROWDED]:
            with table.locked(UNCLAIMED):
                self._take_stock(live)
        return together

    def _look_at_threads(self, threads: Collection[WorkerThread], now: int) -> float:
        slots = self.table.slots
        taken: dict[int, float | None] = {}
        for slot, _ in threads:
            seen = self._running(slot)
            if slots[slot * SLOT + STATE] == BUSY:
                # Of one that waits for a nested run, what it uses itself is little.
                taken[slot] = None if seen is None else 0.0 if slots[slot * SLOT + NESTED] >= 0 else seen.taken
        shares, together = self._threads.look(threads, taken)
        for slot, share in shares.items():
            self._saw(slot, _with_nested(share, slots[slot * SLOT + NESTED]), now)
        return together

    def _running(self, slot: int) -> _Seen | None:
        """What has been measured of the body that a worker runs; None if it runs none, or has begun
        since the last look."""
        table = self.table
        slots, base = table.slots, slot * SLOT
        node, since = slots[base + NODE], slots[base + SINCE]
        seen = self._seen.setdefault(slot, _Seen())
        if node < 0 or slots[base + STATE] != BUSY:
            seen.of, seen.body = (-1, -1), -1
            return None
        if seen.of == (node, since):
            return seen
        seen.of, seen.body = (node, since), self.flow.body_of[node]
        seen.looks = seen.lows = 0
        seen.share, seen.written = 1.0, -1
        seen.taken = share_of(table, seen.body) / CPU
        return None

    def _saw(self, slot: int, share: float, now: int) -> None:
        """Note the share of a CPU that a worker has used since the last look."""
        table = self.table
        slots, base = table.slots, slot * SLOT
        seen = self._seen[slot]
        body, since = seen.body, slots[base + SINCE]
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
