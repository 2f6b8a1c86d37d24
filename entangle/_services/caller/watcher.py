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

import atexit
import contextlib
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from entangle import _run
from entangle._remote.caller import job
from entangle._remote.caller.far import AGAIN
from entangle._remote.caller.shown import PROGRAMS, STREAMS, Shown
from entangle._remote.wire.controls import escaped
from entangle._remote.wire.parts import Given
from entangle._services import OVER, PENDING, RUNNING, Service, State, Submission, envelope
from entangle._services.caller.code import COMMAND, Code
from entangle._services.mailbox import Folder
from entangle._tasks.layer import timeout_below
from entangle._worker import janitor
from entangle._worker.away import AwayCall
from entangle._worker.failures import pause
from entangle.errors import EntangleError, FarError, OptionError, ProcessRetryException, UnfitPythonError, UnreachableError, add_note
from entangle.flow import Body

#: How long the lease lasts that a caller must renew (seconds). Nothing of it is left after that.
LASTS = 40.0
#: It is renewed so many times meanwhile.
RENEWALS = 8
#: The pause between two looks into the mailbox (seconds): short while outcomes come, and longer the
#: longer none does.
SHORTEST, LONGEST, LONGER = 0.01, 0.5, 1.25
#: How long the threads stay when nothing is under way (seconds).
IDLE = 0.2
#: A job that has waited so long is told of, with the platform's reason (seconds).
WAITED = 3.0
#: How long the platform may be out of reach before the calls fail (seconds).
PATIENCE = 300.0
#: Characters of a log in an error.
TAIL = 2000
#: The oldest Python that can run a message.
OLDEST = [3, 10]


class Ticket:
    """A call under way, as the watcher sees it."""

    def __init__(self, call: AwayCall, number: int) -> None:
        self.call, self.number = call, number
        #: The attempts of the engine, and those of ours after jobs that have died.
        self.attempt = call.attempt
        self.name = f"{number}-{self.attempt}"
        self.errors: list[EntangleError] = []
        #: Its message is not submitted before this time (of the monotonic clock).
        self.rests = 0.0
        self.message: Submission | None = None
        self.given: Given = None
        #: What the service calls it; "" until it has taken it.
        self.ticket = ""
        self.state = State(PENDING)
        self.begun = False
        self.cancelled = False
        self.submitted = 0.0
        #: When its ticket was over and it had no outcome (of the monotonic clock), and its sign of
        #: life then.
        self.over: float | None = None
        self.sign: object = None

    def path(self) -> str:
        """The call, for what it prints."""
        return self.call.name


