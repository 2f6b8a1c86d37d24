"""What one worker of an engine tells callers of nodes: many items in few messages.

An item is a tuple; `engine_run.py` lists them (`News`). Who is told is a name that the engine
knows: a topic, an inbox.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from typing import Any

#: Seconds for which a worker collects what it tells: at first, and at most where much follows.
_COLLECTED, _LONGEST = 0.005, 0.05
#: So many bytes of prints are told at once: a body that prints much must not fill the memory.
_MUCH = 64 << 10


class WorkerNews(ABC):
    """Collects what one worker tells."""

    def __init__(self, worker: str) -> None:
        #: As records and errors name it.
        self.worker = worker
        self._guard = threading.Lock()
        self._waiting: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
        self._planned = False
        self._much = 0
        self._pause, self._flushed = _COLLECTED, 0.0

    def tell(self, to: str, run: str, item: tuple[Any, ...], at_once: bool, size: int = 0) -> None:
        """Tell the caller of a run an item. `size`: its bytes, where they may be many."""
        with self._guard:
            self._waiting.setdefault((to, run), []).append(item)
            self._much += size
            at_once = at_once or self._much > _MUCH
            planned, self._planned = self._planned, True
            pause = self._pause
        if at_once:
            self.flush_soon(0.0)
        elif not planned:
            self.flush_soon(pause)

    def flush(self) -> None:
        """Send what was collected."""
        with self._guard:
            waiting, self._waiting, self._planned, self._much = self._waiting, {}, False, 0
            now = time.monotonic()
            self._pause = min(_LONGEST, 2 * self._pause) if now - self._flushed < 1 else _COLLECTED
            self._flushed = now
        for (to, run), items in waiting.items():
            self.send(to, run, items)

    @abstractmethod
    def flush_soon(self, seconds: float) -> None:
        """Have `flush` called in so many seconds; now where that is 0."""

    @abstractmethod
    def send(self, to: str, run: str, items: list[tuple[Any, ...]]) -> None:
        """Send items to the caller of a run. Never raises."""
