"""The supervisor of a run: the part of the caller that starts, reaps and times workers.

It decides nothing about what runs next. It sleeps in `poll` and wakes for three reasons: a worker
has written to the pipe (the run is over, or has work for more workers), a worker process has ended,
or it is time to look. A look is cheap: CPU clocks of the workers and some numbers of the table.
Looks come every few milliseconds at first, and less often later.

- Nodes are ready, and the workers use less CPU than the run may: they wait for something, so as
  many again are started.
- Nodes are ready, and the budget has a cookie: one more worker is started.
- Workers are idle: they are retired, and their cookies go back to the budget, where other runs may
  take them.
- There are more workers than CPUs: bodies begin only where there is a CPU for them
  (`_worker/admission.py`).
- A body is past its `timeout`, or the arguments of a node are past its `wait` (`deadlines.py`).

How many workers to start or retire is decided in `staffing.py`, from numbers alone.
"""

from __future__ import annotations

import contextlib
import posix
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from entangle._run import descendants, staffing
from entangle._run.crowding import Admission
from entangle._run.deaths import Deaths
from entangle._run.entitlement import Entitlement
from entangle._run.forking import fork_is_safe
from entangle._run.forwarding import forward, stdout_is_plain
from entangle._run.roster import Roster
from entangle._run.start import NoWorkerNow, start_worker
from entangle._run.worker_process import GRACE, WorkerProcess
from entangle._run.worker_threads import WorkerThread
from entangle._shared.devices import Claim
from entangle._shared.interrupts import Deferred
from entangle._shared.limits import limit_error, no_thread
from entangle._shared.site import Site
from entangle._shared.store import Store
from entangle._shared.table import (
    BEGUN,
    BUSY,
    COMMITTED,
    COOKIE,
    DOOMED,
    FAILED_NODE,
    FINISHED,
    FREE,
    GONE,
    HELD_BACK,
    HUNGRY,
    HUNGRY_FOR_ALL,
    HUNGRY_FOR_OTHERS,
    IDLE,
    LANE,
    MOST_WORKERS,
    NESTED,
    NEXT_NODE,
    NOBODY,
    NODE,
    PLANNED,
    READY_COUNT,
    READY_HEAD,
    RESTING,
    RUNNING,
    RUNS,
    SHARE,
    SINCE,
    SLOT,
    STARTING,
    STATE,
    STOP,
    STRETCH_HIGH,
    STRETCH_LOW,
    UNCLAIMED,
    WAITING_POOL,
)
from entangle._worker import inline
from entangle._worker.admission import CPU, admits, room
from entangle._worker.failures import call_of, error_of
from entangle._worker.worker import Worker, here, run_as
from entangle.cookies import CookieQueue
from entangle.errors import RunTimeoutException, UnpicklableError
from entangle.flow import AWAY, DEVICE, FRESH, HERE, PROCESS, THREAD

if TYPE_CHECKING:
    from entangle._worker.away_worker import AwayWorker

FIRST_LOOK, LAST_LOOK = 0.003, 0.02
FIRST_LOOK_NESTED = 0.01
#: The longest pause between two looks while the workers use all the CPU that they may (seconds).
LONGEST_PAUSE = 0.06
#: A worker without work for this long is retired (seconds).
PATIENCE = 0.02
MOST_THREADS = 256
#: A leaf that runs for longer gives up the rest of its stretch to others (nanoseconds).
LONG_LEAF = 3_000_000
#: How many running calls the error of a run past its timeout names. In a flow of many nodes none:
#: finding them would take long.
_TOLD, _MANY = 4, 1_000_000


