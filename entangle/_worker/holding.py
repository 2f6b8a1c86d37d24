"""What a worker holds for bodies with terms: cookies, which it lends while they wait; attempts."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from entangle._shared.block import block
from entangle._shared.notes import COOKIE_WAIT
from entangle._shared.site import Site
from entangle._shared.store import Store
from entangle._shared.table import BEGUN, COOKIE, DOOMED, NOBODY, NODE, OVER, POOL_WAITING, RUNS, SINCE, STOP, WAITING_POOL
from entangle._shared.tracebacks import passes_on
from entangle._worker.admission import Seat
from entangle._worker.child import end_child
from entangle._worker.delivery import Delivery
from entangle._worker.failures import note_attempt, pause
from entangle.cookies import bind, jobserver_flags, roam
from entangle.errors import RunCancelledError
from entangle.flow import Body


class Holding(Delivery):
    """The part of a worker that runs bodies which need a cookie, wait for others or are retried."""

    def __init__(self, site: Site, slot: int, lane: int, serial: int, store: Store | None = None) -> None:
        super().__init__(site, slot, lane, serial, store)
        #: Set in a child that a body has forked: it must not go on as a second copy of this worker.
        self.forked = False
        self.cookie: tuple[int, int] | None = None
        self.roaming: set[int] = set()
        self.nested: list[Callable[[], None]] = []
        #: How many threads of the body wait for nested runs; the pool size of the cookie lent out.
        self.waiting = self.lent = 0
        self.lending_guard = threading.Lock()
        #: Our place on a CPU. The runs that our body waits for share it.
        self.seat = Seat()
        self.holder: object = None
        self.stopped = False
        #: In the calling thread, when its run is past its timeout (monotonic clock), and that.
        self.expires: float | None = None
        self.timeout: float | None = None
        self.makeflags: str | None = None

    @passes_on
    def _run_special(self, node: int, body: Body) -> tuple[Any, int, int]:
        """Run a body that needs a cookie, has a deadline, is retried, or wants shared memory."""
        table = self.site.table
        slots, base = table.slots, self.base
        while True:
            if self.durable[self.site.flow.body_of[node]]:
                # Read from the store, not from memory: an attempt may change its arguments.
                self.recent.clear()
            args, named = None, {}  # type: ignore[var-annotated]
            try:
                if body.pool:
                    self._take_cookie(body.pool)
                if body.pool and self.is_over(node):  # a thread slept until it had its cookie
                    raise RunCancelledError("the run is over")
                args, named = self.site.flow.arguments(node, self._value_of)
                self.kept_node, self.kept = NOBODY, None
                if body.shared_memory:
                    from entangle._shared.segments import SegmentOpener, Segments

                    named["smm"] = Segments(self.site.directory)
                    named["sm"] = SegmentOpener(self.site.directory)
                if self.stopped:  # while it waited for a cookie or gathered its arguments
                    raise RunCancelledError("the run was cancelled before the body began")
                slots[base + BEGUN] = RUNS
                started = slots[base + SINCE] = time.monotonic_ns()
                value = body.function(*args, **named)
                ended = time.monotonic_ns()
                if self.forked:
                    end_child(None)  # the cookie and the slot are its parent's
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
                # `error` differs from what was raised where that was no Exception, as SystemExit.
                wanted = isinstance(error, body.on) or isinstance(raised, body.on)
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

    def end_body(self) -> None:
        """Mark the body as over.

        If its deadline has just passed, wait for the supervisor's verdict.
        """
        slots, base = self.site.table.slots, self.base
        slots[base + BEGUN] = OVER
        while slots[base + DOOMED]:
            time.sleep(0.001)

    # Cookies -------------------------------------------------------------------------------------

    def _take_cookie(self, size: int) -> None:
        """Take a cookie of a pool and bind this worker to its CPU. Sleeps until there is one."""
        site, table = self.site, self.site.table
        queue = site.pool(size)
        before = queue.held_here()
        began = time.monotonic_ns()
        try:
            self.cookie = size, queue.wait()
        except BaseException:
            queue.give_back(but=before)  # a signal may interrupt the caller after it took one
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
                other = table.take_deferred(index)
                if other >= 0:
                    table.push(site.lanes[site.flow.body_of[other]], other)
                woken, woken_threads, tell = self.count_wakes()
            finally:
                table.unlock()
            if tell:
                site.notify()
            self.wake(woken, woken_threads)
        self.roaming = bind(self.cookie[1])
        if self.in_process:
            # Programs that the body starts keep to the pool, not to the whole budget.
            self.makeflags = os.environ.get("MAKEFLAGS")
            flags = jobserver_flags(queue.path, serial=size == 1)
            if flags is not None:
                os.environ["MAKEFLAGS"] = flags

    def give_cookie(self) -> None:
        """Give back the cookie, if any, and use all CPUs again. Repeatable, if interrupted."""
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
        """Hold a cookie of that pool during the block; the one we have, if there is one."""
        if self.cookie is not None:
            yield
            return
        try:
            self._take_cookie(size)
            yield
        finally:
            self.give_cookie()

    # Waiting for nested runs ---------------------------------------------------------------------

    @block
    def waiting_for(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Wait for a nested run.

        Others may use our cookie; whoever stops us ends it by `cancel`.
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
        """Lend the cookie while the body waits for nested runs, in however many threads."""
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
