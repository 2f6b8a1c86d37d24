"""How a node's failure is told: a worker describes it, the supervisor makes of that the error that the caller gets."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
from collections.abc import Callable
from typing import Any

from entangle._shared import pickled_errors
from entangle._shared.frames import hide
from entangle._shared.pickling import dumps, why_not
from entangle._shared.site import Site, cpu
from entangle._shared.store import IN_SEGMENT, Store
from entangle._shared.summaries import call_in_short, cut, plain_value
from entangle.errors import EntangleError, ProcessRetryException, RemoteTraceback, UnpicklableError, add_note, set_cause
from entangle.flow import Body, Flow


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


#: Seconds; a pause that grows with each attempt is sooner or later longer than any clock counts.
_LONGEST_PAUSE = 1e8


def note_attempt(directory: str, node: int, attempt: int, error: BaseException) -> None:
    """Write down why an attempt failed, where the next one, which may run elsewhere, and the supervisor can read it.

    One line by one write to a file opened for appending: lines of several processes do not mix.
    """
    import json
    import traceback

    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    line = json.dumps({"node": node, "attempt": attempt, "error": text[:1500]}) + "\n"
    with contextlib.suppress(OSError):  # on a full disk the attempt goes untold, and is made all the same
        fd = os.open(os.path.join(directory, "attempts"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


def describe(error: BaseException, name: str, attempt: int, call: str = "") -> dict[str, Any]:
    """An error as what can be sent: pickled where that is possible, and as text in any case. `call` is the call that failed, in short."""
    import traceback

    hide(error)
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:  # an error of a class that does as it likes
        text = f"{type(error).__qualname__}: {text_of(error)}"
    return {
        "error": pickled_error(error, name),
        "text": text,
        "where": f"host {os.uname().nodename}, pid {os.getpid()}, cpu {cpu()}, attempt {attempt}",
        "call": call,
    }


def pickled_error(error: BaseException, name: str) -> bytes:
    """An error of task `name` such that it can be made again. Where nothing of it travels, an UnpicklableError that says what it said."""
    try:
        return as_it_is(error, dumps, pickle.loads)
    except Exception as problem:
        why = problem
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    try:
        dumps(error)
        reason = f"it cannot be made again from its arguments ({type(why).__name__}: {why})"
    except Exception:
        reason = str(why_not(error, f"the error of task {name!r}"))
    refused = UnpicklableError(f"task {name!r} failed with {kind}: {text_of(error)}; that error cannot be sent: {reason}")
    return pickle.dumps(refused, 5)


def as_it_is(error: BaseException, dump: Callable[[Any], bytes], load: Callable[[bytes], Any]) -> bytes:
    """The pickle of an error that can be made again, without what does not travel of it, which a note then names.

    Raises what `dump` or `load` raise where not even its class does.
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


def text_of(error: BaseException) -> str:
    """What an error says, if it can say it."""
    try:
        return str(error)
    except Exception as problem:
        return f"<its text raises {type(problem).__name__}>"


def call_of(site: Site, store: Store | None, node: int) -> str:
    """The call of a node whose worker is gone, in short, with the values that it took as far as this process can see them.

    Of the store only what is small and plain is read: a value of any other class would have to be made, by code of that class.
    """
    known: dict[int, Any] = {}
    for taken in site.flow.sources(node)[:_SEEN]:
        if taken in site.local:
            known[taken] = site.local[taken]
            continue
        with contextlib.suppress(Exception):
            _, _, offset, size, where, _, _, _ = site.table.record(taken)
            if store is not None and where == IN_SEGMENT and size <= _SMALL:
                known[taken] = plain_value(bytes(store.pickle_at((where, offset, size))))
    return call_in_short(site.flow, node, known=known)


def note_call(error: BaseException, flow: Flow, node: int, call: str) -> None:
    """Add notes to an error that say which call has failed: the path to it, and the call with its arguments."""
    add_note(error, f"call path: {flow.path(node)}")
    if call:
        add_note(error, f"call: {call}")
    _bound_notes(error)


def _bound_notes(error: BaseException) -> None:
    """Where an error has come through many runs, one in the other, keep what the innermost and the outermost of them have noted."""
    notes = getattr(error, "__notes__", None)
    if not isinstance(notes, list):
        return
    ours = [index for index, note in enumerate(notes) if isinstance(note, str) and _OURS.match(note)]
    if sum(len(notes[index]) for index in ours) <= _NOTES:
        return
    left_out = [note for note in notes if isinstance(note, str) and note.startswith(_LEFT_OUT)]
    between = ours[3:-2]
    for index in reversed(between):
        del notes[index]
    if between and not left_out:
        notes.insert(between[0], f"{_LEFT_OUT} the notes of runs in between are left out)")


#: How notes of ours begin; characters that they may have together.
_OURS = re.compile(r"call path: |call: |host \S+, pid \d+, cpu ")
_NOTES = 900
_LEFT_OUT = "(…"
#: Inputs of a node that are looked at, and bytes of a pickle that is read, to show the call of a worker that is gone.
_SEEN, _SMALL = 16, 512


def error_of(site: Site, store: Store | None, node: int) -> BaseException:
    """The error of the node that has ended a run, with the traceback of the worker as its cause and notes that say where."""
    flow = site.flow
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
            error = EntangleError(f"task {flow.body(node).name!r} failed with an error that cannot be made here ({problem})")
        set_traceback(error, report["text"])
        call = report["call"]
        note_call(error, flow, node, call)
        add_note(error, report["where"])
    if flow.body(node).retry:
        return used_up(site, node, error, call)
    return error


def set_traceback(error: BaseException, text: str) -> None:
    """Make the traceback of the worker the cause of an error; of attempts that are used up, that of the last one, which is theirs."""
    last = error
    while isinstance(last, ProcessRetryException) and last.__cause__ is not None:
        last = last.__cause__
    set_cause(last, RemoteTraceback(text))


def used_up(site: Site, node: int, last: BaseException, call: str) -> BaseException:
    """The error of a node whose attempts are used up. An error that was not to be tried again stays what it is."""
    import json

    flow = site.flow
    body = flow.body(node)
    attempts = site.table.attempts[node] + 1
    if attempts <= body.retry and isinstance(last, Exception):
        return last
    error = ProcessRetryException(f"task {body.name!r} failed {attempts} times; the last time with {type(last).__name__}: {text_of(last)}")
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


def few_of(attempts: list[str]) -> list[str]:
    """What is told of earlier attempts: where there are many, the first and the last of them, each in short."""
    if len(attempts) > _ATTEMPTS:
        half = _ATTEMPTS // 2
        attempts = [*attempts[:half], f"… {len(attempts) - 2 * half} more attempts …", *attempts[-half:]]
    most = max(_TOLD // max(1, len(attempts)), 80)
    return [cut(text, most) for text in attempts]


#: Earlier attempts that the notes of an error tell of, and characters that these notes may have together.
_ATTEMPTS, _TOLD = 8, 640
