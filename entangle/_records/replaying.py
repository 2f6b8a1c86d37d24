"""A kept call is run again: its body alone, in the main thread of a process of its own.

The process has the Python, the variables, the `sys.path` and the directory of then. A task is found
by its name, so its code is that of now; where it has none in a module, as in a notebook, it is as
it was kept. A script is imported as `multiprocessing` imports one, under another name than
`__main__`, and only where its last part is guarded by `if __name__ == "__main__":`.

Left out are the layers around the body that would take it to another process or place, wait, try
again or take the value from a cache.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import io
import json
import os
import pickle
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType, TracebackType
from typing import Any

from entangle._records.kept import path_of
from entangle._records.reading import find_run
from entangle._records.views import record_of
from entangle._shared import pickled_classes
from entangle._shared.identity import difference, identify
from entangle._shared.kept_calls import KeptCall, NotKept, read
from entangle._shared.pickling import MAIN, dumps, loads_kept, says_ours
from entangle._shared.tracebacks import hide
from entangle._tasks.web_request import Request
from entangle._worker import importing
from entangle._worker.failures import name_of_type, text_of
from entangle.flow import UNCHANGING, rebuild
from entangle.task import Layer, Task, _code_of

#: What runs in the new process: the file of the call; whether a debugger is wanted, and JSON; and
#: the directory of records.
CODE = """import sys; sys.path[:] = {path!r}
from entangle._records.replaying import main
raise SystemExit(main({file!r}, {pdb!r}, {json!r}, {place!r}))
"""


class CannotReplay(Exception):
    """A call cannot be run again, and why."""


def command(head: dict[str, Any], place: str, debugger: bool, as_json: bool) -> tuple[str, list[str], dict[str, str]]:
    """The program, its arguments and its environment for a call that was kept: what its first line
    says is `head`, and `place` is the directory of records."""
    executable = head["executable"] if os.access(head["executable"], os.X_OK) else sys.executable
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = head["path"] if ours in head["path"] else [*head["path"], ours]
    environment = {**os.environ, **head["environment"], "ENTANGLE_RECORD": "0"}
    place = os.path.abspath(place)
    file = path_of(place, head["run"], head["node"])
    return executable, [executable, "-c", CODE.format(path=path, file=file, pdb=debugger, json=as_json, place=place)], environment


def main(file: str, debugger: bool, as_json: bool, place: str) -> int:
    """Run a kept call, and print its value or its error; gives the exit status."""
    told: list[str] = []

    def say(line: str) -> None:
        told.append(line)
        if not as_json:
            print(line, file=sys.stderr)

    try:
        call = read(file)
        function, args, named, code = _made(call, say)
    except (OSError, NotKept, CannotReplay) as why:
        if as_json:
            print(json.dumps({"status": 1, "error": {"type": "CannotReplay", "message": str(why)}}))
        else:
            print(f"entangle: {why}", file=sys.stderr)
        return 1
    value: Any = None
    error: BaseException | None = None
    try:
        value = function(*args, **named)
    except KeyboardInterrupt:
        return 130
    except BaseException as raised:
        error = raised
        hide(raised, passed_on=True)
    if error is None and not call.head["failed"]:
        _compare(call, place, value, say)
    if as_json:
        _print_json(call, told, value, error)
    elif error is None:
        print(_text(value))
    else:
        _print_error(call, error)
        if debugger:
            _debug(error.__traceback__, code)
    return int(error is not None)


def _compare(call: KeptCall, place: str, value: Any, say: Callable[[str], None]) -> None:
    """Say whether a value is the one that was recorded, where that can be told."""
    try:
        recorded = record_of(find_run(place, call.head["run"])).node(call.head["node"]).value
        if recorded is None:
            return
        same = recorded.hash is not None and hashlib.sha256(dumps(value)).hexdigest() == recorded.hash
        if not same and recorded.kept:
            same = bool(recorded.load() == value)
            if not same and says_ours(recorded.pickled):
                return  # its class may be another one than that of now
    except Exception:  # no record any more; or a value that cannot be compared
        return
    if same:
        say("the value is the one that was recorded")
    elif recorded.kept or (recorded.hash is not None and type(value) in UNCHANGING):
        say(f"the value differs from the one that was recorded: {recorded.text}")


def _print_json(call: KeptCall, told: list[str], value: Any, error: BaseException | None) -> None:
    failed = error and {"type": name_of_type(error), "message": text_of(error), "traceback": "".join(traceback.format_exception(error))}
    try:
        json.dumps(value, allow_nan=False)
    except Exception:  # its class may raise anything
        value = _text(value)
    known = {name: call.head[name] for name in ("run", "node", "name")}
    print(json.dumps({"status": int(error is not None), **known, "said": told, "value": value, "error": failed}))


def _print_error(call: KeptCall, error: BaseException) -> None:
    sys.stderr.write("".join(traceback.format_exception(error)))
    for kind in ("call_path", "call"):
        if call.head[kind]:
            print(f"{kind.replace('_', ' ')}: {call.head[kind]}", file=sys.stderr)


def _text(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # its class may raise anything
        return f"<{type(value).__qualname__}: its text raises {type(error).__name__}>"


def _debug(entries: TracebackType | None, code: bytes) -> None:
    """Enter the debugger where the error was raised, in the frame of the body."""
    import pdb

    frames = []
    while entries is not None:
        frames.append(entries)
        entries = entries.tb_next
    if not frames:
        return
    debugger = pdb.Pdb()
    deeper = next((at for at, entry in enumerate(reversed(frames)) if entry.tb_frame.f_code.co_code == code), 0)
    if deeper:
        debugger.cmdqueue.append(f"up {deeper}")
    debugger.reset()
    debugger.interaction(None, frames[0])


# What is run --------------------------------------------------------------------------------------


def _made(call: KeptCall, say: Callable[[str], None]) -> tuple[Callable[..., Any], list[Any], dict[str, Any], bytes]:
    """The body of a call, its arguments, and its code; prepares this process. Raises
    CannotReplay."""
    head = call.head
    if lacks := call.lacks:
        raise CannotReplay("; ".join(f"argument {value.argument} of {head['name']} {value.why}" for value in lacks))
    try:
        os.chdir(head["directory"] or ".")
    except OSError as error:
        say(f"its directory {head['directory']} is not there ({error.strerror}); this runs in {os.getcwd()}")
    sys.argv[:] = head["argv"]
    script = _script(call, say)
    task = _task(call, script, say)
    args, named = _arguments(call, script)
    if taken := [value.argument for value in call.values if value.at_hand]:
        say(f"argument {', '.join(dict.fromkeys(taken))} is as the body left it: it was in no store")
    where = [layer for layer in task.layers if layer.ships]
    if where:
        say(f"the body had run elsewhere, by @{where[0].door or type(where[0]).__name__.lower()}; it runs here now")
    return _alone(task), args, named, _code_of(task.function)


class _Shared(Layer):
    """Gives a body the shared memory that it wants."""

    def __init__(self, injected: tuple[str, ...]) -> None:
        self.injected = injected

    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the body with a directory of its own for segments."""
        from entangle._shared.segments import SegmentOpener, Segments

        directory = tempfile.mkdtemp(prefix="entangle-replay-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        try:
            return inner(*args, **{**kwargs, "smm": Segments(directory), "sm": SegmentOpener(directory)})
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _alone(task: Task[..., Any]) -> Callable[..., Any]:
    """What runs the body of a task here and now: the function, and layers of the user's own."""
    layers: list[Layer] = []
    for layer in task.layers:
        if layer.injected and task.body.shared_memory:
            layers.append(_Shared(layer.injected))
        elif not layer.ships and (isinstance(layer, Request) or not type(layer).__module__.startswith("entangle.")):
            layers.append(layer)
    return Task(task.function, tuple(layers)).body.function


def _script(call: KeptCall, say: Callable[[str], None]) -> ModuleType | None:
    """The script in which the task was defined, imported; None where it was not in one, or where it
    cannot be imported."""
    head = call.head
    file = head["file"]
    if head["module"] not in MAIN or not file.endswith(".py") or not os.path.isfile(file):
        return None
    try:
        if head["package"]:
            name = f"{head['package']}.{os.path.basename(file).removesuffix('.py')}".removesuffix(".__main__")
            module = importlib.import_module(name if os.path.basename(file) != "__main__.py" else f"{head['package']}.__main__")
        elif _is_guarded(file):
            module = _imported(file)
        else:
            say(f'{file} has no `if __name__ == "__main__":`, and is not imported: its functions are as they were kept')
            return None
    except (Exception, SystemExit) as error:
        hide(error)
        say(f"{file} cannot be imported ({type(error).__name__}: {error}): its functions are as they were kept")
        return None
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    return module


def _is_guarded(file: str) -> bool:
    """Whether a script does something only where it is the program."""
    with open(file, "rb") as source:
        tree = ast.parse(source.read())
    tests = [ast.dump(part.test) for part in tree.body if isinstance(part, ast.If)]
    return any("'__name__'" in test and "'__main__'" in test for test in tests)


def _imported(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("__mp_main__", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["__mp_main__"] = module  # dataclasses look for it there
    with importing.joining():  # it must not begin a run meanwhile
        spec.loader.exec_module(module)
    return module


def _task(call: KeptCall, script: ModuleType | None, say: Callable[[str], None]) -> Task[..., Any]:
    """The task: by its name, as it is now; else as it was kept."""
    head = call.head
    name = f"{head['module']}.{head['qualified']}"
    module: Any = script
    why = "it has no name in a module"
    if head["module"] not in MAIN:
        try:
            module = importlib.import_module(head["module"])
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
    found: Any = module
    for part in head["qualified"].split("."):
        found = getattr(found, part, None)
    if isinstance(found, Task):
        _say_what_changed(call.task.code, found, say)
        return found
    if module is not None and "<" not in head["qualified"]:
        say(f"there is no task {head['qualified']} in {module.__name__} any more: it is as it was kept")
    if not call.task.pickled:
        raise CannotReplay(f"task {name} is not found ({why}), and it was not kept")
    if tuple(call.task.python) != sys.version_info[:2]:
        raise CannotReplay(
            f"task {name} was kept by Python {'.'.join(map(str, call.task.python))}, and this is another version; use that one"
        )
    try:
        kept = loads_kept(call.task.pickled)
    except Exception as error:
        raise CannotReplay(f"task {name} is not found ({why}), and cannot be made again ({type(error).__name__}: {error})") from None
    return kept if isinstance(kept, Task) else Task(kept, ())


def _say_what_changed(code: Mapping[str, str], task: Task[..., Any], say: Callable[[str], None]) -> None:
    """Say how the code of a task differs from what has failed."""
    try:
        changed = difference(identify(task.__name__, task.function, (), {}).parts, code) if code else []
    except Exception:  # code without an identity
        return
    for line in changed:
        say(f"the code has changed since: {line}")


def _arguments(call: KeptCall, script: ModuleType | None) -> tuple[list[Any], dict[str, Any]]:
    keywords, templates = pickle.loads(call.shape)
    flat: list[Any] = []
    for value in call.values:
        try:
            flat.append(_Loading(value.pickled, value.buffers, script).load())
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise CannotReplay(f"argument {value.argument} of {call.head['name']} cannot be unpickled here ({told})") from None
    source: Iterator[Any] = iter(flat)
    made = [rebuild(template, source) for template in templates]
    args = [value for keyword, value in zip(keywords, made, strict=True) if not keyword]
    return args, {keyword: value for keyword, value in zip(keywords, made, strict=True) if keyword}


class _Loading(pickle.Unpickler):
    """Loads a value; a class of the script is that of the script as it is now."""

    def __init__(self, pickled: Any, buffers: Any, script: ModuleType | None) -> None:
        super().__init__(io.BytesIO(pickled), buffers=buffers)
        self._script = script

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle names."""
        if (module, name) == (pickled_classes.__name__, "_class"):
            return self._class
        return super().find_class(module, name)

    def _class(self, *parts: Any) -> type:
        with contextlib.suppress(LookupError, TypeError, AttributeError):
            name, args = parts[1], parts[-1]
            found: Any = self._script
            if found is not None and args[3]["__module__"] in MAIN:
                for part in name.split("."):
                    found = getattr(found, part)
                if isinstance(found, type):
                    return found
        return pickled_classes._class(*parts)
