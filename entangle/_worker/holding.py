"""What a worker holds for bodies with terms: cookies, which it lends while they wait; attempts."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from entangle._shared.block import block
from entangle._shared.notes import COOKIE_WAIT
from entangle._shared.site import Site
from entangle._shared.store import NOWHERE, Place, Store
from entangle._shared.table import BEGUN, COOKIE, DOOMED, NOBODY, NODE, OVER, RECORD, RUNNING, RUNS, SINCE, STOP, WAITING_POOL
from entangle._shared.tracebacks import passes_on
from entangle._worker import library_threads
from entangle._worker.admission import Seat
from entangle._worker.child import end_child
from entangle._worker.delivery import Delivery
from entangle._worker.failures import note_attempt, pause
from entangle.cookies import bind, jobserver_flags, roam
from entangle.errors import RunCancelledError
from entangle.flow import AWAY, HERE, Body
from entangle.pools import CPUS, TOKENS, CookieSource, Pool

if TYPE_CHECKING:
    from entangle._worker.bookkeeping import Bookkeeping


class PutOff(BaseException):
    """A worker leaves its node to others before the body has begun: it would wait in vain."""


class Cookie(NamedTuple):
    """A cookie that a worker holds, and the thread that has taken it."""

    pool: Pool
    source: CookieSource
    cell: int
    thread: int

    def give(self) -> None:
        """Put it back; does nothing if that has been done."""
        self.source.give_cell(self.cell, self.thread)


def take_one_of_each(pools: Sequence[Pool], sources: Sequence[CookieSource]) -> tuple[Cookie, ...] | None:
    """A cookie of each of these, or none of any. Waits for none; of tokens nothing is kept."""
    taken: list[Cookie] = []
    for pool, source in zip(pools, sources, strict=True):
        cell = source.take_cell()
        if cell < 0:
            for cookie in taken:
                cookie.give()
            return None
        taken.append(Cookie(pool, source, cell, threading.get_ident()))
    return tuple(cookie for cookie in taken if cookie.pool.kind != TOKENS)


class Holding(Delivery):
    """The part of a worker that runs bodies which need a cookie, wait for others or are retried."""

    def __init__(self, site: Site, slot: int, lane: int, serial: int, store: Store | None = None) -> None:
        super().__init__(site, slot, lane, serial, store)
        #: Set in a child that a body has forked: it must not go on as a second copy of this worker.
        self.forked = False
        self.cookies: list[Cookie] = []
        self.roaming: set[int] = set()
        self.nested: list[Callable[[], None]] = []
        #: How many threads of the body wait for nested runs; the pools of the cookies lent out.
        self.waiting = 0
        self.lent: tuple[Pool, ...] = ()
        self.lending_guard = threading.Lock()
        #: Our place on a CPU. The runs that our body waits for share it.
        self.seat = Seat()
        self.holder: object = None
        self.stopped = False
        #: In the calling thread, when its run is past its timeout (monotonic clock), and that; what
        #: ends the run then.
        self.expires: float | None = None
        self.timeout: float | None = None
        self.expire: Callable[[], None] | None = None
        self.makeflags: str | None = None
        #: What it writes down of its nodes, in a durable run.
        self.books: Bookkeeping | None = None
        if site.flow.ledger is not None:
            from entangle._worker.bookkeeping import Bookkeeping  # not at the top: few runs need it

            self.books = Bookkeeping(site.flow.ledger)

    @passes_on
    def _run_special(self, node: int, body: Body) -> tuple[Any, int, int]:
        """Run a body that needs a cookie, has a deadline, is retried, or wants shared memory."""
        table = self.site.table
        slots, base = table.slots, self.base
        while True:
            if self.durable[self.site.flow.body_of[node]]:
                # Read from the store, not from memory: an attempt may change its arguments.
                self.recent.clear()
            args, named, began = None, {}, 0  # type: ignore[var-annotated]
            try:
                if body.pools:
                    self.take_cookies(self._pools_of(node, body), node)
                    if self.is_over(node):  # it slept until it had its cookies
                        raise PutOff
                args, named = self.site.flow.arguments(node, self._value_of)
                self.kept_node, self.kept = NOBODY, None
                if body.shared_memory:
                    from entangle._shared.segments import SegmentOpener, Segments

                    named["smm"] = Segments(self.site.directory)
                    named["sm"] = SegmentOpener(self.site.directory)
                if self.stopped:  # while it waited for a cookie or gathered its arguments
                    raise RunCancelledError("the run was cancelled before the body began")
                began = started = slots[base + SINCE] = time.monotonic_ns()
                slots[base + BEGUN] = RUNS  # last: who looks at deadlines takes `SINCE` for its time
                if self.books is None:
                    value = body.function(*args, **named)
                else:
                    value = self.books.run(node, body.name, body.function, args, named)
                ended = time.monotonic_ns()
                if body.ahead is not None:
                    started = slots[base + SINCE]  # with what was done ahead
                if self.forked:
                    end_child(None)  # the cookie and the slot are its parent's
                self.end_body()
                return value, started, ended
            except PutOff:
                self.leave()
                raise
            except BaseException as raised:
                if self.forked:
                    end_child(raised)
                if self._is_the_callers(raised):
                    raise
                error = self._failure(node, raised)
                self.end_body()
                attempt = table.attempts[node] + 1
                # `error` differs from what was raised where that was no Exception, as SystemExit.
                wanted = isinstance(error, body.on) or isinstance(raised, body.on)
                if attempt > body.retry or not wanted or self.is_over(node):
                    self.given = args and [*args, *named.values()]
                    self.failed = self._call_in_short(node, self.given)
                    raise error from error.__cause__
                table.attempts[node] = attempt
                note_attempt(self.site, node, attempt, error, self.slot, began)
                self.using.clear()
                failed = error
            finally:
                self.give_cookies()
            args = named = value = None  # type: ignore[assignment]
            if not self.rest(pause(body, attempt)) or self.is_over(node):
                raise failed from failed.__cause__
            del failed

    # What was done ahead --------------------------------------------------------------------------

    def _is_done_ahead(self, node: int) -> bool:
        """Whether what is done elsewhere ahead of a node has been done, and nobody has taken it."""
        site = self.site
        if site.lanes[site.flow.body_of[node]] != AWAY:
            return False
        where: int = RECORD.unpack_from(site.table.records, node * RECORD.size)[4]
        return where != NOWHERE

    def take_ahead(self) -> tuple[Any] | None:
        """What was done elsewhere ahead of the body that runs here now, once; None if nothing was.

        Its time counts as the body's.
        """
        site, table, base = self.site, self.site.table, self.base
        node = self.node()
        if node < 0 or not self._is_done_ahead(node):
            return None
        started, ended, offset, size, where, _, _, _ = RECORD.unpack_from(table.records, node * RECORD.size)
        value = self.store.get((where, offset, size)) if self.in_process else site.done_ahead.pop(node)
        gone: Place | None = None
        with table.locked(self.slot):
            if table.slots[base + NODE] == node and table.states[node] == RUNNING:
                if self.in_process:
                    gone = self.store.release((where, offset, size))
                RECORD.pack_into(table.records, node * RECORD.size, started, 0, 0, 0, NOWHERE, 0, 0, 0)
                table.slots[base + SINCE] -= max(0, ended - started)
        if gone is not None:
            self.store.remove(gone)
        return (value,)

    def _pools_of(self, node: int, body: Body) -> tuple[Pool, ...]:
        """The pools of which a body needs a cookie. Tokens were taken for what was done ahead."""
        if body.ahead is None or not self._is_done_ahead(node):
            return body.pools
        return tuple(pool for pool in body.pools if pool.kind != TOKENS)

    def is_over(self, node: int) -> bool:
        """Whether nobody waits for this node any more: the run is over, or the node was given up.

        For NOBODY: whether the run has ended.
        """
        table = self.site.table
        return bool(self.stopped or table.header[STOP] or (node >= 0 and table.slots[self.base + NODE] != node))

    def rest(self, seconds: float) -> bool:
        """Sleep between two attempts. False if the run has ended meanwhile."""
        if self.in_process:
            time.sleep(seconds)
        else:
            woken = threading.Event()
            with contextlib.suppress(RunCancelledError), self.ending_with(woken.set):
                woken.wait(seconds)
        return not self.stopped

    def rest_without_cookies(self, node: int, seconds: float) -> bool:
        """Sleep between two attempts within a body. The next attempt takes tokens anew.

        False if the run has ended meanwhile.
        """
        with self.lending():
            rested = self.rest(seconds)
        pools = self.site.flow.body(node).pools if node >= 0 else ()
        tokens = tuple(pool for pool in pools if pool.kind == TOKENS)
        if tokens and rested:
            self.take_cookies(tokens)
        return rested

    def end_body(self) -> None:
        """Mark the body as over.

        If its deadline has just passed, wait for the supervisor's verdict.
        """
        slots, base = self.site.table.slots, self.base
        slots[base + BEGUN] = OVER
        while slots[base + DOOMED]:
            time.sleep(0.001)

    # Cookies -------------------------------------------------------------------------------------

    def take_cookies(self, pools: tuple[Pool, ...], node: int = NOBODY) -> None:
        """Take a cookie of each of these pools. Sleeps until all are to be had, holding none.

        With `node`, whose body has not begun: raises PutOff where another worker of the run sleeps
        for one of them already, or where the run ends first. Without, it then returns with none.
        """
        site, slots, base = self.site, self.site.table.slots, self.base
        sources = [site.queue(pool) for pool in pools]
        before = [source.held_here() for source in sources]
        known = len(self.cookies)
        began = time.monotonic_ns()
        try:
            cells = self._take_all(node, pools, sources)
            for pool, source, cell in zip(pools, sources, cells, strict=False):
                if pool.kind != TOKENS:
                    self.cookies.append(Cookie(pool, source, cell, threading.get_ident()))
        except BaseException:
            for source, held in zip(sources, before, strict=True):
                source.give_back(but=held)  # a signal may interrupt the caller after it took one
            del self.cookies[known:]
            raise
        finally:
            self._pass_turn(node)
        slots[base + COOKIE] = bool(self.cookies)
        if cells and self.notes is not None:
            self.notes.extra(slots[base + NODE], COOKIE_WAIT, time.monotonic_ns() - began)
        for cookie in self.cookies[known:]:
            self._use(cookie)
        if self.stopped:  # nobody waits for this thread any more: others need its cookies
            self.give_cookies()

    def _take_all(self, node: int, pools: tuple[Pool, ...], sources: list[CookieSource]) -> list[int]:
        """Take all, or none. Gives their cells; none where the run is over first.

        All bodies take in one order, and none sleeps for a cookie with another in hand: nobody
        waits for anybody who waits.
        """
        cells: list[int] = []
        while True:
            short = NOBODY
            for at in range(len(cells), len(sources)):
                cell = sources[at].take_cell()
                if cell < 0:
                    short = at
                    break
                cells.append(cell)
            if short < 0:
                return cells
            while cells:
                cell = cells.pop()
                sources[len(cells)].give_cell(cell)
            if node >= 0 and self.lane != HERE:
                self._sleep_for(node, pools[short])
            cell = sources[short].wait_cell(lambda: self.is_over(node))
            if cell < 0:
                if node >= 0:
                    raise PutOff
                return cells
            if short:
                sources[short].give_cell(cell)  # those before it come first
            else:
                cells.append(cell)

    def _sleep_for(self, node: int, pool: Pool) -> None:
        """Become the worker of this run that sleeps for a cookie of this pool.

        If another one does, the node is deferred until it has one: raises PutOff.
        """
        site, table, slots, base = self.site, self.site.table, self.site.table.slots, self.base
        index = site.flow.pools.index(pool)
        if slots[base + WAITING_POOL] == index + 1:
            return
        which = site.flow.body_of[node]
        with table.locked(self.slot):
            if slots[base + WAITING_POOL]:
                table.waiting[slots[base + WAITING_POOL] - 1] = 0
                slots[base + WAITING_POOL] = 0
            put_off = bool(table.waiting[index])
            if put_off:
                table.defer_for_cookie(index, node)
                slots[base + NODE] = NOBODY
                table.release_limits(self.limited[which], site.lanes, site.flow.body_of)
            else:
                table.waiting[index] = 1
                slots[base + WAITING_POOL] = index + 1
            self._note_turns(node if put_off else NOBODY, table.pass_turn(self.pooled[which], site.lanes, site.flow.body_of))
            woken, woken_threads, tell = self.count_wakes()
        if tell:
            site.notify()
        self.wake(woken, woken_threads)
        if put_off:
            raise PutOff

    def _pass_turn(self, node: int) -> None:
        """Sleep for no cookie any more: a deferred node of each pool of our node may try."""
        site, table, slots, base = self.site, self.site.table, self.site.table.slots, self.base
        if node < 0 or not slots[base + WAITING_POOL]:
            return
        with table.locked(self.slot):
            table.waiting[slots[base + WAITING_POOL] - 1] = 0
            slots[base + WAITING_POOL] = 0
            self._note_turns(NOBODY, table.pass_turn(self.pooled[site.flow.body_of[node]], site.lanes, site.flow.body_of))
            woken, woken_threads, tell = self.count_wakes()
        if tell:
            site.notify()
        self.wake(woken, woken_threads)

    def leave(self) -> None:
        """Let others have the node: we have not begun its body, and have read nothing for it."""
        if self.kept_node in self.spent:
            self.spent.remove(self.kept_node)
        self.kept_node, self.kept = NOBODY, None

    def _use(self, cookie: Cookie) -> None:
        """Set what the holder of a cookie sets: of a CPU, where this thread runs."""
        if cookie.pool.kind == CPUS:
            self.roaming = bind(cookie.source.number(cookie.cell))
            if self.in_process:
                # Programs that the body starts keep to the pool, not to the whole budget.
                self.makeflags = os.environ.get("MAKEFLAGS")
                flags = jobserver_flags(cookie.source.path, serial=cookie.pool.size == 1)
                if flags is not None:
                    os.environ["MAKEFLAGS"] = flags
                if self.site.shares.each > 1:
                    library_threads.keep_to(1)

    def _unuse(self, cookie: Cookie) -> None:
        """Undo what `_use` has done."""
        if cookie.pool.kind == CPUS:
            roam(self.roaming)
            if self.in_process and self.makeflags is not None:
                os.environ["MAKEFLAGS"] = self.makeflags
            if self.in_process and self.site.shares.each > 1:
                library_threads.keep_to(self.site.shares.each)

    def give_cookies(self, but: int = 0) -> None:
        """Give back all cookies except the first, and use all CPUs again.

        Repeatable, if interrupted.
        """
        with contextlib.suppress(IndexError):  # the supervisor has abandoned this thread just now
            while len(self.cookies) > but:
                cookie = self.cookies[-1]
                self._unuse(cookie)
                cookie.give()
                self.cookies.pop()
                self.site.table.slots[self.base + COOKIE] = bool(self.cookies)

    def forfeit(self) -> None:
        """Give back the cookies of a thread that was abandoned, from another thread."""
        with contextlib.suppress(IndexError):  # it may have come to its end just now
            while True:
                self.cookies.pop().give()

    @block
    def holding(self, pool: Pool) -> Iterator[None]:
        """Hold a cookie of that kind of pool during the block; the one we have, if there is one."""
        if any(cookie.pool.kind == pool.kind for cookie in self.cookies):
            yield
            return
        known = len(self.cookies)
        try:
            self.take_cookies((pool,))
            yield
        finally:
            self.give_cookies(but=known)

    # Waiting for nested runs ---------------------------------------------------------------------

    @block
    def waiting_for(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Wait for a nested run.

        Others may use our cookies; whoever stops us ends it by `cancel`.
        """
        with self.ending_with(cancel), self.lending():
            yield

    @block
    def ending_with(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Wait for something that `cancel` ends: stopping this worker calls it."""
        self.nested.append(cancel)
        try:
            if self.stopped:
                raise RunCancelledError("the outer run is over")
            yield
        finally:
            self.nested.remove(cancel)

    @block
    def expiring(self) -> Iterator[None]:
        """Wait for something elsewhere: past the timeout of the run, this worker is stopped.

        In the calling thread, which cannot look at a clock meanwhile. A nested run has the same
        timeout, and needs no thread for it.
        """
        if self.expires is None or self.expire is None:
            yield
            return
        timer = threading.Timer(max(0.0, self.expires - time.monotonic()), self.expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def stop(self) -> bool:
        """End what the body in this thread waits for, and begin nothing more.

        Gives whether there was something to end.
        """
        self.stopped = True
        nested = list(self.nested)
        for cancel in nested:
            cancel()
        return bool(nested)

    @block
    def lending(self) -> Iterator[None]:
        """Lend the cookies while the body waits for nested runs, in however many threads."""
        with self.lending_guard:
            self.waiting += 1
            if self.waiting == 1 and self.serving is not None:
                self.serving.lend()
            if self.waiting == 1 and self.cookies:
                self.lent = tuple(cookie.pool for cookie in self.cookies)
                self.give_cookies()
        try:
            yield
        finally:
            with self.lending_guard:
                self.waiting -= 1
                if not self.waiting and self.serving is not None:
                    self.serving.take_back()
                if not self.waiting and self.lent:
                    lent, self.lent = self.lent, ()
                    self.take_cookies(lent)
