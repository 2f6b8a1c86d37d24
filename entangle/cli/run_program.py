"""`entangle run FILE[:NAME] [ARGUMENTS]`: run a program, or one task, call or function of it."""

from __future__ import annotations

import ast
import inspect
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from entangle.cli.exit_status import ABSENT, DONE, FAILED, USAGE, Refused
from entangle.cli.json_lines import print_json
from entangle.cli.printing import console, duration, text
from entangle.cli.terminal_text import plain, stdout


def run(target: str, arguments: list[str], as_json: bool, progress: bool, start: str | None) -> int:
    """Run it; gives the exit status: that of the program, or 0 and 1 for a task that succeeds or
    fails.

    Raises Refused where there is no such file or name, or where arguments do not fit.
    """
    if start is not None:
        if start not in ("auto", "fork", "forkserver", "spawn"):
            raise Refused(f"--start must be auto, fork, forkserver or spawn, not {start!r}", USAGE)
        os.environ["ENTANGLE_START"] = start
    if progress:
        os.environ["ENTANGLE_PROGRESS"] = "1"
    path, name = _parse(target)
    began = time.time()
    value: Any = None
    error: BaseException | None = None
    try:
        if name:
            value = _run_name(path, name, arguments)
            _print_value(value, as_json)
        else:
            _run_program(path, arguments)
        status = DONE
    except _Ended as ended:
        status, error = ended.status, ended.__cause__
    # Look for the record only where the id is shown: what has run has run, whatever the state of
    # the records.
    run_id = _last_run(began) if as_json or sys.stderr.isatty() else None
    if as_json:
        seconds = round(time.time() - began, 6)
        told = _error_as_dict(error, path) if error is not None else None
        print_json({"status": status, "value": _jsonable(value), "error": told, "run": run_id, "seconds": seconds})
    elif run_id is not None:
        console(stderr=True).print(text((f"run {run_id}, {duration(time.time() - began)}; ", "dim"), f"entangle show {run_id}"))
    return status


class _Ended(Exception):
    """What was run has ended with this status, and not with a value. Its cause is the error."""

    def __init__(self, status: int) -> None:
        self.status = status


def _parse(target: str) -> tuple[str, str]:
    """The file, and the name in it or "". A file whose own name has a colon is a file all the
    same."""
    path, colon, name = target.rpartition(":")
    if not colon or os.path.exists(target):
        path, name = target, ""
    elif not name or not all(part.isidentifier() for part in name.split(".")):
        raise Refused(f"{name!r} is not a name; write FILE:NAME, as work.py:simulate", USAGE)
    if os.path.isdir(path):
        raise Refused(f"{path} is a directory; name a Python file in it", ABSENT)
    if not os.path.exists(path):
        raise Refused(f"there is no file {path}", ABSENT)
    return path, name


def _run_program(path: str, arguments: list[str]) -> None:
    """Run a file as `python FILE ARGUMENTS` would. An error is shown as Python shows it. Raises
    _Ended."""
    import runpy

    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as left:
        _leave(left)
    except Exception as error:
        _show_error(error, path)
        raise _Ended(FAILED) from error


def _leave(left: SystemExit) -> None:
    """End as a program that calls `sys.exit`. Raises _Ended, unless it has ended well."""
    status = _status_of(left)
    if status != DONE:
        raise _Ended(status) from left


def _status_of(left: SystemExit) -> int:
    """The exit status of a program. Where it is a string, print it, as Python does."""
    if left.code is None:
        return DONE
    if isinstance(left.code, int):
        return left.code
    print(left.code, file=sys.stderr)
    return FAILED


def _run_name(path: str, name: str, arguments: list[str]) -> Any:
    """Run what a file calls `name`; gives the value. Raises _Ended."""
    from entangle.task import Call

    found = find_in(load_file(path), path, name)
    try:
        if isinstance(found, Call):
            args, kwargs = _arguments(arguments, name, found)
            value = found(*args, **kwargs) if args or kwargs else found()
        elif callable(found):
            args, kwargs = _arguments(arguments, name, found)
            value = found(*args, **kwargs)
            if isinstance(value, Call):
                value = value()
        elif arguments:
            raise Refused(f"{name} in {path} is a {type(found).__name__}, which takes no arguments", USAGE)
        else:
            raise Refused(f"{name} in {path} is a {type(found).__name__}; run a task, a call or a function", USAGE)
    except Refused:
        raise
    except SystemExit as left:
        _leave(left)
        return None
    except Exception as error:
        _show_error(error, path)
        raise _Ended(FAILED) from error
    return value


def _print_value(value: Any, as_json: bool) -> None:
    if value is not None and not as_json:
        print(_text(value), file=stdout())


