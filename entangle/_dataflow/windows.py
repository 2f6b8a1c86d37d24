"""What the windows of a stream hold at a time."""

from __future__ import annotations

import time
from typing import Any

from entangle._dataflow.node import Window


class Gathering:
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
