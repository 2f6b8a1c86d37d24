"""What the death of a worker means: it is reaped, and its node is tried again or fails.

A worker may die at any instruction: by a fault of the body, by a deadline, by a kill. Its slot says
how far it had come. A node whose body had not begun goes back to the ready list. A node whose body
had begun is lost, and `retry` decides what that means.
"""

from __future__ import annotations

import contextlib
import errno
import pickle
import posix
import re
import signal
import time

from entangle._run.deadlines import Deadlines
from entangle._run.forwarding import quote
from entangle._run.memory_kills import kills
from entangle._run.roster import Roster
from entangle._run.worker_process import WorkerProcess, signal_name
from entangle._shared import limits
from entangle._shared.documentation import more
from entangle._shared.interrupts import Deferred
from entangle._shared.site import Site
from entangle._shared.store import NOWHERE, Place, Store
from entangle._shared.table import (
    BEGUN,
    BUSY,
    COOKIE,
    COUNT,
    DONE,
    FAILED,
    FREE,
    HIGH,
    IDLE,
    LANE,
    LOW,
    NESTED,
    NEVER,
    NEXT_NODE,
    NOBODY,
    NODE,
    READY,
    READY_COUNT,
    RECORD,
    RESTING,
    RUNNING,
    SINCE,
    SLOT,
    STARTING,
    STATE,
    STOP,
    STRETCH_HIGH,
    STRETCH_LOW,
    UNARMED,
    UNCLAIMED,
    WAITING,
    WAITING_POOL,
)
from entangle._worker.failures import call_of, name_of_type, note_attempt, note_call, pause, pickled_error, process_of, used_up
from entangle._worker.joining import BROKEN, refusal
from entangle.cookies import reclaim_all
from entangle.errors import EntangleError, ProcessTerminatedException, add_note
from entangle.flow import PROCESS, THREAD

#: How many calls of a run are kept whose workers are gone.
_KEPT_CALLS = 8
#: If more workers than this die in a row before they have begun, the run ends with an error.
MOST_STILLBORN = 10


def _met_limit(worker: WorkerProcess) -> EntangleError | None:
    """The error for a worker that has met a limit of the system: by its last words or, where it had
    no descriptor to say any, by what this process has left, whose limits it has inherited."""
    words = bytes(worker.tail).decode("utf-8", "replace").splitlines()
    met = re.match(r"\w+: \[Errno (\d+)\] ", words[-1]) if words else None
    most = limits.soft_limit()
    if met is None and most is not None and limits.open_descriptors() + _NEEDED > most:
        return limits.limit_error(_DOING, OSError(errno.EMFILE, ""))
    return limits.limit_error(_DOING, OSError(int(met[1]), "")) if met is not None else None


#: How many descriptors a worker needs to begin.
_DOING, _NEEDED = "a worker process cannot begin", 6


