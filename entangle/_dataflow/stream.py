"""A stream: the iterator that `flow.stream(…)` gives. Dropping it stops everything."""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from entangle._dataflow.flow_graph import FunctionNode
from entangle._dataflow.kept_item import KeptItem
from entangle._dataflow.outcome import Failure
from entangle._dataflow.plan import Plan
from entangle._dataflow.pump import Pump
from entangle._dataflow.push import push_into
from entangle._dataflow.stepped_pump import SteppedPump
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import hide, passes_on
from entangle._tasks import OnError
from entangle._tasks.layer import Decorated
from entangle._tasks.option_values import check_whether
from entangle._worker import inline
from entangle._worker.worker import here
from entangle.errors import ArgumentError, DurableError, OptionError

if TYPE_CHECKING:
    from entangle._dataflow.kept_stream import KeptStream

log = logging.getLogger("entangle.dataflow")

V = TypeVar("V")

_open: weakref.WeakSet[Stream[Any]] = weakref.WeakSet()

# A forked child must not close the streams of its parent when it exits.
os.register_at_fork(after_in_child=_open.clear)


class Stream(Iterator[V], AsyncIterator[V]):
    """Tuples of the values of the leaves, one for each value of the source. The stream of a
    `plain` task gives its values as they are.

    Iterate with `for` or `async for`. The stream starts when the first tuple is asked for, and
    ends with the source. `close()`, leaving a `with` block, or dropping the stream ends it
    earlier; its workers, threads and files are then gone. `skipped` counts the values that were
    left out.
    """

    def __init__(
        self,
        node: FunctionNode[Any, Any],
        source: Iterable[Any] | AsyncIterable[Any],
        inflight: int | None,
        ordered: bool,
        on_error: OnError,
        way: str | None,
        plain: Decorated | None = None,
        kept: KeptStream | None = None,
    ) -> None:
        self._kept = kept
        #: The item whose value the consumer has, as the ledger knows it.
        self._held = b""
        self._pump: Pump | None = None
        self._closed = True  # `__del__` runs even if an argument is refused below
        if not hasattr(source, "__iter__") and not hasattr(source, "__aiter__"):
            raise ArgumentError(f"{node.__name__}.stream takes an iterable of values, not {type(source).__name__}")
        if inflight is not None and (isinstance(inflight, bool) or not isinstance(inflight, int) or inflight < 1):
            raise OptionError(f"stream: inflight={value_in_short(inflight)}; it is a whole number of values, 1 or above")
        check_whether("stream", ordered=ordered)
        if on_error not in ("raise", "skip") and not callable(on_error):
            what = "node" if plain is None else "task"
            raise OptionError(
                f"stream: on_error={value_in_short(on_error)}; it is 'raise', 'skip', or a function of ({what}, value, error)"
            )
        # Others may iterate over the source as well: only this iteration ends with the stream.
        self._source = iter(source) if getattr(source, "stops_at_once", False) else source  # type: ignore[arg-type]
        self._failures = failures = _Failures(on_error, plain, kept)
        self._plain = plain is not None
        kind = SteppedPump if inline.on else Pump
        plan = Plan((node,), push_into, windows=True)
        #: What the pump reads.
        self._items = self._source
        if kept is not None:
            plan.ledger = kept.of_flow
            self._items = kept.items_of(self._source)
            kept.ends_with_block(self)
        self._pump = kind(plan, inflight, ordered, failures.drop, way)
        self._results: collections.deque[Any] = collections.deque()
        #: Of the result that the consumer holds, and of `_results`: the numbers of the items in it.
        #: Empty for a source that does not listen.
        self._numbers: collections.deque[tuple[int, ...]] = collections.deque()
        self._counted = False
        #: Whether the consumer holds a counted value: until it asks for the next one.
        self._holding = False
        self._threads: list[threading.Thread] = []
        self._feeding: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def skipped(self) -> int:
        """How many values were left out because a node failed with them."""
        return self._failures.count

    # For `for` ------------------------------------------------------------------------------------

    def __iter__(self) -> Stream[V]:
        return self

    def __next__(self) -> V:
        """The tuple of the next value.

        Raises the error of a node that failed with it (if `on_error="raise"`), or of the source.
        """
        if self._closed:
            self._check_block()
            raise StopIteration
        try:
            if self._holding:
                self._let_go()
            if not self._results:
                try:
                    if not self._threads:
                        self._start()
                    self._wait()
                except BaseException:
                    self.close()
                    raise
            return self._give()
        except StopIteration:
            raise
        except BaseException as error:
            hide(error)
            raise

    @passes_on
    def _give(self) -> V:
        if not self._results:
            self._finish()
        result = self._results.popleft()
        if type(result) is Failure:
            self.close()
            try:
                raise result.error()
            finally:
                del result
        self._holding = self._counted or bool(self._numbers)
        given: V = result[0] if self._plain else result
        if self._kept is not None:
            self._held, given = result[0]
        return given

    def _check_block(self) -> None:
        if self._kept is not None and self._kept.left:
            raise DurableError(
                f"the block of durable run {self._kept.of_flow.name!r} has been left, and its streams have ended with it; "
                "read them inside the block"
            )

    def leave(self) -> None:
        """The block of the durable run is left."""
        if self._kept is not None and not self._closed:
            self._kept.left = True
        self.close()

    def _let_go(self) -> None:
        """The consumer has finished with its value: there is room for another."""
        pump = self._pump
        assert pump is not None
        self._holding = False
        if self._kept is not None:
            self._kept.consumed(self._held)
        if self._numbers:
            assert pump.acknowledging is not None
            pump.acknowledging.left(self._numbers.popleft(), True)
            if not self._counted:
                return
        pump.taken += 1
        if pump.waits_for_room:
            pump.make_room()

    def _fetch(self) -> bool:
        """Take over results. Returns whether waiting is over. `arrived` must be held."""
        pump = self._pump
        assert pump is not None
        if pump.results:
            outs, self._counted, numbers = pump.results.popleft()
            self._results.extend(outs)
            self._numbers.extend(numbers)
            return True
        return pump.ended

    def _wait(self) -> None:
        pump = self._pump
        assert pump is not None
        if isinstance(pump, SteppedPump):
            while not self._fetch():
                pump.step(self._items)
            return
        with pump.arrived:
            if self._fetch():
                return
        worker = here.worker
        with worker.lending() if worker is not None else contextlib.nullcontext(), pump.arrived:
            while not self._fetch():
                pump.arrived.wait()

    @passes_on
    def _finish(self) -> None:
        """End the stream; raises StopIteration, or the error that ended it."""
        pump = self._pump
        assert pump is not None
        self.close()
        error = pump.error or pump.source_error
        pump.error = pump.source_error = None
        if error is not None:
            try:
                raise error
            finally:
                del error
        raise StopIteration

    # For `async for` ------------------------------------------------------------------------------

    def __aiter__(self) -> Stream[V]:
        return self

    async def __anext__(self) -> V:
        """As `next`, without blocking the event loop."""
        if self._closed:
            self._check_block()
            raise StopAsyncIteration
        if self._holding:
            self._let_go()
        try:
            if not self._threads:
                self._start(asyncio.get_running_loop())
            while not self._results and not await self._arrival():
                pass
            return self._give()
        except StopIteration:
            await self._end_feeding()
            raise StopAsyncIteration from None
        except BaseException as error:
            self.close()
            await self._end_feeding()
            hide(error)
            raise

    async def _arrival(self) -> bool:
        pump = self._pump
        assert pump is not None
        if isinstance(pump, SteppedPump):
            await pump.step_in_loop(self._items)
            return self._fetch()
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()

        def come() -> None:
            if not waiting.done():
                waiting.set_result(None)

        def listen() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed
                loop.call_soon_threadsafe(come)

        with pump.arrived:
            if self._fetch():
                return True
            pump.listeners.add(listen)
        worker = here.worker
        try:
            with worker.lending() if worker is not None else contextlib.nullcontext():
                await waiting
        finally:
            with pump.arrived:
                pump.listeners.discard(listen)
        return False

    async def aclose(self) -> None:
        """End the stream, as `close`."""
        self.close()
        await self._end_feeding()

    async def _end_feeding(self) -> None:
        if self._feeding is not None:
            self._feeding.cancel()
            with contextlib.suppress(BaseException):
                await self._feeding
            self._feeding = None

    # Starting and ending --------------------------------------------------------------------------

    def _start(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        pump = self._pump
        assert pump is not None
        if isinstance(pump, SteppedPump):
            return  # its consumer does all
        if not _open:
            atexit.register(_close_all)
        _open.add(self)
        self._threads.append(threading.Thread(target=pump.supervise, name="entangle-stream", daemon=True))
        source = self._items
        if loop is not None and hasattr(source, "__aiter__"):
            self._feeding = loop.create_task(_feed_here(pump, source))
        elif hasattr(source, "__iter__"):
            self._threads.append(threading.Thread(target=pump.feed, args=(source,), name="entangle-source", daemon=True))
        else:
            self._threads.append(threading.Thread(target=_feed_in_thread, args=(pump, source), name="entangle-source", daemon=True))
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the stream. Its workers, threads and files are gone when this returns.

        A source that blocks is left when its call returns; those of `entangle.sources` return at
        once.
        """
        pump = self._pump
        if self._closed or pump is None:
            return
        self._closed = True
        stop = getattr(self._source, "stop", None)
        if stop is not None and getattr(self._source, "stops_at_once", False) and not pump.drained:
            stop()
        pump.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(5.0 if thread.name == "entangle-stream" else 0.5)
        if self._feeding is not None:
            with contextlib.suppress(RuntimeError):
                self._feeding.get_loop().call_soon_threadsafe(self._feeding.cancel)
        if pump.acknowledging is not None:
            pump.acknowledging.over()
        if self._kept is not None:
            self._kept.close()
        _open.discard(self)

    def __enter__(self) -> Stream[V]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class _Failures:
    """Applies `on_error` to values with which a node has failed."""

    def __init__(self, on_error: OnError, task: Decorated | None, kept: KeptStream | None) -> None:
        self._kept = kept
        self._on_error = on_error
        self._task = task
        self.count = 0

    @passes_on
    def drop(self, failure: Failure) -> bool:
        """Whether the value is left out; if not, the stream ends."""
        if self._kept is not None and type(failure.value) is KeptItem:
            item, failure.value = failure.value, failure.value.item
            error = failure.error()
            self._kept.failed(item, error)
            if isinstance(error, DurableError):  # it says nothing of the item
                return False
        if self._on_error == "raise":
            return False
        self.count += 1
        if self._on_error == "skip":
            error = failure.error()
            what = "node" if self._task is None else "task"
            log.warning("skipped a value: %s %r failed with %s: %s (%s)", what, failure.name, type(error).__name__, error, failure.call)
            return True
        assert callable(self._on_error)
        try:
            self._on_error(failure.node if self._task is None else self._task, failure.value, failure.error())
        except Exception as raised:
            hide(raised)
            log.exception("on_error raised an exception; the value is left out, and the stream goes on")
        return True


async def _feed_here(pump: Pump, source: Any) -> None:
    """Read an asynchronous source in the event loop of the consumer."""
    loop = asyncio.get_running_loop()
    try:
        values = aiter_of(source)
        pump.listen(values)
        try:
            while True:
                ready = pump.begun.is_set() and pump.has_room()
                if not ready and not await loop.run_in_executor(None, pump.wait_for_room):
                    break
                try:
                    value = await values.__anext__()
                except StopAsyncIteration:
                    break
                if not await loop.run_in_executor(None, pump.offer, value):
                    break
        finally:
            close = getattr(values, "aclose", None)
            if close is not None:
                await close()
    except asyncio.CancelledError as error:
        if not pump.stopping:  # not cancelled by us, but inside the source
            pump.source_error = error
        pump.stopping = True
    except BaseException as error:
        pump.source_error = error
    finally:
        pump.source_ended()


def aiter_of(source: Any) -> Any:
    """The asynchronous iterator of a source."""
    return source.__aiter__()


def _feed_in_thread(pump: Pump, source: Any) -> None:
    """Read an asynchronous source in an event loop of its own."""
    asyncio.run(_feed_here(pump, source))


def _close_all() -> None:
    for stream in list(_open):
        stream.close()
