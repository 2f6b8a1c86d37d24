"""The allocations of this process: which of them takes a call, when one more is asked for.

A call needs a place: one CPU of an allocation that lasts long enough for it. While none is free it
waits, and one of the threads that wait looks after all allocations that are asked for; so there is
no thread where no call waits. Calls that would not fit before the end of the walltime go to the
next allocation, which is asked for before that.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

from entangle import _run
from entangle._remote.caller.channel import Channel
from entangle._remote.caller.open_channels import close_all
from entangle._remote.caller.shown import PROGRAMS, STREAMS, Shown
from entangle._remote.transport.slurm import SlurmStep, SlurmTransport, found, refused
from entangle._remote.transport.slurm_allocation import Allocation, job_name
from entangle._remote.transport.slurm_queue import look_up
from entangle._run.start import session
from entangle._shared.whereabouts import tell_of
from entangle._worker.worker import Worker, here
from entangle.errors import RunCancelledError, add_note

#: Outside a session, an allocation without a call ends after this time (seconds).
IDLE = 60.0
#: Seconds between two questions about what waits: at first, and at most.
_SOON, _LATER = 3.0, 6.0
#: A call that waits for less is not told of, and was not queued (nanoseconds).
_BRIEF = 100_000_000
#: Seconds that a call without a deadline is given at the end of a walltime, at least.
_LEAST = 10.0


class HeldCpu:
    """One CPU of an allocation, for a call."""

    def __init__(self, allocation: Allocation, node: int, transport: SlurmStep) -> None:
        self.allocation, self.node, self.transport = allocation, node, transport
        self.taken = time.monotonic()
        #: How long it was waited for (nanoseconds).
        self.queued = 0


class Queue(Protocol):
    """Calls that wait for CPUs, and of which one thread asks for one CPU after the other."""

    #: Set when nobody wants a CPU any more.
    stopped: threading.Event

    def behind(self) -> int:
        """How many calls wait behind the one for which a CPU is sought. Asked several times a
        second."""


class _Waiting:
    """A call that waits for a place, as records and onlookers see it."""

    def __init__(self, held: Allocations, worker: Worker | None) -> None:
        self._held, self._since = held, time.monotonic_ns()
        self._worker = worker
        self._told: tuple[str, str] | None = None

    def tell(self) -> None:
        """Say why it waits, if that is not what was said before."""
        if self._worker is None or self.lasted() < _BRIEF:
            return
        told = self._held.waits_for()
        if told != self._told:
            self._told = told
            tell_of(self._worker, self._worker.node(), self._held.options.place, *told, self._since)

    def lasted(self) -> int:
        """How long it has waited (nanoseconds)."""
        return time.monotonic_ns() - self._since

    def note(self) -> None:
        """It has waited in vain: note where."""
        worker = self._worker
        if worker is not None and worker.notes is not None:
            worker.notes.elsewhere(worker.node(), self._held.options.place, self._held.waits_for()[0], -self.lasted())


class Allocations:
    """The allocations that were asked for with the same options, and the calls in them."""

    def __init__(self, options: SlurmTransport, idle: float) -> None:
        self.options, self._idle = options, idle
        self._changed = threading.Condition()
        self._held: list[Allocation] = []
        #: Those that were given back, and are not known to be gone.
        self._released: list[Allocation] = []
        #: Calls under way, by allocation and node; when an allocation last had none.
        self._calls: dict[tuple[int, int], int] = {}
        self._used: dict[int, float] = {}
        #: Threads that wait for a place, and whether one of them looks after what is pending.
        self._waiting = 0
        #: How many calls wait behind those for which a thread does, by what stops that thread.
        self._behind: dict[threading.Event, int] = {}
        #: The names of the tasks whose calls wait, likewise.
        self._names: dict[threading.Event, str] = {}
        self._tended = False
        self._asked_at, self._pause = 0.0, _SOON
        #: How long the last allocation waited, and the longest call yet (seconds).
        self._wait, self._longest = 5.0, 0.0
        self._shown = Shown(options.place, {})
        self.over = False

    def take(self, needed: float | None, name: str, queue: Queue | None = None) -> HeldCpu:
        """A place for a call of the task `name` that may take `needed` seconds; waits for one.
        `give_back` follows.
        `queue` has the calls that wait for one, where that is not only the one of this thread.

        Raises UnreachableError where Slurm refuses an allocation, and RunCancelledError.
        """
        waiting = _Waiting(self, here.worker if queue is None else None)
        try:
            place = self._wait_for_place(needed, name, queue, waiting)
        except BaseException:
            waiting.note()
            raise
        place.allocation.tell(b"+")
        place.queued = waiting.lasted() if waiting.lasted() > _BRIEF else 0
        return place

    def give_back(self, place: HeldCpu) -> None:
        """The call is over."""
        place.allocation.tell(b"-")
        with self._changed:
            self._calls[place.allocation.serial, place.node] -= 1
            now = self._used[place.allocation.serial] = time.monotonic()
            self._longest = max(self._longest, now - place.taken)
            self._changed.notify()

    def _wait_for_place(self, needed: float | None, name: str, queue: Queue | None, waiting: _Waiting) -> HeldCpu:
        worker = here.worker
        stopped = queue.stopped if queue is not None else threading.Event()

        def stop() -> None:
            stopped.set()
            with self._changed:
                self._changed.notify_all()

        with worker.ending_with(stop) if worker is not None else contextlib.nullcontext():
            with self._changed:
                self._waiting += 1
            try:
                while not stopped.is_set():
                    waiting.tell()
                    behind = queue.behind() if queue is not None else 0
                    with self._changed:
                        self._behind[stopped] = behind
                        self._names[stopped] = name
                        place = self._free(needed)
                        if place is not None:
                            self._calls[place.allocation.serial, place.node] += 1
                            return place
                        self._ask_for_more(needed)
                        tends = not self._tended
                        if not tends:
                            self._changed.wait(1.0)
                            continue
                        self._tended = True
                    try:
                        self._tend()
                    finally:
                        with self._changed:
                            self._tended = False
                            self._changed.notify_all()
            except BaseException as error:
                if waits := self.why_pending():
                    add_note(error, waits)
                raise
            finally:
                with self._changed:
                    self._waiting -= 1
                    self._behind.pop(stopped, None)
                    self._names.pop(stopped, None)
                self._end_if_unused()
        raise RunCancelledError("the run is over; the call was waiting for an allocation of Slurm")

    # Which allocation takes a call ------------------------------------------------------------

    def _needs(self, needed: float | None) -> float:
        """The seconds that a call is given: its deadline, or what calls have taken so far."""
        return needed if needed is not None else min(max(_LEAST, self._longest), self.options.time / 2)

    def _lead(self) -> float:
        """How long before an allocation is needed it is asked for (seconds)."""
        return min(max(_LEAST, 2 * self._wait), self.options.time / 4)

    def _free(self, needed: float | None) -> HeldCpu | None:
        """The place with the fewest calls beside it; None where there is none. Holds the lock."""
        self._drop_ended()
        now, least = time.monotonic(), None
        for allocation in self._held:
            if not allocation.granted or allocation.until - now < self._needs(needed):
                continue
            if self._is_stale(allocation, now):
                continue
            for node in range(self.options.nodes):
                calls = self._calls.setdefault((allocation.serial, node), 0)
                # The one that ends first, where they are equal: the others can be given back.
                order = (calls, allocation.until, node)
                if calls < self.options.cpus and (least is None or order < least[0]):
                    least = order, allocation, node
        if least is None:
            return None
        if least[1].until - now < self._needs(needed) + self._lead():
            self._ask_for_more(needed)
        return HeldCpu(least[1], least[2], self.options.step(least[1], least[2]))

    def _is_stale(self, allocation: Allocation, now: float) -> bool:
        """Whether it has had no call for so long that its keeper may be about to end it."""
        return not self._is_busy(allocation) and now - self._used.get(allocation.serial, now) > self._idle - min(5.0, self._idle / 4)

    def _ask_for_more(self, needed: float | None) -> None:
        """Ask for one more allocation, if calls wait and there may be more. Holds the lock.

        Those that end too soon for such a call do not count.
        """
        now = time.monotonic()
        lasting = [a for a in self._held if not a.granted or a.until - now >= self._needs(needed) + self._lead()]
        pending = sum(not allocation.granted for allocation in lasting)
        seats = self.options.cpus * self.options.nodes
        waiting = self._waiting + sum(self._behind.values())
        if len(lasting) < self.options.jobs and (not lasting or waiting > pending * seats):
            found("salloc")
            found("srun")
            self._held.append(Allocation(self.options, self._idle, job_name(self._names.values())))
            self._asked_at, self._pause = now, _SOON

    def _drop_ended(self) -> None:
        """Forget what is over. Raises what Slurm refused. Holds the lock."""
        now = time.monotonic()
        for allocation in list(self._held):
            if allocation.granted:
                allocation.look()
            late = allocation.granted and allocation.until < now and not self._is_busy(allocation)
            late = late or (allocation.granted and self._is_stale(allocation, now))
            if not allocation.over and not late:
                continue
            self._held.remove(allocation)
            if not allocation.granted:
                allocation.close()
                raise refused(allocation)
            close_all(functools.partial(_is_idle_in, allocation))
            allocation.release()
            self._released.append(allocation)

    def _is_busy(self, allocation: Allocation) -> bool:
        return any(self._calls.get((allocation.serial, node)) for node in range(self.options.nodes))

    # What is pending ----------------------------------------------------------------------------

    def _tend(self) -> None:
        """Look after what is pending, for a moment. One thread at a time does."""
        pending = [allocation for allocation in self._held if not allocation.granted]
        if not pending:
            time.sleep(0.05)
            return
        pending[0].wait(0.2)
        for allocation in pending:
            allocation.look()
            if allocation.granted:
                self._wait = allocation.waited
                self._used[allocation.serial] = time.monotonic()
        if time.monotonic() - self._asked_at > self._pause:
            self._asked_at, self._pause = time.monotonic(), min(self._pause * 2, _LATER)
            _ask_all()

    def hear(self, states: dict[str, str]) -> None:
        """Take over why jobs wait, by their numbers."""
        for allocation in self.pending():
            reason = states.get(allocation.job, "")
            if reason not in ("", "None", allocation.pending):
                allocation.pending = reason
                self._shown.show(STREAMS[1], PROGRAMS, f"job {allocation.job} is pending because {reason}\n".encode())

    def look_again(self) -> None:
        """Have those that wait see whether they are to stop."""
        with self._changed:
            self._changed.notify_all()

    def pending(self) -> list[Allocation]:
        """What is asked for and not granted."""
        return [allocation for allocation in list(self._held) if not allocation.granted and not allocation.over]

    def waits_for(self) -> tuple[str, str]:
        """What calls wait for that have no place: the jobs, and why those are pending."""
        pending = self.pending()
        jobs = ", ".join(allocation.job for allocation in pending if allocation.job)
        reasons = dict.fromkeys(allocation.pending for allocation in pending if allocation.pending)
        if pending:
            return f"job {jobs}" if jobs else "", f"pending because {', '.join(reasons)}" if reasons else "pending"
        seats = sum(allocation.granted for allocation in list(self._held)) * self.options.cpus * self.options.nodes
        taken = sum(list(self._calls.values())) >= seats
        return "", f"pending because {'all CPUs of the allocations are taken' if taken else 'a Python is being started there'}"

    def why_pending(self) -> str:
        """Why calls wait, in words; "" where they do not."""
        told = [f"job {a.job} is pending because {a.pending}" for a in self.pending() if a.pending]
        return f"{self.options.place}: " + "; ".join(told) if told else ""

    # The end ------------------------------------------------------------------------------------

    def _end_if_unused(self) -> None:
        """Give back what nobody waits for any more and nobody has ever used."""
        with self._changed:
            if self._waiting or any(allocation.granted for allocation in self._held):
                return
            held, self._held = self._held, []
        for allocation in held:
            allocation.release()
        for allocation in held:
            allocation.close()

    def end(self) -> None:
        """Give all back, and wait until they are gone."""
        with self._changed:
            held, self._held, self.over = self._held + self._released, [], True
            self._released = []
        for allocation in held:
            allocation.release()
        for allocation in held:
            allocation.close()

    def abandon(self) -> None:
        """In a forked child: they are the parent's."""
        for allocation in self._held + self._released:
            allocation.abandon()


