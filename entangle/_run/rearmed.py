"""Runs whose rows are armed again and again: values are fed while workers run.

::

    feed(port, value)                     from any thread; never waits, False where no set is free
      │ the value into the store, a free set of rows armed, its first nodes made ready
      ▼
    [ source ─▶ node ─▶ node ─▶ gather ]  one set of rows; a port has many of them, alike
                                  │       workers run the nodes as those of any other flow
                                  ▼
    client.collect(port, label, values)   in the supervisor: a gather that is ready ends a set;
                                          its values are released, its rows disarmed, it is free

Such a flow has no end of its own: the `Client` ends it. The client also says what a worker's death
means to a node, since the node may hold several items of which some are done.
"""

from __future__ import annotations

import collections
import os
import pickle
import posix
import threading
import time
from array import array
from typing import Any, NamedTuple, Protocol

from entangle import _run
from entangle._run import Observer
from entangle._run.deaths import Deaths
from entangle._run.history import History
from entangle._run.progress import observer_for
from entangle._run.run import Run
from entangle._run.supervisor import PATIENCE, Supervisor
from entangle._run.worker_process import WorkerProcess
from entangle._shared.home import private
from entangle._shared.site import Site
from entangle._shared.store import IN_SEGMENT, NOWHERE, SEGMENT_SIZE, Place, Store
from entangle._shared.table import (
    BUSY,
    DONE,
    FINISHED,
    GONE,
    IDLE,
    LANES,
    READY,
    READY_COUNT,
    RECORD,
    RESTING,
    RUNNING,
    SLOT,
    STARTED_AT,
    STATE,
    UNARMED,
    UNCLAIMED,
    WAITING,
    Table,
)
from entangle._shared.tracebacks import passes_on
from entangle._shared.whereabouts import stage_places
from entangle._shared.whole_files import write_whole
from entangle._watch.outline import HOW_FAR
from entangle._worker.worker import Worker
from entangle.cookies import available_cpus, budget_of
from entangle.errors import EntangleError, RunAtImportError
from entangle.flow import HERE, IN_CALLER, PROCESS, THREAD, Body, Flow, Shape

#: The serial number of the store through which values are fed. No worker has it.
_FEEDER = 1 << 30


class Row(NamedTuple):
    """A node of a port: its body, and the rows of the port that it takes. Row 0 is what is fed."""

    body: Body
    inputs: tuple[int, ...]


class Port(NamedTuple):
    """Where values are fed: `rows` that they go through, from source to gather, in `sets`
    copies."""

    rows: tuple[Row, ...]
    sets: int
    first: int

    @property
    def width(self) -> int:
        """Rows of one set."""
        return len(self.rows)


def _unused(*_: Any) -> None:
    """The body of sources and gathers. It never runs."""


_unused.of_entangle = True  # type: ignore[attr-defined]

SOURCE = Body(_unused, "source", HERE)
GATHER = Body(_unused, "gather", HERE)


def unroll(templates: list[tuple[list[Row], int]], limits: list[int]) -> tuple[Flow, list[Port]]:
    """Make the flow that has each list of rows as many times as given, and the ports to feed it.

    `limits` are those of `Flow`.
    """
    bodies: dict[int, int] = {}
    known: list[Body] = []
    shapes: dict[int, int] = {}
    body_of, shape_of, starts, inputs = array("i"), array("i"), array("q", (0,)), array("q")
    ports = []
    for rows, sets in templates:
        ports.append(Port(tuple(rows), sets, len(body_of)))
        for row in rows:
            if id(row.body) not in bodies:
                bodies[id(row.body)] = len(known)
                known.append(row.body)
        for _ in range(sets):
            first = len(body_of)
            for row in rows:
                body_of.append(bodies[id(row.body)])
                shape_of.append(shapes.setdefault(len(row.inputs), len(shapes)))
                inputs.extend(first + taken for taken in row.inputs)
                starts.append(len(inputs))
    flow = Flow(known, [Shape(count) for count in shapes], body_of, shape_of, starts, inputs, [], leaves=0)
    flow.rearmed = True
    flow.limits = limits
    stage = 0
    for port in ports:
        flow.stage_of.extend((-1, *range(stage, stage + port.width - 2), -1) * port.sets)
        stage += port.width - 2
    return flow, ports


