"""Our own frames in tracebacks: they are taken out of errors that reach users.

The frames of the user's code and of other libraries remain. `ENTANGLE_TRACEBACK=full` keeps all. So
does a fault of ours: an error that our code has raised and that is not in our own error tree.
"""

from __future__ import annotations

import functools
import os
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

from entangle.errors import EntangleError

F = TypeVar("F", bound=Callable[..., Any])

#: Packages of ours that count as users' code: examples and tests.
_AS_USERS = ("entangle.examples", "entangle.tests")
#: Modules of Python through which we call users' code. Their frames go if they follow one of ours.
_BETWEEN = ("asyncio", "concurrent.futures", "contextlib", "threading")
#: How many errors of one chain are treated.
_MOST = 200

_set_traceback = vars(BaseException)["__traceback__"].__set__

#: Code that calls users' code, or raises what happened elsewhere: its errors are no fault of ours.
_passing_on: set[types.CodeType] = set()


def passes_on(function: F) -> F:
    """Declare that errors raised in this function come from others: a body in C, a worker."""
    _passing_on.add(function.__code__)
    return function


def edge(function: F) -> F:
    """Wrap a function that users call: its errors then point at the line that called it."""

    @functools.wraps(function)
    def entered(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            hide(error)
            raise

    return entered  # type: ignore[return-value]


def hide(error: BaseException, passed_on: bool = False) -> None:
    """Take our frames out of the traceback of an error and of its causes and contexts.

    Call it in an `except` block, and leave that by a bare `raise`, which adds no line. `passed_on`
    says that the error is certainly not ours.
    """
    if os.environ.get("ENTANGLE_TRACEBACK") == "full":
        return
    try:
        if passed_on or _is_passed_on(error):
            _hide(error)
    except Exception:  # an odd class of error may refuse; the error itself must not be lost
        return


def _hide(error: BaseException) -> None:
    handled = sys.version_info < (3, 11) and sys.exc_info()[1] is error
    seen = {id(error)}
    chain = [error]
    while chain:
        one = chain.pop()
        others = _others(one.__traceback__)
        if others is not one.__traceback__:
            _set_traceback(one, others)
        inner = getattr(one, "exceptions", ()) if _is_group(one) else ()
        for other in (one.__cause__, one.__context__, *inner):
            if isinstance(other, BaseException) and id(other) not in seen and len(seen) < _MOST:
                seen.add(id(other))
                chain.append(other)
    if handled:
        _raise_again_as_it_is(error)


def _raise_again_as_it_is(error: BaseException) -> None:
    """On Python 3.10, make a bare `raise` use the new traceback.

    That version re-raises with a traceback kept beside the error; later ones use the error's own.
    """
    import ctypes

    api = ctypes.pythonapi
    parts = [ctypes.py_object(part) for part in (type(error), error, error.__traceback__)]
    for part in parts:
        api.Py_IncRef(part)  # PyErr_SetExcInfo steals a reference to each
    api.PyErr_SetExcInfo(*parts)


def _is_group(error: BaseException) -> bool:
    return sys.version_info >= (3, 11) and isinstance(error, BaseExceptionGroup)  # noqa: F821


def _is_passed_on(error: BaseException) -> bool:
    if isinstance(error, EntangleError) or not isinstance(error, Exception):
        return True
    notes = getattr(error, "__notes__", ())
    if isinstance(notes, list) and any(isinstance(note, str) and note.startswith("call path: ") for note in notes):
        return True  # a nested run has reported it as a task's
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is None or not _is_ours(at) or at.tb_frame.f_code in _passing_on


def _module(entry: types.TracebackType) -> str:
    name = entry.tb_frame.f_globals.get("__name__")
    return name if type(name) is str else ""


def _is_ours(entry: types.TracebackType) -> bool:
    name = _module(entry)
    return name == "entangle" or (name.startswith("entangle.") and not name.startswith(_AS_USERS))


def _others(first: types.TracebackType | None) -> types.TracebackType | None:
    """The entries of a traceback that are not ours."""
    kept: list[types.TracebackType] = []
    after_ours, hidden = False, 0
    at = first
    while at is not None:
        after_ours = _is_ours(at) or (after_ours and _module(at).startswith(_BETWEEN))
        if after_ours:
            hidden += 1
        else:
            kept.append(at)
        at = at.tb_next
    if not hidden:
        return first
    others: types.TracebackType | None = None
    for entry in reversed(kept):
        others = types.TracebackType(others, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return others
