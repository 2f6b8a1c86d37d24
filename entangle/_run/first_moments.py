"""The first moments of a small run in a session: a worker that is ready runs it, and we wait.

Most small runs are over within a millisecond. A supervisor, which could start workers, watch
deadlines and see to deaths, would cost them more time than their bodies take. So the run begins
without one, in a frame that is free, with one worker that is here and idle. If it is not over after
some milliseconds, or something happens that needs attention, a supervisor takes it over as it is.
"""

from __future__ import annotations

import contextlib
import os
import posix
import threading
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

from entangle import _run
from entangle._run import library_shares
from entangle._run.forwarding import stdout_is_plain
from entangle._run.start import session
from entangle._run.worker_process import WorkerProcess
from entangle._shared import notes
from entangle._shared.frame import Frame
from entangle._shared.home import Home, home
from entangle._shared.interrupts import Deferred
from entangle._shared.site import Site
from entangle._shared.table import FAILED_NODE, FINISHED, MOST_WORKERS, PLANNED, RIGHT, STARTED_AT, Table
from entangle._worker.admission import CPU, seat_of_callers
from entangle._worker.joining import described
from entangle.cookies import ANY_CPU
from entangle.errors import UnpicklableError
from entangle.flow import PROCESS, Body, Flow

#: What `value_soon` gives for a run that has to begin as any other.
LATER = object()

#: How long the run is waited for without a supervisor (seconds): while there is work for one
#: worker alone, and where others could help it.
_MOMENT, _MOMENT_ALONE = 0.003, 0.001
#: How long its worker's end may go unseen (seconds).
_SOON = 0.001
#: How long a run waits at most for those before it, until it begins as any other (seconds).
_QUEUED = 0.25
#: The slot of its worker.
_SLOT = 1
#: The form of a call alone: pending inputs, where consumers start, leaves, bodies, sinks.
_ALONE = ((0,), (0, 0), 1, 1, (0,))
#: Flows of more nodes begin as any other.
_MOST_NODES = 64


class SmallRun(Protocol):
    """A run as it is seen here (`run.py`)."""

    id: str
    way: str
    flow: Flow
    context: Context
    caller: Any
    timeout: float | None
    workers: int
    warm: _run.Warm | None
    cancelled: bool
    wants_prints: bool

    def begin_in(self, site: Site) -> None:
        """Begin in a frame, without a supervisor yet."""

    def is_under_way(self) -> None:
        """A worker has been told to begin."""

    def over_in(self, frame: Frame, site: Site, warm: _run.Warm, lent: WorkerProcess) -> Any:
        """Take the value of a run that is over, which has had no supervisor."""

    def supervised_in(
        self,
        frame: Frame,
        site: Site,
        warm: _run.Warm,
        workers: list[WorkerProcess],
        deferred: Deferred,
        error: BaseException | None = None,
    ) -> Any:
        """Supervise a run that has begun in a frame, with these workers."""

    @staticmethod
    def leave_frame(warm: _run.Warm, frame: Frame, large: list[str]) -> None:
        """Give a frame back, with nothing of this run in it."""


def _is_plain(body: Body) -> bool:
    """Whether a body has no terms that a supervisor or others see to."""
    return (
        body.carrier == PROCESS
        and body.timeout is None
        and body.wait is None
        and not (body.retry or body.pools or body.limits or body.gpus or body.shared_memory or body.ahead)
    )


def may_be_over_soon(run: SmallRun) -> bool:
    """Whether a run can begin without a supervisor: it is small, and has no terms that need one."""
    flow = run.flow
    return (
        run.caller is None
        and run.timeout is None
        and run.way in ("auto", "forkserver")
        and flow.count <= _MOST_NODES
        and not flow.rearmed
        and not flow.inline
        and flow.guarded is None
        and len(flow.sinks) == 1
        and flow.kept <= set(flow.sinks)
        and all(map(_is_plain, flow.bodies))
        and stdout_is_plain()
    )


def value_soon(run: SmallRun) -> Any:
    """The value of a run that is over in its first moments, or is supervised from then on; LATER
    for one that has to begin as any other, of which nothing has begun."""
    warm = run.warm or session()
    if warm is None:
        return LATER
    _there.add(run)
    try:
        leave = _take_place(run)
        if leave is None:
            return LATER
        try:
            with Deferred() as deferred:
                found = warm.ready()
                return _begin(run, warm, *found, deferred, leave) if found is not None else LATER
        finally:
            leave()
    finally:
        _there.discard(run)


def _take_place(run: SmallRun) -> Callable[[], None] | None:
    """Take a place on a CPU: the caller's own, or a cookie's; wait a little for the caller's where
    there is neither. Return how it is left, any number of times; None if there is none."""
    seat = seat_of_callers()
    if seat.take(run, _no_matter):
        return lambda: seat.leave(run)
    here = home()
    if here.pid == os.getpid() and here.budget.take() is not None:
        given: list[None] = []

        def give_back() -> None:
            if not given:
                given.append(None)
                here.budget.give(ANY_CPU)

        seat.leave(run)
        return give_back
    freed = threading.Event()
    until = time.monotonic() + _QUEUED
    try:
        while not seat.take(run, freed.set):
            # Only a run that is in its first moments as well leaves the place soon.
            if seat.holder() not in _there or time.monotonic() >= until:
                seat.leave(run)
                return None
            if freed.wait(_MOMENT):
                freed.clear()
    except BaseException:
        seat.leave(run)
        raise
    return lambda: seat.leave(run)


