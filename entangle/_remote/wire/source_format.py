"""How a task that goes as source is written: the names of its steps, and pickles that any version of Python reads.

In such a pickle a number stands for each function and class that went as source.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from entangle._shared import pickled_errors

#: The steps in which a task comes, in an order in which each finds what it needs: the last is its call.
GLOBAL, CELL, CLASS, FUNCTION, ATTRIBUTE, CALL = "global", "cell", "class", "function", "attribute", "call"
#: A function or a class that is had from the class that it is a part of.
MEMBER = "member"


def given(number: int) -> NoReturn:
    """Stands in a pickle for what was sent as source and has this number in its book."""
    raise LookupError(f"number {number} of a book that is not open")


def given_function(module: str, name: str) -> Any:
    """The function of the task that a module has under this name."""
    found: Any = sys.modules.get(module) or __import__(module, fromlist=["_"])
    for part in name.split("."):
        found = getattr(found, part)
    return found.function


def cached(function: Any, parameters: dict[str, Any]) -> Any:
    """A function that remembers its values, as `functools.lru_cache` makes it."""
    return functools.lru_cache(**parameters)(function)


def bound(function: Any, itself: Any) -> types.MethodType:
    """A method of an object whose class does not have it."""
    return types.MethodType(function, itself)


class Unpickler(pickle.Unpickler):
    """Reads pickles in which `given` stands for what both sides have."""

    def __init__(self, data: Any, have: Any, buffers: Iterable[Any] | None = None) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._have = have

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle names."""
        return self._have if (module, name) == (__name__, "given") else super().find_class(module, name)


class Pickler(pickle.Pickler):
    """Writes pickles in which `given` stands for what both sides have; `reduced` says how, or NotImplemented."""

    def __init__(self, file: Any, reduced: Callable[[Any], Any], aside: Any = None) -> None:
        super().__init__(file, 5, buffer_callback=aside)
        self._reduced = reduced

    def reducer_override(self, value: Any) -> Any:
        """How a function, a class or an instance is written."""
        if isinstance(value, BaseException):
            return pickled_errors.reduced(value) or self._reduced(value)
        return self._reduced(value)


def functions_of(attribute: Any) -> Iterator[types.FunctionType]:
    """The functions in an attribute of a class: itself, what a descriptor or a task holds, what a decorator has wrapped."""
    for _ in range(32):
        if isinstance(attribute, types.FunctionType):
            yield attribute
        if isinstance(attribute, property):
            for part in (attribute.fget, attribute.fset, attribute.fdel):
                if isinstance(part, types.FunctionType):
                    yield part
            return
        if isinstance(attribute, (staticmethod, classmethod)):
            attribute = attribute.__func__
        else:
            attribute = getattr(attribute, "__dict__", {}).get("__wrapped__")
        if attribute is None:
            return
