"""The layer of every door to a service: it ships the function and the layers below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from entangle._services import Service
from entangle._services.mailbox import Where, default_folder
from entangle._tasks.layer import Decorated, Layer, kept_here, timeout_below
from entangle._worker.away import AwayCall, AwayFunction
from entangle.errors import OptionError
from entangle.flow import AWAY

if TYPE_CHECKING:
    from entangle._services.caller.watcher import Watcher


class AtService(Layer):
    """Runs a function at a service, together with the layers below this one.

    They are the business of that place, but for `wait` and `@limit`, as with `Far`. `retry` of a
    layer below holds for bodies there, and here for jobs that die: the platform never retries.
    """

    carrier = AWAY
    ships = True

    def __init__(self, service: Service, mailbox: Where | None = None, door: str = "service") -> None:
        self.door = door
        self.place = ServicePlace(service, mailbox)

    @property
    def recorded_as(self) -> str:
        """What records call it."""
        return self.door

    def lift(self, rest: Decorated) -> dict[str, Any]:
        """`wait` and limits of the layers below hold here."""
        return kept_here(rest)

    def ship(self, rest: Decorated) -> Callable[..., Any]:
        """What runs here for a task that runs there: it begins the call."""
        service = self.place.service
        seconds, life = timeout_below(rest), service.limits().life
        if seconds is not None and life is not None and seconds > life:
            raise OptionError(
                f"task {rest.__name__!r}: timeout={seconds:g} is longer than {service.place} lets anything run ({life:g} s); "
                "make it shorter"
            )
        return AwayFunction(self.place, rest)


class ServicePlace:
    """A service with a mailbox, as the place of calls. Each process has a watcher for it."""

    def __init__(self, service: Service, mailbox: Where | None) -> None:
        self.service, self.mailbox = service, mailbox

    def begin(self, calls: Sequence[AwayCall]) -> None:
        """Leave these calls to the watcher."""
        self._watcher().begin(calls)

    def has_begun(self, call: AwayCall) -> bool:
        """Whether the platform runs it, or it was claimed."""
        return self._watcher().has_begun(call)

    def cancel(self, call: AwayCall) -> bool:
        """It never begins, or is ended there."""
        return self._watcher().cancel(call)

    def _watcher(self) -> Watcher:
        from entangle._services.caller.open_watchers import watcher_of

        return watcher_of(self.service, self.mailbox or default_folder())
