"""Delivery: a worker publishes what a node has given, and goes on with a consumer that has become ready by it."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from typing import Any

from entangle._shared.interrupts import Terminated
from entangle._shared.notes import MOVED
from entangle._shared.pickling import why_not
from entangle._shared.site import Site, cpu
from entangle._shared.store import IN_SEGMENT, NOWHERE, Place, Store
from entangle._shared.summaries import call_in_short
from entangle._shared.table import (
    BEGUN,
    COUNT,
    CROWDED,
    DONE,
    FAILED,
    FAILED_NODE,
    FINISHED,
    HELD_BACK,
    IDLE,
    NEXT_NODE,
    NOBODY,
    NODE,
    OVER,
    RECORD,
    RUNNING,
    SINCE,
    SINKS_LEFT,
    STOP,
)
from entangle._worker.admission import WAITS, learn, share_of
from entangle._worker.failures import describe
from entangle._worker.taking import Taking, flush
from entangle.errors import ProcessTerminatedException, RunAtImportError, ThreadTerminatedException
from entangle.flow import FRESH, HERE, PROCESS, THREAD

#: Values in hand that were published too: a consumer that this worker runs itself need not read them back.
RECENT = 1024
#: … if they are smaller than this (bytes, pickled): a large one is mapped in no time, and kept it would be there twice.
SMALL = 4096

#: The number of this process; `_worker/worker.py` sets it anew in a forked child.
pid = os.getpid()


class Delivery(Taking):
    """A worker of a run, as far as it gathers what a node takes and delivers what it gives."""

    def __init__(self, site: Site, slot: int, lane: int, serial: int, store: Store | None = None) -> None:
        super().__init__(site, slot, lane, serial, store)
        self.kept_node = NOBODY
        self.kept: Any = None
        #: What the body takes, each node once: it is one reader, however often it names a value.
        self.using: dict[int, None] = {}
        #: The call that has failed for good, in short, where its arguments are no longer there to be told.
        self.failed = ""
        # What such a body takes must be in the store before it runs, so that a second attempt finds it wherever it runs.
        # Where rows are used again, a value in hand could be one of their last use.
        self.durable = [body.retry > 0 or site.flow.rearmed for body in site.flow.bodies]

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
                RECORD.pack_into(table.records, node * RECORD.size, started, ended, 0, 0, 0, pid, cpu(), self.slot)
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
            RECORD.pack_into(table.records, node * RECORD.size, started, ended, place[1], place[2], place[0], pid, cpu(), self.slot)
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
                RECORD.pack_into(table.records, node * RECORD.size, started, ended, place[1], place[2], place[0], pid, cpu(), self.slot)
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
                    woken, woken_threads, tell = self.count_wakes()
            if chosen < 0:
                slots[self.base + NODE] = NOBODY
        finally:
            table.unlock()
        if finished or tell:
            site.notify()
        if woken or woken_threads:
            self.wake(woken, woken_threads)
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

    # Failing -----------------------------------------------------------------------------------------------

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
                pid,
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
