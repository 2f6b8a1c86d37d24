"""Resource trackers that bodies have started: small processes that unlink what others forget.

`multiprocessing` and loky start one for a process that makes shared memory or semaphores. It ends
by itself once all who have its pipe open are gone, and unlinks then what is still there. So where
the process group of a worker is killed, the trackers in it have to live a moment longer. What does
not end by then is killed as well: it waits for a process in another group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

#: Where trackers are started from.
_MODULES = (
    "multiprocessing.resource_tracker",
    "joblib.externals.loky.backend.resource_tracker",
    "loky.backend.resource_tracker",
)
_COMMAND = b"resource_tracker import main"
#: How long trackers may take once nobody needs them any more (seconds). One that was started a
#: moment ago has its imports to do first.
PATIENCE = 2.0
#: The same after the end of a caller, with which everything ends.
HASTE = 0.4
#: Processes may be forked while we look.
_PASSES = 3


def end_group(group: int, but: int = 0, patience: float = PATIENCE) -> None:
    """Kill a process group all but its trackers, give these time to end, then kill them too. `but`
    lives on."""
    if left := _kill_others(lambda: _members(group), but):
        _wait_for(left, patience)
        for pid in _members(group):
            if pid != but:
                _kill(pid)
    elif not but:
        _kill_group(group)


def kill_group(group: int) -> None:
    """Kill a process group all but its trackers. Whoever sees the end of its leader goes on with
    `end_group`."""
    if not _kill_others(lambda: _members(group)):
        _kill_group(group)


def end(find: Callable[[], list[int]], patience: float = PATIENCE) -> None:
    """Kill the processes that `find` gives, the trackers among them last, once they have had time
    to end."""
    if left := _kill_others(find):
        _wait_for(left, patience)
        for pid in left:
            _kill(pid)


def end_own() -> None:
    """In a worker that ends in order: see to it that its trackers have done their work. Whoever
    sees that it has ended kills its group at once."""
    ours = False
    for name in _MODULES:
        tracker: Any = getattr(sys.modules.get(name), "_resource_tracker", None)
        if (fd := getattr(tracker, "_fd", None)) is not None:
            ours = True
            with contextlib.suppress(OSError):
                os.close(fd)
            tracker._fd = None
    if ours and os.getpgrp() == os.getpid():
        end_group(os.getpid(), but=os.getpid())


def is_tracker(pid: int) -> bool:
    """Whether a process is the resource tracker of another one."""
    for _ in range(5):
        try:
            with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
                command = file.read(4096)
        except OSError:
            return False
        if command:
            return _COMMAND in command
        time.sleep(0.001)  # it is about to be another program, or ends
    return False


def _kill_others(find: Callable[[], list[int]], but: int = 0) -> list[int]:
    """Kill those found that are no trackers, and return the trackers."""
    found: list[int] = []
    for _ in range(_PASSES):
        found = [pid for pid in find() if pid != but]
        trackers = {pid for pid in found if is_tracker(pid)}
        others = [pid for pid in found if pid not in trackers]
        for pid in others:
            _kill(pid)
        found = sorted(trackers)
        if not others:
            break
    return found


def _wait_for(pids: list[int], patience: float) -> None:
    until, pause = time.monotonic() + patience, 0.001
    while any(_group_of(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def _members(group: int) -> list[int]:
    """The living processes of a group; none where the system does not list processes."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and _group_of(int(name)) == group]
    except OSError:
        return []


def _group_of(pid: int) -> int:
    """The process group of a process; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            state, _, group = file.read(1024).rpartition(b")")[2].split()[:3]
    except (OSError, ValueError):
        return 0
    return 0 if state in b"ZX" else int(group)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
