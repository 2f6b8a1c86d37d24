"""Delivery: a worker publishes a node's value, and goes on with a consumer that this made ready."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from array import array
from typing import Any

from entangle._shared.device_arrays import bytes_on_device
from entangle._shared.interrupts import Terminated
from entangle._shared.notes import LASTING, MOVED
from entangle._shared.pickling import why_not
from entangle._shared.site import Site, cpu
from entangle._shared.store import IN_SEGMENT, NOWHERE, WINDOW, Place, Store, in_record
from entangle._shared.summaries import call_in_short
from entangle._shared.table import (
    BEGUN,
    COUNT,
    CROWDED,
    DONE,
    FAILED,
    FAILED_NODE,
    FINISHED,
    FLOAT,
    HELD_BACK,
    IDLE,
    IN_RECORD,
    INT,
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
from entangle._worker.failures import describe, error_of, shorter
from entangle._worker.taking import Taking, flush
from entangle.errors import ProcessTerminatedException, RunAtImportError, ThreadTerminatedException
from entangle.flow import HERE, IN_CALLER, PROCESS, THREAD, in_a_row

#: How many published values a worker keeps at hand, for consumers that it runs itself.
RECENT = 1024
#: Only smaller ones are kept (bytes, pickled): a large one is mapped at no cost, and keeping it
#: would hold it twice.
SMALL = 4096

#: How many calls that have failed a worker keeps of one run.
KEPT_CALLS = 8

#: The id of this process. `_worker/worker.py` sets it anew in a forked child.
pid = os.getpid()


class Delivery(Taking):
    """The part of a worker that gathers a node's arguments and delivers its value."""

    def __init__(self, site: Site, slot: int, lane: int, serial: int, store: Store | None = None) -> None:
        super().__init__(site, slot, lane, serial, store)
        self.kept_node = NOBODY
        self.kept: Any = None
        #: The nodes whose values the body takes, once each: naming a value twice counts as one
        #: reader.
        self.using: dict[int, None] = {}
        #: The call that has failed for good, in short. Set where its arguments will be gone later.
        self.failed = ""
        #: The arguments of that call, as its body had them.
        self.given: list[Any] | None = None
        #: How many failed calls of this run it has kept.
        self.kept_calls = 0
        #: Whether calls that end well are kept, too. Then each value goes into the store, and
        #: arguments are taken from there as they were made.
        self.keeps_ended = self.notes is not None and self.notes.whole
        if self.keeps_ended:
            self.goes_on = False
        # Arguments of these bodies are in the store before they run. With `retry`, a second attempt
        # may run in any worker. Where rows are used again, a value in hand may be an earlier use's.
        # A body with `wait` may be given up where the run goes on: that happens under the lock.
        self.guarded = site.flow.guarded
        self.kept_for_caller = site.flow.kept
        self.alone_at_end = len(site.flow.sinks) == 1 and not site.flow.rearmed
        rearmed = site.flow.rearmed
        self.durable = [body.retry > 0 or rearmed or (self.guarded is not None and body.wait is not None) for body in site.flow.bodies]

    def _value_of(self, node: int) -> Any:
        """The value of a node, for the body that runs next."""
        if node == self.kept_node:
            return self.kept
        self.using[node] = None
        if self.guarded is not None and self.site.table.states[node] != DONE:
            # A run of threads has no directory, and no store: its errors are in `errors`.
            return error_of(self.site, self.store if self.site.directory else None, node)
        if node in self.recent:
            # A body with `retry` reads from the store instead: fresh arguments for every attempt.
            return self.recent[node]
        if not self.in_process and node in self.site.local:
            return self.site.local[node]
        _, _, offset, size, where, _, _, _ = RECORD.unpack_from(self.site.table.records, node * RECORD.size)
        try:
            if where in (IN_SEGMENT, IN_RECORD) or self.notes is None:
                return self.store.get((where, offset, size))
            began = time.monotonic_ns()
            value = self.store.get((where, offset, size))
            self.notes.extra(self.site.table.slots[self.base + NODE], MOVED, time.monotonic_ns() - began)
            return value
        except RunAtImportError:
            raise
        except Exception as problem:
            flow = self.site.flow
            names = flow.name(node), flow.name(self.node())
            raise self.store.unpickling_error(
                problem, (where, offset, size), "the value of task {!r} cannot be unpickled in the process of task {!r}".format(*names)
            ) from problem

    def _values_of(self, taken: array[int]) -> list[Any]:
        """The inputs of a body that takes many: as `_value_of` gives them, in a quarter of the
        time for small values of other workers."""
        site, table = self.site, self.site.table
        constants, using, windows, states = site.flow.constants, self.using, self.store.windows, table.states
        records, unpack, size, loads = table.records, RECORD.unpack_from, RECORD.size, pickle.loads
        at_hand = {self.kept_node, *self.recent} if self.in_process else {*self.recent, *site.local}
        values: list[Any] = []
        if taken[0] >= 0 and taken == in_a_row("q", taken[0], len(taken)):
            low, high = taken[0], taken[0] + len(taken)
            # Numbers in the records of leaves: the store has nothing that is to be dropped.
            if table.places[low:high] == in_a_row("i", IN_RECORD, high - low, 0):
                kinds = table.kinds[low:high]
                for kind, column in ((INT, table.numbers), (FLOAT, table.fractions)):
                    if kinds == in_a_row("q", kind, high - low, 0):
                        found: list[Any] = column[low:high].tolist()
                        return found
                return list(map(in_record, table.numbers[low:high].tolist(), kinds.tolist()))
        for node in taken:
            if node < 0:
                values.append(constants[~node])
                continue
            _, _, offset, length, where, _, _, _ = unpack(records, node * size)
            window = windows.get(offset // WINDOW) if where == IN_SEGMENT and states[node] == DONE and node not in at_hand else None
            if window is None:
                values.append(self._value_of(node))
                continue
            using[node] = None
            try:
                values.append(loads(window[offset % WINDOW : offset % WINDOW + length]))
            except Exception:
                values.append(self._value_of(node))  # which says what is wrong
        return values

    def _deliver(self, node: int, value: Any, started: int, ended: int) -> int:
        """Publish a value. Gives the node to go on with, or NOBODY."""
        site = self.site
        flow, table = site.flow, site.table
        starts, consumers = flow.consumer_starts, flow.consumers
        first, last = starts[node], starts[node + 1]
        if self.using:
            if first < last or not self.alone_at_end:
                self.spent += self.using  # else the run is over, and all values go with it
            self.using.clear()
        if last - first == 1 and self.goes_on:
            consumer = consumers[first]
            which = flow.body_of[consumer]
            if (
                table.pending[consumer] == 1
                and site.lanes[which] == self.lane
                and not self.durable[which]
                and not flow.bodies[which].pools
                and not table.header[STOP]
                and not table.header[CROWDED]
                and not (self.kept_for_caller and node in self.kept_for_caller)
            ):
                # All others have delivered, so nobody else touches the consumer: no lock needed.
                # `recount` relies on the order of these writes.
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
        told = first == last or (bool(self.kept_for_caller) and node in self.kept_for_caller)
        if in_process and (told or flow.rearmed):
            # The caller goes on as soon as it has this value: print what is buffered before that.
            flush()
        if in_process or any(site.own_lanes[body_of[taker]] not in IN_CALLER for taker in takers):
            try:
                value, place = self._stored(node, value)
            except (OSError, MemoryError) as error:
                self._fail(node, error)
                return NOBODY
            except Exception:
                self._fail(node, why_not(value, f"the value of task {flow.name(node)!r}"))
                return NOBODY
        if self.notes is not None:
            self._note(node, value, started, ended, place, told)
            if told:
                self.notes.flush()  # the run is over when it has this value
        if in_process:
            RECORD.pack_into(table.records, node * RECORD.size, started, ended, place[1], place[2], place[0], pid, cpu(), self.slot)
        used = self._used()
        removed: list[Place] = []
        finished = tell = False
        woken = woken_threads = pushed = 0
        chosen = NOBODY
        moved = bytes_on_device(value) if self.serving is not None and place[0] != NOWHERE else 0
        if moved:
            self._tell_of_move(node, moved)
        if last - first == 1 and in_process and (place[2] < SMALL or moved) and not self.durable[body_of[takers[0]]]:
            recent = self.recent
            if moved:  # others may have read those that it keeps on the device
                for read in [known for known in recent if table.readers[known] <= 0]:
                    del recent[read]
            recent[node] = value
            if len(recent) > RECENT:
                del recent[next(iter(recent))]
        table.lock(self.slot)
        try:
            if slots[self.base + NODE] != node or table.states[node] != RUNNING:
                # The node was past its deadline and was given up: drop the value.
                return NOBODY
            if not in_process:
                RECORD.pack_into(table.records, node * RECORD.size, started, ended, place[1], place[2], place[0], pid, cpu(), self.slot)
                site.local[node] = value
            table.states[node] = DONE
            slots[self.base + COUNT] += 1
            if used is not None:
                learn(table, body_of[node], *used)
            if groups := self.limited[body_of[node]]:
                pushed += table.release_limits(groups, lanes, body_of)
            for taker in reversed(takers):
                left = pending[taker] - 1
                pending[taker] = left
                if left == 0:
                    table.ready_at[taker] = ended
                    table.push(lanes[body_of[taker]], taker)
                    pushed += 1
                    if header[HELD_BACK] and share_of(table, body_of[taker]) <= WAITS:
                        header[HELD_BACK] = 0
            if self.guarded is not None and first < last and not table.readers[node]:
                table.readers[node] = 1  # all that would have read it is skipped: we do
                self.spent.append(node)
            if self.spent:
                self._count_reads(removed)
            if first == last:
                header[SINKS_LEFT] -= 1
                if header[SINKS_LEFT] == 0:
                    header[FINISHED] = 1
                    finished = True
            if finished:
                woken, woken_threads = max(0, header[IDLE + PROCESS]), max(0, header[IDLE + THREAD])
                header[IDLE + PROCESS] = header[IDLE + THREAD] = 0
            else:
                if self.stays and not header[STOP] and (self.serving is None or self.serving.goes_on()):
                    chosen = self._next_ready()
                # Nobody sleeps while something is ready, so only what has become ready now wakes
                # anybody.
                if pushed > 1 or (pushed and chosen not in takers):
                    woken, woken_threads, tell = self.count_wakes()
            if chosen < 0:
                slots[self.base + NODE] = NOBODY
        finally:
            table.unlock()
        if finished or tell or (told and self.kept_for_caller):
            site.notify()
        if woken or woken_threads:
            self.wake(woken, woken_threads)
        for gone in removed:
            self.store.remove(gone)
        self._measure(chosen)
        if pushed and in_process and chosen in takers and not self.durable[body_of[chosen]]:
            self.kept_node, self.kept = node, value
            self.recent.pop(node, None)
            # It was published, so this reader is counted.
            self.spent.append(node)
        return chosen

    def _stored(self, node: int, value: Any) -> tuple[Any, Place]:
        """Store a node's value, or what its body's `rescue` gives if the value cannot be stored."""
        try:
            return value, self.store.put(value)
        except Exception as error:
            rescue = self.site.flow.body(node).rescue
            if rescue is None:
                raise
            value = rescue(value, error)
        return value, self.store.put(value)

    def _tell_of_move(self, node: int, size: int) -> None:
        """Log that arrays have been copied from a device, to a program that wants to know."""
        logging: Any = sys.modules.get("logging")
        if logging is not None:
            flow = self.site.flow
            takers = [flow.name(taker) for taker in flow.takers(node)[:4]]
            logging.getLogger("entangle").info(
                "the value of task %r was copied from its GPU: %s bytes through the host, for %s",
                flow.name(node),
                f"{size:,}",
                ", ".join(map(repr, takers)) or "the caller",
            )

    def _note(self, node: int, value: Any, started: int, ended: int, place: Place, last: bool) -> None:
        """Note a published value, and the time that it took to move it into the store."""
        assert self.notes is not None
        if place[0] == IN_RECORD:  # where the recorder finds it
            if ended - started > LASTING:
                self.notes.lasting(node)
            return
        pickled = self.store.pickle_at(place) if place[0] == IN_SEGMENT else None
        self.notes.value(node, value, ended - started, pickled, last)
        if place[0] not in (NOWHERE, IN_SEGMENT):
            self.notes.extra(node, MOVED, time.monotonic_ns() - ended)

    # Failing -------------------------------------------------------------------------------------

    def _fail(self, node: int, error: BaseException, given: Any = None) -> None:
        """Publish an error: it ends the run, or others take it as a value. `given` are the
        arguments of the body."""
        site = self.site
        table = site.table
        place: Place = (NOWHERE, 0, 0)
        table.slots[self.base + BEGUN] = OVER
        error = self._failure(node, error)
        call, self.failed = self.failed or self._call_in_short(node, given), ""
        guarded = self.guarded is not None and self.guarded[node]
        report = describe(error, site.flow.name(node), table.attempts[node] + 1, call)
        given, self.given = given or self.given, None
        if self.notes is not None:
            self.notes.failure(node, report)
            if not guarded:
                self.notes.flush()  # the run is over: what the body was given must not be lost
            self._keep(node, report, given)
        given = None
        if self.in_process or (guarded and self.site.directory):
            place = self._put_report(node, report)
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
            if guarded:
                self._spread_failure(node)
                return
            if table.header[FAILED_NODE] < 0:
                table.header[FAILED_NODE] = node
            table.header[STOP] = 1
        finally:
            table.unlock()
        site.notify()

    def _keep(self, node: int, report: dict[str, Any], given: Any) -> None:
        """Keep the call that has failed, so that it can be run again: of many that a run accepts,
        the first ones."""
        table = self.site.table
        if self.kept_calls >= KEPT_CALLS or table.slots[self.base + NODE] != node or table.states[node] != RUNNING:
            return  # the last two: it was past its deadline and was given up, and the run may be over
        self.kept_calls += 1
        with contextlib.suppress(OSError):  # the run may end at this moment
            from entangle._worker.keeping import keep  # not at the top: few runs need it, and it loads much

            keep(self.site, self.store if self.site.directory else None, node, report["type"], report["call"], given)

    def _keep_ended(self, node: int) -> None:
        """Keep the call of a node that has ended well and is not published yet."""
        from entangle._worker.keeping import keep_ended

        keep_ended(self.site, self.store if self.site.directory else None, node)

    def _keep_and_deliver(self, node: int, value: Any, started: int, ended: int) -> int:
        table = self.site.table
        if table.slots[self.base + NODE] == node and table.states[node] == RUNNING:  # else it was given up
            self._keep_ended(node)
        return self._deliver(node, value, started, ended)

    def _put_report(self, node: int, report: dict[str, Any]) -> Place:
        """Store the report of an error; a shorter one where there is no room for it."""
        try:
            return self.store.put_pickle(pickle.dumps(report, 5))
        except (OSError, MemoryError) as full:
            return self.store.put_pickle(pickle.dumps(shorter(report, self.site.flow.name(node), full), 5))

    def _spread_failure(self, node: int) -> None:
        """Tell those that depend on a node whose failure does not end the run. Lock held."""
        site, table = self.site, self.site.table
        if groups := self.limited[site.flow.body_of[node]]:
            table.release_limits(groups, site.lanes, site.flow.body_of)
        _, unread = table.spread_failure(site.flow, site.lanes, node)
        self.spent += (*self.using, *unread)
        self.using.clear()
        if table.header[FINISHED]:
            woken, woken_threads, tell = (*(max(0, table.header[IDLE + lane]) for lane in (PROCESS, THREAD)), True)
            table.header[IDLE + PROCESS] = table.header[IDLE + THREAD] = 0
        else:
            woken, woken_threads, tell = self.count_wakes()
        # The pipes have room: waking under the lock does not wait. A failure is rare.
        self.wake(woken, woken_threads)
        if tell or self.kept_for_caller:
            site.notify()

    def _is_the_callers(self, error: BaseException) -> bool:
        """Whether a signal has ended a body in the main thread: Ctrl-C, or an error of a handler.

        The body is not at fault then. The error ends the caller, as anywhere in its program.
        """
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
        return self.as_error(self.site.flow.name(node), error)

    def as_error(self, name: str, error: BaseException) -> Exception:
        """The error of a body.

        One that would end the interpreter is wrapped: it must not end ours.
        """
        if isinstance(error, Exception):
            return error
        kind = ProcessTerminatedException if self.in_process else ThreadTerminatedException
        code = f"({error.code!r})" if isinstance(error, SystemExit) else ""
        ended = kind(f"task {name!r} ended by raising {type(error).__name__}{code}")
        ended.__cause__ = error
        return ended

    def _call_in_short(self, node: int, given: Any) -> str:
        """A node's call, as errors show it; empty for a row that is used again: that is no call."""
        flow = self.site.flow
        return "" if flow.rearmed else call_in_short(flow, node, given)
