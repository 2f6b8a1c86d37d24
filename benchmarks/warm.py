"""Contestants with warm workers: entangle in a session, and in place of the pools of other
libraries; loky; and two ways to move an array.

All functions come from ``work.py``, a module that workers can import, for every contestant: none
has to send a function by value.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks import work
from benchmarks.contestants import CONTESTANTS, Contestant, DaskProcesses, Entangle, Futures, Joblib

if TYPE_CHECKING:
    from benchmarks.work import Array


class EntangleSession(Entangle):
    """entangle in a session: runs that use the same warm workers."""

    name = "entangle in a session"
    short = "session"

    def start(self) -> None:
        super().start()
        entangle: Any = import_module("entangle")
        self.session: Any = entangle.session().__enter__()
        pause, total = self.task(work.pause), self.task(work.total)
        self.value(total(*[pause(i, 0.05) for i in range(2 * self.workers)]))

    def stop(self) -> None:
        self.session.__exit__(None, None, None)


class EntangleExecutor(Futures):
    """``entangle.Executor`` in the place of ``ProcessPoolExecutor``: nothing else is changed."""

    name = "entangle.Executor"
    short = "Executor"

    def start(self) -> None:
        os.environ["ENTANGLE_RECORD"] = "0"
        executor: Any = import_module("entangle.executor")
        self.pool = executor.Executor(self.workers)
        for future in [self.pool.submit(work.pause, i, 0.05) for i in range(2 * self.workers)]:
            future.result()


class EntangleJoblib(Joblib):
    """joblib on entangle's workers."""

    name = "entangle.joblib"
    short = "entangle.joblib"
    backend = "entangle"

    def start(self) -> None:
        os.environ["ENTANGLE_RECORD"] = "0"
        import_module("entangle.joblib").register()
        super().start()

    def stop(self) -> None:
        self.parallel.__exit__(None, None, None)


class JoblibThreads(Joblib):
    """joblib on threads of the caller."""

    name = "joblib, threading"
    short = "threading"
    backend = "threading"

    def stop(self) -> None:
        self.parallel.__exit__(None, None, None)


class Loky(Futures):
    """loky's reusable executor, made as its documentation says."""

    name = "loky"
    short = "loky"
    distribution = "loky"

    def start(self) -> None:
        loky: Any = import_module("loky")
        self.pool = loky.get_reusable_executor(max_workers=self.workers)
        for future in [self.pool.submit(work.pause, i, 0.05) for i in range(2 * self.workers)]:
            future.result()


class DaskInOneProcess(DaskProcesses):
    """dask on threads of the caller: its default for arrays."""

    name = "Dask threads"
    short = "Dask threads"

    def start(self) -> None:
        self.dask = import_module("dask")
        import_module("dask.threaded")
        self.value(self.task(work.nothing)())

    def stop(self) -> None:
        pass

    def value(self, built: Any) -> Any:
        return built.compute(scheduler="threads", num_workers=self.workers)


class EntangleDask(DaskProcesses):
    """dask with its graphs on entangle's workers."""

    name = "entangle.dask"
    short = "entangle.dask"

    def start(self) -> None:
        os.environ["ENTANGLE_RECORD"] = "0"
        self.dask = import_module("dask")
        self.ours: Any = import_module("entangle.dask")
        pause = self.task(work.pause)
        self.value(self.task(work.nothing)(*[pause(i, 0.05) for i in range(2 * self.workers)]))

    def stop(self) -> None:
        self.ours.close()

    def value(self, built: Any) -> Any:
        return built.compute(scheduler=self.ours.get)


class Mover(Contestant):
    """A way to move an array, without any worker."""

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def moved(self, array: Array) -> Array:
        """Move an array. The array that was moved before is no longer used."""
        raise NotImplementedError


class CopyInMemory(Mover):
    """An array copied to memory that the process has already written to."""

    name = "a copy in memory"
    short = "a copy in memory"

    def start(self) -> None:
        self.there = work.make(work.ITEMS)

    def moved(self, array: Array) -> Array:
        self.there[:] = array
        return self.there


class FreshSharedMemory(Mover):
    """An array copied to shared memory that has just been made."""

    name = "fresh shared memory"
    short = "fresh shared memory"

    def moved(self, array: Array) -> Array:
        numpy: Any = import_module("numpy")
        file = os.memfd_create("array")
        os.ftruncate(file, array.nbytes)
        there: Array = numpy.frombuffer(mmap.mmap(file, array.nbytes), array.dtype)
        os.close(file)
        there[:] = array
        return there


for _one in (
    EntangleSession,
    EntangleExecutor,
    EntangleJoblib,
    JoblibThreads,
    Loky,
    DaskInOneProcess,
    EntangleDask,
    CopyInMemory,
    FreshSharedMemory,
):
    CONTESTANTS[_one.name] = _one
