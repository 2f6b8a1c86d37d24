"""Warm workers in runs: lent to a run in the place of a worker that would be started for it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from itertools import chain

from entangle._run.start import NoWorkerNow
from entangle._run.worker_process import WorkerProcess
from entangle._shared.orders import JOIN
from entangle._shared.site import Site
from entangle._shared.table import BEGUN, RUNS, SLOT
from entangle._warm.warm_pool import WarmPool, WarmWorker
from entangle._worker.joining import write_flow
from entangle._worker.taking import flush

#: How long a worker's end may take to be told, once its channel has closed (seconds).
_TOLD = 1.0


class LentWorker(WorkerProcess):
    """A warm worker during one run. For the run, it ends when it leaves."""

    def __init__(self, slot: int, lane: int, warm: WarmWorker, pool: WarmPool, err: int, out: int, runs: Callable[[], bool]) -> None:
        super().__init__(slot, lane, 0, warm.watch, err, out, ours=False)
        self._warm = warm
        self._pool = pool
        self._runs = runs

    @property
    def pid(self) -> int:
        return self._warm.pid

    def ended(self) -> bool:
        """Whether it has left the run, or its process has ended."""
        if self.ended_by is None:
            self.ended_by = self._warm.left()
            if self.ended_by is None and (self._warm.ended() or (self._warm.orders.ended and self._warm.wait(_TOLD))):
                self.ended_by = self._warm.ended_by
        return self.ended_by is not None

    def kill(self, number: int) -> None:
        """Send a signal, unless the worker is about to leave by itself."""
        if self.ended_by is None and (number == signal.SIGKILL or self._runs()):
            self._warm.kill(number)

    def close(self) -> None:
        """Close the descriptors of this run, and give the worker back."""
        self.watch = -1
        super().close()
        self._pool.give(self._warm)


def lend(pool: WarmPool, site: Site, slot: int, lane: int, serial: int, capture: bool) -> WorkerProcess:
    """Have a warm worker join a run.

    Raises NoWorkerNow if all are lent, UnpicklableError if the flow cannot travel.
    """
    write_flow(site)
    flush()
    fds = [*site.wake, *site.wake_threads, site.tell, *chain(*site.wake_devices)]
    slots, base = site.table.slots, slot * SLOT
    while (warm := pool.take()) is not None:
        err_read, err_write = os.pipe()
        out_read, out_write = os.pipe() if capture else (-1, -1)
        present = [fd for fd in (err_write, out_write, *fds) if fd >= 0]
        told = {
            "directory": site.directory,
            "flow_path": site.flow_path,
            "slot": slot,
            "lane": lane,
            "serial": serial,
            "fds": [0 if fd >= 0 else -1 for fd in (err_write, out_write, *fds)],
        }
        try:
            warm.orders.send(JOIN, json.dumps(told).encode(), present)
            warm.away = True
        except OSError:  # it has just ended, or was about to
            for fd in (err_read, out_read):
                if fd >= 0:
                    os.close(fd)
            warm.wait(_TOLD)
            pool.give(warm)
            continue
        finally:
            for fd in (err_write, out_write):
                if fd >= 0:
                    os.close(fd)
        for fd in (err_read, out_read):
            if fd >= 0:
                os.set_blocking(fd, False)
        return LentWorker(slot, lane, warm, pool, err_read, out_read, lambda: _begun(slots, base))
    raise NoWorkerNow


def _begun(slots: memoryview[int], base: int) -> bool:
    """Whether a body of the run runs in that slot. One whose value or error is being published is
    over."""
    try:
        return slots[base + BEGUN] == RUNS
    except ValueError:  # the table is closed: the run is over
        return True
