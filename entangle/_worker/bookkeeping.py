"""What a worker writes into the ledger of a durable run: a body begins, and has ended.

"Begun" stands there before the body runs, and "ended", with its value, before anybody is told of
the value. So whatever is killed: a body with neither has not run, and one with both need not run
again.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable
from typing import Any

from entangle._depot import ledger
from entangle._depot.kept_values import written
from entangle._depot.ledger import NO_NODE, Ledger, LedgerOfFlow, Outcomes
from entangle._depot.warned_once import warn_once
from entangle._shared.tracebacks import passes_on
from entangle.errors import DurableError

_LONGEST = 500


class Bookkeeping:
    """The ledger of the run of a worker, as the worker writes it."""

    def __init__(self, of_flow: LedgerOfFlow) -> None:
        self.of_flow = of_flow
        self._ledger: Ledger | None = None
        #: How many equal nodes and places the runs within the body that runs now have had.
        self.counts: dict[bytes, int] = {}
        self._outcomes: Outcomes | None = None
        #: The streams of bodies: they end with the run, and with them what they hold of the ledger.
        self.streams: weakref.WeakSet[Any] = weakref.WeakSet()

    @passes_on
    def run(self, node: int, task: str, body: Callable[..., Any], args: Any, named: dict[str, Any]) -> Any:
        """Run the body of a node, between two records.

        Raises DurableError if the ledger cannot be written; before the body runs, if possible.
        """
        self.counts = {}
        known = self.of_flow.node(node)
        if known == NO_NODE:
            return body(*args, **named)
        return self.run_known(known, self.of_flow.place(node), task, body, args, named)

    @passes_on
    def run_known(self, node: bytes, place: bytes, task: str, body: Callable[..., Any], args: Any, named: dict[str, Any]) -> Any:
        """As `run`, of a node as the ledger knows it."""
        self._begun(node, place, task)
        began = time.monotonic()
        try:
            value = body(*args, **named)
        except (Exception, SystemExit) as error:
            if self._ledger is not None:  # else this is a child that the body has forked
                self._failed(node, place, task, error)
            raise
        if self._ledger is not None:
            self._ended(node, place, task, value, began)
        return value

    def begun(self, node: int, task: str) -> None:
        """Write down that the body of a node begins. Raises DurableError."""
        known = self.of_flow.node(node)
        if known != NO_NODE:
            self._begun(known, self.of_flow.place(node), task)

    def _begun(self, node: bytes, place: bytes, task: str) -> None:
        self._append(ledger.BEGUN, node, place, task.encode(), f"task {task!r} has not begun")

    def failed(self, node: int, task: str, error: BaseException) -> None:
        """Write down that it has failed. Raises DurableError."""
        known = self.of_flow.node(node)
        if known != NO_NODE:
            self._failed(known, self.of_flow.place(node), task, error)

    def _failed(self, node: bytes, place: bytes, task: str, error: BaseException) -> None:
        text = f"{type(error).__name__}: {error}"[:_LONGEST]
        self._append(ledger.FAILED, node, place, text.encode("utf-8", "replace"), f"task {task!r} has failed ({text})")

    def ended(self, number: int, task: str, value: Any, began: float) -> None:
        """Write down that it has ended well; it began at `began` (monotonic clock, seconds).

        Raises DurableError.
        """
        node = self.of_flow.node(number)
        if node != NO_NODE:
            self._ended(node, self.of_flow.place(number), task, value, began)

    def _ended(self, node: bytes, place: bytes, task: str, value: Any, began: float) -> None:
        what = f"task {task!r} has run, and its outcome cannot be kept"
        try:
            outcome = written(self.of_flow.directory, node, task, value, ledger.times(began), self.of_flow.to_disk)
        except OSError as error:
            # A record is small, and may have a place where the value had none. Without it the node
            # has begun and not ended, which is named as well.
            with contextlib.suppress(DurableError):
                self._append(ledger.UNKEPT, node, place, str(error.strerror or error).encode("utf-8", "replace"), what)
            raise self._refused(what, error) from None
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:_LONGEST]
            warn_once(
                f"the value of task {task!r} cannot be pickled ({why}), so durable run {self.of_flow.name!r} cannot keep it: if the run is "
                "taken up, the task runs again if it says retry or idempotent=True",
                f"unkept {self.of_flow.name} {task}",
            )
            self._append(ledger.UNKEPT, node, place, why.encode("utf-8", "replace"), what)
            return
        self._append(ledger.ENDED, node, place, outcome, what)

    def _append(self, kind: int, node: bytes, place: bytes, text: bytes, what: str) -> None:
        try:
            if self._ledger is None:
                self._ledger = self.of_flow.open()
            self._ledger.append(kind, node, place, text)
        except OSError as error:
            raise self._refused(what, error) from None

    def _refused(self, what: str, error: OSError) -> DurableError:
        return DurableError(
            f"durable run {self.of_flow.name!r}: {what}: {self.of_flow.directory} cannot be written to ({error.strerror or error})"
        )

    def close(self) -> None:
        """Let go of the ledger."""
        for stream in list(self.streams):
            stream.leave()
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def forked(self) -> None:
        """In a child that the body has forked: what it does is no outcome."""
        self._ledger = None
        self.streams.clear()

    def outcomes(self) -> Outcomes:
        """What the ledgers say now."""
        self._outcomes = self.of_flow.outcomes(self._outcomes or Outcomes())
        return self._outcomes
