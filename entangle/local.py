"""@local: the body runs on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle.pools import cpus as pool_of
from entangle.pools import registered
from entangle.scheduler import check_cpus
from entangle.task import AnyTask, Decorator, Layer, Task, decorate, refuse_unknown

__all__ = ["local"]

P = ParamSpec("P")
R = TypeVar("R")


class Local(Layer):
    """The layer of @local: the place is here; with `cpus`, a limit on how many run at a time."""

    def __init__(self, cpus: int | None) -> None:
        self.cpus = cpus
        if cpus is not None:
            check_cpus("local", cpus)
            registered.add(pool_of(cpus))

    def terms(self) -> dict[str, Any]:
        """With `cpus`, the pool of cookies that the function takes from."""
        return {} if self.cpus is None else {"pools": (pool_of(self.cpus),)}


@overload
def local(function: AnyTask, /) -> AnyTask: ...
@overload
def local(function: type[R], /) -> Task[..., R]: ...
@overload
def local(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def local(*, cpus: int | None = None) -> Decorator: ...
@edge
def local(function: Any = None, /, *, cpus: int | None = None, **unknown: Any) -> Any:
    """Say that the function runs on this machine; with `cpus`, as under @scheduler(cpus=…).

    Raises OptionError here for bad options.

        @process
        @local(cpus=4)
        def work(n): ...
    """
    refuse_unknown("local", ("cpus",), unknown)
    layer = Local(cpus)

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        return decorate("local", inner, layer)

    return wrap if function is None else wrap(function)


named_as_its_decorator(__name__)
