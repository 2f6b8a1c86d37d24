"""What the death of a worker means: it is reaped, its slot freed, and what it ran is run again or ends the run.

A worker may die at any instruction, by a body's fault, by a deadline or by a kill. Its slot says how far it had come: a node
whose body had not begun is another's to run, one whose body had begun is lost. `retry` decides what a lost node means.
"""

from __future__ import annotations

import contextlib
import os
import posix
import time

from entangle._run.deadlines import Deadlines
from entangle._run.forwarding import quote
from entangle._run.roster import Roster
from entangle._run.worker_process import WorkerProcess, signal_name
from entangle._shared.interrupts import Deferred
from entangle._shared.site import Site
from entangle._shared.store import NOWHERE, Store
from entangle._shared.table import (
    BEGUN,
    BUSY,
    COOKIE,
    DONE,
    FAILED,
    FREE,
    HIGH,
    IDLE,
    LANE,
    LOW,
    NESTED,
    NEXT_NODE,
    NOBODY,
    NODE,
    POOL_WAITING,
    READY_COUNT,
    RESTING,
    RUNNING,
    SLOT,
    STARTING,
    STATE,
    STOP,
    UNARMED,
    UNCLAIMED,
    WAITING,
    WAITING_POOL,
)
from entangle._worker.failures import call_of, note_attempt, note_call, pause, used_up
from entangle._worker.joining import BROKEN, refusal
from entangle.cookies import reclaim_all
from entangle.errors import EntangleError, ProcessTerminatedException, add_note
from entangle.flow import PROCESS, THREAD

#: So many workers in a row may die before they have begun.
MOST_STILLBORN = 10


