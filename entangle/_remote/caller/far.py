"""The layer of every door to another place: it ships the layers below it, the function and the arguments."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from entangle._remote.transport import Transport
from entangle._run import ObservedRun, observers
from entangle._shared.table import NOBODY
from entangle._tasks.layer import Decorated, Layer
from entangle._worker.worker import here
from entangle.errors import LinkLostError, ProcessRetryException, ProcessTerminatedException, RunCancelledError, UnreachableError, add_note
from entangle.flow import HERE, Body


class Far(Layer):
    """A function under it runs in another place, with the layers below it, which are that place's business: their cookies are
    taken there, their processes started there. Here a thread waits for the value: the calling one, if nothing else is left to do.

    Where the line is lost in the middle of a call, the error is a LinkLostError; if a layer below it has `retry`, that counts as one
    failed attempt, and the next goes over a new line. (`retry` of a layer above it is the engine's own affair.)
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
        """`wait` of a layer below: the arguments arrive here, whoever carries the body."""
        waits = [wait for layer in rest.layers if (wait := layer.terms().get("wait")) is not None]
        return {"wait": min(waits)} if waits else {}

    def ship(self, rest: Decorated) -> Callable[..., Any]:
        """What runs here for a task that runs there."""
        transport = self.transport
        terms = {name: value for layer in reversed(rest.layers) for name, value in layer.terms().items()}
        body = Body(rest.function, rest.__name__, **{name: terms[name] for name in _AGAIN if name in terms})
        again = body.retry > 0 and any(issubclass(kind, body.on) for kind in (LinkLostError, ProcessTerminatedException))

        def far(*args: Any, **kwargs: Any) -> Any:
            from entangle._remote.caller.open_channels import channel_to

            if not again:
                return channel_to(transport).call(rest, args, kwargs)
            from entangle._worker.failures import pause

            lost: list[LinkLostError | UnreachableError] = []
            while True:
                try:
                    return channel_to(transport).call(rest, args, kwargs)
                except (LinkLostError, UnreachableError) as error:
                    # A place that was there and does not answer now may be on its way back; what is wrong with a key or an image stays so.
                    if isinstance(error, UnreachableError) and (not lost or type(error) is not UnreachableError):
                        raise
                    lost.append(error)
                    if len(lost) > body.retry:
                        last = ProcessRetryException(
                            f"task {body.name!r} failed {len(lost)} times; the last time with {type(error).__name__}: {error}"
                        )
                        for number, earlier in enumerate(lost[:-1], 1):
                            add_note(last, f"attempt {number}: {earlier}")
                        raise last from error
                    worker = here.worker
                    if worker is None:
                        time.sleep(pause(body, len(lost)))
                    elif not worker.rest(pause(body, len(lost))) or worker.is_over(NOBODY):
                        raise RunCancelledError("the run is over; there is no other attempt") from error

        return far


class _Ending:
    """Counts the runs of this process: when none is left, agents that go with their run go."""

    def __init__(self) -> None:
        self._runs = 0
        self._guard = threading.Lock()

    def started(self, run: ObservedRun) -> None:
        """One more."""
        with self._guard:
            self._runs += 1

    def looked(self, run: ObservedRun) -> None:
        """Nothing to see to."""

    def ended(self, run: ObservedRun) -> None:
        """One less. A run that was under way when we began to count was not counted."""
        with self._guard:
            self._runs = max(0, self._runs - 1)
            if self._runs:
                return
        channels = sys.modules.get("entangle._remote.caller.open_channels")
        if channels is not None:
            channels.close_all(lambda transport: transport.ends_with_run)


_ending = _Ending()


def _after_fork() -> None:
    _ending.__init__()  # type: ignore[misc]  # whoever held its lock did not come along, nor did the runs that it counts


os.register_at_fork(after_in_child=_after_fork)


def _watch_runs(transport: Transport) -> None:
    """Have somebody notice the end of runs, once there is a transport whose agents go with them."""
    if transport.ends_with_run and _ending not in observers:
        observers.append(_ending)


_AGAIN = ("retry", "sleep", "backoff", "jitter", "on")
