"""How a task is written that travels as source: its steps, and pickles that all Pythons read.

In such a pickle a number stands for each function and class that travels as source.
"""

from __future__ import annotations

import ast
import functools
import io
import os
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from entangle._shared import pickled_errors

#: The kinds of steps. Each step finds what it needs in the steps before it; the last is the call.
GLOBAL, CELL, CLASS, FUNCTION, ATTRIBUTE, CALL = "global", "cell", "class", "function", "attribute", "call"
#: A function or a class that is reached through its class.
MEMBER = "member"


def given(number: int) -> NoReturn:
    """Stands in a pickle for the definition with this number; `Unpickler` puts the object there."""
    raise LookupError(f"definition {number} is only known where its task was read")


def given_function(module: str, name: str) -> Any:
    """The function of the task that a module has under this name."""
    found: Any = sys.modules.get(module) or __import__(module, fromlist=["_"])
    for part in name.split("."):
        found = getattr(found, part)
    return found.function


def cached(function: Any, parameters: dict[str, Any]) -> Any:
    """A function with `functools.lru_cache` around it."""
    return functools.lru_cache(**parameters)(function)


def bound(function: Any, itself: Any) -> types.MethodType:
    """A function bound to an object whose class does not have it as a method."""
    return types.MethodType(function, itself)


class Unpickler(pickle.Unpickler):
    """Reads pickles in which `given` stands for what both sides have."""

    def __init__(self, data: Any, have: Any, buffers: Iterable[Any] | None = None) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._have = have

    def find_class(self, module: str, name: str) -> Any:
        """The object that a pickle names."""
        return self._have if (module, name) == (__name__, "given") else super().find_class(module, name)


class Pickler(pickle.Pickler):
    """Writes pickles in which `given` stands for what both sides have.

    `reduced` says how to write a value, or gives NotImplemented.
    """

    def __init__(self, file: Any, reduced: Callable[[Any], Any], buffers: Any = None) -> None:
        super().__init__(file, 5, buffer_callback=buffers)
        self._reduced = reduced

    def reducer_override(self, value: Any) -> Any:
        """How to write a function, a class or an instance."""
        if isinstance(value, BaseException):
            return pickled_errors.reduced(value) or self._reduced(value)
        return self._reduced(value)


def functions_of(attribute: Any) -> Iterator[types.FunctionType]:
    """The functions in an attribute of a class: itself, and those in a descriptor or a decorator.

    Both sides count them in this order.
    """
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


_parsing = threading.Lock()


def parse(text: str) -> ast.Module:
    """The tree of source. One thread at a time: before Python 3.11.5, a second one may cause a
    SystemError (https://github.com/python/cpython/issues/106905).
    """
    with _parsing:
        return ast.parse(text)


def _after_fork() -> None:
    global _parsing
    _parsing = threading.Lock()  # the thread that held it is not in the child


os.register_at_fork(after_in_child=_after_fork)