#: The runs that are in their first moments, or wait for them.
_there: set[object] = {None}
os.register_at_fork(after_in_child=lambda: _there.intersection_update({None}))


def _no_matter() -> None:
    """Told that the caller's place is free. By then the run has begun in another way."""


def _begin(run: SmallRun, warm: _run.Warm, frame: Frame, worker: Any, deferred: Deferred, leave_place: Callable[[], None]) -> Any:
    try:
        site = _armed(run, frame)
        described(site)
    except BaseException as error:
        warm.not_needed(worker)
        library_shares.end(run.id)
        run.leave_frame(warm, frame, [])
        if isinstance(error, (UnpicklableError, OSError)):
            return LATER  # a fork may do, or a new directory; else it is told there
        raise
    run.begin_in(site)
    lent = None
    if not run.wants_prints:
        with contextlib.suppress(OSError):  # it was about to end
            lent = warm.join(worker, site, _SLOT)
    if lent is None:
        warm.not_needed(worker)
        _there.discard(run)
        leave_place()
        return run.supervised_in(frame, site, warm, [], deferred)
    try:
        with deferred.lifted():
            run.is_under_way()
            over = _wait(run, frame, site, lent)
    except BaseException as error:
        _there.discard(run)
        leave_place()
        return run.supervised_in(frame, site, warm, [lent], deferred, error)
    if not over:
        _there.discard(run)
        leave_place()
        return run.supervised_in(frame, site, warm, [lent], deferred)
    return run.over_in(frame, site, warm, lent)


def _wait(run: SmallRun, frame: Frame, site: Site, lent: WorkerProcess) -> bool:
    """Wait a moment for the value. Return whether it is there, and nothing needs attention."""
    header = site.table.header
    until = time.monotonic() + (_MOMENT if run.flow.pending.count(0) == 1 else _MOMENT_ALONE)
    # A worker may only say that it has left the run before: look at that, and whether it has ended,
    # after a millisecond.
    soon, later = frame.polls_with(lent.watch, lent.err)
    looks = soon
    while not header[FINISHED]:
        left = until - time.monotonic()
        if left <= 0 or header[FAILED_NODE] >= 0 or run.cancelled:
            return False
        found = looks.poll(min(left, _SOON) * 1000)
        if looks is soon and not found:
            looks = later
            continue
        for fd, _ in found:
            if fd == lent.watch and not lent.ended():
                continue
            if fd != frame.listen:
                return bool(header[FINISHED]) and fd == lent.watch
            with contextlib.suppress(BlockingIOError):
                posix.read(fd, 4096)
    return not run.cancelled


def _armed(run: SmallRun, frame: Frame) -> Site:
    """Arm the rows of a frame for a run. Rows and site of the run before serve again, if its flow
    had the same form."""
    flow = run.flow
    # That of a call alone is known.
    form = (
        _ALONE
        if flow.plan is not None
        else (tuple(flow.pending), tuple(flow.consumer_starts), flow.leaves, len(flow.bodies), tuple(flow.sinks))
    )
    frame.empty_pipes()
    notes.begin_in(frame.notes)
    here: Home = frame.home
    frame.move(os.path.join(here.path, f"r{run.id}"), os.path.join(here.spill, f"r{run.id}"))
    kept = frame.kept_row(form)
    site: Site
    if kept is not None:
        site, blank = kept
        frame.memory[: len(blank)] = blank
        site.begin_again(flow, frame.directory, frame.spill)
        site.table.header[STARTED_AT] = time.monotonic_ns()
    else:
        frame.forget_row()
        lanes = [PROCESS] * len(flow.bodies)
        slots = 2 + flow.count  # as many workers as may be wanted while bodies wait
        table = Table.again(frame.memory, frame.table_fd, flow, slots, lanes)
        site = Site(flow, table, frame.directory, here.path, frame.spill, frame.wake, (-1, -1), frame.tell)
        site.frame, site.elsewhere = frame, True
        site.stores.append(frame.store_for(table, 0, 0))
        size = Table.size(flow.count, slots, len(flow.bodies), 0)
        frame.keep_row(form, site, size)
    store = frame.store_for(site.table, 0, 0)
    store.elsewhere = True
    site.own_id = run.id
    site.warm = run.warm
    site.context = run.context
    site.makeflags = here.makeflags
    site.shares = library_shares.begin(run.id, flow, site.lanes, here.most, site.table.slot_count - 2, None)
    header = site.table.header
    header[PLANNED] = 1
    header[RIGHT] = CPU
    header[MOST_WORKERS] = run.workers
    return site
