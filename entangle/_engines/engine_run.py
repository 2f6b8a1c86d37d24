"""A run on another engine: what the caller sends, hears and raises; and its table, for records.

::

    caller                                        engine
      │ plans, payloads, large constants ────────▶ its graph, its scheduler, its store
      │                                              │ node_task: run, try again, report
      │ ◀── told of each node that has ended ────────┤
      │ ◀── the values that the caller wants ────────┘
      ▼
    table, records, errors with call paths and the worker of the engine
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from entangle import _remote
from entangle._engines.argument_waits import ArgumentWaits
from entangle._engines.departures import Departures
from entangle._engines.node_task import Failed, Told, error_of
from entangle._engines.shipment import Parcel, Shipment
from entangle._remote.wire.printed_lines import show_lines
from entangle._run import Observer
from entangle._run.completions import Tell
from entangle._run.run import Run
from entangle._shared import notes
from entangle._shared.interrupts import Deferred
from entangle._shared.printout import OF_NODE, OF_RUN
from entangle._shared.site import Site, own_lanes_of
from entangle._shared.store import NOWHERE
from entangle._shared.summaries import call_in_short, path_in_short
from entangle._shared.table import DONE, FAILED, FAILED_NODE, FINISHED, NOTING, RECORD, SKIPPED, STARTED_AT, STOP, Table
from entangle._shared.tracebacks import passes_on
from entangle._worker.failures import describe, few_of, note_call, text_of, text_of_used_up
from entangle.errors import (
    EntangleError,
    OptionError,
    ProcessRetryException,
    ProcessTerminatedException,
    RunCancelledError,
    RunTimeoutException,
    add_note,
)
from entangle.flow import HERE, Flow
from entangle.pools import TOKENS

#: Seconds between two looks of observers while nothing comes.
_LOOK = 0.05
#: Seconds for what is told of nodes to come after the values that follow from them.
_LAST_WORDS = 0.25
#: Rows of the table for threads of the engine's workers.
_SLOTS = 256


class News(Protocol):
    """What an engine tells of a run: each item is put into the run's queue."""

    def put(self, item: tuple[Any, ...], /) -> None:
        """`("heard", worker, items)`: what that worker says. `("done", node)`: a node that the
        caller wants is there. `("lost", node, why)`: its worker is gone, and it is not run again,
        or so its report says: `("failed", node, report)`, where others take that as a value.
        `("broken", error)`: the engine cannot go on.

        Items: `("told", Told)`: a node has ended. `("begun", node, ns)`: it begins, by the clock
        there; for `wait=`. `("printed", node, stream, lines)`. `("records", segments)`: of runs
        that bodies have called there."""


class EngineJob(Protocol):
    """The nodes of a run at an engine: those that were sent to it."""

    def send(self, parcels: Sequence[Parcel], kept: Collection[int], urgent: bool) -> None:
        """Send nodes. The values of `kept` are taken by others that come later. `urgent`: the
        caller waits for the end of each."""

    def give(self, node: int, value: Failed) -> None:
        """Have this in the place of the value of a node that is not sent."""

    def drop(self, nodes: Sequence[int]) -> None:
        """No node that comes later takes the values of these any more."""

    def values(self, nodes: Sequence[int]) -> list[Any]:
        """The values of these nodes, which are done: `Failed` in place of some. Raises what keeps
        the engine from giving them."""

    def look(self) -> None:
        """Raise what keeps the engine from going on. Called now and then."""

    def stop(self) -> None:
        """Drop what has not begun, and stop what runs, as far as the engine can."""

    def end(self) -> None:
        """Let the engine forget the run."""


class Engine(Protocol):
    """An engine that runs whole graphs."""

    #: As errors name it: `Dask at tcp://10.0.0.7:8786`.
    title: str

    def begin(self, shipment: Shipment, wanted: Sequence[int], news: News, run: str) -> EngineJob:
        """Begin a run whose caller wants the values of these nodes. Nothing is sent yet."""


