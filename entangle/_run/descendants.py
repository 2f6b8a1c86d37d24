"""The processes that a process has started, and theirs in turn, in whatever group or session.

Linux lists the children of each thread (proc(5)), which takes microseconds a process. Elsewhere
psutil looks at every process there is.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from entangle._worker import trackers

#: A read gives at most a page, of whole numbers. After nearly a page there may be more.
_PAGE, _NEARLY = 4096, 4000
_EVERY = 1 << 62


class Started(NamedTuple):
    """A process with its start time, which tells it from a later one with the same pid."""

    pid: int
    began: float


@functools.cache
def listed() -> bool:
    """Whether the kernel lists children, so that asking for them is cheap."""
    return os.path.exists("/proc/thread-self/children")


def of(pids: Iterable[int], most: int = _EVERY) -> list[int]:
    """The descendants of these processes; the search stops soon after `most` of them.

    None are known if the kernel does not list them and psutil is missing, as in a place to which no
    compiled module was sent.
    """
    given = {pid for pid in pids if pid > 0}
    if not given:
        return []
    children = _listed if listed() else _scanned()
    found = list(given)
    for pid in found:
        found += [child for child in children(pid) if child not in given]
        if len(found) > most:
            break
    return found[len(given) :]


def started_by(pids: Iterable[int]) -> list[Started]:
    """The descendants of these processes, with their start times, to be killed later."""
    return [Started(pid, began) for pid in of(pids) if (began := _began(pid)) is not None]


def kill(processes: Iterable[Started]) -> None:
    """Kill processes, except where the pid is another process's by now."""
    given = list(processes)
    trackers.end(lambda: [pid for pid, began in given if _began(pid) == began])


def _listed(pid: int) -> list[int]:
    """The children of all threads of a process."""
    tasks, found = f"/proc/{pid}/task", bytearray()
    try:
        # A directory has two links of its own.
        for thread in os.listdir(tasks) if os.stat(tasks).st_nlink > 3 else (pid,):
            with contextlib.suppress(OSError), open(f"{tasks}/{thread}/children", "rb", buffering=0) as file:
                while len(part := file.read(_PAGE)) > _NEARLY:
                    found += part
                found += part
    except OSError:  # it has ended
        pass
    return [int(word) for word in found.split()]


def _scanned() -> Callable[[int], list[int]]:
    """The children of each process, from one scan of all."""
    children: dict[int, list[int]] = {}
    psutil = _psutil()
    if psutil is not None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                children.setdefault(process.ppid(), []).append(process.pid)
    return lambda pid: children.get(pid, [])


def _began(pid: int) -> float | None:
    """The start time of a process; None if it is gone."""
    if listed():
        try:
            with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
                return int(file.read(1024).rpartition(b")")[2].split()[19])
        except (OSError, IndexError):
            return None
    psutil = _psutil()
    if psutil is None:
        return None
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _psutil() -> Any:
    # Look on disk alone. In another place an import would ask the caller for the module, and a
    # caller that has cancelled this call no longer answers.
    if "psutil" not in sys.modules and importlib.machinery.PathFinder.find_spec("psutil") is None:
        return None
    import psutil

    return psutil
