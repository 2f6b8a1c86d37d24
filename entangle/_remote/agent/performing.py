"""Runs a job at the agent: a message becomes a call, and its outcome becomes the answer."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

from entangle import _remote
from entangle._remote.agent import imports
from entangle._remote.wire.frames import Segments
from entangle._remote.wire.parts import SOURCE, dump, dump_plain, load
from entangle._shared import module_lookup
from entangle._shared.documentation import more
from entangle._shared.pickling import why_not
from entangle._shared.unpickling import BrokenPart, failing_part, unpickling_error
from entangle._worker import importing
from entangle._worker.failures import as_it_is, describe, pickled_error
from entangle.errors import (
    EntangleError,
    MissingModuleError,
    ProcessRetryException,
    RemoteTraceback,
    UnpicklableError,
    add_note,
)
from entangle.task import Call


def perform(parts: Sequence[Any], began: Callable[[Callable[[], None]], None]) -> tuple[bool, list[Segments], list[bytes]]:
    """Run a job: whether it gave a value, the parts of the answer, and the records of what ran.

    `began` is called with the function that cancels the run.
    """
    importing.agent = True
    head = json.loads(bytes(parts[0]))
    module_lookup.arrive(head["travelled"])
    os.environ.update(head["telling"])
    given, answer = _perform(parts, head, began)
    return given, answer, _remote.travels().collect() if head["record"] else []


def _perform(parts: Sequence[Any], head: dict[str, Any], began: Callable[[Callable[[], None]], None]) -> tuple[bool, list[Segments]]:
    name, plain = head["name"], head["mode"] == SOURCE
    reader: Any = None
    try:
        if plain:
            from entangle._remote.agent.source_reader import SourceReader

            reader = SourceReader(parts[1], parts[2:])
            (task, args, kwargs), reader.call = reader.call, None
        else:
            task, args, kwargs = _load_call(parts[1:], name)
        parts = ()
        run = Call(task, args, kwargs)._run()
        if head["record"]:
            _remote.travels().host(run, *head["record"])
        args, kwargs = (), {}
        began(run.cancel)
        value = run.value()
    except BaseException as error:
        return False, _failed(error, name, plain, reader)
    try:
        return True, dump_plain([value], reader.reduced) if plain else dump(value)
    except Exception as error:
        refused: Exception = why_not(value, f"the value of task {name!r}")
        if plain:
            version = ".".join(map(str, sys.version_info[:2]))
            refused = UnpicklableError(
                f"the value of task {name!r} cannot travel from Python {version} to {'.'.join(map(str, head['here']))}: "
                f"only a plain pickle can be read there ({type(error).__name__}: {error})"
            )
        return False, _failed(refused, name, plain, reader)


for _makes_again in (load, _perform, imports.load_renewed):
    importing.unpickles(_makes_again)


def _load_call(parts: Sequence[Any], name: str) -> Any:
    """A task and its arguments. UnpicklableError names the argument that cannot be made here."""
    try:
        return load(parts)
    except (ImportError, OSError, EntangleError):  # these say themselves what is missing
        raise
    except Exception as problem:
        part = failing_part(parts[0], parts[1:])
        if part is None:
            raise
        whose = f"task {name!r}"
        steps = part.steps
        if len(steps) > 1 and steps[0] in ("[1]", "[2]"):
            number = steps[1][1:-1]
            whose = f"argument {int(number) + 1 if steps[0] == '[1]' else number} of {whose}"
            part = BrokenPart(steps[2:], part.kind)
        raise unpickling_error(problem, f"{whose} cannot be unpickled there", part) from problem


def _failed(error: BaseException, name: str, plain: bool, reader: Any = None) -> list[Segments]:
    error = _explained(error)
    there = error.__cause__
    report = describe(error, name, 1)
    text = report["text"]
    if isinstance(there, RemoteTraceback) and not isinstance(error, MissingModuleError):
        text = there.text  # raised in a worker: its traceback says more
    short = f"{type(error).__name__}: {error}"
    told = {"text": text, "where": "" if isinstance(there, RemoteTraceback) else report["where"], "short": short[:2000]}
    parts: list[Segments] = [[json.dumps(told).encode()], [report["error"]]]
    if plain:  # another version cannot run code of this one
        pickled = _plain_error(error, reader)
        if pickled is None and not _is_plain(error):
            return parts[:1]
        parts[1] = pickled or parts[1]
    if isinstance(error, ProcessRetryException) and there is not None:
        with contextlib.suppress(Exception):
            last = _plain_error(there, reader) if plain else [pickled_error(there, name)]
            parts += [last] if last is not None else []
    return parts


def _plain_error(error: BaseException, reader: Any) -> Segments | None:
    """An error as a pickle for another version of Python; None if it could not be read there."""
    if reader is None:
        return None

    def dumped(value: Any) -> bytes:
        (pickled,) = dump_plain([value], reader.reduced)
        return b"".join(pickled)

    try:
        return [as_it_is(error, dumped, lambda pickled: load([pickled], reader.given))]
    except Exception:
        return None


def _is_plain(error: BaseException) -> bool:
    try:
        pickle.dumps(error, 5)
    except Exception:
        return False
    return True


def _explained(error: BaseException) -> BaseException:
    """The error, with what the caller said about a module that is missing or incomplete here."""
    if isinstance(error, FileNotFoundError) and isinstance(error.filename, str):
        package = imports.package_of(error.filename)
        if package and (why := imports.why_modules_alone(package)):
            add_note(error, why)
        return error
    if not isinstance(error, ImportError) or isinstance(error, MissingModuleError):
        return error
    why = imports.why_missing(error.name)
    if not why and type(error).__name__ == "PackageNotFoundError":  # of importlib.metadata
        why = imports.why_modules_alone(str(error.name))
    if not why:
        return error
    told = MissingModuleError(why, name=error.name)
    add_note(told, more("places"))
    told.__cause__ = error
    return told
