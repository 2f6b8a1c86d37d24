"""The store: where values live between tasks. Values in, values out; large ones are never copied.

Small values are pickled (protocol 5) into *segments* of one file that every worker maps. A worker
fills one segment at a time. Once all its values have been read, a segment is used again, so a long
run does not grow.

A value with large buffers (numpy arrays, `bytes`, Arrow tables: whatever pickles out-of-band) gets
a file of its own in shared memory. Readers map it privately, copy-on-write: nothing is copied, the
array is writable, and other processes do not see the writes. A buffer from such a file that nobody
has written to is not stored again: the new value links to the same file.

In a session, such a file is written again once nobody has it any more (`spare_files.py`).

If shared memory is full, values go to files in the temporary directory: slower, never wrong.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import pickle
import struct
import sys
import weakref
from collections.abc import Callable
from typing import Any

from entangle._shared.limits import file_size
from entangle._shared.pickling import dumps
from entangle._shared.spare_files import FULL, libc, map_at, open_file, place_of_spares, spare_files
from entangle._shared.table import BOOL, FLOAT, FREE_SEGMENT, IN_RECORD, INT, NONE, SEGMENTS, Table, reserve
from entangle._shared.unpickling import failing_part, unpickling_error
from entangle.errors import EntangleError, StoreFullError

#: A buffer of this many bytes or more gets a file of its own. So does a pickle that would fill much
#: of a segment.
LARGE = 64 * 1024
SEGMENT_SIZE = 256 * 1024
#: Bytes reserved in a segment at a time. Most workers of most runs need no second step.
STEP = 32 * 1024
#: The number of unread values (while the segment is being filled: minus those read); then the next
#: free segment, or SEALED (full), or FILLING minus the slot of the worker that fills it.
SEGMENT_HEAD = struct.Struct("<qq")
SEALED, FILLING = -2, -3
WINDOW = 64 * SEGMENT_SIZE
PAGE = mmap.PAGESIZE

# Where a value is; or IN_RECORD.
NOWHERE, IN_SEGMENT, IN_FILE, IN_SPILL, IN_LINKED = range(5)

_ENTRY = struct.Struct("<qqq")  # link number (0: this file), offset, length
_COUNT = struct.Struct("<qq")  # buffers, length of the pickle

Place = tuple[int, int, int]  # where, offset or number, size


def map_privately(path: str, mapped: dict[int, tuple[int, str]]) -> memoryview:
    """Map a file copy-on-write. The last view of it unmaps it; until then `mapped` has its
    address."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        address = map_at(fd, size, mmap.MAP_PRIVATE)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)
    block = (ctypes.c_char * size).from_address(address)
    mapped[address] = (size, path)
    # Every view keeps the block alive.
    weakref.finalize(block, _unmap, address, size, mapped).atexit = False
    return memoryview(block).cast("B")


def _map_window(fd: int, offset: int) -> memoryview:
    """Map a window of a file, shared. It may reach past the end of the file."""
    try:
        return memoryview(mmap.mmap(fd, WINDOW, offset=offset))
    except ValueError:  # Python checks the size, where the file could not be made that long
        address = map_at(fd, WINDOW, mmap.MAP_SHARED, offset)
    return memoryview((ctypes.c_char * WINDOW).from_address(address)).cast("B")


def _unmap(address: int, size: int, mapped: dict[int, tuple[int, str]]) -> None:
    mapped.pop(address, None)
    libc.munmap(address, size)


def untouched(address: int, size: int) -> bool:
    """Whether nobody has written to these bytes of a private mapping, as /proc/self/pagemap tells.

    The top byte of an entry has bit 7 for a page that is present, 6 for one that is swapped, 5 for
    one that is still the file's (Linux, Documentation/admin-guide/mm/pagemap.rst). A written page
    is present, and no longer the file's.
    """
    first, last = address // PAGE, (address + size - 1) // PAGE
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pages:
            entries = os.pread(pages.fileno(), 8 * (last - first + 1), 8 * first)
    except OSError:
        return False
    if len(entries) != 8 * (last - first + 1):
        return False
    tops = set(entries[7::8] if sys.byteorder == "little" else entries[0::8])
    return all(not top & 0x40 and (not top & 0x80 or top & 0x20) for top in tops)


