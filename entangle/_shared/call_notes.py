"""The notes of an error that say which call failed, and where: each is said once.

An error may pass several of us on its way: a worker of another place, that place's agent, a worker
here that has sent the call, and the caller. Each knows the call, and the outer ones a longer path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from entangle._shared.documentation import MORE
from entangle.errors import add_note

PATH, CALL, HOST = "call path: ", "call: ", "host "
#: How our notes begin; how many characters they may have together.
_OURS = re.compile(rf"{PATH}|{CALL}|host \S+, pid \d+, cpu ")
_NOTES = 900
_LEFT_OUT = "(…"
_ATTEMPT = re.compile(r"(?:.*, )?attempt (\d+)")


def add_call(error: BaseException, notes: Sequence[str]) -> None:
    """Add notes that say which call has failed, its path first. The path to the same call that was
    noted further down, which is the end of this one, is replaced."""
    there = getattr(error, "__notes__", None)
    if isinstance(there, list):
        paths = [index for index, note in enumerate(there) if isinstance(note, str) and note.startswith(PATH)]
        if paths and notes[1:] == there[paths[-1] + 1 : paths[-1] + 2] and notes[0].endswith(f" → {there[paths[-1]][len(PATH) :]}"):
            there[paths[-1]] = notes[0]
    for note in notes:
        add_note(error, note)
    _bound(error)


def add_host(error: BaseException, where: str) -> None:
    """Add the note of the worker in which the call has failed, as which attempt.

    An error that has come from further down knows that already. But only the outer one knows the
    number of an attempt that it has begun anew.
    """
    notes = getattr(error, "__notes__", None)
    if not isinstance(notes, list):
        add_note(error, where)
        return
    texts = [note if isinstance(note, str) else "" for note in notes]
    told = [index for index, note in enumerate(texts) if _ATTEMPT.fullmatch(note) and note.startswith((HOST, "attempt "))]
    # Each run that the error has left has its path and its host.
    if not told or len(told) < sum(note.startswith(PATH) for note in texts):
        add_note(error, where)
        return
    last = told[-1]
    before, now = _number(texts[last]), _number(where)
    if not texts[last].startswith(HOST):
        host = where[: where.rindex("attempt ")]
        notes[last] = f"{host}attempt {max(before, now)}"
    elif now > 1:
        notes[last] = f"{texts[last][: texts[last].rindex('attempt ')]}attempt {now}"


def _number(note: str) -> int:
    found = _ATTEMPT.fullmatch(note)
    return int(found[1]) if found else 1


def text_without(error: BaseException) -> str:
    """The error with its notes, as Python prints them, but for those on the call, and the page that
    explains it: for a line about an attempt of that very call."""
    import traceback

    told = traceback.TracebackException(type(error), error, None)
    notes = getattr(told, "__notes__", None)
    if isinstance(notes, list):
        others = [
            note
            for note in notes
            if not isinstance(note, str) or not (_OURS.match(note) or _ATTEMPT.fullmatch(note) or note.startswith(MORE))
        ]
        vars(told)["__notes__"] = others  # the list itself is the error's
    return "".join(told.format_exception_only()).strip()


def _bound(error: BaseException) -> None:
    """Of the notes of many nested runs, keep those of the innermost and the outermost."""
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
