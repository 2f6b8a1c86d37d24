"""Functions as they travel to workers: pickled once for as long as they are the same.

A function that others import is its name. One that they cannot import (a lambda, a closure, one of
`__main__`) travels with the globals and variables that it uses, as they are at each call. Pickling
that takes a hundred microseconds. If everything that it uses is immutable, the objects are compared
with those of the last time, and the pickle is used again.
"""

from __future__ import annotations

import dis
import functools
import os
import sys
import types
import weakref
from typing import Any

from entangle._shared import module_lookup
from entangle._shared.pickling import MAIN, dumps_for_others, travels_by_value
from entangle._shared.value_files import pickled

_ATOMS = frozenset((int, float, complex, str, bytes, bool, type(None), type(Ellipsis), types.BuiltinFunctionType, types.ModuleType))


class Function:
    """A function in the form in which it travels: pickle, large buffers beside it, name.

    Of a `shared` one, all calls in a worker use the same object.
    """

    __slots__ = ("__weakref__", "body", "buffers", "key", "name", "seconds", "shared", "uses", "wire")

    def __init__(self, name: str, body: bytes, buffers: list[memoryview], shared: bool, uses: list[Any] | None) -> None:
        self.name = name
        self.body = body
        self.buffers = buffers
        self.shared = shared
        #: What it was made of, if it travels by value and all of that is immutable.
        self.uses = uses
        #: Equal for functions that are the same for a worker.
        self.key: Any = body if not buffers else id(self)
        #: Where it lies, once it was stored. Filled in by `Calls`.
        self.wire: Any = None
        #: How long its calls take, rather more than less; None while unknown.
        self.seconds: float | None = None


_known: weakref.WeakKeyDictionary[Any, Function] = weakref.WeakKeyDictionary()


def function_of(function: Any) -> Function:
    """The travelling form of a function.

    Raises what pickling raises.
    """
    kind = type(function)
    module_lookup.look_afresh()
    if kind is types.FunctionType:
        known = _known.get(function)
        by_name = _is_found(function)
        if known is not None and by_name and known.uses is None:
            return known
        uses = None if by_name else uses_of(function)
        if known is not None and uses is not None and known.uses is not None and _same(uses, known.uses):
            return known
        body, buffers = pickled(dumps_for_others, function)
        made = Function(name_of(function), body, buffers, by_name or uses is not None, uses)
        if known is not None:
            made.seconds = known.seconds
        if by_name or uses is not None:
            _known[function] = made
        return made
    if kind is types.BuiltinFunctionType and not isinstance(function.__self__, (types.ModuleType, type(None))):
        return Function(name_of(function), *pickled(dumps_for_others, function), False, None)
    if kind is types.BuiltinFunctionType or isinstance(function, type):
        known = _known.get(function)
        if known is None:
            body, buffers = pickled(dumps_for_others, function)
            known = Function(name_of(function), body, buffers, True, None)
            if kind is types.BuiltinFunctionType or not travels_by_value(function.__module__):
                _known[function] = known
        return known
    return Function(name_of(function), *pickled(dumps_for_others, function), False, None)


def name_of(function: Any) -> str:
    """The name of something that can be called, for errors. That of a lambda says where it is."""
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    if type(inner) is types.FunctionType and inner.__name__ == "<lambda>":
        code = inner.__code__
        return f"<lambda> ({os.path.basename(code.co_filename)}:{code.co_firstlineno})"
    return name if isinstance(name, str) else type(inner).__name__


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _is_found(function: types.FunctionType) -> bool:
    """Whether another process finds a function under its name."""
    module = function.__module__
    if not isinstance(module, str) or module in MAIN or "<" in function.__qualname__ or travels_by_value(module):
        return False
    found: Any = sys.modules.get(module)
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function


def uses_of(function: types.FunctionType) -> list[Any] | None:
    """What a function takes along that travels by value, in order; None if some may change."""
    found: list[Any] = []
    return found if _collect(function, found, set()) else None


def _collect(function: types.FunctionType, found: list[Any], seen: set[int]) -> bool:
    if id(function) in seen:
        return True
    seen.add(id(function))
    code = function.__code__
    names, changes = _names(code)
    if changes or function.__dict__ or len(found) > 500:
        return False
    space = function.__globals__
    parts: list[Any] = [space[name] for name in names if name in space]
    try:
        parts += [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # an unbound variable
        return False
    parts += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    found += (function, code, function.__defaults__, function.__kwdefaults__)
    return all(_is_kept(part, found, seen) for part in parts)


def _is_kept(part: Any, found: list[Any], seen: set[int]) -> bool:
    found.append(part)
    kind = type(part)
    if kind in _ATOMS:
        return kind is not types.BuiltinFunctionType or isinstance(part.__self__, (types.ModuleType, type(None)))
    if kind is types.FunctionType:
        return _is_found(part) or _collect(part, found, seen)
    if kind is tuple:
        return len(part) < 50 and all(_is_kept(one, found, seen) for one in part)
    return isinstance(part, type) and isinstance(part.__module__, str) and not travels_by_value(part.__module__)


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[tuple[str, ...], frozenset[str]]:
    """The globals that code and its inner functions use, and the variables that outlive a call and
    that they change: those of closures by name, globals as ''."""
    names: dict[str, None] = {}
    changed: set[str] = set()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names[step.argval] = None
        elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            changed.add("")
        elif step.opname in ("STORE_DEREF", "DELETE_DEREF") and step.argval in code.co_freevars:
            changed.add(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner, others = _names(constant)
            names.update(dict.fromkeys(inner))
            # Others that an inner function changes are variables of the outer one's call.
            changed |= others & {"", *code.co_freevars}
    return tuple(names), frozenset(changed)
