"""Modules that have the name of their decorator: used as the decorator, they say where it is."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any, NoReturn

from entangle._shared.tracebacks import edge
from entangle.errors import OptionError


class Door(types.ModuleType):
    """A module such as `entangle.process`: `from entangle import process` gives this module."""

    @edge
    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        name = self.__name__.rpartition(".")[2]
        raise OptionError(f"@{name}: this is the module {self.__name__}, not the decorator; write: from {self.__name__} import {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it by name, as any module; cloudpickle does so for plain modules only."""
        return importlib.import_module, (self.__name__,)


def named_as_its_decorator(module: str) -> None:
    """Let a module raise a clear error when it is called as its decorator."""
    sys.modules[module].__class__ = Door
