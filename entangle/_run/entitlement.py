"""The CPUs that a run may use: the place of its caller, which waits, and cookies of the budget.

The caller's place is one CPU. Other runs may want it: runs that other threads of the same body have
called, or bodies beside it in the run around. A run leaves the place while its workers wait. It
takes turns where others want the place, and takes it again when nodes are held back for want of a
CPU.

Where nothing has ended for long, running bodies may wait for one that is held back. Then one body
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

#: Pauses between two tries to take the caller's place again (seconds).
_FIRST_TRY, _LAST_TRY = 0.003, 0.02
#: How long a run keeps the caller's place while another run wants it (seconds).
TURN = 0.1
#: If no body has ended for this long, one more may compute than there are CPUs (seconds).
STALLED = 2.0


class Entitlement:
    """What one run may use. `outer` is the worker in whose body the run was called, if any."""

    def __init__(self, site: Site, budget: CookieQueue | None, roster: Roster, admission: Admission, outer: Worker | None) -> None:
        self.site = site
        self.table = site.table
        self.budget = budget
        self.roster = roster
        self.admission = admission
        #: Cookies that the run has taken.
        self.cookies = 0
        #: The worker in whose body this run was called, if it holds a place on a CPU. Its
        #: supervisor reads there what this run uses.
        self.around = outer if outer is not None and outer.lane != HERE else None
        #: Where the caller's place is taken, and as whom. A run in a body of the calling thread
        #: shares the place with the run around it.
        self.seat: Seat = outer.seat if outer is not None else seat_of_callers()
        self.holder: object = outer.holder if outer is not None and outer.holder is not None else self
        #: Whether the run has that place (1 or 0 CPUs), and whether it leaves it when a body has
        #: ended.
        self.base = 0
        self.yielding = False
        #: One place beyond the right, if nothing else would go on, and how many nodes were done
        #: when it was taken.
        self.extra = 0
        self.extra_done = -1
        #: Since when nothing has ended (ns), how many nodes were done by then, and the CPU time
        #: that the workers have used since (seconds).
        self.held_since, self.held_done = 0, -1
        self.held_cpu = 0.0

    @property
    def right(self) -> int:
        """How many CPUs the run may keep busy now."""
        return self.base - self.yielding + self.cookies + self.extra

    def report(self, used: int) -> None:
        """Tell the supervisor around what this run uses (thousandths of a CPU)."""
        if self.around is not None:
            self.around.site.table.slots[self.around.base + NESTED] = used

    def begin(self) -> None:
        """Take the caller's place for a run that begins, if it is free."""
        self.base = int(self._take_place())
        self.admission.entitle(self.right)

    def _take_place(self) -> bool:
        """Take the caller's place, unless another run has it or others compute there now."""
        if not self.seat.take(self.holder, self.site.notify):
            return False
        if self.around is None or claim(self.around):
            return True
        self.seat.leave(self.holder)
        return False

    def _leave_place(self) -> None:
        """Let others compute in the caller's place until this run wants it again."""
        self.base, self.yielding = 0, False
        self.admission.entitle(self.right)
        self._crowd()
        self.seat.leave(self.holder)

    def seek(self) -> bool:
        """Seek a CPU for nodes that are held back: the caller's place, or a cookie. Return whether
        there was one."""
        if self.yielding:
            self._yield()
        elif not self.base and self._take_place():
            self.base = 1
            self.held_since = 0
            self.admission.entitle(self.right)
            self.report(CPU)
        elif not self.take_cookies(1) and not self._squeeze_in():
            return False
        return True

    def _is_stalled(self) -> bool:
        """Whether nodes have waited for a CPU for long, and none has ended meanwhile."""
        if not self.held_since or time.monotonic_ns() - self.held_since < STALLED * 1e9:
            return False
        # On a machine that others use, bodies take long though none waits for another. So the CPU
        # time that they have used counts as well.
        return self.table.header[COMMITTED] <= SLACK or self.held_cpu > STALLED / 2

    def _squeeze_in(self) -> bool:
        """Let one body more compute than there are CPUs, after nothing has ended for long. One run
        at a time may do so."""
        if self.around is not None and not self.base:
            return False  # the run around this one is held back as well, and takes one more
        if self.extra or not self._is_stalled() or not self.seat.squeeze(self.holder):
            return False
        self.extra, self.extra_done = 1, self.table.done()
        self.admission.entitle(self.right)
        return True

    def watch_for_stall(self, now: int, cpu: float) -> None:
        """Note since when nodes have waited for a CPU with none that ends; `now` in ns. `cpu` is
        what the workers have used since the last call (seconds)."""
        header = self.table.header
        self.held_cpu += cpu
        # A run in one of our bodies that is held back counts: only the outermost run may take
        # more than its right.
        ready = self.table.waiting_for_worker() or header[READY_COUNT + THREAD] or header[HELD_BACK]
        if self.extra and self.table.done() != self.extra_done and header[COMMITTED] <= (self.right - 1) * CPU + SLACK:
            # Something has ended, and the running bodies fit without the extra place.
            self.extra = 0
            self.seat.ease(self.holder)
            self.admission.entitle(self.right)
            self.make_room()
        if not self.extra and not (self.admission.was_crowded and ready):
            self.held_since = 0
            return
        done = self.table.done()
        if not self.held_since or done != self.held_done:
            self.held_since, self.held_done, self.held_cpu = now, done, 0.0
        elif not header[HELD_BACK]:
            self._squeeze_in()

    def share_place(self, waiting: bool) -> None:
        """Leave the caller's place to others that want it, if it is unused or has been held for
        long."""
        if not self.base:
            return
        others = self.seat.wanted(self.holder)
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
        """Leave the caller's place as soon as the running bodies fit without it."""
        if self.table.header[COMMITTED] <= self.cookies * CPU + SLACK:
            self._leave_place()

    def regain(self, cancelled: Callable[[], bool]) -> None:
        """Wait for a CPU for the body that has called the run: it goes on now, and may compute."""
        around = self.around
        if around is None or self.base:
            return
        # We wait. Counted as computing, runs that all wait here would block each other.
        self.report(0)
        pause = _FIRST_TRY
        while not (around.stopped or around.site.table.header[STOP] or cancelled()) and not self._take_place():
            time.sleep(pause)
            pause = min(_LAST_TRY, pause * 1.5)
        self.base = 1

    def take_cookies(self, most: int) -> int:
        """Take up to `most` cookies of the budget. Return how many there were."""
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
        """Mark the run as crowded if one more worker is one more than CPUs."""
        if len(self.roster.processes) + len(self.roster.threads) >= self.right:
            self._crowd()

    def _crowd(self) -> None:
        """From now on, bodies begin only where there is a CPU for them."""
        if not self.admission.crowded:
            self.admission.crowd((*self.roster.processes, *self.roster.threads))

    def end(self) -> None:
        """Give up the caller's place and the budget: the run is over."""
        self.seat.ease(self.holder)
        if self.holder is self:
            self.seat.leave(self)
        if self.budget is not None and self.budget.held_here():
            # Cookies that were taken, and not counted yet when we were interrupted.
            self.budget.give_back()
