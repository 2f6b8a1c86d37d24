"""@workflow: the body builds a graph, and the workflow's value is that graph's value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle.errors import GraphError, OptionError
from entangle.flow import HERE
from entangle.task import AnyTask, Call, Layer, Task, decorate, refuse_unknown

__all__ = ["workflow"]

P = ParamSpec("P")
R = TypeVar("R")


class Workflow(Layer):
    """The layer of @workflow."""

    carrier = HERE
    builds_calls = True

    def __init__(self, graph: str | None = None) -> None:
        if graph is not None:
            from entangle._tasks.gremlin_address import check_address

            if not isinstance(graph, str):
                raise OptionError(
                    f"@workflow: graph={value_in_short(graph)}; it must be the address of a Gremlin server, such as ws://localhost:8182/gremlin"
                )
            try:
                check_address(graph)
            except GraphError as error:
                raise OptionError(f"@workflow: graph=: {error}") from None
        self.graph = graph


class Listed(Protocol):
    """To type checkers, any object but a call."""

    def __dir__(self) -> Iterable[str]: ...


NoCall = TypeVar("NoCall", bound=Listed | None)


class WorkflowDecorator(Protocol):
    """What @workflow(…) gives. The type of a workflow's value is that of the call it returns."""

    @overload
    def __call__(self, function: Task[P, Call[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: AnyTask, /) -> AnyTask: ...
    @overload
    def __call__(self, function: Callable[P, NoCall], /) -> Task[P, NoCall]: ...
    @overload
    def __call__(self, function: Callable[P, Call[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Call[R] | R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


@overload
def workflow(function: Task[P, Call[R]], /) -> Task[P, R]: ...
@overload
def workflow(function: AnyTask, /) -> AnyTask: ...
@overload
def workflow(function: Callable[P, NoCall], /) -> Task[P, NoCall]: ...
@overload
def workflow(function: Callable[P, Call[R]], /) -> Task[P, R]: ...
@overload
def workflow(function: Callable[P, Call[R] | R], /) -> Task[P, R]: ...
@overload
def workflow(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def workflow(*, graph: str | None = None) -> WorkflowDecorator: ...
@edge
def workflow(function: Any = None, /, *, graph: str | None = None, **unknown: Any) -> Any:
    """Make a function a workflow: its body returns a call, whose value is the workflow's.

    The body runs where the workflow's call is run. It may also return a plain value. Arguments that
    are calls are run first, in parallel. `graph` is the address of a Gremlin server (`ws://…`,
    `wss://…`) that gets the records of the workflow's runs.

    Raises OptionError here for bad options.

        @workflow
        def total(names): return add(*[size(name) for name in names])
    """
    refuse_unknown("workflow", ("graph",), unknown)
    layer = Workflow(graph)

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        return decorate("workflow", inner, layer)

    return wrap if function is None else wrap(function)


named_as_its_decorator(__name__)
