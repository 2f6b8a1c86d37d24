"""@workflow: the body builds a graph, and the workflow's value is that graph's value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from entangle.flow import HERE
from entangle.task import Decorator, Layer, Task, decorate, refuse_unknown

P = ParamSpec("P")
R = TypeVar("R")


class Workflow(Layer):
    """The layer of @workflow."""

    carrier = HERE


@overload
def workflow(function: Task[P, R], /) -> Task[P, R]: ...
@overload
def workflow(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def workflow() -> Decorator: ...
def workflow(function: Any = None, /, **unknown: Any) -> Any:
    """Make a function a workflow: its body runs where the call is run and returns a call, whose value is the workflow's.

    A body may also return a plain value. Arguments that are calls are run first, in parallel. Raises OptionError for
    options, since it has none.

        @workflow
        def total(names): return add(*[size(name) for name in names])
    """
    refuse_unknown("workflow", (), unknown)

    def wrap(inner: Any) -> Task[..., Any]:
        return decorate("workflow", inner, Workflow())

    return wrap if function is None else wrap(function)
