"""The layer of @request: ask a web server, then call the function with the answer's content."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entangle._run.last_run import LastRun
from entangle._shared import greenlets
from entangle._tasks.layer import Decorated, Layer
from entangle._tasks.web_exchange import Exchange, Page
from entangle._worker.away import AwayCall, AwayFunction
from entangle._worker.worker import here


class Request(Layer):
    """The layer of @request."""

    takes_arguments = True

    def __init__(self, url: str, method: str, timeout: float, headers: Mapping[str, str]) -> None:
        self.exchange = Page(url, method, timeout, headers)

    def ahead(self, rest: Decorated) -> Callable[..., Any]:
        """The server is asked before a worker takes the call: waiting for it costs no thread."""
        return AwayFunction(RequestPlace(self.exchange), rest)

    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Send the keyword arguments; the function gets the content, then the positional ones."""
        worker = here.worker
        answered = worker.take_ahead() if worker is not None else None
        content = answered[0] if answered is not None else self.exchange.ask((), kwargs)
        return inner(content, *args)


class RequestPlace:
    """A server as the place of calls: what is done there is to answer."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        _last_run.watch()

    def prepare(self) -> None:
        """Import what it takes, before a run forks workers beside a thread that would do it."""
        with contextlib.suppress(Exception):
            self.exchange.prepare()
            import anyio._backends._asyncio  # noqa: F401

            import entangle._tasks.web_client  # noqa: F401

    def begin(self, calls: Sequence[AwayCall]) -> None:
        """Leave these calls to the web client of the process."""
        if greenlets.patched():  # a thread is none, and an event loop would find another one there
            for call in calls:
                threading.Thread(target=self._ask, args=(call,), daemon=True).start()
            return
        from entangle._tasks.web_client import Asking, client_here

        asked = []
        for call in calls:
            call.where = self.exchange.host
            call.handle = asking = Asking(call, self.exchange)
            asked.append(asking)
        while not client_here().begin(asked):
            pass  # it has ended just now

    def _ask(self, call: AwayCall) -> None:
        call.where = self.exchange.host
        try:
            call.done(self.exchange.ask(*call.take()))
        except BaseException as error:
            call.failed(error)

    def has_begun(self, call: AwayCall) -> bool:
        """Whether it has a place among those that are under way at once."""
        return call.handle is None or bool(call.handle.begun)

    def cancel(self, call: AwayCall) -> bool:
        """Abort the request."""
        if call.handle is None:
            return False
        call.handle.cancel()
        return not (self.exchange.runs_on and call.handle.begun)


def _end_client() -> None:
    module = sys.modules.get("entangle._tasks.web_client")
    if module is not None:
        module.end_with_runs()


_last_run = LastRun(_end_client)
