"""Spare files: files of large values that their writer keeps, and writes again.

The kernel has to find and clear each page of a new file, and to map each into whoever writes it.
Pages that a process has mapped already are written ten times as fast. So it keeps some of the files
that it has written: open, mapped, and under a name of its own in a directory of the home.

A file is written again only when nobody can see it any more:

- It has no other name. So its value is not needed, and nobody can open it from now on.
- Nobody has it open or mapped. The kernel knows: it gives a lease for writing (F_SETLEASE in
  fcntl(2)) only where no other opening of the file is left. A mapping counts, in any process, as do
  those that children have inherited. The descriptor and the mapping kept here are one opening.

Where the kernel gives no such leases, no files are kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import signal
import threading
from collections.abc import Sequence

from entangle._shared.table import reserve

#: What the system says where there is no room.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM)
#: Smaller files are not kept: looking takes as long as it would save.
_LEAST = 256 * 1024
#: How many files a process keeps, and how many it looks at to find one.
_MOST_FILES, _MOST_LOOKS = 16, 4
#: The files that all processes of a home keep may take one part in `_SHARE` of the room that is
#: left, and at most `_MOST` bytes.
_SHARE, _MOST = 4, 1 << 30
#: A value goes into a file of at most this many times its size.
_LOOSE = 4
#: What is copied at once, before another thread may run.
_PIECE = 8 << 20

#: Bytes, and where in a file they belong.
Part = tuple[memoryview, int]

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def open_file(path: str, flags: int) -> int:
    """Open a file of ours, not as a standard stream: a body may close one that others write to."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def write_all(fd: int, buffer: memoryview, offset: int) -> None:
    """Write all bytes of a buffer at an offset: a single call writes 2 GiB at most."""
    left = _bytes_of(buffer)
    while len(left):
        written = os.pwrite(fd, left, offset)
        offset += written
        left = left[written:]


def _bytes_of(buffer: memoryview) -> memoryview:
    return buffer.cast("B") if buffer.format != "B" or buffer.ndim != 1 else buffer


def map_at(fd: int, size: int, flags: int, offset: int = 0) -> int:
    """Map a file for reading and writing, and give the address.

    Not by `mmap.mmap`: before Python 3.13 that keeps a descriptor open as long as the mapping, and
    a task that gathers a thousand arrays would run out of them.
    """
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset)
    if address is None or address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(address)


class _Spare:
    """One file: its descriptor, its own name, its bytes, and where it is mapped (0: nowhere)."""

    __slots__ = ("address", "fd", "file", "path", "size")

    def __init__(self, fd: int, path: str, size: int) -> None:
        self.fd = fd
        self.path = path
        self.size = size
        self.address = 0
        found = os.fstat(fd)
        self.file = found.st_dev, found.st_ino

    def is_free(self) -> bool:
        """Whether nobody else has it, and nobody can come to have it."""
        try:
            found = os.fstat(self.fd)
            # First the names: after the last one is gone, nobody opens it.
            return found.st_nlink == 1 and self.file == (found.st_dev, found.st_ino) and _leased(self.fd)
        except OSError:
            return False

    def write(self, parts: Sequence[Part]) -> None:
        """Write into it: where it is mapped, at the speed of memory."""
        if not self.address:
            with contextlib.suppress(OSError):  # no address space: `ulimit -v`
                self.address = map_at(self.fd, self.size, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
        if not self.address:
            for buffer, at in parts:
                write_all(self.fd, buffer, at)
            return
        memory = memoryview((ctypes.c_char * self.size).from_address(self.address)).cast("B")
        for buffer, at in parts:
            left = _bytes_of(buffer)
            for start in range(0, len(left), _PIECE):
                piece = left[start : start + _PIECE]
                memory[at + start : at + start + len(piece)] = piece

    def drop(self) -> None:
        """Keep it no more. It lasts as long as others have it."""
        self.let_go()
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    def let_go(self) -> None:
        """Close and unmap it."""
        if self.address:
            libc.munmap(self.address, self.size)
            self.address = 0
        with contextlib.suppress(OSError):
            found = os.fstat(self.fd)
            if self.file == (found.st_dev, found.st_ino):  # else a body has closed it
                os.close(self.fd)


def _leased(fd: int) -> bool:
    """Whether no other opening of this file is left."""
    try:
        # Whoever opens it while there is a lease has us told: by a signal that nobody minds. This
        # is to be said each time, for the end of a lease forgets it.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except (AttributeError, OSError):  # macOS; somebody has it; a file system without leases
        return False
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def _leases_are_true(fd: int, path: str) -> bool:
    """Whether a lease tells of a mapping: `fd` is a file that nobody else has."""
    if not _leased(fd):
        return False
    other = open_file(path, os.O_RDONLY)
    try:
        address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_PRIVATE, other, 0)
    finally:
        os.close(other)
    if address is None or address == ctypes.c_void_p(-1).value:
        return False
    refused = not _leased(fd)
    libc.munmap(address, mmap.PAGESIZE)
    return refused


