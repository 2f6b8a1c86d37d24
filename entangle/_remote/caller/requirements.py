"""What a function needs installed: the distributions that it imports, in the versions found here.

Only what is installed here as a distribution counts. Modules of the caller's project, entangle and
cloudpickle travel by themselves, but what those modules import must be installed.
"""

from __future__ import annotations

import ast
import contextlib
import dis
import importlib.util
import os
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from entangle._remote.agent.installation import install
from entangle._remote.caller.channel import Channel
from entangle._remote.caller.modules import is_project
from entangle._shared.masks import masked
from entangle._shared.pickling import MAIN
from entangle.errors import UnfitPythonError
from entangle.task import Task

#: Needs no installing: it comes over the stream.
_COMES_BY_ITSELF = {"entangle", "cloudpickle", *MAIN}


class Furnishing:
    """Installs what a function needs into the environment of a place, before its first call there.

    Once for each process: a channel belongs to one.
    """

    def __init__(self, wanted: list[str]) -> None:
        self._wanted = wanted
        # One lock for each process: a fork during an installation would inherit it locked.
        self._guards: dict[int, threading.Lock] = {}
        self._seen: Channel | None = None

    def is_done(self, channel: Channel) -> bool:
        """Whether nothing is left to install there."""
        return channel is self._seen or getattr(channel.transport, "env", None) is None

    def see_to(self, channel: Channel) -> None:
        """Install what is missing there; waits for that. Raises UnfitPythonError."""
        if self.is_done(channel):
            return
        with self._guards.setdefault(os.getpid(), threading.Lock()):
            if self.is_done(channel):
                return
            trouble = channel.call(install, (self._wanted,), {})
            if trouble:
                raise UnfitPythonError(f"{channel.place}: {masked(' '.join(self._wanted))} cannot be installed there\n{trouble}")
            self._seen = channel


def furnished(function: Callable[..., Any]) -> Furnishing | None:
    """What sees to it that `function` finds what it imports; None if that is nothing."""
    wanted = requirements(function)
    return Furnishing(wanted) if wanted else None


def requirements(*functions: Callable[..., Any]) -> list[str]:
    """What pip must install so that the functions find their imports: `name==version`, sorted."""
    seen: set[int] = set()
    modules = {name.partition(".")[0] for name in _with_theirs(one for function in functions for one in _imports(function, seen))}
    modules = {name for name in modules if name not in sys.stdlib_module_names and name not in _COMES_BY_ITSELF}
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


def modules_behind(function: Callable[..., Any]) -> tuple[set[str], set[str]]:
    """What the function may import: modules of the project, and top-level names of all others."""
    own, others = set(), set()
    for name in _with_theirs(_imports(function, set())):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in _COMES_BY_ITSELF:
            continue
        if _in_project(name) is not None:
            own.add(name)
        elif _in_project(top) is None:
            others.add(top)
    return own, others


def _is_editable(distribution: Any) -> bool:
    """Whether a distribution is a working copy, which no index has."""
    return '"dir_info"' in (distribution.read_text("direct_url.json") or "")


def _imports(function: Any, seen: set[int]) -> Iterator[str]:
    """The modules that a function imports, uses through its globals, or is defined in."""
    while isinstance(function, (types.MethodType, Task)) or hasattr(function, "__wrapped__"):
        function = getattr(function, "__wrapped__", None) or getattr(function, "__func__", None)
    code = getattr(function, "__code__", None)
    if code is None or id(code) in seen:
        return
    seen.add(id(code))
    yield str(getattr(function, "__module__", None) or "")
    spaces = getattr(function, "__globals__", {})
    for part in _codes(code):
        for instruction in dis.get_instructions(part):
            if instruction.opname == "IMPORT_NAME":
                yield str(instruction.argval)
            elif instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and instruction.argval in spaces:
                yield from _behind(spaces[instruction.argval], part.co_names, seen)
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # not bound yet
            yield from _behind(cell.cell_contents, code.co_names, seen)


def _behind(value: Any, names: tuple[str, ...], seen: set[int]) -> Iterator[str]:
    """The module that a value is, or comes from, and the modules that it needs in turn.

    Of a module of the project, the functions with one of these `names` count: they may be called.
    """
    if isinstance(value, types.ModuleType):
        yield value.__name__
        if _in_project(value.__name__) is None:
            return
        for name in names:
            if isinstance(found := getattr(value, name, None), (types.FunctionType, Task)):
                yield from _imports(found, seen)
        return
    yield str(getattr(value, "__module__", None) or "")
    if isinstance(value, (types.FunctionType, Task)):
        yield from _imports(value, seen)


def _with_theirs(modules: Iterable[str]) -> set[str]:
    """These modules, and what modules of the project among them import when they are imported."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if not name or name in found:
            continue
        found.add(name)
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # is imported before it
        spec = _in_project(name)
        if spec is not None:
            waiting += _imports_at_once(spec)
    return found


def _in_project(name: str) -> Any:
    """The spec of a module of the project; None for any other."""
    top, _, below = name.partition(".")
    if top in _COMES_BY_ITSELF or top in sys.stdlib_module_names:
        return None
    if below and _in_project(top) is None:
        return None  # to look for a part of a package imports the package
    try:
        spec = getattr(sys.modules.get(name), "__spec__", None) or importlib.util.find_spec(name)
    except Exception:  # a package's code may run here; its import will raise the same
        return None
    if spec is not None and spec.origin is None:  # a package without __init__
        return spec if not any("-packages" in place for place in spec.submodule_search_locations or ("-packages",)) else None
    return spec if spec is not None and is_project(spec) else None


def _imports_at_once(spec: Any) -> Iterator[str]:
    """What a module imports when it is imported, outside its functions and TYPE_CHECKING."""
    try:
        waiting: list[ast.AST] = [ast.parse(spec.loader.get_source(spec.name) or "")]
    except (AttributeError, ImportError, SyntaxError, ValueError, OSError):
        return  # its import will say so
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # beyond the top package: its import will say so
                name = importlib.util.resolve_name("." * node.level + (node.module or ""), spec.parent)
                yield name
                # A name may be a module of a package. Look for it if the package is the project's.
                yield from (f"{name}.{alias.name}" for alias in node.names if _in_project(f"{name}.{alias.name}"))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
