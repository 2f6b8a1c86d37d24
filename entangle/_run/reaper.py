"""What a run leaves for later: workers on their way out, and large directories.

The end of a process takes most of a millisecond, and the kernel frees about two megabytes in one; a caller who has his value
need not wait for that. What is not gone when the value is there goes to a thread, the reaper. A fork beside another thread is
dangerous for the locks that the thread holds. The reaper waits for the kernel without any, and where it takes those of the
caller's streams it holds `still`, which every fork of ours takes first.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from entangle._run.forwarding import forward
from entangle._run.worker_process import GRACE, WorkerProcess
from entangle._shared.polling import readable
from entangle._worker import coverage, janitor

#: Bytes of values that a run may leave for its caller to remove.
MUCH = 8 << 20

#: Held by whoever forks, and by the reaper while it writes to the caller's streams.
still = threading.Lock()

_reapers: set[threading.Thread] = set()


def others() -> int:
    """How many threads this process has beside the one that asks, reapers not counted."""
    _forget_the_dead()
    # Seen one by one: a reaper that ends is no longer listed a moment before it is dead.
    return sum(thread not in _reapers for thread in threading.enumerate()) - 1


def _forget_the_dead() -> None:
    """Let go of reapers that have ended. Python keeps the stack of a thread for as long as somebody has its `Thread`."""
    for thread in list(_reapers):
        if not thread.is_alive():
            _reapers.discard(thread)


def leave(workers: list[WorkerProcess], directories: list[str]) -> None:
    """See workers off whose run is over and remove directories, what takes long in a thread.

    What they wrote before the last value is passed on first: the caller, who goes on now, may print something himself.
    """
    for worker in workers:
        for fd in (worker.err, worker.out):
            # Once is enough: a pipe holds no more than that.
            if fd >= 0 and _forward(worker, fd) == b"":
                worker.close_stream(fd)
    _forget_the_dead()
    janitor.reap_adopted()
    # One that is killed while it saves what coverage.py has seen of it would leave nothing.
    left = _see_off(workers, coverage.PATIENCE if coverage.measured() else 0.0)
    if not left and not directories:
        return
    if directories:
        for thread in list(_reapers):
            thread.join()  # the memory of one run is left behind at most, not of every run in a loop
    thread = threading.Thread(target=_reap, args=(left, directories), name="entangle-reaper", daemon=True)
    thread.start()
    _reapers.add(thread)


def _see_off(workers: list[WorkerProcess], seconds: float) -> list[WorkerProcess]:
    """Wait so long for workers whose run is over, and pass on what they still write; gives those who are not gone by then."""
    until = time.monotonic() + seconds
    left = list(workers)
    while left:
        for worker in list(left):
            # What it had to say was written before its last value; the forkserver waits for the end of its own children.
            if not worker.is_child or worker.ended():
                for fd in (worker.err, worker.out):
                    while fd >= 0 and _forward(worker, fd):
                        pass
                worker.close()
                left.remove(worker)
        rest = until - time.monotonic()
        if not left or rest <= 0:
            break
        watched = {fd: worker for worker in left for fd in (worker.watch, worker.err, worker.out) if fd >= 0}
        for fd in readable(watched, min(rest, 0.05)):
            worker = watched[fd]
            if fd != worker.watch and _forward(worker, fd) == b"":
                worker.close_stream(fd)
    return left


def _forward(worker: WorkerProcess, fd: int) -> bytes | None:
    # It takes the locks of the caller's streams, which a child forked meanwhile would find taken for ever.
    with still:
        return forward(worker, fd)


def _reap(workers: list[WorkerProcess], directories: list[str]) -> None:
    for directory in directories:
        # Seldom needed, and slow to import. A child forked in the middle of that would wait for the import for ever.
        with still:
            import shutil

        shutil.rmtree(directory, ignore_errors=True)
    left = _see_off(workers, GRACE)
    for worker in left:
        worker.kill(signal.SIGKILL)
    _see_off(left, 60.0)


def _after_fork() -> None:
    global still
    still = threading.Lock()
    _reapers.clear()


os.register_at_fork(after_in_child=_after_fork)
