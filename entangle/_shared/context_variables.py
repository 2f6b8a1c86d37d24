"""Context variables in other processes: found by module and name, since they cannot be copied."""

from __future__ import annotations

import contextvars
import sys
from typing import Any


def module_of(variable: contextvars.ContextVar[Any]) -> str:
    """The module that has a context variable under its own name; "" if none has."""
    known, modules = _found.get(variable, ("", 0))
    if known and getattr(sys.modules.get(known), "__dict__", {}).get(variable.name) is variable:
        return known
    if not known and modules == len(sys.modules):
        return ""
    found = _search(variable)
    if len(_found) > _MOST_FOUND:
        _found.clear()
    _found[variable] = found, len(sys.modules)
    return found


#: The modules of variables; of a variable that none had, how many modules were loaded then.
_found: dict[contextvars.ContextVar[Any], tuple[str, int]] = {}
_MOST_FOUND = 1000


def _search(variable: contextvars.ContextVar[Any]) -> str:
    return next((name for name, module in list(sys.modules.items()) if getattr(module, "__dict__", {}).get(variable.name) is variable), "")


#: Stand-ins for context variables of modules that do not exist here, such as a script.
_made: dict[tuple[str, str], contextvars.ContextVar[Any]] = {}


def variable_of(module: str, name: str, default: tuple[Any, ...]) -> contextvars.ContextVar[Any]:
    """The context variable of that name in a module, or its stand-in."""
    found = getattr(sys.modules.get(module), "__dict__", {}).get(name)
    if isinstance(found, contextvars.ContextVar):
        return found
    if (module, name) not in _made:
        _made[module, name] = contextvars.ContextVar(name, default=default[0]) if default else contextvars.ContextVar(name)
    return _made[module, name]
