"""What a process may have of descriptors, processes, threads and memory, and what to do where that is not enough.

Runs of one process share its descriptors. Hundreds of futures that are started at once need more than the usual 1,024, so a
run that would take the last ones waits until another has ended. One that is called in a body of this process never waits:
the run around it may be the one that would have to end. Where waiting helps nobody, one error says what is short.
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

#: Descriptors that a run needs with one worker: table, values, log segment, pipes, and what is open for a moment.
NEEDED = 20
#: Descriptors that are left to the program while runs wait for more.
SPARED = 64


def soft_limit() -> int | None:
    """How many descriptors this process may have open; None for no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def open_descriptors() -> int:
    """How many descriptors this process has open; 0 where that cannot be told."""
    for listing in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(listing))
    return 0


class _Room:
    """Counts the runs of this process, and those that have not opened yet what they need."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._runs = self._opening = 0

    def enter(self, waits: bool, cancelled: Callable[[], bool]) -> None:
        """Begin a run; where descriptors are short and `waits`, after others have ended."""
        with self._changed:
            while waits and self._runs and not cancelled() and not self._enough():
                self._changed.wait(0.5)
            self._runs += 1
            self._opening += 1

    def _enough(self) -> bool:
        most = soft_limit()
        # A run has rarely more than a few workers, so few runs need no look at what is open.
        if most is None or (self._runs + 1) * NEEDED * 4 <= most - 2 * SPARED:
            return True
        return open_descriptors() + (self._opening + 1) * NEEDED + SPARED <= most

    def opened(self) -> None:
        """A run has all that it needs to begin."""
        with self._changed:
            self._opening -= 1

    def leave(self) -> None:
        """A run is over."""
        with self._changed:
            self._runs -= 1
            self._changed.notify()


_room = (os.getpid(), _Room())


def room_of_process() -> _Room:
    """That of this process; a forked one begins with none of its parent's runs."""
    global _room
    if _room[0] != os.getpid():
        _room = (os.getpid(), _Room())
    return _room[1]


@block
def saying_what_is_short(doing: str) -> Iterator[None]:
    """Make an error of the operating system that tells of a limit one that says which, and how to have more."""
    try:
        yield
    except LimitError:
        raise
    except OSError as error:
        told = explained(doing, error)
        if told is None:
            raise
        raise told from None


def explained(doing: str, error: OSError) -> EntangleError | None:
    """The error that says which limit was met while `doing` something; None where `error` tells of none."""
    short = _SHORT.get(error.errno or 0)
    return LimitError(f"{doing}: {short()}") if short is not None else None


def no_thread(error: RuntimeError) -> LimitError:
    """The error for a thread that cannot be started, of which Python says no more than that."""
    return LimitError(f"no thread can be started ({error}): {_processes()}, or the limit of memory (ulimit -v)")


def _descriptors() -> str:
    return (
        f"this process has no descriptor left, of the {soft_limit():,} that it may have open; have more of them (ulimit -n), run less at a "
        "time, or let a run have fewer workers (ENTANGLE_MAX_WORKERS)"
    )


def _descriptors_of_all() -> str:
    return "the machine has no descriptor left (sysctl fs.file-max)"


def _processes() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    most = "" if soft == resource.RLIM_INFINITY else f" of {soft:,}"
    return f"the limit{most} of processes and threads is reached, of this user (ulimit -u) or of its container (pids)"


def file_size() -> str:
    """What a file that may not be as long is short of."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return f"files of this process may have no more than {soft:,} bytes; have that changed (ulimit -f)"


def _memory() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    most = "" if soft == resource.RLIM_INFINITY else f", of which this process may have {soft:,} bytes (ulimit -v)"
    return f"there is no memory left{most}"


def _path() -> str:
    return "its path is longer than the system allows; set ENTANGLE_RUN_DIR or TMPDIR to a shorter one"


_SHORT: dict[int, Callable[[], str]] = {
    errno.EMFILE: _descriptors,
    errno.ENFILE: _descriptors_of_all,
    errno.EAGAIN: _processes,
    errno.EFBIG: file_size,
    errno.ENOMEM: _memory,
    errno.ENAMETOOLONG: _path,
}
