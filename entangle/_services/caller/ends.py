"""How calls at a service end: with a value, an error, or a job that has died."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from entangle import _remote
from entangle._remote.caller import job
from entangle._remote.caller.far import AGAIN
from entangle._remote.wire.controls import escaped
from entangle._services import Service
from entangle._services.caller.ticket import Ticket
from entangle._services.mailbox import Letter
from entangle._worker.failures import pause
from entangle.errors import EntangleError, FarError, ProcessRetryException, UnfitPythonError, UnreachableError, add_note
from entangle.flow import Body


def deliver(service: Service, ticket: Ticket, letter: Letter) -> None:
    """Tell a call its outcome."""
    call, place = ticket.call, service.place
    head, parts = letter
    answer = parts[: head["answer"]]
    if ticket.records and len(parts) > len(answer):
        _remote.travels().keep(ticket.records, [bytes(record) for record in parts[len(answer) :]])
    try:
        if "damaged" in head:
            raise FarError(f"{place}: the outcome of task {call.name!r} was damaged on its way: {head['damaged']}")
        if head["given"]:
            value = job.value_of(answer, call.name, place, ticket.given)
            with contextlib.suppress(Exception):
                service.forget([ticket.ticket])
            call.done(value, head["seconds"])
            return
        raise _error(job.error_of(answer, call.name, place, ticket.given), answer)
    except BaseException as error:
        if kept := service.kept(ticket.ticket):
            add_note(error, kept)
        call.failed(error, head["seconds"])


def damaged(error: Exception) -> Letter:
    """What stands for an outcome that cannot be read."""
    return {"given": False, "answer": 0, "seconds": -1.0, "damaged": str(error)}, []


def death(service: Service, ticket: Ticket, log: str) -> EntangleError:
    """The error of a job that is over and has given no outcome; it is noted on the ticket."""
    state, call = ticket.state, ticket.call
    text = f"task {call.name!r}: its job {ticket.ticket} at {service.place} is over and has given no outcome"
    why, end = f": {state.reason}" if state.reason else "", f"\n{log}" if log else ""
    error: EntangleError = state.error(f"{text}{why}{end}")
    if kept := service.kept(ticket.ticket):
        add_note(error, kept)
    ticket.errors.append(error)
    return error


def pause_after(ticket: Ticket, error: EntangleError) -> float | None:
    """After how many seconds the message of a job that died is submitted again; None: never."""
    body = _body(ticket.call.task)
    again = body.retry >= len(ticket.errors) and isinstance(error, body.on)
    return pause(body, len(ticket.errors)) if again else None


def last_error(ticket: Ticket, error: EntangleError) -> EntangleError:
    """What a call raises whose jobs have all died: the last error, with those before it."""
    body, name = _body(ticket.call.task), ticket.call.name
    if not body.retry or not isinstance(error, body.on):
        return error
    last = ProcessRetryException(f"task {name!r} failed {len(ticket.errors)} times; the last time with {type(error).__name__}: {error}")
    for number, earlier in enumerate(ticket.errors[:-1], 1):
        add_note(last, f"attempt {number}: {earlier}")
    last.__cause__ = error
    return last


def _body(task: Any) -> Body:
    """The terms of the layers below that say whether a job that has died is submitted again."""
    terms = {name: value for layer in reversed(task.layers) for name, value in layer.terms().items() if name in AGAIN}
    return Body(task.function, task.__name__, **terms)


def _error(error: BaseException, answer: Sequence[Any]) -> BaseException:
    """What the call raises for this error of the far program itself."""
    with contextlib.suppress(Exception):
        told = json.loads(bytes(answer[0]))
        if told.get("unfit"):
            return UnfitPythonError(escaped(told["text"]))
    return error


def of_service(service: Service, verb: str, error: Exception) -> Exception:
    """The error of a verb, with the name of the service."""
    if isinstance(error, EntangleError):
        return error
    made = UnreachableError(f"{service.place}: {verb} has failed: {type(error).__name__}: {error}")
    made.__cause__ = error
    return made


def copy_of(error: Exception) -> Exception:
    """A copy of an error, so that each call raises one of its own."""
    try:
        copy = type(error)(*error.args)
    except Exception:
        return error
    copy.__cause__ = error.__cause__
    return copy
