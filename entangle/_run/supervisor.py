"""The supervisor: the part of the invoking process that starts workers, reaps them and keeps the deadlines of a run.

It decides nothing about what runs next. It sleeps in `poll` and wakes for three reasons: a worker has written to the pipe
(the run is over, or has work for more workers), a worker process has ended, or it is time to look. A look is cheap
(CPU clocks of the workers, some numbers of the table) and comes every few milliseconds at first, seldom later:

- nodes are ready, and the workers use less CPU than they are entitled to: they wait for something, so add as many again;
- nodes are ready and the budget has a cookie: one more worker;
- workers are idle: send them home and give their cookies back, a nested or neighbouring run may need them;
- more workers than CPUs are there: bodies begin only where there is a CPU for them (`admission.py`);
- a body is past its `timeout`, or the arguments of a node are past its `wait`.
"""

from __future__ import annotations

import contextlib
import posix
import select
import signal
import threading
import time
from collections.abc import Callable

from entangle._run import descendants, staffing
from entangle._run.crowding import Admission, WorkerThread
from entangle._run.deaths import Deaths
from entangle._run.entitlement import Entitlement
from entangle._run.forking import fork_is_safe
from entangle._run.forwarding import stdout_is_plain
from entangle._run.roster import Roster
from entangle._run.start import start_worker
from entangle._run.worker_process import GRACE, WorkerProcess
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
    NESTED,
    NEXT_NODE,
    NOBODY,
    NODE,
    PLANNED,
    READY_COUNT,
    READY_HEAD,
    RESTING,
    SHARE,
    SINCE,
    SLOT,
    STARTING,
    STATE,
    STOP,
    UNCLAIMED,
    WAITING_POOL,
)
from entangle._worker.admission import CPU, admits, room
from entangle._worker.failures import error_of
from entangle._worker.worker import Worker, here, run_as
from entangle.cookies import CookieQueue
from entangle.errors import UnpicklableError
from entangle.flow import FRESH, HERE, PROCESS, THREAD

