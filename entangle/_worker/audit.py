"""Python's audit events in a worker: one hook for all that listen, as each event costs each hook a
call. A hook cannot be taken away again, and forked workers inherit it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

Listener = Callable[[str, tuple[Any, ...]], None]

_listeners: dict[str, Listener] = {}


def listen(events: Iterable[str], listener: Listener) -> None:
    """Have these events told to the listener from now on: their names, and their arguments. It runs
    in the frame that has raised them. An event has one listener."""
    if not _listeners:
        sys.addaudithook(_hear)
    _listeners.update(dict.fromkeys(events, listener))


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    listener = _listeners.get(event)
    if listener is not None:
        listener(event, arguments)
