"""The away worker: the worker of nodes whose bodies run elsewhere. It waits for none of them.

::

    ready list of AWAY ─▶ cookies ─▶ arguments ─▶ place.begin     (the node runs; it is *away*)
    completion queue   ─▶ deliver, fail, or begin the next attempt
    clocks             ─▶ a body past its `timeout`: cancel it; a pause is over: begin again

It is one thread of the process that has started the run, however many nodes are away. So it must
not wait for a cookie as other workers do: nodes that lack one stand in a line of their pools. What
a node holds while it is away (cookies, the values that it takes, its clock) is kept with its call.

A node that is away is RUNNING, and in no slot. Its record says since when; the states of all
others are as ever, so a recount leaves it alone.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Any

from entangle._shared.notes import COOKIE_WAIT
from entangle._shared.site import Site
from entangle._shared.store import Place
from entangle._shared.table import (
    BEGUN,
    BUSY,
    FINISHED,
    GONE,
    IN_RECORD,
    LANE,
    LIMIT_RUNNING,
    NOBODY,
    NODE,
    NONE,
    READY_COUNT,
    RECORD,
    RUNNING,
    SINCE,
    STATE,
    STOP,
)
from entangle._shared.tracebacks import passes_on
from entangle._worker.away import Again, AwayCall, AwayFunction, AwayOutcome, AwayPlace, Completions
from entangle._worker.failures import call_of, note_attempt, pause
from entangle._worker.holding import Cookie, take_one_of_each
from entangle._worker.worker import Worker
from entangle.cookies import PATIENCE, CookieQueue
from entangle.errors import DurableError, ProcessTerminatedException, ProcessTimeoutException, ThreadTimeoutException
from entangle.flow import AWAY, IN_CALLER, THREAD, Body
from entangle.pools import CPUS, Pool
from entangle.token_bucket import TokenBucket

#: How many nodes begin before outcomes and clocks are looked at again.
_MOST = 64
#: No more calls begin while the arguments of those under way have this many bytes, as far as is
#: known: the arguments of all ready nodes together may exceed the memory.
HELD = 256 << 20
#: Seconds between two questions whether a call with a `timeout` has left the queue of its place;
#: longer where that is asked of many.
_ASKS, _EACH = 0.02, 0.00002


class AwayWorker(Worker):
    """The worker of a run for nodes that are away: a thread of the process of the run."""

    def __init__(self, site: Site, slot: int, serial: int) -> None:
        super().__init__(site, slot, AWAY, serial)
        self.outcomes = Completions()
        #: The calls that are under way, by their nodes.
        self.calls: dict[int, AwayCall] = {}
        #: Nodes that begin next, with their cookies and the bytes of their arguments.
        self._next: list[tuple[int, tuple[Cookie, ...], int]] = []
        #: Nodes that need no cookie, and wait for room alone.
        self._roomless: collections.deque[int] = collections.deque()
        #: The bytes of the arguments of calls; those that no longer count, from any thread; and
        #: whether it sleeps until there is room.
        self._held = 0
        self._freed: collections.deque[AwayCall] = collections.deque()
        self._starved = False
        #: Nodes that wait for cookies, by what they need, and since when (ns).
        self._lines: dict[tuple[Pool, ...], collections.deque[tuple[int, int]]] = {}
        #: Nodes that pause between two attempts, and until when (ns). They are sorted by that.
        self._pausing: list[tuple[int, int]] = []
        #: Calls with a `timeout`: those in a queue of their place, and those that run there, by
        #: their deadlines (ns).
        self._queued: list[AwayCall] = []
        self._timed: list[tuple[int, int, AwayCall]] = []
        self._serials = itertools.count()
        self._asked = 0.0
        #: What places do when the run is over.
        self.at_end: list[Callable[[], None]] = []

    def rouse(self) -> None:
        """Have it look at the ready list and the end of the run. From any thread."""
        self.outcomes.wake()

    def stop(self) -> bool:
        """End it, and cancel what is away. From any thread."""
        super().stop()
        self.rouse()
        return True

    @passes_on
    def work(self) -> None:
        """Begin nodes and deliver their outcomes, until the run is over."""
        slots, base = self.site.table.slots, self.base
        slots[base + LANE] = AWAY
        slots[base + STATE] = BUSY
        try:
            while not self.is_over(NOBODY) and not self.site.table.header[FINISHED]:
                self._take_ready()
                self._seek_room()
                self._seek_cookies()
                self._begin()
                for outcome in self.outcomes.take():
                    if isinstance(outcome, AwayOutcome):
                        self._came(outcome)
                    else:
                        outcome()
                self._look_at_clocks()
                self._sleep()
        except Exception as error:  # of our own: else the run would wait for ever
            self._fail_all(error)
            raise
        finally:
            self._drop_all()
            for then in self.at_end:
                with contextlib.suppress(Exception):
                    then()
            if self.notes is not None:
                self.notes.flush()
            self.outcomes.close()
            slots[base + STATE] = GONE

    # Beginning ------------------------------------------------------------------------------------

    def _take_ready(self) -> None:
        """Take nodes from the ready list, and mark them as running."""
        site, table = self.site, self.site.table
        header, body_of = table.header, site.flow.body_of
        if header[READY_COUNT + AWAY] <= 0 or self._is_full():
            return
        taken: list[int] = []
        woken = False
        with table.locked(self.slot):
            while len(taken) < _MOST and not header[STOP] and (node := table.pop(AWAY)) >= 0:
                if self._is_done_ahead(node):  # it was deferred since, or its worker has died
                    table.push(site.own_lanes[body_of[node]], node)
                    woken = True
                    continue
                if groups := self.limited[body_of[node]]:
                    full = table.full(groups, site.flow.limits)
                    if full >= 0:
                        table.defer_for_limit(full, node)
                        continue
                    for group in groups:
                        header[LIMIT_RUNNING + group] += 1
                table.states[node] = RUNNING
                taken.append(node)
            wakes = self.count_wakes() if woken else (0, 0, False)
        self._wake_others(*wakes)
        for node in taken:
            self._line_up(node)

    def _line_up(self, node: int) -> None:
        """Have a node begin as soon as it has its cookies."""
        body = self.site.flow.body(node)
        # Waiting for what is done ahead takes no CPU.
        pools = body.pools if body.ahead is None else tuple(pool for pool in body.pools if pool.kind != CPUS)
        if pools:
            self._lines.setdefault(pools, collections.deque()).append((node, time.monotonic_ns()))
        else:
            self._roomless.append(node)

    def _is_full(self) -> bool:
        """Whether no more arguments are to be gathered now. What is under way makes room."""
        while self._freed:
            self._free(self._freed.popleft())
        return self._held >= HELD and bool(self.calls or self._next)

    def _let_go(self, call: AwayCall) -> None:
        # From any thread.
        self._freed.append(call)
        if self._starved:
            self.outcomes.wake()

    def _free(self, call: AwayCall) -> None:
        """The arguments of a call count no more."""
        self._held -= call.size
        call.size = 0

    def _admit(self, node: int, cookies: tuple[Cookie, ...]) -> None:
        size = self._bytes_given(node)
        self._held += size
        self._next.append((node, cookies, size))

    def _bytes_given(self, node: int) -> int:
        """About how many bytes the arguments of a node have. What its lists have is not counted."""
        flow, table, local = self.site.flow, self.site.table, self.site.local
        total = 0
        for taken in flow.inputs[flow.starts[node] : flow.starts[node + 1]]:
            if taken < 0:
                total += _bytes_of(flow.constants[~taken])
            elif taken in local:
                total += _bytes_of(local[taken])
            else:
                total += RECORD.unpack_from(table.records, taken * RECORD.size)[3]
        return total

    def _seek_room(self) -> None:
        """Let nodes begin that need no cookie, while there is room."""
        while self._roomless and not self._is_full():
            self._admit(self._roomless.popleft(), ())

    def _seek_cookies(self) -> None:
        """Let those begin whose turn has come for the cookies that are to be had now."""
        for pools, line in list(self._lines.items()):
            sources = [self.site.queue(pool) for pool in pools]
            while line and not self._is_full() and (cookies := take_one_of_each(pools, sources)) is not None:
                node, since = line.popleft()
                if self.notes is not None:
                    self.notes.extra(node, COOKIE_WAIT, time.monotonic_ns() - since)
                self._admit(node, cookies)
            if not line:
                del self._lines[pools]

    def _begin(self) -> None:
        """Begin the calls of the nodes that can: those of one place together."""
        site, flow, table = self.site, self.site.flow, self.site.table
        begun: dict[AwayPlace, list[AwayCall]] = {}
        following, self._next = self._next, []
        for node, cookies, size in following:
            body = flow.body(node)
            self.using = {}
            failed: BaseException | None = None
            args, named = (), {}  # type: ignore[var-annotated]
            try:
                if body.ahead is None:
                    args, named = flow.arguments(node, self._value_of)  # type: ignore[assignment]
                else:  # which takes no others
                    named = flow.keyword_arguments(node, self._value_of)
            except BaseException as error:
                failed = error
            attempt = table.attempts[node] + 1
            terms = body.timeout, site.context, body.repeatable, self
            call = AwayCall(_away(body), args, named, self.outcomes.put, site.run_id, node, attempt, *terms)
            args, named = (), {}
            call.using, self.using, call.cookies = self.using, {}, cookies
            call.size, call.lets_go = size, self._let_go
            self.calls[node] = call
            table.started[node] = call.began
            if failed is None and self.books is not None:
                try:
                    self.books.begun(node, body.name)
                except Exception as error:
                    failed = error
            if failed is not None:
                self._lost(call, failed)
                continue
            if body.timeout is not None:
                self._queued.append(call)
            begun.setdefault(call.place, []).append(call)
        for place, calls in begun.items():
            try:
                place.begin(calls)
            except BaseException as error:
                for call in calls:
                    call.failed(error)

    # Ending ---------------------------------------------------------------------------------------

    def _came(self, outcome: AwayOutcome) -> None:
        """Deliver what has become of a call, unless nobody wants that any more."""
        call, value, error, seconds = outcome
        if self.calls.get(call.node) is not call:
            return
        ended = time.monotonic_ns()
        if seconds >= 0:
            call.began = max(call.submitted, ended - int(seconds * 1e9))
        if isinstance(error, Again):
            self._end(call)
            heapq.heappush(self._pausing, (ended + int(error.seconds * 1e9), call.node))
            self._leave_node()
            return
        if error is not None:
            self._lost(call, error)
            return
        if self.site.flow.body(call.node).ahead is not None:
            self._hand_over(call, value, ended)
            return
        if self.books is not None:
            try:
                self.books.ended(call.node, self.site.flow.body(call.node).name, value, call.began / 1e9)
            except Exception as unkept:
                self._lost(call, unkept)
                return
        self._note_place(call)
        self._end(call)
        if self.keeps_ended:
            self._keep_ended(call.node)
        self._deliver(call.node, value, call.began, ended)
        self._leave_node()

    def _hand_over(self, call: AwayCall, value: Any, ended: int) -> None:
        """What is done ahead of a node is done: make the node ready for a worker of its own lane,
        with the outcome in its record."""
        site, table, node = self.site, self.site.table, call.node
        lane = site.own_lanes[site.flow.body_of[node]]
        place: Place = (IN_RECORD, 0, NONE)  # not here, but with the site
        if lane in IN_CALLER:
            site.done_ahead[node] = value
        else:
            try:
                place = self.store.put(value)
            except Exception as error:
                self._lost(call, error)
                return
        self._note_place(call)
        del self.calls[node]
        self._free(call)
        for cookie in call.cookies:
            cookie.give()
        with table.locked(self.slot):
            if table.header[STOP]:
                return
            RECORD.pack_into(table.records, node * RECORD.size, call.began, ended, place[1], place[2], place[0], 0, 0, 0)
            if groups := self.limited[site.flow.body_of[node]]:
                table.release_limits(groups, site.lanes, site.flow.body_of)
            table.push(lane, node)
            wakes = self.count_wakes()
        self._wake_others(*wakes)

    def _wake_others(self, processes: int, threads: int, tell: bool) -> None:
        if tell:
            self.site.notify()
        self.wake(processes, threads)

    def _lost(self, call: AwayCall, raised: BaseException) -> None:
        """A call has failed: begin the next attempt after a pause, or publish the error."""
        site, table = self.site, self.site.table
        node, body = call.node, site.flow.body(call.node)
        error = self._failure(node, raised)
        if self.books is not None and not isinstance(raised, DurableError):
            with contextlib.suppress(DurableError):  # it then counts as begun
                self.books.failed(node, body.name, raised)
        self._end(call)
        attempt = table.attempts[node] + 1
        # `error` differs from what was raised where that was no Exception, as SystemExit.
        wanted = isinstance(error, body.on) or isinstance(raised, body.on)
        if attempt <= body.retry and wanted:
            table.attempts[node] = attempt
            note_attempt(site, node, attempt, error, self.slot, call.began, **call.there())
            self.using = {}
            heapq.heappush(self._pausing, (time.monotonic_ns() + int(pause(body, attempt) * 1e9), node))
        else:
            self._note_place(call)
            self.failed = call_of(site, self.store if site.directory else None, node)
            self._fail(node, error)
        self._leave_node()

    def _note_place(self, call: AwayCall) -> None:
        """Note for records where a call ran, and how long it was queued there."""
        if self.notes is not None and call.where:
            self.notes.elsewhere(call.node, call.where, call.ticket, call.began - call.submitted)

    def _end(self, call: AwayCall) -> None:
        """A call is over: take its node into the slot, as if its body had run here."""
        slots, base = self.site.table.slots, self.base
        del self.calls[call.node]
        self._free(call)
        for cookie in call.cookies:
            cookie.give()
        self.using = call.using
        slots[base + SINCE] = call.began
        slots[base + NODE] = call.node

    def _leave_node(self) -> None:
        slots, base = self.site.table.slots, self.base
        slots[base + NODE] = NOBODY
        slots[base + BEGUN] = 0
        self.using = {}

    def as_error(self, name: str, error: BaseException) -> Exception:
        """The error of a body. One that would end the interpreter is wrapped."""
        if isinstance(error, Exception):
            return error
        code = f"({error.code!r})" if isinstance(error, SystemExit) else ""
        ended = ProcessTerminatedException(f"task {name!r} ended by raising {type(error).__name__}{code}")
        ended.__cause__ = error
        return ended

    def _drop_all(self) -> None:
        """The run is over: nobody wants what is away."""
        for call in list(self.calls.values()):
            with contextlib.suppress(Exception):
                call.place.cancel(call)
            for cookie in call.cookies:
                cookie.give()
        for _, cookies, _ in self._next:
            for cookie in cookies:
                cookie.give()
        self.calls.clear()

    def _fail_all(self, error: Exception) -> None:
        """Fail what it has, for an error of its own."""
        for call in list(self.calls.values()):
            self._end(call)
            self._fail(call.node, error)

    # Clocks ---------------------------------------------------------------------------------------

    def _look_at_clocks(self) -> None:
        """Cancel what is past its `timeout`, and begin again what has paused."""
        if self._queued and time.monotonic() - self._asked >= self._asks():
            queued, self._queued = self._queued, []
            for call in queued:
                if self.calls.get(call.node) is not call:
                    continue
                if not call.place.has_begun(call):
                    self._queued.append(call)
                    continue
                call.began = time.monotonic_ns()
                self.site.table.started[call.node] = call.began
                assert call.timeout is not None
                heapq.heappush(self._timed, (call.began + int(call.timeout * 1e9), next(self._serials), call))
            self._asked = time.monotonic()
        now = time.monotonic_ns()
        while self._timed and self._timed[0][0] <= now:
            call = heapq.heappop(self._timed)[2]
            if self.calls.get(call.node) is call:
                self._late(call, now)
        while self._pausing and self._pausing[0][0] <= now:
            self._line_up(heapq.heappop(self._pausing)[1])

    def _asks(self) -> float:
        return _ASKS + _EACH * len(self._queued)

    def _late(self, call: AwayCall, now: int) -> None:
        stopped = call.place.cancel(call)
        text = f"task {call.name!r} ran longer than its timeout of {call.timeout:g} s (given up after {(now - call.began) / 1e9:.2f} s)"
        if call.ticket:
            text += f"; at {call.where} it was {call.ticket}"
        if not stopped:
            text += "; what runs it cannot be told to stop, so it runs on there, but its value is dropped"
        kind = ThreadTimeoutException if self.site.flow.body(call.node).carrier == THREAD else ProcessTimeoutException
        self._lost(call, kind(text))

    def _sleep(self) -> None:
        """Sleep until there is an outcome, a node, a cookie, or a clock has run down."""
        self._starved = True  # first: avoids a lost wakeup
        full = self._is_full()
        if self._next or (not full and (self._roomless or self.site.table.header[READY_COUNT + AWAY] > 0)):
            self._starved = False
            return
        if self.notes is not None:
            self.notes.flush()
        until: list[float] = []
        now = time.monotonic_ns()
        until += [(at[0][0] - now) / 1e9 for at in (self._timed, self._pausing) if at]
        if self._queued:
            until.append(self._asks())
        fds: list[int] = []
        for pools in self._lines:
            for pool in pools:
                source = self.site.queue(pool)
                # If it can be read now, its byte is none of our cookies, or another pool of the
                # line has none.
                if isinstance(source, CookieQueue) and not source.count():
                    fds.append(source.fileno())
                until.append(min(PATIENCE, source.left()) if isinstance(source, TokenBucket) else PATIENCE)
        self._starved = full
        self.outcomes.wait(min(until, default=None), fds)
        self._starved = False


def _away(body: Body) -> AwayFunction:
    function = body.function if body.ahead is None else body.ahead
    assert isinstance(function, AwayFunction)
    return function


def _bytes_of(value: Any) -> int:
    """The bytes of a value that is made of bytes alone; 0 for others."""
    kind = type(value)
    if kind in (bytes, bytearray, str):
        return len(value)
    return int(value.nbytes) if kind is memoryview or (kind.__module__ == "numpy" and hasattr(value, "nbytes")) else 0