def _is_idle_in(allocation: Allocation, channel: Channel) -> bool:
    return isinstance(channel.transport, SlurmStep) and channel.transport.allocation is allocation and not channel.busy()


_all: dict[tuple[SlurmTransport, _run.Warm | None], Allocations] = {}
_guard = threading.Lock()


def allocations(options: SlurmTransport) -> Allocations:
    """Those of this process, and of its session if there is one."""
    owner = session()
    key = options, owner
    with _guard:
        known = _all.get(key)
        if known is None or known.over:
            settings = owner.settings if owner is not None else _run.warm_settings
            known = _all[key] = Allocations(options, settings["idle"] if settings is not None else IDLE)
            if owner is not None:
                owner.at_end(functools.partial(_end_of, key))
            if end_all not in _run.at_termination:
                _run.at_termination.append(end_all)
                atexit.register(end_all)
        return known


def _end_of(key: tuple[SlurmTransport, _run.Warm | None]) -> None:
    with _guard:
        known = _all.pop(key, None)
    if known is not None:
        known.end()


def _ask_all() -> None:
    """One question to Slurm, for all that is pending in this process."""
    with _guard:
        pools = list(_all.values())
    jobs = [allocation.job for pool in pools for allocation in pool.pending() if allocation.job]
    if jobs:
        states = {job: state.reason for job, state in look_up(jobs).items() if state.state == "PENDING"}
        for pool in pools:
            pool.hear(states)


def end_all(chosen: Callable[[SlurmTransport, object], bool] = lambda options, owner: True) -> None:
    """Give back the allocations of this process: those of the options and sessions `chosen`."""
    with _guard:
        ending = [_all.pop(key) for key in list(_all) if chosen(*key)]
    for pool in ending:
        pool.end()


def end_of_runs() -> None:
    """Give back those that belong to no session: the last run of this process is over."""
    end_all(lambda options, owner: owner is None and options.ends_with_run)


def _after_fork() -> None:
    global _guard
    for pool in _all.values():
        pool.abandon()
    _all.clear()
    with contextlib.suppress(ValueError):
        _run.at_termination.remove(end_all)
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
