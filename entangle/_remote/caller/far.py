"""The layer of every door to another place: it ships the function and the layers below it."""

from __future__ import annotations

import functools
import sys
import time
from typing import TYPE_CHECKING, Any

from entangle import _run
from entangle._remote.caller.lost_connections import comes_back, used_up
from entangle._remote.transport import Transport
from entangle._run.last_run import LastRun
from entangle._shared.table import NOBODY
from entangle._tasks.layer import Decorated, Layer, kept_here
from entangle._worker import inline
from entangle._worker.away import AwayFunction, AwayPlace
from entangle._worker.worker import here
from entangle.errors import LinkLostError, ProcessTerminatedException, RunCancelledError, UnreachableError
from entangle.flow import HERE, Body

if TYPE_CHECKING:
    from entangle._remote.caller.requirements import Furnishing


class Far(Layer):
    """Runs a function in another place, together with the layers below this one.

    Those layers are the business of that place: it takes their cookies and starts their processes.
    A `@limit` counts on both sides: here, where the whole process tree keeps it, and there, for
    the runs that the function begins.
    Here no thread waits for the value, but the calling one where nothing else is left to do, and
    one where a layer of the user's own or a process stands around it.

    If the connection is lost during the call, the error is a LinkLostError. If a layer below has
    `retry`, that counts as a failed attempt, and the next one opens a new connection. `retry` of a
    layer above is the engine's business.
    """

    carrier = HERE
    ships = True

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        _watch_runs(transport)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _watch_runs(self.transport)

    def lift(self, rest: Decorated) -> dict[str, Any]:
        """`wait` and limits of the layers below hold here."""
        return kept_here(rest)

    def send(self, rest: Decorated, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of it there: its value, or its error."""
        from entangle._remote.caller.open_channels import channel_to

        return channel_to(self.transport).call(rest, args, kwargs)

    def place_of(self, rest: Decorated, again: Body | None, furnishing: Furnishing | None) -> AwayPlace:
        """The place of calls of it that no thread waits for. `again` says how often one is begun
        anew whose connection is lost."""
        from entangle._remote.caller.far_place import FarPlace

        return FarPlace(self.transport, rest, again, furnishing)

    def ship(self, rest: Decorated) -> FarFunction:
        """What runs here for a task that runs there."""
        terms = {name: value for layer in reversed(rest.layers) for name, value in layer.terms().items()}
        body = Body(rest.function, rest.__name__, **{name: terms[name] for name in AGAIN if name in terms})
        again = body.retry > 0 and any(issubclass(kind, body.on) for kind in (LinkLostError, ProcessTerminatedException))

        return FarFunction(self, rest, body if again else None)


class FarFunction(AwayFunction):
    """What runs here for a task that runs there. A thread that calls it waits for the value."""

    may_wait = True
    #: Whether no thread need wait for it.
    may_be_away = True

    def __init__(self, far: Far, rest: Decorated, again: Body | None) -> None:
        self.task = rest
        self._far, self._again = far, again
        #: What is done there before the first call, such as an installation.
        self.furnishing: Furnishing | None = None

    @functools.cached_property
    def place(self) -> AwayPlace:  # type: ignore[override]
        """The place of calls that are away; it has the channels, which are loaded for that."""
        return self._far.place_of(self.task, self._again, self.furnishing)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """The value of a call; this thread waits for it."""
        if inline.on:
            return self.task(*args, **kwargs)()
        worker = here.worker
        if worker is not None and worker.expires is not None:
            with worker.expiring():
                return self._sent(args, kwargs)
        return self._sent(args, kwargs)

    def _sent(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        body = self._again
        if self.furnishing is not None:
            from entangle._remote.caller.open_channels import channel_to

            self.furnishing.see_to(channel_to(self._far.transport))
        if body is None:
            return self._far.send(self.task, args, kwargs)
        from entangle._worker.failures import pause

        lost: list[LinkLostError | UnreachableError] = []
        while True:
            try:
                return self._far.send(self.task, args, kwargs)
            except (LinkLostError, UnreachableError) as error:
                if not comes_back(error, lost):
                    raise
                lost.append(error)
                if len(lost) > body.retry:
                    raise used_up(body.name, lost) from error
                worker = here.worker
                if worker is None:
                    time.sleep(pause(body, len(lost)))
                elif not worker.rest_without_cookies(worker.node(), pause(body, len(lost))) or worker.is_over(NOBODY):
                    raise RunCancelledError("the run is over; there is no other attempt") from error


def _end_with_runs() -> None:
    """Close the agents that end with runs. In a session and in a warm worker they stay."""
    if _run.warm is not None or _run.warm_settings is not None:
        return
    channels = sys.modules.get("entangle._remote.caller.open_channels")
    if channels is not None:
        channels.close_all(lambda channel: channel.transport.ends_with_run)
    allocations = sys.modules.get("entangle._remote.caller.allocations")
    if allocations is not None:
        allocations.end_of_runs()


_last_run = LastRun(_end_with_runs)


def _watch_runs(transport: Transport) -> None:
    """Count runs once there is a transport whose agents end with them."""
    if transport.ends_with_run:
        _last_run.watch()


#: The terms of a body that say whether and when it runs again.
AGAIN = ("retry", "sleep", "backoff", "jitter", "on")