class Deaths:
    """Sees to the workers of a run that have ended, and to the nodes that they leave."""

    def __init__(self, site: Site, store: Store | None, roster: Roster) -> None:
        self.site = site
        self.table = site.table
        self.store = store
        self.roster = roster
        self.deadlines = Deadlines(site, store, roster, self)
        #: What ends the run, if anything does.
        self.error: BaseException | None = None
        #: Workers that have died before they had begun, one after the other.
        self.stillborn = 0
        #: Nodes that are tried again, and when (seconds, of the monotonic clock).
        self.retries: list[tuple[float, int]] = []

    def reap(self, worker: WorkerProcess) -> None:
        """A worker process has ended: in good order, or with a node that it ran."""
        with Deferred():
            self._reap(worker)
            if worker.ended_by:
                self._wake_in_its_place()

    def _reap(self, worker: WorkerProcess) -> None:
        slots, base = self.table.slots, worker.slot * SLOT
        with self.table.locked(UNCLAIMED):
            # Taking the lock has made right what it left half done, if it died with the lock.
            node, begun = slots[base + NODE], bool(slots[base + BEGUN])
            began = slots[base + STATE] != STARTING
            if node >= 0 and self._runs_elsewhere(node, worker.slot):
                node = NOBODY
        code = worker.ended_by
        assert code is not None
        after = slots[base + NEXT_NODE]
        if after not in (NOBODY, node) and node >= 0 and self.table.states[node] == DONE and self.table.states[after] in (WAITING, RUNNING):
            # It died on its way to that consumer, with the last argument in its hands.
            node, begun = after, True
            self.table.states[after] = RUNNING
        self.roster.forward_rest(worker)
        late = self.deadlines.ended(worker)
        self.clear_up(worker)
        if late is not None:
            self.lost(late.node, worker.slot, late.error, begun=True)
            return
        if code == 0:
            # It may have gone with a node only if a body called os._exit(0).
            if node >= 0 and self.table.states[node] == RUNNING and not self.table.header[STOP]:
                self.lost(node, worker.slot, self._exit_report(worker, node, code), begun)
            return
        if node < 0 or self.table.states[node] != RUNNING:
            self._lost_idle(worker, code, began)
        if node >= 0 and self.table.states[node] == RUNNING:
            self.lost(node, worker.slot, self._exit_report(worker, node, code), begun)

    def _wake_in_its_place(self) -> None:
        """Wake who rests while nodes are ready: the worker that has died may have counted them out and not woken them, or may have
        taken a wake-up with it. Too many are woken in vain; too few would sleep for ever."""
        header, slots = self.table.header, self.table.slots
        woken = [0, 0]
        with self.table.locked(UNCLAIMED):
            ready = (self.table.waiting_for_worker(), header[READY_COUNT + THREAD])
            for lane, others in ((PROCESS, [*self.roster.processes]), (THREAD, [*self.roster.threads])):
                resting = sum(slots[slot * SLOT + STATE] == RESTING and slots[slot * SLOT + LANE] == lane for slot in others)
                woken[lane] = min(resting, ready[lane])
                header[IDLE + lane] = resting - woken[lane]
        for pipe, count in ((self.site.wake, woken[PROCESS]), (self.site.wake_threads, woken[THREAD])):
            if count:
                with contextlib.suppress(BlockingIOError):
                    os.write(pipe[1], b"!" * count)

    def _runs_elsewhere(self, node: int, slot: int) -> bool:
        """Whether a node that a worker had put its name to when it died is another's: it died before it had said that the node runs,
        or after it had published its value and others had made it ready again. Lock held."""
        slots = self.table.slots
        others = (other * SLOT for other in (*self.roster.processes, *self.roster.threads) if other != slot)
        return any(slots[base + NODE] == node and slots[base + STATE] == BUSY for base in others)

    def _lost_idle(self, worker: WorkerProcess, code: int, began: bool) -> None:
        """A worker has died outside of any body. One that was killed is replaced; one that cannot even begin ends the run."""
        self.stillborn = 0 if began else self.stillborn + 1
        if code == BROKEN and (told := refusal(self.site.directory, self.site.flow)) is not None:
            self.error = told
        elif code == BROKEN or self.stillborn > MOST_STILLBORN:
            how = f"exit code {code}" if code >= 0 else f"signal {signal_name(-code)}"
            error = EntangleError(f"a worker process ended by {how} before it could run a task")
            quote(error, worker)
            self.error = error

    def clear_up(self, worker: WorkerProcess) -> None:
        """Free what a worker that has ended held: its descriptors, its slot, its cookies, its place in a pool's queue."""
        slots, base = self.table.slots, worker.slot * SLOT
        self.roster.remove(worker)
        pool = slots[base + WAITING_POOL]
        if worker.ended_by or slots[base + COOKIE] or slots[base + NESTED] != NOBODY:
            for size in {slots[base + COOKIE], self.site.pool_sizes[pool - 1] if pool else 0} - {0}:
                self.site.pool(size)
            reclaim_all()
        slots[base + COOKIE] = 0
        if pool:
            with self.table.locked(UNCLAIMED):
                slots[base + WAITING_POOL] = 0
                self.table.header[POOL_WAITING + pool - 1] = 0
                other = self.table.take_deferred(pool - 1)
                if other >= 0:
                    self.table.push(self.site.lanes[self.site.flow.body_of[other]], other)
        with self.table.locked(UNCLAIMED):
            low, high = slots[base + LOW], slots[base + HIGH]
            if low < high:
                # What it had merely claimed goes back.
                for node in range(high - 1, low - 1, -1):
                    self.table.push(PROCESS, node)
            slots[base + LOW] = slots[base + HIGH] = 0
            slots[base + STATE] = FREE
        self.roster.free.append(worker.slot)

    def _exit_report(self, worker: WorkerProcess, node: int, code: int) -> ProcessTerminatedException:
        name = self.site.flow.body(node).name
        how = f"exit code {code}" if code >= 0 else f"signal {signal_name(-code)}"
        error = ProcessTerminatedException(f"the process of task {name!r} (pid {worker.pid}) ended by {how}")
        quote(error, worker)
        return error

    def lost(self, node: int, slot: int, error: Exception, begun: bool) -> None:
        """A node's worker is gone: run the node again where that is allowed, else end the run with `error`."""
        flow, table = self.site.flow, self.table
        body = flow.body(node)
        if not begun and self._inputs_stored(node):
            with table.locked(UNCLAIMED):
                table.push(self.site.lanes[flow.body_of[node]], node)
            return
        attempt = table.attempts[node] + 1
        if self.goes_on_after(node, error):
            table.attempts[node] = attempt
            note_attempt(self.site.directory, node, attempt, error)
            table.states[node] = UNARMED
            self.retries.append((time.monotonic() + pause(body, attempt), node))
            self.retries.sort()
            return
        call = call_of(self.site, self.store, node)
        note_call(error, flow, node, call)
        add_note(error, f"attempt {attempt}")
        if body.retry:
            self.error = used_up(self.site, node, error, call)
        else:
            self.error = error
        table.states[node] = FAILED

    def goes_on_after(self, node: int, error: Exception) -> bool:
        """Whether the run goes on after a node whose body has begun was lost to that error: there is an attempt left."""
        body = self.site.flow.body(node)
        wanted = any(isinstance(error, kind) or issubclass(kind, type(error)) for kind in body.on)
        return bool(self.table.attempts[node] < body.retry and wanted)

    def _inputs_stored(self, node: int) -> bool:
        return all(self.table.record(taken)[4] != NOWHERE for taken in self.site.flow.sources(node))

    def put_back(self) -> None:
        """Make the nodes ready again whose pause between two attempts is over."""
        now = time.monotonic()
        flow, table = self.site.flow, self.table
        with table.locked(UNCLAIMED):
            while self.retries and self.retries[0][0] <= now:
                _, node = self.retries.pop(0)
                table.push(self.site.lanes[flow.body_of[node]], node)
            ready = table.header[READY_COUNT + PROCESS]
            woken = max(0, min(ready, table.header[IDLE + PROCESS]))
            table.header[IDLE + PROCESS] -= woken
        if woken:
            posix.write(self.site.wake[1], b"!" * woken)
