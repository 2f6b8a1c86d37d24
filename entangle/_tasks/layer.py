"""Layers: what each decorator adds to a function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from entangle._shared.frames import passes_on
from entangle._tasks.call import in_short
from entangle.errors import OptionError

if TYPE_CHECKING:
    from entangle.task import Task


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

    def ship(self, rest: Task[..., Any]) -> Callable[..., Any]:
        """Where the layer `ships`: what runs here for `rest`, the function with the layers below this one."""
        raise NotImplementedError

    def lift(self, rest: Task[..., Any]) -> dict[str, Any]:
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


class Attributes(Layer):
    """What the author says of a task, for those who look at its records."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        if not isinstance(attributes, dict) or not all(isinstance(name, str) for name in attributes):
            raise OptionError(f"@task: attributes={in_short(attributes)}; it is a dict whose keys are names")
        for name, value in attributes.items():
            if not _is_plain_data(value):
                raise OptionError(
                    f"@task: attributes[{name!r}] is of type {type(value).__name__}; it can be text, a number, True, False, None, "
                    "and lists and dicts of these"
                )
        self.attributes = dict(attributes)


def _is_plain_data(value: Any, depth: int = 0) -> bool:
    if value is None or isinstance(value, (str, int, float, bool)):
        return True
    if depth > 20:
        return False
    if isinstance(value, (list, tuple)):
        return all(_is_plain_data(part, depth + 1) for part in value)
    return isinstance(value, dict) and all(isinstance(key, str) and _is_plain_data(part, depth + 1) for key, part in value.items())
