"""Executor: `concurrent.futures.Executor` on warm workers.

More: docs/coming_from_concurrent_futures.md.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from entangle._shared.interrupts import is_interrupt
from entangle._shared.pickling import dumps_for_others, why_not
from entangle._shared.tracebacks import edge, hide, passes_on
from entangle._warm.broken import BrokenExecutorError
from entangle._warm.calling import IN_THREADS, Calls
from entangle._warm.executor_call import Mapping
from entangle._warm.functions import name_of
from entangle._worker import library_threads
from entangle._worker.called import Chunk
from entangle.cookies import available_cpus
from entangle.errors import UnpicklableError

T = TypeVar("T")

__all__ = ["BrokenExecutorError", "Executor"]


class Executor(futures.Executor):
    """Runs calls in warm worker processes, as `concurrent.futures.ProcessPoolExecutor` does.

    - `max_workers`: the most worker processes; by default as many as there are CPUs for this
      process. They start when they are needed, and end after a minute without work.
    - `initializer`, `initargs`: called in each worker when it begins. If it fails, the executor is
      broken.
    - `max_tasks_per_child`: a worker is replaced after this many calls.
    - `mp_context`: only one that names forkserver or spawn. Workers always come from a clean
      server.

    Functions may be lambdas and closures: they travel with the values that they use, as these are
    at each call. Tasks of entangle run their body. A future of this executor may be an argument,
    also within lists, tuples, dicts and the like: the call waits for its value, without a worker,
    and the value goes from worker to worker. If it fails or is cancelled, so does the call.
    Arrays and other large buffers are mapped, not copied.

    Between two calls a worker puts back what the first one has changed, as in a session.

    Raises ValueError and TypeError for options that make no sense.

        with Executor() as executor:
            for y in executor.map(crunch, xs):
                print(y)
    """

    @edge
    @passes_on
    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        if max_workers is None:
            max_workers = _default_workers()
        elif isinstance(max_workers, bool) or not isinstance(max_workers, int):
            raise TypeError(f"max_workers must be a whole number, not {max_workers!r}")
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int) or isinstance(max_tasks_per_child, bool):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        _check_context(mp_context)
        self._max_workers = max_workers
        pickled = None
        if initializer is not None:
            try:
                pickled = dumps_for_others((initializer, tuple(initargs)))
            except Exception:
                raise _unpicklable(initializer, tuple(initargs)) from None
        self._calls = Calls(max_workers, pickled, name_of(initializer) if initializer is not None else "", max_tasks_per_child)
        # The workers end when nobody has the executor any more and its calls are done.
        self._finalizer = weakref.finalize(self, self._calls.drop)
        self._finalizer.atexit = False

    @property
    def _broken(self) -> bool:
        return self._calls.broken is not None

    @property
    def pids(self) -> list[int]:
        """The process ids of its workers that are alive."""
        return self._calls.pids()

    def __repr__(self) -> str:
        state = "broken" if self._broken else "shut down" if self._calls.shut else f"{len(self.pids)} of {self._max_workers} workers"
        return f"<entangle.Executor: {state}>"

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call the function in a worker; gives the future of its value.

        What cannot be pickled is the error of the future. Raises BrokenExecutorError where a worker
        has died, RuntimeError after `shutdown` and in a forked child, ArgumentError for a future of
        another executor.
        """
        try:
            return self._calls.submit(_body(fn), args, kwargs)
        except BaseException as error:
            hide(error)
            raise

    @edge
    @passes_on
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call the function for the items of the iterables; gives the values in their order.

        - `timeout`: seconds from this call on, after which the iteration raises TimeoutError.
        - `chunksize`: how many items make one call. Left out, each item is a call of its own, and a
          worker takes as many at a time as last some milliseconds together.
        - `buffersize`: how many items (or chunks, with `chunksize`) may be taken from the iterables
          before their values are asked for. Left out, all are taken at once.

        Leaving the iteration cancels what no worker has begun. Raises ValueError for a `chunksize`
        or `buffersize` below 1.
        """
        if chunksize is not None and chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        until = None if timeout is None else time.monotonic() + timeout
        self._calls.check()
        items: Iterator[tuple[Any, ...]] = zip(*iterables)  # noqa: B905 - as `map`: the shortest one ends it
        mapping = Mapping()
        body, chunked = _body(fn), chunksize is not None and chunksize > 1
        if chunked:
            body, items = Chunk(body, name_of(fn)), _chunks(items, chunksize or 1)
        first = items if buffersize is None else itertools.islice(items, buffersize)
        count = self._calls.map(body, first, mapping, 0)
        more = None if buffersize is None else items
        found = _values(weakref.ref(self), self._calls, body, more, mapping, count, until)
        return _one_by_one(found) if chunked else found

    @edge
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. With `wait`, return when all are done and the workers have ended;
        with `cancel_futures`, cancel those that no worker has begun."""
        self._calls.shutdown(wait, cancel_futures)

    def terminate_workers(self) -> None:
        """Shut down, and end the workers by SIGTERM. What they run fails with
        BrokenExecutorError."""
        self._end_workers(signal.SIGTERM)

    def kill_workers(self) -> None:
        """Shut down, and end the workers by SIGKILL. What they run fails with
        BrokenExecutorError."""
        self._end_workers(signal.SIGKILL)

    def _end_workers(self, number: int) -> None:
        self._calls.shutdown(False, True)
        self._calls.kill(number)

    @edge
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Shut down and wait. After Ctrl-C, cancel what no worker has begun, and end the rest."""
        if is_interrupt(error):
            self.terminate_workers()
        try:
            self.shutdown(wait=True)
        except KeyboardInterrupt:
            self.terminate_workers()
            self.shutdown(wait=True)
            raise


@passes_on
def _values(
    executor: weakref.ref[Executor],
    calls: Calls,
    body: Callable[..., Any],
    more: Iterator[tuple[Any, ...]] | None,
    mapping: Mapping,
    count: int,
    until: float | None,
) -> Generator[Any, None, None]:
    """The values of a `map`, in order. With `more`, one item is added for each that is taken."""
    index = 0
    try:
        while index < count:
            if more is not None and executor() is not None:
                count = calls.map(body, itertools.islice(more, 1), mapping, count)
            good, what = mapping.take(index, until)
            index += 1
            if not good:
                try:
                    raise what
                finally:
                    del what
            yield calls.open(what)
    except BaseException as error:
        hide(error)
        raise
    finally:
        mapping.leave()


def _chunks(items: Iterator[tuple[Any, ...]], size: int) -> Iterator[tuple[Any, ...]]:
    while chunk := list(itertools.islice(items, size)):
        yield (chunk,)


@passes_on
def _one_by_one(lists: Generator[list[Any], None, None]) -> Generator[Any, None, None]:
    """The values of lists, none of which is kept once it was given."""
    try:
        with contextlib.closing(lists):
            for values in lists:
                values.reverse()
                while values:
                    yield values.pop()
    except BaseException as error:
        hide(error)
        raise


def _unpicklable(initializer: Callable[..., object], initargs: tuple[Any, ...]) -> UnpicklableError:
    """The error for an initializer that cannot travel, or an argument of it."""
    name = name_of(initializer)
    parts: list[tuple[str, Any]] = [(f"argument {number} of initializer {name!r}", part) for number, part in enumerate(initargs, 1)]
    for what, part in parts:
        try:
            dumps_for_others(part)
        except Exception:
            return why_not(part, what, dumps_for_others, IN_THREADS)
    return why_not(initializer, f"the initializer {name!r}", dumps_for_others, IN_THREADS)


def _body(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is called for a function: of a task, its body."""
    if "entangle.task" not in sys.modules:
        return function
    from entangle._tasks.submitted import body_of

    return body_of(function)


def _default_workers() -> int:
    """One for each CPU; in a worker, one for each CPU of its share."""
    return max(1, min(library_threads.share or 1 << 30, len(available_cpus())))


@passes_on
def _check_context(context: Any) -> None:
    """Raise TypeError for what is no context of multiprocessing, ValueError for one that forks."""
    if context is None:
        return
    try:
        method = context.get_start_method()
    except AttributeError:
        raise TypeError(f"mp_context={context!r} is no context of multiprocessing; leave it out") from None
    if method not in ("forkserver", "spawn"):
        raise ValueError(
            f"mp_context starts processes by {method!r}, and workers of this executor always come from a clean server; "
            'leave it out, or give multiprocessing.get_context("forkserver")'
        )
