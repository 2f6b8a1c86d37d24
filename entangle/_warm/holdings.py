"""Which files of large values are in use: kept by the owner of an executor's workers.

A file is held by each value that lies in it, by each process that maps it, and for each call that
takes it. One that nobody holds is free: it is written again,
or lent to a worker for its next value.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import weakref
from collections import Counter, deque
from typing import Any

from entangle._shared.value_files import ValueFiles, Wire, files_of

#: Free files may take so much of the room that is left, and so many bytes at most.
_SHARE, _MOST = 4, 1 << 30


class Sealed:
    """A value as it travels. While this object lives, its files are not written again."""

    __slots__ = ("__weakref__", "_holdings", "parts", "wire")

    def __init__(self, wire: Wire, holdings: Holdings | None = None) -> None:
        self.wire = wire
        #: Its pickle and its buffers, mapped: once the files are about to go.
        self.parts: tuple[Any, list[memoryview]] | None = None
        self._holdings = holdings

    def __del__(self) -> None:
        if self._holdings is not None:
            self._holdings.dropped.extend(files_of(self.wire))


class Holdings:
    """The files of one executor. All but `dropped` belongs to whoever has the executor's lock."""

    def __init__(self, files: ValueFiles) -> None:
        self.files = files
        self.held: Counter[str] = Counter()
        #: Bytes of each file.
        self.sizes: dict[str, int] = {}
        #: Files of values that are gone. Filled at any moment, in any thread.
        self.dropped: deque[str] = deque()
        self.free = 0
        self._sealed: weakref.WeakSet[Sealed] = weakref.WeakSet()
        #: Whether the directory is gone.
        self.over = False

    def seal(self, wire: Wire) -> Sealed:
        """A value whose files are held."""
        for name in files_of(wire):
            self.hold(name)
        made = Sealed(wire, self)
        self._sealed.add(made)
        return made

    def map_all(self) -> None:
        """Map all values that are still there: the files are about to go."""
        for sealed in list(self._sealed):
            with contextlib.suppress(OSError):
                sealed.parts = self.files.read(sealed.wire)

    def hold(self, name: str) -> None:
        """Count one more that holds a file."""
        self.held[name] += 1

    def drop(self, name: str) -> None:
        """Count one fewer. The last one frees the file."""
        self.held[name] -= 1
        if self.held[name] > 0:
            return
        del self.held[name]
        size = self.sizes.get(name)
        if size is None or name.startswith("s") or self.free + size > self._most():
            self._remove(name)
            return
        bisect.insort(self.files.spare, (size, name))
        self.free += size

    def _most(self) -> int:
        try:
            status = os.statvfs(self.files.directory)
        except OSError:
            return 0
        return min(_MOST, (status.f_bavail * status.f_frsize + self.free) // _SHARE)

    def _remove(self, name: str) -> None:
        self.sizes.pop(name, None)
        if not self.over:
            with contextlib.suppress(OSError):
                os.unlink(self.files.path(name))

    def note(self, files: ValueFiles) -> None:
        """Note what this process has written, and see which files are free."""
        for name, size in files.written:
            self.sizes[name] = size
        files.written.clear()
        self.look()

    def look(self) -> None:
        """See which files nobody in this process holds any more."""
        while self.dropped:
            self.drop(self.dropped.popleft())
        for name in self.files.gone():
            self.drop(name)
        self.free = sum(size for size, _ in self.files.spare)

    def lend(self, size: int, lent: dict[str, int]) -> list[tuple[int, str]]:
        """Free files for values of so many bytes, unless a worker has one already."""
        if any(size <= known <= 4 * size for known in lent.values()):
            return []
        self.look()
        spare = self.files.spare
        at = bisect.bisect_left(spare, (size, ""))
        if at == len(spare) or spare[at][0] > 4 * size:
            return []
        found = spare.pop(at)
        self.free -= found[0]
        lent[found[1]] = found[0]
        return [found]

    def bury(self, held: Counter[str], lent: dict[str, int]) -> None:
        """Take back what a worker had that is gone."""
        for name in held.elements():
            self.drop(name)
        for name in lent:
            self._remove(name)

    def trim(self) -> None:
        """Remove free files: they are not needed for a while."""
        self.look()
        for _, name in self.files.spare:
            self._remove(name)
        self.files.spare.clear()
        self.free = 0
