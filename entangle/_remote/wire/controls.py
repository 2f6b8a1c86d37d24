"""Text from another place, made safe for the terminal: control characters become `\\x1b` and so on.

Colours pass.
"""

from __future__ import annotations

import builtins
import contextlib
import re
from typing import Any

from entangle.errors import set_cause

#: An SGR sequence (colour, weight) and a CRLF pass as a whole. Every other control character of
#: the first 32 (C0) and of those above ASCII (C1) matches alone.
_CONTROLS = re.compile(r"\x1b\[[0-9;:]{0,48}m|\r\n|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def escaped(text: str) -> str:
    """The text, with each control character written out that could move the cursor or worse."""
    return _CONTROLS.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    return found[0] if len(found[0]) > 1 else f"\\x{ord(found[0]):02x}"


def escape_error(error: BaseException, deep: int = 4) -> BaseException:
    """Escape what an error from another place says: message, notes, and nested errors.

    It happens in place, but for groups of errors, whose message and members cannot be changed: the
    one given back has the same class, notes, causes and attributes.
    """
    if deep and isinstance(error, _groups()):
        error = _escaped_group(error, deep)
    told = tuple(escaped(part) if type(part) is str else part for part in error.args)
    if told != error.args:
        vars(BaseException)["args"].__set__(error, told)
    # Errors of the system and of syntax print these attributes instead of their arguments.
    for name in ("strerror", "msg", "text", "reason", *(("filename",) if isinstance(error, SyntaxError) else ())):
        with contextlib.suppress(Exception):  # a class may refuse attributes
            part = getattr(error, name, None)
            if type(part) is str and part != escaped(part):
                setattr(error, name, escaped(part))
    with contextlib.suppress(Exception):  # a class may build its message from anything
        said = str(error)
        if said != escaped(said):
            for name, part in list(vars(error).items()):
                if type(part) is str:
                    setattr(error, name, escaped(part))
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list):
        notes[:] = [escaped(note) if type(note) is str else note for note in notes]
    if deep:
        if isinstance(error.__cause__, BaseException):
            set_cause(error, escape_error(error.__cause__, deep - 1))
        if isinstance(error.__context__, BaseException):
            with contextlib.suppress(Exception):
                error.__context__ = escape_error(error.__context__, deep - 1)
    return error


def _groups() -> tuple[type[BaseException], ...]:
    """The class of groups of errors; none before Python 3.11."""
    found = vars(builtins).get("BaseExceptionGroup")
    return (found,) if found is not None else ()


def _escaped_group(group: Any, deep: int) -> Any:
    members = [escape_error(each, deep - 1) for each in group.exceptions]
    # The class of the user may make groups in its own way, or not at all.
    made = _groups()[0].__new__(type(group), escaped(group.message), members)
    with contextlib.suppress(Exception):
        vars(made).update(vars(group))
    with contextlib.suppress(Exception):
        made.__cause__, made.__context__, made.__suppress_context__ = group.__cause__, group.__context__, group.__suppress_context__
        made.__traceback__ = group.__traceback__
    vars(BaseException)["args"].__set__(made, group.args)
    return made


def escaped_within(value: Any) -> Any:
    """The value with all text in its lists and dicts escaped."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, list):
        return [escaped_within(part) for part in value]
    if isinstance(value, dict):
        return {escaped_within(name): escaped_within(part) for name, part in value.items()}
    return value
