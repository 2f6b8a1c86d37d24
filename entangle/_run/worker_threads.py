"""Worker threads as their supervisor sees them: the CPU that they use, or would use.

Threads of a process take turns at its interpreter's lock, and a thread that waits for its turn
seems to sleep. The holder itself may wait for a CPU, and then no thread seems to do anything. So
low use means that a thread waits for something else only if it has not run at all, or if it had its
turns meanwhile.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping
from typing import NamedTuple

from entangle._run.worker_process import is_runnable
from entangle._worker.admission import SATURATED, TURNS, contention, demand_of_thread, time_of_thread

#: A thread that waits for the interpreter's lock wakes once in each switch interval, to ask for it.
#: So a thread that has not run at all for this many intervals waits for something else.
_ASKS = 1.5
#: A use counts as lower only if it is lower by this much (CPUs).
LESS = 0.1


class WorkerThread(NamedTuple):
    """A thread of the caller's process that works for a run."""

    slot: int
    native_id: int | None


class _Clock:
    """What a thread has used: at the last look, and when it was last decided what it uses."""

    __slots__ = ("at", "demand", "native_id", "process", "ran", "since", "since_demand", "since_process", "stirred")

    def __init__(self, native_id: int | None, now: int) -> None:
        self.native_id = native_id
        #: The CPU time that it has had, and that with the time that it has waited for a CPU (ns).
        self.ran, self.demand = 0, 0
        #: The CPU time of the process.
        self.process = time.process_time_ns()
        #: When this was read, and when the thread was last seen to have run.
        self.at = self.stirred = now
        self.decide()

    def decide(self) -> None:
        """Begin a new window: what was used until now tells no more."""
        self.since, self.since_demand, self.since_process = self.at, self.demand, self.process

    def read(self, starved: bool) -> float:
        """Read the clocks. Return the share of a CPU that was wanted since the last time. `starved`
        says that the thread may have waited for a CPU meanwhile."""
        demand, before = self.demand, self.at
        # Each is read next to the clock: whoever waits for a CPU or the interpreter's lock between
        # two readings would make a short time of a long one, or the other way round.
        ran, self.at = time_of_thread(self.native_id), time.monotonic_ns()
        if ran != self.ran or ran < 0:
            self.demand += max(0, ran - self.ran)
            # A file costs the interpreter's lock, which others want, too. A thread that has not run
            # since has not left the run queue either, so the file would say the same.
            if starved or ran < 0:
                wanted, self.at = demand_of_thread(self.native_id)
                self.demand = max(self.demand, wanted)
        self.process = time.process_time_ns()
        if self.demand != demand:
            self.stirred = self.at
        self.ran = ran
        return min(1.0, (self.demand - demand) / max(1, self.at - before))

    @property
    def share(self) -> float:
        """The share of a CPU that was wanted in this window."""
        return min(1.0, (self.demand - self.since_demand) / max(1, self.at - self.since))


class WorkerThreads:
    """Measures the threads that work for one run."""

    def __init__(self) -> None:
        self._clocks: dict[int, _Clock] = {}
        self._at, self._process = time.monotonic_ns(), time.process_time_ns()

    def look(self, threads: Collection[WorkerThread], taken: Mapping[int, float | None]) -> tuple[dict[int, float], float]:
        """Measure what threads use (CPUs). `taken` is what each that runs a body is taken to use,
        by its slot; None if the body is new.

        Return what each uses of which that can be told now, and what all use. The former counts
        waiting for the interpreter's lock as use.
        """
        clocks, known, before = {}, self._clocks, self._at
        self._at, process = time.monotonic_ns(), time.process_time_ns()
        ran, self._process = (process - self._process) / max(1, self._at - before), process
        # While the process has all that its threads can use by turns, none waits long for a CPU.
        starved = ran < SATURATED
        together = 0.0
        for slot, native_id in threads:
            clock = known.get(slot)
            if clock is None or clock.native_id != native_id:
                clock = _Clock(native_id, before)
            clocks[slot] = clock
            together += clock.read(starved)
            if taken.get(slot) is None:
                clock.decide()
        self._clocks = clocks
        judged = {slot: use for slot, use in taken.items() if use is not None and slot in clocks}
        queued: set[int] = set()
        if starved:
            # The kernel tells how long a thread has waited for a CPU only when it gets one.
            doubtful = [slot for slot, use in judged.items() if use > clocks[slot].share + LESS]
            queued = {slot for slot in doubtful if is_runnable(f"self/task/{clocks[slot].native_id}")}
            together += len(queued)
        turns = contention()
        turns.measure(together)
        # Threads that are none of ours want the lock, too.
        contended = max(ran, together) >= SATURATED or turns.threads > 1.0
        number = turns.threads if contended else 1.0
        turn = sys.getswitchinterval() * 1e9
        shares = {}
        for slot, use in judged.items():
            clock = clocks[slot]
            share = 1.0 if slot in queued else min(1.0, clock.share * number)
            if use > share + LESS:
                if clock.stirred <= clock.since:
                    told = clock.at - clock.since >= _ASKS * turn
                else:
                    told = not contended or clock.process - clock.since_process >= TURNS * turns.stirring * turn
                if not told:
                    continue
            shares[slot] = share
            clock.decide()
        return shares, together
