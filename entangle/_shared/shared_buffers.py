"""Large buffers of pickles, each stored once for many readers.

Tasks of one call often take the same large arrays. What pickles out-of-band and is large lies in a
file of shared memory, which readers map privately, copy-on-write. A buffer is found again by its
address, and only if its bytes are still those of the file: one that was written to meanwhile, or
freed and used again, is stored anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import threading
from typing import Any, NamedTuple

from entangle._shared.home import home
from entangle._shared.limits import file_size
from entangle._shared.spare_files import FULL, open_file, write_all
from entangle._shared.store import LARGE, map_privately
from entangle._shared.table import reserve
from entangle.cookies import mapped
from entangle.errors import StoreFullError

__all__ = ["LARGE", "Reference", "SharedBuffers", "read"]


class Reference(NamedTuple):
    """Where a buffer is: the path of its file, and its size in bytes."""

    path: str
    size: int


class _Stored:
    """A buffer in a file, and how many use it."""

    def __init__(self, reference: Reference, memory: mmap.mmap) -> None:
        self.reference = reference
        self.memory = memory
        self.users = 0


class SharedBuffers:
    """The buffers that the tasks under way use. Any thread may call."""

    def __init__(self) -> None:
        self._stored: dict[tuple[int, int], _Stored] = {}
        self._files: dict[str, _Stored] = {}
        self._guard = threading.Lock()

    def hold(self, buffer: memoryview) -> Reference:
        """The place of these bytes, which must be contiguous; stores them unless they are there.

        They stay until `let_go` has been called as often. Raises StoreFullError without room.
        """
        address = _address_of(buffer)
        with self._guard:
            found = self._stored.get((address, buffer.nbytes))
            if found is None or not _same(address, found.memory, buffer.nbytes):
                reference = _write(buffer)
                found = self._files[reference.path] = self._stored[address, buffer.nbytes] = _Stored(reference, _map(reference))
            found.users += 1
            return found.reference

    def let_go(self, reference: Reference) -> None:
        """One task fewer uses the buffer. The last one removes its file; mappings of it stay."""
        with self._guard:
            found = self._files.get(reference.path)
            if found is None:
                return
            found.users -= 1
            if not found.users:
                self._remove(found)

    def close(self) -> None:
        """Remove all files."""
        with self._guard:
            for found in list(self._files.values()):
                self._remove(found)

    def _remove(self, found: _Stored) -> None:
        del self._files[found.reference.path]
        for key in [key for key, stored in self._stored.items() if stored is found]:
            del self._stored[key]
        found.memory.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(found.reference.path)


def read(reference: Reference) -> memoryview:
    """Map the bytes: writable, and no other process sees the writes."""
    return map_privately(reference.path, {})[: reference.size]


def _write(buffer: memoryview) -> Reference:
    """Write a buffer to a file in the home: in shared memory, else on disk."""
    ours = home()
    name = f"b{os.urandom(8).hex()}"
    problem = None
    for directory in (ours.path, ours.spill):
        path = os.path.join(directory, name)
        fd = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            # Reserve it all first: a full file system fails here, before anything is written.
            reserve(fd, 0, buffer.nbytes)
            write_all(fd, buffer, 0)
            return Reference(path, buffer.nbytes)
        except BaseException as error:
            os.unlink(path)
            if not isinstance(error, OSError) or error.errno not in FULL:
                raise
            problem = error
        finally:
            os.close(fd)
    assert problem is not None
    if problem.errno == errno.EFBIG:
        raise StoreFullError(f"no room for {buffer.nbytes:,} bytes of an argument: {file_size()}") from None
    raise StoreFullError(
        problem.errno,
        f"no room for {buffer.nbytes:,} bytes of an argument, neither in {ours.path} nor in {ours.spill}; "
        "free some, or point ENTANGLE_RUN_DIR or TMPDIR at a larger place",
    )


def _map(reference: Reference) -> mmap.mmap:
    """Map a file of ours to compare with it."""
    fd = open_file(reference.path, os.O_RDWR)
    try:
        return mapped(fd)
    finally:
        os.close(fd)


class _PyBuffer(ctypes.Structure):
    """`Py_buffer`, as the stable ABI has it (https://docs.python.org/3/c-api/buffer.html)."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_libc: Any = ctypes.CDLL(None)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_get_buffer: Any = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_release_buffer: Any = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)


def _address_of(buffer: Any) -> int:
    """The address of a contiguous buffer, also of one that is read-only."""
    view = _PyBuffer()
    _get_buffer(buffer, ctypes.byref(view), 0)
    try:
        return int(view.buf or 0)
    finally:
        _release_buffer(ctypes.byref(view))


def _same(address: int, memory: mmap.mmap, size: int) -> bool:
    """Whether the bytes there are those of the file. Other threads run meanwhile."""
    return bool(_libc.memcmp(address, _address_of(memory), size) == 0)
