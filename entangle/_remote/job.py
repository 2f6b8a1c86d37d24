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
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from entangle import _run
from entangle._remote import imports
from entangle._remote.controls import escape_error, escaped
from entangle._remote.wire import MOST_PARTS, Bytes, Segments
from entangle._run import findable, importing
from entangle._run.failures import as_it_is, describe, pickled_error
from entangle._run.pickling import OF_MAIN, PicklerByName, dumps_for_others, pickler_by_value, why_not
from entangle._run.remaking import Part, failing_part, not_remade
from entangle.errors import (
    EntangleError,
    MissingModuleError,
    ProcessRetryException,
    ProtocolError,
    RemoteTraceback,
    UnfitPythonError,
    UnpicklableError,
    add_note,
    set_cause,
)
from entangle.task import Call, Task

#: A buffer of so many bytes is a part of its own.
LARGE = 64 << 10

#: Variables of the caller's environment that say how an error is told, and what of it is not: they hold there, too.
_TELLING = ("ENTANGLE_SECRETS", "ENTANGLE_TRACEBACK")
#: Characters of a traceback that are kept.
LONGEST_TEXT = 1 << 20

PICKLE, SOURCE = "pickle", "source"

#: What has this number among the functions and classes that went as source.
Given = Callable[[int], Any] | None


class _Segments(list[Bytes]):
    """A pickler writes to it; what is large it gets as it is, not copied."""

    def write(self, data: Bytes) -> int:
        self.append(data)
        return len(data)


class _Buffers(list[Bytes]):
    """The large buffers of a pickle, which are parts of their own."""

    def aside(self, buffer: pickle.PickleBuffer) -> bool:
        """Take one. True says that it has to be in the pickle."""
        try:
            raw = buffer.raw()
        except BufferError:  # not in one piece
            return True
        if raw.nbytes < LARGE or len(self) > MOST_PARTS - 4:
            return True
        self.append(raw)
        return False


def _dump(value: Any, ours: bool = False) -> list[Segments]:
    """A value as parts: the pickle, then its large buffers. Plain pickle, or where that cannot, cloudpickle.

    `ours` says that `__main__` is not the one of the other side.
    """
    buffers = _Buffers()
    written = _Segments()
    try:
        kind = PicklerByName if ours or findable.travelled else pickle.Pickler
        kind(written, 5, buffer_callback=buffers.aside).dump(value)
        if not (ours and any(OF_MAIN in segment for segment in written if len(segment) < LARGE * 2)):
            return [written, *([buffer] for buffer in buffers)]
    except Exception:
        pass
    written = _Segments()
    buffers.clear()
    pickler_by_value(written, buffers.aside).dump(value)
    return [written, *([buffer] for buffer in buffers)]


def _dump_plain(values: Iterable[Any], reduced: Callable[[Any], Any]) -> list[Segments]:
    """Values as parts that any version of Python can read, one pickle after the other. `reduced` is the part of what both sides have."""
    from entangle._remote.revive import Pickler

    buffers = _Buffers()
    written = _Segments()
    pickler = Pickler(written, reduced, buffers.aside)
    for value in values:
        pickler.dump(value)
    return [written, *([buffer] for buffer in buffers)]


def _load(parts: Sequence[Any], given: Given = None) -> Any:
    if given is not None:
        from entangle._remote.revive import Unpickler

        return Unpickler(parts[0], given, parts[1:]).load()
    return pickle.loads(parts[0], buffers=parts[1:])


# The caller's side -----------------------------------------------------------------------------------------------------


def pack(
    rest: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], about: dict[str, Any], place: str, record: Any = None
) -> tuple[list[Segments], Given]:
    """A call as the parts of a message, and what reads in its answer what both sides have. `about` is what the agent has said of its
    place; `record`, where the run is to be remembered, the run and the node that want it and whether values are kept whole.

    Raises UnpicklableError, which names what cannot travel, and UnfitPythonError.
    """
    there = about["python"]
    same = there[:2] == list(sys.version_info[:2]) and about["implementation"] == sys.implementation.name
    mode = PICKLE if same else SOURCE
    findable.look_afresh()
    given: Given = None
    if not same:
        from entangle._remote.source import Book

        book = Book(rest, args, kwargs, f"{place} has Python {there[0]}.{there[1]}")
        parts, given = _dump_plain([book.head, *book.steps], book.reduced), book.given
    else:
        try:
            parts = _dump((rest, args, kwargs), ours=True)
        except Exception as error:
            raise _cannot_travel(rest, args, kwargs, place, error) from None
    head = {
        "mode": mode,
        "name": rest.__name__,
        "here": list(sys.version_info[:2]),
        "record": record,
        "travelled": sorted(findable.travelled),
        "telling": {name: os.environ[name] for name in _TELLING if name in os.environ},
    }
    return [[json.dumps(head).encode()], *parts], given


