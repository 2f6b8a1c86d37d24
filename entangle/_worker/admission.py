"""Which bodies may begin: computing gets no more places than there are CPUs, waiting costs none.

While bodies wait for disk, network or time, a run gets more workers than it has a right to CPUs. It
is *crowded* then: once what they wait for has come, all these workers could compute. So a body of a
crowded run begins only where there is room::

    what running bodies are assumed to use  +  what this body is assumed to use  ≤  the run's right

Otherwise its node stays on the ready list, and its worker rests. Both sums are thousandths of a
CPU, in the table's header.

A worker that is about to begin a body knows what calls of the same task have used before: its
*habit*, which the table has for each body. An unknown one is assumed to use a whole CPU. The
supervisor looks at running bodies every few milliseconds and corrects what they are assumed to use.
So a task that waits is known as such some milliseconds after its first call has begun, and one that
alternates after its first call has ended. Nothing new begins while too many compute.

A run that is not crowded pays for none of this.
"""

from __future__ import annotations

import heapq
import os
import resource
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from entangle._shared.table import (
    COMMITTED,
    CROWDED,
    HELD_BACK,
    NOBODY,
    READY_COUNT,
    READY_HEAD,
    READY_TAIL,
    RIGHT,
    SHARE,
    Table,
)

#: A whole CPU, in thousandths.
CPU = 1000
#: Computing bodies leave the CPU now and then, so this much more than the right may be used
#: (thousandths of a CPU).
SLACK = 250
#: A body that uses less than this waits, and may begin whatever others do (thousandths of a CPU).
WAITS = 20
#: How many ready nodes are searched for one that may begin.
MOST_TRIED = 64
#: If all threads of a process use this much CPU together, some may wait for the interpreter's lock.
SATURATED = 0.8
#: Among threads that take turns, one that computes has run before each could have had so many.
TURNS = 2
#: A window without such threads, in turns.
_UNCONTENDED = 20
#: Of how many threads, of those that run most, the time that they wait for a CPU is read.
_ASKED = 8


# What workers ask, with the table's lock held ---------------------------------------------------


def share_of(table: Table, body: int) -> int:
    """What a call of this body is assumed to use when it begins (thousandths of a CPU)."""
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
    """Take a ready node whose body may begin now. Lock held.

    NOBODY if there is none among the first.
    """
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
    """Count a call of this body that begins on the worker of the slot at `base`. Lock held."""
    table.slots[base + SHARE] = wanted = share_of(table, body)
    table.header[COMMITTED] += wanted


def release(table: Table, base: int) -> None:
    """Count the worker of the slot at `base` as between two bodies. Lock held."""
    table.header[COMMITTED] -= table.slots[base + SHARE]
    table.slots[base + SHARE] = 0


