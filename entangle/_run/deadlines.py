"""Deadlines: `timeout` bounds a body, `wait` the arrival of its arguments.

Late workers are killed; late threads are abandoned, since a thread cannot be killed.
"""

from __future__ import annotations

import signal
import time
from typing import Protocol

from entangle._run import descendants
from entangle._run.descendants import Started
from entangle._run.roster import Roster
from entangle._run.worker_process import GRACE, WorkerProcess
from entangle._shared.site import Site
from entangle._shared.store import Store
from entangle._shared.summaries import named_call
from entangle._shared.table import (
    ABANDONED,
    BEGUN,
    DONE,
    DOOMED,
    FAILED,
    NOBODY,
    NODE,
    READY,
    RUNNING,
    RUNS,
    SINCE,
    SKIPPED,
    SLOT,
    STATE,
    UNCLAIMED,
    WAITING,
)
from entangle._worker.failures import call_of, note_call
from entangle.errors import ProcessTimeoutException, ThreadTimeoutException
from entangle.flow import AWAY, THREAD

#: Seconds until the next check, where nothing is due.
_NEVER = float("inf")
#: How many arguments that came too late an error names.
_NAMED = 4


class Losses(Protocol):
    """Says what the loss of a node means. `Deaths` does."""

    error: BaseException | None

    def lost(self, node: int, slot: int, error: Exception, begun: bool) -> None:
        """Handle a node whose worker is gone or abandoned."""

    def fail(self, node: int, state: int, error: Exception, call: str) -> None:
        """Make a node that is in this state fail, in a run that goes on."""

    def goes_on_after(self, node: int, error: Exception) -> bool:
        """Whether the run goes on after a node that had begun was lost to that error."""


class _Late:
    """A worker past its deadline: its node, the error, what it had started, and when it is
    killed."""

    def __init__(self, worker: WorkerProcess, node: int, error: ProcessTimeoutException) -> None:
        self.worker = worker
        self.node = node
        self.error = error
        self.started: list[Started] = []
        self.kill_at = 0.0


