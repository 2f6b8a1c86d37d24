"""Tells a source which of its items have ended in a stream.

A source wants to know if its iteration has the method `acknowledging`. The stream calls it before
the first item; it gives a function of a number and of whether the item has ended well. Items are
numbered from 0, in the order in which the iteration gave them. The function is called once at most
for each item, from any thread, and must neither wait nor raise. `close` of the iteration says that
the stream is over: items of which nothing was said have not ended.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any


class Acknowledging:
    """Tells one iteration. An item may be at several places at once: with the consumer, and in
    windows. It has ended when it has left them all."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self._tell = values.acknowledging()
        self._lock = threading.Lock()
        #: Of items that have been in windows: at how many places they are. Others are at one.
        self._places: dict[int, int] = {}
        self._failed: set[int] = set()

    def entered(self, numbers: tuple[int, ...]) -> None:
        """Items are at one more place."""
        with self._lock:
            for number in numbers:
                self._places[number] = self._places.get(number, 1) + 1

    def left(self, numbers: tuple[int, ...], well: bool) -> None:
        """Items have left a place: the consumer has asked for the next one, or they have failed."""
        ended = []
        with self._lock:
            for number in numbers:
                if not well:
                    self._failed.add(number)
                places = self._places.pop(number, 1) - 1
                if places:
                    self._places[number] = places
                else:
                    ended.append((number, number not in self._failed))
                    self._failed.discard(number)
        for number, good in ended:
            self._tell(number, good)

    def over(self) -> None:
        """The stream is over."""
        close = getattr(self._values, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):
                close()
