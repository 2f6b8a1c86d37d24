"""The watcher of a service: one thread that submits calls, asks for all tickets at once, and looks
for outcomes.

::

    begin(calls) ──▶ written to the mailbox ──▶ submit: tickets ──▶ under way ──▶ done or failed
                                                                       │
        every look    outcomes that lie in the mailbox, prints         │
        every second  service.outcomes(all tickets) ── over, and no outcome after a grace: it died
        (another thread renews the lease, however long the platform takes to answer)

Both threads end when nothing is under way, so a process that has used a service may fork again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence

from entangle._remote.caller.shown import PROGRAMS, STREAMS, Shown
from entangle._remote.wire.controls import escaped
from entangle._services import OVER, PENDING, Service, State
from entangle._services.caller import ends
from entangle._services.caller.messages import Messages
from entangle._services.caller.ticket import Ticket
from entangle._services.mailbox import Where
from entangle._shared.summaries import value_in_short
from entangle._worker import janitor
from entangle._worker.away import AwayCall
from entangle.errors import EntangleError

#: The pause between two looks into the mailbox is short while outcomes come, and longer by this
#: factor each time that none does.
LONGER = 1.1
#: The pause while there is no mailbox (seconds).
SHORTEST = 0.01
#: How long the threads stay when nothing is under way (seconds).
IDLE = 0.2
#: After waiting this long (seconds), a job is reported, with the platform's reason.
WAITED = 3.0
#: How long the platform may be out of reach before the calls fail (seconds).
PATIENCE = 300.0
#: Characters of a log in an error.
TAIL = 2000


class Watcher:
    """Calls at one service with one mailbox. Any thread may use it."""

    def __init__(self, service: Service, where: Where) -> None:
        self.service = service
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._running = False
        self._new: list[AwayCall] = []
        self._leaving: list[Ticket] = []
        self._count = 0
        #: All that is under way, by name; and what no ticket was given for yet, in order.
        self._tickets: dict[str, Ticket] = {}
        self._unsent: list[Ticket] = []
        self._numbers: dict[int, Ticket] = {}
        self._messages = Messages(service, where)
        self._shown = Shown(service.place, self._numbers)
        self._asked = self._heard = 0.0
        self._full_until = 0.0
        #: Why calls wait, as it was shown.
        self._told: set[str] = set()
        self._pause = SHORTEST
        self._pid = os.getpid()

    # From any thread ------------------------------------------------------------------------

    def begin(self, calls: Sequence[AwayCall]) -> None:
        """Take over these calls."""
        with self._guard:
            self._new += calls
            self._pause = SHORTEST
            if not self._running:
                self._running = True
                self._idle.clear()
                threading.Thread(target=self._watch, name="entangle-service", daemon=True).start()
        self._wake.set()

    def has_begun(self, call: AwayCall) -> bool:
        """Whether its body may have begun: the platform runs it, or it was claimed."""
        ticket = call.handle
        return isinstance(ticket, Ticket) and ticket.begun

    def cancel(self, call: AwayCall) -> bool:
        """Nobody wants its outcome any more: it never begins, or is ended."""
        with self._guard:
            if call in self._new:
                self._new.remove(call)
                return True
            ticket = call.handle
            if isinstance(ticket, Ticket) and not ticket.cancelled:
                ticket.cancelled = True
                self._leaving.append(ticket)
        self._wake.set()
        return True

    def waiting(self) -> list[tuple[AwayCall, str]]:
        """The calls that wait at the platform, and why, in its words."""
        with self._guard:
            return [(ticket.call, ticket.state.reason) for ticket in self._tickets.values() if not ticket.begun]

    def close(self) -> None:
        """End all that is under way, and remove the mailbox."""
        if self._pid != os.getpid():
            return
        with self._guard:
            tickets = [ticket.ticket for ticket in self._tickets.values() if ticket.ticket]
            box = self._messages.let_go()
        if tickets:
            with contextlib.suppress(Exception):
                self.service.cancel(tickets)
        if box is not None:
            box.close()

    # The thread -----------------------------------------------------------------------------

    def _watch(self) -> None:
        threading.Thread(target=self._renew_for_ever, name="entangle-lease", daemon=True).start()
        since: float | None = None
        while True:
            self._wake.wait(self._pause)
            self._wake.clear()
            try:
                with janitor.off_duty():  # the programs of the platform are no children of a body
                    self._round()
            except Exception as error:  # the mailbox is gone, or a bug of ours: no call may hang
                self._fail_all(error)
            if since is not None and time.monotonic() - since > IDLE:
                self._messages.rest()
            with self._guard:
                busy = bool(self._new or self._tickets or self._leaving)
                if busy:
                    since = None
                elif since is None:
                    since = time.monotonic()
                elif time.monotonic() - since > IDLE:
                    self._running = False
                    self._idle.set()
                    return

    def _renew_for_ever(self) -> None:
        idle = self._idle
        while not idle.wait(self._messages.renewed_every):
            self._messages.renew()

    def _round(self) -> None:
        with self._guard:
            new, self._new = self._new, []
            leaving, self._leaving = self._leaving, []
        if new:
            self._write(new)
        if self._unsent and time.monotonic() >= self._full_until:
            self._submit()
        if leaving:
            self._leave(leaving)
        if not self._tickets:
            return
        came = self._look()
        shortest, longest = self._messages.box.pauses
        self._pause = shortest if came else min(longest, max(shortest, self._pause * LONGER))
        if time.monotonic() - self._asked >= self.service.every:
            self._ask()
            self._asked = time.monotonic()

    # Out ------------------------------------------------------------------------------------

    def _write(self, calls: Sequence[AwayCall]) -> None:
        """Write the messages of these calls."""
        try:
            self._messages.open()
        except Exception as error:
            for call in calls:
                call.failed(ends.copy_of(error))
            return
        for call in calls:
            self._count += 1
            ticket = Ticket(call, self._count)
            try:
                self._messages.write(ticket)
            except Exception as error:
                call.failed(error)
                self._messages.discard(ticket.name)
                continue
            ticket.at(self.service.place)
            ticket.see(State(PENDING))
            with self._guard:
                call.handle = ticket
                self._tickets[ticket.name] = self._numbers[ticket.number] = ticket
                self._unsent.append(ticket)

    def _submit(self) -> None:
        """Submit what has no ticket yet, as many as the service takes."""
        at_once = self.service.limits().at_once
        now = time.monotonic()
        while ready := [ticket for ticket in self._unsent if ticket.rests <= now][:at_once]:
            taken = set(ready)
            rest = [ticket for ticket in self._unsent if ticket not in taken]
            batch = [ticket for ticket in ready if not ticket.cancelled]
            if batch:
                try:
                    self._messages.box.flush()
                    tickets = list(self.service.submit([ticket.message for ticket in batch if ticket.message is not None]))
                except Exception as error:
                    self._unsent = rest
                    for ticket in batch:
                        self._end(ticket)
                        ticket.call.failed(ends.copy_of(ends.of_service(self.service, "submit", error)))
                    continue
                for ticket, given in zip(batch, tickets, strict=False):
                    ticket.ticket, ticket.submitted = str(given), time.monotonic()
                    ticket.at(self.service.place)
                self._asked = time.monotonic()  # what was just taken need not be asked for at once
                self._heard = self._asked
                if len(tickets) < len(batch):
                    self._unsent = batch[len(tickets) :] + rest
                    for ticket in self._unsent:
                        ticket.see(State(PENDING, f"{self.service.place} takes no more jobs at the moment"))
                    self._full_until = time.monotonic() + self.service.every
                    return
            self._unsent = rest

    def _leave(self, leaving: Sequence[Ticket]) -> None:
        """End what nobody waits for any more."""
        known = [ticket for ticket in leaving if self._tickets.get(ticket.name) is ticket]
        self._unsent = [ticket for ticket in self._unsent if not ticket.cancelled]
        for ticket in known:
            self._messages.box.withdraw(ticket.name)
        given = [ticket.ticket for ticket in known if ticket.ticket]
        if given:
            try:
                self.service.cancel(given)
            except Exception as error:  # they end by themselves: their message is marked
                for ticket in known:
                    ticket.state = State(PENDING, f"it could not be cancelled: {error}")
        for ticket in known:
            self._end(ticket, keep=ticket.ticket != "")

    # In -------------------------------------------------------------------------------------

    def _look(self) -> bool:
        """Take what has come; gives whether anything has."""
        mailbox = self._messages.box
        for name, stream, data in mailbox.printed():
            if (ticket := self._tickets.get(name)) is not None:
                ticket.begin()
                self._shown.show(bytes((stream,)), ticket.number, data)
        arrived = [ticket for name in mailbox.arrived() if (ticket := self._tickets.get(name)) is not None]
        for ticket in arrived:
            self._take(ticket)
        return bool(arrived)

    def _take(self, ticket: Ticket) -> bool:
        """Take the outcome of a call, if there is one."""
        try:
            letter = self._messages.box.take(ticket.name)
        except (EntangleError, OSError) as error:
            letter = ends.damaged(error)
        if letter is None:
            return False
        self._show_rest(ticket)
        self._end(ticket)
        ends.deliver(self.service, ticket, letter)
        return True

    def _ask(self) -> None:
        """Ask the platform for all tickets."""
        given = {ticket.ticket: ticket for ticket in self._tickets.values() if ticket.ticket}
        if not given:
            return
        try:
            states = self.service.outcomes(list(given))
            wrong = [state for state in states.values() if not isinstance(state, State)]
        except Exception as error:
            trouble = ends.of_service(self.service, "outcomes", error)
            for ticket in given.values():
                if ticket.state.state != OVER:
                    ticket.see(State(ticket.state.state, str(trouble), ticket.state.error))
            if time.monotonic() - self._heard > PATIENCE:
                self._fail_all(trouble)
            return
        if wrong:  # it would be the same again
            told = TypeError(f"it must give a State for each ticket, and gave {value_in_short(wrong[0])}")
            self._fail_all(ends.of_service(self.service, "outcomes", told))
            return
        now = self._heard = time.monotonic()
        for name, ticket in given.items():
            state = states.get(name)
            if state is None:
                if now - ticket.submitted < self.service.grace:
                    continue  # it may be so new that it is not listed yet
                state = State(
                    OVER, ticket.state.reason if ticket.state.state == OVER else f"{self.service.place} knows nothing of it any more"
                )
            ticket.see(state)
            if state.state == OVER:
                self._may_have_died(ticket, now)
        self._tell_why(now)

    def _tell_why(self, now: float) -> None:
        """Show why calls wait, once for each reason."""
        reasons: dict[str, int] = {}
        for ticket in self._tickets.values():
            reason, waited = ticket.state.reason, now - ticket.submitted
            if ticket.state.state == PENDING and reason and ticket.ticket and waited > WAITED:
                reasons[reason] = reasons.get(reason, 0) + 1
        for reason, count in reasons.items():
            if reason not in self._told:
                self._shown.show(STREAMS[1], PROGRAMS, f"{count:,} {'job is' if count == 1 else 'jobs are'} {reason}\n".encode())
        self._told = set(reasons)

    def _may_have_died(self, ticket: Ticket, now: float) -> None:
        """The ticket is over. Fail its call if no outcome comes, and nobody runs it elsewhere."""
        sign = self._messages.box.sign_of_life(ticket.name)
        if ticket.over is None or (sign is not None and sign != ticket.sign):
            ticket.over, ticket.sign = now, sign
        if now - ticket.over < self.service.grace or self._take(ticket):
            return
        self._show_rest(ticket)
        error = ends.death(self.service, ticket, self._log(ticket))
        self._messages.box.withdraw(ticket.name)
        seconds = ends.pause_after(ticket, error)
        if seconds is None:
            self._end(ticket, keep=True)
            ticket.call.failed(ends.last_error(ticket, error))
        else:
            self._try_again(ticket, time.monotonic() + seconds)

    def _try_again(self, ticket: Ticket, rests: float) -> None:
        """Submit the message of a job that died once more, as another attempt: `retry` of a layer
        below says so."""
        ticket.call.lost(ticket.errors[-1], ticket.attempt)
        before = ticket.next_attempt(rests)
        with self._guard:
            del self._tickets[before]
            self._tickets[ticket.name] = ticket
        try:
            self._messages.write_again(ticket, before)
        except EntangleError as error:
            self._end(ticket)
            ticket.call.failed(error)
            return
        self._unsent.append(ticket)

    def _log(self, ticket: Ticket) -> str:
        """The end of what the platform and the mailbox have of its output."""
        told = self._messages.box.tail(ticket.name, TAIL)
        with contextlib.suppress(Exception):
            told += self.service.logs(ticket.ticket)
        return escaped(told[-2 * TAIL :].strip("\n"))

    def _show_rest(self, ticket: Ticket) -> None:
        for _, stream, data in self._messages.box.printed([ticket.name]):
            self._shown.show(bytes((stream,)), ticket.number, data)
        self._shown.finish(ticket.number)

    def _end(self, ticket: Ticket, keep: bool = False) -> None:
        """The end of a call is known. `keep`: what is left of it there must find its claim."""
        with self._guard:
            self._tickets.pop(ticket.name, None)
            self._numbers.pop(ticket.number, None)
        self._messages.discard(ticket.name, keep)

    def _fail_all(self, error: Exception) -> None:
        with self._guard:
            tickets, new = list(self._tickets.values()), self._new
            self._new = []
        given = [ticket.ticket for ticket in tickets if ticket.ticket]
        with contextlib.suppress(Exception):
            if given:
                self.service.cancel(given)
        self._unsent.clear()
        for ticket in tickets:
            self._end(ticket, keep=True)
            ticket.call.failed(ends.copy_of(error))
        for call in new:
            call.failed(ends.copy_of(error))
