"""Windows: nodes that gather values and pass on lists of them; and their buffers in a stream."""

from __future__ import annotations

import time
from typing import Any

from entangle._dataflow.flow_graph import GraphNode, In_contra, Leaves_co

#: The values of a window, and the numbers of the source's items in them, where the source listens.
Gathered = tuple[list[Any], tuple[int, ...]]


class Window(GraphNode[In_contra, Leaves_co]):
    """Gathers values and passes on lists of `count` values, or of the values of `seconds`.

    When a stream ends, the rest comes as the last list.
    """

    __slots__ = ("count", "seconds")

    count: int | None
    seconds: float | None
    __name__ = "window"

    def __init__(self, children: tuple[Any, ...], count: int | None, seconds: float | None) -> None:
        for name, value in (("children", children), ("count", count), ("seconds", seconds)):
            object.__setattr__(self, name, value)


class WindowBuffer:
    """The values that one window holds now. A window of seconds opens with its first value."""

    def __init__(self, window: Window[Any, Any]) -> None:
        self._count = window.count
        self._seconds = window.seconds
        self._values: list[Any] = []
        self._numbers: list[int] = []
        self._until = 0.0

    def add(self, value: Any, numbers: tuple[int, ...] = ()) -> Gathered | None:
        """Add a value, with the numbers of the source's items in it. Returns the list if that makes
        it full."""
        if self._seconds is not None and not self._values:
            self._until = time.monotonic() + self._seconds
        self._values.append(value)
        self._numbers += numbers
        return self.take() if self._count is not None and len(self._values) >= self._count else None

    def due(self) -> float:
        """Seconds until the list must be passed on."""
        return self._until - time.monotonic() if self._seconds is not None and self._values else 60.0

    def take(self) -> Gathered:
        """Return the values and their numbers, and become empty."""
        gathered = self._values, tuple(self._numbers)
        self._values, self._numbers = [], []
        return gathered
