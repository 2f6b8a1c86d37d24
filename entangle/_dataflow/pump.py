"""The pump of a stream: values go from the source into sets of rows, results to the consumer.

::

    source ─▶ feeder ─▶ chunk ─▶ sets of rows ─▶ collect ─▶ windows ─▶ sets of rows of their own
                ▲                                   │
                │ room                              ▼
                └────────── consumer ◀── results, in order

The feeder waits while `inflight` values are under way, or while no set of rows is free.

Three threads take part. The feeder may block in the source for any time. The supervisor of the run
never waits for the others. The third is the consumer's own.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from entangle._dataflow.acknowledging import Acknowledging
from entangle._dataflow.kept_item import item_of
from entangle._dataflow.outcome import PASSED, Failure, leaves_of
from entangle._dataflow.plan import Plan
from entangle._dataflow.recovery import Recovery
from entangle._dataflow.windows import WindowBuffer
from entangle._run.rearmed import RearmedRun, RearmedSupervisor, unroll
from entangle._shared.pickling import dumps, why_not
from entangle._shared.summaries import item_in_short
from entangle.cookies import available_cpus, budget_of
from entangle.errors import RunCancelledError

log = logging.getLogger("entangle.dataflow")

#: Limits of a chunk: its items, the time of its bodies together (ns), its room in the store
#: (bytes).
MOST_ITEMS, CHUNK_TIME, CHUNK_SIZE = 512, 4_000_000, 64 * 1024
#: Seconds that a chunk waits for more items from the source.
PATIENCE = 0.002
MOST_SETS = 1024
#: Sets of rows below a window.
WINDOW_SETS = 8

#: Decides about a failure: True leaves the value out, False ends the stream.
Reaction = Callable[[Failure], bool]


class Pump:
    """Pushes the values of a source through a plan. It is the client of its run."""

    many = True

    def __init__(self, plan: Plan, inflight: int | None, ordered: bool, drop: Reaction, way: str | None) -> None:
        cpus = budget_of(available_cpus())
        sets = max(8, 4 * cpus) if inflight is None else min(inflight, MOST_SETS)
        flow, ports = unroll([(rows, WINDOW_SETS if number else sets) for number, rows in enumerate(plan.ports)], plan.limits)
        if plan.ledger is not None:
            flow.ledger = plan.ledger.for_streams(flow.count)
        self.plan = plan
        self.name = plan.name
        #: The failure that ends the stream.
        self.failed: Failure | None = None
        self.run = RearmedRun(flow, ports, self, way, feeds=plan.feeds)
        self.ordered = ordered
        #: Asked about each failure: False ends the stream with it.
        self.drop = drop
        self._inflight = inflight
        self._sets = sets
        self._most = min(MOST_ITEMS, max(1, inflight // (4 * cpus))) if inflight is not None else MOST_ITEMS
        self._recovery = Recovery(flow)
        self._supervisor: RearmedSupervisor | None = None
        # The feeder's side. `pulled` counts items from the source; `taken` and `dropped`, those
        # that have left.
        self._room = threading.Condition()
        self.begun = threading.Event()
        self._chunk: list[Any] = []
        self._chunk_since = 0.0
        self._size = 1
        self._label = self._fed = 0
        #: What tells the source that its items have ended; None for a source that does not listen.
        self.acknowledging: Acknowledging | None = None
        self.pulled = self.taken = self.dropped = 0
        #: Whether all items have come out of the flow. The consumer may not have taken them yet.
        self._all_out = False
        self.waits_for_room = False
        #: Seconds in which the source waited for room.
        self.waited = 0.0
        self.drained = False
        self.stopping = False
        #: Whether the consumer has left: then the run is cancelled, and does not end by itself.
        self._left = False
        self.source_error: BaseException | None = None
        # By port: how many chunks are under way; the number of the next chunk in order; chunks that
        # were done before their turn.
        self._under_way = [0] * len(ports)
        self._next = [0] * len(ports)
        self._early: list[dict[int, Any]] = [{} for _ in ports]
        self._labels = [0] * len(ports)
        self._windows = [
            (number, at, leaf.port, WindowBuffer(leaf.window))
            for number, leaves in enumerate(plan.leaves)
            for at, leaf in enumerate(leaves)
            if leaf.window is not None
        ]
        #: Lists of windows, with their ports, that wait for a free set of rows.
        self._backlog: collections.deque[tuple[int, list[Any], tuple[int, ...]]] = collections.deque()
        # The consumer's side. A list of results, whether they count as items of the source, and the
        # numbers of the items in each, if the source listens.
        self.arrived = threading.Condition()
        self.results: collections.deque[tuple[list[Any], bool, list[tuple[int, ...]]]] = collections.deque()
        self.listeners: set[Callable[[], None]] = set()
        self.error: BaseException | None = None
        self.ended = False

    # The supervisor's thread ----------------------------------------------------------------------

    def supervise(self) -> None:
        """Run the flow to its end."""
        try:
            self.run.value()
        except RunCancelledError:
            if not self.stopping:
                self.error = RunCancelledError("the stream was cancelled before its source had ended")
        except BaseException as error:
            self.error = error
        finally:
            with self._room:
                self.stopping = True
                self._room.notify_all()
            self.begun.set()
            with self.arrived:
                self.ended = True
                self._announce()

    def begin(self, supervisor: RearmedSupervisor) -> None:
        """Values may be fed."""
        self._supervisor = supervisor
        self.begun.set()

    def failure(self) -> BaseException | None:
        """The error that the consumer gets at the end, if any."""
        return self.failed.error() if self.failed is not None else self.source_error

    def collect(self, port: int, label: Any, values: list[Any], spent: int, size: int) -> None:
        """A chunk is done."""
        number, count, full, begin = label
        self._under_way[port] -= 1
        if port == 0:
            self._adapt(count, full, spent, size)
        chunks = [values[at] for at in self.plan.results[port]]
        numbers: list[tuple[int, ...]] = []
        if self.acknowledging is not None:
            numbers = [begin] if port else [(at,) for at in range(begin, begin + count)]
        if not self.ordered:
            self._emit(port, chunks, numbers)
            return
        early = self._early[port]
        early[number] = chunks, numbers
        while self._next[port] in early:
            self._emit(port, *early.pop(self._next[port]))
            self._next[port] += 1

    def freed(self, port: int) -> None:
        """A set of rows is free, for a list of a window or for the feeder."""
        self._pass_on()
        if port == 0:
            with self._room:
                self._room.notify()

    def lost(self, node: int, slot: int, value: Any, error: Exception, directory: str) -> tuple[Any, float]:
        """How far a node had come whose worker has died."""
        return self._recovery.lost(node, slot, value, error, directory)

    def tick(self) -> float:
        """Feed due chunks and windows; end a finished stream. Returns the seconds to the next."""
        due = 60.0
        with self._room:
            if self._chunk:
                due = self._chunk_since + PATIENCE - time.monotonic()
                if due <= 0:
                    # The source is slow: its values must not wait for each other.
                    self._size = max(1, min(self._size, len(self._chunk)))
                    due = 0.02 if not self._ship() else 60.0
        for _, _, port, buffer in self._windows:
            left = buffer.due()
            if left <= 0:
                self._backlog.append((port, *buffer.take()))
            else:
                due = min(due, left)
        self._pass_on()
        if self.drained and not self._chunk and not any(self._under_way) and not self._backlog:
            if self._flush_a_window():
                self._pass_on()
            elif self._supervisor is not None:
                self._all_out = True
                self._supervisor.over()
        return due

    def told(self) -> dict[str, Any]:
        """How many items have come from the source and left, how many may be under way, and the
        seconds in which the source waited for room. Of a run that is over none is under way, even
        if the loop that takes the values lags behind."""
        most = self._inflight if self._inflight is not None else self._sets * self._size
        return {
            "pulled": self.pulled,
            "taken": self.pulled - self.dropped if self._all_out else self.taken,
            "left_out": self.dropped,
            "most": most,
            "waited": round(self.waited, 3),
            "full": self.waits_for_room,
            "drained": self.drained,
        }

    def _flush_a_window(self) -> bool:
        """Pass on the values that one window still holds. Returns whether there are any."""
        for _, _, port, buffer in self._windows:
            values, numbers = buffer.take()
            if values:
                self._backlog.append((port, values, numbers))
                return True
        return False

    def _pass_on(self) -> None:
        """Feed the lists that windows have gathered."""
        assert self._supervisor is not None
        while self._backlog:
            port, values, numbers = self._backlog[0]
            label = self._labels[port], 1, False, numbers
            if not self._supervisor.feed(port, ((port, label[0]), True, [values]), label):
                return
            self._labels[port] += 1
            self._under_way[port] += 1
            self._backlog.popleft()

    def _adapt(self, count: int, full: bool, spent: int, size: int) -> None:
        """Adapt the size of chunks to what the last one took."""
        if not self.plan.in_chunks:
            return
        fitting = min(self._most, count * CHUNK_TIME // max(1, spent), count * CHUNK_SIZE // max(1, size))
        if fitting < self._size:
            self._size = max(1, fitting)
        elif full:
            self._size = max(self._size, min(2 * count, fitting))

    def _emit(self, port: int, chunks: list[Any], numbers: list[tuple[int, ...]]) -> None:
        """Give the outcomes of a chunk to windows and to the consumer. `numbers`: of the source's
        items in each; empty if the source does not listen."""
        acknowledging = self.acknowledging
        windows = [(at, below, buffer) for number, at, below, buffer in self._windows if number == port]
        outs: list[Any] = []
        columns = [chunk[2] for chunk in chunks]
        if not windows and all(chunk[1] for chunk in chunks):
            outs, given = list(zip(*columns, strict=True)), numbers
        else:
            gathered = {at for at, _, _ in windows}
            given = []
            for outcomes, these in zip(zip(*columns, strict=True), numbers or itertools.repeat(()), strict=False):
                values, failures = leaves_of(outcome for at, outcome in enumerate(outcomes) if at not in gathered)
                for failure in leaves_of(outcomes)[1] if windows else failures:
                    if failure.node is None:
                        failure.node = self.plan.nodes[failure.number]
                    self.run.history.fail((failure.number,))
                    self.run.history.keep(failure.number, failure)
                    if not self.drop(failure):
                        self.failed = self.failed or failure
                        outs.append(failure)
                        given.append(())
                        if acknowledging is not None:
                            acknowledging.left(these, False)
                        break
                else:
                    if failures or any(type(outcome) is Failure for outcome in outcomes):
                        self.dropped += port == 0
                        if acknowledging is not None:
                            acknowledging.left(these, False)
                        continue
                    for at, below, buffer in windows:
                        if type(outcomes[at]) not in PASSED:
                            if acknowledging is not None:
                                acknowledging.entered(these)
                            full = buffer.add(outcomes[at], these)
                            if full is not None:
                                self._backlog.append((below, *full))
                    if values or not windows:
                        outs.append(values)
                        given.append(these)
                    else:
                        self.dropped += port == 0
                        if acknowledging is not None:
                            acknowledging.left(these, True)
        if outs:
            with self.arrived:
                self.results.append((outs, port == 0, given if acknowledging is not None else []))
                self._announce()
        if self.waits_for_room:
            self.make_room()

    def _announce(self) -> None:
        """Wake the consumer. `arrived` must be held."""
        self.arrived.notify_all()
        for listener in self.listeners:
            listener()

    # The feeder's side, in a thread or a task of its own ------------------------------------------

    def listen(self, values: object) -> None:
        """Before the first item: see whether the iteration wants to know what has ended."""
        if hasattr(values, "acknowledging"):
            self.acknowledging = Acknowledging(values)

    def feed(self, source: Iterable[Any]) -> None:
        """Read the source to its end."""
        try:
            values = iter(source)
            self.listen(values)
            try:
                while self.wait_for_room():
                    try:
                        value = next(values)
                    except StopIteration:
                        break
                    if not self.offer(value):
                        break
            finally:
                close = getattr(values, "close", None)
                if close is not None and self.stopping:
                    with contextlib.suppress(Exception):
                        close()
        except BaseException as error:
            self.source_error = error
        finally:
            self.source_ended()

    def has_room(self) -> bool:
        """Whether one more item may be pulled from the source."""
        most = self._inflight if self._inflight is not None else self._sets * self._size
        return self.pulled - self.taken - self.dropped < most and len(self._backlog) < WINDOW_SETS

    def wait_for_room(self) -> bool:
        """Wait until one more item may be pulled from the source. False if the stream is over."""
        self.begun.wait()
        if self.has_room() and not self.stopping:
            return True
        with self._room:
            began = time.monotonic()
            self.waits_for_room = True
            while not self.stopping and not self.has_room():
                if self._chunk:
                    self._ship()  # no item will join it while we wait
                self._room.wait(0.1)
            self.waits_for_room = False
            self.waited += time.monotonic() - began
            return not self.stopping

    def offer(self, value: Any) -> bool:
        """Add an item to the chunk; feed it when it is full. False if the stream is over."""
        with self._room:
            chunk = self._chunk
            if not chunk:
                last, self._chunk_since = self._chunk_since, time.monotonic()
                if self._size > 1 and self._supervisor is not None and self._chunk_since - last > PATIENCE:
                    self._supervisor.nudge()  # so that `tick` feeds it soon, if it stays alone
            chunk.append(value)
            self.pulled += 1
            while len(self._chunk) >= self._size and not self.stopping:
                if self._ship():
                    break
                self._room.wait(0.1)
            return not self.stopping

    def make_room(self) -> None:
        """Tell the feeder that an item has left."""
        with self._room:
            self._room.notify()

    def source_ended(self) -> None:
        """Feed the last chunk, and let the stream end."""
        with self._room:
            while self._chunk and not self.stopping and not self._ship():
                self._room.wait(0.1)
            self.drained = not self._left
        if self._supervisor is not None:
            self._supervisor.nudge()

    def _ship(self) -> bool:
        """Feed the chunk if a set is free. Returns whether it was fed. `_room` must be held."""
        supervisor, chunk = self._supervisor, self._chunk
        assert supervisor is not None
        label = self._label, len(chunk), len(chunk) >= self._size, self._fed
        self._under_way[0] += 1
        fed = False
        try:
            fed = supervisor.feed(0, (self._label, True, chunk), label)
        except OSError:
            raise
        except Exception:
            # An item cannot be pickled: a failure takes its place.
            fed = supervisor.feed(0, (self._label, False, [self._checked(value) for value in chunk]), label)
        finally:
            if not fed:
                self._under_way[0] -= 1
        if fed:
            self._label += 1
            self._fed += len(chunk)
            self._chunk = []
        return fed

    def _checked(self, value: Any) -> Any:
        try:
            dumps(value)
        except Exception:
            name = self.plan.nodes[0].__name__
            error = why_not(item_of(value), f"the value that was pushed into {name!r}")
            call = item_in_short(name, self.plan.nodes[0].task.body.parameters()[0], item_of(value))
            return Failure(0, name, name, call, value, error, [], False, sent=False)
        return value

    def stop(self) -> None:
        """End the stream from another thread."""
        with self._room:
            self.stopping = self._left = True
            self._room.notify_all()
        self.run.cancel()
