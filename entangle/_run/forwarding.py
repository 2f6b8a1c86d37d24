"""Output of workers, passed on to the caller's streams; exit reports quote the last lines."""

from __future__ import annotations

import contextlib
import os
import posix
import sys
from typing import Any

from entangle._run.worker_process import WorkerProcess
from entangle._shared.printout import unheard
from entangle.errors import add_note

#: Lines of a dead worker's stderr that the exit report quotes.
TAIL_LINES = 12


def forward(worker: WorkerProcess, fd: int) -> bytes | None:
    """Pass on what a worker has written to `fd`, and return it: b"" at the end, None if there is
    nothing now."""
    try:
        written = posix.read(fd, 65536)
    except BlockingIOError:
        return None
    if fd == worker.err:
        worker.tail += written
        del worker.tail[:-4096]
    if written:
        _write(sys.stderr if fd == worker.err else sys.stdout, 2 if fd == worker.err else 1, written)
    return written


def _write(stream: Any, fd: int, written: bytes) -> None:
    """Write output of a worker to the caller's own stream, which may be a notebook's."""
    try:
        unheard(stream)(written.decode("utf-8", "replace"))
        stream.flush()
    except Exception:
        with contextlib.suppress(OSError):
            os.write(fd, written)


def quote(error: BaseException, worker: WorkerProcess) -> None:
    """Add the last lines of a worker's stderr to an error."""
    tail = bytes(worker.tail).decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    if tail:
        add_note(error, "last lines of its stderr:\n" + "\n".join(f"  {line}" for line in tail))


def stdout_is_plain() -> bool:
    """Whether descriptor 1 of a worker leads where the caller's `print` does."""
    try:
        # The stdout of an agent is apart: its descriptor is for programs, and prints go another way
        # (`_remote/agent`).
        return sys.stdout is None or (sys.stdout.fileno() == 1 and not getattr(sys.stdout, "apart", False))
    except Exception:
        return False
