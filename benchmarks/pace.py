"""How fast the machine is at the moment: figures of two sessions can be compared only beside this.

Small machines are often shares of a larger one, and what their neighbours do shows in no counter of theirs.
"""

from __future__ import annotations

import os
import time

TURNS = 200_000
FORKS = 20

Pace = dict[str, float]
"""``loop_ns``: a turn of a loop that adds up; ``fork_ms``: a bare fork, exit and wait. The quickest of some tries."""


def pace() -> Pace:
    """Measure the pace; takes less than a tenth of a second."""
    loops = []
    for _ in range(5):
        began, total = time.perf_counter(), 0
        for number in range(TURNS):
            total += number
        loops.append(time.perf_counter() - began)
    forks = []
    for _ in range(FORKS):
        began = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        forks.append(time.perf_counter() - began)
    return {"loop_ns": min(loops) / TURNS * 1e9, "fork_ms": min(forks) * 1e3}
