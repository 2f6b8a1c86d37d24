"""The layer of every door to a service: it ships the function and the layers below it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from entangle._remote.caller.far import AGAIN, Far
from entangle._services import Service
from entangle._services.mailbox import default_folder
from entangle._tasks.layer import Decorated, Layer
from entangle._worker import inline
from entangle._worker.failures import pause
from entangle._worker.worker import here
from entangle.errors import FarError, OptionError, ProcessRetryException, ProcessTerminatedException, RunCancelledError, add_note
from entangle.flow import HERE, Body


class AtService(Layer):
    """Runs a function at a service, together with the layers below this one.

    They are the business of that place, but for `wait` and `@limit`, as with `Far`. `retry` of a
    layer below holds for bodies there, and here for jobs that die: the platform never retries.
    """

    carrier = HERE
    ships = True

    def __init__(self, service: Service, mailbox: str | None = None) -> None:
        self.service, self.mailbox = service, mailbox

    lift = Far.lift

    def ship(self, rest: Decorated) -> Callable[..., Any]:
        """The function that runs here for a task that runs there."""
        from entangle._services.caller.watcher import seconds_of, watcher_of

        service, mailbox = self.service, self.mailbox
        terms = {name: value for layer in reversed(rest.layers) for name, value in layer.terms().items()}
        body = Body(rest.function, rest.__name__, **{name: terms[name] for name in AGAIN if name in terms})
        seconds, life = seconds_of(rest), service.limits().life
        if seconds is not None and life is not None and seconds > life:
            raise OptionError(f"task {body.name!r}: timeout={seconds:g} is longer than {service.place} lets anything run ({life:g} s)")

        def far(*args: Any, **kwargs: Any) -> Any:
            if inline.on:
                return rest(*args, **kwargs)()
            watcher = watcher_of(service, mailbox or default_folder())
            errors: list[BaseException] = []
            while True:
                call = Waiting(rest, args, kwargs, len(errors) + 1)
                try:
                    return call.outcome(watcher)
                except (FarError, ProcessTerminatedException) as error:
                    if not call.lost or not body.retry or not isinstance(error, body.on):
                        raise
                    errors.append(error)
                if len(errors) > body.retry:
                    last = ProcessRetryException(
                        f"task {body.name!r} failed {len(errors)} times; the last time with {type(errors[-1]).__name__}: {errors[-1]}"
                    )
                    for number, earlier in enumerate(errors[:-1], 1):
                        add_note(last, f"attempt {number}: {earlier}")
                    raise last from errors[-1]
                worker = here.worker
                if worker is None:
                    time.sleep(pause(body, len(errors)))
                elif not worker.rest_without_cookies(worker.node(), pause(body, len(errors))):
                    raise RunCancelledError("the run is over; there is no other attempt")

        return far


class Waiting:
    """A call whose thread waits for its outcome."""

    def __init__(self, task: Any, args: Sequence[Any], kwargs: dict[str, Any], attempt: int) -> None:
        self.task, self.name, self.attempt = task, task.__name__, attempt
        self.handle: Any = None
        self.lost = False
        self._given = args, kwargs
        self._ended = threading.Event()
        self._value: Any = None
        self._seconds = -1.0
        self._error: BaseException | None = None

    def take(self) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments of the body."""
        return self._given

    def done(self, value: Any, seconds: float = -1.0) -> None:
        """Its body has given this value."""
        self._value, self._seconds = value, seconds
        self._ended.set()

    def failed(self, error: BaseException, seconds: float = -1.0) -> None:
        """Its body has raised this error, or is lost to it."""
        self._error, self._seconds = error, seconds
        self._ended.set()

    def outcome(self, watcher: Any) -> Any:
        """Begin it, and wait."""

        def cancel() -> None:
            watcher.cancel(self)
            self.failed(RunCancelledError(f"the call of {self.name!r} at {watcher.service.place} was cancelled"))

        worker, began = here.worker, time.monotonic()
        with worker.ending_with(cancel) if worker is not None else contextlib.nullcontext():
            try:
                watcher.begin([self])
                self._ended.wait()
            except BaseException:
                watcher.cancel(self)
                raise
        if worker is not None and worker.notes is not None:
            queued = time.monotonic() - began - self._seconds if self._seconds >= 0 else 0.0
            worker.notes.elsewhere(worker.node(), watcher.service.place, getattr(self.handle, "ticket", ""), int(queued * 1e9))
        if self._error is not None:
            raise self._error
        return self._value
