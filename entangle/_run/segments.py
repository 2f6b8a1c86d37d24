"""Shared memory that a body asks for by hand: what `@process(shared_memory=True)` passes as `smm` and `sm`.

A segment is a file in the run directory, so it needs no server and no tracker, and it goes when the run ends.
"""

from __future__ import annotations

import mmap
import os

from entangle._run.table import reserve


class Segment:
    """A named piece of memory that processes of one run share: `name`, `size` (bytes) and `buf`, a writable memoryview."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self.size = os.fstat(fd).st_size
            self._memory = mmap.mmap(fd, self.size)
        finally:
            os.close(fd)
        self._path = path
        self.name = os.path.basename(path)
        self.buf = memoryview(self._memory)

    def close(self) -> None:
        """Let go of the memory in this process. Arrays that still look at it keep it mapped."""
        self.buf.release()
        try:
            self._memory.close()
        except BufferError:
            pass

    def unlink(self) -> None:
        """Take the name away; who has the segment open keeps it."""
        os.unlink(self._path)


class Segments:
    """`smm`: makes segments that live until the run ends."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def SharedMemory(self, size: int) -> Segment:  # noqa: N802 - the name that multiprocessing's manager uses
        """A new segment of `size` bytes, all zero. Raises OSError (ENOSPC) where there is no room."""
        if size <= 0:
            raise ValueError("a segment needs a size of at least 1 byte")
        path = os.path.join(self._directory, f"s{os.urandom(8).hex()}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            reserve(fd, 0, size)
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        return Segment(path)


class SegmentOpener:
    """`sm`: opens a segment by its name, one of this run or of the runs around it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def __call__(self, name: str) -> Segment:
        """The segment of that name. Raises FileNotFoundError where there is none."""
        directory = self._directory
        if os.path.basename(name) == name:
            # A nested run's directory lies in that of the run around it.
            while os.path.basename(directory).startswith("r"):
                path = os.path.join(directory, name)
                if os.path.exists(path):
                    return Segment(path)
                directory = os.path.dirname(directory)
        raise FileNotFoundError(f"no shared memory segment named {name!r} in this run; its run may have ended")