def load_file(path: str) -> Any:
    """Import a file under its own name, so that workers that are not forked can import it too.
    Where another module has that name, or the name has dots, which would mean packages, it gets
    another name, and what it defines travels by value."""
    import importlib.util

    from entangle._shared.pickling import travel_by_value

    folder, file = os.path.split(os.path.abspath(path))
    own_name = os.path.splitext(file)[0]
    importable = "." not in own_name and own_name not in sys.modules
    # Not first where the file would hide the other module from workers that import it.
    sys.path.insert(0 if importable else len(sys.path), folder)
    module_name = own_name if importable else own_name.replace(".", "-") + "-run"
    while module_name in sys.modules:
        module_name += "-"
    spec = importlib.util.spec_from_file_location(module_name, os.path.join(folder, file))
    if spec is None or spec.loader is None:
        raise Refused(f"{path} is not a Python file: its name does not end in .py", USAGE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    if not importable:
        travel_by_value(module)
    sys.argv = [path]
    try:
        spec.loader.exec_module(module)
    except SystemExit as left:
        _status_of(left)
        raise Refused(f'{path} cannot be imported: it calls sys.exit; put that below `if __name__ == "__main__":`', FAILED) from None
    except Exception as error:
        _show_error(error, path)
        raise Refused(f"{path} cannot be imported: {_last_line(error)}", FAILED) from None
    return module


def find_in(module: Any, path: str, name: str) -> Any:
    from entangle.task import Call, Task

    found = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            runnable = [key for key, value in vars(module).items() if isinstance(value, (Task, Call)) and not key.startswith("_")]
            there = f"; there are: {', '.join(runnable)}" if runnable else ""
            raise Refused(f"there is no {name!r} in {path}{there}", ABSENT) from None
    return found


def _arguments(words: list[str], name: str, found: Any) -> tuple[list[Any], dict[str, Any]]:
    """Words as arguments: Python literals, or else strings; KEYWORD=VALUE where the function has
    that parameter. Raises Refused where it does not take such arguments."""
    from entangle.task import Call

    signature = _signature(found)
    parameters: Mapping[str, inspect.Parameter] = signature.parameters if signature is not None else {}
    kinds = {parameter.kind for parameter in parameters.values()}
    any_keyword = inspect.Parameter.VAR_KEYWORD in kinds
    by_name = any_keyword or not kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (equals and key.isidentifier() and by_name):
            args.append(_literal(word))
        elif key in parameters or any_keyword:
            kwargs[key] = _literal(text)
        else:
            raise Refused(
                f"{name} has no parameter {key!r}; {_described(parameters)}. To pass it as a string, quote it: '\"{word}\"'", USAGE
            )
    before = (found.args, found.kwargs) if isinstance(found, Call) else ((), {})
    try:
        if signature is not None:
            signature.bind(*before[0], *args, **{**before[1], **kwargs})
    except TypeError as error:
        raise Refused(f"{name} cannot be called with these arguments: {error}; {_described(parameters)}", USAGE) from None
    return args, kwargs


def _signature(found: Any) -> inspect.Signature | None:
    """The signature of a task, a call or a function; None where it is not known."""
    from entangle._tasks.parameters import without_injected
    from entangle.task import Call, Task

    task = found.task if isinstance(found, Call) else found
    try:
        if not isinstance(task, Task):
            return inspect.signature(task)
        if any(layer.takes_arguments for layer in task.layers):
            return inspect.signature(_anything)
        return without_injected(inspect.signature(task.function), task.layers)
    except (TypeError, ValueError):  # a builtin
        return None


def _anything(*args: Any, **kwargs: Any) -> None:
    """The signature of a task whose layer defines the arguments, such as the fields of a
    request."""


def _described(parameters: Mapping[str, inspect.Parameter]) -> str:
    marks: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    names = ", ".join(marks.get(parameter.kind, "") + name for name, parameter in parameters.items())
    return f"it takes {names}" if names else "it takes no arguments"


def _literal(word: str) -> Any:
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return word


def _jsonable(value: Any) -> Any:
    import json

    try:
        json.dumps(value, allow_nan=False)
    except Exception:  # its class may raise anything
        return _text(value)
    return value


def _text(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__qualname__}: its text raises {type(error).__name__}>"


def _show_error(error: BaseException, path: str) -> None:
    """Show an error as Python does."""
    sys.stderr.write(_traceback_of(error, path))


def _traceback_of(error: BaseException, path: str) -> str:
    """The text of an error as Python shows it, from the user's file on: the frames above it are
    ours."""
    import traceback

    at = error.__traceback__
    ours = os.path.abspath(path)
    while at is not None and os.path.abspath(at.tb_frame.f_code.co_filename) != ours:
        at = at.tb_next
    told = "".join(traceback.format_exception(type(error), error, at))
    if sys.version_info < (3, 11):  # it keeps notes, and does not show them
        told += "".join(f"{note}\n" for note in getattr(error, "__notes__", ()))
    return told


def _last_line(error: BaseException) -> str:
    import traceback

    return traceback.format_exception_only(type(error), error)[-1].strip()


def _error_as_dict(error: BaseException, path: str) -> dict[str, Any]:
    """An error as programs are told it."""
    from entangle._worker.failures import name_of_type, text_of

    message = text_of(error)
    return {
        "type": name_of_type(error),
        "message": message,
        "notes": [str(note) for note in getattr(error, "__notes__", None) or ()],
        "traceback": "" if isinstance(error, SystemExit) else _traceback_of(error, path),
    }


def _last_run(began: float) -> str | None:
    """The id of the last run that this process has recorded since then; None where runs are not
    recorded, or records cannot be read."""
    from entangle.cli.runs import last_of_process

    try:
        return last_of_process(os.getpid(), began)
    except Exception as error:
        print(f"entangle: the record of this run cannot be read: {plain(str(error))}", file=sys.stderr)
        return None