class Deaths:
    """Reaps workers of a run that have ended, and sees to the nodes that they leave."""

    def __init__(self, site: Site, store: Store | None, roster: Roster) -> None:
        self.site = site
        self.table = site.table
        self.store = store
        self.roster = roster
        self.deadlines = Deadlines(site, store, roster, self)
        #: What ends the run, if anything does.
        self.error: BaseException | None = None
        kills()  # counted from here on
        #: How many workers in a row have died before they had begun.
        self.stillborn = 0
        #: Nodes to try again, and when (seconds, of the monotonic clock).
        self.retries: list[tuple[float, int]] = []
        #: How many calls were kept whose workers are gone.
        self.kept_calls = 0

    def reap(self, worker: WorkerProcess) -> None:
        """Reap a worker process that has ended, in good order or with a node that it ran."""
        with Deferred():
            self._reap(worker)
            if worker.ended_by:
                self._wake_in_its_place()

    def _reap(self, worker: WorkerProcess) -> None:
        slots, base = self.table.slots, worker.slot * SLOT
        with self.table.locked(UNCLAIMED):
            # If it died with the lock, taking the lock has repaired what it left half done.
            self.table.settle_stretch(worker.slot, over=True)
            node, begun = slots[base + NODE], bool(slots[base + BEGUN])
            began = slots[base + STATE] != STARTING
            if node >= 0 and self._runs_elsewhere(node, worker.slot):
                node = NOBODY
        code = worker.ended_by
        assert code is not None
        after = slots[base + NEXT_NODE]
        if after not in (NOBODY, node) and node >= 0 and self.table.states[node] == DONE and self.table.states[after] in (WAITING, RUNNING):
            # It had delivered the last argument of that consumer, and died before it ran it.
            node, begun = after, True
            self.table.states[after] = RUNNING
        self.roster.forward_rest(worker)
        late = self.deadlines.ended(worker)
        self.clear_up(worker)
        if late is not None:
            self.lost(late.node, worker.slot, late.error, begun=True)
            return
        if code == 0:
            # A worker exits with 0 in a body only if the body called os._exit(0).
            if node >= 0 and self.table.states[node] == RUNNING and not self.table.header[STOP]:
                self.lost(node, worker.slot, self._exit_report(worker, node, code), begun)
            return
        if node < 0 or self.table.states[node] != RUNNING:
            self._lost_idle(worker, code, began)
        if node >= 0 and self.table.states[node] == RUNNING:
            self.lost(node, worker.slot, self._exit_report(worker, node, code), begun)

    def _wake_in_its_place(self) -> None:
        """Wake resting workers for ready nodes. The dead worker may have counted them as woken
        without waking them, or may have read their byte. Too many wake-ups cost little; one too few
        hangs the run."""
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
                    posix.write(pipe[1], b"!" * count)

    def _runs_elsewhere(self, node: int, slot: int) -> bool:
        """Whether a node in the slot of a dead worker belongs to another worker. It does if the
        worker died before it had marked the node as running, or after it had published the value
        and the node was made ready again. Lock held."""
        slots = self.table.slots
        others = (other * SLOT for other in (*self.roster.processes, *self.roster.threads) if other != slot)
        return any(
            slots[base + STATE] == BUSY and (slots[base + NODE] == node or slots[base + STRETCH_LOW] <= node < slots[base + STRETCH_HIGH])
            for base in others
        )

    def _lost_idle(self, worker: WorkerProcess, code: int, began: bool) -> None:
        """A worker has died outside of any body. A killed one is replaced. One that cannot even
        begin ends the run."""
        self.stillborn = 0 if began else self.stillborn + 1
        if code == BROKEN and (told := refusal(self.site.directory, self.site.flow)) is not None:
            self.error = told
        elif code == BROKEN or self.stillborn > MOST_STILLBORN:
            times = "" if code == BROKEN else f", the last of {self.stillborn} in a row"
            error = _met_limit(worker) or EntangleError(f"a worker process ended by {_how(code)} before it could run a task{times}")
            quote(error, worker)
            self.error = error

    def clear_up(self, worker: WorkerProcess) -> None:
        """Free what a dead worker held: descriptors, slot, cookies, its place in the queue of a
        pool."""
        slots, base = self.table.slots, worker.slot * SLOT
        self.roster.remove(worker)
        flow, node, waiting = self.site.flow, slots[base + NODE], slots[base + WAITING_POOL]
        pools = flow.body(node).pools if node >= 0 else ()
        if worker.ended_by or slots[base + COOKIE] or slots[base + NESTED] != NOBODY:
            for pool in pools if slots[base + COOKIE] or waiting else ():
                self.site.queue(pool)  # opened, so that the next line sees it
            reclaim_all()
        slots[base + COOKIE] = 0
        if pools or waiting:
            with self.table.locked(UNCLAIMED):
                slots[base + WAITING_POOL] = 0
                if waiting:
                    self.table.waiting[waiting - 1] = 0
                turn = {waiting - 1, *map(flow.pools.index, pools)} - {NOBODY}
                self.table.pass_turn(turn, self.site.lanes, flow.body_of)
        with self.table.locked(UNCLAIMED):
            # Put back the leaves that it had claimed and not begun.
            back = set(range(slots[base + LOW], slots[base + HIGH])) | self._end_stretch(base)
            for node in sorted(back, reverse=True):
                self.table.push(PROCESS, node)
            slots[base + LOW] = slots[base + HIGH] = 0
            slots[base + STATE] = FREE
        self.roster.free.append(worker.slot)

    def _end_stretch(self, base: int) -> set[int]:
        """Tell the consumer of the leaves of a dead worker's stretch that are done. Gives those
        that it had not begun. Lock held."""
        flow, table = self.site.flow, self.table
        low, high = table.slots[base + STRETCH_LOW], table.slots[base + STRETCH_HIGH]
        if low >= high:
            return set()
        table.slots[base + STRETCH_HIGH] = 0
        table.slots[base + STRETCH_LOW] = 0
        leaves = range(low, high)
        consumer = flow.consumers[flow.consumer_starts[low]]
        done = sum(table.states[leaf] == DONE for leaf in leaves)
        table.slots[base + COUNT] += done
        table.pending[consumer] -= done
        if done and not table.pending[consumer]:
            table.push(self.site.lanes[flow.body_of[consumer]], consumer)
        back = {leaf for leaf in leaves if table.states[leaf] in (WAITING, READY)}
        if back:
            table.forget_records(min(back), high)
        return back

    def _exit_report(self, worker: WorkerProcess, node: int, code: int) -> ProcessTerminatedException:
        name = self.site.flow.name(node)
        error = ProcessTerminatedException(f"the process of task {name!r} (pid {worker.pid}) ended by {_how(code)}")
        if code == -signal.SIGKILL:
            add_note(error, kills().why())
        add_note(error, more("how_to/errors"))
        quote(error, worker)
        return error

    def lost(self, node: int, slot: int, error: Exception, begun: bool) -> None:
        """Handle a node whose worker is gone: run it again where that is allowed, else end the run
        with `error`."""
        flow, table = self.site.flow, self.table
        body = flow.body(node)
        if not begun and self._inputs_stored(node):
            with table.locked(UNCLAIMED):
                table.push(self.site.lanes[flow.body_of[node]], node)
            return
        attempt = table.attempts[node] + 1
        if self._is_tried_again(node, error):
            table.attempts[node] = attempt
            note_attempt(self.site, node, attempt, error, slot, table.slots[slot * SLOT + SINCE] if begun else 0)
            table.states[node] = UNARMED
            self.retries.append((time.monotonic() + pause(body, attempt), node))
            self.retries.sort()
            return
        if begun:
            # Records and the page tell when it ran, and where.
            times = table.slots[slot * SLOT + SINCE], time.monotonic_ns()
            pid = process_of(table, slot)
            RECORD.pack_into(table.records, node * RECORD.size, *times, 0, 0, NOWHERE, pid, NOBODY, slot)
        call = call_of(self.site, self.store, node)
        note_call(error, flow, node, call)
        add_note(error, f"attempt {attempt}")
        if begun and self.kept_calls < _KEPT_CALLS:
            from entangle._worker.keeping import keep  # not at the top: few runs need it

            self.kept_calls += 1
            keep(self.site, self.store, node, name_of_type(error), call)
        if self._is_guarded(node):
            self.fail(node, RUNNING, error, call)
            return
        if body.retry:
            self.error = used_up(self.site, node, error, call)
        else:
            self.error = error
        table.states[node] = FAILED

    def fail(self, node: int, state: int, error: Exception, call: str) -> None:
        """Make a node that is in this state fail, in a run that goes on.

        Others take the error as a value.
        """
        site, table, store = self.site, self.table, self.store
        place: Place = (NOWHERE, 0, 0)
        if store is not None:
            attempt = table.attempts[node] + 1
            report = {"error": pickled_error(error, site.flow.name(node)), "text": "", "where": f"attempt {attempt}", "call": call}
            place = store.put_pickle(pickle.dumps(report, 5))
        site.errors[node], site.failed[node] = error, call
        removed: list[Place] = []
        with table.locked(UNCLAIMED):
            if table.states[node] != state:
                return  # its last argument has just arrived
            began, _, _, _, _, pid, cpu, slot = table.record(node)
            table.pending[node] = NEVER
            RECORD.pack_into(table.records, node * RECORD.size, began, time.monotonic_ns(), place[1], place[2], place[0], pid, cpu, slot)
            table.states[node] = FAILED
            if groups := site.flow.body(node).limits:
                table.release_limits(groups, site.lanes, site.flow.body_of)
            _, unread = table.spread_failure(site.flow, site.lanes, node)
            if store is not None:
                removed += filter(None, map(store.count_read, (*site.flow.sources(node), *unread)))
        for gone in removed:
            assert store is not None
            store.remove(gone)
        self._wake_in_its_place()

    def _is_guarded(self, node: int) -> bool:
        """Whether the run goes on if this node fails."""
        guarded = self.site.flow.guarded
        return guarded is not None and bool(guarded[node])

    def goes_on_after(self, node: int, error: Exception) -> bool:
        """Whether the run goes on after a node was lost to that error."""
        return self._is_tried_again(node, error) or self._is_guarded(node)

    def _is_tried_again(self, node: int, error: Exception) -> bool:
        """Whether an attempt is left, and `on` includes the error."""
        body = self.site.flow.body(node)
        wanted = any(isinstance(error, kind) or issubclass(kind, type(error)) for kind in body.on)
        return bool(self.table.attempts[node] < body.retry and wanted)

    def _inputs_stored(self, node: int) -> bool:
        table = self.table
        return all(table.record(table.cause(taken))[4] != NOWHERE for taken in self.site.flow.sources(node))

    def put_back(self) -> None:
        """Make nodes ready again whose pause between two attempts is over."""
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


def _how(code: int) -> str:
    """How a process ended, by its exit code or minus the signal."""
    return f"exit code {code}" if code >= 0 else f"signal {signal_name(-code)}"
