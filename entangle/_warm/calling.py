"""Calls over the channels of warm workers, for an executor.

::

    submit ──▶ an idle worker, at once            a worker ──▶ the collector: a thread that
           └─▶ else the backlog ◀── takes the next ones ───────  settles futures, sees deaths

A call goes to a worker that has nothing to do. Many short ones go in one message: what calls of a
function take is known after the first. If one of them takes long, those behind it are taken back
and given to others (`_worker/board.py`). This file takes calls in; `dispatcher.py` gives them to
workers, and `collector.py` is that thread.

The worker that dies in a call breaks the executor, as in `concurrent.futures`. The error names the
call. One that dies idle, ends after a while, or retires between two calls is replaced.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future
from typing import Any

from entangle._run import forkserver
from entangle._run.worker_process import signal_name
from entangle._shared.descriptors import OwnDescriptors
from entangle._shared.interrupts import Deferred, ends_by_interrupt
from entangle._shared.limits import no_thread
from entangle._shared.pickling import dumps_for_others, otherwise, why_not
from entangle._shared.tracebacks import passes_on
from entangle._shared.value_files import pickled
from entangle._warm.broken import broken_by
from entangle._warm.collector import Collector
from entangle._warm.dispatcher import Dispatcher
from entangle._warm.executor_call import CallFuture, Job, Mapping
from entangle._warm.functions import Function, function_of, name_of
from entangle._warm.warm_pool import WarmPool
from entangle._worker import called
from entangle.errors import ArgumentError, UnpicklableError

#: How long the forkserver may take to tell of a worker (seconds).
_TOLD = 5.0

_UNSET: Any = object()
#: What needs no pickling, for errors.
IN_THREADS = "use a ThreadPoolExecutor"
_ATOMS = frozenset((int, float, bool, str, type(None)))


class Calls(Dispatcher):
    """The calls of one executor, and its workers."""

    def __init__(self, most: int, initializer: bytes | None, initializer_name: str, each: int | None) -> None:
        super().__init__(most, initializer, initializer_name, each)
        self.thread: threading.Thread | None = None
        _all.add(self)

    # Calls in ------------------------------------------------------------------------------------

    def submit(self, function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> CallFuture:
        """Make a call. What cannot be pickled is the error of the future.

        Raises ArgumentError for a future of another executor.
        """
        future = CallFuture(self)
        try:
            job = self._job(function, args, named)
        except ArgumentError:
            raise
        except BaseException as problem:
            if not isinstance(problem, Exception):
                raise
            self.check()
            future.set_running_or_notify_cancel()
            future.set_exception(problem)
            return future
        job.future = future
        if job.takes:
            self._submit_later(job)
        else:
            self._add([job])
        return future

    def _submit_later(self, job: Job) -> None:
        """Submit a call once the futures among its arguments have values."""
        takes = list(dict.fromkeys(job.takes))
        for future in takes:
            future.wanted = True
        reference = weakref.ref(self)
        with Deferred():
            with self.lock:
                self._check()
                self.waiting += 1
                job.missing = len(takes)
            for future in takes:
                future.add_done_callback(lambda _: _arrived(reference, job))

    def _arrives(self, job: Job) -> None:
        """A future that a call takes is done. The call is settled later, if at all: a future that
        hangs on it would come here on the same stack, and so on along a chain."""
        with Deferred(), self.lock:
            job.missing -= 1
            if job.missing:
                return
            self.waiting -= 1
            if (error := self._why_not(job)) is None:
                self.backlog.append(job)
                self.dispatch()
            else:
                self.unsettled.append((job, False, error))
            self.tell()

    def _why_not(self, job: Job) -> BaseException | None:
        """Why a call whose futures are done is not made. Lock held."""
        assert job.future is not None
        if job.future.cancelled() or any(future.cancelled() for future in job.takes):
            return CancelledError()
        for future in job.takes:
            if future.sealed is None:
                return future.exception()
        return None if self.broken is None else self.broken()

    def _job(self, function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Job:
        travels = function if type(function) is Function else function_of_call(function)
        if not named and all(type(arg) in _ATOMS for arg in args):
            return Job(travels, pickle.dumps((args, named), 5), [])
        found: list[CallFuture] = []
        _taking.futures = found
        _taking.calls = self
        try:
            body, buffers = pickled(dumps_for_others, (args, named))
        except ArgumentError as refused:
            raise refused.with_traceback(None) from None  # the frames of pickling tell nothing
        except Exception as problem:
            raise _what_cannot_travel(travels.name, args, named, problem) from None
        finally:
            _taking.calls = None
            _taking.futures = []
        job = Job(travels, body, buffers)
        job.takes = found
        return job

    def map(self, function: Any, items: Iterable[tuple[Any, ...]], mapping: Mapping, first: int) -> int:
        """Make a call for each tuple of arguments. Gives how many there are, counted from
        `first`."""
        index, travels = first, _UNSET
        jobs: list[Job] = []
        step = 1
        for args in items:
            try:
                if travels is _UNSET:
                    travels = function_of_call(function)
                job = self._job(travels, args, {})
            except ArgumentError:
                raise
            except Exception as problem:
                mapping.put([(index, False, problem)])
            else:
                if job.takes:
                    self._map_later(job, mapping, index)
                else:
                    job.mapping, job.index = mapping, index
                    jobs.append(job)
            index += 1
            if len(jobs) >= step:
                self._add(jobs)
                jobs = []
                step = min(256, step * 2) if index - first >= self.most else 1
        self._add(jobs)
        return index

    def _map_later(self, job: Job, mapping: Mapping, index: int) -> None:
        job.future = own = CallFuture(self)
        self._submit_later(job)

        def settled(future: Future[Any]) -> None:
            if future.cancelled():
                mapping.put([(index, False, CancelledError())])
            else:
                error = future.exception()
                mapping.put([(index, error is None, error if error is not None else own.sealed)])

        own.add_done_callback(settled)

    def _add(self, jobs: list[Job]) -> None:
        with Deferred(), self.lock:
            self._check()
            self.backlog.extend(jobs)
            if self.resting or len(self.lines) < self.most:
                self.dispatch()

    def check(self) -> None:
        """Raise the error of an executor that takes no more calls."""
        with Deferred(), self.lock:
            self._check()

    @passes_on
    def _check(self) -> None:
        if self.pid != os.getpid():
            raise RuntimeError(f"this executor belongs to process {self.pid}, which forked this one; make another one here")
        if self.broken is not None:
            raise self.broken()
        if self.shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self.thread is None:
            self._begin()

    def _begin(self) -> None:
        """Start the collector, and what workers need. Lock held."""
        forkserver.warm_up()
        self.pool = WarmPool(None, self.idle)
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        self.wake, self.own = (read, write), OwnDescriptors(read, write)
        thread = threading.Thread(target=Collector(self).collect, name="entangle-executor")
        try:
            thread.start()
        except RuntimeError as problem:
            os.close(read)
            os.close(write)
            self.wake = (-1, -1)
            raise no_thread(problem) from None
        self.thread = thread

    # The end -------------------------------------------------------------------------------------

    def shutdown(self, wait: bool, cancel: bool) -> None:
        """Take no more calls; with `cancel`, drop those that no worker has; with `wait`, return
        when all is over."""
        if self.pid != os.getpid():
            return
        dropped: list[Job] = []
        with Deferred(), self.lock:
            self.shut = True
            if cancel:
                dropped = list(self.backlog)
                self.unsettled += [(job, False, CancelledError()) for job in dropped]
                self.backlog.clear()
            self.tell()
        for job in dropped:
            if job.future is not None:
                job.future.cancel()  # at once, and told to those who wait by the collector
        thread = self.thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    def kill(self, number: int) -> None:
        """Send a signal to all workers. What they run fails."""
        told = f"the workers were ended by signal {signal_name(number)}, as the program has asked"
        with Deferred(), self.lock:
            if not self.over:
                self.break_off(lambda: broken_by(told), self.unsettled, number)

    def pids(self) -> list[int]:
        """The process ids of the workers that live."""
        until = time.monotonic() + _TOLD
        while True:
            with Deferred(), self.lock:
                found = [line.worker.pid for line in self.lines.values() if not line.worker.ended()]
            if 0 not in found or time.monotonic() > until:
                return [pid for pid in found if pid > 0]
            time.sleep(0.001)  # the forkserver is about to tell

    def drop(self, _: object = None) -> None:
        """Nobody has the executor any more. May be called anywhere: it takes no lock."""
        self.dropped = True
        self.tell()


# Arguments and errors ---------------------------------------------------------------------------


class _Taking(threading.local):
    """The futures found in arguments while these are pickled, and whose call it is."""

    calls: Calls | None = None
    futures: list[CallFuture]


_taking = _Taking()


def _reduce_future(future: Any) -> Any:
    """Pickle a future of the same executor as the place of its value."""
    calls = _taking.calls
    if calls is None:
        return NotImplemented
    if isinstance(future, CallFuture) and future.calls is calls:
        _taking.futures.append(future)
        return called.taken, (len(_taking.futures) - 1,)
    raise ArgumentError(
        f"an argument is a future of somebody else ({type(future).__module__}.{type(future).__qualname__}): only futures of the same "
        "executor can be arguments; pass its result()"
    )


otherwise(Future, _reduce_future)


def _arrived(reference: weakref.ref[Calls], job: Job) -> None:
    calls = reference()
    if calls is not None:
        calls._arrives(job)


def function_of_call(function: Any) -> Function:
    """The travelling form of a function.

    Raises UnpicklableError that names what cannot travel.
    """
    try:
        return function_of(function)
    except Exception:
        raise why_not(function, f"the function {name_of(function)!r}", dumps_for_others, IN_THREADS) from None


def _what_cannot_travel(name: str, args: tuple[Any, ...], named: dict[str, Any], problem: Exception) -> Exception:
    for key, value in itertools.chain(enumerate(args, 1), named.items()):
        if getattr(type(value), "_asyncio_future_blocking", _UNSET) is not _UNSET:
            return ArgumentError(f"argument {key} of {name!r} is a future of asyncio: only futures of the same executor can be arguments")
        try:
            dumps_for_others(value)
        except Exception:
            return why_not(value, f"argument {key} of {name!r}", dumps_for_others, IN_THREADS)
    return UnpicklableError(f"the arguments of {name!r} cannot travel to another process: {type(problem).__name__}: {problem}")


# The end of the program -------------------------------------------------------------------------

_all: weakref.WeakSet[Calls] = weakref.WeakSet()
#: Whether the interpreter is about to end.
_exiting = False


def _finish() -> None:
    """Wait for what is under way: the program has come to its end. After Ctrl-C, end it."""
    global _exiting
    _exiting = True
    interrupted = ends_by_interrupt()
    found = [calls for calls in list(_all) if calls.pid == os.getpid()]
    for calls in found:
        calls.exiting = True
        calls.tell()
        if interrupted:
            calls.shutdown(False, True)
            calls.kill(signal.SIGTERM)
    for calls in found:
        if calls.thread is not None:
            calls.thread.join()


# As concurrent.futures does: it is called before Python waits for threads.
threading._register_atexit(_finish)  # type: ignore[attr-defined]


def _after_fork() -> None:
    """In a forked child, close what leads to the parent's workers."""
    for calls in list(_all):
        calls.lock = threading.Lock()
        for fd in calls.wake:
            if fd >= 0:
                os.close(fd)
        calls.wake = (-1, -1)
        calls.thread = None
        if calls.holdings is not None:
            calls.holdings.over = True
    _all.clear()


os.register_at_fork(after_in_child=_after_fork)
