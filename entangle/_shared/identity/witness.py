"""What has been read to learn what code does, and whether it is still the same.

A key is asked for again and again, and walking through the code takes milliseconds. So what was
read is kept: names and what they stood for, which are compared by identity, and things that can
change in themselves, whose content is told again.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter, is_, itemgetter
from typing import Any

from entangle._shared.identity.values import DESCRIPTORS, LEAVES, Content, NoContent, is_mute

#: What a name stands for where there is nothing.
ABSENT: Any = object()
_UNCHANGING = frozenset(
    (
        *LEAVES,
        *(types.ModuleType, types.CodeType, staticmethod, classmethod, property),
        *(re.Pattern, range, *DESCRIPTORS),
    )
)
#: More of them, by their modules: whoever has such a value has imported its module.
_OF_MODULES = {
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "pathlib": ("PosixPath", "PurePosixPath"),
    "uuid": ("UUID",),
}
#: What can be set on a function; separate, since three simple loops are faster than one.
_OF_FUNCTION = (attrgetter("__code__"), attrgetter("__defaults__"), attrgetter("__kwdefaults__"))
_in_cell = attrgetter("cell_contents")
_attributes = attrgetter("__dict__")


def _is_unchanging(value: Any) -> bool:
    """Whether a value cannot change in itself; what functions and classes have is looked at
    apart."""
    kind = type(value)
    if kind is tuple or kind is frozenset:
        return all(map(_is_unchanging, value))
    if kind is types.FunctionType:
        return not vars(value)  # one that is given some is noticed
    if kind is types.BuiltinFunctionType:
        return value.__self__ is None or isinstance(value.__self__, types.ModuleType)
    if kind in _UNCHANGING or isinstance(value, type) or is_mute(value):
        return True
    module = str(kind.__module__).partition(".")[0]  # pathlib has its classes in modules of its own
    name = kind.__name__
    return name in _OF_MODULES.get(module, ()) and getattr(sys.modules.get(module), name, None) is kind


class Witness:
    """What has been read. `holds` says whether all of it is still as it was."""

    def __init__(self) -> None:
        self._spaces: dict[int, tuple[Mapping[str, Any], dict[str, Any], set[str]]] = {}
        self._classes: list[tuple[type, tuple[type, ...], tuple[str, ...], tuple[Any, ...]]] = []
        self._functions: list[types.FunctionType] = []
        self._bare: dict[int, types.FunctionType] = {}
        self._documented: list[tuple[types.FunctionType, str | None]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._changing: list[tuple[Any, bytes]] = []
        #: The same as `holds` compares them.
        self._checks: list[tuple[Mapping[str, Any], Callable[[Any], tuple[Any, ...]], tuple[Any, ...]]] = []
        self._absent: list[tuple[Mapping[str, Any], set[str]]] = []
        self._of_functions: list[tuple[Callable[[Any], Any], list[Any]]] = []

    def read(self, space: Mapping[str, Any], name: str) -> Any:
        """What a name stands for in a namespace, or ABSENT."""
        _, read, absent = self._spaces.setdefault(id(space), (space, {}, set()))
        value = space.get(name, ABSENT)
        if value is ABSENT:
            absent.add(name)
        else:
            read[name] = value
        return value

    def read_some(self, space: Mapping[str, Any], names: Iterable[str]) -> list[tuple[str, Any]]:
        """Those of the names that stand for something, sorted, with that."""
        found = [(name, self.read(space, name)) for name in sorted(names)]
        return [(name, value) for name, value in found if value is not ABSENT]

    def read_attributes(self, function: types.FunctionType, names: frozenset[str]) -> list[tuple[str, Any]]:
        """Those attributes of a function that have one of the names."""
        attributes = vars(function)
        if not attributes:
            self._bare[id(function)] = function
            return []
        return self.read_some(attributes, (name for name in names if not is_dunder(name)))

    def read_docstring(self, function: types.FunctionType) -> str | None:
        """The docstring of a function, for code that reads it."""
        self._documented.append((function, function.__doc__))
        return function.__doc__

    def read_function(self, function: types.FunctionType) -> None:
        """Note the code and the defaults of a function."""
        self._functions.append(function)
        if function.__kwdefaults__:
            code = function.__code__
            self.read_some(function.__kwdefaults__, code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])

    def read_cell(self, cell: types.CellType) -> Any:
        """What a variable of a closure holds, or ABSENT."""
        try:
            value = cell.cell_contents
        except ValueError:  # not bound yet
            value = ABSENT
        self._cells.append((cell, value))
        return value

    def read_class(self, kind: type) -> list[tuple[str, Any]]:
        """All attributes of a class itself, sorted."""
        names, values = tuple(vars(kind)), tuple(vars(kind).values())
        self._classes.append((kind, kind.__bases__, names, values))
        return sorted(zip(names, values, strict=True), key=itemgetter(0))

    def told(self, value: Any, content: bytes) -> None:
        """Note the content of a value. It is told again where it can change in itself."""
        if not _is_unchanging(value):
            self._changing.append((value, content))

    def close(self) -> None:
        """Nothing more is read."""
        for space, read, absent in self._spaces.values():
            if read:
                names = list(read)
                self._checks.append((space, itemgetter(*names, names[0]), (*read.values(), read[names[0]])))
            if absent:
                self._absent.append((space, absent))
        self._of_functions = [(get, [*map(get, self._functions)]) for get in _OF_FUNCTION]

    def holds(self, content: Content) -> bool:
        """Whether all is as it was. `content` tells what can change in itself."""
        try:
            for space, get, values in self._checks:
                if not all(map(is_, get(space), values)):
                    return False
            for space, absent in self._absent:
                if not space.keys().isdisjoint(absent):
                    return False
            for get, values_of in self._of_functions:
                if not all(map(is_, map(get, self._functions), values_of)):
                    return False
            if any(map(_attributes, self._bare.values())):
                return False
            for function, docstring in self._documented:
                if function.__doc__ is not docstring:
                    return False
            for cell, value in self._cells:
                if _in_cell(cell) is not value:
                    return False
            for kind, bases, names, values in self._classes:
                now = vars(kind)
                if kind.__bases__ is not bases or tuple(now) != names or not all(map(is_, now.values(), values)):
                    return False
            return all(content.of(value) == was for value, was in self._changing)
        except (KeyError, ValueError, NoContent):
            return False


def is_dunder(name: str) -> bool:
    """Whether a name is one of Python's own."""
    return name.startswith("__") and name.endswith("__")
