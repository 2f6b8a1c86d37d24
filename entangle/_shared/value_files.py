"""Large values on their way from process to process: files in shared memory that are used again.

A value is a pickle and its large buffers. What is small travels in the message. The rest lies in a
file, which the reader maps privately: nothing is copied, the value is writable, and nobody else
sees what is written. Writing to pages that exist takes a third of the time of fresh ones, so a file
that nobody maps any more is written again.

One process, the owner, decides which file is free (`calling.Holdings`). It lends free files to
others, which say what they have written and what they no longer map.
"""

from __future__ import annotations

import bisect
import os
import pickle
from collections import Counter
from typing import Any

from entangle._shared.limits import file_size
from entangle._shared.store import FULL, WholeBytes, address_of, aside, map_privately, open_file, round_up, untouched, write_all
from entangle._shared.table import reserve
from entangle.errors import StoreFullError

#: A value in a message: its pickle; or its pickle (None: it is the first part) and the parts, each
#: a file, an offset and a size.
Wire = bytes | tuple[bytes | None, tuple[tuple[str, int, int], ...]]

#: A pickle or a buffer of more bytes than this lies in a file. The way through a socket costs as
#: much where there are some more: the sender waits for the reader then.
INLINE = 128 * 1024


def pickled(dump: Any, value: Any) -> tuple[bytes, list[memoryview]]:
    """Pickle a value by `dump(value, buffer_callback, again)`. Gives its large buffers as well."""
    if type(value) is bytes and len(value) > INLINE:
        value = WholeBytes(value)
    buffers: list[memoryview] = []
    body: bytes = dump(value, aside(buffers, INLINE + 1), buffers.clear)
    return body, buffers


def files_of(wire: Wire) -> set[str]:
    """The files in which a value lies."""
    return set() if isinstance(wire, bytes) else {name for name, _, _ in wire[1]}


def end_of(wire: Wire) -> int:
    """How many bytes a file for such a value has."""
    return 0 if isinstance(wire, bytes) else max(start + size for _, start, size in wire[1])


class ValueFiles:
    """The files of values of one owner, as one process sees them."""

    def __init__(self, directory: str, spill: str) -> None:
        self.directory = directory
        self.spill = spill
        #: Files that this process may write: bytes and name, in order.
        self.spare: list[tuple[int, str]] = []
        #: Files that it has written since the owner was told: name and bytes.
        self.written: list[tuple[str, int]] = []
        #: How many values of each file came to this process and are not known to be gone.
        self.held: Counter[str] = Counter()
        self._mapped: dict[int, tuple[int, str]] = {}
        self._numbers = 0

    def path(self, name: str) -> str:
        """The path of a file."""
        return os.path.join(self.spill if name.startswith("s") else self.directory, name)

    # In ------------------------------------------------------------------------------------------

    def put(self, body: bytes, buffers: list[memoryview]) -> Wire:
        """Store a pickle and its buffers, where they are large.

        Raises StoreFullError if there is no room for them anywhere.
        """
        if not buffers and len(body) <= INLINE:
            return body
        inline = len(body) <= INLINE
        places: list[tuple[str, int, int]] = []
        own: list[tuple[memoryview, int]] = []
        at = 0
        for buffer in buffers if inline else [memoryview(body), *buffers]:
            origin = self._origin(buffer)
            if origin is not None:
                places.append((*origin, buffer.nbytes))
                continue
            places.append(("", at, buffer.nbytes))
            own.append((buffer, at))
            at = round_up(at + buffer.nbytes)
        name = self._write(own, at) if own else ""
        return (body if inline else None), tuple((file or name, start, size) for file, start, size in places)

    def _write(self, parts: list[tuple[memoryview, int]], size: int) -> str:
        """Write the parts to a spare file, or to a new one. Gives its name."""
        first = bisect.bisect_left(self.spare, (size, ""))
        if first < len(self.spare) and self.spare[first][0] <= 4 * size:
            most, name = self.spare.pop(first)
            fd = open_file(self.path(name), os.O_WRONLY)
            try:
                for buffer, at in parts:
                    write_all(fd, buffer, at)
            finally:
                os.close(fd)
            self.written.append((name, most))
            return name
        for where in "vs":
            try:
                return self._write_new(where, parts, size)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                full = error
        told = file_size() if full.errno == 27 else f"neither in {self.directory} nor in {self.spill}"
        raise StoreFullError(
            full.errno,
            f"no room for a value of {size:,} bytes, {told}; free some, or point ENTANGLE_RUN_DIR or TMPDIR at a larger place",
        )

    def _write_new(self, where: str, parts: list[tuple[memoryview, int]], size: int) -> str:
        self._numbers += 1
        name = f"{where}{os.getpid()}-{self._numbers}"
        if where == "s":
            os.makedirs(self.spill, mode=0o700, exist_ok=True)
        path = self.path(name)
        fd = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            # Reserve it all first: a full file system fails here, before anything is written.
            reserve(fd, 0, size)
            for buffer, at in parts:
                write_all(fd, buffer, at)
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise
        os.close(fd)
        self.written.append((name, size))
        return name

    def _origin(self, buffer: memoryview) -> tuple[str, int] | None:
        """The file that a buffer is mapped from, and its offset; None if it was written to."""
        if not self._mapped:
            return None
        address = address_of(buffer)
        for start, (size, path) in list(self._mapped.items()):
            if start <= address and address + buffer.nbytes <= start + size:
                if untouched(address, buffer.nbytes) and os.path.exists(path):
                    return os.path.basename(path), address - start
                return None
        return None

    # Out -----------------------------------------------------------------------------------------

    def read(self, wire: Wire) -> tuple[Any, list[memoryview]]:
        """The pickle of a value, and its large buffers, mapped."""
        if isinstance(wire, bytes):
            return wire, []
        body, parts = wire
        views: dict[str, memoryview] = {}
        buffers = []
        for name, at, size in parts:
            if name not in views:
                views[name] = map_privately(self.path(name), self._mapped)
            buffers.append(views[name][at : at + size])
        return (buffers.pop(0) if body is None else body), buffers

    def load(self, wire: Wire) -> Any:
        """The value."""
        if isinstance(wire, bytes):
            return pickle.loads(wire)
        body, buffers = self.read(wire)
        return pickle.loads(body, buffers=buffers)

    def gone(self) -> list[str]:
        """The files of values that were held here, once for each that is not mapped any more."""
        if not self.held:
            return []
        mapped = Counter(os.path.basename(path) for _, path in list(self._mapped.values()))
        gone = self.held - mapped
        self.held -= gone
        return list(gone.elements())