def address_of(buffer: memoryview) -> int:
    """The address of a writable, contiguous buffer; 0 if unknown."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    except (TypeError, ValueError):
        return 0


class WholeBytes:
    """Pickles large `bytes` out-of-band, which they do not by themselves.

    Unpickling copies them once, since bytes own their memory.
    """

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return bytes, (pickle.PickleBuffer(self.value),)


def aside(buffers: list[memoryview], least: int = LARGE) -> Callable[[pickle.PickleBuffer], bool]:
    """A `buffer_callback` of pickle that puts buffers of at least this many bytes aside, into that
    list."""

    def out_of_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous: pickle copies it
            return True
        if raw.nbytes < least:
            return True
        buffers.append(raw)
        return False

    return out_of_band


class Store:
    """The values of one run, in its directory.

    Each worker has its own Store. Its `serial` is unique, and not reused after its death.
    """

    def __init__(self, directory: str, table: Table, slot: int, serial: int, spill: str, fd: int = -1) -> None:
        self.directory = directory
        self.spill = spill
        self.table = table
        self.slot = slot
        self.serial = serial
        #: The file of the segments.
        self.fd = fd if fd >= 0 else open_file(os.path.join(directory, "values"), os.O_RDWR | os.O_CREAT)
        #: The mapped windows of the segments, by their numbers.
        self.windows: dict[int, memoryview] = {}
        self._segment = -1
        self._position = self._reserved = SEGMENT_SIZE
        self._written = 0
        self._window = memoryview(b"")
        self._base = 0
        self._numbers = 0
        self._mapped: dict[int, tuple[int, str]] = {}
        #: The directory in which files of large values are kept to be written again; "" for a
        #: store whose workers end with the run.
        self.spares = ""
        #: Whether readers may have another `__main__` than this process.
        self.elsewhere = False

    def become(self, slot: int, serial: int) -> None:
        """After a fork, become another worker's store: it shares mapped windows, but no segment."""
        self.slot = slot
        self.serial = serial
        self._segment = -1
        self._position = self._reserved = SEGMENT_SIZE
        self._numbers = self._written = 0
        self._mapped = {}

    def again(self, directory: str, table: Table, slot: int, serial: int, spill: str) -> None:
        """Become the store of a worker of another run, in the same file, whose values nobody needs
        any more."""
        self.become(slot, serial)
        self.directory, self.table, self.spill = directory, table, spill
        self.elsewhere = False
        self.spares = place_of_spares(os.path.dirname(directory))

    def before_fork(self) -> None:
        """Map what every worker needs first. A child inherits it; mapping it there is slower."""
        with contextlib.suppress(OSError):
            self._window_of(0)

    # Values in -----------------------------------------------------------------------------------

    def put(self, value: Any) -> Place:
        """Store a value and give its place.

        Raises what pickling the value raises, or StoreFullError if there is no room anywhere.
        """
        kind = type(value)
        if kind is int and -(1 << 63) <= value < 1 << 63:
            return IN_RECORD, value, INT
        if kind is float:
            return IN_RECORD, _NUMBER.unpack(_DOUBLE.pack(value))[0], FLOAT
        if value is None or kind is bool:
            return IN_RECORD, bool(value), NONE if value is None else BOOL
        if kind is int or kind is str:
            return self.put_pickle(pickle.dumps(value, 5))
        if kind is bytes and len(value) >= LARGE:
            value = WholeBytes(value)
        buffers: list[memoryview] = []
        body = dumps(value, aside(buffers), buffers.clear, self.elsewhere)
        if buffers:
            return self._put_file(body, buffers)
        return self.put_pickle(body)

    def put_buffers(self, buffers: list[memoryview]) -> Place:
        """Store large buffers whose pickle travels in another way.

        Raises StoreFullError if there is no room anywhere.
        """
        return self._put_file(b"", buffers)

    def put_pickle(self, body: bytes) -> Place:
        """Store a value that is pickled already."""
        size = len(body)
        position = self._position
        end = position + size
        if end > self._reserved:
            if size > SEGMENT_SIZE // 4 or not self._make_room(size):
                return self._put_file(body, [])
            position = self._position
            end = position + size
        self._window[position + self._base : end + self._base] = body
        self._position = (end + 7) & ~7
        self._written += 1
        return IN_SEGMENT, self._segment * SEGMENT_SIZE + position, size

    def pickle_at(self, place: Place) -> memoryview:
        """The pickle of a value in a segment."""
        window, base = self._window_of(place[1] // SEGMENT_SIZE)
        start = base + place[1] % SEGMENT_SIZE
        return window[start : start + place[2]]

    def _window_of(self, segment: int) -> tuple[memoryview, int]:
        """The mapped window that holds a segment, and the segment's offset in it."""
        number, within = divmod(segment * SEGMENT_SIZE, WINDOW)
        window = self.windows.get(number)
        if window is None:
            # A mapping may reach past the end of the file. Only reserved bytes are ever touched.
            needed = (number + 1) * WINDOW
            if os.fstat(self.fd).st_size < needed:
                with contextlib.suppress(OSError):  # a file may not be that long (RLIMIT_FSIZE)
                    os.ftruncate(self.fd, needed)
            window = self.windows[number] = _map_window(self.fd, number * WINDOW)
        return window, within

    def _make_room(self, size: int) -> bool:
        """Reserve that many bytes, in this segment or the next; False if there is no room."""
        if self._position + size > SEGMENT_SIZE:
            return self._next_segment() and (self._position + size <= self._reserved or self._make_room(size))
        start = self._segment * SEGMENT_SIZE
        reserved = min(SEGMENT_SIZE, self._reserved + max(STEP, round_up(size)))
        try:
            reserve(self.fd, start + self._reserved, reserved - self._reserved)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return False
        self._reserved = reserved
        return True

    def _next_segment(self) -> bool:
        """Begin an empty segment; False if there is no room for one."""
        table = self.table
        header = table.header
        table.lock(self.slot)
        try:
            if self._segment >= 0:
                self._seal(self._segment)
            segment: int = header[FREE_SEGMENT]
            if segment >= 0:
                window, base = self._window_of(segment)
                header[FREE_SEGMENT] = SEGMENT_HEAD.unpack_from(window, base)[1]
            else:
                segment = header[SEGMENTS]
                try:
                    window, base = self._window_of(segment)
                    reserve(self.fd, segment * SEGMENT_SIZE, STEP)
                except OSError as error:
                    if error.errno not in FULL:
                        raise
                    self._segment, self._position, self._reserved = -1, SEGMENT_SIZE, SEGMENT_SIZE
                    return False
                header[SEGMENTS] = segment + 1
            SEGMENT_HEAD.pack_into(window, base, 0, FILLING - self.slot)
        finally:
            table.unlock()
        self._segment = segment
        self._window, self._base = window, base
        self._position = SEGMENT_HEAD.size
        # A reused segment has at least that much. Reserving the rest again costs nothing.
        self._reserved = STEP
        return True

    def _seal(self, segment: int) -> None:
        """Close a segment to new values, and count its values. Lock held.

        They are not counted one by one: most have been read by now.
        """
        window, base = self._window_of(segment)
        held = SEGMENT_HEAD.unpack_from(window, base)[0] + self._written
        self._written = 0
        if held:
            SEGMENT_HEAD.pack_into(window, base, held, SEALED)
        else:
            SEGMENT_HEAD.pack_into(window, base, 0, self.table.header[FREE_SEGMENT])
            self.table.header[FREE_SEGMENT] = segment

    def _put_file(self, body: bytes, buffers: list[memoryview]) -> Place:
        """Store a pickle and its buffers in a file: in shared memory, else on disk."""
        self._numbers += 1
        number = (self.serial << 32) | self._numbers
        try:
            return self._write_file(number, IN_FILE, body, buffers)
        except OSError as error:
            if error.errno not in FULL:
                raise
        try:
            os.makedirs(self.spill, mode=0o700, exist_ok=True)
            return self._write_file(number, IN_SPILL, body, buffers)
        except OSError as error:
            if error.errno not in FULL:
                raise
            size = len(body) + sum(buffer.nbytes for buffer in buffers)
            if error.errno == errno.EFBIG:
                raise StoreFullError(f"no room for a value of {size:,} bytes: {file_size()}") from None
            raise StoreFullError(
                error.errno,
                f"no room for a value of {size:,} bytes, neither in {self.directory} nor in {self.spill}; "
                "free some, or point ENTANGLE_RUN_DIR or TMPDIR at a larger place",
            ) from None

    def _write_file(self, number: int, where: int, body: bytes, buffers: list[memoryview]) -> Place:
        entries: list[tuple[int, int, int]] = []
        links: list[str] = []
        own: list[tuple[memoryview, int]] = []
        at = round_up(_COUNT.size + _ENTRY.size * len(buffers) + len(body))
        try:
            for buffer in buffers:
                origin = self._origin(buffer) if where == IN_FILE else None
                if origin is not None:
                    path, offset = origin
                    link = self._link_path(number, len(links) + 1)
                    os.link(path, link)
                    links.append(link)
                    entries.append((len(links), offset, buffer.nbytes))
                else:
                    entries.append((0, at, buffer.nbytes))
                    own.append((buffer, at))
                    at = round_up(at + buffer.nbytes)
            head = b"".join((_COUNT.pack(len(buffers), len(body)), *(_ENTRY.pack(*entry) for entry in entries), body))
            parts = [(memoryview(head), 0), *own]
            spare_files.write(self._path(number, where), at, parts, self.spares if where == IN_FILE else "")
        except OSError:
            for link in links:
                os.unlink(link)
            raise
        return (IN_LINKED if links else where), number, at

    def _origin(self, buffer: memoryview) -> tuple[str, int] | None:
        """The file that a buffer is mapped from, and its offset; None if it was written to."""
        if not self._mapped:
            return None
        address = address_of(buffer)
        for start, (size, path) in list(self._mapped.items()):
            if start <= address and address + buffer.nbytes <= start + size:
                if os.path.dirname(path) == self.directory and os.path.exists(path) and untouched(address, buffer.nbytes):
                    return path, address - start
                return None
        return None

    # Values out ----------------------------------------------------------------------------------

    def get(self, place: Place) -> Any:
        """The value at a place. Large buffers are mapped, not copied."""
        where, offset, size = place
        if where == IN_SEGMENT:
            number, within = divmod(offset, WINDOW)
            window = self.windows.get(number)
            if window is None:
                window, _ = self._window_of(offset // SEGMENT_SIZE)
            return pickle.loads(window[within : within + size])
        if where == IN_RECORD:
            return in_record(offset, size)
        body, buffers = self._in_file(place)
        return pickle.loads(body, buffers=buffers)

    def parts(self, place: Place) -> tuple[memoryview, list[memoryview]]:
        """The pickle at a place, and its large buffers."""
        return self._in_file(place) if place[0] != IN_SEGMENT else (self.pickle_at(place), [])

    def _in_file(self, place: Place) -> tuple[memoryview, list[memoryview]]:
        where, offset, _ = place
        view = map_privately(self._path(offset, where), self._mapped)
        count, length = _COUNT.unpack_from(view, 0)
        start = _COUNT.size + _ENTRY.size * count
        buffers = []
        linked: dict[int, memoryview] = {0: view}
        for index in range(count):
            link, at, nbytes = _ENTRY.unpack_from(view, _COUNT.size + _ENTRY.size * index)
            if link not in linked:
                linked[link] = map_privately(self._link_path(offset, link), self._mapped)
            buffers.append(linked[link][at : at + nbytes])
        return view[start : start + length], buffers

    def unpickling_error(self, problem: Exception, place: Place, what: str, around: int = 0) -> EntangleError:
        """The error for a value that `get` cannot unpickle. `what` names the value.

        It names the part. The first `around` steps to it are left out: those are containers of
        ours.
        """
        part = None
        with contextlib.suppress(Exception):  # an unreadable pickle has no parts
            part = failing_part(*self.parts(place))
        if part is not None:
            part = part._replace(steps=part.steps[around:])
        return unpickling_error(problem, what, part)

    # Counting readers, lock held -----------------------------------------------------------------

    def seal_for(self, slot: int, unread: Callable[[int], int]) -> None:
        """Seal what a worker was filling when it ended. Lock held.

        `unread` counts the values of a segment that are still needed.
        """
        for segment in range(self.table.header[SEGMENTS]):
            window, base = self._window_of(segment)
            if SEGMENT_HEAD.unpack_from(window, base)[1] != FILLING - slot:
                continue
            held = unread(segment)
            if held:
                SEGMENT_HEAD.pack_into(window, base, held, SEALED)
            else:
                SEGMENT_HEAD.pack_into(window, base, 0, self.table.header[FREE_SEGMENT])
                self.table.header[FREE_SEGMENT] = segment

    def count_read(self, node: int) -> Place | None:
        """Count a reader of a node's value. Gives the file that nobody needs any more, if any; its
        caller removes it. Lock held.
        """
        table = self.table
        table.readers[node] -= 1
        _, _, offset, size, where, _, _, _ = table.record(node)
        return self.release((where, offset, size)) if not table.readers[node] and where != NOWHERE else None

    def release(self, place: Place) -> Place | None:
        """Drop a value that all readers have taken. Lock held.

        Gives the place back if it has a file to `remove`.
        """
        if place[0] == IN_SEGMENT:
            segment = place[1] // SEGMENT_SIZE
            window, base = self._window_of(segment)
            held, state = SEGMENT_HEAD.unpack_from(window, base)
            held -= 1
            if held == 0 and state == SEALED:
                state = self.table.header[FREE_SEGMENT]
                self.table.header[FREE_SEGMENT] = segment
            SEGMENT_HEAD.pack_into(window, base, held, state)
            return None
        return place if place[0] not in (NOWHERE, IN_RECORD) else None

    def remove(self, place: Place) -> None:
        """Unlink the file of a value. The kernel keeps the memory as long as it is mapped."""
        where, number, _ = place
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(number, where))
        if where == IN_LINKED:
            index = 1
            with contextlib.suppress(FileNotFoundError):
                while True:
                    os.unlink(self._link_path(number, index))
                    index += 1

    # Names ---------------------------------------------------------------------------------------

    def _path(self, number: int, where: int) -> str:
        return os.path.join(self.spill if where == IN_SPILL else self.directory, f"v{number:x}")

    def _link_path(self, number: int, index: int) -> str:
        return os.path.join(self.directory, f"v{number:x}.{index}")

    def close(self) -> None:
        """Unmap the segments and close their file. Values taken from the store stay valid."""
        for window in self.windows.values():
            owner: Any = window.obj
            window.release()
            if isinstance(owner, mmap.mmap):
                owner.close()
            else:
                libc.munmap(ctypes.addressof(owner), WINDOW)
        self.windows.clear()
        os.close(self.fd)


def in_record(number: int, kind: int) -> Any:
    """The value that a record has in the place of an offset."""
    if kind == FLOAT:
        return _DOUBLE.unpack(_NUMBER.pack(number))[0]
    return None if kind == NONE else bool(number) if kind == BOOL else number


_NUMBER, _DOUBLE = struct.Struct("<q"), struct.Struct("<d")


def round_up(size: int) -> int:
    """Round up to a page boundary."""
    return -(-size // PAGE) * PAGE
