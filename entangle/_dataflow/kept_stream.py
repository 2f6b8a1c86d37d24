"""The stream of a task in a durable run: which of its items have been consumed, or have ended.

An item is found again by its content and the code of the task; equal ones are counted.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from entangle._dataflow.kept_item import KeptItem
from entangle._depot import ledger
from entangle._depot.kept_values import is_there
from entangle._depot.ledger import NO_NODE, Ledger, LedgerOfFlow
from entangle._shared.identity.flow_keys import digest, keys_of
from entangle._tasks import NO_INSTANCE
from entangle._tasks.durable import Scope, doubt_of_item, may_run_again, number_of_stream
from entangle._tasks.tree import compile_call
from entangle._worker.worker import here
from entangle.errors import DurableError
from entangle.task import Task


class KeptStream:
    """What a stream reads from the ledger, and what its consumer writes there."""

    def __init__(self, scope: Scope, task: Task[..., Any], instance: Any) -> None:
        self._scope = scope
        self._task = task
        self._first = () if instance is NO_INSTANCE else (instance,)
        self._number = number_of_stream(scope, task.body.name)
        self._outcomes = scope.outcomes()
        self._may_run_again = may_run_again(task.body)
        self._counts: dict[bytes, int] = {}
        self._guard = threading.Lock()
        self._ledger: Ledger | None = None
        self._noted = self._over = False
        #: Whether the block of the stream has been left.
        self.left = False

    @property
    def of_flow(self) -> LedgerOfFlow:
        """What its workers know of the ledger."""
        return self._scope.of_flow

    def ends_with_block(self, stream: Any) -> None:
        """Have the stream closed when the block is left; of a body, when its run has ended."""
        worker = here.worker
        if self._scope.block is not None:
            self._scope.block.streams.add(stream)
        elif worker is not None and worker.books is not None:
            worker.books.streams.add(stream)

    # The source's side ----------------------------------------------------------------------------

    def items_of(self, source: Any) -> Any:
        """The source, with its items as they go to workers, and without those consumed before."""
        return _Items(self, source) if hasattr(source, "__iter__") else _AsyncItems(self, source)

    def prepared(self, item: Any) -> KeptItem | None:
        """An item as it goes to a worker; None if it was consumed before.

        Raises CacheKeyError where the item cannot be told from others.
        """
        flow = compile_call(self._task(*self._first, item))
        keys = keys_of(flow)
        if not self._noted:
            self._noted = True
            if self._scope.block is not None:
                self._scope.block.note_stream(self._number, self._task.body.name, keys.parts)
        sink = flow.sinks[0]
        node = self._counted(b"n" + keys.keys[sink])
        place = self._counted(b"p" + keys.places[sink])
        outcomes = self._outcomes
        if node in outcomes.consumed:
            return None
        outcome = outcomes.ended.get(node)
        if outcome is not None and is_there(self.of_flow.directory, node, outcome):
            return KeptItem(None, node, place, bytes(outcome), None)
        if (node in outcomes.open or node in outcomes.unkept) and not self._may_run_again:
            return KeptItem(item, node, place, None, doubt_of_item(flow, node, self._scope, outcomes))
        return KeptItem(item, node, place, None, None)

    def _counted(self, content: bytes) -> bytes:
        name = digest(b"stream" + self._number + content)
        number = self._counts.get(name, 0)
        self._counts[name] = number + 1
        return digest(name + number.to_bytes(8, "little"))

    # The consumer's side --------------------------------------------------------------------------

    def consumed(self, node: bytes) -> None:
        """Write down that the consumer has asked for the next value after this one's."""
        self._append(ledger.CONSUMED, node, NO_NODE, f"that the value of an item of {self._task.__name__}.stream was consumed")

    def failed(self, item: KeptItem, error: BaseException) -> None:
        """Write down that an item has failed: its worker could not, if it died."""
        if item.doubt is None and item.outcome is None and not isinstance(error, DurableError):
            self._append(ledger.FAILED, item.node, item.place, f"that an item of {self._task.__name__}.stream has failed")

    def _append(self, kind: int, node: bytes, place: bytes, what: str) -> None:
        with self._guard:
            if self._over:
                return
            try:
                if self._ledger is None:
                    self._ledger = self.of_flow.open()
                self._ledger.append(kind, node, place, b"")
            except OSError as error:
                raise DurableError(
                    f"durable run {self.of_flow.name!r}: {what} cannot be written to {self.of_flow.directory} "
                    f"({error.strerror or error}); make it writable or make room there, and start the program again"
                ) from None

    def close(self) -> None:
        """The stream is over."""
        with self._guard:
            self._over = True
            if self._ledger is not None:
                self._ledger.close()
                self._ledger = None


class _Items:
    def __init__(self, kept: KeptStream, source: Any) -> None:
        self._kept = kept
        self._source = source

    def __iter__(self) -> Iterator[KeptItem]:
        values = iter(self._source)
        _refuse_listeners(self._kept, values)
        try:
            for item in values:
                prepared = self._kept.prepared(item)
                if prepared is not None:
                    yield prepared
                    if prepared.doubt is not None:
                        return  # what stands behind it would be in doubt next
        finally:
            close = getattr(values, "close", None)
            if close is not None:
                close()


class _AsyncItems:
    def __init__(self, kept: KeptStream, source: Any) -> None:
        self._kept = kept
        self._source = source

    async def __aiter__(self) -> AsyncIterator[KeptItem]:
        values = self._source.__aiter__()
        _refuse_listeners(self._kept, values)
        try:
            async for item in values:
                prepared = self._kept.prepared(item)
                if prepared is not None:
                    yield prepared
                    if prepared.doubt is not None:
                        return
        finally:
            close = getattr(values, "aclose", None)
            if close is not None:
                await close()


def _refuse_listeners(kept: KeptStream, values: Any) -> None:
    if hasattr(values, "acknowledging"):
        raise DurableError(
            f"durable run {kept.of_flow.name!r}: the source of a stream knows itself which of its items have ended, and gives the others "
            "again; stream it outside of the block"
        )
