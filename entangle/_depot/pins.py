"""Pins: values that somebody needs, whatever the bounds say.

A pin has an owner: a name for people, and a path, such as that of a ledger. It ends with the file
or directory at that path, so no pin outlives what needs it. On another machine, which cannot see
that path, it ends 30 days after its owner last pinned anything.

In a directory, an owner has a file: its head, then the keys, each written with one append. The lock
`pinning` is held while keys are added, and while values are removed. So a value that is there after
its key was pinned stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from entangle._depot.key_lock import held_for_a_moment

#: Pins of an owner on another machine end this long after the last of them was made (seconds).
ELSEWHERE = 30 * 86400.0


class Owner(NamedTuple):
    """Who needs values: a name for people, and the file or directory that it ends with."""

    name: str
    path: str


def name_of(owner: Owner) -> str:
    """What the pins of an owner of this machine are called in a depot."""
    told = json.dumps([owner.name, os.path.abspath(owner.path), socket.gethostname()])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def head_of(owner: Owner) -> dict[str, str]:
    """What tells an owner."""
    return {"owner": owner.name, "path": os.path.abspath(owner.path), "host": socket.gethostname()}


def lives(head: dict[str, str], pinned: float) -> bool:
    """Whether an owner is still there; `pinned` is when it last pinned (seconds since 1970)."""
    if head["host"] == socket.gethostname():
        return os.path.lexists(head["path"])
    return time.time() - pinned < ELSEWHERE


class DirectoryPins:
    """The pins in a depot that is a directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._folder = os.path.join(directory, "pins")

    def add(self, owner: Owner, keys: Sequence[str], mode: int) -> None:
        """Pin keys, whether or not they have values. Raises OSError where nothing was pinned."""
        path = os.path.join(self._folder, name_of(owner))
        with self.lock(mode):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
            try:
                size = os.fstat(fd).st_size
                # A line of a process that was killed may have no end, so each begins with one.
                lines = "".join(f"\n{key}" for key in keys) + "\n"
                whole = (("" if size else json.dumps(head_of(owner))) + lines).encode()
                try:
                    if os.write(fd, whole) != len(whole):
                        raise OSError(28, os.strerror(28), path)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.ftruncate(fd, size)
                    raise
            finally:
                os.close(fd)

    def remove(self, owner: Owner, mode: int) -> None:
        """End the pins of an owner."""
        if os.path.isdir(self._folder):
            with self.lock(mode), contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._folder, name_of(owner)))

    def read(self) -> dict[str, list[str]]:
        """The keys that are pinned, with the names of their owners."""
        found: dict[str, list[str]] = {}
        for _, head, keys, pinned in self._files():
            if head is not None and lives(head, pinned):
                for key in keys:
                    found.setdefault(key, []).append(head["owner"])
        return {key: sorted(set(owners)) for key, owners in found.items()}

    def seen(self) -> object:
        """Changes when a pin is added or ends: a reader compares it with what it saw last."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            return sorted((entry.name, entry.stat().st_size) for entry in entries)
        return []

    def forget_the_ended(self, mode: int) -> None:
        """Remove the files of owners that are gone."""
        if not os.path.isdir(self._folder):
            return
        with self.lock(mode):
            for path, head, _, pinned in self._files():
                if head is None or not lives(head, pinned):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)

    @contextlib.contextmanager
    def lock(self, mode: int) -> Iterator[None]:
        """While this is held, nobody pins."""
        with held_for_a_moment(os.path.join(self._directory, "pinning"), mode):
            yield

    def _files(self) -> Iterator[tuple[str, dict[str, str] | None, list[str], float]]:
        try:
            with os.scandir(self._folder) as entries:
                paths = [entry.path for entry in entries]
        except FileNotFoundError:
            return
        for path in paths:
            with contextlib.suppress(OSError):
                with open(path, encoding="utf-8", errors="replace") as file:
                    head, *keys = file.read().splitlines() or [""]
                    pinned = os.fstat(file.fileno()).st_mtime
                yield path, read_head(head), [key for key in keys if key], pinned


def read_head(text: str) -> dict[str, str] | None:
    """The owner that was written; None where that is damaged."""
    with contextlib.suppress(ValueError):
        head = json.loads(text)
        if isinstance(head, dict) and all(isinstance(head.get(name), str) for name in ("owner", "path", "host")):
            return head
    return None
