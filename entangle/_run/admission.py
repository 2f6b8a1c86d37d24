"""Which bodies may begin: computing gets no more places than there are CPUs, and waiting costs none.

A run gets more workers than it has a right to CPUs while bodies wait for disk, network or time. It is *crowded* then: when
what they wait for has come, all of these workers could go on with bodies that compute. So a body of a crowded run begins only
where there is room::

    what running bodies are taken to use  +  what this body is taken to use   ≤   the run's right

Otherwise its node stays on the ready list, and its worker rests. Both sums are thousandths of a CPU, in the table's header.

A worker that is about to begin a body knows what calls of the same task have used before (its *habit*, for each body in the
table), and takes a whole CPU for one that nobody knows. The supervisor looks at running bodies every few milliseconds and
corrects what they are taken to use. So a task that waits is known as such some milliseconds after its first call has begun,
and one that computes and waits by turns after its first call has ended. Nothing new begins while too many compute.

A run that is not crowded pays for none of this.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from array import array
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple, Protocol

from entangle._run.process import WorkerProcess
from entangle._run.table import (
    BEGUN,
    BUSY,
    COMMITTED,
    CROWDED,
    HELD_BACK,
    NESTED,
    NOBODY,
    NODE,
    READY_COUNT,
    READY_HEAD,
    READY_TAIL,
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
from entangle.flow import Flow

#: A whole CPU, in thousandths.
CPU = 1000
#: Bodies that compute leave the CPU now and then, so a little more than the right may be taken (thousandths of a CPU).
SLACK = 250
#: Who uses less than this waits, and may begin whatever others do (thousandths of a CPU).
WAITS = 20
#: Less than this is what it takes to wait (CPUs).
_LITTLE = 0.05
#: So many ready nodes are looked at for one that may begin.
MOST_TRIED = 64
#: From so much CPU on that all threads of a process get together, they may be waiting for the interpreter's lock.
_SATURATED = 0.8


# What workers ask, with the table's lock held -----------------------------------------------------------------------


def share_of(table: Table, body: int) -> int:
    """What a call of this body is taken to use when it begins (thousandths of a CPU)."""
    habit: int = table.habits[body]
    return CPU if habit < 0 else habit


def admits(table: Table, body: int) -> bool:
    """Whether a call of this body may begin now. Lock held."""
    wanted = share_of(table, body)
    header = table.header
    return wanted <= WAITS or header[COMMITTED] + wanted <= header[RIGHT] + SLACK


def room(table: Table) -> int:
    """How many bodies that compute could begin now."""
    header = table.header
    return max(0, (header[RIGHT] + SLACK - header[COMMITTED]) // CPU)


def take(table: Table, lane: int, body_of: array[int]) -> int:
    """Take a ready node whose body may begin now; NOBODY where there is none among the first. Lock held."""
    header, after = table.header, table.next
    before, node = NOBODY, header[READY_HEAD + lane]
    for _ in range(MOST_TRIED):
        if node < 0:
            break
        if admits(table, body_of[node]):
            if before < 0:
                header[READY_HEAD + lane] = after[node]
            else:
                after[before] = after[node]
                if after[node] < 0:
                    header[READY_TAIL + lane] = before
            header[READY_COUNT + lane] -= 1
            return node
        before, node = node, after[node]
    return NOBODY


def commit(table: Table, base: int, body: int) -> None:
    """A call of this body begins, on the worker of the slot at `base`. Lock held."""
    table.slots[base + SHARE] = wanted = share_of(table, body)
    table.header[COMMITTED] += wanted


def release(table: Table, base: int) -> None:
    """The worker of the slot at `base` is between two bodies. Lock held."""
    table.header[COMMITTED] -= table.slots[base + SHARE]
    table.slots[base + SHARE] = 0


def learn(table: Table, body: int, spent: int, took: int) -> None:
    """A call of this body has ended, and has wanted `spent` ns of CPU within `took` ns. Lock held."""
    used = min(CPU, spent * CPU // max(1, took))
    known = table.learned[body]
    table.habits[body] = (3 * table.habits[body] + used) // 4 if known else used
    table.spans[body] = max(took, table.spans[body] * 3 // 4)
    table.learned[body] = known + 1


class Meter:
    """How much CPU a body wants: what it gets, and what it waits for while it could run."""

    def __init__(self, table: Table, whole_process: bool) -> None:
        self._table = table
        self._whole_process = whole_process
        self._began = time.monotonic_ns()
        self._thread = _demand_of_this_thread()
        self._process = time.process_time_ns() if whole_process else 0
        self._children = _time_of_children() if whole_process else 0

    def read(self, threads: Callable[[], int], seen: int) -> tuple[int, int]:
        """CPU time wanted, and time passed, since the meter was made (ns). `threads` tells how many of this process work; `seen` is
        what the supervisor has seen the body use (thousandths of a CPU)."""
        took = max(1, time.monotonic_ns() - self._began)
        thread = _demand_of_this_thread() - self._thread
        if self._whole_process:
            children = _time_of_children() - self._children
            spent = max(thread, time.process_time_ns() - self._process) + children
            # How long programs have waited for a CPU is not known when they are gone; whoever looked has seen them wait.
            return max(spent, seen * took // CPU if children > took // 100 else 0), took
        together = self._table.header[THREADS_USE] / CPU
        return int(scaled(thread / took, together, threads) * took), took


def scaled(share: float, together: float, threads: Callable[[], int]) -> float:
    """What a thread would use if it had not to share the interpreter's lock with others; `together` is what all of them use."""
    return min(1.0, share * threads()) if together >= _SATURATED else share


