"""What a run leaves for later: workers that are still ending, and large directories.

The end of a process takes most of a millisecond, in which the kernel frees about two megabytes. The
caller has its value by then and need not wait. What is left goes to a thread, the reaper.

A fork beside another thread is dangerous if that thread holds a lock. The reaper holds none while
it waits for the kernel. While it uses the locks of the caller's streams it holds `still`, which
every fork of ours takes first.
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

#: A run leaves more bytes than this to the reaper, and removes fewer itself.
MUCH = 8 << 20

#: Held during every fork of ours, and by the reaper while it writes to the caller's streams.
still = threading.Lock()

_reapers: set[threading.Thread] = set()


def others() -> int:
    """How many threads this process has beside the calling one, reapers not counted."""
    _drop_ended()
    # Not by `is_alive`: a reaper that ends leaves the list a moment before it is dead.
    return sum(thread not in _reapers for thread in threading.enumerate()) - 1


def _drop_ended() -> None:
    """Drop reapers that have ended. Python keeps the stack of a thread as long as its `Thread`
    lives."""
    for thread in list(_reapers):
        if not thread.is_alive():
            _reapers.discard(thread)


def leave(workers: list[WorkerProcess], directories: list[str]) -> None:
    """Wait for workers whose run is over and remove directories; what takes long goes to a thread.

    Output from before the last value is passed on first: the caller may print something next.
    """
    for worker in workers:
        for fd in (worker.err, worker.out):
            # Once is enough: it holds all that a pipe can.
            if fd >= 0 and _forward(worker, fd) == b"":
                worker.close_stream(fd)
    _drop_ended()
    janitor.reap_adopted()
    # Wait for those that save coverage data. Killed meanwhile, they would leave none.
    left = _wait_for(workers, coverage.PATIENCE if coverage.measured() else 0.0)
    if not left and not directories:
        return
    if directories:
        for thread in list(_reapers):
            # At most one run's memory is left to free, however many runs a loop makes.
            thread.join()
    thread = threading.Thread(target=_reap, args=(left, directories), name="entangle-reaper", daemon=True)
    thread.start()
    _reapers.add(thread)


def _wait_for(workers: list[WorkerProcess], seconds: float) -> list[WorkerProcess]:
    """Wait up to `seconds` for workers whose run is over, and pass on their output. Return those
    that still run."""
    until = time.monotonic() + seconds
    left = list(workers)
    while left:
        for worker in list(left):
            # All of its output is here by its last value. The forkserver waits for its own
            # children.
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
    # This takes the locks of the caller's streams. A child forked meanwhile could never take them.
    with still:
        return forward(worker, fd)


def _reap(workers: list[WorkerProcess], directories: list[str]) -> None:
    for directory in directories:
        # A child forked during this slow import would wait for it for ever.
        with still:
            import shutil

        shutil.rmtree(directory, ignore_errors=True)
    left = _wait_for(workers, GRACE)
    for worker in left:
        worker.kill(signal.SIGKILL)
    _wait_for(left, 60.0)


def _after_fork() -> None:
    global still
    still = threading.Lock()
    _reapers.clear()


os.register_at_fork(after_in_child=_after_fork)
