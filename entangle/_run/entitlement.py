"""The CPUs that a run may use: the place of its caller, who waits, and cookies of the budget.

The caller's place is one CPU, and other runs may want it: those that other threads call in the same body, or the bodies beside
it in the run around. A run leaves it while its workers wait, takes turns where others want it, and takes it again when nodes are
held back for want of a CPU. Where nothing ends for long, those that compute may wait for one that is held back: then one body
more may compute than there are CPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from entangle._run.crowding import Admission
from entangle._run.roster import Roster
from entangle._shared.site import Site
from entangle._shared.table import COMMITTED, CROWDED, HELD_BACK, NESTED, READY_COUNT, STOP
from entangle._worker.admission import CPU, SLACK, Seat, claim, seat_of_callers
from entangle._worker.worker import Worker
from entangle.cookies import ANY_CPU, CookieQueue
from entangle.flow import HERE, THREAD

#: Pauses between two tries to have the caller's place again (seconds).
_FIRST_TRY, _LAST_TRY = 0.003, 0.02
#: How long a run may have the place of its caller while another run wants it (seconds).
TURN = 0.1
#: After so long without any body that ends, one more may compute than there are CPUs (seconds).
STUCK = 2.0


class Entitlement:
    """What one run may use. `outer` is the worker in whose body the run was called, if in one."""

    def __init__(self, site: Site, budget: CookieQueue | None, roster: Roster, admission: Admission, outer: Worker | None) -> None:
        self.site = site
        self.table = site.table
        self.budget = budget
        self.roster = roster
        self.admission = admission
        #: Cookies of the budget that the run has.
        self.cookies = 0
        #: The worker in whose body this run was called, where that is a place on a CPU: whoever supervises it looks at its slot.
        self.around = outer if outer is not None and outer.lane != HERE else None
        #: Where the caller's own place is had, and who we are there: a run in a body of the calling thread is as the run around it.
        self.seat: Seat = outer.seat if outer is not None else seat_of_callers()
        self.token: object = outer.token if outer is not None and outer.token is not None else self
        #: Whether we have that place: 1 or 0 CPUs; and whether we leave it to another run when a body of ours has ended.
        self.base = 0
        self.yielding = False
        #: A place more than we have a right to, where nothing else would let us go on; since when that may be, and nodes done by then.
        self.extra = 0
        self.held_since, self.held_done = 0, -1

    @property
    def right(self) -> int:
        """How many CPUs the run may keep busy now."""
        return self.base - self.yielding + self.cookies + self.extra

    def report(self, used: int) -> None:
        """Say what this run uses to whoever supervises the worker that waits for it (thousandths of a CPU)."""
        if self.around is not None:
            self.around.site.table.slots[self.around.base + NESTED] = used

    def begin(self) -> None:
        """The run begins: take the caller's place, if it is to be had."""
        self.base = int(self._take_place())
        self.admission.entitle(self.right)

    def _take_place(self) -> bool:
        """Take the place of the caller, who waits: unless it waits for another run that has it, or others compute there meanwhile."""
        if not self.seat.take(self.token, self.site.notify):
            return False
        if self.around is None or claim(self.around, CPU if self._is_stuck() else 0):
            return True
        self.seat.leave(self.token)
        return False

    def _leave_place(self) -> None:
        """Let others compute in the place of the caller, until we want it again."""
        self.base, self.yielding = 0, False
        self.admission.entitle(self.right)
        self._crowd()
        self.seat.leave(self.token)

    def seek(self) -> bool:
        """Nodes are ready for whose bodies there is no CPU: take the caller's place, or a cookie. Whether either was to be had."""
        if self.yielding:
            self._yield()
        elif not self.base and self._take_place():
            self.base = 1
            self.admission.entitle(self.right)
            self.report(CPU)
        elif not self.take_cookies(1) and not self._squeeze_in():
            return False
        return True

    def _is_stuck(self) -> bool:
        """Whether nodes have waited for a CPU for long, and none has ended meanwhile."""
        return bool(self.held_since) and time.monotonic_ns() - self.held_since > STUCK * 1e9

    def _squeeze_in(self) -> bool:
        """Let one body more compute than there are CPUs, where nothing has ended for long: those that compute may wait for it. One run
        at a time may do so."""
        if self.extra or not self._is_stuck() or not self.seat.squeeze(self.token):
            return False
        self.extra = 1
        self.admission.entitle(self.right)
        return True

    def look_after_stuck(self, now: int) -> None:
        """Note since when nodes wait for a CPU without any that ends (ns)."""
        ready = self.table.waiting_for_worker() or self.table.header[READY_COUNT + THREAD]
        if not self.extra and not (self.admission.was_crowded and ready):
            self.held_since = 0
            return
        done = self.table.done()
        if not self.held_since or done != self.held_done:
            self.held_since, self.held_done = now, done
            if self.extra:
                self.extra = 0
                self.seat.ease(self.token)
                self.admission.entitle(self.right)
                self.make_room()
        elif not self.table.header[HELD_BACK]:
            self._squeeze_in()

    def look_after_place(self, waiting: bool) -> None:
        """Leave the caller's place to others who want it, if we do not use it, or have had it for long."""
        if not self.base:
            return
        others = self.seat.wanted(self.token)
        if waiting and (others or (self.around is not None and self.around.site.table.header[CROWDED])):
            self._leave_place()
        elif others and (self.cookies or self.seat.held_for() > TURN):
            self.yielding = True
            self.admission.entitle(self.right)
            self._crowd()
            self._yield()
        elif self.yielding:
            self.yielding = False
            self.admission.entitle(self.right)

    def _yield(self) -> None:
        """Leave the caller's place as soon as what still runs can do without it."""
        if self.table.header[COMMITTED] <= self.cookies * CPU + SLACK:
            self._leave_place()

    def regain(self, cancelled: Callable[[], bool]) -> None:
        """The body that has called us goes on now, and may compute: wait until there is a CPU for it."""
        around = self.around
        if around is None or self.base:
            return
        self.report(0)  # we wait; else all who do would be taken to compute, and nobody could go on
        pause, self.held_since = _FIRST_TRY, time.monotonic_ns()
        while not (around.stopped or around.site.table.header[STOP] or cancelled()) and not self._take_place():
            time.sleep(pause)
            pause = min(_LAST_TRY, pause * 1.5)
        self.base = 1

    def take_cookies(self, most: int) -> int:
        """Take up to so many cookies of the budget; gives how many there were."""
        taken = 0
        while taken < most and self.budget is not None:
            if self.budget.take() is None:
                break
            self.cookies += 1
            taken += 1
        self.admission.entitle(self.right)
        return taken

    def give_cookies(self, keep: int) -> None:
        while self.cookies > keep and self.budget is not None:
            self.cookies -= 1
            self.admission.entitle(self.right)
            self.budget.give(ANY_CPU)

    def make_room(self) -> None:
        """One more worker is about to come: with it there may be more than CPUs."""
        if len(self.roster.processes) + len(self.roster.threads) >= self.right:
            self._crowd()

    def _crowd(self) -> None:
        """Bodies begin only where there is a CPU for them, from now on."""
        if not self.admission.crowded:
            self.admission.crowd((*self.roster.processes, *self.roster.threads))

    def end(self) -> None:
        """The run is over: what it has left is for others."""
        self.seat.ease(self.token)
        if self.token is self:
            self.seat.leave(self)
        if self.budget is not None and self.budget.held_here():
            self.budget.give_back()  # taken, and not counted when we were interrupted
