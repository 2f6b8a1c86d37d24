"""@interpreter: the body runs in another Python of this machine.

More: docs/places.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from entangle._remote.agent import imports
from entangle._remote.caller.far import Far, FarFunction
from entangle._remote.transport.interpreter import InterpreterTransport
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle._tasks.layer import Decorated
from entangle.errors import OptionError
from entangle.task import AnyTask, Decorator, Task, decorate, refuse_unknown

__all__ = ["interpreter"]

P = ParamSpec("P")
R = TypeVar("R")


class Interpreter(Far):
    """The layer of @interpreter."""

    transport: InterpreterTransport

    def ship(self, rest: Decorated) -> FarFunction:
        """What runs here.

        The interpreter is looked for now, where the call is about to run. Where an agent has only
        imported the module of the task, the interpreter may be missing.
        """
        return Far(InterpreterTransport(_found(self.transport.python))).ship(rest)


@overload
def interpreter(function: AnyTask, /) -> AnyTask: ...
@overload
def interpreter(function: type[R], /) -> Task[..., R]: ...
@overload
def interpreter(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def interpreter(*, python: str | os.PathLike[str] | None = None) -> Decorator: ...
@edge
def interpreter(function: Any = None, /, *, python: str | os.PathLike[str] | None = None, **unknown: Any) -> Any:
    """Run the function in another Python of this machine: a version, or a virtual environment.

    `python` is the path of an interpreter, the directory of a virtual environment, or a name to be
    found on PATH; by default, the Python that runs the caller. Nothing needs to be installed there.
    One such process starts on first use, serves all calls of this process, and ends with it. The
    layers below run in it as they are.

    Raises OptionError here where there is no such file; where another place has imported the task's
    module, only when a call is about to run there. Running a call raises UnfitPythonError for a
    Python older than 3.10, LinkLostError where it dies during a call, UnpicklableError for what
    cannot travel to another version, and what the function raises.

        @interpreter(python="/opt/venv/bin/python")
        def summary(path): import pandas; return pandas.read_csv(path).describe()
    """
    refuse_unknown("interpreter", ("python",), unknown)
    try:
        program = _found(python)
    except OptionError:
        # An agent may import the module for another of its tasks. This program is needed only
        # where this task is called.
        if not imports.finders or not isinstance(python, (str, os.PathLike)) or not os.fspath(python):
            raise
        program = os.fspath(python)
    layer = Interpreter(InterpreterTransport(program))

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        return decorate("interpreter", inner, layer)

    return wrap if function is None else wrap(function)


def _found(python: Any) -> str:
    """The path of the interpreter that is meant. Raises OptionError."""
    if python is None:
        return sys.executable
    if not isinstance(python, (str, os.PathLike)) or not os.fspath(python):
        raise OptionError(
            f"@interpreter: python={value_in_short(python)}; it must be the path of an interpreter, or a name to be found on PATH"
        )
    name = os.path.expanduser(os.fspath(python))
    if os.path.isdir(name):
        inside = os.path.join(name, "bin", "python")
        if not os.access(inside, os.X_OK):
            raise OptionError(f"@interpreter: python={str(python)!r} is a directory without bin/python; name a virtual environment")
        return os.path.abspath(inside)
    import shutil

    found = shutil.which(name)
    if found is None:
        where = os.uname().nodename
        raise OptionError(f"@interpreter: python={str(python)!r}: there is no such program on {where}; write the path of an interpreter")
    return os.path.abspath(found)


named_as_its_decorator(__name__)
