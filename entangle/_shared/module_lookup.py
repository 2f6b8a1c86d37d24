"""Whether another process finds a module by name. If not, what it defines travels by value.

Nothing is imported to find out: a module that is not loaded here, such as one run by `runpy`, would
run a second time.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from importlib.machinery import (
    BuiltinImporter,
    ExtensionFileLoader,
    FrozenImporter,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from types import FrameType
from typing import Any

#: Modules whose content has travelled, from here or to here; those whose content came to this
#: process.
travelled: set[str] = set()
arrived: set[str] = set()

_known: dict[str, tuple[Any, bool]] = {}
_path: list[str] = []
_LOADERS = (SourceFileLoader, SourcelessFileLoader, ExtensionFileLoader)


def is_found(name: str) -> bool:
    """Whether another process finds a module of this name, and the same one as ours."""
    module = sys.modules.get(name)
    if module is None:
        return False
    known = _known.get(name)
    if known is not None and known[0] is module:
        return known[1]
    if _is_imported_now(name):
        return False
    with contextlib.suppress(Exception):  # a finder of the user's may raise anything
        # `collections.abc` is another module's alias. Other modules replace themselves on import.
        own = getattr(module.__spec__, "name", name)
        found = _finds(own if sys.modules.get(own) is module else name, getattr(module, "__file__", None))
        _known[name] = (module, found)
        return found
    return True


def arrive(names: Iterable[str]) -> None:
    """Note that the content of these modules arrives here: pickling must not import them."""
    travelled.update(names)
    arrived.update(names)


def forget_arrivals() -> None:
    """Forget whose content has travelled: a worker that stays begins another run."""
    travelled.clear()
    arrived.clear()


def look_afresh() -> None:
    """Forget earlier answers if `sys.path` has changed."""
    if sys.path != _path:
        _path[:] = sys.path
        _known.clear()


def _is_imported_now(name: str) -> bool:
    """Whether the module or its package is being imported: importing it elsewhere repeats that."""
    executed = _executed_now()
    while name:
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if name in executed or getattr(spec, "_initializing", False):
            return True
        name = name.rpartition(".")[0]
    return False


def _executed_now() -> set[str]:
    """The modules whose top level is on this thread's stack."""
    found = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            found.add(str(frame.f_globals.get("__name__")))
        frame = frame.f_back
    return found


def _finds(name: str, file: str | None) -> bool:
    parent = name.rpartition(".")[0]
    path = None
    if parent:
        package = sys.modules.get(parent)
        if package is None:
            return False
        path = getattr(package, "__path__", None)
    spec = PathFinder.find_spec(name, path) if path is not None or not parent else None
    if spec is not None and (spec.loader is None or isinstance(spec.loader, _LOADERS) or type(spec.loader).__name__ == "zipimporter"):
        return spec.origin is None or file is None or _same(spec.origin, file)
    if BuiltinImporter.find_spec(name) is not None or FrozenImporter.find_spec(name) is not None:
        return True
    # A package may install its own finder, and a `.pth` file may install one for all.
    by_package = bool(parent) and is_found(name.partition(".")[0])
    for finder in sys.meta_path:
        if (by_package or _is_everywhere(finder)) and hasattr(finder, "find_spec") and finder.find_spec(name, path) is not None:
            return True
    return False


def _is_everywhere(finder: Any) -> bool:
    """Whether processes that we start have this finder: an editable install's or an agent's."""
    kind = finder if isinstance(finder, type) else type(finder)
    return "editable" in kind.__module__ or getattr(kind, "entangle_is_everywhere", False) is True


def _same(one: str, other: str) -> bool:
    if os.path.abspath(one) == os.path.abspath(other):
        return True
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)
    return False
