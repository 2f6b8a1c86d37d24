"""The worker loop, which every worker of a run goes through with nobody telling it what to do.

The path of one call::

    call()                                   the invoking process
      │ compile the tree into a Flow
      │ make the run directory, the table, the store
      ├── start worker ──────────────┐
      │                              ▼
      │ supervise:           ┌─▶ take     own range of leaves, ready list, another's range
      │  deadlines           │   gather   values in hand, else from the store
      │  deaths              │   run      the layers, then the function
      │  more workers        │   deliver  ── one consumer, we bring its last argument: go on with it, value in hand,
      │  while others wait   │   │           no lock and no pickle
      │                      │   └────────── else: value into the store; under the lock one pending input fewer for
      │                      │               each consumer; go on with one that became ready, leave the others
      │                      └───────────── on the ready list
      ▼
    value of the root, from the store

A worker that finds nothing sleeps on a pipe until whoever makes a node ready writes a byte.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from entangle._shared import greenlets
from entangle._shared.block import block
from entangle._shared.frames import passes_on
from entangle._shared.interrupts import Terminated
from entangle._shared.notes import COOKIE_WAIT, MOVED, SHORT, WHOLE, Notes
from entangle._shared.pickling import why_not
from entangle._shared.short import call_in_short
from entangle._shared.site import Site, cpu
from entangle._shared.store import IN_SEGMENT, NOWHERE, Place, Store
from entangle._shared.table import (
    BEGUN,
    BUSY,
    COOKIE,
    COUNT,
    CROWDED,
    DONE,
    DOOMED,
    FAILED,
    FAILED_NODE,
    FINISHED,
    GONE,
    HELD_BACK,
    HIGH,
    HUNGRY,
    HUNGRY_FOR_ALL,
    IDLE,
    LANE,
    LIMIT_RUNNING,
    LOW,
    NEXT_NODE,
    NOBODY,
    NODE,
    NOTING,
    OVER,
    POOL_WAITING,
    READY_COUNT,
    RECORD,
    RESTING,
    RUNNING,
    RUNS,
    SHARE,
    SINCE,
    SINKS_LEFT,
    SLOT,
    STATE,
    STOP,
    WAITING_POOL,
)
from entangle._worker import child
from entangle._worker.admission import MOST_TRIED, WAITS, Meter, Seat, admits, commit, learn, release, room, share_of, take
from entangle._worker.child import end_child
from entangle._worker.failures import describe, note_attempt, pause
from entangle._worker.inheritance import in_context_of
from entangle.cookies import bind, jobserver_flags, roam
from entangle.errors import ProcessTerminatedException, RunAtImportError, RunCancelledError, ThreadTerminatedException
from entangle.flow import FRESH, HERE, PROCESS, THREAD, Body

#: Values in hand that were published too: a consumer that this worker runs itself need not read them back.
RECENT = 1024
#: … if they are smaller than this (bytes, pickled): a large one is mapped in no time, and kept it would be there twice.
SMALL = 4096


class _Here(threading.local):
    """The worker that this thread is, if it is one. Of the class: the one that this process is, for threads that bodies start."""

    worker: Worker | None = None


here = _Here()


class Worker:
    """One worker of a run: a process, a thread of the invoking process, or the calling thread itself."""

    def __init__(self, site: Site, slot: int, lane: int, serial: int, store: Store | None = None) -> None:
        self.site = site
        self.slot = slot
        self.serial = serial
        self._store = store
        self.base = slot * SLOT
        self.lane = lane
        self.in_process = lane in (PROCESS, FRESH)
        self.kept_node = NOBODY
        self.kept: Any = None
        self.recent: dict[int, Any] = {}
        #: What the body takes, each node once: it is one reader, however often it names a value.
        self.using: dict[int, None] = {}
        self.spent: list[int] = []
        #: Set in a child that a body has forked: it must not go on as a second one of us.
        self.forked = False
        self.cookie: tuple[int, int] | None = None
        self.roaming: set[int] = set()
        self.nested: list[Callable[[], None]] = []
        #: How many threads of the body wait for nested runs, and the size of the pool whose cookie is lent meanwhile.
        self.waiting = self.lent = 0
        self.lending_guard = threading.Lock()
        #: Our place on a CPU, for the runs that our body waits for.
        self.seat = Seat()
        self.token: object = None
        self.stopped = False
        #: The call that has failed for good, in short, where its arguments are no longer there to be told.
        self.failed = ""
        #: How much CPU the body uses, where the run is crowded.
        self.meter: Meter | None = None
        self.makeflags: str | None = None
        noting = site.table.header[NOTING]
        self.notes = Notes(site.directory, noting, None if self.in_process else site.noted) if noting in (SHORT, WHOLE) else None
        bodies = site.flow.bodies
        self.special = [bool(body.retry or body.pool or body.timed or body.shared_memory) for body in bodies]
        # What such a body takes must be in the store before it runs, so that a second attempt finds it wherever it runs.
        # Where rows are used again, a value in hand could be one of their last use.
        self.durable = [body.retry > 0 or site.flow.rearmed for body in bodies]
        self.pooled = [body.pool for body in bodies]
        self.limited = [body.limits for body in bodies]

    @property
    def store(self) -> Store:
        """The way to the store, opened when first used: a run of threads alone needs none."""
        if self._store is None:
            self._store = Store(self.site.directory, self.site.table, self.slot, self.serial, self.site.spill)
            self._store.elsewhere = self.site.elsewhere
            self.site.stores.append(self._store)
        return self._store

    def node(self) -> int:
        """The node that this worker runs."""
        running: int = self.site.table.slots[self.base + NODE]
        return running

    # The loop ----------------------------------------------------------------------------------------------

    @passes_on
    def work(self) -> None:
        """Run nodes until there is nothing left to run."""
        site, flow, table = self.site, self.site.flow, self.site.table
        slots, base = table.slots, self.base
        bodies, body_of, starts, inputs = flow.bodies, flow.body_of, flow.starts, flow.inputs
        constants, shapes, shape_of, special = flow.constants, flow.shapes, flow.shape_of, self.special
        clock, value_of, deliver = time.monotonic_ns, self._value_of, self._deliver
        if self.lane == THREAD and site.context is not None:
            bodies = [Body(*body)._replace(function=in_context_of(site.context, body.function)) for body in bodies]
        plain = [shape.templates is None and not shape.keywords for shape in shapes]
        slots[base + LANE] = self.lane
        slots[base + STATE] = BUSY
        args: Any = ()
        named: dict[str, Any] = {}
        value: Any = None
        node = self._take()
        while node >= 0:
            which = body_of[node]
            first, last = starts[node], starts[node + 1]
            try:
                if special[which]:
                    value, started, ended = self._run_special(node, bodies[which])
                else:
                    if first == last:
                        args = ()
                    elif plain[shape_of[node]]:
                        args = [constants[~x] if x < 0 else value_of(x) for x in inputs[first:last]]
                    else:
                        args = None
                    if args is None:
                        args, named = flow.arguments(node, value_of)
                        self.kept_node, self.kept = NOBODY, None
                        slots[base + BEGUN] = RUNS
                        started = slots[base + SINCE] = clock()
                        value = bodies[which].function(*args, **named)
                    else:
                        self.kept_node, self.kept = NOBODY, None
                        slots[base + BEGUN] = RUNS
                        started = slots[base + SINCE] = clock()
                        value = bodies[which].function(*args)
                    ended = clock()
            except BaseException as error:
                if self.forked:
                    end_child(error)
                given = args if args is None or first == last or plain[shape_of[node]] else [*args, *named.values()]
                args = value = None
                if self._is_the_callers(error):
                    raise
                self._fail(node, error, given)
                given = None
                if self.lane == FRESH:
                    break
                node = self._take()
                continue
            if self.forked:
                end_child(None)
            args = None
            node = deliver(node, value, started, ended)
            if node < 0:
                if self.lane == FRESH:
                    break  # its process was for that body alone
                value = None
                node = self._take()
        slots[base + STATE] = GONE

    def _value_of(self, node: int) -> Any:
        """The value of a node that the next body takes."""
        if node == self.kept_node:
            return self.kept
        self.using[node] = None
        if node in self.recent:
            # A body with `retry` takes it from the store, fresh for every attempt.
            return self.recent[node]
        if not self.in_process and node in self.site.local:
            return self.site.local[node]
        _, _, offset, size, where, _, _, _ = RECORD.unpack_from(self.site.table.records, node * RECORD.size)
        try:
            if where == IN_SEGMENT or self.notes is None:
                return self.store.get((where, offset, size))
            began = time.monotonic_ns()
            value = self.store.get((where, offset, size))
            self.notes.extra(self.site.table.slots[self.base + NODE], MOVED, time.monotonic_ns() - began)
            return value
        except RunAtImportError:
            raise
        except Exception as problem:
            flow = self.site.flow
            names = flow.body(node).name, flow.body(self.node()).name
            raise self.store.not_remade(
                problem, (where, offset, size), "the value of task {!r} cannot be made again in the process of task {!r}".format(*names)
            ) from problem

    def _deliver(self, node: int, value: Any, started: int, ended: int) -> int:
        """Publish a value and give the node to go on with, or NOBODY."""
        site = self.site
        flow, table = site.flow, site.table
        starts, consumers = flow.consumer_starts, flow.consumers
        first, last = starts[node], starts[node + 1]
        if self.using:
            self.spent += self.using
            self.using.clear()
        if last - first == 1 and self.in_process:
            consumer = consumers[first]
            which = flow.body_of[consumer]
            if (
                table.pending[consumer] == 1
                and site.lanes[which] == self.lane
                and not self.durable[which]
                and not flow.bodies[which].pool
                and not table.header[STOP]
                and not table.header[CROWDED]
            ):
                # Everybody else has delivered, so nobody but us will touch the consumer: no lock. The order of the
                # writes is what `recount` relies on.
                slots, base = table.slots, self.base
                if self.notes is not None:
                    self.notes.value(node, value, ended - started)
                RECORD.pack_into(table.records, node * RECORD.size, started, ended, 0, 0, 0, _pid, cpu(), self.slot)
                slots[base + BEGUN] = OVER
                slots[base + NEXT_NODE] = consumer
                table.states[node] = DONE
                table.pending[consumer] = 0
                table.ready_at[consumer] = ended
                table.states[consumer] = RUNNING
                slots[base + NODE] = consumer
                slots[base + BEGUN] = 0
                slots[base + COUNT] += 1
                self.kept_node, self.kept = node, value
                return consumer
        return self._publish(node, value, started, ended, first, last)

    def _publish(self, node: int, value: Any, started: int, ended: int, first: int, last: int) -> int:
        site = self.site
        flow, table = site.flow, site.table
        header, slots, pending = table.header, table.slots, table.pending
        body_of, lanes = flow.body_of, site.lanes
        takers = flow.consumers[first:last]
        place: Place = (NOWHERE, 0, 0)
        in_process = self.in_process
        slots[self.base + BEGUN] = OVER
        if in_process and (first == last or flow.rearmed):
            flush()  # the caller goes on when it has this value: half a line printed by a body comes before that
        if in_process or any(lanes[body_of[taker]] in (PROCESS, FRESH) for taker in takers):
            try:
                value, place = self._stored(node, value)
            except (OSError, MemoryError) as error:
                self._fail(node, error)
                return NOBODY
            except Exception:
                self._fail(node, why_not(value, f"the value of task {flow.body(node).name!r}"))
                return NOBODY
        if self.notes is not None:
            self._note(node, value, started, ended, place, first == last)
            if first == last:
                self.notes.flush()  # the run is over when it has this value
        if in_process:
            RECORD.pack_into(table.records, node * RECORD.size, started, ended, place[1], place[2], place[0], _pid, cpu(), self.slot)
        used = self._used()
        removed: list[Place] = []
        finished = tell = False
        woken = woken_threads = pushed = 0
        chosen = NOBODY
        if last - first == 1 and in_process and place[2] < SMALL and not self.durable[body_of[takers[0]]]:
            recent = self.recent
            recent[node] = value
            if len(recent) > RECENT:
                del recent[next(iter(recent))]
        table.lock(self.slot)
        try:
            if slots[self.base + NODE] != node or table.states[node] != RUNNING:
                # Past its deadline, and given up: the value is dropped.
                return NOBODY
            if not in_process:
                RECORD.pack_into(table.records, node * RECORD.size, started, ended, place[1], place[2], place[0], _pid, cpu(), self.slot)
                site.local[node] = value
            table.states[node] = DONE
            slots[self.base + COUNT] += 1
            if used is not None:
                learn(table, body_of[node], *used)
            if groups := self.limited[body_of[node]]:
                pushed += table.one_fewer(groups, lanes, body_of)
            for taker in reversed(takers):
                left = pending[taker] - 1
                pending[taker] = left
                if left == 0:
                    table.ready_at[taker] = ended
                    table.push(lanes[body_of[taker]], taker)
                    pushed += 1
                    if header[HELD_BACK] and share_of(table, body_of[taker]) <= WAITS:
                        header[HELD_BACK] = 0
            if self.spent:
                self._let_go(removed)
            if first == last:
                header[SINKS_LEFT] -= 1
                if header[SINKS_LEFT] == 0:
                    header[FINISHED] = 1
                    finished = True
            if finished:
                woken, woken_threads = max(0, header[IDLE + PROCESS]), max(0, header[IDLE + THREAD])
                header[IDLE + PROCESS] = header[IDLE + THREAD] = 0
            else:
                if self.lane in (PROCESS, THREAD) and not header[STOP]:
                    chosen = self._next_ready()
                # Nobody sleeps while something is ready, so only what is ready now for the first time wakes anybody.
                if pushed > 1 or (pushed and chosen not in takers):
                    woken, woken_threads, tell = self._count_wakes()
            if chosen < 0:
                slots[self.base + NODE] = NOBODY
        finally:
            table.unlock()
        if finished or tell:
            site.notify()
        if woken or woken_threads:
            self._wake(woken, woken_threads)
        for gone in removed:
            self.store.remove(gone)
        self._measure(chosen)
        if pushed and in_process and chosen in takers and not self.durable[body_of[chosen]]:
            self.kept_node, self.kept = node, value
            self.recent.pop(node, None)
            # It was published, so it has a reader to count.
            self.spent.append(node)
        return chosen

    def _stored(self, node: int, value: Any) -> tuple[Any, Place]:
        """Store the value of a node, or what its body gives in place of one that cannot be stored."""
        try:
            return value, self.store.put(value)
        except Exception as error:
            rescue = self.site.flow.body(node).rescue
            if rescue is None:
                raise
            value = rescue(value, error)
        return value, self.store.put(value)

    def _note(self, node: int, value: Any, started: int, ended: int, place: Place, last: bool) -> None:
        """Note a value that has been published, with what it took to put it where others find it."""
        assert self.notes is not None
        pickled = self.store.pickle_at(place) if place[0] == IN_SEGMENT else None
        self.notes.value(node, value, ended - started, pickled, last)
        if place[0] not in (NOWHERE, IN_SEGMENT):
            self.notes.extra(node, MOVED, time.monotonic_ns() - ended)

    def _let_go(self, removed: list[Place]) -> None:
        """Count what this worker has read. Lock held; files that nobody needs any more are added to `removed`."""
        table = self.site.table
        readers = table.readers
        for taken in self.spent:
            left = readers[taken] - 1
            readers[taken] = left
            if left == 0:
                _, _, offset, size, where, _, _, _ = RECORD.unpack_from(table.records, taken * RECORD.size)
                if where != NOWHERE:
                    file = self.store.release((where, offset, size))
                    if file is not None:
                        removed.append(file)
                self.recent.pop(taken, None)
                self.site.local.pop(taken, None)
        self.spent.clear()

    def _count_wakes(self) -> tuple[int, int, bool]:
        """How many sleeping processes and threads to wake for what is ready, and whether the supervisor is wanted. Lock held."""
        header = self.site.table.header
        woken: int = header[READY_COUNT + PROCESS]
        woken_threads: int = header[READY_COUNT + THREAD]
        others = header[READY_COUNT + FRESH] or header[READY_COUNT + HERE]
        if not (woken or woken_threads or others):
            return 0, 0, False
        if header[HELD_BACK]:
            most = room(self.site.table)
            woken, woken_threads = min(woken, most), min(woken_threads, most)
        idle, idle_threads = max(0, header[IDLE + PROCESS]), max(0, header[IDLE + THREAD])
        hungry = header[HUNGRY]
        tell = (hungry == HUNGRY_FOR_ALL and woken > idle) or (hungry and (woken_threads > idle_threads or others))
        if tell:
            header[HUNGRY] = 0
        woken = min(woken, idle)
        woken_threads = min(woken_threads, idle_threads)
        header[IDLE + PROCESS] -= woken
        header[IDLE + THREAD] -= woken_threads
        return woken, woken_threads, bool(tell)

    def _wake(self, processes: int, threads: int) -> None:
        if processes:
            os.write(self.site.wake[1], b"!" * processes)
        if threads:
            os.write(self.site.wake_threads[1], b"!" * threads)

    # Taking ------------------------------------------------------------------------------------------------

    def _next_ready(self) -> int:
        """Take a node from the ready list or from a range, and put our name to it. Lock held. NOBODY where there is none."""
        table = self.site.table
        slots, base = table.slots, self.base
        crowded = table.header[CROWDED] and self.lane != HERE
        if crowded:
            release(table, base)
        while True:
            node = self._pop_admitted() if crowded else table.pop(self.lane)
            if node < 0:
                if crowded:
                    return NOBODY
                if self.lane != PROCESS:
                    return NOBODY
                low: int = slots[base + LOW]
                if low < slots[base + HIGH]:
                    slots[base + LOW] = low + 1
                    node = low
                else:
                    node = table.claim_leaves(self.slot)
                    if node < 0:
                        return NOBODY
            which = self.site.flow.body_of[node]
            groups = self.limited[which]
            if groups:
                full = table.full(groups, self.site.flow.limits)
                if full >= 0:
                    table.hold_back(full, node)
                    continue
            if self.pooled[which]:
                pool = self.pooled[which]
                index = self.site.pool_sizes.index(pool)
                if table.header[POOL_WAITING + index]:
                    # One of us sleeps until a cookie of this pool is free; a second sleeper would help nobody.
                    table.defer(index, node)
                    continue
                table.header[POOL_WAITING + index] = 1
                slots[base + WAITING_POOL] = index + 1
            for group in groups:
                table.header[LIMIT_RUNNING + group] += 1
            if crowded:
                commit(table, base, which)
            slots[base + BEGUN] = 0
            slots[base + NODE] = node
            table.states[node] = RUNNING
            return node

    def _pop_admitted(self) -> int:
        """Take a node whose body may begin now, from the ready list or from a range; NOBODY where there is none. Lock held."""
        table, body_of = self.site.table, self.site.flow.body_of
        slots, base = table.slots, self.base
        node = table.pop(self.lane) if self.lane == FRESH else take(table, self.lane, body_of)
        if node >= 0 or self.lane != PROCESS:
            table.header[HELD_BACK] |= node < 0 and table.header[READY_COUNT + self.lane] > 0
            return node
        for _ in range(MOST_TRIED):
            low: int = slots[base + LOW]
            if low < slots[base + HIGH]:
                slots[base + LOW] = low + 1
            else:
                low = table.claim_leaves(self.slot)
                if low < 0:
                    break
            if admits(table, body_of[low]):
                return low
            table.push(PROCESS, low)
        if table.header[READY_COUNT + PROCESS]:
            table.header[HELD_BACK] = 1
        return NOBODY

    def _measure(self, node: int) -> None:
        """Measure the CPU time of the body of this node, which is about to begin, where the run is crowded."""
        if node >= 0 and self.site.table.header[CROWDED]:
            self.meter = Meter(self.site.table, self.in_process)

    def _used(self) -> tuple[int, int] | None:
        """CPU time that the body has wanted, and the time that it took (ns); None where that was not measured."""
        meter, self.meter = self.meter, None
        return meter.read(self._threads_at_work, self.site.table.slots[self.base + SHARE]) if meter is not None else None

    def _threads_at_work(self) -> int:
        slots = self.site.table.slots
        return sum(slots[base + STATE] == BUSY and slots[base + LANE] == THREAD for base in range(SLOT, len(slots), SLOT))

    def _take(self) -> int:
        """The next node to run; sleeps while there is none. NOBODY where the run is over."""
        site = self.site
        table = site.table
        header, slots, base = table.header, table.slots, self.base
        lane = self.lane
        wake = site.wake if lane == PROCESS else site.wake_threads
        removed: list[Place] = []
        self.meter = None
        if self.notes is not None:
            self.notes.flush()
        while True:
            table.lock(self.slot)
            try:
                slots[base + NODE] = NOBODY
                if self.spent:
                    self._let_go(removed)
                over = header[STOP] or header[FINISHED] or slots[base + STATE] != BUSY
                node = NOBODY if over else self._next_ready()
                woken, woken_threads, tell = (0, 0, False) if over else self._count_wakes()
                over = over or slots[base + STATE] != BUSY
                if node < 0 and not over and lane in (PROCESS, THREAD):
                    header[IDLE + lane] += 1
                    slots[base + STATE] = RESTING
                    tell = tell or bool(header[HELD_BACK])
            finally:
                table.unlock()
            if tell:
                site.notify()
            self._wake(woken, woken_threads)
            for gone in removed:
                self.store.remove(gone)
            removed.clear()
            if node >= 0 or over or lane not in (PROCESS, THREAD):
                self._measure(node)
                return node
            self.recent.clear()
            if lane == PROCESS:
                flush()
            if (os.read(wake[0], 1) if lane == PROCESS else greenlets.read_byte(wake[0])) == b".":
                # Sent home by the supervisor, who has counted us out already.
                return NOBODY
            slots[base + STATE] = BUSY

    # Bodies with terms -------------------------------------------------------------------------------------

    @passes_on
    def _run_special(self, node: int, body: Body) -> tuple[Any, int, int]:
        """Run a body that needs a cookie, has a deadline, may be tried again, or wants shared memory."""
        table = self.site.table
        slots, base = table.slots, self.base
        while True:
            if self.durable[self.site.flow.body_of[node]]:
                # Taken from the store, not from our hands: what an attempt does to its arguments is lost with it.
                self.recent.clear()
            args, named = None, {}  # type: ignore[var-annotated]
            try:
                if body.pool:
                    self._take_cookie(body.pool)
                if body.pool and self.is_over(node):  # a thread that slept for its cookie
                    raise RunCancelledError("the run is over")
                args, named = self.site.flow.arguments(node, self._value_of)
                self.kept_node, self.kept = NOBODY, None
                if body.shared_memory:
                    from entangle._shared.segments import SegmentOpener, Segments

                    named["smm"] = Segments(self.site.directory)
                    named["sm"] = SegmentOpener(self.site.directory)
                if self.stopped:  # while it waited for a cookie or its arguments were made
                    raise RunCancelledError("the run was cancelled before the body began")
                slots[base + BEGUN] = RUNS
                started = slots[base + SINCE] = time.monotonic_ns()
                value = body.function(*args, **named)
                ended = time.monotonic_ns()
                if self.forked:
                    end_child(None)  # the cookie is its parent's, and so is the slot
                self.end_body()
                return value, started, ended
            except BaseException as raised:
                if self.forked:
                    end_child(raised)
                if self._is_the_callers(raised):
                    raise
                error = self._failure(node, raised)
                self.end_body()
                attempt = table.attempts[node] + 1
                wanted = isinstance(error, body.on) or isinstance(raised, body.on)  # SystemExit is told as another error
                if attempt > body.retry or not wanted or self.is_over(node):
                    self.failed = self._call_in_short(node, args and [*args, *named.values()])
                    raise error from error.__cause__
                table.attempts[node] = attempt
                note_attempt(self.site.directory, node, attempt, error)
                self.using.clear()
                failed = error
            finally:
                self.give_cookie()
            args = named = value = None  # type: ignore[assignment]
            if not self.rest(pause(body, attempt)) or self.is_over(node):
                raise failed from failed.__cause__
            del failed

    def is_over(self, node: int) -> bool:
        """Whether nobody waits for a node any more: the run has ended, or the node was given to another after its deadline.
        Of NOBODY, whether the run has ended."""
        table = self.site.table
        return bool(self.stopped or table.header[STOP] or (node >= 0 and table.slots[self.base + NODE] != node))

    def rest(self, seconds: float) -> bool:
        """Sleep between two attempts; False where the run has ended meanwhile."""
        if self.in_process:
            time.sleep(seconds)
        else:
            woken = threading.Event()
            with contextlib.suppress(RunCancelledError), self.ending_with(woken.set):
                woken.wait(seconds)
        return not self.stopped

    def end_body(self) -> None:
        """Say that a body with a deadline is over; past it by a hair, wait until whoever found that out has decided."""
        slots, base = self.site.table.slots, self.base
        slots[base + BEGUN] = OVER
        while slots[base + DOOMED]:
            time.sleep(0.001)

    def _take_cookie(self, size: int) -> None:
        """Take a cookie of a pool, sleeping until there is one, and bind this worker to its CPU."""
        site, table = self.site, self.site.table
        queue = site.pool(size)
        before = queue.held_here()
        began = time.monotonic_ns()
        try:
            self.cookie = size, queue.wait()
        except BaseException:
            queue.give_back(but=before)  # the caller's thread may be interrupted after it has taken one
            raise
        if self.notes is not None:
            self.notes.extra(table.slots[self.base + NODE], COOKIE_WAIT, time.monotonic_ns() - began)
        index = site.pool_sizes.index(size)
        table.slots[self.base + COOKIE] = size
        if table.slots[self.base + WAITING_POOL]:
            table.lock(self.slot)
            try:
                table.slots[self.base + WAITING_POOL] = 0
                table.header[POOL_WAITING + index] = 0
                other = table.undefer(index)
                if other >= 0:
                    table.push(site.lanes[site.flow.body_of[other]], other)
                woken, woken_threads, tell = self._count_wakes()
            finally:
                table.unlock()
            if tell:
                site.notify()
            self._wake(woken, woken_threads)
        self.roaming = bind(self.cookie[1])
        if self.in_process:
            # What the body starts is to keep to the pool, not to the whole budget.
            self.makeflags = os.environ.get("MAKEFLAGS")
            flags = jobserver_flags(queue.path, serial=size == 1)
            if flags is not None:
                os.environ["MAKEFLAGS"] = flags

    def give_cookie(self) -> None:
        """Give the cookie back, if we hold one, and roam all CPUs again. Where that is interrupted, it may be done again."""
        if self.cookie is None:
            return
        size, cookie = self.cookie
        roam(self.roaming)
        if self.in_process and self.makeflags is not None:
            os.environ["MAKEFLAGS"] = self.makeflags
        self.site.pool(size).give(cookie)
        self.site.table.slots[self.base + COOKIE] = 0
        self.cookie = None

    @block
    def holding(self, size: int) -> Iterator[None]:
        """A cookie of that pool for as long as the block lasts; the one we hold already, if there is one."""
        if self.cookie is not None:
            yield
            return
        try:
            self._take_cookie(size)
            yield
        finally:
            self.give_cookie()

    @block
    def waiting_for(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Wait for a nested run, which `cancel` ends: others may have our cookie meanwhile, and who stops us stops it too."""
        with self.ending_with(cancel), self.lending():
            yield

    @block
    def ending_with(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Wait for something that `cancel` ends: who stops us stops it too."""
        self.nested.append(cancel)
        try:
            if self.stopped:
                raise RunCancelledError("the run around this one is over")
            yield
        finally:
            self.nested.remove(cancel)

    def stop(self) -> bool:
        """End what the body in this thread waits for, and let it begin nothing more. Whether there was something to end."""
        self.stopped = True
        nested = list(self.nested)
        for cancel in nested:
            cancel()
        return bool(nested)

    @block
    def lending(self) -> Iterator[None]:
        """While a body waits for a nested run, others may have its cookie. It may wait for several in as many threads."""
        with self.lending_guard:
            self.waiting += 1
            if self.waiting == 1 and self.cookie is not None:
                self.lent = self.cookie[0]
                self.give_cookie()
        try:
            yield
        finally:
            with self.lending_guard:
                self.waiting -= 1
                if not self.waiting and self.lent:
                    size, self.lent = self.lent, 0
                    self._take_cookie(size)

    # Failing -----------------------------------------------------------------------------------------------

    def _is_the_callers(self, error: BaseException) -> bool:
        """Whether a body in the caller's main thread was ended by a signal: by Ctrl-C, or by what a handler has raised. That is
        nothing that the body did, and it ends the caller as it would anywhere in his program."""
        if isinstance(error, Exception) or self.lane != HERE or threading.current_thread() is not threading.main_thread():
            return False
        if isinstance(error, (KeyboardInterrupt, Terminated)):
            return True
        handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()} - {None}
        at = error.__traceback__
        while at is not None and at.tb_frame.f_code not in handlers:
            at = at.tb_next
        return at is not None

    def _failure(self, node: int, error: BaseException) -> Exception:
        return self.as_error(self.site.flow.body(node).name, error)

    def as_error(self, name: str, error: BaseException) -> Exception:
        """What a body raised, as an error: one that means to end the interpreter would else end the caller's."""
        if isinstance(error, Exception):
            return error
        kind = ProcessTerminatedException if self.in_process else ThreadTerminatedException
        code = f"({error.code!r})" if isinstance(error, SystemExit) else ""
        ended = kind(f"task {name!r} ended by raising {type(error).__name__}{code}")
        ended.__cause__ = error
        return ended

    def _call_in_short(self, node: int, given: Any) -> str:
        """The call that a node stands for, as an error tells it. What a row that is used again is given is no argument of a call."""
        flow = self.site.flow
        return "" if flow.rearmed else call_in_short(flow, node, given)

    def _fail(self, node: int, error: BaseException, given: Any = None) -> None:
        """Publish an error and end the run. `given` are the arguments that the body had."""
        site = self.site
        table = site.table
        place: Place = (NOWHERE, 0, 0)
        table.slots[self.base + BEGUN] = OVER
        error = self._failure(node, error)
        call, self.failed = self.failed or self._call_in_short(node, given), ""
        given = None
        report = describe(error, site.flow.body(node).name, table.attempts[node] + 1, call)
        if self.in_process:
            place = self.store.put_pickle(pickle.dumps(report, 5))
        since = table.slots[self.base + SINCE]
        table.lock(self.slot)
        try:
            if table.slots[self.base + NODE] != node or table.states[node] != RUNNING:
                return
            if not self.in_process:
                site.errors[node] = error
                site.failed[node] = call
            RECORD.pack_into(
                table.records,
                node * RECORD.size,
                since,
                time.monotonic_ns(),
                place[1],
                place[2],
                place[0],
                _pid,
                cpu(),
                self.slot,
            )
            table.states[node] = FAILED
            if table.header[FAILED_NODE] < 0:
                table.header[FAILED_NODE] = node
            table.header[STOP] = 1
        finally:
            table.unlock()
        site.notify()


_pid = os.getpid()


def _refresh_pid() -> None:
    global _pid
    _pid = os.getpid()
    worker = here.worker
    if worker is not None:
        worker.forked = True
        worker.cookie, worker.lent, worker.waiting = None, 0, 0  # its parent's
        if worker.lane == THREAD:
            child.begin()


os.register_at_fork(after_in_child=_refresh_pid)


def become(worker: Worker) -> None:
    """Say that this process, or this thread, is that worker from now on."""
    here.worker = worker
    worker.forked = False


def run_as(worker: Worker) -> None:
    """Work as that worker, in this thread."""
    before = here.worker
    become(worker)
    try:
        worker.work()
    finally:
        here.worker = before


def flush() -> None:
    """Write out what bodies have printed: a worker process ends without Python's own farewell."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