class SpareFiles:
    """The spare files of this process. Any thread may use them."""

    def __init__(self) -> None:
        #: The one that was written longest ago first. A file that is being written is not here.
        self._files: list[_Spare] = []
        self._lock = threading.Lock()
        self._numbers = 0
        #: How often all have been given back.
        self._given_back = 0
        #: Whether leases can be relied upon; None before the first file.
        self._true: bool | None = None

    def __len__(self) -> int:
        return len(self._files)

    def write(self, path: str, size: int, parts: Sequence[Part], directory: str) -> None:
        """Make a file of a value, in a spare one if one fits. It may be kept in `directory`.

        Raises OSError if there is no room; nothing is left at `path` then.
        """
        if size >= _LEAST and directory and self._write_again(path, size, parts, directory):
            return
        fd = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            # Reserve it all first: a full file system fails here, before anything is written.
            try:
                reserve(fd, 0, size)
            except OSError as error:
                if error.errno not in FULL or not self._give_back_free():
                    raise
                reserve(fd, 0, size)
            for buffer, at in parts:
                write_all(fd, buffer, at)
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise
        if size >= _LEAST and directory:
            self._keep(fd, path, size, directory)
        os.close(fd)

    def _write_again(self, path: str, size: int, parts: Sequence[Part], directory: str) -> bool:
        """Write a value into a spare file, which gets the name `path` as well. False if none fits
        that is free."""
        spare: _Spare | None = None
        given_back = self._given_back
        try:
            with self._lock:
                looks = 0
                for found in self._files:
                    if size <= found.size <= _LOOSE * size and os.path.dirname(found.path) == directory:
                        looks += 1
                        if found.is_free():
                            spare = found
                            self._files.remove(found)
                            break
                        if looks == _MOST_LOOKS:
                            break
            if spare is None:
                return False
            try:
                os.link(spare.path, path)
            except OSError:  # somebody has removed it
                given_back = -1
                return False
            try:
                spare.write(parts)
            except BaseException:
                os.unlink(path)
                raise
            return True
        finally:
            if spare is not None:
                with self._lock:
                    kept = given_back == self._given_back
                    if kept:
                        self._files.append(spare)
                if not kept:
                    spare.drop()

    def _keep(self, fd: int, path: str, size: int, directory: str) -> None:
        """Keep a new file, if there is room for it among those that are kept."""
        with self._lock:
            try:
                if self._true is None:
                    self._true = _leases_are_true(fd, path)
                if not self._true or not self._make_room(size, directory):
                    return
                self._numbers += 1
                name = os.path.join(directory, f"{os.getpid()}-{self._numbers}-{size}")
                os.link(path, name)
                try:
                    # Under this name it is open from now on: the other one is of a run, and goes.
                    self._files.append(_Spare(open_file(name, os.O_RDWR), name, size))
                except OSError:  # no descriptor is left
                    os.unlink(name)
            except (OSError, ValueError):  # the home is gone; a file that is none of ours
                return

    def _make_room(self, size: int, directory: str) -> bool:
        """Drop files until one more may be kept. False if it may not. Lock held."""
        os.makedirs(directory, mode=0o700, exist_ok=True)
        total = remove_of_dead(directory)
        status = os.statvfs(directory)
        most = min(_MOST, (status.f_bavail * status.f_frsize + total) // _SHARE)
        if total + size > most + sum(spare.size for spare in self._files):
            return False
        while self._files and (len(self._files) >= _MOST_FILES or total + size > most):
            spare = self._files.pop(0)
            total -= spare.size
            spare.drop()
        return True

    def _give_back_free(self) -> bool:
        """Drop the files that nobody has: there is no room left. Gives whether there were any."""
        with self._lock:
            free = [spare for spare in self._files if spare.is_free()]
            self._files = [spare for spare in self._files if spare not in free]
        for spare in free:
            spare.drop()
        return bool(free)

    def give_back(self) -> None:
        """Keep no files any more. Those that others have last as long as they have them."""
        with self._lock:
            files, self._files = self._files, []
            self._given_back += 1
        for spare in files:
            spare.drop()

    def forget(self) -> None:
        """In a forked child: the files are its parent's."""
        files, self._files = self._files, []
        self._lock = threading.Lock()
        self._given_back += 1
        for spare in files:
            spare.let_go()


def _is_gone(pid: int) -> bool:
    """Whether no process has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def remove_of_dead(directory: str) -> int:
    """Remove the files that processes have kept which have died. Gives the bytes of all others."""
    total = 0
    for name in os.listdir(directory):
        pid, _, size = name.split("-")
        if _is_gone(int(pid)):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(directory, name))
        else:
            total += int(size)
    return total


#: Those of this process.
spare_files = SpareFiles()
os.register_at_fork(after_in_child=spare_files.forget)


def place_of_spares(home: str) -> str:
    """The directory in which the processes of a home keep their spare files."""
    return os.path.join(home, "spares")
