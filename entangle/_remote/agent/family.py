"""The family of an agent: the processes that it and the bodies in it have started, and how they end with it.

It comes with the agent's first modules and has to work without psutil, so it reads /proc itself.
"""

from __future__ import annotations

import os
import signal
import time

#: Between SIGTERM and SIGKILL for what bodies have started (seconds).
GRACE = 0.3


def lead_family() -> None:
    """Lead a process group, so that what is killed with us can be told from what is not ours."""
    try:
        os.setsid()
    except OSError:
        pass  # a session's leader already


def family() -> list[int]:
    """The processes that this one has started, and they in turn; none where there is no /proc."""
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


def kill_family(spared: int = 0) -> None:
    """End what we and our bodies have started: SIGTERM, a grace, SIGKILL; again for what was started meanwhile. All but one,
    who is deaf to SIGTERM since he is there to end what we leave."""
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE), (signal.SIGKILL, 0.0)):
        found = [pid for pid in family() if pid != spared]
        if not found:
            return
        for pid in found:
            try:
                os.kill(pid, number)
            except OSError:
                pass
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(pid != spared for pid in family()):
            _reap()
            time.sleep(0.005)


def _reap() -> None:
    """Bury children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
