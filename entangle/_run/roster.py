"""The workers of a run: processes and threads by their slots, and what the processes write."""

from __future__ import annotations

import select
import threading

from entangle._run.forwarding import forward
from entangle._run.worker_process import WorkerProcess
from entangle._shared.interrupts import Deferred
from entangle._shared.polling import new_poll
from entangle._worker.worker import Worker


class Roster:
    """The workers of a run, and the free slots of its table. Slot 0 is never a worker's."""

    def __init__(self, slots: int) -> None:
        self.processes: dict[int, WorkerProcess] = {}
        self.threads: dict[int, tuple[threading.Thread, Worker]] = {}
        self.free = list(range(slots - 1, 0, -1))
        self.poll = new_poll()
        self.by_fd: dict[int, WorkerProcess] = {}

    def add(self, worker: WorkerProcess) -> None:
        """Add a worker process that has been started in its slot."""
        self.processes[worker.slot] = worker
        for fd in (worker.watch, worker.err, worker.out):
            if fd >= 0:
                self.by_fd[fd] = worker
                self.poll.register(fd, select.POLLIN)

    def remove(self, worker: WorkerProcess) -> None:
        """Remove a worker process that has ended, and close its descriptors. Its slot is not free
        yet."""
        for fd in (worker.watch, worker.err, worker.out):
            if fd >= 0:
                del self.by_fd[fd]
                self.poll.unregister(fd)
        worker.close()
        del self.processes[worker.slot]

    def forward(self, worker: WorkerProcess, fd: int) -> bool:
        """Pass on what a worker has written. Return False where there is no more."""
        written = forward(worker, fd)
        if written == b"":
            with Deferred():
                del self.by_fd[fd]
                self.poll.unregister(fd)
                worker.close_stream(fd)
        return bool(written)

    def forward_rest(self, worker: WorkerProcess) -> None:
        for fd in (worker.err, worker.out):
            while fd >= 0 and self.forward(worker, fd):
                pass