class Deadlines:
    """Keeps the deadlines of a run."""

    def __init__(self, site: Site, store: Store | None, roster: Roster, losses: Losses) -> None:
        self.site = site
        self.table = site.table
        self.store = store
        self.roster = roster
        self.losses = losses
        self.flow = flow = site.flow
        #: Workers that were told to end, by their slots.
        self.late: dict[int, _Late] = {}
        #: Whether the flow has any deadline.
        self.any = any(body.timed for body in flow.bodies)
        #: Nodes with a `wait`, and when the first of their arguments started (ns; 0 as long as none
        #: has).
        self.waits = (
            {node: 0 for node in range(flow.count) if flow.body(node).wait is not None and flow.sources(node)}
            if any(body.wait is not None for body in flow.bodies)
            else {}
        )

    def check(self, now: int) -> float:
        """Stop what is past a deadline; `now` in ns, of the monotonic clock. Return the seconds
        until the next check."""
        roster, next_check = self.roster, _NEVER
        flow, slots = self.flow, self.table.slots
        found: list[_Late] = []
        for slot in (*roster.processes, *roster.threads):
            base = slot * SLOT
            node, since = slots[base + NODE], slots[base + SINCE]
            if node < 0 or slots[base + BEGUN] != RUNS or slot in self.late:
                continue
            timeout = flow.body(node).timeout
            if timeout is None or now - since < timeout * 1e9:
                if timeout is not None:
                    next_check = min(next_check, max(0.001, timeout - (now - since) / 1e9))
                continue
            # A worker that leaves its body right now sees the mark, and waits until we have
            # decided.
            slots[base + DOOMED] = 1
            if slots[base + NODE] != node or slots[base + SINCE] != since or slots[base + BEGUN] != RUNS:
                slots[base + DOOMED] = 0
                continue
            seconds = (now - since) / 1e9
            text = f"task {flow.name(node)!r} ran longer than its timeout of {timeout:g} s (stopped after {seconds:.2f} s)"
            if slot in roster.processes:
                found.append(_Late(roster.processes[slot], node, ProcessTimeoutException(text)))
            else:
                with self.table.locked(UNCLAIMED):
                    slots[base + NODE] = NOBODY
                    slots[base + STATE] = ABANDONED
                    slots[base + DOOMED] = 0
                abandoned = roster.threads.pop(slot)[1]
                abandoned.stop()
                abandoned.forfeit()
                self.losses.lost(
                    node, slot, ThreadTimeoutException(text + "; its thread cannot be killed and runs on, but its value is dropped"), True
                )
        if found:
            self._end_late(found)
        if self.late:
            next_check = min(next_check, self._kill_overdue())
        for node in list(self.waits):
            next_check = min(next_check, self._check_wait(node, now))
        return next_check

    def _check_wait(self, node: int, now: int) -> float:
        flow, table = self.flow, self.table
        if table.states[node] not in (WAITING, READY) or not table.pending[node]:
            del self.waits[node]
            return _NEVER
        if not self.waits[node]:
            self.waits[node] = self._first_start(node)
        first = self.waits[node]
        wait = flow.body(node).wait
        assert wait is not None
        if not first:
            return _NEVER
        if now - first < wait * 1e9:
            return max(0.001, wait - (now - first) / 1e9)
        late = [taken for taken in flow.sources(node) if table.states[taken] not in (DONE, FAILED, SKIPPED)]
        more = f" and {len(late) - _NAMED} more" if len(late) > _NAMED else ""
        names = ", ".join(named_call(flow, taken) for taken in late[:_NAMED]) + more
        kind = ThreadTimeoutException if flow.body(node).carrier == THREAD else ProcessTimeoutException
        error = kind(f"task {flow.name(node)!r} waited {wait:g} s for its arguments, and {names} had not arrived")
        call = call_of(self.site, self.store, node)
        note_call(error, flow, node, call)
        if flow.guarded is not None and flow.guarded[node]:
            del self.waits[node]
            self.losses.fail(node, WAITING, error, call)
        else:
            self.losses.error = error
        return _NEVER

    def _first_start(self, node: int) -> int:
        """When the first of the nodes that `node` depends on started (ns); 0 where none has."""
        flow, table = self.flow, self.table
        seen = flow.behind(node)
        starts = [table.record(taken)[0] for taken in seen if table.states[taken] == DONE]
        slots = table.slots
        for slot in (*self.roster.processes, *self.roster.threads):
            base = slot * SLOT
            if slots[base + NODE] in seen and slots[base + BEGUN]:
                starts.append(slots[base + SINCE])
        lanes, body_of = self.site.lanes, flow.body_of
        if AWAY in lanes:
            away = [taken for taken in seen if table.states[taken] == RUNNING and lanes[body_of[taken]] == AWAY]
            starts += [began for taken in away if (began := table.started[taken])]
        return min(starts, default=0)

    def _end_late(self, found: list[_Late]) -> None:
        """Tell late workers to end, with all that they have started. `ended` handles their nodes
        later.

        Where one of them ends the run, all workers are stopped at once instead, with their time to
        react.
        """
        for late in found:
            if not self.losses.goes_on_after(late.node, late.error):
                self.losses.lost(late.node, late.worker.slot, late.error, begun=True)
                return
        kill_at = time.monotonic() + GRACE
        for late in found:
            late.started, late.kill_at = descendants.started_by([late.worker.pid]), kill_at
            self.late[late.worker.slot] = late
        for late in found:
            late.worker.kill(signal.SIGTERM)

    def _kill_overdue(self) -> float:
        """Kill late workers whose grace is over. Return the seconds until the next grace is."""
        left = min(late.kill_at for late in self.late.values()) - time.monotonic()
        if left <= 0:
            for late in self.late.values():
                if late.kill_at <= time.monotonic():
                    late.worker.kill(signal.SIGKILL)
                    late.kill_at = time.monotonic() + GRACE
        return max(0.001, left)

    def ended(self, worker: WorkerProcess) -> _Late | None:
        """Forget a worker that has ended, and kill what it had started. Return how it was late,
        None where it was not."""
        late = self.late.pop(worker.slot, None)
        if late is not None:
            descendants.kill(late.started)
        return late

    def started(self) -> list[Started]:
        """All that late workers had started."""
        return [process for late in self.late.values() for process in late.started]