class Client(Protocol):
    """Feeds a run and takes what comes out. The supervisor calls it, in its thread; it must not
    wait."""

    name: str
    #: Whether any number of values may go through, and not only one.
    many: bool

    def failure(self) -> BaseException | None:
        """The error that the caller gets instead of a value, if any. The run itself is in order
        even if bodies failed."""

    def begin(self, supervisor: RearmedSupervisor) -> None:
        """The run has begun: values may be fed from now on."""

    def collect(self, port: int, label: Any, values: list[Any], spent: int, size: int) -> None:
        """A set is done that was fed with this label, whose second part is how many items it had.
        `values` are the inputs of its gather,
        `spent` the time of its bodies together (ns), `size` the room of its values in the store
        (bytes)."""

    def freed(self, port: int) -> None:
        """A set has become free."""

    def lost(self, node: int, slot: int, value: Any, error: Exception, directory: str) -> tuple[Any, float]:
        """The worker of a node that took `value` is gone. Return how far it had come, for the next
        attempt, and the seconds until that. Its journal is in `directory`."""

    def tick(self) -> float:
        """Do what is due now. Return the seconds until the next time."""

    def told(self) -> dict[str, Any]:
        """What the client knows of how far it is, as JSON takes it."""


class RearmedRun(Run):
    """One execution of a flow made by `unroll`. Its value is None, when the client has ended it.
    `feeds` are the rows that feed other ports, as `History` takes them."""

    def __init__(
        self,
        flow: Flow,
        ports: list[Port],
        client: Client,
        way: str | None = None,
        observer: Observer | None = None,
        feeds: dict[int, tuple[int, int]] | None = None,
    ) -> None:
        title = elsewhere.title() if _run.elsewhere is not None and (elsewhere := _run.elsewhere()) is not None else ""
        if title:
            raise EntangleError(
                f"{client.name!r} is a stream of values through processes of this machine, which {title} cannot take; "
                "call it outside of the block of entangle.engine"
            )
        super().__init__(flow, way, observer or observer_for(None))
        self.ports = ports
        self.client = client
        self.history: History = History([port.rows for port in ports], feeds or {})
        #: When how far it is will be written down for others (seconds, of the monotonic clock).
        self._told_at = 0.0

    @property
    def name(self) -> str:
        """The name of the run: the first node of the dataflow."""
        return self.client.name

    def reason(self) -> BaseException | None:
        """The error that the caller gets instead of a value."""
        return self.client.failure() or self.raised

    @property
    def many(self) -> bool:
        """Whether it is a stream: any number of values may go through it."""
        return self.client.many

    def _make_supervisor(self, *known: Any) -> Supervisor:
        supervisor = RearmedSupervisor(*known)
        supervisor.ports, supervisor.client = [_Sets(port, supervisor.table) for port in self.ports], self.client
        supervisor.history = self.history
        self.history.began = supervisor.table.header[STARTED_AT]
        return supervisor

    def _looked(self) -> None:
        super()._looked()
        now = time.monotonic()
        if self._outlined and now >= self._told_at and isinstance(self.supervisor, RearmedSupervisor):
            if self._seen_in:
                write_whole(os.path.join(self._seen_in, HOW_FAR), self.how_far())
            # What it costs grows with the history: at most a fiftieth of the time.
            self._told_at = now + max(0.3, 50 * (time.monotonic() - now))

    def how_far(self) -> dict[str, Any]:
        """What the stages have done so far, and what the client says, as JSON takes it."""
        told = {**self.history.told(), **self.client.told()}
        if isinstance(self.supervisor, RearmedSupervisor):
            for stage, under_way in zip(told["stages"], self.supervisor.under_way(), strict=True):
                stage["running"], stage["waiting"] = under_way
            places = stage_places(self.supervisor.site)
            if places:
                number = {id(body): at for at, body in enumerate(self.flow.bodies)}
                for stage, known in zip(told["stages"], self.history.stages, strict=True):
                    if (place := places.get(number[id(known.body)])) is not None:
                        stage["place"] = place
        return told

    @passes_on
    def _outcome(self, supervisor: Supervisor, site: Site, store: Store | None) -> Any:
        self._raise_failure(supervisor, site)


#: Steps from a chunk to the value of one item.
_CHUNK = 2


