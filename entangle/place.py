"""@place: the function runs in a place that the project, or the machine, gives a name.

More: docs/places.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NoReturn

from entangle._remote.agent import imports
from entangle._remote.caller.far import Far, FarFunction
from entangle._remote.caller.place_files import KINDS, Definition, known_places
from entangle._remote.transport import Transport
from entangle._remote.transport.several import SeveralTransport
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle._tasks.layer import Decorated
from entangle._worker import inline
from entangle.errors import EntangleError, OptionError
from entangle.flow import HERE
from entangle.process import process
from entangle.task import Decorator, Layer, Task, decorate, refuse_unknown


class Place(Layer):
    """The layer of @place: it is the layer of the decorator that the name stands for."""

    def __init__(self, name: str, layer: Layer) -> None:
        self.name, self.layer = name, layer
        self.carrier, self.ships = layer.carrier, layer.ships
        self.stated, self.injected, self.takes_arguments = layer.stated, layer.injected, layer.takes_arguments

    @property
    def recorded_as(self) -> str:
        """What records call it."""
        return f"place({self.name!r})"

    def terms(self) -> dict[str, Any]:
        """Those of the layer."""
        return self.layer.terms()

    def accept(self, function: Callable[..., Any]) -> None:
        """As the layer."""
        self.layer.accept(function)

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """As the layer."""
        return self.layer.around(inner)

    def ship(self, rest: Decorated) -> Callable[..., Any]:
        """As the layer."""
        return self.layer.ship(rest)

    def lift(self, rest: Decorated) -> dict[str, Any]:
        """As the layer."""
        return self.layer.lift(rest)


class SeveralHosts(Far):
    """The layer of a place with several hosts."""

    transport: SeveralTransport

    def ship(self, rest: Decorated) -> FarFunction:
        """What runs here; packages go into the virtual environment of the host that is reached."""
        shipped = super().ship(rest)
        if any(getattr(host, "env", None) is not None for host in self.transport.hosts if host.name == "ssh"):
            from entangle._remote.caller.requirements import furnished

            shipped.furnishing = furnished(rest.function)
        return shipped


class Nowhere(Layer):
    """The layer of a place that no file defines: raises an error when a call is about to run."""

    carrier = HERE
    ships = True

    def __init__(self, why: str) -> None:
        self._why = why

    def ship(self, rest: Decorated) -> Callable[..., Any]:
        """Raises OptionError; in an inline run, the function runs here."""
        if not inline.on:
            raise OptionError(self._why)

        def far(*args: Any, **kwargs: Any) -> Any:
            if not inline.on:
                raise OptionError(self._why)
            return rest(*args, **kwargs)()

        return far


@edge
def place(name: str, /, **unknown: NoReturn) -> Decorator:
    """Run the function in the place of this name, with the layers below; its value comes back.

    What the name stands for is defined in `pyproject.toml`, in `[tool.entangle.places.NAME]`, or in
    `entangle.toml`, in `[places.NAME]`: the nearest upward from the program's script, else from the
    working directory. `~/.config/entangle/entangle.toml` adds places of this machine. A table has
    the `kind` (ssh, docker, apptainer, singularity, slurm, interpreter or local) and options of the
    decorator of that name. Of several hosts (`hosts = ["one", "two"]`, or a list of tables), the
    first that can be reached is used, and is remembered while the program runs; `entangle places`
    lists what is known, and `entangle places check NAME` tries it.

    A call costs what it costs with that decorator, and leaves the same behind. A host that cannot
    be reached adds the time until it is given up (by ssh, at most 15 seconds), once in each
    process.

    Raises OptionError here for a name that the files do not have, and for a table with a mistake.
    Where there is no such file at all, running a call raises it: a module may be imported on other
    machines. Running a call raises what that decorator raises, and UnreachableError with the reason
    of each host where none can be reached.

        @place("gpu-box")
        @process
        def simulate(seed): ...
    """
    refuse_unknown("place", (), unknown)
    if not isinstance(name, str) or not name:
        raise OptionError(f"@place needs the name of a place, not {value_in_short(name)}: @place('gpu-box')")
    definition = _defined(name)
    if isinstance(definition, Definition):
        layer_of(definition)  # what is wrong with its options is said here

    @edge
    def wrap(inner: Any) -> Any:
        task = decorate("place", inner)
        layer = layer_of(definition, task) if isinstance(definition, Definition) else definition
        return decorate("place", inner, Place(name, layer))

    return wrap


def _defined(name: str) -> Definition | Nowhere:
    if imports.finders:
        # The caller's module, imported in another place. Files there are another project's.
        return Nowhere(
            f"@place({name!r}): names are known to the program that has begun the run, and a body of it in another place calls this "
            f"function; call it from the program, or use the decorator that the name stands for"
        )
    known = known_places()
    if name in known.tables:
        return known[name]
    if known.tables:
        raise OptionError(f"@place({name!r}): {known.absent(name)}")
    return Nowhere(f"@place({name!r}): {known.absent(name)}")


def layer_of(definition: Definition, task: Task[..., Any] | None = None) -> Layer:
    """The layer that a definition stands for, above those of a task: by default one with a
    deadline. Raises OptionError, which names file and table."""
    below = task or process(timeout=60)(_any)
    try:
        layers = [_made(kind, options, below) for kind, options in definition.hosts]
        if len(layers) == 1:
            return layers[0]
        hosts: list[Transport] = []
        for (kind, _), layer in zip(definition.hosts, layers, strict=True):
            if not isinstance(layer, Far) or type(layer).send is not Far.send:
                raise OptionError(
                    f"kind={kind!r} cannot be one of several hosts of a place: those are of kind ssh, docker, apptainer, singularity "
                    "or interpreter. Give this one a name of its own"
                )
            hosts.append(layer.transport)
        return SeveralHosts(SeveralTransport(definition.name, tuple(hosts)))
    except EntangleError as error:
        raise OptionError(f"{definition.where}: {error}") from None


def _made(kind: str, options: dict[str, Any], below: Task[..., Any]) -> Layer:
    """The layer of a decorator with these options, which it checks."""
    decorator = getattr(importlib.import_module(KINDS[kind]), kind)
    task: Task[..., Any] = decorator(**options)(below)
    return task.layers[0]


def _any() -> None:
    """Is decorated to get a layer."""


named_as_its_decorator(__name__)

__all__ = ["place"]
