"""How a failure is reported: a worker describes it, the supervisor turns that into an error."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import time
from collections.abc import Callable
from typing import Any

from entangle._shared import pickled_errors
from entangle._shared.call_notes import add_call, add_host, text_without
from entangle._shared.missing_lines import with_lines
from entangle._shared.pickling import dumps, why_not
from entangle._shared.site import Site, cpu
from entangle._shared.store import IN_SEGMENT, Store, in_record
from entangle._shared.summaries import call_in_short, cut, path_in_short, plain_value
from entangle._shared.table import DONE, IN_RECORD, LANE, PID, SLOT, Table
from entangle._shared.tracebacks import hide
from entangle.errors import EntangleError, ProcessRetryException, RemoteTraceback, StoreFullError, UnpicklableError, add_note, set_cause
from entangle.flow import IN_CALLER, Body, Flow


def pause(body: Body, attempt: int) -> float:
    """Seconds between attempt number `attempt` (from 1) and the next one."""
    try:
        seconds = body.sleep * body.backoff ** (attempt - 1)
    except OverflowError:
        seconds = _LONGEST_PAUSE if body.sleep else 0.0
    if body.jitter:
        import random

        seconds += random.uniform(0, body.jitter)
    return min(seconds, _LONGEST_PAUSE)


#: Seconds. A pause that grows with each attempt would soon exceed what a clock can count.
_LONGEST_PAUSE = 1e8


def process_of(table: Table, slot: int) -> int:
    """The process of the worker of a slot, which may be gone."""
    base = slot * SLOT
    return os.getpid() if table.slots[base + LANE] in IN_CALLER else table.slots[base + PID]


def note_attempt(site: Site, node: int, attempt: int, error: BaseException, slot: int, began: int, **there: Any) -> None:
    """Write down why an attempt failed, for the supervisor and for the next attempt, in any worker;
    and when (ns, CLOCK_MONOTONIC) it was begun by the worker of which slot. `began` is 0 where the
    body had not begun. `there` tells of one that was away: its `place`, `ticket` and time `queued`
    (ns); and `inside` of one that the place has followed by another itself.

    Each line is one write to a file opened for appending: lines of several processes do not mix.
    """
    import json

    text = text_without(error)
    pid = process_of(site.table, slot)
    told: dict[str, Any] = {"node": node, "attempt": attempt, "began": began, "ended": time.monotonic_ns(), "pid": pid, "worker": slot}
    told.update(there, error=text[:1500])
    if not site.directory:  # nobody but this process asks
        site.tries.append(told)
        return
    line = json.dumps(told) + "\n"
    with contextlib.suppress(OSError):  # on a full disk the line is lost
        fd = os.open(os.path.join(site.directory, "attempts"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


def describe(error: BaseException, name: str, attempt: int, call: str = "") -> dict[str, Any]:
    """An error in a form that can be sent: as text, and pickled if possible. `call` is in short."""
    import traceback

    hide(error)
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:  # a class of the user's may raise anything
        text = f"{type(error).__qualname__}: {text_of(error)}"
    return {
        "error": pickled_error(error, name),
        "type": name_of_type(error),
        "message": text_of(error)[:_LONGEST],
        "text": text,
        "where": f"host {os.uname().nodename}, pid {os.getpid()}, cpu {cpu()}, attempt {attempt}",
        "call": call,
    }


def shorter(report: dict[str, Any], name: str, why: BaseException) -> dict[str, Any]:
    """A report that finds room where the whole one does not: `why` says what is full."""
    told = cut(report["message"], _SHORT)
    what = getattr(why, "strerror", None) or why
    full = StoreFullError(f"task {name!r} failed with {report['type']}: {told}; that error is not kept: {what}")
    return {
        **report,
        "error": pickle.dumps(full, 5),
        "message": told,
        "text": cut(report["text"], _SHORT),
        "call": cut(report["call"], _SHORT),
    }


#: How many characters of a text are in a report for which there is little room.
_SHORT = 500


def prepare(flow: Flow) -> None:
    """Load what describing a failure takes, before workers of a run that goes on are forked.

    Else each worker would read sources and modules for its own first failure.
    """
    import linecache

    for body in flow.bodies[:_FILES]:
        for _, part in body.made_of()[:1]:
            linecache.getlines(getattr(getattr(part, "__code__", None), "co_filename", ""))
    _describe_one()


@functools.cache
def _describe_one() -> None:
    import traceback

    try:
        raise LookupError
    except LookupError as error:
        traceback.format_exception(error)  # with a frame: ours are hidden below
        describe(error, "", 1)


#: The sources of how many bodies are read beforehand.
_FILES = 16


def pickled_error(error: BaseException, name: str) -> bytes:
    """The pickle of a task's error; an UnpicklableError with its text if nothing of it travels."""
    try:
        return as_it_is(error, dumps, pickle.loads)
    except Exception as problem:
        why = problem
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    try:
        dumps(error)
        reason = f"it cannot be unpickled ({type(why).__name__}: {why})"
    except Exception:
        reason = str(why_not(error, f"the error of task {name!r}"))
    refused = UnpicklableError(f"task {name!r} failed with {kind}: {text_of(error)}; that error cannot be sent: {reason}")
    return pickle.dumps(refused, 5)


