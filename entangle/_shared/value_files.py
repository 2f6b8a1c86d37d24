"""Large values on their way from process to process: files in shared memory.

A value is a pickle and its large buffers. What is small travels in the message. The rest lies in a
file, which the reader maps privately: nothing is copied, the value is writable, and nobody else
sees what is written.

One process, the owner, knows which file is still needed (`holdings.py`), and removes the others.
Other processes say which they no longer map. Whoever has written a file may then write it again
(`spare_files.py`).
"""

from __future__ import annotations

import os
import pickle
from collections import Counter
from typing import Any

from entangle._shared.limits import file_size
from entangle._shared.spare_files import FULL, place_of_spares, spare_files
from entangle._shared.store import WholeBytes, address_of, aside, map_privately, round_up, untouched
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


class ValueFiles:
    """The files of values of one owner, as one process sees them."""

    def __init__(self, directory: str, spill: str) -> None:
        self.directory = directory
        self.spill = spill
        #: How many values of each file came to this process and are not known to be gone.
        self.held: Counter[str] = Counter()
        self._mapped: dict[int, tuple[int, str]] = {}
        self._numbers = 0

    def path(self, name: str) -> str:
        """The path of a file."""
        return os.path.join(self.spill if name.startswith("s") else self.directory, name)

    def runs_of(self, pid: int) -> tuple[str, str]:
        """Where the runs lie that calls in this worker have begun, here and on disk."""
        return os.path.join(self.directory, f"w{pid}"), os.path.join(self.spill, f"w{pid}")

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
        """Write the parts to a file. Gives its name."""
        for where in "vs":
            self._numbers += 1
            name = f"{where}{os.getpid()}-{self._numbers}"
            if where == "s":
                os.makedirs(self.spill, mode=0o700, exist_ok=True)
            spares = place_of_spares(os.path.dirname(self.directory)) if where == "v" else ""
            try:
                spare_files.write(self.path(name), size, parts, spares)
                return name
            except OSError as error:
                if error.errno not in FULL:
                    raise
                full = error
        told = file_size() if full.errno == 27 else f"neither in {self.directory} nor in {self.spill}"
        raise StoreFullError(
            full.errno,
            f"no room for a value of {size:,} bytes, {told}; free some, or point ENTANGLE_RUN_DIR or TMPDIR at a larger place",
        )

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
