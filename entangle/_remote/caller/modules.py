"""What the caller answers when a far side asks for a module.

Our own modules and cloudpickle go in one piece, compiled if the far side has the same Python. Other
modules go one by one, as source. A module with compiled parts, or in a package that has some,
cannot be sent. The answer is then a text for the user.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import importlib.util
import marshal
import os
import pkgutil
import re
import sys
import threading
import zlib
from collections.abc import Sequence
from typing import Any

from entangle._remote.agent import imports
from entangle._remote.agent.imports import OURS, Known
from entangle._shared.pickling import MAIN
from entangle.errors import MissingModuleError

#: Modules of ours that a far side gets only if it asks.
_APART = (
    "entangle.tests",
    "entangle.examples",
    "entangle.cli",
    "entangle.__main__",
    "entangle.web",
    "entangle._records",
    "entangle.logging",
)
#: What an agent needs first.
FIRST = (
    "entangle",
    "entangle.errors",
    "entangle._run",
    "entangle._remote",
    "entangle._tasks",
    "entangle._remote.wire",
    "entangle._remote.wire.frames",
    "entangle._remote.agent",
    "entangle._remote.agent.imports",
    "entangle._remote.agent.prints",
    "entangle._remote.agent.family",
    "entangle._remote.agent.agent",
)
#: What it needs to run calls, loaded here or not.
_ENGINE = (
    "cloudpickle",
    "cloudpickle.cloudpickle",
    "entangle._remote.wire.parts",
    "entangle._remote.agent.module_server",
    "entangle._remote.agent.performing",
    "entangle._remote.wire.source_format",
    "entangle._remote.agent.source_reader",
    "entangle._remote.caller.source_lines",
    "entangle._remote.caller.source_writer",
    "entangle.task",
    "entangle.flow",
    "entangle.cookies",
)

#: Length of a question at most (bytes).
LONGEST = 4096
#: A module's name. A path does not match.
_NAME = re.compile(r"[^\s./\\\0]+(\.[^\s./\\\0]+)*")

_bundles: dict[str | None, bytes] = {}
_guard = threading.Lock()


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()  # the thread that held it is not in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def first() -> dict[str, Known]:
    """The sources that start an agent, for any version of Python.

    Raises MissingModuleError where only compiled code is installed here.
    """
    known = {name: to_send(name, None) for name in FIRST}
    for name, found in known.items():
        if not isinstance(found, tuple):
            raise MissingModuleError(
                f"entangle cannot be sent to other places, since it is installed here without its source ({name} has none); "
                "install it with its files that end in .py",
                name=name,
            )
    return {name: found for name, found in known.items() if isinstance(found, tuple)}


def bundle(magic: str | None) -> bytes:
    """The MODULE message with the engine. `magic` is the far side's number for compiled code.

    None asks for source.
    """
    with _guard:
        found = _bundles.get(magic)
        if found is None:
            # An agent keeps its first modules as source, since it needs that to start others.
            names = [name for name in _our_names() if magic is None or name not in FIRST]
            known = {name: to_send(name, magic) for name in names}
            found = _bundles[magic] = _packed({name: value for name, value in known.items() if isinstance(value, tuple)})
        return found


def _our_names() -> list[str]:
    """Our own modules that a far side will need: those that are loaded here, and the engine."""
    names = [*FIRST, *_ENGINE]
    names += [name for name in sys.modules if _top(name) in OURS and not name.startswith(_APART)]
    if imports.finders:
        names += imports.finders[0].known
    else:
        for room in ("entangle._shared", "entangle._worker", "entangle._watch", "entangle._run", "entangle._tasks"):
            names += [room, *names_in(room)]
    return list(dict.fromkeys(names))


def names_in(package: str) -> list[str]:
    """The modules of a package, which need not be imported."""
    # Not `os.listdir`: entangle may lie in a zip file.
    return [found.name for found in pkgutil.iter_modules(_find(package).submodule_search_locations, f"{package}.")]


def answer(name: str, magic: str) -> bytes:
    """The MODULE message that answers a question. Looks for modules, and imports none."""
    if name == imports.SOURCES:
        return bundle(None)
    if name.startswith(imports.MODULES_ALONE):
        return _packed(_modules_alone(name[len(imports.MODULES_ALONE) :].split()))
    if name.startswith(imports.SOURCE_OF):
        name = name[len(imports.SOURCE_OF) :]
        known = to_send(name, None)
    else:
        known = to_send(name, magic)
    return _packed({name: known} if isinstance(known, tuple) else known)


class Sent:
    """The modules of the user's project that an agent has.

    If one is reloaded here, as `importlib.reload` and notebooks do, the agent must get it again: it
    is to run what would run here.
    """

    def __init__(self) -> None:
        self._specs: dict[str, Any] = {}
        self._coming: dict[str, Any] = {}

    def note(self, name: str) -> None:
        """An agent has got the answer to that name."""
        spec = _spec_here(name)
        if spec is not None and is_project(spec):
            self._specs[name] = spec

    def renewed(self) -> bytes | None:
        """The MODULE message with reloaded modules, importers last; None if there are none.

        Call `sent` when it has gone.
        """
        # Compare identities: the specs before and after a reload are equal.
        found = [name for name, spec in list(self._specs.items()) if (now := _spec_here(name)) is not None and now is not spec]
        self._coming = {name: _spec_here(name) for name in found}
        known = {name: known for name in reversed(found) if isinstance(known := to_send(name, None), tuple)}
        return _packed(known) if known else None

    def sent(self) -> None:
        """The agent has what `renewed` gave."""
        for name, spec in self._coming.items():
            if is_project(spec):
                self._specs[name] = spec


def _spec_here(name: str) -> Any:
    """The spec of a loaded module. Each load makes another one."""
    return getattr(sys.modules.get(name), "__spec__", None)


def _packed(answer: Any) -> bytes:
    return zlib.compress(marshal.dumps(answer, 2), 6)


def _top(name: str) -> str:
    return name.partition(".")[0]


def to_send(name: str, magic: str | None) -> Known | str | None:
    """A module to send, or why it cannot be sent, or None if there is none."""
    try:
        spec = _find(name)
    except Exception:  # any finder may be installed
        return None
    if spec is None or name in MAIN:
        return None
    loader: Any = spec.loader
    package = spec.submodule_search_locations is not None
    if loader is None:
        return (True, "", "") if package else None  # a package without __init__
    if _top(name) not in OURS and not is_project(spec):
        compiled = _compiled_part(_top(name))
        if compiled:
            return _instead(_top(name), compiled)
    origin = spec.origin or f"<{name}>"
    try:
        if magic is not None and _top(name) in OURS and magic == importlib.util.MAGIC_NUMBER.hex() and hasattr(loader, "get_code"):
            return package, origin, marshal.dumps(loader.get_code(name))
        if hasattr(loader, "get_source"):
            source = loader.get_source(name)
        else:  # another loader of a file, such as a test runner's
            with open(origin, "rb") as file:
                source = importlib.util.decode_source(file.read()) if origin.endswith(".py") else None
    except Exception:  # any loader, or the file is gone
        source = None
    if source is None:
        return _instead(_top(name), name)
    return package, origin, source


def _find(name: str) -> Any:
    """The spec of a module, as its import would find it. Imports nothing, not even its packages."""
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    if loaded is not None:
        return loaded
    if not _NAME.fullmatch(name):
        return None
    above, _, _ = name.rpartition(".")
    path: Any = None
    if above:
        package = sys.modules.get(above)
        path = getattr(package, "__path__", None) if package is not None else getattr(_find(above), "submodule_search_locations", None)
        if path is None:
            return None
    for finder in list(sys.meta_path):
        look = getattr(finder, "find_spec", None)
        try:
            spec = look(name, path) if look is not None else None
        # `importlib` asks `sys.modules` for a package without __init__ that is not imported.
        except KeyError:
            spec = None
            folders = [folder for entry in path or () if os.path.isdir(folder := os.path.join(entry, name.rpartition(".")[2]))]
            if folders:
                spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
                spec.submodule_search_locations = folders
        if spec is not None:
            return spec
    return None


def is_project(spec: Any) -> bool:
    """Whether it is a file of the user's own, and not something that pip has installed."""
    origin = spec.origin or ""
    return origin.endswith(".py") and "site-packages" not in origin and "dist-packages" not in origin