class Watcher:
    """Calls at one service with one mailbox. Any thread may use it."""

    def __init__(self, service: Service, folder: str) -> None:
        self.service, self.folder = service, folder
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
        self._mailbox: Folder | None = None
        self._code: Code | None = None
        self._about: dict[str, Any] = {}
        self._lasts = float(os.environ.get("ENTANGLE_LEASE", LASTS)) if service.leased else 0.0
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
            mailbox, self._mailbox, self._code = self._mailbox, None, None
        if tickets:
            with contextlib.suppress(Exception):
                self.service.cancel(tickets)
        if mailbox is not None:
            mailbox.close()

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
        while not idle.wait((self._lasts or LASTS) / RENEWALS):
            mailbox = self._mailbox
            if mailbox is not None:
                mailbox.renew()

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
        self._pause = SHORTEST if came else min(LONGEST, self._pause * LONGER)
        if time.monotonic() - self._asked >= self.service.every:
            self._ask()
            self._asked = time.monotonic()

    # Out ------------------------------------------------------------------------------------

    def _open(self) -> tuple[Folder, Code]:
        if self._code is None or self._mailbox is None or not self._mailbox.is_there():
            if not self._about:
                self._about = self.service.about()
                if self._about["python"][:2] < OLDEST:
                    raise UnfitPythonError(
                        f"{self.service.place}: its Python is {'.'.join(map(str, self._about['python']))}; "
                        f"entangle needs {'.'.join(map(str, OLDEST))} or newer. Name another one with python=…"
                    )
            self._mailbox = Folder(self.folder, self.service.leased)
            self._code = Code(self._mailbox, self._about)
        else:
            self._mailbox.renew()  # the threads may have rested
        return self._mailbox, self._code

    def _write(self, calls: Sequence[AwayCall]) -> None:
        """Write the messages of these calls."""
        try:
            mailbox, code = self._open()
            program = code.program()
        except Exception as error:
            for call in calls:
                call.failed(_again(error))
            return
        for call in calls:
            self._count += 1
            ticket = Ticket(call, self._count)
            try:
                self._write_one(mailbox, code, program, ticket)
            except Exception as error:
                call.failed(error)
                mailbox.discard(ticket.name)
                continue
            with self._guard:
                call.handle = ticket
                self._tickets[ticket.name] = self._numbers[ticket.number] = ticket
                self._unsent.append(ticket)

    def _write_one(self, mailbox: Folder, code: Code, program: str, ticket: Ticket) -> None:
        call, place = ticket.call, self.service.place
        task = call.task
        args, kwargs = call.take()
        parts, ticket.given = job.pack(task, tuple(args), kwargs, self._about, place)
        modules, instead = code.modules_for(task.function)
        head = {
            "name": call.name,
            "mode": json.loads(bytes(parts[0][0]))["mode"],
            "python": self._about["python"],
            "modules": modules,
            "instead": instead,
        }
        command = self._command(program, mailbox, ticket)
        seconds = timeout_below(task)
        limits = self.service.limits()
        if sum(map(len, command)) > limits.message:
            raise OptionError(f"{place}: it takes commands of {limits.message:,} characters, and that of task {call.name!r} is longer")
        if seconds is not None and limits.life is not None and seconds > limits.life:
            raise OptionError(
                f"task {call.name!r}: timeout={seconds:g} is longer than {place} lets anything run ({limits.life:g} s); make it shorter"
            )
        mailbox.send(ticket.name, envelope.written(head, parts))
        ticket.message = Submission(ticket.name, call.name, command, seconds, ticket.attempt)

    def _command(self, program: str, mailbox: Folder, ticket: Ticket) -> tuple[str, ...]:
        return (*self.service.python, "-c", COMMAND, program, mailbox.address, ticket.name, f"{self._lasts:g}")

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
                    tickets = list(self.service.submit([ticket.message for ticket in batch if ticket.message is not None]))
                except Exception as error:
                    self._unsent = rest
                    for ticket in batch:
                        self._end(ticket)
                        ticket.call.failed(_again(_of_service(self.service, "submit", error)))
                    continue
                for ticket, given in zip(batch, tickets, strict=False):
                    ticket.ticket, ticket.submitted = str(given), time.monotonic()
                self._asked = time.monotonic()  # what was just taken need not be asked for at once
                self._heard = self._asked
                if len(tickets) < len(batch):
                    self._unsent = batch[len(tickets) :] + rest
                    for ticket in self._unsent:
                        ticket.state = State(PENDING, f"{self.service.place} takes no more jobs at the moment")
                    self._full_until = time.monotonic() + self.service.every
                    return
            self._unsent = rest

    def _leave(self, leaving: Sequence[Ticket]) -> None:
        """End what nobody waits for any more."""
        assert self._mailbox is not None
        known = [ticket for ticket in leaving if self._tickets.get(ticket.name) is ticket]
        self._unsent = [ticket for ticket in self._unsent if not ticket.cancelled]
        for ticket in known:
            self._mailbox.withdraw(ticket.name)
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
        mailbox = self._mailbox
        assert mailbox is not None
        for name, stream, data in mailbox.printed():
            if (ticket := self._tickets.get(name)) is not None:
                ticket.begun = True
                self._shown.show(bytes((stream,)), ticket.number, data)
        arrived = [ticket for name in mailbox.arrived() if (ticket := self._tickets.get(name)) is not None]
        for ticket in arrived:
            self._take(ticket)
        return bool(arrived)

    def _take(self, ticket: Ticket) -> bool:
        """Take the outcome of a call, if there is one."""
        mailbox, call, place = self._mailbox, ticket.call, self.service.place
        assert mailbox is not None
        try:
            letter = mailbox.take(ticket.name)
        except (EntangleError, OSError) as error:
            letter = {"given": False, "answer": 0, "seconds": -1.0, "damaged": str(error)}, []
        if letter is None:
            return False
        self._show_rest(ticket)
        self._end(ticket)
        head, parts = letter
        seconds = head["seconds"]
        call.where, call.ticket = place, ticket.ticket
        answer = parts[: head["answer"]]
        try:
            if "damaged" in head:
                raise FarError(f"{place}: the outcome of task {call.name!r} was damaged on its way: {head['damaged']}")
            if head["given"]:
                value = job.value_of(answer, call.name, place, ticket.given)
                with contextlib.suppress(Exception):
                    self.service.forget([ticket.ticket])
                call.done(value, seconds)
                return True
            raise _error(job.error_of(answer, call.name, place, ticket.given), answer)
        except BaseException as error:
            if kept := self.service.kept(ticket.ticket):
                add_note(error, kept)
            call.failed(error, seconds)
        return True

    def _ask(self) -> None:
        """Ask the platform for all tickets."""
        given = {ticket.ticket: ticket for ticket in self._tickets.values() if ticket.ticket}
        if not given:
            return
        try:
            states = self.service.outcomes(list(given))
        except Exception as error:
            trouble = _of_service(self.service, "outcomes", error)
            for ticket in given.values():
                if ticket.state.state != OVER:
                    ticket.state = State(ticket.state.state, str(trouble), ticket.state.error)
            if time.monotonic() - self._heard > PATIENCE:
                self._fail_all(trouble)
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
            ticket.state = state
            ticket.begun |= state.state == RUNNING
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
        assert self._mailbox is not None
        sign = self._mailbox.sign_of_life(ticket.name)
        if ticket.over is None or (sign is not None and sign != ticket.sign):
            ticket.over, ticket.sign = now, sign
        if now - ticket.over < self.service.grace or self._take(ticket):
            return
        self._show_rest(ticket)
        state, call = ticket.state, ticket.call
        log = self._log(ticket)
        why = f": {state.reason}" if state.reason else ""
        error: EntangleError = state.error(
            f"task {call.name!r}: its job {ticket.ticket} at {self.service.place} is over and has given no outcome{why}"
            + (f"\n{log}" if log else "")
        )
        call.where, call.ticket = self.service.place, ticket.ticket
        self._mailbox.withdraw(ticket.name)
        if kept := self.service.kept(ticket.ticket):
            add_note(error, kept)
        ticket.errors.append(error)
        body = _body(call.task)
        if body.retry >= len(ticket.errors) and isinstance(error, body.on):
            self._try_again(ticket, pause(body, len(ticket.errors)))
            return
        self._end(ticket, keep=True)
        call.failed(_last(call.name, ticket.errors) if body.retry and isinstance(error, body.on) else error)

    def _try_again(self, ticket: Ticket, seconds: float) -> None:
        """Submit the message of a job that died once more, as another attempt: `retry` of a layer
        below says so."""
        assert self._mailbox is not None
        assert self._code is not None
        assert ticket.message is not None
        before = ticket.name
        ticket.attempt += 1
        ticket.name = f"{ticket.number}-{ticket.attempt}"
        with self._guard:
            del self._tickets[before]
            self._tickets[ticket.name] = ticket
        try:
            self._mailbox.send_again(before, ticket.name)
        except EntangleError as error:
            self._end(ticket)
            ticket.call.failed(error)
            return
        command = self._command(self._code.program(), self._mailbox, ticket)
        ticket.message = replace(ticket.message, id=ticket.name, command=command, attempt=ticket.attempt)
        ticket.state, ticket.begun, ticket.over, ticket.ticket = State(PENDING), False, None, ""
        ticket.rests = time.monotonic() + seconds
        self._unsent.append(ticket)

    def _log(self, ticket: Ticket) -> str:
        """The end of what the platform and the mailbox have of its output."""
        assert self._mailbox is not None
        told = self._mailbox.tail(ticket.name, TAIL)
        with contextlib.suppress(Exception):
            told += self.service.logs(ticket.ticket)
        return escaped(told[-2 * TAIL :].strip("\n"))

    def _show_rest(self, ticket: Ticket) -> None:
        assert self._mailbox is not None
        for _, stream, data in self._mailbox.printed([ticket.name]):
            self._shown.show(bytes((stream,)), ticket.number, data)
        self._shown.finish(ticket.number)

    def _end(self, ticket: Ticket, keep: bool = False) -> None:
        """The end of a call is known. `keep`: what is left of it there must find its claim."""
        with self._guard:
            self._tickets.pop(ticket.name, None)
            self._numbers.pop(ticket.number, None)
        if self._mailbox is not None:
            self._mailbox.discard(ticket.name, keep)

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
            ticket.call.failed(_again(error))
        for call in new:
            call.failed(_again(error))