class _Sets:
    """The sets of rows of one port: which are free, and what an armed set looks like."""

    def __init__(self, port: Port, table: Table) -> None:
        self.port = port
        flow = table.flow
        assert flow is not None
        first, width = port.first, port.width
        self.free = collections.deque(range(first, first + port.sets * width, width))
        self.labels: dict[int, Any] = {}
        fed = [sum(0 in row.inputs for row in (row,)) for row in port.rows]
        self.pending = array("i", [flow.pending[first + at] - fed[at] for at in range(width)])
        starts = flow.consumer_starts
        self.readers = array("i", [starts[first + at + 1] - starts[first + at] for at in range(width)])
        self.states = bytes((DONE, *(WAITING,) * (width - 1)))
        self.ready = [at for at in range(1, width) if not self.pending[at]]
        #: Whether processes take what is fed. It has to be in the store then.
        self.stored = not flow.inline and any(0 in row.inputs and row.body.carrier not in IN_CALLER for row in port.rows)
        self.results = port.rows[-1].inputs


class _RearmedDeaths(Deaths):
    """What the death of a worker means to a rearmed run: the client says."""

    def __init__(self, supervisor: RearmedSupervisor) -> None:
        super().__init__(supervisor.site, supervisor.store, supervisor.roster)
        self._supervisor = supervisor

    def lost(self, node: int, slot: int, error: Exception, begun: bool) -> None:
        """Ask the client how far a lost node had come and when it goes on."""
        flow, table = self.site.flow, self.table
        pause = 0.0
        if begun:
            (taken, *_) = flow.inputs[flow.starts[node] : flow.starts[node + 1]]
            supervisor, in_process = self._supervisor, slot in self.roster.processes or flow.body(node).carrier not in IN_CALLER
            progress, pause = supervisor.client.lost(node, slot, supervisor.value_of(taken), error, self.site.directory)
            keep_progress(self.site, node, progress, in_process)
            table.attempts[node] = 1
        groups = flow.body(node).limits
        if groups:
            with table.locked(UNCLAIMED):
                table.release_limits(groups, self.site.lanes, flow.body_of)
        # Not WAITING: a recount would make it ready at once.
        table.states[node] = UNARMED
        self.retries.append((time.monotonic() + pause, node))
        self.retries.sort()

    def goes_on_after(self, node: int, error: Exception) -> bool:
        """Always true: the client handles every loss."""
        return True

    def put_back(self) -> None:
        """Make nodes ready again whose pause between two attempts is over, in threads as well."""
        super().put_back()
        self._supervisor.wake_idle()

    def clear_up(self, worker: WorkerProcess) -> None:
        """Free what a worker held, and the segment of the store that it was filling."""
        super().clear_up(worker)
        table = self.table
        if self.store is None or table.header[FINISHED]:
            return

        def unread(segment: int) -> int:
            low, high = segment * SEGMENT_SIZE, (segment + 1) * SEGMENT_SIZE
            found = 0
            for node in range(table.nodes):
                if table.states[node] == DONE and table.readers[node] > 0:
                    _, _, offset, _, where, _, _, _ = table.record(node)
                    found += where == IN_SEGMENT and low <= offset < high
            return found

        with table.locked(UNCLAIMED):
            self.store.seal_for(worker.slot, unread)