_compiled: dict[str, str] = {}


def _compiled_part(top: str) -> str:
    """A compiled file of a top-level package; "" if it has none."""
    found = _compiled.get(top)
    if found is None:
        found = ""
        spec = _find(top)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            for at, _, files in os.walk(folder):
                found = next((os.path.join(at, file) for file in files if file.endswith((".so", ".pyd", ".dylib"))), "")
                if found:
                    break
        if spec is not None and (spec.origin or "").endswith((".so", ".pyd", ".dylib")):
            found = spec.origin or ""
        _compiled[top] = found
    return found


def _instead(top: str, compiled: str) -> str:
    """What the user can do about a module that cannot be sent."""
    return (
        f"module {top!r} is not installed there and cannot be sent, since it has compiled parts ({os.path.basename(compiled)}); "
        f"install it for that Python: python -m pip install {_wanted(top)!r}"
    )


def _modules_alone(names: Sequence[str]) -> str | None:
    """What the user can do if files or metadata of a package are needed; None if it is unknown.

    The package is the last name. The names before it use it.
    """
    own = None
    for name in names:
        spec = None
        with contextlib.suppress(Exception):  # any finder may be installed
            spec = _find(_top(name))
        if spec is not None and is_project(spec):
            own = (
                f"module {name!r} was sent without the other files of its package. Read them here and pass their content to the function, "
                f"or install the package for that Python"
            )
            continue
        wanted = _wanted(name) if spec is not None else version_of(name)
        if wanted:
            return (
                f"{name!r} is not installed there. Its modules were sent, but not its files and metadata, which the function needs; "
                f"install it for that Python: python -m pip install {wanted!r}"
            )
    return own


def version_of(distribution: str) -> str:
    """A distribution with its version, as pip takes it; "" if there is none."""
    from importlib import metadata

    with contextlib.suppress(Exception):  # broken metadata
        return f"{distribution}=={metadata.version(distribution)}"
    return ""


@functools.lru_cache(maxsize=256)
def _wanted(top: str) -> str:
    """What pip must install to get a module."""
    with contextlib.suppress(Exception):
        return version_of((_distributions().get(top) or [top])[0]) or top
    return top


@functools.lru_cache(maxsize=1)
def _distributions() -> Any:
    """The distributions that bring each module. Slow in a large environment."""
    from importlib import metadata

    return metadata.packages_distributions()
