"""A Dask cluster on this machine: a scheduler and workers, each a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..evidence import alive
from .lifeline import Lifeline


def what_is_missing() -> str:
    """Why there can be no cluster here; an empty string if nothing is missing."""
    lacking = importlib.util.find_spec("distributed") is None
    return "no package distributed here: make test-engines (or: pip install 'dask[distributed]')" if lacking else ""


class DaskCluster:
    """A scheduler at `address`, and workers with one thread each. Dead workers are not
    restarted."""

    def __init__(self, folder: Path) -> None:
        self._lifeline = Lifeline(folder)
        self.folder = folder
        self.address = ""
        #: The pids of the workers that were started.
        self.workers: list[int] = []

    def start(self, workers: int = 2) -> None:
        """Start the scheduler and this many workers. Wait until all are connected."""
        self.start_scheduler("scheduler")
        for _ in range(workers):
            self.start_worker()

    def start_scheduler(self, name: str) -> None:
        """Start the scheduler. A second one gets the port of the first, but has no workers yet."""
        port = self.address.rpartition(":")[2] or "0"
        pid = self._dask(name, "--port", port, "--no-jupyter", kind="scheduler")
        self.address = self._heard(name, pid, r"Scheduler at:\s*(tcp://[\d.]+:\d+)")

    def start_worker(self, *more: str) -> int:
        """Start another worker, for example in place of a killed one. Return its pid. `more`:
        further command-line options."""
        name = f"w{len(self.workers) + 1}"
        options = ("--nworkers", "1", "--nthreads", "1", "--no-nanny", "--local-directory", str(self.folder), *more)
        pid = self._dask(name, self.address, "--name", name, *options, kind="worker")
        self.workers.append(pid)
        self._heard(name, pid, r"(Registered to:)")
        return pid

    def _dask(self, name: str, *arguments: str, kind: str = "") -> int:
        return self._lifeline.start(name, [sys.executable, "-m", "dask", kind or name, *arguments, "--host", "127.0.0.1", "--no-dashboard"])

    def _heard(self, name: str, pid: int, pattern: str) -> str:
        until = time.monotonic() + 60
        while (found := re.search(pattern, said := self._lifeline.log(name))) is None:
            if not alive(pid) or time.monotonic() > until:
                raise RuntimeError(f"Dask's {name} does not start: {said[-2000:]}")
            time.sleep(0.05)
        return found[1]

    def stop(self) -> None:
        """Stop all processes."""
        self._lifeline.end()


@contextlib.contextmanager
def dask_cluster(workers: int = 2) -> Iterator[DaskCluster]:
    """A cluster for the time of the block."""
    folder = Path(tempfile.mkdtemp(prefix="entangle-dask-"))
    cluster = DaskCluster(folder)
    try:
        cluster.start(workers)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
