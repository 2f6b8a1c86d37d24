"""Layers: what each decorator adds to a function; and a task, as layers and calls see it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

from entangle._shared.tracebacks import passes_on
from entangle.flow import Body, Flow
from entangle.pools import PLACES, TOKENS


class Decorated(Protocol):
    """A task, as layers and calls see it; `entangle.task.Task` is one, and imports both."""

    __name__: str
    #: The flows of calls of it alone, by the shapes of their arguments.
    _plans: dict[Any, Flow]

    @property
    def function(self) -> Callable[..., Any]:
        """The undecorated function."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its layers, outermost first."""

    @property
    def body(self) -> Body:
        """What the engine runs."""

    def made_of(self) -> list[tuple[str, Any]]:
        """The parts that travel with it when it is sent, each after its name for errors."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """A call of it."""


class Layer:
    """What one decorator adds: code that runs around the next layer; innermost is the function.

    `carrier` says what runs the part below: PROCESS, THREAD, FRESH or HERE of `entangle.flow`;
    None leaves that to other layers. `terms` are fields of `entangle.flow.Body`, which the engine
    enforces: deadlines, retries, cookies.
    """

    carrier: int | None = None

    #: The options that count only where this layer is the carrier, as they were written.
    stated: tuple[str, ...] = ()
    #: Parameters of the function that the layer fills in itself, by name.
    injected: tuple[str, ...] = ()
    #: Whether the layer takes the arguments of a call, whatever the function's parameters are.
    takes_arguments = False
    #: The decorator that adds it, where its class has another name.
    door = ""
    #: What looks for a value before the layers below run, where the layer remembers values.
    remembering: Layer | None = None
    #: Whether the body may always run again where nobody knows whether it has ended: it only builds
    #: calls.
    builds_calls = False
    #: Whether `ship` takes the layers below to another place.
    ships = False

    def terms(self) -> dict[str, Any]:
        """The fields of `Body` that this layer sets."""
        return {}

    def accept(self, function: Callable[..., Any]) -> None:
        """Check the function that is decorated. Raises OptionError if the layer does not fit it."""

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """`inner` with this layer around it."""
        if type(self).run is Layer.run:
            return inner
        outer = functools.partial(peel, self, inner)
        functools.update_wrapper(outer, inner)  # the next layer sees the user's name and signature
        return outer

    def ship(self, rest: Decorated) -> Callable[..., Any]:
        """Where the layer `ships`: what runs here in place of `rest`, the layers below this one."""
        raise NotImplementedError

    def ahead(self, rest: Decorated) -> Callable[..., Any] | None:
        """What can be done elsewhere before a worker takes the call, for all its arguments: an
        AwayFunction. `run` finds the outcome by `take_ahead` of its worker, or does it itself."""
        return None

    def lift(self, rest: Decorated) -> dict[str, Any]:
        """Where the layer `ships`: the terms of the layers below that are enforced here."""
        return {}

    @passes_on
    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the layers below. Override it to do something before, after or instead."""
        return inner(*args, **kwargs)


@passes_on
def peel(layer: Layer, inner: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """What `around` returns a partial of: the layer, with all below it as `inner`."""
    return layer.run(inner, args, kwargs)


def kept_here(rest: Decorated) -> dict[str, Any]:
    """Of the layers that run in another place, the terms that are enforced here: `wait`, since the
    arguments arrive here, and limits, which the whole process tree keeps."""
    terms = [layer.terms() for layer in rest.layers]
    waits = [wait for of in terms if (wait := of.get("wait")) is not None]
    limits = tuple(pool for of in terms for pool in of.get("pools", ()) if pool.kind in (PLACES, TOKENS))
    return {**({"wait": min(waits)} if waits else {}), **({"pools": limits} if limits else {})}


def timeout_below(task: Decorated) -> float | None:
    """How long the body of a task may run (seconds), where a layer says so."""
    timeouts = [seconds for layer in task.layers if (seconds := layer.terms().get("timeout")) is not None]
    return min(timeouts) if timeouts else None
