"""A stream of a task on another engine: a run for each item, several at a time."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import queue
from collections.abc import AsyncIterable, Iterable, Iterator
from typing import Any

from entangle._engines.engine_run import Engine, EngineRun
from entangle._run.future import RunFuture
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import hide
from entangle._tasks import OnError
from entangle._tasks.layer import Decorated
from entangle._tasks.option_values import check_whether
from entangle._tasks.tree import compile_call
from entangle.errors import ArgumentError, OptionError

#: How many items are under way where the caller does not say.
_UNDER_WAY = 16

_log = logging.getLogger("entangle.dataflow")


class StreamOnEngine(Iterator[Any]):
    """The values of a task for the items of a source, as `task.stream` gives them."""

    def __init__(
        self,
        engine: Engine,
        task: Decorated,
        instance: tuple[Any, ...],
        source: Iterable[Any] | AsyncIterable[Any],
        inflight: int | None,
        ordered: bool,
        on_error: OnError,
    ) -> None:
        if not hasattr(source, "__iter__"):
            raise ArgumentError(f"a stream on {engine.title} takes a plain iterable of items, not {value_in_short(source)}")
        if inflight is not None and (isinstance(inflight, bool) or not isinstance(inflight, int) or inflight < 1):
            raise OptionError(f"stream: inflight={value_in_short(inflight)}; it is a whole number of values, 1 or above")
        check_whether("stream", ordered=ordered)
        if on_error not in ("raise", "skip") and not callable(on_error):
            raise OptionError(f"stream: on_error={value_in_short(on_error)}; it is 'raise', 'skip', or a function of (task, value, error)")
        self._engine, self._task, self._instance, self._on_error = engine, task, instance, on_error
        self._source: Iterator[Any] | None = iter(source)  # type: ignore[arg-type]
        if hasattr(self._source, "acknowledging"):
            raise ArgumentError(
                f"a stream on {engine.title} does not tell its source which items have ended, and this source "
                f"({type(source).__name__}) needs to know; take the stream without the engine"
            )
        self._most, self._ordered = inflight or _UNDER_WAY, ordered
        self._under_way: collections.deque[tuple[Any, RunFuture[Any]]] = collections.deque()
        self._ended: queue.SimpleQueue[RunFuture[Any]] = queue.SimpleQueue()
        #: How many items were left out because the task failed with them.
        self.skipped = 0

    def __iter__(self) -> StreamOnEngine:
        return self

    def __next__(self) -> Any:
        try:
            while True:
                self._begin_more()
                if not self._under_way:
                    raise StopIteration
                item, future = self._next_ended()
                error = future.exception()
                if error is None:
                    return future.result()
                self._leave_out(item, error)
        except StopIteration:
            raise
        except BaseException as error:
            self.close()
            hide(error)
            raise

    def _begin_more(self) -> None:
        while self._source is not None and len(self._under_way) < self._most:
            try:
                item = next(self._source)
            except StopIteration:
                self._source = None
                return
            run = EngineRun(self._engine, compile_call(self._task(*self._instance, item)), None, None, None, None)
            future: RunFuture[Any] = RunFuture(run.value, run.cancel)
            self._under_way.append((item, future))
            if not self._ordered:
                future.add_done_callback(self._ended.put)  # type: ignore[arg-type]
            future.start()

    def _next_ended(self) -> tuple[Any, RunFuture[Any]]:
        if self._ordered:
            return self._under_way.popleft()
        ended = self._ended.get()
        for pair in self._under_way:
            if pair[1] is ended:
                self._under_way.remove(pair)
                return pair
        raise AssertionError("the run of an item that is not under way has ended")

    def _leave_out(self, item: Any, error: BaseException) -> None:
        """Leave an item out, or raise the error that ends the stream."""
        if self._on_error == "raise" or not isinstance(error, Exception):
            raise error
        self.skipped += 1
        if callable(self._on_error):
            self._on_error(self._task, item, error)
        else:
            _log.warning("skipped an item with which a task failed: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        """End the stream: what is under way is stopped."""
        self._source = None
        for _, future in self._under_way:
            future.cancel()
        for _, future in self._under_way:
            with contextlib.suppress(BaseException):
                future.exception()
        self._under_way.clear()

    def __enter__(self) -> StreamOnEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        for _, future in getattr(self, "_under_way", ()):
            future.cancel()

    def __aiter__(self) -> StreamOnEngine:
        return self

    async def __anext__(self) -> Any:
        found = await asyncio.get_running_loop().run_in_executor(None, next, self, _END)
        if found is _END:
            raise StopAsyncIteration
        return found

    async def aclose(self) -> None:
        """End the stream, without blocking the event loop."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)


_END = object()
