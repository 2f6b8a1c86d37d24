"""The mailbox of a caller at one service, and the messages that it writes there."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from entangle import _remote
from entangle._remote.caller import job
from entangle._services import Service, Submission, envelope
from entangle._services.caller.code import Code
from entangle._services.caller.ticket import Ticket
from entangle._services.mailbox import Mailbox, Where, open_mailbox
from entangle._tasks.layer import timeout_below
from entangle._worker.away import AwayCall
from entangle.errors import OptionError, UnfitPythonError

#: How long the lease lasts that a caller must renew (seconds). Nothing of it is left after that.
LASTS = 40.0
#: How many times it is renewed within that time.
RENEWALS = 8
#: The oldest Python that can run a message.
OLDEST = [3, 10]


class Messages:
    """Writes calls into a mailbox, which is made for the first of them. One thread writes; any may
    renew the lease."""

    def __init__(self, service: Service, where: Where) -> None:
        self._service, self._where = service, where
        self._box: Mailbox | None = None
        self._code: Code | None = None
        self._about: dict[str, Any] = {}
        self._lasts = float(os.environ.get("ENTANGLE_LEASE", LASTS)) if service.leased else 0.0
        self._renewed = 0.0

    @property
    def box(self) -> Mailbox:
        """The mailbox. It was opened for the first message."""
        assert self._box is not None
        return self._box

    @property
    def renewed_every(self) -> float:
        """How often the lease must be renewed (seconds)."""
        return (self._lasts or LASTS) / RENEWALS

    def renew(self) -> None:
        """Renew the lease, if there is a mailbox."""
        box = self._box
        if box is not None:
            box.renew()
            self._renewed = time.monotonic()

    def discard(self, name: str, keep: bool = False) -> None:
        """Remove a message, or all of it but its claim."""
        if self._box is not None:
            self._box.discard(name, keep)

    def rest(self) -> None:
        """Nothing is under way."""
        if self._box is not None:
            self._box.rest()

    def let_go(self) -> Mailbox | None:
        """Give the mailbox to whoever closes it; the next message has a new one."""
        box, self._box, self._code = self._box, None, None
        return box

    def open(self) -> None:
        """Have a mailbox with the code.

        Raises UnfitPythonError, StoreFullError, UnreachableError.
        """
        service = self._service
        if self._code is None or self._box is None or not self._box.is_there():
            if not self._about:
                self._about = service.about()
                if self._about["python"][:2] < OLDEST:
                    raise UnfitPythonError(
                        f"{service.place}: its Python is {'.'.join(map(str, self._about['python']))}; "
                        f"entangle needs {'.'.join(map(str, OLDEST))} or newer. Name another one with python=…"
                    )
            self._box = open_mailbox(self._where, service.leased)
            self._renewed = time.monotonic()
            self._code = Code(self._box, self._about)
        elif time.monotonic() - self._renewed > self.renewed_every:
            self.renew()  # the threads may have rested
        self._code.program()

    def write(self, ticket: Ticket) -> None:
        """Write the message of a call: `ticket.message`. Raises what keeps it from being sent."""
        assert self._code is not None
        call, place = ticket.call, self._service.place
        task = call.task
        args, kwargs = call.take()
        ticket.records, record = _record_of(call)
        parts, ticket.given = job.pack(task, tuple(args), kwargs, self._about, place, record)
        modules, instead = self._code.modules_for(task.function)
        head = {
            "name": call.name,
            "mode": json.loads(bytes(parts[0][0]))["mode"],
            "python": self._about["python"],
            "modules": modules,
            "instead": instead,
        }
        seconds = timeout_below(task)
        limits = self._service.limits()
        if seconds is not None and limits.life is not None and seconds > limits.life:
            raise OptionError(
                f"task {call.name!r}: timeout={seconds:g} is longer than {place} lets anything run ({limits.life:g} s); make it shorter"
            )
        self.box.reach(seconds)
        ticket.codes = (*self._code.common, modules)
        self.box.send(ticket.name, envelope.written(head, parts))
        command = self._command(ticket)
        if sum(map(len, command)) > limits.message:
            raise OptionError(
                f"{place}: it takes commands of {limits.message:,} characters, and that of task {call.name!r} is longer. It holds the "
                "address of the mailbox and the command of python=: make them shorter; in AWS, use credentials without a session token"
            )
        call.let_go()
        ticket.message = Submission(ticket.name, call.name, command, seconds, ticket.attempt)

    def write_again(self, ticket: Ticket, before: str) -> None:
        """Write the message that had another name as that of this ticket. Raises EntangleError."""
        self.box.send_again(before, ticket.name)
        ticket.say(self._command(ticket))

    def _command(self, ticket: Ticket) -> tuple[str, ...]:
        assert self._code is not None
        given = self.box.command(self._code.program(), ticket.name, ticket.codes, timeout_below(ticket.call.task))
        return (*self._service.python, "-c", *given, f"{self._lasts:g}")


def _record_of(call: AwayCall) -> tuple[str, Any]:
    """Where the records go of what runs there, and what it is told for that; "" where nobody wants
    any."""
    worker = call.worker
    if worker is None or worker.notes is None:
        return "", None
    try:
        folder = _remote.travels().destination(worker)
    except ValueError:  # its table is closed: the run is over
        return "", None
    return folder, (call.run, call.node, worker.notes.whole) if folder else None
