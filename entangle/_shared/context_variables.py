"""Context variables in other processes: found by the name that a module has them under, since they are nothing that can be copied."""

from __future__ import annotations

import contextvars
import sys
from typing import Any


def module_of(variable: contextvars.ContextVar[Any]) -> str:
    """The module that has a context variable under its own name; "" where none has."""
    return next((name for name, module in list(sys.modules.items()) if getattr(module, "__dict__", {}).get(variable.name) is variable), "")


#: Context variables of modules that are not to be found here, as those of a script.
_made: dict[tuple[str, str], contextvars.ContextVar[Any]] = {}


def variable_of(module: str, name: str, default: tuple[Any, ...]) -> contextvars.ContextVar[Any]:
    """The context variable of that name in a module, or one in its place."""
    found = getattr(sys.modules.get(module), "__dict__", {}).get(name)
    if isinstance(found, contextvars.ContextVar):
        return found
    if (module, name) not in _made:
        _made[module, name] = contextvars.ContextVar(name, default=default[0]) if default else contextvars.ContextVar(name)
    return _made[module, name]
