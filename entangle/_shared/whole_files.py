"""Small files of a run for whoever looks on: readers see the old content or the new one, whole."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any

#: The most bytes that are read of one.
LONGEST = 1 << 26


def write_whole(path: str, told: Any) -> None:
    """Write JSON to a file of a run, in place of what it held: readers see the old or the new.
    Without room on the disk the old stays."""
    import json

    with contextlib.suppress(OSError):
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(json.dumps(told, separators=(",", ":")).encode("ascii"))
        os.rename(f"{path}.new", path)


def read_whole(path: str) -> Any:
    """What `write_whole` has written; None where there is nothing, or it is damaged."""
    import json

    try:
        with open(open_file(path), "rb") as file:
            return json.loads(file.read(LONGEST))
    except (OSError, ValueError, RecursionError, MemoryError):
        return None


def open_file(path: str) -> int:
    """Open a regular file of a run for reading. It must not be a link, nor a FIFO, on which we
    would hang.

    Raises OSError if it is gone, ValueError if it is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError(f"{path} is no regular file")
    return fd
