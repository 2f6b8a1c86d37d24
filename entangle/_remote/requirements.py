"""What a function needs installed: the distributions of the modules that it imports, in the versions that are here.

Only what is installed here as a distribution counts. Modules of the caller's own project travel by themselves, and so do
entangle and cloudpickle.
"""

from __future__ import annotations

import contextlib
import dis
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from entangle._remote.channel import Channel, channel_to
from entangle._remote.transport import Transport
from entangle._run.pickling import MAIN
from entangle.errors import UnfitPythonError
from entangle.task import Task, task

#: What needs no installing: it comes over the stream.
_COMES_BY_ITSELF = {"entangle", "cloudpickle", *MAIN}


def furnished(transport: Transport, function: Callable[..., Any], shipped: Callable[..., Any]) -> Callable[..., Any]:
    """`shipped`, and before its first call the packages that `function` needs, installed in the place's environment."""
    wanted = requirements(function)
    if not wanted:
        return shipped
    guard = threading.Lock()
    seen: list[Channel] = []

    def far(*args: Any, **kwargs: Any) -> Any:
        channel = channel_to(transport)
        if channel not in seen:
            with guard:
                if channel not in seen:
                    trouble = channel.call(_install, (wanted,), {})
                    if trouble:
                        raise UnfitPythonError(f"{transport.place}: {' '.join(wanted)} cannot be installed there\n{trouble}")
                    seen[:] = [channel]
        return shipped(*args, **kwargs)

    return far


def requirements(function: Callable[..., Any]) -> list[str]:
    """What pip must install so that the function finds its imports, as `name==version`, sorted."""
    modules = {name for name in _imports(function, set()) if name not in sys.stdlib_module_names and name not in _COMES_BY_ITSELF}
    if not modules:
        return []
    from importlib import metadata

    distributions = metadata.packages_distributions()
    found = {}
    for module in modules:
        for name in distributions.get(module, ())[:1]:
            with contextlib.suppress(metadata.PackageNotFoundError):
                if not _is_editable(metadata.distribution(name)):
                    found[name] = metadata.version(name)
    return sorted(f"{name}=={version}" for name, version in found.items())


def _is_editable(distribution: Any) -> bool:
    """Whether a distribution is somebody's working copy, which no index has."""
    return '"dir_info"' in (distribution.read_text("direct_url.json") or "")


def _imports(function: Any, seen: set[int]) -> Iterator[str]:
    """The top-level names of the modules that a function imports in its body, or holds in globals that it uses."""
    while isinstance(function, (types.MethodType, Task)) or hasattr(function, "__wrapped__"):
        function = getattr(function, "__wrapped__", None) or getattr(function, "__func__", None)
    code = getattr(function, "__code__", None)
    if code is None or id(code) in seen:
        return
    seen.add(id(code))
    spaces = getattr(function, "__globals__", {})
    for part in _codes(code):
        for instruction in dis.get_instructions(part):
            if instruction.opname == "IMPORT_NAME":
                yield str(instruction.argval).partition(".")[0]
            elif instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and instruction.argval in spaces:
                yield from _behind(spaces[instruction.argval], seen)
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # not bound yet
            yield from _behind(cell.cell_contents, seen)


def _behind(value: Any, seen: set[int]) -> Iterator[str]:
    """The module that a value is, or comes from; of a function of the same project, what that needs as well."""
    if isinstance(value, types.ModuleType):
        yield value.__name__.partition(".")[0]
        return
    yield str(getattr(value, "__module__", None) or "").partition(".")[0]
    if isinstance(value, (types.FunctionType, Task)):
        yield from _imports(value, seen)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


@task
def _install(wanted: list[str]) -> str:
    """Over there: install what is not installed yet, one of us at a time. Gives what pip complained of, or nothing."""
    import fcntl
    import subprocess
    from importlib import metadata

    def missing() -> list[str]:
        found = []
        for requirement in wanted:
            name, _, version = requirement.partition("==")
            try:
                here = metadata.version(name) == version
            except metadata.PackageNotFoundError:
                here = False
            if not here:
                found.append(requirement)
        return found

    if not missing():
        return ""
    with open(sys.prefix + ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        needed = missing()
        if not needed:
            return ""
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *needed]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    import importlib

    importlib.invalidate_caches()
    return (done.stderr.strip() or "pip failed")[-2000:] if done.returncode else ""
