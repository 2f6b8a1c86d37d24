"""How fast the machine is at the moment. Only with this can figures of two sessions be compared.

A small machine is often a share of a larger one, and its own counters do not show what its
neighbours do. It takes means, not the best of several: a machine that is throttled runs at full
speed for a part of the time.
"""

from __future__ import annotations

import os
import time

TURNS = 2_000_000
FORKS = 50

Pace = dict[str, float]
"""``loop_ns``: a turn of a loop that adds up; ``fork_ms``: a bare fork, exit and wait."""


def pace() -> Pace:
    """Measure the pace; takes a few tenths of a second."""
    began, total = time.perf_counter(), 0
    for number in range(TURNS):
        total += number
    looped = time.perf_counter()
    for _ in range(FORKS):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    forked = time.perf_counter()
    return {"loop_ns": (looped - began) / TURNS * 1e9, "fork_ms": (forked - looped) / FORKS * 1e3}
