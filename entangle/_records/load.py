"""The load of a run: CPU and memory of its workers over time, in a bounded number of samples.

The recorder takes a sample now and then while the supervisor looks, so a run that is not remembered
pays nothing. Memory is what the kernel counts for each process as resident, so pages that workers
share count for each of them.
"""

from __future__ import annotations

import os
import time

from entangle._run import ObservedRun
from entangle._run.worker_process import cpu_time
from entangle._shared.table import BUSY, LANE, PID, RESTING, SLOT, STARTED_AT, STARTING, STATE
from entangle._shared.whole_files import write_whole
from entangle._watch.outline import LOAD
from entangle.flow import IN_CALLER

#: The most samples; the first pause between two (ns). When there are more, every other one goes,
#: and the pause doubles.
MOST, FIRST = 240, 100_000_000
#: A sample that takes long is followed by a pause this many times as long.
RARE = 200
_THERE = (STARTING, BUSY, RESTING)
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Load:
    """The samples of one run: when (seconds since it began), CPUs in use, bytes, workers."""

    def __init__(self, run: ObservedRun) -> None:
        assert run.table is not None
        self._began: int = run.table.header[STARTED_AT]
        self._every = FIRST
        self.due = self._began + FIRST
        self.samples: list[tuple[float, float, int, int]] = []
        self._used: dict[int, int] = {}
        self._at = self._began

    def look(self, run: ObservedRun) -> None:
        """Take a sample if it is time."""
        now = time.monotonic_ns()
        if now < self.due or run.table is None:
            return
        slots = run.table.slots
        pids = set()
        for base in range(SLOT, run.table.slot_count * SLOT, SLOT):
            if slots[base + STATE] in _THERE:
                pids.add(os.getpid() if slots[base + LANE] in IN_CALLER else slots[base + PID])
        spent = memory = 0
        known, self._used = self._used, {}
        for pid in pids - {0}:
            used = cpu_time(pid)
            if used is not None:
                self._used[pid] = used
                # Of the caller, which has run before, only what it uses from now on.
                spent += used - known.get(pid, used if pid == os.getpid() else 0)
                memory += _memory_of(pid)
        cpus = max(0, spent) / max(1, now - self._at)
        self._at = now
        self.samples.append((round((now - self._began) / 1e9, 3), round(cpus, 3), memory, len(pids)))
        if len(self.samples) > MOST:
            self.samples = halved(self.samples)
            self._every *= 2
        directory = run.site.directory if run.site is not None else ""
        if directory:
            write_whole(os.path.join(directory, LOAD), self.samples)
        self.due = now + max(self._every, RARE * (time.monotonic_ns() - now))


def halved(samples: list[tuple[float, float, int, int]]) -> list[tuple[float, float, int, int]]:
    """Half as many samples: of two, the mean of the CPUs, the most of memory and workers."""
    return [
        (other[0], round((one[1] + other[1]) / 2, 3), max(one[2], other[2]), max(one[3], other[3]))
        for one, other in zip(samples[::2], [*samples[1::2], *samples[len(samples) // 2 * 2 :]], strict=True)
    ]


def _memory_of(pid: int) -> int:
    """Resident memory of a process in bytes; 0 where that is unknown."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            return int(file.read(100).split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0