def demand_of_thread(native_id: int | None) -> int:
    """CPU time that a thread of this process has had, and has been runnable without having (ns); 0 where that is unknown.

    The file is described in the kernel's Documentation/scheduler/sched-stats.rst.
    """
    try:
        with open(f"/proc/self/task/{native_id}/schedstat", "rb", buffering=0) as file:
            ran, waited, _ = file.read(64).split()
        return int(ran) + int(waited)
    except (OSError, ValueError):
        return 0


def _demand_of_this_thread() -> int:
    return demand_of_thread(threading.get_native_id()) or time.thread_time_ns()


def _time_of_children() -> int:
    """CPU time of the processes that this one has started and waited for (ns)."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((usage.ru_utime + usage.ru_stime) * 1e9)


# The caller's own place -------------------------------------------------------------------------------------------------


class Seat:
    """The place on a CPU that a caller leaves to the run it waits for: one, however many runs it waits for."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._holder: object = None
        self._since = 0.0
        #: Which run lets one body more compute than there are CPUs.
        self._squeezed: object = None
        #: Runs that wait for it, and how each is told that it is free.
        self._waiting: dict[int, Callable[[], None]] = {}

    def take(self, who: object, tell: Callable[[], None]) -> bool:
        """Take it; False where another run has it, and `tell` is called when that leaves it."""
        with self._guard:
            if self._holder is not None and self._holder is not who:
                self._waiting[id(who)] = tell
                return False
            if self._holder is None:
                self._holder, self._since = who, time.monotonic()
            self._waiting.pop(id(who), None)
            return True

    def leave(self, who: object) -> None:
        """Let others have it; who has it not waits for it no more."""
        with self._guard:
            self._waiting.pop(id(who), None)
            if self._holder is not who:
                return
            self._holder = None
            for tell in self._waiting.values():
                tell()  # with the guard held: a run that is over leaves before its pipe is closed
                break

    def squeeze(self, who: object) -> bool:
        """Have one place more than there are; False where another run has that."""
        with self._guard:
            if self._squeezed not in (None, who):
                return False
            self._squeezed = who
            return True

    def ease(self, who: object) -> None:
        """Want no more than there is."""
        with self._guard:
            if self._squeezed is who:
                self._squeezed = None

    def wanted(self, who: object) -> bool:
        """Whether runs other than `who` wait for it."""
        return bool(self._waiting.keys() - {id(who)})

    def held_for(self) -> float:
        """Since when its holder has had it (seconds)."""
        return time.monotonic() - self._since


_seat = (os.getpid(), Seat())


def seat_of_callers() -> Seat:
    """The place of this process, for runs that no body of another has called."""
    global _seat
    # Asked rather than told at a fork: each hook makes every fork slower, as what it touches has to be copied.
    if _seat[0] != os.getpid():
        _seat = (os.getpid(), Seat())
    return _seat[1]


class Caller(Protocol):
    """The worker in whose body a nested run was called."""

    site: Any
    slot: int
    base: int
    lending_guard: threading.Lock


def claim(caller: Caller, more_than_right: int = 0) -> bool:
    """For a nested run: have the place of the worker that waits for it. False where others compute there meanwhile, and use more than
    is right and so much more (thousandths of a CPU)."""
    table: Table = caller.site.table
    header, slots = table.header, table.slots
    with caller.lending_guard:  # record locks do not exclude threads of one process
        if not header[CROWDED]:
            return True
        with table.locked(caller.slot):
            # What the run around this one is seen to use already counts, but gives it no right to go on.
            more = max(0, CPU - slots[caller.base + SHARE])
            if header[COMMITTED] + more > header[RIGHT] + SLACK + more_than_right:
                header[HELD_BACK] = 1  # it will look for more
                return False
            slots[caller.base + SHARE] = CPU
            header[COMMITTED] += more
            return True


