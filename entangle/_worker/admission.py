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
    THREADS_USE,
    Table,
)

#: A whole CPU, in thousandths.
CPU = 1000
#: Bodies that compute leave the CPU now and then, so a little more than the right may be taken (thousandths of a CPU).
SLACK = 250
#: Who uses less than this waits, and may begin whatever others do (thousandths of a CPU).
WAITS = 20
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
