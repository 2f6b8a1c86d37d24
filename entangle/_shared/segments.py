"""Shared memory for bodies that ask for it: `@process(shared_memory=True)` passes `smm` and `sm`.

A segment is a file in the run's directory. It needs no server and no tracker, and goes with the
run.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator

from entangle._shared.table import reserve
from entangle._shared.tracebacks import passes_on


class Segment:
    """A named piece of memory that processes of one run share.

    `name`, `size` (bytes), and `buf`, a writable memoryview.
    """

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

    def __reduce__(self) -> tuple[type[Segment], tuple[str]]:
        return Segment, (self._path,)

    def close(self) -> None:
        """Release the memory in this process. Arrays that use it keep it mapped."""
        self.buf.release()
        try:
            self._memory.close()
        except BufferError:
            pass

    def unlink(self) -> None:
        """Remove the name. Processes that have the segment open keep it."""
        os.unlink(self._path)


#: Types of items of a shareable list. A number, bool or None takes one word; text and bytes have
#: the room that they took at first.
Item = int | float | bool | str | bytes | None

_NONE, _BOOL, _INT, _FLOAT, _STR, _BYTES = range(6)
_KINDS = {type(None): _NONE, bool: _BOOL, int: _INT, float: _FLOAT, str: _STR, bytes: _BYTES}
_WORD = 8
#: Of each item: its type, offset, capacity and size (bytes).
_ENTRY = struct.Struct("qqqq")
_COUNT = struct.Struct("q")
_AS = {_BOOL: struct.Struct("q"), _INT: struct.Struct("q"), _FLOAT: struct.Struct("d")}


class ShareableList:
    """A list of fixed length in shared memory. Each process that has it can change its items.

    Items are int (64 bits), float, bool, str, bytes and None. A str or bytes may be replaced by one
    that is no longer, in bytes rounded up to eight. The list travels to other tasks of its run.
    `shm` is its segment; `sm.ShareableList(name=...)` finds the list by the segment's name. There
    is no lock: two processes that write one item at once leave one of the values, or a mixture.
    """

    def __init__(self, segment: Segment) -> None:
        self.shm = segment
        self._count: int = _COUNT.unpack_from(segment.buf, 0)[0]

    def __reduce__(self) -> tuple[type[ShareableList], tuple[Segment]]:
        return ShareableList, (self.shm,)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> Item:
        kind, at, _, size = _ENTRY.unpack_from(self.shm.buf, self._entry(position))
        if kind == _NONE:
            return None
        if kind in (_STR, _BYTES):
            raw = bytes(self.shm.buf[at : at + size])
            return raw.decode("utf-8", "surrogatepass") if kind == _STR else raw
        value: Item = _AS[kind].unpack_from(self.shm.buf, at)[0]
        return bool(value) if kind == _BOOL else value

    @passes_on
    def __setitem__(self, position: int, value: Item) -> None:
        entry = self._entry(position)
        _, at, room, _ = _ENTRY.unpack_from(self.shm.buf, entry)
        kind, raw = _packed(value)
        if len(raw) > room:
            raise ValueError(
                f"item {position} of this ShareableList has room for {room} bytes, and {type(value).__name__} needs {len(raw)}"
            )
        self.shm.buf[at : at + len(raw)] = raw
        _ENTRY.pack_into(self.shm.buf, entry, kind, at, room, len(raw))

    def __iter__(self) -> Iterator[Item]:
        return (self[position] for position in range(self._count))

    def __contains__(self, value: object) -> bool:
        return any(item is value or item == value for item in self)

    def __repr__(self) -> str:
        return f"ShareableList({list(self)!r}, name={self.shm.name!r})"

    def count(self, value: object) -> int:
        """How many items are equal to `value`."""
        return sum(1 for item in self if item == value)

    @passes_on
    def index(self, value: object) -> int:
        """The first position of `value`. Raises ValueError if it is not in the list."""
        for position, item in enumerate(self):
            if item == value:
                return position
        raise ValueError(f"{value!r} is not in this ShareableList")

    @passes_on
    def _entry(self, position: int) -> int:
        if not -self._count <= position < self._count:
            raise IndexError(f"item {position} is out of range: this ShareableList has {self._count} items")
        return _COUNT.size + _ENTRY.size * int(position % self._count)


@passes_on
def _packed(value: Item) -> tuple[int, bytes]:
    kind = _KINDS.get(type(value))
    if kind is None:
        raise TypeError(f"a ShareableList holds int, float, bool, str, bytes and None, not {type(value).__name__}")
    if isinstance(value, str):
        return kind, value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return kind, value
    if value is None:
        return kind, b""
    try:
        return kind, _AS[kind].pack(value)
    except struct.error:
        raise OverflowError(f"a ShareableList holds integers of 64 bits; this one has {int(value).bit_length()}") from None


class Segments:
    """`smm`: makes segments, and lists in them. They last as long as the run."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    @passes_on
    def SharedMemory(self, size: int) -> Segment:  # noqa: N802 - multiprocessing's name
        """A new segment of `size` bytes, all zero.

        Raises ValueError for a size below 1, OSError (ENOSPC) if there is no room.
        """
        if size <= 0:
            raise ValueError(f"a segment needs a size of at least 1 byte, not {size}")
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

    def ShareableList(self, sequence: Iterable[Item] = ()) -> ShareableList:  # noqa: N802
        """A list of these items in a new segment.

        Raises TypeError and OverflowError for items that it cannot hold.
        """
        items = [_packed(item) for item in sequence]
        at = _COUNT.size + _ENTRY.size * len(items)
        rooms = [max(_WORD, -(-len(raw) // _WORD) * _WORD) for _, raw in items]
        segment = self.SharedMemory(at + sum(rooms))
        _COUNT.pack_into(segment.buf, 0, len(items))
        for index, ((kind, raw), room) in enumerate(zip(items, rooms, strict=True)):
            _ENTRY.pack_into(segment.buf, _COUNT.size + _ENTRY.size * index, kind, at, room, len(raw))
            segment.buf[at : at + len(raw)] = raw
            at += room
        return ShareableList(segment)


class SegmentOpener:
    """`sm`: opens segments of this run, or of the runs around it, by name."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    @passes_on
    def __call__(self, name: str) -> Segment:
        """The segment of that name. Raises FileNotFoundError if there is none."""
        directory = self._directory
        if os.path.basename(name) == name:
            # A nested run's directory lies in that of the outer run.
            while os.path.basename(directory).startswith("r"):
                path = os.path.join(directory, name)
                if os.path.exists(path):
                    return Segment(path)
                directory = os.path.dirname(directory)
        raise FileNotFoundError(f"no shared memory segment named {name!r} in this run; its run may have ended")

    def ShareableList(self, *, name: str) -> ShareableList:  # noqa: N802 - as in `smm`
        """The list in the segment of that name. Raises FileNotFoundError if there is none."""
        return ShareableList(self(name))