class EngineRun(Run):
    """One execution of a flow on another engine.

    With `tell`, the kept nodes are told to it as they end, and the value is None.
    """

    def __init__(
        self,
        engine: Engine,
        flow: Flow,
        way: str | None,
        observer: Observer | None,
        timeout: float | None,
        workers: int | None,
        tell: Tell | None = None,
    ) -> None:
        super().__init__(flow, way, observer, timeout, workers)
        self.engine = engine
        self._tell = tell
        self._news: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        #: The last node, where it is run by the calling thread, as in any run.
        self._here = self._last_here()
        self._slots: dict[tuple[str, int], int] = {}
        self._workers: dict[str, int] = {}
        self._offset = 0
        self._parcels: dict[int, Parcel] = {}
        #: Nodes that may be sent since others have ended.
        self._freed: list[int] = []
        self._heard = 0
        self._refuse(way)

    @property
    def name(self) -> str:
        """The name of the run: the task whose value it gives."""
        if self._tell is None:
            return super().name
        return self.flow.name(min(self.flow.kept)) if len(self.flow.kept) == 1 else "as_completed"

    @property
    def workers_started(self) -> int:
        """How many workers of the engine have run nodes so far."""
        return len(self._workers)

    def cancel(self) -> None:
        """End the run from another thread; `value` raises RunCancelledError there."""
        self.cancelled = True
        self._news.put(("look",))

    def _last_here(self) -> int:
        """The sink, if the calling thread runs its body and no term of it needs a worker; else
        -1."""
        flow = self.flow
        if self._tell is not None or len(flow.sinks) != 1:
            return -1
        body = flow.body(flow.sinks[0])
        plain = not (body.retry or body.pools or body.timeout or body.shared_memory)
        return flow.sinks[0] if body.carrier == HERE and plain else -1

    def _refuse(self, way: str | None) -> None:
        """Raise OptionError for what cannot hold on another engine."""
        title = self.engine.title
        if way is not None:
            raise OptionError(f"start={way!r}: {title} starts its workers itself; leave start= out")
        for body in self.flow.bodies:
            tokens = [pool for pool in body.pools if pool.kind == TOKENS]
            if tokens and body.retry:
                raise OptionError(
                    f"task {body.name!r}: retry={body.retry} and {tokens[0]} cannot both be kept on {title}, where a worker tries again by "
                    "itself; leave retry= out and call the task again, or limit it by at_once= alone"
                )

    # The run --------------------------------------------------------------------------------------

    def _execute(self) -> Any:
        flow = self.flow
        expires = time.monotonic() + self.timeout if self.timeout is not None else None
        lanes = own_lanes_of(flow)
        table = Table.create(flow, _SLOTS, lanes, None)
        nodes = [node for node in range(flow.count) if node != self._here]
        self._departures = Departures(flow, nodes, self.workers or None)
        self._waits = ArgumentWaits(flow, range(flow.count))
        site = Site(flow, table, "", self._departures.open_pools(), "", (-1, -1), (-1, -1), -1)
        site.own_id, site.context = self.id, self.context
        self.table, self._site = table, site
        self._offset = time.monotonic_ns() - time.time_ns()
        with Deferred() as deferred:
            try:
                for observer in self.observers:
                    observer.started(self)
                with deferred.lifted():
                    value = self._through(site, expires)
                table.header[FINISHED] = 1
                return value
            except BaseException as error:
                self.raised = error
                raise
            finally:
                table.header[STOP] = 1
                self._note_readiness(table)
                for observer in self.observers:
                    observer.ended(self)
                self._departures.close()
                # The error holds the frames that hold this run: a reference cycle.
                self.raised = self.table = self._site = None
                site.leave()

    @passes_on
    def _through(self, site: Site, expires: float | None) -> Any:
        """Have the engine run the flow. Gives the value of its sink."""
        flow, here = self.flow, self._here
        if self._tell is not None:
            wanted = sorted(flow.kept)
        else:
            wanted = flow.sources(here) if here >= 0 else [flow.sinks[0]]
        values: dict[int, Any] = {}
        if wanted:
            away = frozenset((here,)) if here >= 0 else frozenset[int]()
            shipment = Shipment(self.id, flow, away, site.table.header[NOTING])
            self._parcels = {parcel.node: parcel for parcel in shipment.parcels}
            job = self.engine.begin(shipment, wanted, self._news, self.id)
            try:
                self._send(job, self._departures.begin())
                values = self._follow(site, job, wanted, expires)
            except BaseException:
                with Deferred():
                    job.stop()
                raise
            finally:
                with Deferred():
                    job.end()
        if self._tell is not None:
            return None
        return self._run_here(site, values) if here >= 0 else values[wanted[0]]

    @passes_on
    def _follow(self, site: Site, job: EngineJob, wanted: Sequence[int], expires: float | None) -> dict[int, Any]:
        """Wait until the wanted nodes are done; note what is told meanwhile."""
        left, values = set(wanted), dict[int, Any]()
        look = time.monotonic() + _LOOK
        while left:
            if self.cancelled:
                raise RunCancelledError("the run was cancelled before it had a value")
            now = time.monotonic()
            if expires is not None and now >= expires:
                raise self._timed_out(site)
            if now >= look:
                job.look()
                for observer in self.observers:
                    observer.looked(self)
                look = time.monotonic() + _LOOK
            self._send(job, self._departures.admitted(site))
            self._give_up_late(site, job)
            pause = _LOOK if expires is None else min(_LOOK, max(0.0, expires - now))
            pause = self._departures.patience(site, pause)
            try:
                news = self._news.get(timeout=pause)
            except queue.Empty:
                continue
            self._hear(site, news)
            if self._freed:
                freed, self._freed = self._freed, []
                self._send(job, freed)
            if news[0] == "done" and news[1] in left:
                left.discard(news[1])
                if self._tell is not None:
                    self._tell_one(site, news[1], job.values([news[1]])[0])
        if self._tell is None:
            values = dict(zip(wanted, job.values(wanted), strict=True))
        self._hear_the_rest(site)
        for node, value in values.items():
            if type(value) is Failed and (self._here < 0 or node not in self.flow.accepts.get(self._here, ())):
                raise self._error(site, value.cause, value.report)
        return values

    def _send(self, job: EngineJob, nodes: Sequence[int]) -> None:
        """Send nodes to the engine."""
        if nodes:
            job.send([self._parcels[node] for node in nodes], self._departures.kept(nodes), self._departures.any)
            job.drop(self._departures.not_needed(nodes))

    def _give_up_late(self, site: Site, job: EngineJob) -> None:
        """Fail nodes whose arguments come later than `wait` says."""
        for node, error in self._waits.late(site.table, time.monotonic_ns()):
            note_call(error, self.flow, node, call_in_short(self.flow, node))
            if self.flow.guarded is None or not self.flow.guarded[node]:
                site.table.states[node] = FAILED
                site.table.header[FAILED_NODE] = node
                raise error
            report = {**describe(error, self.flow.name(node), 1, ""), "path": "", "text": ""}
            job.give(node, Failed(node, report))
            self._hear(site, ("failed", node, report))
            self._send(job, self._departures.give_up(node))

    def _hear_the_rest(self, site: Site) -> None:
        """Wait a moment for what workers say of nodes whose values have come already."""
        until = time.monotonic() + _LAST_WORDS
        count = self.flow.count - (self._here >= 0)
        while self._heard < count and (left := until - time.monotonic()) > 0:
            try:
                self._hear(site, self._news.get(timeout=left))
            except queue.Empty:
                return

    def _hear(self, site: Site, news: tuple[Any, ...]) -> None:
        if news[0] == "heard":
            for item in news[2]:
                self._hear_item(site, news[1], item)
        elif news[0] == "lost":
            self._lost(site, *news[1:])
        elif news[0] == "failed":
            self._note(site, "", Told(news[1], FAILED, 0, 0, 0, -1, 1, None, news[2], [], news[1]))
            self._freed += self._departures.ended(news[1])
        elif news[0] == "broken":
            raise news[1]

    def _hear_item(self, site: Site, worker: str, item: tuple[Any, ...]) -> None:
        """Hear what a worker says."""
        if item[0] == "told":
            told = Told(*item[1])
            self._note(site, worker, told)
            if self._departures.any:
                self._freed += self._departures.ended(told.node)
        elif item[0] == "records":
            if site.record:
                _remote.travels().keep(os.path.dirname(site.record), item[1])
        elif item[0] == "begun":
            self._waits.begun(item[1], item[2] + self._offset)
        elif item[0] == "printed":
            _, node, stream, data = item
            if site.table.header[NOTING]:
                self._keep_printed(site, node, data)
            where = worker.partition(" at ")[0]
            show_lines(f"[{where} {path_in_short(self.flow, node)}] ", data.removesuffix(b"\n"), stream == 2)

    @staticmethod
    def _keep_printed(site: Site, node: int, data: bytes) -> None:
        """Keep for records what a body has printed: its beginning."""
        known = site.printed.get(node, "")
        if len(known) < OF_NODE and sum(map(len, site.printed.values())) < OF_RUN:
            site.printed[node] = known + data.decode("utf-8", "replace")

    def _note(self, site: Site, worker: str, told: Told) -> None:
        """Write into the table what has become of a node. Raises its error, if that ends the
        run."""
        table, node = site.table, told.node
        if table.states[node] not in (DONE, FAILED, SKIPPED):
            self._heard += 1
        if told.state == SKIPPED:
            RECORD.pack_into(table.records, node * RECORD.size, 0, 0, told.cause, 0, NOWHERE, 0, 0, 0)
            table.states[node] = SKIPPED
            return
        if worker:
            self._workers.setdefault(worker, len(self._workers))
        slot = self._slots.setdefault((worker, told.pid), 1 + len(self._slots) % (_SLOTS - 1))
        self._waits.begun(node, told.started + self._offset)
        began = max(told.started + self._offset, table.header[STARTED_AT])
        ended = max(told.ended + self._offset, began)
        RECORD.pack_into(table.records, node * RECORD.size, began, ended, 0, 0, NOWHERE, told.pid, told.cpu, slot)
        table.attempts[node] = min(told.attempt - 1, 255)
        table.states[node] = told.state
        for number, (text, begun, over) in enumerate(told.tries, 1):
            begun, over = begun + self._offset, over + self._offset
            site.tries.append(
                {"node": node, "attempt": number, "began": begun, "ended": over, "pid": told.pid, "worker": slot, "error": text}
            )
        if told.state == DONE:
            if table.header[NOTING]:
                site.noted.append(notes.frame_of([node, told.noted], [], [node, worker, "", 0]))
            return
        if table.header[NOTING]:
            site.noted.append(notes.frame_of([], [], [node, worker, "", 0]))
        assert told.report is not None
        told.report["worker"], told.report["tries"] = worker, told.tries
        site.errors[node] = error = self._made(node, told.report, told.attempt)
        site.failed[node] = told.report["call"]
        if self.flow.guarded is None or not self.flow.guarded[node]:
            if table.header[FAILED_NODE] < 0:
                table.header[FAILED_NODE] = node
            raise error

    def _lost(self, site: Site, node: int, why: str) -> None:
        """A node is not run again, whose worker is gone. Where others take its failure as a value,
        the engine gives it to them."""
        if self.flow.guarded is not None and self.flow.guarded[node]:
            return
        error = ProcessTerminatedException(why)
        note_call(error, self.flow, node, call_in_short(self.flow, node))
        site.table.states[node] = FAILED
        site.table.header[FAILED_NODE] = node
        raise error

    def _made(self, node: int, report: dict[str, Any], attempts: int) -> BaseException:
        """The error of a failed node, as the caller gets it."""
        flow = self.flow
        error = error_of({**report, "path": "", "call": ""})
        note_call(error, flow, node, report["call"])
        if worker := report.get("worker"):
            add_note(error, f"worker: {worker}")
        tries = report.get("tries", [])
        if not tries or len(tries) < flow.body(node).retry:
            return error
        used_up = ProcessRetryException(text_of_used_up(flow.name(node), attempts, type(error).__name__, text_of(error)))
        used_up.__cause__ = error
        for note in few_of([f"attempt {number}: {text}" for number, (text, _, _) in enumerate(tries, 1)]):
            add_note(used_up, note)
        note_call(used_up, flow, node, report["call"])
        return used_up

    def _error(self, site: Site, node: int, report: dict[str, Any]) -> BaseException:
        """The error of a failed node: that of which we were told, else what its value says."""
        error = site.errors.get(node)
        if error is None:
            error = self._made(node, report, 1)
        site.table.states[node] = FAILED
        return error

    def _tell_one(self, site: Site, node: int, value: Any) -> None:
        assert self._tell is not None
        if type(value) is Failed:
            self._tell(node, None, self._error(site, value.cause, value.report))
        else:
            self._tell(node, value, None)

    # The last node --------------------------------------------------------------------------------

    @passes_on
    def _run_here(self, site: Site, values: dict[int, Any]) -> Any:
        """Run the last node in this thread."""
        flow, node, table = self.flow, self._here, site.table

        def value_of(source: int) -> Any:
            value = values[source]
            return self._error(site, value.cause, value.report) if type(value) is Failed else value

        args, named = flow.arguments(node, value_of)
        began = time.monotonic_ns()
        state = FAILED
        try:
            value = flow.body(node).function(*args, **named)
            state = DONE
            return value
        except Exception as error:
            table.header[FAILED_NODE] = node
            note_call(error, flow, node, call_in_short(flow, node, [*args, *named.values()]))
            raise
        finally:
            RECORD.pack_into(table.records, node * RECORD.size, began, time.monotonic_ns(), 0, 0, NOWHERE, os.getpid(), -1, 0)
            table.states[node] = state

    # Told at the end ------------------------------------------------------------------------------

    def _timed_out(self, site: Site) -> RunTimeoutException:
        flow, table = self.flow, site.table
        done = bytes(table.states).count(bytes((DONE,)))
        return RunTimeoutException(
            f"the run of {self.name!r} took longer than its timeout of {self.timeout:g} s: "
            f"{done:,} of {flow.count:,} tasks were done on {self.engine.title}"
        )

    def _note_readiness(self, table: Table) -> None:
        """Note when each node had all that it takes."""
        flow, ended = self.flow, table.ended
        for node in range(flow.count):
            table.ready_at[node] = max((ended[source] for source in flow.sources(node)), default=table.header[STARTED_AT])


def broken(title: str, why: str) -> EntangleError:
    """The error of an engine that cannot go on."""
    return EntangleError(f"{title}: {why}")
