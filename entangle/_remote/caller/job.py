"""A job at the caller: a call becomes a message, and the answer becomes a value or an error."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
from collections.abc import Sequence
from typing import Any

from entangle._remote.wire.controls import escape_error, escaped
from entangle._remote.wire.frames import Segments
from entangle._remote.wire.parts import PICKLE, SOURCE, Given, dump, dump_plain, load
from entangle._shared import module_lookup
from entangle._shared.call_notes import add_host
from entangle._shared.missing_lines import with_lines
from entangle._shared.pickling import dumps_for_others, why_not
from entangle._shared.unpickling import failing_part, unpickling_error
from entangle._tasks.layer import Decorated
from entangle.errors import (
    EntangleError,
    ProtocolError,
    RemoteTraceback,
    UnpicklableError,
    set_cause,
)

#: Variables that say how errors are shown, and what they must not show. They go with each call.
_TELLING = ("ENTANGLE_SECRETS", "ENTANGLE_TRACEBACK")
#: A longer traceback is cut in the middle (characters).
LONGEST_TEXT = 1 << 20


def pack(
    rest: Decorated, args: tuple[Any, ...], kwargs: dict[str, Any], about: dict[str, Any], place: str, record: Any = None
) -> tuple[list[Segments], Given]:
    """A call as the parts of a message, and what finds the objects that the answer only names.

    `about` is what the agent has said about its place. `record` is given if the run is to be
    recorded: the run and node that want it, and whether values are kept whole.

    Raises UnpicklableError, which names what cannot travel, and UnfitPythonError.
    """
    there = about["python"]
    same = there[:2] == list(sys.version_info[:2]) and about["implementation"] == sys.implementation.name
    mode = PICKLE if same else SOURCE
    module_lookup.look_afresh()
    given: Given = None
    if not same:
        from entangle._remote.caller.source_writer import SourceWriter

        writer = SourceWriter(rest, args, kwargs, f"{place} has Python {there[0]}.{there[1]}")
        parts, given = dump_plain([writer.head, *writer.steps], writer.reduced), writer.given
    else:
        try:
            parts = dump((rest, args, kwargs), ours=True)
        except Exception as error:
            raise _cannot_travel(rest, args, kwargs, place, error) from None
    head = {
        "mode": mode,
        "name": rest.__name__,
        "here": list(sys.version_info[:2]),
        "record": record,
        "travelled": sorted(module_lookup.travelled),
        "telling": {name: os.environ[name] for name in _TELLING if name in os.environ},
    }
    return [[json.dumps(head).encode()], *parts], given


def _cannot_travel(rest: Decorated, args: tuple[Any, ...], kwargs: dict[str, Any], place: str, error: Exception) -> Exception:
    """The error that names what cannot travel."""
    if isinstance(error, EntangleError):
        return error
    parts = [(f"argument {index + 1}", value) for index, value in enumerate(args)] + [(f"argument {n!r}", v) for n, v in kwargs.items()]
    parts += rest.made_of()
    for what, value in parts:
        try:
            dump(value, ours=True)
        except Exception:
            return why_not(value, f"{what} of task {rest.__name__!r}", dumps_for_others)
    return UnpicklableError(f"task {rest.__name__!r} cannot travel to {place}: {type(error).__name__}: {error}")


def value_of(parts: Sequence[Any], name: str, place: str, given: Given = None) -> Any:
    """The value that has arrived. Raises ProtocolError if it is no pickle at all."""
    try:
        return load(parts, given)
    except Exception as error:
        if not parts or isinstance(error, (pickle.UnpicklingError, EOFError)):
            told = f"{type(error).__name__}: {escaped(str(error))}"
            raise ProtocolError(f"{place}: the value of task {name!r} was damaged on its way ({told})") from error
        what = f"the value of task {name!r}, which {place} has sent, cannot be unpickled here"
        made = unpickling_error(error, what, failing_part(parts[0], parts[1:]) if given is None else None)
        raise escape_error(made) from error


def error_of(parts: Sequence[Any], name: str, place: str, given: Given = None) -> BaseException:
    """The error that has arrived, escaped. Gives a ProtocolError if it cannot be read."""
    try:
        told = json.loads(bytes(parts[0]))
        text, where, short = (_text(told[part]) for part in ("text", "where", "short"))
    except (IndexError, KeyError, TypeError, ValueError, RecursionError) as why:
        return ProtocolError(f"{place}: the error of task {name!r} was damaged on its way ({type(why).__name__}: {why})")
    text = with_lines(text, escaped)
    error: BaseException
    if len(parts) > 1:
        try:
            error = load(parts[1:2], given)
            if not isinstance(error, BaseException):
                raise TypeError(f"it is a {type(error).__name__}")
        except Exception as problem:
            problems = escaped(f"{type(problem).__name__}: {problem}")
            error = EntangleError(f"task {name!r} failed at {place} with {short}; that error cannot be unpickled here ({problems})")
    else:
        error = EntangleError(f"task {name!r} failed at {place}: {short}")
    if len(parts) > 2:  # the error of the last attempt, as ProcessRetryException promises
        with contextlib.suppress(Exception):
            set_cause(error, load(parts[2:], given))
    error = escape_error(error)
    set_cause(error.__cause__ or error, RemoteTraceback(text))
    if where:
        add_host(error, where)
    return error


def _text(value: Any) -> str:
    """Text of an error, escaped. Of a very long one, the beginning and the end."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of text")
    if len(value) > LONGEST_TEXT:
        value = value[: LONGEST_TEXT // 2] + "\n…\n" + value[-LONGEST_TEXT // 2 :]
    return escaped(value)
