"""Stages: what the engine runs for a node, a callback or a lambda.

A stage takes a chunk of items and gives a chunk of outcomes. A chunk is `(label, clean, items)`:
each label is used once; `clean` says that all items are values. An item is one pushed value. Small
and quick items share a chunk, since handing over a node costs tens of microseconds.

All guarantees hold for each item: it is retried alone, and it fails alone. An item that was done
when its worker died does not run again, because the worker has noted its outcome in a journal.
"""

from __future__ import annotations

import functools
import logging
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from entangle._dataflow.kept_item import item_of
from entangle._dataflow.outcome import ENDED, PASSED, Attempt, Failure, Several
from entangle._run.rearmed import progress_of
from entangle._shared.call_notes import text_without
from entangle._shared.journal import Journal
from entangle._shared.pickling import dumps, why_not
from entangle._shared.summaries import item_in_short
from entangle._shared.table import BEGUN, NODE, RUNS, SINCE, STOP
from entangle._shared.tracebacks import hide, passes_on
from entangle._tasks.parameters import positional_names
from entangle._worker.child import end_child
from entangle._worker.failures import pause
from entangle._worker.inline import InlineWorker
from entangle._worker.worker import Worker, here
from entangle.errors import RunCancelledError, StoreFullError
from entangle.task import Task

log = logging.getLogger("entangle.dataflow")

Chunk = tuple[Any, bool, list[Any]]

#: Pushes a value into the nodes that a lambda has chosen, of which at most so many run at once;
#: gives the outcomes of their leaves.
Pusher = Callable[[Sequence[Any], Any, int | None], list[Any]]


class _Held(threading.local):
    """The items that the stage of this thread was given last."""

    items: Sequence[Any] = ()


_held = _Held()
_journal: tuple[int, Journal] | None = None


def _journal_of(worker: Worker) -> Journal:
    global _journal
    if _journal is None or _journal[0] != worker.serial:
        _journal = worker.serial, Journal(worker.site.directory, worker.slot)
    return _journal[1]


@passes_on
def call_back(callback: Callable[[Any, Any], object], function: Any, value: Any) -> None:
    """Call back. An exception is logged and stops nothing.

    Callbacks of one run are called one at a time, so they need not be thread-safe.
    """
    worker = here.worker
    assert worker is not None
    # One lock for each run: a callback may push into a flow and wait for the callbacks there.
    with worker.site.telling:
        try:
            callback(function, value)
        except (Exception, SystemExit) as error:
            hide(error)
            log.exception("the callback of %r has raised an exception; the flow goes on", getattr(function, "__name__", function))


def summary_of(error: BaseException) -> str:
    """An error in a line or two."""
    return text_without(error)[:1500]


def _kept(item: Any) -> bytes | None:
    """The pickle of an item, for the next attempt: this attempt may change the item.

    None if the item cannot change, or cannot be pickled.
    """
    if item is None or type(item) in (int, float, str, bytes, bool):
        return None
    try:
        return dumps(item)
    except Exception:
        return None