def _cannot_travel(rest: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], place: str, error: Exception) -> Exception:
    """The error that names what cannot be sent."""
    if isinstance(error, EntangleError):
        return error
    parts = [(f"argument {index + 1}", value) for index, value in enumerate(args)] + [(f"argument {n!r}", v) for n, v in kwargs.items()]
    parts += rest.made_of()
    for what, value in parts:
        try:
            _dump(value, ours=True)
        except Exception:
            return why_not(value, f"{what} of task {rest.__name__!r}", dumps_for_others)
    return UnpicklableError(f"task {rest.__name__!r} cannot travel to {place}: {type(error).__name__}: {error}")


def value_of(parts: Sequence[Any], name: str, place: str, given: Given = None) -> Any:
    """The value that has come. Raises ProtocolError where what has come is no pickle at all."""
    try:
        return _load(parts, given)
    except Exception as error:
        if not parts or isinstance(error, (pickle.UnpicklingError, EOFError)):
            told = f"{type(error).__name__}: {escaped(str(error))}"
            raise ProtocolError(f"{place}: the value of task {name!r} came damaged ({told})") from error
        what = f"the value of task {name!r}, which {place} has sent, cannot be made again here"
        made = not_remade(error, what, failing_part(parts[0], parts[1:]) if given is None else None)
        escape_error(made)
        raise made from error


def error_of(parts: Sequence[Any], name: str, place: str, given: Given = None) -> BaseException:
    """The error that has come, as the caller gets it; what it says is escaped. Gives a ProtocolError where none can be made out."""
    try:
        told = json.loads(bytes(parts[0]))
        text, where, short = (_text(told[part]) for part in ("text", "where", "short"))
    except (IndexError, KeyError, TypeError, ValueError, RecursionError) as why:
        return ProtocolError(f"{place}: the error of task {name!r} came damaged ({type(why).__name__}: {why})")
    text = _with_lines(text)
    error: BaseException
    if len(parts) > 1:
        try:
            error = _load(parts[1:2], given)
            if not isinstance(error, BaseException):
                raise TypeError(f"it is a {type(error).__name__}")
        except Exception as problem:
            problems = escaped(f"{type(problem).__name__}: {problem}")
            error = EntangleError(f"task {name!r} failed at {place} with {short}; that error cannot be made here ({problems})")
    else:
        error = EntangleError(f"task {name!r} failed at {place}: {short}")
    if len(parts) > 2:  # the last attempt's own error, as ProcessRetryException promises
        with contextlib.suppress(Exception):
            set_cause(error, _load(parts[2:], given))
    escape_error(error)
    set_cause(error.__cause__ or error, RemoteTraceback(text))
    if where:
        add_note(error, where)
    return error