FIRST_LOOK, LAST_LOOK = 0.003, 0.02
FIRST_LOOK_NESTED = 0.01
#: The longest pause between two looks while the workers use all the CPU that they are entitled to (seconds).
LONGEST_PAUSE = 0.06
#: A worker that has found nothing to do for so long is sent home (seconds).
PATIENCE = 0.02
MOST_THREADS = 256


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
        self.roster = Roster(slots)
        self.processes, self.threads, self.free = self.roster.processes, self.roster.threads, self.roster.free
        self.leaving: list[WorkerProcess] = []
        self.cap = cap
        self.serial = 0
        self.roster.poll.register(listen, select.POLLIN)
        self.cancelled = False
        #: The calling thread as a worker, while it runs a body: who cancels the run ends what that waits for.
        self.calling: Worker | None = None
        self.looked_at = time.monotonic_ns()
        self.idle_since = self.threads_idle_since = 0
        self.low_looks = 0
        self.admission = Admission(site.table, site.flow)
        #: Whether the flow turned out not to travel: workers that were forked have it, and more can only come by another fork.
        self.rooted = False
        self.capture = not stdout_is_plain()
        self.deaths = self._make_deaths()
        self.deadlines = self.deaths.deadlines
        #: The slot that we are in, where this is a nested run: whoever supervises us looks there.
        outer = here.worker
        if outer is not None and outer.forked:
            outer = None  # a child that a body has forked
        self.outer = outer if outer is not None and outer.in_process else None
        self.entitlement = Entitlement(site, budget, self.roster, self.admission, outer)
        self.around = self.entitlement.around
        #: The pause until the next look (seconds), and after a worker has been started. A nested run is one of many, and their supervisors
        #: compute when they look.
        self.first_pause = FIRST_LOOK if self.around is None else FIRST_LOOK_NESTED
        self.pause = self.first_pause

    def _make_deaths(self) -> Deaths:
        return Deaths(self.site, self.store, self.roster)

    # The run -----------------------------------------------------------------------------------------------

    def supervise(self) -> None:
        """Run the flow to its end. What ended it, if not its value, `failure` tells."""
        header = self.table.header
        # Our own supervisor is to see a worker at work until we know better.
        self.entitlement.report(CPU)
        try:
            self.entitlement.begin()
            if not self.cancelled:
                self._start_first()
            while not header[FINISHED]:
                if header[FAILED_NODE] >= 0 or self.deaths.error is not None or self.cancelled:
                    break
                if header[READY_COUNT + HERE] and self._run_here():
                    continue
                # Said before we look at what is ready, so that nothing becomes ready unheard in between.
                header[HUNGRY] = HUNGRY_FOR_ALL if self._could_start() else HUNGRY_FOR_OTHERS
                self._start_wanted()
                self._sleep()
                self._look()
        except BaseException:
            self.table.let_go()
            header[STOP] = 1
            self._end(in_order=False)
            raise
        in_order = bool(header[FINISHED])
        header[STOP] = 1
        self.admission.remember()
        if not in_order:
            self._end(in_order=False)
        else:
            self._retire_all()

    def cancel(self) -> None:
        """End the run from another thread: `supervise` returns soon after."""
        self.cancelled = True
        if self.calling is not None:
            self.calling.stop()
        self.site.notify()

    def finish(self) -> None:
        """After the value has been taken: wait for the workers of a run that ended in order."""
        self._end(in_order=True)
        self.entitlement.report(NOBODY)

    def failure(self) -> BaseException | None:
        """The error that ended the run, as the caller gets it; None where none did."""
        if self.deaths.error is not None:
            return self.deaths.error
        node: int = self.table.header[FAILED_NODE]
        return error_of(self.site, self.store, node) if node >= 0 else None

    # Starting ----------------------------------------------------------------------------------------------

    def _start_first(self) -> None:
        header = self.table.header
        wanted = self.table.waiting_for_worker()
        if not wanted:
            return
        self.entitlement.take_cookies(min(wanted, self.cap) - self.entitlement.base)
        header[PLANNED] = staffing.first(wanted, self.cap, self.entitlement.right)
        for _ in range(header[PLANNED]):
            self._start_process(PROCESS)
            if header[FINISHED] or header[STOP]:
                break

    def _start_wanted(self) -> None:
        """Start workers for what is ready and that nobody else will take."""
        header = self.table.header
        if header[READY_COUNT + FRESH] and self.free:
            there, running = self._count(FRESH), self._running_fresh()
            for _ in range(staffing.for_fresh(header[READY_COUNT + FRESH], running, there, self.entitlement.right)):
                self._start_process(FRESH)
        ready = 0 if header[HELD_BACK] and self.processes else header[READY_COUNT + PROCESS]
        if not self.processes and not ready:
            ready = self.table.leaves_left()  # the workers who were to take them have died
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

    def _count(self, lane: int) -> int:
        return sum(worker.lane == lane for worker in self.processes.values())

    def _must_not_grow(self) -> bool:
        """Whether those who are there must do with each other, as long as there are threads beside which nobody forks."""
        return self.rooted and self._count(PROCESS) > 0 and not fork_is_safe()

    def _could_start(self) -> bool:
        """Whether one more worker process is ours to start."""
        if self._must_not_grow():
            return False
        count = len(self.processes)
        return count < self.cap and (count < self.entitlement.right or (self.budget is not None and self.budget.count() > 0))

    def _running_fresh(self) -> int:
        slots = self.table.slots
        return sum(
            worker.lane == FRESH and slots[worker.slot * SLOT + NODE] >= 0 and slots[worker.slot * SLOT + STATE] == BUSY
            for worker in self.processes.values()
        )

    def _start_process(self, lane: int) -> None:
        if not self.free or (lane == PROCESS and self._must_not_grow()):
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
            if isinstance(error, OSError) and self.processes:
                return  # no room for one more process: those who are there go on
            if isinstance(error, UnpicklableError) and lane == PROCESS and self._count(PROCESS):
                self.rooted = True  # those who are there were forked, and go on
                return
            told = limit_error("no worker process can be started", error) if isinstance(error, OSError) else None
            if told is not None:
                raise told from None
            raise
        self.roster.add(worker)
        self.pause = self.first_pause

    def _start_thread(self) -> None:
        if not self.free:
            self._see_threads_off()
        if not self.free or len(self.threads) >= MOST_THREADS:
            return
        slot = self.free.pop()
        self._clear_slot(slot, THREAD)
        self.entitlement.make_room()
        self.serial += 1
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
                return  # no room for one more thread: those who are there go on
            raise no_thread(error) from None
        self.threads[slot] = (thread, worker)
        self.pause = self.first_pause

    def _clear_slot(self, slot: int, lane: int) -> None:
        slots, base = self.table.slots, slot * SLOT
        for field in (BEGUN, COOKIE, WAITING_POOL, DOOMED, SINCE, SHARE):
            slots[base + field] = 0
        slots[base + NODE] = slots[base + NEXT_NODE] = slots[base + NESTED] = NOBODY
        slots[base + LANE] = lane

    def _run_here(self) -> bool:
        """Nothing is left but a body that runs where the call is run: run it in this thread. Gives whether there may be more."""
        self._retire_all()
        self._end_processes(time.monotonic() + 30.0, kill=False)
        self.entitlement.give_cookies(0)
        while not self.free and self.threads:
            self._see_threads_off()  # told to end just now, or retired a moment ago
            time.sleep(0.001)
        slot = self.free.pop()
        self._clear_slot(slot, HERE)
        self.serial += 1
        worker = Worker(self.site, slot, HERE, self.serial)
        worker.seat, worker.token = self.entitlement.seat, self.entitlement.token
        outer = here.worker
        self.calling = worker
        if self.cancelled:
            worker.stopped = True
        try:
            run_as(worker)
        finally:
            self.calling = None
            worker.give_cookie()
            if outer is None or not worker.forked:
                self.free.append(slot)
        return True

    # Looking -----------------------------------------------------------------------------------------------

    def _sleep(self) -> None:
        """Sleep until somebody wants us or it is time to look, then see to what has come."""
        until = self.pause
        if self.deaths.retries:
            until = min(until, max(0.0, self.deaths.retries[0][0] - time.monotonic()))
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
            with Deferred():  # it opens files
                self.looked()
        table = self.table
        header = table.header
        if header[FINISHED] or header[STOP]:
            return
        ready = table.waiting_for_worker()
        fresh = header[READY_COUNT + FRESH]
        count = len(self.processes)
        threads = [WorkerThread(slot, thread.native_id) for slot, (thread, _) in self.threads.items()]
        with Deferred():  # these open files, too
            used = self._cpu_use(now)
            used += self.admission.look(now, self.processes.values(), threads)
        if self.admission.crowded and self.entitlement.base and count + len(threads) <= self.entitlement.right:
            self.admission.thin_out()
        enough = staffing.enough(self.entitlement.right)
        matters = ready or fresh or self.around is not None or self.entitlement.seat.wanted(self.entitlement.token)
        if used < enough and matters and (self.entitlement.base or not header[HELD_BACK]):
            with Deferred():
                used = max(used, self._wanting_cpu())
        # One look may fall into a lock, a page fault or the end of a nested run; two in a row mean that they wait.
        self.low_looks = self.low_looks + 1 if used < enough else 0
        waiting = self.low_looks > 1
        if waiting:
            self.first_pause = FIRST_LOOK  # more workers are wanted soon
        if self.low_looks or self.admission.crowded:
            self.pause = min(LAST_LOOK, self.pause * 1.5)
        else:
            # A supervisor that looks is one more that computes, and there may be one for each nested run.
            self.pause = min(LONGEST_PAUSE, self.pause * 2)
        self.entitlement.look_after_place(waiting)
        self.entitlement.look_after_stuck(now)
        if not self.entitlement.base:
            used -= self.entitlement.cookies  # what we compute with cookies of our own takes nobody's place
        self.entitlement.report(int(max(0.0, min(1.0, used)) * CPU) if waiting or not self.entitlement.base else CPU)
        held_back = bool(header[HELD_BACK])
        if ready or fresh:
            # Wake idle workers first; idle is not blocked.
            unclaimed = 0 if held_back else max(0, ready - self._wake_resting(PROCESS, ready))
            if self._must_not_grow():
                unclaimed = 0
            fresh = fresh if self._fresh_may_begin() else 0
            more = staffing.at_look(unclaimed, fresh, count, self.cap, self.entitlement.right, waiting)
            for _ in range(1 if more.with_cookie and self.entitlement.take_cookies(1) else more.without):
                self._start_process(more.lane)
        self._retire(now, 0 if held_back else ready + fresh)
        self._see_threads_off()
        waiting_threads = 0 if held_back else header[READY_COUNT + THREAD]
        waiting_threads -= self._wake_resting(THREAD, waiting_threads)
        more_threads = staffing.threads_for(waiting_threads, header[IDLE + THREAD], len(self.threads))
        for _ in range(more_threads):
            self._start_thread()
        if not more_threads:
            self._retire_threads(now)

    def _fresh_may_begin(self) -> bool:
        """Whether a body that wants a process of its own may begin now."""
        node = self.table.header[READY_HEAD + FRESH]
        return node >= 0 and (not self.admission.crowded or admits(self.table, self.site.flow.body_of[node]))

    def _cpu_use(self, now: int) -> float:
        """How many CPUs the workers have kept busy since the last look. A worker that waits for a nested run uses what that does."""
        slots = self.table.slots
        total = 0.0
        for worker in self.processes.values():
            base = worker.slot * SLOT
            nested = slots[base + NESTED]
            if not worker.look(now, (slots[base + NODE], slots[base + SINCE]), nested >= 0):
                continue
            if slots[base + STATE] == STARTING:
                nested = 1000  # on its way: it will take what is ready
            total += max(worker.share, nested / 1000)
        return total

    def _wanting_cpu(self) -> float:
        """How many workers would run now if the machine had CPUs to spare for them: one that waits for a CPU waits for nothing else."""
        slots = self.table.slots
        found = 0.0
        for worker in self.processes.values():
            nested = 1000 if slots[worker.slot * SLOT + STATE] == STARTING else slots[worker.slot * SLOT + NESTED]
            found += nested / 1000 if nested >= 1000 else max(nested / 1000, float(worker.runnable()))
            if found > self.entitlement.right + 1:
                break
        return found

    def _seek_room(self) -> None:
        """Nodes are ready for whose bodies there is no CPU: seek one, and wake who rests."""
        base = self.entitlement.base
        if not self.entitlement.seek():
            if self.around is not None:
                self.pause = FIRST_LOOK  # nobody tells us when there is room in the run around this one
            return
        if self.entitlement.base > base:
            self.low_looks = 0
        header, places = self.table.header, room(self.table)
        places -= self._wake_resting(PROCESS, min(places, self.table.waiting_for_worker()))
        self._wake_resting(THREAD, min(places, header[READY_COUNT + THREAD]))

    def _wake_resting(self, lane: int, ready: int) -> int:
        """Wake workers that rest while nodes are ready: the byte that should have woken them may have died with another. Gives how
        many there are."""
        table = self.table
        slots = table.slots
        those = self.processes if lane == PROCESS else self.threads
        if ready <= 0 or not any(slots[slot * SLOT + STATE] == RESTING for slot in those):
            return 0
        with table.locked(UNCLAIMED):
            resting = sum(slots[slot * SLOT + STATE] == RESTING and slots[slot * SLOT + LANE] == lane for slot in those)
            woken = min(ready, resting)
            table.header[IDLE + lane] -= woken
        if woken:
            posix.write((self.site.wake if lane == PROCESS else self.site.wake_threads)[1], b"!" * woken)
        return woken

    def _retire(self, now: int, ready: int) -> None:
        """Send home whoever has had nothing to do for a while, and give back the cookies that are no longer needed."""
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

    def _see_threads_off(self) -> None:
        """Take back the slots of threads that have retired."""
        for slot in [slot for slot in self.threads if self.table.slots[slot * SLOT + STATE] == GONE]:
            self.threads.pop(slot)[0].join()
            self.free.append(slot)

    def _retire_threads(self, now: int) -> None:
        """As `_retire`, for threads: one that rests is a worker too many for those that compute."""
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

    # Ending ------------------------------------------------------------------------------------------------

    def _retire_all(self) -> None:
        """Wake everybody who rests; those who look at the table see that the run is over."""
        if self.processes:
            with contextlib.suppress(BlockingIOError):
                posix.write(self.site.wake[1], b"." * (len(self.processes) + 1))
        if self.threads:
            with contextlib.suppress(BlockingIOError):
                posix.write(self.site.wake_threads[1], b"." * (len(self.threads) + 1))

    def _end(self, in_order: bool) -> None:
        """Stop whoever still runs, give everything back."""
        with Deferred():
            self._end_all(in_order)

    def _end_all(self, in_order: bool) -> None:
        threads = []
        for slot, (thread, body) in list(self.threads.items()):
            # A thread cannot be stopped in a body, but what it waits for can. All are told before any is waited for.
            if in_order or body.stop() or self.table.slots[slot * SLOT + STATE] != BUSY:
                threads.append(thread)
        if not in_order:
            self._retire_all()
            trees = descendants.started_by([worker.pid for worker in self.processes.values() if self._runs(worker)])
            trees += self.deadlines.started()
            for worker in self.processes.values():
                if worker.slot not in self.deadlines.late:  # told already
                    worker.kill(signal.SIGTERM)
            self._end_processes(time.monotonic() + GRACE, kill=True)
            descendants.kill(trees)
        elif self.processes:
            if self.outer is not None:
                # Who waits in a nested run is a place on a CPU, which is not to be used twice.
                self._end_processes(time.monotonic() + 0.1, kill=False)
            # Their end takes a while, since the kernel has to free what they hold; the caller need not wait for that.
            self.leaving = list(self.processes.values())
            self.processes.clear()
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
        """Wait until the workers have ended; at `until`, kill them (`kill`) or leave it at that."""
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