class RearmedSupervisor(Supervisor):
    """Supervises a rearmed run, whose workers stay as long as it lasts."""

    client: Client
    ports: list[_Sets]
    history: History

    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        self._feeding = threading.Lock()
        self._hand = Worker(self.site, UNCLAIMED, HERE, _FEEDER)
        self.width = budget_of(available_cpus())
        self.is_over = False
        self._thread_nodes: int | None = None
        #: Set under the lock at the end of the run: its store and table are about to be closed, and
        #: other threads may still feed.
        self._closed = False

    def _make_deaths(self) -> Deaths:
        return _RearmedDeaths(self)

    # Feeding, from any thread ---------------------------------------------------------------------

    def feed(self, port: int, value: Any, label: Any) -> bool:
        """Feed a value; the second part of its label is how many items are in it. Return False
        where no set is free. Raises what storing the value raises."""
        try:
            return self._feed(port, value, label)
        except BaseException:
            self.table.let_go()  # the main thread may be interrupted anywhere
            raise

    def _feed(self, port: int, value: Any, label: Any) -> bool:
        sets, table, site = self.ports[port], self.table, self.site
        with self._feeding:
            if self._closed or not sets.free:
                return False
            place: Place = (NOWHERE, 0, 0)
            if sets.stored:
                place = self._hand.store.put(value)
            first = sets.free.popleft()
            last = first + sets.port.width
            sets.labels[first] = label
            now = time.monotonic_ns()
            RECORD.pack_into(table.records, first * RECORD.size, now, now, place[1], place[2], place[0], os.getpid(), 0, UNCLAIMED)
            with table.locked(UNCLAIMED):
                site.local[first] = value
                table.pending[first:last] = memoryview(sets.pending)
                table.readers[first:last] = memoryview(sets.readers)
                table.attempts[first:last] = memoryview(bytes(last - first))
                table.states[first:last] = memoryview(sets.states)
                for at in sets.ready:
                    table.ready_at[first + at] = now
                    # Append, so that values are taken in the order in which they were fed.
                    table.append(site.lanes[site.flow.body_of[first + at]], first + at)
                woken, woken_threads, tell = self._hand.count_wakes()
            self._hand.wake(woken, woken_threads)
            if tell:
                site.notify()
        return True

    def wake_idle(self) -> None:
        """Wake as many idle workers as there are nodes ready for them."""
        with self.table.locked(UNCLAIMED):
            woken, woken_threads, _ = self._hand.count_wakes()
        self._hand.wake(woken, woken_threads)

    def nudge(self) -> None:
        """Have `tick` of the client called soon."""
        with self._feeding:
            if not self._closed:
                self.site.notify()

    def over(self) -> None:
        """End the run: nothing is under way, and nothing more is fed. Called in the supervisor's
        thread."""
        with self.table.locked(UNCLAIMED):
            self.table.header[FINISHED] = 1
            self.table.header[IDLE : IDLE + LANES] = memoryview(array("q", bytes(8 * LANES)))
        self.is_over = True

    def supervise(self) -> None:
        """Run until the client ends the run, or it is cancelled."""
        try:
            super().supervise()
        finally:
            with self._feeding:
                self._closed = True

    # Taking out -----------------------------------------------------------------------------------

    def _start_first(self) -> None:
        self.client.begin(self)
        super()._start_first()

    def _run_here(self) -> bool:
        """Collect the sets that are done; in an inline run, after running what is ready."""
        table = self.table
        done = []
        if self.site.flow.inline:
            super()._run_here()
        with table.locked(UNCLAIMED):
            while (node := table.pop(THREAD if self.site.flow.inline else HERE)) >= 0:
                table.states[node] = RUNNING
                done.append(node)
        for node in reversed(done):
            index, sets = next(
                (index, sets) for index, sets in enumerate(self.ports) if node < sets.port.first + sets.port.sets * sets.port.width
            )
            first = node - sets.port.width + 1
            values = [self.value_of(first + at) for at in sets.results]
            records = [table.record(at) for at in range(first + 1, node)]
            spent, size = sum(record[1] - record[0] for record in records), sum(record[3] for record in records)
            label = sets.labels.pop(first)
            self.history.add(index, records, label[1])
            self._disarm(first, sets)
            self.client.collect(index, label, values, spent, size)
            self.client.freed(index)
        return False

    def under_way(self) -> list[tuple[int, int]]:
        """For each stage, how many items are in its body now, and how many wait for it."""
        found: list[tuple[int, int]] = []
        for sets in self.ports:
            inside, waiting = [0] * sets.port.width, [0] * sets.port.width
            for first, label in [*sets.labels.items()]:
                for at, state in enumerate(self.table.states[first : first + sets.port.width].tolist()):
                    if state == RUNNING:
                        inside[at] += label[1]
                    elif state in (READY, UNARMED):
                        waiting[at] += label[1]
            found += zip(inside[1:-1], waiting[1:-1], strict=True)
        return found

    def value_of(self, node: int) -> Any:
        """The value of a node that is done."""
        if node in self.site.local:
            return self.site.local[node]
        assert self.store is not None
        _, _, offset, size, where, _, _, _ = self.table.record(node)
        try:
            return self.store.get((where, offset, size))
        except RunAtImportError:
            raise
        except Exception as problem:
            name = self.site.flow.body(node).name
            what = f"the value of task {name!r} cannot be unpickled in this process"
            raise self.store.unpickling_error(problem, (where, offset, size), what, _CHUNK) from problem

    def _disarm(self, first: int, sets: _Sets) -> None:
        """Release what a set still holds: its results, and values that dead workers had not marked
        as read."""
        table = self.table
        last = first + sets.port.width
        removed = []
        with table.locked(UNCLAIMED):
            for node in range(first, last - 1):
                self.site.local.pop(node, None)
                self.site.resumed.pop(node, None)
                if table.readers[node] > 0 and self.store is not None:
                    _, _, offset, size, where, _, _, _ = table.record(node)
                    file = self.store.release((where, offset, size)) if where != NOWHERE else None
                    if file is not None:
                        removed.append(file)
            table.states[first:last] = memoryview(bytes((UNARMED,)) * sets.port.width)
        for gone in removed:
            assert self.store is not None
            self.store.remove(gone)
        sets.free.append(first)

    # Supervising ----------------------------------------------------------------------------------

    def _sleep(self) -> None:
        """Sleep as any supervisor does, and no longer than the client allows."""
        usual, due = self.pause, self.client.tick()
        if self.is_over:
            return
        self.pause = 0.0 if self.table.header[READY_COUNT + HERE] else min(usual, max(0.0, due))
        asked = self.pause
        super()._sleep()
        if self.pause == asked:  # a worker was started, which wants an earlier look
            self.pause = usual

    def _start_thread(self) -> None:
        """Start no more threads than nodes can run at a time. Threads that wake slowly look too
        few, and a run that lasts would fill every slot."""
        lanes, flow = self.site.lanes, self.site.flow
        if self._thread_nodes is None:
            self._thread_nodes = sum(lanes[body] == THREAD for body in flow.body_of)
        if not self.free:
            self._reclaim()
        if len(self.threads) < self._thread_nodes:
            super()._start_thread()

    def _start_process(self, lane: int) -> None:
        if not self.free:
            self._reclaim()
        super()._start_process(lane)

    def _reclaim(self) -> None:
        """Take back the slots of threads that were abandoned at a deadline and have ended since."""
        slots = self.table.slots
        used = {*self.free, *self.processes, *self.threads, UNCLAIMED}
        self.free += [slot for slot in range(self.table.slot_count) if slot not in used and slots[slot * SLOT + STATE] == GONE]

    def _retire_threads(self, now: int) -> None:
        """Retire none: there are no more threads than nodes."""

    def _retire(self, now: int, ready: int) -> None:
        """Keep as many workers as CPUs; while all of them rest, give their cookies back."""
        header, slots = self.table.header, self.table.slots
        count = len(self.processes)
        if any(slots[slot * SLOT + STATE] in (BUSY, RESTING) for slot in self.processes):
            self.deaths.stillborn = 0  # workers can begin; the earlier ones were killed
        resting = sum(slots[slot * SLOT + STATE] == RESTING for slot in self.processes)
        if resting < count or ready:
            self.idle_since = 0
            if self.entitlement.cookies < count - 1:
                self.entitlement.take_cookies(count - 1 - self.entitlement.cookies)
        if not resting or ready:
            self.idle_since = 0
        elif not self.idle_since:
            self.idle_since = now
        elif now - self.idle_since > PATIENCE * 1e9:
            with self.table.locked(UNCLAIMED):
                sent = max(0, min(count - self.width, header[IDLE + PROCESS]))
                header[IDLE + PROCESS] -= sent
            posix.write(self.site.wake[1], b"." * sent)
            if resting == count:
                self.entitlement.give_cookies(0)
            self.idle_since = 0


# How far a node had come --------------------------------------------------------------------------


def keep_progress(site: Site, node: int, progress: Any, in_process: bool) -> None:
    """Keep how far a node had come, for its next attempt in any process or thread."""
    if not in_process:
        site.resumed[node] = progress
        return
    with open(os.path.join(site.directory, f"resume-{node}"), "wb", opener=private) as file:
        pickle.dump(progress, file, 5)


def progress_of(worker: Worker, node: int) -> Any:
    """How far a node had come before this attempt; None in the first."""
    site = worker.site
    if not site.table.attempts[node]:
        return None
    if not worker.in_process:
        return site.resumed.get(node)
    with open(os.path.join(site.directory, f"resume-{node}"), "rb") as file:
        return pickle.load(file)
