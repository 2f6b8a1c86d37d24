"""Which files of large values are in use: kept by the owner of an executor's workers.

A file is held by each value that lies in it, by each process that maps it, and for each call that
takes it. One that nobody holds is removed.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import Counter, deque
from typing import Any

from entangle._shared.value_files import ValueFiles, Wire, files_of


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
        #: Files of values that are gone. Filled at any moment, in any thread.
        self.dropped: deque[str] = deque()
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
        """Count one fewer. The last one removes the file."""
        self.held[name] -= 1
        if self.held[name] > 0:
            return
        del self.held[name]
        if not self.over:
            with contextlib.suppress(OSError):
                os.unlink(self.files.path(name))

    def look(self) -> None:
        """See which files nobody in this process holds any more."""
        while self.dropped:
            self.drop(self.dropped.popleft())
        for name in self.files.gone():
            self.drop(name)

    def bury(self, held: Counter[str]) -> None:
        """Take back what a worker had that is gone."""
        for name in held.elements():
            self.drop(name)
