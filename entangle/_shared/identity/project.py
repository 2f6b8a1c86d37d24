"""What belongs to the project, and what to a library: its code counts by content, or by its name.

A library is the standard library, entangle, or an installed package. It is told by where it lies,
not by its name: a file of the project may be called `queue`. The package of the task itself is part
of the project wherever it lies.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
from typing import Any

from entangle._shared.pickling import MAIN, travels_by_value

#: Where the standard library lies, and the directories of installed packages.
_STANDARD = os.path.dirname(os.__file__) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_SUFFIXES = (".py", ".pyc")


def named(module: str) -> str:
    """The name of a module, which is the same in children of `multiprocessing`."""
    return "__main__" if module in MAIN else module


def is_ours(module: str) -> bool:
    """Whether a module is entangle's: its code is no part of any key."""
    return module.partition(".")[0] == "entangle" and not module.startswith(("entangle.tests", "entangle.examples"))


def _origin(module: str) -> str | None:
    """The file of a module, loaded or not; None where it has none, as in a notebook."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        return getattr(loaded, "__file__", None)
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return None
    return spec.origin if spec is not None else None


def _is_installed(origin: str) -> bool:
    return any(at in origin for at in _INSTALLED)


@functools.lru_cache(maxsize=4096)
def is_library(module: str) -> bool:
    """Whether a module belongs to the standard library, to entangle or to an installed package."""
    if is_ours(module) or module in sys.builtin_module_names:
        return True
    origin = _origin(module)
    if origin is None:
        return False
    return origin == "frozen" or origin.startswith(_STANDARD) or not origin.endswith(_SUFFIXES) or _is_installed(origin)


@functools.lru_cache(maxsize=1024)
def home_of(module: str) -> str:
    """The package of a task, if it is an installed one: it counts as part of the project."""
    package = module.partition(".")[0]
    origin = _origin(module)
    return package if origin is not None and _is_installed(origin) and not is_ours(module) else ""


def is_of_project(module: str, home: str = "") -> bool:
    """Whether the code of a module counts by its content."""
    return module in MAIN or not is_library(module) or (bool(home) and module.partition(".")[0] == home)


def library_name(value: Any, home: str = "") -> tuple[str, str] | None:
    """The module and name of a function or class of a library; None for others and local ones."""
    module = getattr(value, "__module__", None) or ""
    if not isinstance(module, str) or module not in sys.modules or is_of_project(module, home) or travels_by_value(module):
        return None
    found: Any = sys.modules[module]
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return (module, value.__qualname__) if found is value else None


@functools.lru_cache(maxsize=256)
def compiled(module: str) -> str:
    """The hash of the file of a compiled module that lies in the project; "" for others."""
    origin = _origin(module) or ""
    if not origin or is_ours(module) or origin.startswith(_STANDARD) or _is_installed(origin) or not os.path.isfile(origin):
        return ""
    with open(origin, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
