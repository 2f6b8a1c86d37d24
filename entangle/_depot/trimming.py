"""Keeping a depot within its bounds: what was not used for longest goes first.

It needs no command. Each put adds the size of its value, in blocks, to the file `grown`: a byte for
each block, so that the size of that file is their number, and adding is one write. When it has
grown by a sixteenth of the bound, or nobody has looked for a day, the process that notices looks.

Readers that have a removed value open or mapped keep it: only the name of its file is gone.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Collection, Iterator
from itertools import islice
from typing import NamedTuple

from entangle._depot.bounds import Bounds
from entangle._depot.key_lock import KeyLock
from entangle._depot.pins import DirectoryPins
from entangle._depot.warned_once import warn_once

_BLOCK = 4096
_LOOKS_EVERY = 86400.0
#: Drafts and locks of processes that were killed are removed after this time (seconds).
_ABANDONED = 3600.0
#: After trimming, at most this part of the bound is in use, so that not every put trims.
_FULL = 0.9
#: So many files are removed while nobody can pin.
_AT_ONCE = 64


class File(NamedTuple):
    """A value's file: its key, its path, the bytes that it takes, and when it was last used."""

    key: str
    path: str
    size: int
    used: float


def files(values: str) -> Iterator[File]:
    """The files of all values, in no order."""
    for folder in _entries(values):
        if folder.is_dir(follow_symlinks=False):
            for entry in _entries(folder.path):
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        yield File(entry.name, entry.path, found.st_blocks * 512 or found.st_size, found.st_atime)


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as found:
            return list(found)
    except FileNotFoundError:
        return []


def grow(directory: str, size: int, bounds: Bounds, mode: int) -> bool:
    """Note that so many bytes were added. Gives whether it is time to trim. Raises OSError."""
    fd = os.open(os.path.join(directory, "grown"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.write(fd, b"." * -(-size // _BLOCK))
        total = os.fstat(fd).st_size * _BLOCK
    finally:
        os.close(fd)
    looked = _looked_at(directory)
    return bool(bounds.size and total > bounds.size / 16) or time.time() - looked > _LOOKS_EVERY


def _looked_at(directory: str) -> float:
    try:
        return os.stat(os.path.join(directory, "trimmed")).st_mtime
    except FileNotFoundError:
        return 0.0


def trim(directory: str, bounds: Bounds, mode: int) -> list[File]:
    """Remove what is too old, and what is too much. Gives what was removed.

    Does nothing while another process trims.
    """
    lock = KeyLock.take(os.path.join(directory, "trimming"), mode)
    if lock is None:
        return []
    try:
        os.close(os.open(os.path.join(directory, "trimmed"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, mode))
        os.utime(os.path.join(directory, "trimmed"))
        with contextlib.suppress(FileNotFoundError):
            os.truncate(os.path.join(directory, "grown"), 0)
        return _trimmed(directory, bounds, mode)
    finally:
        lock.give()


def _trimmed(directory: str, bounds: Bounds, mode: int) -> list[File]:
    now = time.time()
    for entry in _entries(os.path.join(directory, "drafts")):
        with contextlib.suppress(FileNotFoundError):
            if now - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED:
                os.unlink(entry.path)
    for entry in _entries(os.path.join(directory, "locks")):
        if (left := KeyLock.take(entry.path, 0o600)) is not None:
            left.give()
    for boot in _entries(os.path.join(directory, "verified")):
        for mark in _entries(boot.path):
            key = mark.name.partition(".")[0]
            if not os.path.exists(os.path.join(directory, "values", key[:2], key)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(mark.path)
    DirectoryPins(directory).forget_the_ended(mode)
    pinned = DirectoryPins(directory).read()
    found = [*files(os.path.join(directory, "values")), *_quarantined(directory)]
    removed = remove_unpinned(directory, too_much(found, bounds, pinned), mode)
    tell_if_pins_fill(directory, found, bounds, pinned)
    return removed


def remove_unpinned(directory: str, chosen: Iterator[File], mode: int) -> list[File]:
    """Remove files, but for those whose key is pinned by now. Gives what was removed."""
    pins = DirectoryPins(directory)
    seen, pinned = object(), dict[str, list[str]]()
    removed = []
    while batch := list(islice(chosen, _AT_ONCE)):
        with pins.lock(mode):
            if pins.seen() != seen:
                seen, pinned = pins.seen(), pins.read()
            for file in batch:
                if file.key not in pinned:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(file.path)
                        removed.append(file)
    return removed


def too_much(found: list[File], bounds: Bounds, pinned: Collection[str] = ()) -> Iterator[File]:
    """What is too old, and what does not fit, the least used first. What is pinned stays."""
    now, total = time.time(), sum(file.size for file in found)
    room = bounds.size * _FULL if bounds.size and total > bounds.size else total
    for file in sorted(found, key=lambda file: file.used):
        if file.key not in pinned and (total > room or (bounds.age and now - file.used > bounds.age)):
            total -= file.size
            yield file


def tell_if_pins_fill(name: str, found: list[File], bounds: Bounds, pinned: dict[str, list[str]]) -> None:
    """Warn once where what is pinned takes more than the bound: then nothing else is kept."""
    held = [file for file in found if file.key in pinned]
    if bounds.size and (total := sum(file.size for file in held)) > bounds.size:
        owners = sorted({owner for file in held for owner in pinned[file.key]})
        warn_once(
            f"the depot {name} may hold {bounds.size:,} bytes, and values of {total:,} bytes are pinned by {', '.join(owners[:5])}: "
            f"nothing else stays in it. Set ENTANGLE_DEPOT_SIZE, end what is unfinished, or force: entangle cache rm --force",
            f"pins {name}",
        )


def _quarantined(directory: str) -> Iterator[File]:
    for entry in _entries(os.path.join(directory, "quarantine")):
        with contextlib.suppress(OSError):
            found = entry.stat(follow_symlinks=False)
            yield File(entry.name, entry.path, found.st_size, found.st_mtime)