# What the supervisor sees to ----------------------------------------------------------------------------------------


#: What was learned in earlier runs of this process, and is in others under way: habit, calls and span of a body, by its name.
_known: dict[tuple[str, int], tuple[int, int, int]] = {}
_MOST_KNOWN = 4096


class _Seen:
    """What has been seen of a worker while it ran one body."""

    __slots__ = ("body", "looks", "lows", "of", "share", "taken", "used", "written")

    def __init__(self) -> None:
        self.of = (-1, -1)
        self.body = -1
        self.looks = self.lows = 0
        #: At the last look; and what it is taken to use, since one look may fall into a lock or a page fault.
        self.share = self.taken = 1.0
        #: What its slot says that it is taken to use, -1 where we have not written that; others may have written something else.
        self.written = -1
        #: CPU time that a thread had wanted at the last look (ns).
        self.used = 0


class Thread(NamedTuple):
    """A thread of the invoking process that works for a run."""

    slot: int
    native_id: int | None


class Admission:
    """The supervisor's part: what running bodies use, and whether the run is crowded."""

    def __init__(self, table: Table, flow: Flow) -> None:
        self.table = table
        self.flow = flow
        self._seen: dict[int, _Seen] = {}
        self._looked_at = time.monotonic_ns()
        #: Whether bodies have ever had to wait for others, which would not be so in a run of as many workers as CPUs.
        self.was_crowded = False
        self._names: list[tuple[str, int]] = []

    def _recall(self) -> bool:
        """Take over what other runs of this process have learned of bodies that nobody knows here. Whether that was anything."""
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
        """Leave what was learned to other runs of this process."""
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
        """The run has a right to so many CPUs from now on."""
        header = self.table.header
        if header[RIGHT] != cpus * CPU:
            more = cpus * CPU > header[RIGHT]
            header[RIGHT] = cpus * CPU
            if more:
                header[HELD_BACK] = 0

    def crowd(self, slots: Collection[int]) -> None:
        """More workers than CPUs from now on; `slots` are those who are there."""
        table = self.table
        self._recall()
        with table.locked(UNCLAIMED):
            self._take_stock(slots)
            table.header[HELD_BACK] = 0
            table.header[CROWDED] = 1
            self.was_crowded = True

    def thin_out(self) -> None:
        """No more workers than CPUs from now on."""
        with self.table.locked(UNCLAIMED):
            self.table.header[CROWDED] = self.table.header[HELD_BACK] = 0

    def look(self, now: int, processes: Iterable[WorkerProcess], threads: Collection[Thread]) -> float:
        """See what running bodies use, and correct what they are taken to use; `now` in ns, of the monotonic clock. Gives how many
        CPUs the threads use."""
        table = self.table
        header, slots = table.header, table.slots
        elapsed, self._looked_at = max(1, now - self._looked_at), now
        live = [thread.slot for thread in threads]
        for worker in processes:
            live.append(worker.slot)
            base = worker.slot * SLOT
            nested = slots[base + NESTED]
            # A worker that waits for a nested run supervises it, which takes a little time, and no place.
            share = nested / CPU if nested >= 0 and worker.share < 0.3 else max(worker.share, nested / CPU)
            seen = self._seen.get(worker.slot)
            doubtful = share > WAITS / CPU or (seen is not None and seen.taken > share + 0.1)
            if nested < 0 and share < 0.9 and doubtful and worker.runnable():
                share = 1.0  # it would run if there were a CPU for it
            self._saw(worker.slot, share, now)
        together = self._look_at_threads(threads, elapsed, now) if threads else 0.0
        if header[CROWDED]:
            with table.locked(UNCLAIMED):
                self._take_stock(live)
        return together

    def _look_at_threads(self, threads: Collection[Thread], elapsed: int, now: int) -> float:
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
        """A worker has used this share of a CPU since the last look."""
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
                    # It waits now, and will compute before it ends.
                    seen.taken = max(seen.taken, table.habits[body] / CPU)
        seen.share = share

    def _take_stock(self, live: Collection[int]) -> None:
        """Write down what running bodies are taken to use, and what calls of tasks that nobody knows yet seem to. Lock held."""
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
                    seen.taken, seen.lows = slots[base + SHARE] / CPU, 0  # the run that it waits for goes on
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
