"""When a warm worker retires: between two orders, for a reason that it can name.

Bodies leave things behind that nobody can put back: threads, children, descriptors, memory. What
goes on growing after the first uses ends a worker, and a new one takes its place. A library that
keeps its threads or its caches grows once, and ends nobody. A module that has changed on disk does,
as a new worker would import the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
import time
from typing import NamedTuple

from entangle._worker.module_files import ModuleFiles

#: After this many uses, what a worker has is taken as its own.
FIRST_USES = 3
#: Something must have grown this many times before it is taken for a leak.
_RISES = 5
#: Seconds between two looks at what a worker has. A look takes about 0.1 ms.
_PAUSE = 0.005

#: A worker with fewer free descriptors than this retires: an order brings half as many.
_FREE = 10
FULL = "bodies have left nearly all descriptors open that a process may have"

_PAGE = os.sysconf("SC_PAGE_SIZE")


class _Kind(NamedTuple):
    """Something that may leak: growth of less than `least` is not counted, and that of `most`
    altogether is borne."""

    name: str
    least: int
    most: int


_KINDS = (
    _Kind("threads", 1, 8),
    _Kind("child processes", 1, 4),
    _Kind("open descriptors", 1, 16),
    _Kind("bytes of memory", 1 << 20, 64 << 20),
)


def _threads() -> int:
    try:
        return os.stat("/proc/self/task").st_nlink - 2
    except OSError:
        return threading.active_count()


def _children() -> int:
    found = 0
    with contextlib.suppress(OSError):
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children", "rb", buffering=0) as file:
                found += len(file.read(1 << 16).split())
    return found


def _descriptors() -> int:
    """How many are open; -1 if none can be opened to see that."""
    for place in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(place))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                return -1
    return 0


def memory() -> int:
    """The memory that is this process's alone (bytes); 0 if unknown."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm", "rb", buffering=0) as file:
        _, resident, shared, *_ = file.read(128).split()
        return (int(resident) - int(shared)) * _PAGE
    return 0


class Wear:
    """What a warm worker has, from its first uses on. Retires it where that goes on growing."""

    def __init__(self, most_memory: int = 0) -> None:
        self._most_memory = most_memory
        self._uses = 0
        self._looked_at = 0.0
        self._first: list[int] = []
        self._highest: list[int] = []
        self._rises = [0] * len(_KINDS)
        self._modules = ModuleFiles()

    def used(self, ours: int = 0) -> str:
        """Note the end of one order. Why the worker must retire, in a few words; "" if it need not.

        So many descriptors are `ours`, and not left by bodies.
        """
        self._uses += 1
        self._modules.note()
        now = time.monotonic()
        if self._uses > FIRST_USES and now - self._looked_at < _PAUSE:
            return ""
        self._looked_at = now
        opened = _descriptors()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if opened < 0 or (limit != resource.RLIM_INFINITY and opened - ours > _FREE and opened + _FREE > limit):
            return FULL
        found = [_threads(), _children(), opened - ours, memory()]
        if self._most_memory and found[-1] > self._most_memory:
            return f"it uses {found[-1]:,} bytes of memory, more than max_memory"
        if self._uses <= FIRST_USES:
            self._first = found
            self._highest = list(found)
            return ""
        for index, kind in enumerate(_KINDS):
            if found[index] >= self._highest[index] + kind.least:
                self._highest[index] = found[index]
                self._rises[index] += 1
                grown = found[index] - self._first[index]
                if self._rises[index] >= _RISES and grown >= kind.most:
                    return f"its {kind.name} go on growing: {self._first[index]:,} after its first uses, {found[index]:,} now"
        return ""

    def outdated(self) -> str:
        """Why the worker must not take another order: a module of the user's has changed on disk.
        "" if none has."""
        return self._modules.outdated()
