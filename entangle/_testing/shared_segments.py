"""Segments of shared memory in /dev/shm, and which of them a process and those below it have made.

All programs of a user share that folder, and names do not tell whose a segment is. So `noting`
changes Python's functions that make segments and semaphores: they write each name to a file. Forks
inherit that. Processes that `multiprocessing` spawns begin with it, since it is among the data that
every process passes on to its children.

Names stay in the file: a process that has died cannot be asked any more.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

FOLDER = "/dev/shm"
#: The beginnings of random names that Python makes. A number in them is no process.
_DRAWN = ("psm_", "sem.mp-")
#: Locks that joblib makes once, when it is first used.
_LASTING = ("sem.loky-",)
#: Under this name each process of `multiprocessing` has its notes, which its children inherit.
_KEY = "entangle notes"


class SegmentNotes:
    """The file in which names are written down. A process that unpickles it writes there too."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing import spawn

        # Another Python may not have entangle.
        return (begin, (self._path,)) if _bytes(spawn.get_executable()) == _bytes(sys.executable) else (str, ())

    def write(self, name: str) -> None:
        """Write down the name of a segment that was made."""
        with contextlib.suppress(OSError):  # the file is gone: nobody reads it any more
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                os.write(fd, os.fsencode(name.lstrip("/") + "\n"))
            finally:
                os.close(fd)

    def names(self) -> set[str]:
        """The names that were written down."""
        with contextlib.suppress(OSError), open(self._path, encoding="utf-8", errors="replace") as file:
            return set(file.read().splitlines())
        return set()


def begin(path: str) -> SegmentNotes:
    """Write down what this process makes, until it ends."""
    notes = SegmentNotes(path)
    _listen(notes)
    return notes


@contextlib.contextmanager
def noting() -> Iterator[SegmentNotes]:
    """Write down what this process and those below it make during the block."""
    from multiprocessing import process

    fd, path = tempfile.mkstemp(prefix="entangle-segments-")
    os.close(fd)
    notes = SegmentNotes(path)
    inherited: dict[str, Any] = process.current_process()._config  # type: ignore[attr-defined]
    before = inherited.get(_KEY)
    inherited[_KEY] = notes
    listens_no_more = _listen(notes)
    try:
        yield notes
    finally:
        listens_no_more()
        if before is None:
            inherited.pop(_KEY, None)
        else:
            inherited[_KEY] = before
        with contextlib.suppress(OSError):
            os.unlink(path)


def _listen(notes: SegmentNotes) -> Callable[[], None]:
    """Make Python's functions that make segments and semaphores write down their names. Returns a
    function that undoes it."""
    from multiprocessing import resource_tracker

    registers, opens = resource_tracker.register, None

    def register(name: Any, rtype: str) -> None:
        if rtype == "semaphore":
            notes.write(f"sem.{str(name).lstrip('/')}")
        registers(name, rtype)

    resource_tracker.register = register
    with contextlib.suppress(ImportError):
        posix: Any = importlib.import_module("_posixshmem")
        opens = posix.shm_open

        def shm_open(path: str, flags: int, mode: int = 0o777) -> int:
            fd: int = opens(path, flags, mode)
            if flags & os.O_CREAT:
                notes.write(path)
            return fd

        posix.shm_open = shm_open

    def put_back() -> None:
        # Other code may have replaced them meanwhile: leave its functions.
        if resource_tracker.register is register:
            resource_tracker.register = registers
        if opens is not None and posix.shm_open is shm_open:
            posix.shm_open = opens

    return put_back


def there() -> set[str]:
    """The names of the segments of this user."""
    names = set()
    with contextlib.suppress(OSError), os.scandir(FOLDER) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if not entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                    names.add(entry.name)
    return {name for name in names if not name.startswith(_LASTING)}


def made_by(pids: set[int], notes: SegmentNotes, names: Iterable[str]) -> list[str]:
    """The segments that certainly come from these processes: the notes have them, or their names
    say so, or no other process uses them."""
    known, others = notes.names(), _processes() - pids
    numbers = set(map(str, pids))
    return [
        name
        for name in names
        if name in known
        or (not name.startswith(_DRAWN) and numbers & set(re.split(r"\D+", name)))
        or (used_by(pids, name) and not used_by(others, name))
    ]


def used_by(pids: Iterable[int], name: str) -> bool:
    """Whether one of these processes has that segment mapped or open."""
    path = f"{FOLDER}/{name}"
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as maps:
            if os.fsencode(path) + b"\n" in maps.read():
                return True
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") == path:
                        return True
    return False


def _processes() -> set[int]:
    with contextlib.suppress(OSError):
        return {int(name) for name in os.listdir("/proc") if name.isdigit()}
    return set()


def _bytes(path: Any) -> bytes:
    return os.fsencode(path or "")