class NodeStage:
    """Runs the function of a node for each item of a chunk.

    Calls back as well, if it runs in the invoking process.
    """

    def __init__(self, task: Task[..., Any], number: int, path: str, callback: Callable[[Any, Any], object] | None = None) -> None:
        self.task = task
        self.number = number
        self.path = path
        self.callback = callback
        self._learn()

    def _learn(self) -> None:
        body = self.task.body
        self.name = body.name
        self.function = body.function
        self.terms = body
        self.timed = body.timeout is not None

    def __reduce__(self) -> Any:
        return NodeStage, (self.task, self.number, self.path)

    @passes_on
    def __call__(self, chunk: Chunk, *_: Any, **named: Any) -> Chunk:
        """The outcomes of a chunk. `named` are arguments that the engine fills in for layers."""
        label, clean, items = chunk
        worker = here.worker
        assert worker is not None
        slots, base = worker.site.table.slots, worker.base
        node = slots[base + NODE]
        progress = progress_of(worker, node)
        done, attempts = progress if progress is not None else ([], [])
        if progress is not None:
            clean = False
        _held.items = items
        journal: Journal | None = None
        if worker.in_process and (len(items) > 1 or self.terms.retry):
            journal = _journal_of(worker)
            journal.begin((label, node))
        function: Callable[[Any], Any] = self.function
        if named:
            function = functools.partial(function, **named)
        if self.timed and isinstance(worker, InlineWorker):
            function = worker.in_time(self.name, self.terms, function)
        callback, timed = self.callback, self.timed
        tries = self.terms.retry > 0
        stays, header = not worker.in_process, worker.site.table.header
        kept: bytes | None = None
        for item in items[len(done) :] if done else items:
            if not clean and type(item) in PASSED:
                done.append(item)
                if journal is not None:
                    journal.note(item)
                continue
            if tries:
                kept = _kept(item)
            if stays and header[STOP]:
                raise RunCancelledError("the run is over")  # a thread cannot be killed with its run
            try:
                if timed:
                    slots[base + SINCE] = time.monotonic_ns()
                    slots[base + BEGUN] = RUNS
                outcome = function(item)
            except BaseException as raised:
                outcome = self._again(worker, node, item, raised, function, attempts, journal, kept)
            if worker.forked:
                end_child(None)
            if timed:
                worker.end_body()
            attempts = []
            if type(outcome) is Failure:
                clean = False
            elif callback is not None:
                call_back(callback, self.task.function, outcome)
            if journal is not None:
                try:
                    journal.note(outcome)
                except OSError as error:
                    raise StoreFullError(error.errno, f"no room for the journal of task {self.name!r}: {error}") from None
                except Exception as error:
                    outcome = self._refused(item, outcome, error)
                    clean = False
                    journal.note(outcome)
            done.append(outcome)
        slots[base + SINCE] = time.monotonic_ns()  # the last item is over, and was in time
        slots[base + BEGUN] = RUNS
        return label, clean, done

    @passes_on
    def apply(self, item: Any) -> Any:
        """The outcome of one item, in the thread that pushes it."""
        kept = _kept(item) if self.terms.retry > 0 else None
        try:
            outcome = self.function(item)
        except BaseException as raised:
            worker = here.worker
            assert worker is not None
            outcome = self._again(worker, -1, item, raised, self.function, [], None, kept)
        if self.callback is not None and type(outcome) is not Failure:
            call_back(self.callback, self.task.function, outcome)
        return outcome

    @passes_on
    def _again(
        self,
        worker: Worker,
        node: int,
        item: Any,
        raised: BaseException,
        function: Callable[[Any], Any],
        attempts: list[str],
        journal: Journal | None,
        kept: bytes | None,
    ) -> Any:
        """Try again after a failed attempt, as often as `retry` allows, with the original item."""
        slots, base = worker.site.table.slots, worker.base
        while True:
            if worker.forked:
                end_child(raised)
            error = worker.as_error(self.name, raised)
            attempts.append(summary_of(error))
            allowed = isinstance(error, self.terms.on) or isinstance(raised, self.terms.on)
            if len(attempts) > self.terms.retry or not allowed or worker.is_over(node):
                return self.failure(item, error, attempts, self.terms.retry > 0 and allowed)
            if journal is not None:
                journal.note(Attempt(attempts[-1]))
            if node >= 0:
                worker.end_body()
            worker.rest_without_cookies(node, pause(self.terms, len(attempts)))
            if worker.is_over(node):
                raise RunCancelledError("the run is over")
            try:
                if node >= 0:
                    slots[base + SINCE] = time.monotonic_ns()
                    slots[base + BEGUN] = RUNS
                return function(item if kept is None else pickle.loads(kept))
            except BaseException as again:
                raised = again

    def failure(self, item: Any, error: BaseException, attempts: list[str], used_up: bool, sent: bool = True) -> Failure:
        """The failure of this node with an item."""
        call = item_in_short(self.name, self.terms.parameters()[0], item_of(item))
        return Failure(self.number, self.name, self.path, call, item, error, attempts, used_up, sent)

    def _refused(self, item: Any, value: Any, error: Exception) -> Failure:
        why = error if isinstance(error, OSError) else why_not(value, f"the value of task {self.name!r}")
        return self.failure(item, why, ["cannot be pickled"], False)

    def rescue(self, chunk: Chunk, error: Exception) -> Chunk:
        """The chunk, with a failure in place of each value that cannot be stored."""
        label, _, items = chunk
        if isinstance(error, (OSError, MemoryError)):
            return label, False, [self._refused(item, value, error) for item, value in zip(_held.items, items, strict=True)]
        kept: list[Any] = []
        for item, value in zip(_held.items, items, strict=True):
            try:
                dumps(value)
                kept.append(value)
            except Exception as why:
                kept.append(self._refused(item, value, why))
        return label, False, kept


class CallbackStage:
    """Calls back for the items of a node that a process has run."""

    def __init__(self, task: Task[..., Any], callback: Callable[[Any, Any], object]) -> None:
        self._task = task
        self.callback = callback

    def __call__(self, chunk: Chunk, *_: Any) -> None:
        """Call back for each value of the chunk."""
        for value in chunk[2]:
            if type(value) not in PASSED:
                call_back(self.callback, self._task.function, value)


class LambdaStage:
    """Lets a lambda choose nodes for each item, and pushes the item into them."""

    def __init__(self, choose: Callable[[Any], Any], number: int, path: str, push: Pusher, limit: int | None) -> None:
        self.choose = choose
        self.number = number
        self.path = path
        self.name = getattr(choose, "__name__", type(choose).__name__)
        self._push = push
        self._limit = limit

    def __call__(self, pushed: Chunk, parent: Chunk, *_: Any) -> Chunk:
        """The outcomes of the chosen nodes, for items pushed into the parent and its outcomes."""
        _held.items = pushed[2]
        outcomes = [above if type(above) in PASSED else self._follow(item) for item, above in zip(pushed[2], parent[2], strict=True)]
        return pushed[0], False, outcomes

    @passes_on
    def _follow(self, item: Any) -> Any:
        try:
            outcomes = self._push([self.choose], item, self._limit)
        except (Exception, SystemExit) as raised:
            worker = here.worker
            assert worker is not None
            call = item_in_short(self.name, positional_names(self.choose)[0], item)
            return Failure(self.number, self.name, self.path, call, item, worker.as_error(self.name, raised), [], False)
        for outcome in outcomes:
            if type(outcome) is Failure:
                return outcome
        values: list[Any] = []
        for outcome in outcomes:
            if type(outcome) is Several:
                values += outcome.values
            elif outcome is not ENDED:
                values.append(outcome)
        return Several(tuple(values)) if values else ENDED
