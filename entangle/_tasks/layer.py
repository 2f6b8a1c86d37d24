"""Layers: what each decorator adds to a function; and a task, as layers and calls know it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

from entangle._shared.frames import passes_on
from entangle.flow import Body


class Decorated(Protocol):
    """A decorated function, as far as layers and calls need to know it: `entangle.task.Task` above is what there is."""

    __name__: str

    @property
    def function(self) -> Callable[..., Any]:
        """The function as it was written."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its layers, outermost first."""

    @property
    def body(self) -> Body:
        """What the engine runs."""

    def made_of(self) -> list[tuple[str, Any]]:
        """What travels with it, each part with what errors call it."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """A call of it."""


class Layer:
    """What one decorator adds: code that runs around the next layer, the innermost being the function.

    `carrier` says who carries the part below (PROCESS, THREAD, FRESH, HERE of `entangle.flow`); None leaves that to
    other layers. `terms` are fields of `entangle.flow.Body` that the engine sees to: deadlines, retries, cookies.
    """

    carrier: int | None = None

    #: The options that count only where this layer is the one that carries, as they were written.
    stated: tuple[str, ...] = ()
    #: Parameters of the function that the layer fills in itself, by name.
    injected: tuple[str, ...] = ()
    #: Whether the arguments of a call are the layer's business and not the function's parameters.
    takes_arguments = False
    #: Whether the layers below run in another place, to which `ship` takes them.
    ships = False

    def terms(self) -> dict[str, Any]:
        """What the engine must know: fields of `Body`."""
        return {}

    def accept(self, function: Callable[..., Any]) -> None:
        """Look at the function that is decorated; raise OptionError where the layer cannot do with it."""

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """`inner` with this layer around it."""
        if type(self).run is Layer.run:
            return inner
        outer = functools.partial(peel, self, inner)
        functools.update_wrapper(outer, inner)  # the next layer, or a scheduler of the user's own, sees what the user has written
        return outer

    def ship(self, rest: Decorated) -> Callable[..., Any]:
        """Where the layer `ships`: what runs here for `rest`, the function with the layers below this one."""
        raise NotImplementedError

    def lift(self, rest: Decorated) -> dict[str, Any]:
        """Where the layer `ships`: the terms of the layers below that are seen to here all the same."""
        return {}

    @passes_on
    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the layers below; the place to do something before, after or instead."""
        return inner(*args, **kwargs)


@passes_on
def peel(layer: Layer, inner: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """What `around` gives: the layer, with all below it as `inner`."""
    return layer.run(inner, args, kwargs)
