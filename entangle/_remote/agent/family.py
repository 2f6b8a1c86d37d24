"""The processes that an agent and its bodies have started, and how they end with it.

This comes with the agent's first modules and must work without psutil, so it reads /proc itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

#: Time between SIGTERM and SIGKILL for what bodies have started (seconds).
GRACE = 0.3


def lead_family() -> None:
    """Lead a session: what dies with the agent is told from what does not belong to it."""
    try:
        os.setsid()
    except OSError:
        pass  # leads one already


def family() -> list[int]:
    """The processes below this one, at any depth; none without /proc."""
    below: dict[int, list[int]] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            below.setdefault(parent, []).append(int(name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def kill_family(spared: int = 0, is_last: Callable[[int], bool] | None = None) -> None:
    """End every process below this one: SIGTERM, a grace, SIGKILL, and SIGKILL again for late ones.

    `spared` is the janitor. It ignores SIGTERM, and ends what the agent leaves. Those of which
    `is_last` says so may end by themselves once the others are gone.
    """
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE), (signal.SIGKILL, 0.0)):
        found = [pid for pid in family() if pid != spared]
        if not found:
            return
        for pid in found:
            if is_last is not None and seconds and is_last(pid):
                continue
            try:
                os.kill(pid, number)
            except OSError:
                pass
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(pid != spared for pid in family()):
            _reap()
            time.sleep(0.005)


def leave_nothing() -> None:
    """End all that this process and its bodies have started, and remove what lies in memory."""
    janitor = sys.modules.get("entangle._worker.janitor")
    trackers = sys.modules.get("entangle._worker.trackers")
    kill_family(janitor.hired() if janitor is not None else 0, getattr(trackers, "is_tracker", None))
    if janitor is not None:
        janitor.kill_marked()  # daemons, which have left the family
        janitor.dismiss()
    homes = sys.modules.get("entangle._shared.home")
    if homes is not None:
        homes.leave()


def _reap() -> None:
    """Reap children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
