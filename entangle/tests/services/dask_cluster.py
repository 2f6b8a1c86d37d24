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
    """What must be installed before there can be a cluster, in words; empty if nothing."""
    lacking = importlib.util.find_spec("distributed") is None
    return "no package distributed here: make test-engines (or: pip install 'dask[distributed]')" if lacking else ""


class DaskCluster:
    """A scheduler at `address`, and workers of one thread each; a worker that dies stays dead."""

    def __init__(self, folder: Path) -> None:
        self._lifeline = Lifeline(folder)
        self.folder = folder
        self.address = ""
        #: The process numbers of the workers that were started.
        self.workers: list[int] = []

    def start(self, workers: int = 2) -> None:
        """Start the scheduler and so many workers, and wait until all are there."""
        self.start_scheduler("scheduler")
        for _ in range(workers):
            self.start_worker()

    def start_scheduler(self, name: str) -> None:
        """Start the scheduler; one that follows another has its port, and yet no workers."""
        port = self.address.rpartition(":")[2] or "0"
        pid = self._dask(name, "--port", port, "--no-jupyter", kind="scheduler")
        self.address = self._heard(name, pid, r"Scheduler at:\s*(tcp://[\d.]+:\d+)")

    def start_worker(self, *more: str) -> int:
        """One more worker, as in place of one that a test has killed; gives its process number.
        `more`: further options."""
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
        """End all of it."""
        self._lifeline.end()


@contextlib.contextmanager
def dask_cluster(workers: int = 2) -> Iterator[DaskCluster]:
    """A cluster that ends with this block."""
    folder = Path(tempfile.mkdtemp(prefix="entangle-dask-"))
    cluster = DaskCluster(folder)
    try:
        cluster.start(workers)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