def as_it_is(error: BaseException, dump: Callable[[Any], bytes], load: Callable[[bytes], Any]) -> bytes:
    """The pickle of an error that can be loaded again. A note names parts that had to be left out.

    Raises what `dump` or `load` raise if not even its class travels.
    """

    def fits(part: Any) -> bool:
        try:
            load(dump(part))
        except Exception:
            return False
        return True

    try:
        pickled = dump(error)
        load(pickled)
    except Exception:
        found = pickled_errors.lighter(error, fits)
        if found is None:
            raise
        pickled = dump(found)
        load(pickled)
    return pickled


def name_of_type(error: BaseException) -> str:
    """The name of an error's class, with its module unless it is built in."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def text_of(error: BaseException) -> str:
    """The text of an error, if its class can give it."""
    try:
        return str(error)
    except Exception as problem:
        return f"<its text raises {type(problem).__name__}>"


def call_of(site: Site, store: Store | None, node: int) -> str:
    """The call of a node whose worker is gone, in short, with the arguments that are visible here.

    Only small plain values are read from the store: any other would run code of its class.
    """
    known: dict[int, Any] = {}
    for taken in site.flow.sources(node)[:_SEEN]:
        if taken in site.local:
            known[taken] = site.local[taken]
            continue
        with contextlib.suppress(Exception):
            _, _, offset, size, where, _, _, _ = site.table.record(taken)
            # A node that has failed has its report there.
            if where == IN_RECORD and site.table.states[taken] == DONE:
                known[taken] = in_record(offset, size)
            elif store is not None and where == IN_SEGMENT and size <= _SMALL and site.table.states[taken] == DONE:
                known[taken] = plain_value(bytes(store.pickle_at((where, offset, size))))
    return call_in_short(site.flow, node, known=known)


def note_call(error: BaseException, flow: Flow, node: int, call: str) -> None:
    """Add notes that say which call has failed: its path, and the call with its arguments."""
    add_call(error, notes_of_call(flow, node, call))


def notes_of_call(flow: Flow, node: int, call: str) -> list[str]:
    """What the notes of an error say of the call that failed."""
    path = flow.path(node) if flow.rearmed else path_in_short(flow, node)
    return [f"call path: {path}", *([f"call: {call}"] if call else [])]


#: How many inputs of a lost node are looked at, and how many bytes of a pickle are read for that.
_SEEN, _SMALL = 16, 512


def error_of(site: Site, store: Store | None, node: int) -> BaseException:
    """The error of a failed node, or of the one for which a node was skipped.

    The worker's traceback is its cause, notes say where. `store` has the reports of other
    processes.
    """
    flow = site.flow
    node = site.table.cause(node)
    error: BaseException
    if node in site.errors:
        error = site.errors[node]
        call = site.failed.get(node, "")
        note_call(error, flow, node, call)
    else:
        assert store is not None
        _, _, offset, size, where, _, _, _ = site.table.record(node)
        report: dict[str, Any] = store.get((where, offset, size))
        try:
            error = pickle.loads(report["error"])
        except Exception as problem:
            error = EntangleError(f"task {flow.name(node)!r} failed with an error that cannot be unpickled here ({problem})")
        call = report["call"]
        if report["text"]:
            set_traceback(error, report["text"])
        note_call(error, flow, node, call)
        add_host(error, report["where"])
    if flow.body(node).retry:
        return used_up(site, node, error, call)
    return error


def set_traceback(error: BaseException, text: str) -> None:
    """Make the worker's traceback the cause of an error; after retries, of the last attempt's."""
    last = error
    while isinstance(last, ProcessRetryException) and last.__cause__ is not None:
        last = last.__cause__
    set_cause(last, RemoteTraceback(with_lines(text)))


def used_up(site: Site, node: int, last: BaseException, call: str) -> BaseException:
    """The error of a node whose attempts are used up; `last` itself if it was not to be retried."""
    import json

    flow = site.flow
    body = flow.body(node)
    attempts = site.table.attempts[node] + 1
    if attempts <= body.retry and isinstance(last, Exception):
        return last
    error = ProcessRetryException(text_of_used_up(flow.name(node), attempts, type(last).__name__, text_of(last)))
    error.__cause__ = last
    earlier: list[str] = []
    with contextlib.suppress(FileNotFoundError), open(os.path.join(site.directory, "attempts"), "rb") as lines:
        for line in lines:
            told = json.loads(line)
            if told["node"] == node:
                earlier.append(f"attempt {told['attempt']}: {told['error']}")
    for note in few_of(earlier):
        add_note(error, note)
    note_call(error, flow, node, call)
    return error


def text_of_used_up(name: str, attempts: int, kind: str, text: str) -> str:
    """The text of the error of a task whose attempts are used up."""
    return f"task {name!r} failed {attempts} times; the last time with {kind}: {text}"


def few_of(attempts: list[str]) -> list[str]:
    """What the notes tell of earlier attempts: of many, the first and the last, each in short."""
    if len(attempts) > _ATTEMPTS:
        half = _ATTEMPTS // 2
        attempts = [*attempts[:half], f"… {len(attempts) - 2 * half} more attempts …", *attempts[-half:]]
    most = max(_TOLD // max(1, len(attempts)), 80)
    return [cut(text, most) for text in attempts]


#: The most characters of the text of an error that are sent beside the error itself.
_LONGEST = 20_000
#: How many earlier attempts an error's notes tell of, and how many characters they may take.
_ATTEMPTS, _TOLD = 8, 640
