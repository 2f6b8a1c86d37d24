"""A job: a task, its arguments and its outcome, as what can be sent. Both sides use it, the engine being on both.

Between equal minor versions of Python a task travels by cloudpickle, else as source, with its arguments in a plain pickle, which
all versions read. Large buffers (arrays and the like) are parts of the message beside the pickle and are never copied into it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from entangle import _run
from entangle._remote import imports
from entangle._remote.wire import MOST_PARTS, Bytes, Segments
from entangle._run.failures import describe
from entangle._run.pickling import OF_MAIN, dumps, dumps_for_others, pickler_by_value, why_not
from entangle.errors import (
    EntangleError,
    MissingModuleError,
    ProcessRetryException,
    RemoteTraceback,
    UnfitPythonError,
    UnpicklableError,
    add_note,
    set_cause,
)
from entangle.task import Call, Task

#: A buffer of so many bytes is a part of its own.
LARGE = 64 << 10

PICKLE, SOURCE = "pickle", "source"


class _Segments(list[Bytes]):
    """A pickler writes to it; what is large it gets as it is, not copied."""

    def write(self, data: Bytes) -> int:
        self.append(data)
        return len(data)


def _dump(value: Any, plain: bool, ours: bool = False) -> list[Segments]:
    """A value as parts: the pickle, then its large buffers. Plain pickle, or where that cannot and may, cloudpickle.

    `ours` says that `__main__` is not the one of the other side.
    """
    buffers: list[Bytes] = []

    def aside(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not in one piece
            return True
        if raw.nbytes < LARGE or len(buffers) > MOST_PARTS - 4:
            return True
        buffers.append(raw)
        return False

    written = _Segments()
    try:
        pickle.Pickler(written, 5, buffer_callback=aside).dump(value)
        if plain or not (ours and any(OF_MAIN in segment for segment in written if len(segment) < LARGE * 2)):
            return [written, *([buffer] for buffer in buffers)]
    except Exception:
        if plain:
            raise
    written = _Segments()
    buffers.clear()
    pickler_by_value(written, aside).dump(value)
    return [written, *([buffer] for buffer in buffers)]


def _load(parts: Sequence[Any]) -> Any:
    return pickle.loads(parts[0], buffers=parts[1:])


# The caller's side -----------------------------------------------------------------------------------------------------


def pack(
    rest: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], about: dict[str, Any], place: str, record: Any = None
) -> list[Segments]:
    """A call as the parts of a message. `about` is what the agent has said of its place; `record`, where the run is to be
    remembered, the run and the node that want it and whether values are kept whole.

    Raises UnpicklableError, which names what cannot travel, and UnfitPythonError.
    """
    there = about["python"]
    same = there[:2] == list(sys.version_info[:2]) and about["implementation"] == sys.implementation.name
    mode = PICKLE if same else SOURCE
    sent: Any = rest
    if not same:
        from entangle._remote.source import describe_call

        sent, args, kwargs = describe_call(rest, args, kwargs, f"{place} has Python {there[0]}.{there[1]}")
    head = json.dumps({"mode": mode, "name": rest.__name__, "here": list(sys.version_info[:2]), "record": record}).encode()
    try:
        return [[head], *_dump((sent, args, kwargs), plain=not same, ours=True)]
    except Exception as error:
        raise _cannot_travel(rest, sent, args, kwargs, same, place, error) from None


def _cannot_travel(
    rest: Task[..., Any], sent: Any, args: tuple[Any, ...], kwargs: dict[str, Any], same: bool, place: str, error: Exception
) -> Exception:
    """The error that names what cannot be sent."""
    if isinstance(error, EntangleError):
        return error
    parts = [(f"argument {index + 1}", value) for index, value in enumerate(args)] + [(f"argument {n!r}", v) for n, v in kwargs.items()]
    parts += rest.made_of() if same else [("the function", sent)]
    for what, value in parts:
        try:
            _dump(value, plain=not same, ours=True)
        except Exception as refusal:
            told = why_not(value, f"{what} of task {rest.__name__!r}", dumps_for_others)
            if same:
                return told
            return UnpicklableError(
                f"{what} of task {rest.__name__!r} cannot travel to {place}, which has another version of Python, so that only a plain "
                f"pickle can: {type(refusal).__name__}: {refusal}"
            )
    return UnpicklableError(f"task {rest.__name__!r} cannot travel to {place}: {type(error).__name__}: {error}")


def value_of(parts: Sequence[Any], name: str, place: str) -> Any:
    """The value that has come."""
    try:
        return _load(parts)
    except Exception as error:
        raise EntangleError(f"the value of task {name!r} cannot be made here ({place} sent it): {type(error).__name__}: {error}") from error


def error_of(parts: Sequence[Any], name: str, place: str) -> BaseException:
    """The error that has come, as the caller gets it."""
    told = json.loads(bytes(parts[0]))
    told["text"] = _with_lines(told["text"])
    error: BaseException
    if len(parts) > 1:
        try:
            error = pickle.loads(parts[1])
        except Exception as problem:
            error = EntangleError(f"task {name!r} failed at {place} with {told['short']}; that error cannot be made here ({problem})")
    else:
        error = EntangleError(f"task {name!r} failed at {place}: {told['short']}")
    if len(parts) > 2:  # the last attempt's own error, as ProcessRetryException promises
        with contextlib.suppress(Exception):
            set_cause(error, pickle.loads(parts[2]))
    set_cause(error.__cause__ or error, RemoteTraceback(told["text"]))
    if told["where"]:
        add_note(error, told["where"])
    return error


_FRAME = re.compile(r' *File "(.+)", line (\d+), in .+')


def _with_lines(text: str) -> str:
    """A traceback with the source lines that are not there but here."""
    import linecache

    told: list[str] = []
    frame: re.Match[str] | None = None
    for line in [*text.splitlines(), ""]:
        if frame is not None and not line.startswith("    "):
            source = linecache.getline(frame[1], int(frame[2])).strip()
            told += [f"    {source}"] if source else []
        told.append(line)
        frame = _FRAME.fullmatch(line)
    return "\n".join(told)


# The agent's side ------------------------------------------------------------------------------------------------------


def perform(parts: Sequence[Any], began: Callable[[Callable[[], None]], None]) -> tuple[bool, list[Segments], list[bytes]]:
    """Run a job: whether it gave a value, the parts of the answer, and the records of what ran. `began` gets the function
    that cancels it."""
    head = json.loads(bytes(parts[0]))
    given, answer = _perform(parts, head, began)
    return given, answer, _run.travels.collect() if head["record"] else []


def _perform(parts: Sequence[Any], head: dict[str, Any], began: Callable[[Callable[[], None]], None]) -> tuple[bool, list[Segments]]:
    name, plain = head["name"], head["mode"] == SOURCE
    try:
        task, args, kwargs = _load(parts[1:])
        if plain:
            from entangle._remote.source import revive_call

            task, args, kwargs = revive_call(task, args, kwargs)
        parts = ()
        run = Call(task, args, kwargs)._run()
        if head["record"]:
            _run.travels.host(run, *head["record"])
        args, kwargs = (), {}
        began(run.cancel)
        value = run.value()
    except BaseException as error:
        return False, _failed(error, name, plain)
    try:
        return True, _dump(value, plain)
    except Exception as error:
        refused: Exception = why_not(value, f"the value of task {name!r}")
        if plain:
            version = ".".join(map(str, sys.version_info[:2]))
            refused = UnpicklableError(
                f"the value of task {name!r} cannot travel from Python {version} to {'.'.join(map(str, head['here']))}, between "
                f"which only a plain pickle can: {type(error).__name__}: {error}"
            )
        return False, _failed(refused, name, plain)


def _failed(error: BaseException, name: str, plain: bool) -> list[Segments]:
    error = _explained(error)
    there = error.__cause__
    at = error.__traceback__
    ours = os.path.dirname(os.path.dirname(__file__)) + os.sep
    while at is not None and at.tb_next is not None and at.tb_frame.f_code.co_filename.startswith((ours + "_r", ours + "task.py")):
        at = at.tb_next
    report = describe(error.with_traceback(at), name, 1)
    text = report["text"]
    if isinstance(there, RemoteTraceback) and not isinstance(error, MissingModuleError):
        text = there.text  # it went through a worker: what that saw is what there is to see
    short = f"{type(error).__name__}: {error}"
    told = {"text": text, "where": "" if isinstance(there, RemoteTraceback) else report["where"], "short": short[:2000]}
    parts: list[Segments] = [[json.dumps(told).encode()], [report["error"]]]
    if plain and not _is_plain(error):
        return parts[:1]  # code of another version would be code for nobody
    if isinstance(error, ProcessRetryException) and there is not None and (not plain or _is_plain(there)):
        with contextlib.suppress(Exception):
            parts.append([dumps(there)])
    return parts


def _is_plain(error: BaseException) -> bool:
    try:
        pickle.dumps(error, 5)
    except Exception:
        return False
    return True


def _explained(error: BaseException) -> BaseException:
    """For a module that is not here, or not with all that belongs to it: with what the caller said why it could not be sent."""
    if isinstance(error, FileNotFoundError) and isinstance(error.filename, str):
        package = imports.package_of(error.filename)
        if package and (why := imports.why_modules_alone(package)):
            add_note(error, why)
        return error
    if not isinstance(error, ImportError) or isinstance(error, MissingModuleError):
        return error
    why = imports.why_missing(error.name)
    if not why and type(error).__name__ == "PackageNotFoundError":  # of importlib.metadata, which need not be loaded
        why = imports.why_modules_alone(str(error.name))
    if not why:
        return error
    told = MissingModuleError(why, name=error.name)
    told.__cause__ = error
    return told


__all__ = ["UnfitPythonError", "error_of", "pack", "perform", "value_of"]
