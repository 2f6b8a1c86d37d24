"""Warm workers in runs: lent to a run in the place of a worker that would be started for it."""

from __future__ import annotations

import marshal
import os
import signal
from itertools import chain

from entangle._run.start import NoWorkerNow
from entangle._run.worker_process import WorkerProcess
from entangle._shared.orders import JOIN
from entangle._shared.site import Site
from entangle._shared.table import BEGUN, DOOMED, RUNS, SLOT, STARTING, STATE
from entangle._warm.warm_pool import WarmPool, WarmWorker
from entangle._worker.joining import described, write_flow
from entangle._worker.taking import flush

#: What a run tells its workers is sent to each if it has fewer bytes than this, else written down
#: for all.
_MOST_SENT = 64 << 10
#: How many frames a worker keeps open.
_MOST_FRAMES = 4
#: How long a worker's end may take to be told, once its channel has closed (seconds).
_TOLD = 1.0


class LentWorker(WorkerProcess):
    """A warm worker during one run. For the run, it ends when it leaves."""

    def __init__(self, slot: int, lane: int, warm: WarmWorker, pool: WarmPool, out: int, slots: memoryview[int], number: int) -> None:
        super().__init__(slot, lane, 0, warm.watch, warm.err, out, ours=False)
        self._warm = warm
        self._pool = pool
        self._slots = slots
        #: The worker has left this run when it has left this many.
        self._number = number

    @property
    def pid(self) -> int:
        return self._warm.pid

    def ended(self) -> bool:
        """Whether it has left the run, or its process has ended."""
        if self.ended_by is None:
            self._warm.is_prompt = False  # its run lasts
            self._warm.left()
            if self._warm.runs_left >= self._number:
                self.ended_by = self._warm.last_status
            elif self._warm.ended() or (self._warm.orders.ended and self._warm.wait(_TOLD)):
                self.ended_by = self._warm.ended_by
        return self.ended_by is not None

    def kill(self, number: int) -> None:
        """Send a signal, unless the worker is about to leave by itself."""
        if self.ended_by is not None:
            return
        begun, late = self._begun()
        if begun or number == signal.SIGKILL:
            why = (
                "a deadline had passed"
                if late
                else "its run ended while it ran a body"
                if begun
                else "it did not leave a run that was over"
            )
            self._warm.killed_for = self._warm.killed_for or why
            self._warm.kill(number)

    def _begun(self) -> tuple[bool, bool]:
        """Whether a body of the run runs in it, and whether that is past a deadline. A body whose
        value or error is being published is over."""
        base = self.slot * SLOT
        try:
            return self._slots[base + BEGUN] == RUNS, self._slots[base + DOOMED] == 1
        except ValueError:  # the table is closed: the run is over
            return True, False

    def close(self) -> None:
        """Close the descriptors of this run, and give the worker back."""
        self.watch = -1
        self.err = -1  # the worker's own, for the next run as well
        super().close()
        self._pool.give(self._warm)

    def close_stream(self, fd: int) -> None:
        """Close stdout at its end, and listen to stderr no more."""
        if fd == self.err:
            self.err = -1
        else:
            super().close_stream(fd)


def lend(pool: WarmPool, site: Site, slot: int, lane: int, serial: int, capture: bool) -> WorkerProcess:
    """Have a warm worker join a run.

    Raises NoWorkerNow if all are lent, UnpicklableError if the flow cannot travel.
    """
    described(site)
    while (warm := pool.take()) is not None:
        try:
            return join(pool, warm, site, slot, lane, serial, capture)
        except OSError:  # it has just ended, or was about to
            warm.wait(_TOLD)
            pool.give(warm)
    raise NoWorkerNow


def join(pool: WarmPool, warm: WarmWorker, site: Site, slot: int, lane: int, serial: int, capture: bool) -> WorkerProcess:
    """Have this warm worker join a run.

    Raises OSError if it has just ended, UnpicklableError if the flow cannot travel.
    """
    known = described(site)
    frame = site.frame if len(known) + len(site.given) < _MOST_SENT else None
    given = site.given
    flush()
    slots = site.table.slots
    slots[slot * SLOT + STATE] = STARTING
    flow_path, number, dropped, fds = "", -1, -1, []
    if frame is None:
        write_flow(site)
        flow_path, known, given = site.flow_path, b"", b""
        fds = [*site.wake, *site.wake_threads, site.tell, *chain(*site.wake_devices)]
    else:
        number = frame.number
        if number not in warm.frames:
            dropped = warm.frames[0] if len(warm.frames) >= _MOST_FRAMES else -1
            fds = [frame.table_fd, frame.values_fd, *frame.wake, frame.tell]
    told = site.told if frame is not None else 0
    forgets = 0
    if told and warm.knows(told):
        known = b""
    elif told:
        forgets = warm.learns(told)
    out = os.pipe() if capture else (-1, -1)
    fds = [out[1], *fds]
    marks = [fd >= 0 for fd in fds]
    try:
        order = marshal.dumps((number, dropped, site.directory, flow_path, slot, lane, serial, marks, known, told, forgets, given))
        warm.orders.send(JOIN, order, [fd for fd in fds if fd >= 0])
        joined = warm.joins(site.frame, site.record)
    except BaseException:
        if out[0] >= 0:
            os.close(out[0])
        raise
    finally:
        if out[1] >= 0:
            os.close(out[1])
    if site.frame is not None:
        site.frame.workers.append(warm)
    if frame is not None:
        warm.frames = [*(other for other in warm.frames if other not in (number, dropped)), number]
    if out[0] >= 0:
        os.set_blocking(out[0], False)
    return LentWorker(slot, lane, warm, pool, out[0], slots, joined)
