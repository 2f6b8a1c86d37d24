"""One pass through a source, which another thread can stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from entangle._shared.tracebacks import hide

T = TypeVar("T")


class Iteration(Iterator[T]):
    """One pass through a source; another thread can stop it."""

    #: A stream that ends calls `stop`, and does not wait for the next value.
    stops_at_once = True

    def __init__(self, values: Callable[[threading.Event], Iterator[T]]) -> None:
        self._stopped = threading.Event()
        self._values = values(self._stopped)

    def __next__(self) -> T:
        try:
            return next(self._values)
        except StopIteration:
            raise
        except BaseException as error:
            hide(error)
            raise

    def stop(self) -> None:
        """End it: a thread that waits for its next value gets StopIteration at once."""
        self._stopped.set()

    def close(self) -> None:
        """Close what it has open."""
        close = getattr(self._values, "close", None)
        if close is not None:
            close()
