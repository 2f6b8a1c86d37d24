"""The pump of a stream in an inline run: the consumer pushes each value itself, in its own thread.

It asks for the next value of the source when it has no results left, so one is under way at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from entangle._dataflow.pump import Pump
from entangle._dataflow.push import Push
from entangle._worker import inline


class SteppedPump(Pump):
    """A pump that goes on only when it is asked to. It starts no thread, and its run is unused."""

    #: The iterator over the source, once it has been asked for.
    values: Any = None

    def step(self, source: Any) -> None:
        """Push the next value through, or a list of a window. The end of the source is noted."""
        if self._window_is_due():
            return
        try:
            if self.values is None:
                self.values = iter(source) if hasattr(source, "__iter__") else _Awaiting(source)
                self.listen(self.values)
            value = next(self.values)
        except StopIteration:
            self.drained = True
        except BaseException as error:
            self._source_failed(error)
        else:
            self._push(value)

    async def step_in_loop(self, source: Any) -> None:
        """As `step`, for a source that is read in the running event loop."""
        if not hasattr(source, "__aiter__"):
            self.step(source)
            return
        if self._window_is_due():
            return
        try:
            if self.values is None:
                self.values = source.__aiter__()
                self.listen(self.values)
            value = await self.values.__anext__()
        except StopAsyncIteration:
            self.drained = True
        except BaseException as error:
            self._source_failed(error)
        else:
            self._push(value)

    def _source_failed(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            raise error
        self.source_error, self.drained = error, True

    def _window_is_due(self) -> bool:
        """Whether there was something to do without the source."""
        for _, _, port, buffer in self._windows:
            if buffer.due() <= 0:
                self._backlog.append((port, *buffer.take()))
        if not self._backlog and self.drained and not self._flush_a_window():
            self.ended = True
            return True
        if not self._backlog:
            return False
        port, values, numbers = self._backlog.popleft()
        self._emit(port, Push(self.plan, values, port=port).chunks(), [numbers])
        return True

    def _push(self, value: Any) -> None:
        number, self.pulled = self.pulled, self.pulled + 1
        self._emit(0, Push(self.plan, value).chunks(), [(number,)])

    def stop(self) -> None:
        """End the stream: close the source."""
        self.stopping = self.ended = True
        with contextlib.suppress(Exception):
            close = getattr(self.values, "close", None)
            if close is not None:
                close()


class _Awaiting:
    """Iterates over an asynchronous source in an event loop of its own, which ends with it."""

    def __init__(self, source: Any) -> None:
        self._values = source.__aiter__()
        self._loop = asyncio.new_event_loop()

    def __next__(self) -> Any:
        try:
            return self._run(self._values.__anext__())
        except StopAsyncIteration:
            self.close()
            raise StopIteration from None

    def _run(self, coroutine: Any) -> Any:
        with inline.loop_aside():
            return self._loop.run_until_complete(coroutine)

    def close(self) -> None:
        if not self._loop.is_closed():
            aclose = getattr(self._values, "aclose", None)
            try:
                if aclose is not None:
                    self._run(aclose())
            finally:
                self._loop.close()
