"""The message of a call to an executor: a function of this module, and bytes. Both sides are here.

Our pickler makes the bytes of the function, the layers below the place and the arguments, as for
any other place, and those of the value. So the executor's own pickler sees no object of the user.
"""

from __future__ import annotations

import pickle
import sys
import time
from typing import Any

from entangle._shared.call_notes import add_host
from entangle._shared.pickling import dumps, dumps_for_others, why_not
from entangle._shared.tracebacks import passes_on
from entangle._tasks.resolving import resolved
from entangle._worker.failures import describe, set_traceback
from entangle.errors import EntangleError, UnfitPythonError, UnpicklableError

#: What comes back: whether there is a value, the seconds of the body, and the pickle of the value
#: or of the report of the error.
Answer = tuple[bool, float, bytes]


def pack(task: Any) -> bytes:
    """A task as bytes. Raises UnpicklableError, which names what cannot travel."""
    return _dumped(task, task, task.made_of())


def pack_arguments(task: Any, args: Any, kwargs: dict[str, Any]) -> bytes:
    """The arguments of a call of it as bytes. Raises UnpicklableError as well."""
    if not args and not kwargs:
        return b""
    parts = [(f"argument {index + 1}", value) for index, value in enumerate(args)]
    parts += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    return _dumped((tuple(args), kwargs), task, parts)


def _dumped(whole: Any, task: Any, parts: list[tuple[str, Any]]) -> bytes:
    try:
        return dumps_for_others(whole)
    except Exception as error:
        if isinstance(error, EntangleError):
            raise
        for what, value in parts:
            try:
                dumps_for_others(value)
            except Exception:
                raise why_not(value, f"{what} of task {task.__name__!r}", dumps_for_others) from None
        raise UnpicklableError(f"task {task.__name__!r} cannot travel to its executor: {type(error).__name__}: {error}") from None


def perform(name: str, attempt: int, python: tuple[int, int], task: bytes, arguments: bytes, unique: bytes) -> Answer:
    """Run a call where the executor runs it; gives the answer. Raises nothing.

    `unique` tells it from other calls: Dask takes equal calls for one.
    """
    began = time.perf_counter()
    try:
        if sys.version_info[:2] != tuple(python):
            there, here = (".".join(map(str, version)) for version in (sys.version_info[:2], python))
            raise UnfitPythonError(
                f"task {name!r} cannot run in its executor: that has Python {there}, and code of Python {here} does not run there; "
                "give both the same version"
            )
        body = pickle.loads(task)
        args, kwargs = pickle.loads(arguments) if arguments else ((), {})
        began = time.perf_counter()
        value = called(body, args, kwargs)
        seconds = time.perf_counter() - began
        try:
            return True, seconds, dumps(value)
        except Exception:
            raise why_not(value, f"the value of task {name!r}") from None
    except BaseException as error:
        return False, time.perf_counter() - began, pickle.dumps(describe(error, name, attempt), 5)


@passes_on
def called(task: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The value of a task. One with layers is a run of its own, so that they hold."""
    return resolved(task.function(*args, **kwargs) if not task.layers else task(*args, **kwargs))


def value_of(name: str, body: bytes) -> Any:
    """The value that has come back. Raises EntangleError if it cannot be unpickled here."""
    try:
        return pickle.loads(body)
    except Exception as problem:
        raise EntangleError(
            f"the value of task {name!r}, which its executor has sent, cannot be unpickled here: {type(problem).__name__}: {problem}"
        ) from problem


def error_of(name: str, body: bytes) -> BaseException:
    """The error that has come back, with its traceback from there as its cause."""
    report: dict[str, Any] = pickle.loads(body)
    error: BaseException
    try:
        error = pickle.loads(report["error"])
    except Exception as problem:
        told, why = f"{report['type']}: {report['message']}", f"{type(problem).__name__}: {problem}"
        error = EntangleError(f"task {name!r} failed with {told}; that error cannot be unpickled here ({why})")
    if report["text"]:
        set_traceback(error, report["text"])
    add_host(error, report["where"])
    return error
