"""Warm workers for calls of `Parallel`: each call has a set of its own as long as it lasts."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from typing import Any, NamedTuple

from entangle._joblib.batch import dumps, name_of_batch, pickled, run
from entangle._shared.interrupts import Deferred
from entangle._shared.shared_buffers import Reference, SharedBuffers
from entangle._warm.functions import Function, function_of
from entangle.executor import Executor

#: How many unused sets of workers are kept, with different options.
KEPT = 2
#: How long a worker with nothing to do stays (seconds).
IDLE = 60.0


class WorkerSettings(NamedTuple):
    """The options of a set of workers."""

    #: Prepares a worker. Takes the environment, the key of this process for multiprocessing, and
    #: the pickled `initializer` with its arguments.
    begin: Callable[[tuple[tuple[str, str], ...], bytes, bytes | None], None]
    workers: int
    environment: tuple[tuple[str, str], ...]
    idle: float | None
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]

    def fits(self, other: WorkerSettings) -> bool:
        """Whether workers made with these settings fit the other ones, too. Arguments must be the
        same objects: comparing others may not give a truth value."""
        return (
            self[:5] == other[:5]
            and len(self.initargs) == len(other.initargs)
            and all(one is another for one, another in zip(self.initargs, other.initargs, strict=True))
        )


#: Unused sets of workers, the oldest first.
unused: list[tuple[WorkerSettings, Executor]] = []
_guard = threading.Lock()


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    unused.clear()  # the workers are the parent's


os.register_at_fork(after_in_child=_after_fork)


def _take_workers(settings: WorkerSettings) -> Executor:
    """An unused set of workers, or a new one."""
    with _guard:
        for index, (known, executor) in enumerate(unused):
            if known.fits(settings):
                del unused[index]
                return executor
    return _start_workers(settings)


def _start_workers(settings: WorkerSettings) -> Executor:
    import multiprocessing

    authkey = bytes(multiprocessing.current_process().authkey)
    initializer = None
    if settings.initializer is not None:
        # Pickled here: the proxies of a `multiprocessing.Manager` among the arguments connect to it
        # when they are unpickled, and need the key for that.
        initializer = dumps((settings.initializer, settings.initargs), None)
    made = Executor(
        settings.workers,
        initializer=settings.begin,
        initargs=(settings.environment, authkey, initializer),
    )
    made._calls.idle = settings.idle or IDLE
    return made


def _put_back(settings: WorkerSettings, executor: Executor) -> None:
    with _guard:
        unused.append((settings, executor))
        surplus = unused.pop(0)[1] if len(unused) > KEPT else None
    if surplus is not None:
        surplus.shutdown(wait=False)


def end_unused() -> None:
    """End the unused workers."""
    with _guard:
        found = [executor for _, executor in unused]
        unused.clear()
    for executor in found:
        executor.shutdown()


class Lease:
    """A set of workers for one `Parallel`, with the tasks that are under way on them."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.executor: Executor | None = _take_workers(settings)
        self.buffers = SharedBuffers()
        self.under_way: dict[Future[Any], list[Reference]] = {}
        self.broken = False
        self.guard = threading.Lock()

    def submit(self, batch: Any, callback: Callable[[Any], object] | None) -> Future[Any]:
        """Send a batch to a worker. A batch that cannot be sent fails its future, never the caller:
        that may be the thread that calls back."""
        held: list[Reference] = []
        future: Future[Any]
        try:
            body = pickled(batch, self.buffers, held)
            executor = self.executor
            if executor is None:
                raise RuntimeError("this call of joblib.Parallel is over")
            with Deferred(), self.guard:
                future = executor._calls.submit(_called(batch), (body, held), {})
                self.under_way[future] = held
        except BaseException as error:
            if not isinstance(error, Exception):
                raise  # the call may be on its way: `end` knows it
            for reference in held:
                self.buffers.let_go(reference)
            future = Future()
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            if callback is not None:
                future.add_done_callback(callback)
            return future

        def done(future: Future[Any]) -> None:
            # Call joblib back first. It sends the next batch, which may use the same buffers.
            try:
                if not future.cancelled() and isinstance(future.exception(), BrokenExecutor):
                    self.broken = True
                if callback is not None:
                    callback(future)
            finally:
                with self.guard:
                    references = self.under_way.pop(future, [])
                for reference in references:
                    self.buffers.let_go(reference)

        future.add_done_callback(done)
        return future

    def end(self) -> None:
        """Give the workers back. Those that still run something are killed."""
        executor, self.executor = self.executor, None
        if executor is None:
            return
        with self.guard:
            left = list(self.under_way)
        running = [future for future in left if not future.cancel() and not future.done()]
        if running or self.broken:
            executor.kill_workers()
        else:
            _put_back(self.settings, executor)
        self.buffers.close()


def _called(batch: Any) -> Function:
    """The function that a worker runs for a batch, with the name that errors give."""
    of = function_of(run)
    made = Function(name_of_batch(batch), of.body, of.buffers, of.shared, of.uses)
    made.key = (made.name, of.key)
    return made
