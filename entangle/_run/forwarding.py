"""What workers write to their stderr and stdout: passed on to the caller's, and the last lines kept for an obituary."""

from __future__ import annotations

import contextlib
import os
import posix
import sys
from typing import Any

from entangle._run.worker_process import WorkerProcess
from entangle.errors import add_note

#: Lines of a dead worker's stderr that its error quotes.
TAIL_LINES = 12


def forward(worker: WorkerProcess, fd: int) -> bytes | None:
    """Pass on what a worker has written to `fd`: gives that, b"" at the end of the stream, None where there is nothing now."""
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
    """Write what a worker has written to the caller's own stream, which may be a notebook's."""
    try:
        stream.write(written.decode("utf-8", "replace"))
        stream.flush()
    except Exception:
        with contextlib.suppress(OSError):
            os.write(fd, written)


def quote(error: BaseException, worker: WorkerProcess) -> None:
    """Add the last lines that a worker wrote to stderr to an error."""
    tail = bytes(worker.tail).decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    if tail:
        add_note(error, "last lines of its stderr:\n" + "\n".join(f"  {line}" for line in tail))


def stdout_is_plain() -> bool:
    """Whether what a worker writes to descriptor 1 ends up where the caller's `print` does."""
    try:
        # That of an agent has a descriptor to be given to programs, and goes another way itself (entangle._remote.agent.agent).
        return sys.stdout is None or (sys.stdout.fileno() == 1 and not getattr(sys.stdout, "apart", False))
    except Exception:
        return False