def learn(table: Table, body: int, spent: int, took: int) -> None:
    """Learn from a call that has ended: it wanted `spent` ns of CPU within `took` ns. Lock held."""
    used = min(CPU, spent * CPU // max(1, took))
    known = table.learned[body]
    table.habits[body] = (3 * table.habits[body] + used) // 4 if known else used
    table.spans[body] = max(took, table.spans[body] * 3 // 4)
    table.learned[body] = known + 1


class Meter:
    """How much CPU a body wants: what it gets, and what it waits for while it is runnable."""

    def __init__(self, whole_process: bool) -> None:
        self._whole_process = whole_process
        self._thread, self._began = _demand_of_this_thread()
        self._process = time.process_time_ns() if whole_process else 0
        self._children = _time_of_children() if whole_process else 0
        if not whole_process:
            contention().measure()

    def read(self, seen: int) -> tuple[int, int]:
        """The CPU time wanted and the time passed since the meter was made (ns).

        `seen` is what the supervisor has seen the body use (thousandths of a CPU).
        """
        demand, now = _demand_of_this_thread()
        thread, took = demand - self._thread, max(1, now - self._began)
        if self._whole_process:
            children = _time_of_children() - self._children
            spent = max(thread, time.process_time_ns() - self._process) + children
            # How long programs waited for a CPU is unknown once they are gone. The supervisor saw
            # it.
            return max(spent, seen * took // CPU if children > took // 100 else 0), took
        # What it would have used if it had had the interpreter to itself.
        contention().measure()
        return min(took, int(thread * contention().mean(self._began, now))), took


class Contention:
    """How many threads of this process take turns at the interpreter's lock.

    Those of other runs and of the caller count, too. It is measured in windows in which each of
    these threads could have had some turns.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        #: How many threads have run lately, however little.
        self.stirring = 1
        #: How many take turns: 1 if none waits for another. Many that run little count as few.
        self.threads = 1.0
        #: The CPU time that threads have had and waited for (ns), where it has been read.
        self._demands: dict[int, int] = {}
        # The CPU time of the threads and of the process at the last measurement (ns), and when that
        # was.
        self._ran, self._process, self._at = self._clocks(), time.process_time_ns(), time.monotonic_ns()
        # The same when the window began, and the CPU time that was wanted since.
        self._began_with, self._began, self._wanted = self._ran, self._at, 0.0
        #: Ends of windows, and the sum of `threads` over time until then (ns).
        self._sums: deque[tuple[int, float]] = deque([(self._at, 0.0)], maxlen=256)

    @staticmethod
    def _clocks() -> dict[int, int]:
        # Under eventlet some have no such number.
        numbers = (getattr(thread, "native_id", None) for thread in threading.enumerate())
        return {number: time_of_thread(number) for number in numbers if number}

    def measure(self, wanted: float = 0.0) -> None:
        """Measure, if the last time was a turn ago. `wanted` is how many CPUs threads of a run are
        known to have wanted since then."""
        turn = sys.getswitchinterval() * 1e9
        if time.monotonic_ns() - self._at < turn or not self._guard.acquire(blocking=False):
            return
        try:
            ran, process, now = self._clocks(), time.process_time_ns(), time.monotonic_ns()
            known = self._ran
            self.stirring = max(1, sum(known.get(thread, 0) != spent for thread, spent in ran.items()))
            span, spent = now - self._at, process - self._process
            if span // _ASKED < spent < SATURATED * span:
                spent = min(span, max(spent, self._demand(ran)))
            self._wanted += max(spent, min(1.0, wanted) * span)
            self._ran, self._process, self._at = ran, process, now
            used = [max(0, spent - self._began_with.get(thread, 0)) for thread, spent in ran.items()]
            took, total = now - self._began, sum(used)
            if saturated := self._wanted >= SATURATED * took:
                over = total >= TURNS * self.stirring * turn
            else:
                over = took >= _UNCONTENDED * turn
            if over:
                # The participation ratio: n for n equal uses.
                self.threads = max(1.0, total * total / max(1, sum(use * use for use in used))) if saturated else 1.0
                self._sums.append((now, self._sums[-1][1] + self.threads * took))
                self._began_with, self._began, self._wanted = ran, now, 0.0
        finally:
            self._guard.release()

    def _demand(self, ran: dict[int, int]) -> int:
        """The CPU time that the threads that ran most have wanted since the last measurement (ns).

        Where others keep the CPUs busy, a process gets less than its threads want.
        """
        spent = {thread: now - self._ran.get(thread, now) for thread, now in ran.items()}
        known, self._demands, total = self._demands, {}, 0
        for thread in heapq.nlargest(_ASKED, spent, key=spent.__getitem__):
            if spent[thread] > 0:
                self._demands[thread] = demand = demand_of_thread(thread)[0]
                total += max(spent[thread], demand - known.get(thread, demand))
        return total

    def mean(self, since: int, until: int) -> float:
        """How many threads took turns between two times (ns) in the mean."""
        sums = list(self._sums)
        return (self._sum(sums, until) - self._sum(sums, since)) / max(1, until - since)

    def _sum(self, sums: list[tuple[int, float]], at: int) -> float:
        after, rate = sums[-1], self.threads
        for before in reversed(sums[:-1]):
            if at >= after[0]:
                break
            rate = (after[1] - before[1]) / max(1, after[0] - before[0])
            after = before
        return after[1] + rate * (at - after[0])


_contention: tuple[int, Contention] | None = None


def contention() -> Contention:
    """What threads of this process do to each other."""
    global _contention
    if _contention is None or _contention[0] != os.getpid():  # see `seat_of_callers`
        _contention = (os.getpid(), Contention())
    return _contention[1]


def time_of_thread(native_id: int | None) -> int:
    """The CPU time that a thread of this process has had (ns); -1 if unknown.

    Keeps the interpreter's lock.
    """
    if not native_id:
        return -1
    # The clock id of another thread, as pthread_getcpuclockid(3) makes it.
    try:
        return time.clock_gettime_ns((~native_id << 3) | 6)
    except (OSError, AttributeError):
        return -1


def demand_of_thread(native_id: int | None) -> tuple[int, int]:
    """The CPU time that a thread of this process has had, or waited for while runnable (ns); 0 if
    unknown. And when that was.

    The kernel describes the file in Documentation/scheduler/sched-stats.rst.
    """
    try:
        with open(f"/proc/self/task/{native_id}/schedstat", "rb", buffering=0) as file:
            now = time.monotonic_ns()  # to open and to close it may take long
            ran, waited, _ = file.read(64).split()
        return int(ran) + int(waited), now
    except (OSError, ValueError):
        return 0, time.monotonic_ns()


def _demand_of_this_thread() -> tuple[int, int]:
    demand, now = demand_of_thread(threading.get_native_id())
    return (demand, now) if demand else (time.thread_time_ns(), time.monotonic_ns())


def _time_of_children() -> int:
    """CPU time of child processes that have been waited for (ns)."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((usage.ru_utime + usage.ru_stime) * 1e9)


# The caller's own place -------------------------------------------------------------------------


class Seat:
    """The caller's place on a CPU, left to one of the runs that it waits for, one at a time."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._holder: object = None
        self._since = 0.0
        #: The run that lets one more body compute than there are CPUs.
        self._squeezed: object = None
        #: The runs that wait for it, and how to tell each that it is free.
        self._waiting: dict[int, Callable[[], None]] = {}

    def take(self, run: object, tell: Callable[[], None]) -> bool:
        """Take it. False if another run has it; `tell` is called when that one leaves it."""
        with self._guard:
            if self._holder is not None and self._holder is not run:
                self._waiting[id(run)] = tell
                return False
            if self._holder is None:
                self._holder, self._since = run, time.monotonic()
            self._waiting.pop(id(run), None)
            return True

    def leave(self, run: object) -> None:
        """Leave it to others, and do not wait for it any more."""
        with self._guard:
            self._waiting.pop(id(run), None)
            if self._holder is not run:
                return
            self._holder = None
            for tell in self._waiting.values():
                tell()  # under the guard: a run leaves before it closes its pipe
                break

    def squeeze(self, run: object) -> bool:
        """Use one place more than there are. False if another run does."""
        with self._guard:
            if self._squeezed not in (None, run):
                return False
            self._squeezed = run
            return True

    def ease(self, run: object) -> None:
        """Use no more places than there are."""
        with self._guard:
            if self._squeezed is run:
                self._squeezed = None

    def holder(self) -> object:
        """The run that has it; None if none has."""
        return self._holder

    def wanted(self, run: object) -> bool:
        """Whether runs other than `run` wait for it."""
        return bool(self._waiting.keys() - {id(run)})

    def held_for(self) -> float:
        """How long its holder has had it (seconds)."""
        return time.monotonic() - self._since


_seat = (os.getpid(), Seat())


def seat_of_callers() -> Seat:
    """The seat of this process, for runs that no body has called."""
    global _seat
    # Compared here rather than reset by a fork hook: hooks make every fork slower, since what they
    # touch must be copied.
    if _seat[0] != os.getpid():
        _seat = (os.getpid(), Seat())
    return _seat[1]


class Caller(Protocol):
    """The worker in whose body a nested run was called."""

    site: Any
    slot: int
    base: int
    lending_guard: threading.Lock


def claim(caller: Caller) -> bool:
    """For a nested run: take the place of the worker that waits for it.

    False if others compute there meanwhile, and use all that is right.
    """
    table: Table = caller.site.table
    header, slots = table.header, table.slots
    with caller.lending_guard:  # record locks do not exclude threads of one process
        if not header[CROWDED]:
            return True
        with table.locked(caller.slot):
            # What the outer run is seen to use counts already, but gives it no right to go on.
            more = max(0, CPU - slots[caller.base + SHARE])
            if header[COMMITTED] + more > header[RIGHT] + SLACK:
                header[HELD_BACK] = 1  # the outer run will look for room again
                return False
            slots[caller.base + SHARE] = CPU
            header[COMMITTED] += more
            return True
