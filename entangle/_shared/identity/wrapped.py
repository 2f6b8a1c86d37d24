"""What lies below our decorators: the user's function, and layers of the user's own.

Tasks and our wrappers are told by their shape, since they are on a floor above.
"""

from __future__ import annotations

import functools
import types
from typing import Any

from entangle._shared.identity.project import is_ours


def is_task(value: Any) -> bool:
    """Whether a value is a task."""
    return is_ours(type(value).__module__) and {"function", "layers"} <= getattr(value, "__dict__", {}).keys()


def is_call(value: Any) -> bool:
    """Whether a value is a call of a task."""
    return is_ours(type(value).__module__) and is_task(getattr(value, "task", None)) and hasattr(value, "kwargs")


def unwrapped(function: Any) -> tuple[list[Any], Any]:
    """The user's own layers around a function, and that function; our layers do not count."""
    layers: list[Any] = []
    while True:
        if is_task(function):
            layers += function.layers
            function = function.function
        elif isinstance(function, functools.partial) and len(function.args) == 2 and is_ours(getattr(function.func, "__module__", "")):
            layers.append(function.args[0])
            function = function.args[1]
        elif isinstance(function, types.FunctionType) and function.__closure__ and is_ours(function.__globals__.get("__name__", "")):
            inner = [one for one in (cell.cell_contents for cell in function.__closure__) if _is_wrapped(one)]
            if len(inner) != 1:
                break
            function = inner[0]
        else:
            break
    return [layer for layer in layers if not is_ours(type(layer).__module__)], function


def _is_wrapped(held: Any) -> bool:
    """Whether an object that a wrapper of ours holds is what it wraps."""
    return is_task(held) or isinstance(held, functools.partial) or (callable(held) and not is_ours(type(held).__module__))