def _body(task: Any) -> Body:
    """The terms of the layers below that say whether a job that has died is submitted again."""
    terms = {name: value for layer in reversed(task.layers) for name, value in layer.terms().items() if name in AGAIN}
    return Body(task.function, task.__name__, **terms)


def _last(name: str, errors: Sequence[EntangleError]) -> EntangleError:
    """The error of a call whose attempts are used up."""
    error = errors[-1]
    last = ProcessRetryException(f"task {name!r} failed {len(errors)} times; the last time with {type(error).__name__}: {error}")
    for number, earlier in enumerate(errors[:-1], 1):
        add_note(last, f"attempt {number}: {earlier}")
    last.__cause__ = error
    return last


def _error(error: BaseException, answer: Sequence[Any]) -> BaseException:
    """What the call raises for this error of the far program itself."""
    with contextlib.suppress(Exception):
        told = json.loads(bytes(answer[0]))
        if told.get("unfit"):
            return UnfitPythonError(escaped(told["text"]))
    return error


def _of_service(service: Service, verb: str, error: Exception) -> Exception:
    """The error of a verb, with the name of the service."""
    if isinstance(error, EntangleError):
        return error
    made = UnreachableError(f"{service.place}: {verb} has failed: {type(error).__name__}: {error}")
    made.__cause__ = error
    return made


def _again(error: Exception) -> Exception:
    """A copy of an error, so that each call raises one of its own."""
    try:
        copy = type(error)(*error.args)
    except Exception:
        return error
    copy.__cause__ = error.__cause__
    return copy


_watchers: dict[tuple[Service, str], Watcher] = {}
_opening = threading.Lock()


def watcher_of(service: Service, folder: str) -> Watcher:
    """The watcher of this process for a service and a folder."""
    with _opening:
        found = _watchers.get((service, folder))
        if found is None:
            if not _watchers:
                atexit.register(close_all)
                _run.at_termination.append(close_all)
            found = _watchers[service, folder] = Watcher(service, folder)
        return found


def close_all(folder: str | None = None) -> None:
    """End all that is under way at services, and remove the mailboxes of this process; or those in
    this folder."""
    for (_, where), watcher in list(_watchers.items()):
        if folder is None or where == folder:
            watcher.close()


def _after_fork() -> None:
    """A child has none of the threads, and leaves the mailboxes to its parent."""
    global _opening
    _opening = threading.Lock()
    _watchers.clear()
    with contextlib.suppress(ValueError):
        _run.at_termination.remove(close_all)


os.register_at_fork(after_in_child=_after_fork)
