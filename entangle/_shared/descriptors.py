"""Which files descriptors lead to. A program may close those that are ours, as os.closerange does:
their numbers are other files' later, which must not be written, read or closed."""

from __future__ import annotations

import os


def file_of(fd: int) -> tuple[int, int, int] | None:
    """Which file a descriptor leads to; None if it is closed."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_rdev


class OwnDescriptors:
    """Descriptors of ours, and the files that they lead to."""

    def __init__(self, *fds: int) -> None:
        self._files = [(fd, file_of(fd)) for fd in fds]

    def lost(self) -> bool:
        """Whether somebody has closed one."""
        return any(file_of(fd) != file for fd, file in self._files)
