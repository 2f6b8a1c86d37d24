"""Windows: nodes that gather values and pass lists of them on; and what each of them holds at a time in a stream."""

from __future__ import annotations

import time
from typing import Any

from entangle._dataflow.flow_graph import GraphNode


class Window(GraphNode):
    """Gathers values and passes lists of them on: `count` values, or those of `seconds`; what is left when a stream ends comes last."""

    __slots__ = ("count", "seconds")

    count: int | None
    seconds: float | None
    __name__ = "window"

    def __init__(self, children: tuple[Any, ...], count: int | None, seconds: float | None) -> None:
        for name, value in (("children", children), ("count", count), ("seconds", seconds)):
            object.__setattr__(self, name, value)


class WindowBuffer:
    """The values that one window has gathered so far. A window of seconds opens with its first value."""

    def __init__(self, window: Window) -> None:
        self._count = window.count
        self._seconds = window.seconds
        self._values: list[Any] = []
        self._until = 0.0

    def add(self, value: Any) -> list[Any] | None:
        """Take a value in: gives the list where that makes it full."""
        if self._seconds is not None and not self._values:
            self._until = time.monotonic() + self._seconds
        self._values.append(value)
        return self.take() if self._count is not None and len(self._values) >= self._count else None

    def due(self) -> float:
        """Seconds until it is to be passed on."""
        return self._until - time.monotonic() if self._seconds is not None and self._values else 60.0

    def take(self) -> list[Any]:
        """What it holds; it is empty then."""
        values, self._values = self._values, []
        return values
