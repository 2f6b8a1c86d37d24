"""Limits of a process (descriptors, processes, threads, memory), and what to do at them.

Runs of one process share its descriptors. Hundreds of futures started at once need more than the
usual 1,024. So a run that would take the last descriptors waits until another has ended. A run
called in a body of this process never waits: the outer run may be the one that would have to end.
Where waiting helps nobody, one error says which limit was reached.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator

from entangle._shared.block import block
from entangle.errors import EntangleError, LimitError

#: Descriptors that a run needs with one worker: table, values, log segment, pipes, temporary files.
NEEDED = 20
#: Descriptors left to the program while runs wait for more.
SPARED = 64


def soft_limit() -> int | None:
    """How many descriptors this process may have open; None if there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def open_descriptors() -> int:
    """How many descriptors this process has open; 0 if unknown."""
    for listing in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(listing))
    return 0


class _Room:
    """Counts the runs of this process, and those of them that still open files."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._runs = self._opening = 0

    def enter(self, waits: bool, cancelled: Callable[[], bool]) -> None:
        """Begin a run. If descriptors are short and it `waits`: once other runs have ended."""
        with self._changed:
            while waits and self._runs and not cancelled() and not self._enough():
                self._changed.wait(0.5)
            self._runs += 1
            self._opening += 1

    def _enough(self) -> bool:
        most = soft_limit()
        # Few runs have more than a few workers: below this many, counting descriptors is not
        # needed.
        if most is None or (self._runs + 1) * NEEDED * 4 <= most - 2 * SPARED:
            return True
        return open_descriptors() + (self._opening + 1) * NEEDED + SPARED <= most

    def opened(self) -> None:
        """Note that a run has opened all that it needs to begin."""
        with self._changed:
            self._opening -= 1

    def leave(self) -> None:
        """Note that a run has ended."""
        with self._changed:
            self._runs -= 1
            self._changed.notify()


_room = (os.getpid(), _Room())


def room_of_process() -> _Room:
    """The count of this process; a forked child begins with none of its parent's runs."""
    global _room
    if _room[0] != os.getpid():
        _room = (os.getpid(), _Room())
    return _room[1]


@block
def explaining_limits(doing: str) -> Iterator[None]:
    """Replace an OSError about a limit by an error that says which limit, and how to raise it."""
    try:
        yield
    except LimitError:
        raise
    except OSError as error:
        told = limit_error(doing, error)
        if told is None:
            raise
        raise told from None


def limit_error(doing: str, error: OSError) -> EntangleError | None:
    """The error that says which limit was met while `doing` something; None for other errors."""
    explain = _EXPLANATIONS.get(error.errno or 0)
    return LimitError(f"{doing}: {explain()}") if explain is not None else None


def no_thread(error: RuntimeError) -> LimitError:
    """The error for a thread that cannot be started: Python does not say why."""
    return LimitError(f"no thread can be started ({error}): {_processes()}, or the limit of memory (ulimit -v)")


def _descriptors() -> str:
    return (
        f"all {soft_limit():,} descriptors that this process may have are open; raise the limit (ulimit -n), run less at a time, "
        "or give each run fewer workers (ENTANGLE_MAX_WORKERS)"
    )


def _descriptors_of_all() -> str:
    return "all descriptors that the machine may have are open; raise the limit (sysctl fs.file-max)"


def _processes() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    most = "" if soft == resource.RLIM_INFINITY else f" of {soft:,}"
    return f"the limit{most} of processes and threads is reached; raise it for this user (ulimit -u) or for its container (pids)"


def file_size() -> str:
    """What limits the size of files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return f"files of this process may have no more than {soft:,} bytes; raise the limit (ulimit -f)"


def _memory() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    most = "" if soft == resource.RLIM_INFINITY else f"; this process may use {soft:,} bytes (ulimit -v)"
    return f"there is no memory left{most}"


def _path() -> str:
    return "its path is longer than the system allows; set ENTANGLE_RUN_DIR or TMPDIR to a shorter one"


_EXPLANATIONS: dict[int, Callable[[], str]] = {
    errno.EMFILE: _descriptors,
    errno.ENFILE: _descriptors_of_all,
    errno.EAGAIN: _processes,
    errno.EFBIG: file_size,
    errno.ENOMEM: _memory,
    errno.ENAMETOOLONG: _path,
}
