"""The lock of a key: one process at a time computes its value.

A file that the holder locks (flock). The kernel drops the lock when the holder dies. A program that
the holder starts does not inherit it (close-on-exec), and a child that it forks closes it at once:
else the lock would outlive a holder that is killed, for as long as its children live.

The holder removes the file. So after locking a file, check that it still has its name: another
process may have removed it in between, and a third may have made a new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

_held: set[int] = set()


def _after_fork() -> None:
    for fd in list(_held):
        with contextlib.suppress(OSError):
            os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)


class KeyLock:
    """A lock that is held."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd
        self.pid = os.getpid()

    @classmethod
    def take(cls, path: str, mode: int) -> KeyLock | None:
        """Take the lock; None where another has it. Does not wait. Raises OSError."""
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
            _held.add(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(fd, path):
                    return cls(path, fd)
            except BlockingIOError:
                held = is_held(fd)
                _close(fd)
                if held:
                    return None
                continue  # somebody only looked, with `is_held`
            except BaseException:
                _close(fd)
                raise
            _close(fd)

    def give(self) -> None:
        """Let others have it. In a child that was forked meanwhile, does nothing."""
        if self.pid != os.getpid():
            return
        with contextlib.suppress(OSError):
            if _is_at(self._fd, self._path):  # else its directory was removed, and that is another's
                os.unlink(self._path)
        with contextlib.suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # also where a child has it open still
        _close(self._fd)


@contextlib.contextmanager
def held_for_a_moment(path: str, mode: int) -> Iterator[None]:
    """Hold a lock whose file stays; waits for it. For work of milliseconds. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    _held.add(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)
        _close(fd)


def is_held(fd: int) -> bool:
    """Whether another descriptor holds the lock of an open file. Takes a shared lock, which ends
    when the file is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _is_at(fd: int, path: str) -> bool:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _close(fd: int) -> None:
    _held.discard(fd)
    with contextlib.suppress(OSError):
        os.close(fd)