class Supervisor:
    """Supervises one run in the thread that calls `supervise`."""

    def __init__(
        self,
        site: Site,
        store: Store | None,
        way: str,
        budget: CookieQueue | None,
        listen: int,
        slots: int,
        cap: int,
        looked: Callable[[], None] | None,
    ) -> None:
        self.site = site
        self.table = site.table
        self.store = store
        self.way = way
        self.budget = budget
        self.listen = listen
        self.looked = looked
        #: Called when something may have happened.
        self.told: Callable[[], None] | None = None
        self.roster = Roster(slots)
        self.processes, self.threads, self.free = self.roster.processes, self.roster.threads, self.roster.free
        #: The worker of nodes that are away, and its thread, once there are such nodes.
        self.away: tuple[threading.Thread, AwayWorker] | None = None
        self.leaving: list[WorkerProcess] = []
        self.cap = cap
        self.most_threads = MOST_THREADS
        #: The timeout of the run (seconds), and when it is over (monotonic clock).
        self.timeout: float | None = None
        self.expires: float | None = None
        self.serial = 0
        self.roster.poll.register(listen, select.POLLIN)
        self.cancelled = False
        #: The calling thread as a worker, while it runs a body. Cancelling the run stops what that
        #: body waits for.
        self.calling: Worker | None = None
        #: Whether a body has run in the calling thread.
        self.ran_here = False
        self.looked_at = time.monotonic_ns()
        self.idle_since = self.threads_idle_since = 0
        self.low_looks = 0
        self.admission = Admission(site.table, site.flow)
        #: Whether the flow turned out not to be picklable. Workers that were forked have it; more
        #: can come only by another fork.
        self.rooted = False
        self.capture = not stdout_is_plain()
        self.deaths = self._make_deaths()
        self.deadlines = self.deaths.deadlines
        #: The worker in whose body this run was called. Its supervisor looks at its slot.
        outer = here.worker
        if outer is not None and outer.forked:
            outer = None  # a child that a body has forked
        self.outer = outer if outer is not None and outer.in_process else None
        self.entitlement = Entitlement(site, budget, self.roster, self.admission, outer)
        self.around = self.entitlement.around
        #: The pause until the next look, and the one after a worker has been started (seconds).
        #: Nested runs look less often: each has a supervisor of its own, which computes when it
        #: looks.
        self.first_pause = FIRST_LOOK if self.around is None else FIRST_LOOK_NESTED
        self.pause = self.first_pause
        #: Whether the run has begun without a supervisor, and what has interrupted it then.
        self._adopted = False
        self._interrupt: BaseException | None = None

    def _make_deaths(self) -> Deaths:
        return Deaths(self.site, self.store, self.roster)

    # The run --------------------------------------------------------------------------------------

    def limit(self, timeout: float | None, expires: float | None, workers: int) -> None:
        """Limit the run: its time, and how many processes and threads it has (0: no limit)."""
        outer = here.worker
        if outer is not None and outer.lane == HERE and outer.expires is not None and (expires is None or outer.expires < expires):
            # The supervisor around us cannot look while we run in its thread.
            timeout, expires = outer.timeout, outer.expires
        self.timeout, self.expires = timeout, expires if not self.site.flow.inline else None
        self.table.header[MOST_WORKERS] = workers
        if workers:
            self.most_threads = min(MOST_THREADS, workers)

    def adopt(self, workers: list[WorkerProcess], error: BaseException | None) -> None:
        """Supervise a run from here on that has begun with these workers. An error has come
        meanwhile, if any: it ends the run."""
        self._adopted = bool(workers)
        self._interrupt = error
        for worker in workers:
            self.free.remove(worker.slot)
            self.serial = max(self.serial, worker.slot)
            self.roster.add(worker)

    def supervise(self) -> None:
        """Run the flow to its end. What ended it, if not its value, `failure` tells."""
        header = self.table.header
        # Count as busy until the first look, or the supervisor around us would start workers in our
        # place.
        self.entitlement.report(CPU)
        try:
            self.entitlement.begin()
            if self._interrupt is not None:
                raise self._interrupt
            if not self.cancelled and not self._adopted:
                self._start_first()
            while not header[FINISHED]:
                if header[FAILED_NODE] >= 0 or self.deaths.error is not None or self.cancelled:
                    break
                if self.expires is not None and time.monotonic() >= self.expires:
                    self.deaths.error = self._timed_out()
                    break
                if header[READY_COUNT + HERE] and self._run_here():
                    continue
                # Set the flag before looking at what is ready: avoids a lost wakeup.
                header[HUNGRY] = HUNGRY_FOR_ALL if self._could_start() else HUNGRY_FOR_OTHERS
                self._start_wanted()
                self._sleep()
                if self.told is not None:
                    self.told()
                self._look()
        except BaseException:
            self.table.let_go()
            header[STOP] = 1
            self._end(in_order=False)
            raise
        late = self.expires is not None and time.monotonic() >= self.expires
        if header[FINISHED] and self.ran_here and (late or (self.site.flow.inline and inline.took_longer(self.table, self.timeout))):
            self.deaths.error = self._timed_out()  # nobody could stop the body in this thread
        in_order = bool(header[FINISHED])
        header[STOP] = 1
        self.admission.remember()
        if not in_order:
            self._end(in_order=False)
        else:
            self._retire_all()

    def _timed_out(self) -> RunTimeoutException:
        """The error of a run that has taken too long. It names what was running."""
        flow, table = self.site.flow, self.table
        slots = ((base, table.slots[base + NODE]) for base in range(SLOT, len(table.slots), SLOT) if table.slots[base + WAITING_POOL])
        waiting = [(node, flow.pools[table.slots[base + WAITING_POOL] - 1]) for base, node in slots if node >= 0]
        running = [node for node in range(flow.count) if table.states[node] == RUNNING] if flow.count < _MANY else []
        running = [node for node in running if node not in dict(waiting)]
        calls = [call_of(self.site, self.store, node) for node in running[:_TOLD]]
        told = f"{', '.join(calls)}{f' and {len(running) - _TOLD} more' if len(running) > _TOLD else ''} ran" if calls else "nothing ran"
        told += "".join(f"; {call_of(self.site, self.store, node)} waited for {pool}" for node, pool in waiting[:_TOLD])
        return RunTimeoutException(
            f"the run of {flow.name(flow.sinks[0])!r} took longer than its timeout of {self.timeout:g} s: "
            f"{table.done():,} of {flow.count:,} tasks were done, and {told}"
        )

    def _expire(self) -> None:
        """End a run that has taken too long from another thread: its own waits in a body."""
        if self.calling is not None:
            self.deaths.error = self._timed_out()
            self.cancel()

    def cancel(self) -> None:
        """End the run from another thread. `supervise` returns soon after."""
        self.cancelled = True
        if self.calling is not None:
            self.calling.stop()
        self.site.notify()

    def finish(self) -> None:
        """Wait for the workers of a run that has ended in order, after its value has been taken."""
        self._end(in_order=True)
        self.entitlement.report(NOBODY)

    def failure(self) -> BaseException | None:
        """The error that ended the run, as the caller gets it; None where none did."""
        if self.deaths.error is not None:
            return self.deaths.error
        node: int = self.table.header[FAILED_NODE]
        return error_of(self.site, self.store, node) if node >= 0 else None

    # Starting -------------------------------------------------------------------------------------

    def _start_first(self) -> None:
        header = self.table.header
        wanted = self.table.waiting_for_worker()
        if PROCESS in self.site.own_lanes and AWAY in self.site.lanes:
            wanted += header[READY_COUNT + AWAY]  # started now: later, a fork might not be safe
        if not wanted:
            return
        self.entitlement.take_cookies(min(wanted, self.cap) - self.entitlement.base)
        header[PLANNED] = staffing.first(wanted, self.cap, self.entitlement.right)
        for _ in range(header[PLANNED]):
            self._start_process(PROCESS)
            if header[FINISHED] or header[STOP]:
                break

    def _start_wanted(self) -> None:
        """Start workers for ready nodes that nobody else will take."""
        header = self.table.header
        if header[READY_COUNT + FRESH] and self.free:
            there, running = self._count(FRESH), self._running_fresh()
            for _ in range(staffing.for_fresh(header[READY_COUNT + FRESH], running, there, self.entitlement.right)):
                self._start_process(FRESH)
        there = any(worker.lane != FRESH and worker.lane < DEVICE for worker in self.processes.values())
        ready = 0 if header[HELD_BACK] and there else header[READY_COUNT + PROCESS]
        if not there and not ready:
            ready = self.table.leaves_left()  # the workers that had claimed them have died
        if ready > 0:
            at_once, with_cookies = staffing.for_ready(
                ready, header[IDLE + PROCESS], self._count(PROCESS), self.cap, self.entitlement.right
            )
            for number in range(at_once + with_cookies):
                if self._must_not_grow() or (number >= at_once and not self.entitlement.take_cookies(1)):
                    break
                self._start_process(PROCESS)
        if header[READY_COUNT + THREAD] and not self.threads:
            self._start_thread()
        if header[READY_COUNT + AWAY]:
            self._call_away_worker()
        for lane, claim in enumerate(self.site.claims, DEVICE):
            if header[READY_COUNT + lane]:
                self._start_serving(lane, claim)
        if self.site.claims and (ready > 0 or header[READY_COUNT + FRESH]) and not self._has_place():
            self._make_place()

    def _start_serving(self, lane: int, claim: Claim) -> None:
        """Wake or start workers that serve devices, for nodes that are ready for them."""
        ready = self.table.header[READY_COUNT + lane]
        self._wake_resting(lane, ready)
        there, slots = self._count(lane), self.table.slots
        # Some may be about to take a node: they start, wait for a cookie, or were woken.
        ready -= sum(slots[slot * SLOT + NODE] < 0 for slot, worker in self.processes.items() if worker.lane == lane)
        visible = self.site.visible.names
        most = claim.most(len(visible)) - there
        if ready <= 0 or most <= 0:
            return
        # The first one queues for a cookie. More make sense where there are cookies now.
        with Deferred():  # an interrupt might leave the cookies locked
            wanted = max(min(ready, most, self.site.devices.room(claim, visible)), not there)
        for _ in range(wanted):
            if not self._has_place() and not self._make_place(lane):
                return
            if len(self.processes) >= self.entitlement.right:
                self.entitlement.take_cookies(1)  # with or without: admission sees to the CPUs
            self._start_process(lane)

    def _has_place(self) -> bool:
        """Whether the run may have one more worker process."""
        return bool(self.free) and len(self.processes) < self.cap

    def _make_place(self, but: int = NOBODY) -> bool:
        """Retire a worker that serves a device and has nothing to do, unless in the lane `but`.
        Its place is free soon. Return whether there is a place now."""
        header, slots = self.table.header, self.table.slots
        for slot, worker in self.processes.items():
            lane = worker.lane
            if lane >= DEVICE and lane != but and slots[slot * SLOT + STATE] == RESTING and not header[READY_COUNT + lane]:
                with self.table.locked(UNCLAIMED):
                    header[IDLE + lane] -= 1
                posix.write(self.site.wake_of(lane)[1], b".")
                break
        return self._has_place()

    def _count(self, lane: int) -> int:
        return sum(worker.lane == lane for worker in self.processes.values())

    def _must_not_grow(self) -> bool:
        """Whether no worker can be added: the flow comes only by fork, and other threads make a
        fork unsafe."""
        return self.rooted and self._count(PROCESS) > 0 and not fork_is_safe()

    def _could_start(self) -> bool:
        """Whether the run may start one more worker process now."""
        if self._must_not_grow():
            return False
        count = sum(worker.lane < DEVICE for worker in self.processes.values())
        return self._has_place() and (count < self.entitlement.right or (self.budget is not None and self.budget.count() > 0))

    def _running_fresh(self) -> int:
        slots = self.table.slots
        return sum(
            worker.lane == FRESH and slots[worker.slot * SLOT + NODE] >= 0 and slots[worker.slot * SLOT + STATE] == BUSY
            for worker in self.processes.values()
        )

    def _start_process(self, lane: int) -> None:
        if not self.free or len(self.processes) >= self.cap or (lane == PROCESS and self._must_not_grow()):
            return
        assert self.store is not None
        slot = self.free.pop()
        self._clear_slot(slot, lane)
        self.entitlement.make_room()
        self.serial += 1
        with Deferred():
            self._start_in(slot, lane)

    def _start_in(self, slot: int, lane: int) -> None:
        assert self.store is not None
        try:
            worker = start_worker(self.way, self.site, self.store, slot, lane, self.serial, self.capture)
        except BaseException as error:
            self.table.slots[slot * SLOT + STATE] = FREE
            self.free.append(slot)
            if isinstance(error, NoWorkerNow):
                return  # another run has them all; this one asks again at each look
            if isinstance(error, OSError) and self.processes:
                return  # no room for one more process; the run goes on without it
            if isinstance(error, UnpicklableError) and lane == PROCESS and self._count(PROCESS):
                self.rooted = True  # the forked ones have the flow; the run goes on with them
                return
            told = limit_error("no worker process can be started", error) if isinstance(error, OSError) else None
            if told is not None:
                raise told from None
            raise
        self.roster.add(worker)
        self.pause = self.first_pause

    def _start_thread(self) -> None:
        if not self.free:
            self._join_retired_threads()
        if not self.free or len(self.threads) >= self.most_threads:
            return
        slot = self.free.pop()
        self._clear_slot(slot, THREAD)
        self.entitlement.make_room()
        self.serial += 1
        with Deferred():  # a thread that runs and is not noted would never be woken
            self._start_thread_in(slot)

    def _start_thread_in(self, slot: int) -> None:
        worker = Worker(self.site, slot, THREAD, self.serial)
        self.site.users += 1
        thread = threading.Thread(target=_thread_life, args=(worker,), name=f"entangle-{slot}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self.site.users -= 1
            self.table.slots[slot * SLOT + STATE] = FREE
            self.free.append(slot)
            if self.threads:
                return  # no room for one more thread; the run goes on without it
            raise no_thread(error) from None
        self.threads[slot] = (thread, worker)
        self.pause = self.first_pause

    def _call_away_worker(self) -> None:
        """Wake the away worker for ready nodes; start it where there is none yet."""
        if self.away is not None:
            self.away[1].rouse()
            return
        from entangle._worker.away_worker import AwayWorker

        with Deferred():
            slot = self.free.pop()
            self._clear_slot(slot, AWAY)
            self.serial += 1
            try:
                worker = AwayWorker(self.site, slot, self.serial)
                self.site.users += 1
                thread = threading.Thread(target=_thread_life, args=(worker,), name="entangle-away", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    self.site.users -= 1
                    worker.outcomes.close()
                    raise no_thread(error) from None
            except BaseException:
                self.table.slots[slot * SLOT + STATE] = FREE
                self.free.append(slot)
                raise
            self.away = thread, worker

    def _clear_slot(self, slot: int, lane: int) -> None:
        slots, base = self.table.slots, slot * SLOT
        for field in (STRETCH_HIGH, STRETCH_LOW, BEGUN, COOKIE, WAITING_POOL, DOOMED, SINCE, SHARE):
            slots[base + field] = 0
        slots[base + NODE] = slots[base + NEXT_NODE] = slots[base + NESTED] = NOBODY
        slots[base + LANE] = lane
        # A thread that has retired may have left GONE there.
        slots[base + STATE] = STARTING

    def _run_here(self) -> bool:
        """Run a body in this thread: nothing else is left to do. Return whether there may be
        another."""
        self._retire_all()
        self._end_processes(time.monotonic() + 30.0, kill=False)
        self.entitlement.give_cookies(0)
        while not self.free and self.threads:
            self._join_retired_threads()  # one that was told to end frees its slot in a moment
            time.sleep(0.001)
        slot = self.free.pop()
        self._clear_slot(slot, HERE)
        self.serial += 1
        worker = (inline.InlineWorker if self.site.flow.inline else Worker)(self.site, slot, HERE, self.serial)
        worker.seat, worker.holder = self.entitlement.seat, self.entitlement.holder
        worker.timeout, worker.expires, worker.expire = self.timeout, self.expires, self._expire
        self.ran_here = True
        outer = here.worker
        self.calling = worker
        if self.cancelled:
            worker.stopped = True
        try:
            run_as(worker)
        finally:
            self.calling = None
            worker.give_cookies()
            if outer is None or not worker.forked:
                self.free.append(slot)
        return True

    # Looking --------------------------------------------------------------------------------------

    def _sleep(self) -> None:
        """Sleep until something happens or it is time to look, then handle what has happened."""
        until = self.pause
        if self.deaths.retries:
            until = min(until, max(0.0, self.deaths.retries[0][0] - time.monotonic()))
        if self.expires is not None:
            until = min(until, max(0.0, self.expires - time.monotonic()))
        for fd, _ in self.roster.poll.poll(until * 1000):
            if fd == self.listen:
                with contextlib.suppress(BlockingIOError):
                    posix.read(fd, 4096)
                continue
            worker = self.roster.by_fd.get(fd)
            if worker is None:
                continue
            if fd == worker.watch:
                if worker.ended():
                    self.deaths.reap(worker)
            else:
                self.roster.forward(worker, fd)
        for worker in [worker for worker in self.processes.values() if worker.watch < 0 and worker.ended()]:
            self.deaths.reap(worker)

    def _look(self) -> None:
        now = time.monotonic_ns()
        if self.deadlines.any:
            self.pause = min(self.pause, self.deadlines.check(now))
        if self.deaths.retries and self.deaths.retries[0][0] <= time.monotonic():
            self.deaths.put_back()
        if self.table.header[HELD_BACK]:
            self._seek_room()
        elapsed = now - self.looked_at
        if elapsed < FIRST_LOOK * 0.9e9:
            return
        self.looked_at = now
        if self.looked is not None:
            with Deferred():  # it opens files, which an interrupt would leave open
                self.looked()
        table = self.table
        header = table.header
        if header[FINISHED] or header[STOP]:
            return
        if self.site.flow.fans:
            self._shorten_stretches(now)
        ready = table.waiting_for_worker()
        fresh = header[READY_COUNT + FRESH]
        count = len(self.processes)
        ordinary = sum(worker.lane < DEVICE for worker in self.processes.values()) if self.site.claims else count
        threads = [WorkerThread(slot, getattr(thread, "native_id", None)) for slot, (thread, _) in self.threads.items()]
        with Deferred():  # these open files, too
            used = self._cpu_use()
            used += self.admission.look(now, self.processes.values(), threads)
        # A look that was kept waiting does not shorten the time until the next: two that follow at
        # once are one.
        self.looked_at = time.monotonic_ns()
        cpu = used * elapsed / 1e9
        if self.admission.crowded and self.entitlement.base and count + len(threads) <= self.entitlement.right:
            self.admission.thin_out()
        enough = staffing.enough(self.entitlement.right)
        matters = ready or fresh or self.around is not None or self.entitlement.seat.wanted(self.entitlement.holder)
        if used < enough and matters and (self.entitlement.base or not header[HELD_BACK]):
            with Deferred():
                used = max(used, self._wanting_cpu())
        # One low look may be a lock, a page fault or the end of a nested run. Two in a row are a
        # wait.
        self.low_looks = self.low_looks + 1 if used < enough else 0
        waiting = self.low_looks > 1
        if waiting:
            self.first_pause = FIRST_LOOK  # more workers are wanted soon
        if self.low_looks or self.admission.crowded:
            self.pause = min(LAST_LOOK, self.pause * 1.5)
        else:
            # A look costs CPU, and there may be a supervisor for each of many nested runs.
            self.pause = min(LONGEST_PAUSE, self.pause * 2)
        self.entitlement.share_place(waiting)
        self.entitlement.watch_for_stall(now, cpu)
        if not self.entitlement.base:
            used -= self.entitlement.cookies  # what runs with our own cookies takes nobody's place
        self.entitlement.report(int(max(0.0, min(1.0, used)) * CPU) if waiting or not self.entitlement.base else CPU)
        held_back = bool(header[HELD_BACK])
        if ready or fresh:
            # Wake idle workers first; idle is not blocked.
            unclaimed = 0 if held_back else max(0, ready - self._wake_resting(PROCESS, ready))
            if self._must_not_grow():
                unclaimed = 0
            fresh = fresh if self._fresh_may_begin() else 0
            more = staffing.at_look(unclaimed, fresh, ordinary, self.cap, self.entitlement.right, waiting)
            for _ in range(1 if more.with_cookie and self.entitlement.take_cookies(1) else more.without):
                self._start_process(more.lane)
        self._retire(now, 0 if held_back else ready + fresh)
        self._join_retired_threads()
        waiting_threads = 0 if held_back else header[READY_COUNT + THREAD]
        waiting_threads -= self._wake_resting(THREAD, waiting_threads)
        more_threads = staffing.threads_for(waiting_threads, header[IDLE + THREAD], len(self.threads))
        for _ in range(more_threads):
            self._start_thread()
        if not more_threads:
            self._retire_threads(now)

    def _shorten_stretches(self, now: int) -> None:
        """Make the leaves ready that wait in a worker's stretch for one that takes long."""
        table, slots = self.table, self.table.slots
        for slot in self.processes:
            base = slot * SLOT
            if slots[base + NODE] < slots[base + STRETCH_HIGH] and slots[base + BEGUN] == RUNS and now - slots[base + SINCE] > LONG_LEAF:
                with table.locked(UNCLAIMED):
                    table.settle_stretch(slot)
                    if now - slots[base + SINCE] > LONG_LEAF:
                        table.take_back(slot, self.site.flow, self.site.lanes)

    def _fresh_may_begin(self) -> bool:
        """Whether a body that needs a process of its own may begin now."""
        node = self.table.header[READY_HEAD + FRESH]
        return node >= 0 and (not self.admission.crowded or admits(self.table, self.site.flow.body_of[node]))

    def _cpu_use(self) -> float:
        """How many CPUs the workers have kept busy since the last look. A worker that waits for a
        nested run counts for what that run uses."""
        slots = self.table.slots
        total = 0.0
        for worker in self.processes.values():
            base = worker.slot * SLOT
            nested = slots[base + NESTED]
            if not worker.look((slots[base + NODE], slots[base + SINCE]), nested >= 0):
                continue
            if slots[base + STATE] == STARTING:
                nested = 1000  # it is starting and will take what is ready
            total += max(worker.share, nested / 1000)
        return total

    def _wanting_cpu(self) -> float:
        """How many workers would run now if the machine had a CPU for each. One that waits for a
        CPU waits for nothing else."""
        slots = self.table.slots
        found = 0.0
        for worker in self.processes.values():
            nested = 1000 if slots[worker.slot * SLOT + STATE] == STARTING else slots[worker.slot * SLOT + NESTED]
            found += nested / 1000 if nested >= 1000 else max(nested / 1000, float(worker.runnable()))
            if found > self.entitlement.right + 1:
                break
        return found

    def _seek_room(self) -> None:
        """Seek a CPU for nodes that are held back, and wake resting workers for them."""
        base = self.entitlement.base
        if not self.entitlement.seek():
            if self.around is not None:
                # Nothing tells us when the run around this one has room.
                self.pause = FIRST_LOOK
            return
        if self.entitlement.base > base:
            self.low_looks = 0
        header, places = self.table.header, room(self.table)
        places -= self._wake_resting(PROCESS, min(places, self.table.waiting_for_worker()))
        self._wake_resting(THREAD, min(places, header[READY_COUNT + THREAD]))

    def _wake_resting(self, lane: int, ready: int) -> int:
        """Wake resting workers for ready nodes, and return how many. The byte that should have
        woken them may have been read by a worker that then died."""
        table = self.table
        slots = table.slots
        those = self.threads if lane == THREAD else self.processes
        if ready <= 0 or not any(slots[slot * SLOT + STATE] == RESTING for slot in those):
            return 0
        with table.locked(UNCLAIMED):
            resting = sum(slots[slot * SLOT + STATE] == RESTING and slots[slot * SLOT + LANE] == lane for slot in those)
            woken = min(ready, resting)
            table.header[IDLE + lane] -= woken
        if woken:
            posix.write(self.site.wake_of(lane)[1], b"!" * woken)
        return woken

    def _retire(self, now: int, ready: int) -> None:
        """Retire workers that have had nothing to do for a while, and give back the cookies that
        are no longer needed."""
        header, slots = self.table.header, self.table.slots
        resting = sum(slots[slot * SLOT + STATE] == RESTING for slot in self.processes)
        if ready or not resting:
            self.idle_since = 0
        elif not self.idle_since:
            self.idle_since = now
        elif now - self.idle_since > PATIENCE * 1e9:
            with self.table.locked(UNCLAIMED):
                sent = staffing.to_retire(resting, header[IDLE + PROCESS], len(self.processes), bool(header[HELD_BACK]))
                header[IDLE + PROCESS] -= sent
            posix.write(self.site.wake[1], b"." * sent)
            self.idle_since = 0
        if not ready:
            crowded, committed = self.admission.crowded, header[COMMITTED] / CPU
            self.entitlement.give_cookies(staffing.cookies_kept(len(self.processes), self.entitlement.base, crowded, committed))

    def _join_retired_threads(self) -> None:
        """Take back the slots of threads that have retired."""
        for slot in [slot for slot in self.threads if self.table.slots[slot * SLOT + STATE] == GONE]:
            self.threads.pop(slot)[0].join()
            self.free.append(slot)

    def _retire_threads(self, now: int) -> None:
        """Retire threads in a crowded run: one that rests is one too many for those that
        compute."""
        header = self.table.header
        if not self.admission.crowded or not header[IDLE + THREAD]:
            self.threads_idle_since = 0
        elif not self.threads_idle_since:
            self.threads_idle_since = now
        elif now - self.threads_idle_since > PATIENCE * 1e9:
            with self.table.locked(UNCLAIMED):
                sent = max(0, header[IDLE + THREAD])
                header[IDLE + THREAD] -= sent
            posix.write(self.site.wake_threads[1], b"." * sent)
            self.threads_idle_since = 0

    # Ending ---------------------------------------------------------------------------------------

    def _retire_all(self) -> None:
        """Wake all resting workers. They see in the table that the run is over, and retire."""
        if self.processes:
            with contextlib.suppress(BlockingIOError):
                for write in (self.site.wake[1], *(write for _, write in self.site.wake_devices)):
                    posix.write(write, b"." * (len(self.processes) + 1))
        if self.threads:
            with contextlib.suppress(BlockingIOError):
                posix.write(self.site.wake_threads[1], b"." * (len(self.threads) + 1))
        if self.away is not None:
            self.away[1].rouse()

    def _end(self, in_order: bool) -> None:
        """Stop what still runs, and give everything back."""
        with Deferred():
            self._end_all(in_order)

    def _end_all(self, in_order: bool) -> None:
        threads = []
        for slot, (thread, body) in list(self.threads.items()):
            # A thread cannot be stopped in a body, but what it waits for can. Tell all before
            # waiting for any.
            if in_order or body.stop() or self.table.slots[slot * SLOT + STATE] != BUSY:
                threads.append(thread)
            else:
                body.forfeit()  # it may run on for long
        if self.away is not None:
            self.away[1].stop()
            threads.append(self.away[0])
        if not in_order:
            self._retire_all()
            trees = descendants.started_by([worker.pid for worker in self.processes.values() if self._runs(worker)])
            trees += self.deadlines.started()
            for worker in self.processes.values():
                if worker.slot not in self.deadlines.late:
                    worker.kill(signal.SIGTERM)
            self._end_processes(time.monotonic() + GRACE, kill=True)
            descendants.kill(trees)
        elif self.processes:
            if self.outer is not None:
                # A worker that waits in a nested run holds a place on a CPU. It must not be used
                # twice.
                self._end_processes(time.monotonic() + 0.1, kill=False)
            # The kernel takes a while to free what they hold. The caller need not wait for that.
            self.leaving = list(self.processes.values())
            self.processes.clear()
            if self.capture:
                # What was printed comes before the news that the run is over.
                for worker in self.leaving:
                    if worker.out >= 0:
                        forward(worker, worker.out)
        self.entitlement.give_cookies(0)
        if in_order:
            self.entitlement.regain(lambda: self.cancelled)
        self.entitlement.end()
        until = time.monotonic() + 2.0
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _runs(self, worker: WorkerProcess) -> bool:
        return bool(self.table.slots[worker.slot * SLOT + BEGUN])

    def _end_processes(self, until: float, kill: bool) -> None:
        """Wait until the workers have ended. At `until`, kill the rest (`kill`) or leave them."""
        while self.processes:
            left = until - time.monotonic()
            if left <= 0:
                if not kill:
                    return
                for worker in self.processes.values():
                    worker.kill(signal.SIGKILL)
                until, left = time.monotonic() + 1.0, 1.0
            for fd, _ in self.roster.poll.poll(max(1, int(min(left, 0.05) * 1000))):
                worker_of = self.roster.by_fd.get(fd)
                if worker_of is not None and fd != worker_of.watch:
                    self.roster.forward(worker_of, fd)
            for worker in list(self.processes.values()):
                if worker.ended():
                    self.roster.forward_rest(worker)
                    self.deaths.clear_up(worker)


def _thread_life(worker: Worker) -> None:
    try:
        run_as(worker)
    finally:
        worker.site.leave()