def _text(value: Any) -> str:
    """Text of an error as it may be shown; of one that is longer than anybody reads, the beginning and the end."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of text")
    if len(value) > LONGEST_TEXT:
        value = value[: LONGEST_TEXT // 2] + "\n…\n" + value[-LONGEST_TEXT // 2 :]
    return escaped(value)


_FRAME = re.compile(r' *File "([^"]+)", line (\d{1,9}), in .+')


def _with_lines(text: str) -> str:
    """A traceback with the source lines that are not there but here."""
    import linecache

    told: list[str] = []
    frame: re.Match[str] | None = None
    files: dict[str, bool] = {}
    for line in [*text.splitlines(), ""]:
        if frame is not None and not line.startswith("    "):
            file = frame[1]
            if file not in files and len(files) < 64:
                files[file] = _is_source(file)
            source = linecache.getline(file, int(frame[2])).strip() if files.get(file) else ""
            told += [f"    {escaped(source)}"] if source else []
        told.append(line)
        frame = _FRAME.fullmatch(line)
    return "\n".join(told)


def _is_source(path: str) -> bool:
    """Whether there is such a file here, to be read for a line of a traceback: the other side names it, and it might be a device."""
    import linecache
    import stat

    if path in linecache.cache:
        return True
    with contextlib.suppress(OSError, ValueError):
        found = os.stat(path)
        known = path.endswith(".py") or path == getattr(sys.modules.get("__main__"), "__file__", None)
        return known and stat.S_ISREG(found.st_mode) and found.st_size < 4 << 20
    return False


# The agent's side ------------------------------------------------------------------------------------------------------


def perform(parts: Sequence[Any], began: Callable[[Callable[[], None]], None]) -> tuple[bool, list[Segments], list[bytes]]:
    """Run a job: whether it gave a value, the parts of the answer, and the records of what ran. `began` gets the function
    that cancels it."""
    importing.agent = True
    head = json.loads(bytes(parts[0]))
    findable.arrive(head["travelled"])
    os.environ.update(head["telling"])
    given, answer = _perform(parts, head, began)
    return given, answer, _run.travels.collect() if head["record"] else []


def _perform(parts: Sequence[Any], head: dict[str, Any], began: Callable[[Callable[[], None]], None]) -> tuple[bool, list[Segments]]:
    name, plain = head["name"], head["mode"] == SOURCE
    reader: Any = None
    try:
        if plain:
            from entangle._remote.revive import Reader

            reader = Reader(parts[1], parts[2:])
            (task, args, kwargs), reader.call = reader.call, None
        else:
            task, args, kwargs = _load_call(parts[1:], name)
        parts = ()
        run = Call(task, args, kwargs)._run()
        if head["record"]:
            _run.travels.host(run, *head["record"])
        args, kwargs = (), {}
        began(run.cancel)
        value = run.value()
    except BaseException as error:
        return False, _failed(error, name, plain, reader)
    try:
        return True, _dump_plain([value], reader.reduced) if plain else _dump(value)
    except Exception as error:
        refused: Exception = why_not(value, f"the value of task {name!r}")
        if plain:
            version = ".".join(map(str, sys.version_info[:2]))
            refused = UnpicklableError(
                f"the value of task {name!r} cannot travel from Python {version} to {'.'.join(map(str, head['here']))}, between "
                f"which only a plain pickle can: {type(error).__name__}: {error}"
            )
        return False, _failed(refused, name, plain, reader)


for _makes_again in (_load, _perform, imports.load_renewed):
    importing.unpickles(_makes_again)


def _load_call(parts: Sequence[Any], name: str) -> Any:
    """A task and its arguments. Raises UnpicklableError, which names the argument that cannot be made here."""
    try:
        return _load(parts)
    except (ImportError, OSError, EntangleError):  # these say themselves what is missing here
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
            part = Part(steps[2:], part.kind)
        raise not_remade(problem, f"{whose} cannot be made again there", part) from problem


def _failed(error: BaseException, name: str, plain: bool, reader: Any = None) -> list[Segments]:
    error = _explained(error)
    there = error.__cause__
    report = describe(error, name, 1)
    text = report["text"]
    if isinstance(there, RemoteTraceback) and not isinstance(error, MissingModuleError):
        text = there.text  # it went through a worker: what that saw is what there is to see
    short = f"{type(error).__name__}: {error}"
    told = {"text": text, "where": "" if isinstance(there, RemoteTraceback) else report["where"], "short": short[:2000]}
    parts: list[Segments] = [[json.dumps(told).encode()], [report["error"]]]
    if plain:  # code of another version would be code for nobody
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
    """An error as a pickle for another version, with classes of the script that came from there; None where it cannot be read again."""
    if reader is None:
        return None

    def dumped(value: Any) -> bytes:
        (pickled,) = _dump_plain([value], reader.reduced)
        return b"".join(pickled)

    try:
        return [as_it_is(error, dumped, lambda pickled: _load([pickled], reader.given))]
    except Exception:
        return None


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
