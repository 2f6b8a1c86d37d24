"""Modules that are named as the decorator in them: used as that, they say where it is."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any, NoReturn

from entangle._shared.frames import edge
from entangle.errors import OptionError


class Door(types.ModuleType):
    """A module such as `entangle.process`, which `from entangle import process` gives instead of the decorator."""

    @edge
    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        name = self.__name__.rpartition(".")[2]
        raise OptionError(f"@{name}: this is the module {self.__name__}; the decorator is in it: from {self.__name__} import {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        """As any module travels, by name; cloudpickle knows the usual kind alone."""
        return importlib.import_module, (self.__name__,)


def named_as_its_decorator(module: str) -> None:
    """Have a module say so when it is taken for its decorator."""
    sys.modules[module].__class__ = Door
