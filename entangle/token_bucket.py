"""A bucket of tokens: so many bodies may begin each second, in the whole process tree.

It is one number in a file that all processes map: the time at which the bucket will be full again
(the "theoretical arrival time" of the generic cell rate algorithm, ITU-T I.371). A token may be
taken if that is at most `burst - 1` intervals ahead; taking one adds an interval. One write of
eight bytes changes it, so a process may be killed at any instruction: at worst its token is used
up. Times are those of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
import time
from collections.abc import Callable, Collection

from entangle.cookies import PATIENCE, place

#: The longest time that a burst may stand for (ns): 73 years. Sums of times must fit into 63 bits.
_LONGEST = 1 << 61


class TokenBucket:
    """The tokens of a limit, in the file at `path`: `rate` a second, at most `burst` at once."""

    def __init__(self, path: str, rate: float, burst: int) -> None:
        self.path = path
        self._interval = int(min(1e9 / rate, _LONGEST // burst))
        self._slack = (burst - 1) * self._interval
        with contextlib.suppress(OSError):
            path = os.readlink(path)  # ours, to where there was room
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._memory = mmap.mmap(self._fd, 8)
        except BaseException:
            os.close(self._fd)
            raise
        self._full: memoryview[int] = memoryview(self._memory).cast("q")

    @staticmethod
    def create(path: str, spill: str = "") -> None:
        """Make the file of a bucket that is full. Raises FileExistsError if there is one."""
        place(path, bytes(8), spill)

    def take_cell(self) -> int:
        """Take a token if there is one: 0; else -1. Never waits."""
        return -1 if self._take() else 0

    def wait_cell(self, over: Callable[[], bool]) -> int:
        """Take a token; sleep until there is one. -1 as soon as `over` says so."""
        while not over():
            left = self._take()
            if not left:
                return 0
            time.sleep(min(left / 1e9, PATIENCE))
        return -1

    def left(self) -> float:
        """Seconds until there is a token; 0 where there is one."""
        return max(0.0, (self._full[0] - time.monotonic_ns() - self._slack) / 1e9)

    def give_cell(self, cell: int, thread: int = 0) -> None:
        """Put back a token with which no body has begun."""
        with _guard:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX)
                self._full[0] -= self._interval
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def number(self, cell: int) -> int:
        """Tokens stand for nothing else."""
        return 0

    def held_here(self) -> set[int]:
        """None: a token is used up when it is taken."""
        return set()

    def give_back(self, but: Collection[int] = ()) -> None:
        """Nothing: a token that was taken is used up."""

    def close(self) -> None:
        """Unmap and close the file."""
        with _guard:  # closing any descriptor of a file drops the record lock on it
            if self._fd >= 0:
                self._full.release()
                self._memory.close()
                os.close(self._fd)
                self._fd = -1

    def _take(self) -> int:
        """Take a token: 0; or how long to wait for one (ns)."""
        with _guard:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX)
                now, full = time.monotonic_ns(), self._full[0]
                if full - now > self._slack:
                    return full - now - self._slack
                self._full[0] = max(now, full) + self._interval
                return 0
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()  # the thread that held the lock does not exist here


#: Record locks do not exclude threads of one process.
_guard = threading.Lock()

os.register_at_fork(after_in_child=_after_fork)
