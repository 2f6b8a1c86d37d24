"""R1: ten thousand calls under way at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any

from benchmarks import work
from benchmarks.contestants import Contestant, Entangle
from benchmarks.row import Line, Measured, check, row
from benchmarks.watch import proportional

CALLS = 10_000


class Slow(futures.Executor):
    """A service that answers none of its calls before it has all of them."""

    def __init__(self) -> None:
        self._calls: list[tuple[futures.Future[Any], Any, tuple[Any, ...]]] = []
        self.threads = 0
        self.memory = 0.0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        """Keep a call; the last one has all of them answered."""
        future: futures.Future[Any] = futures.Future()
        self._calls.append((future, fn, args))
        if len(self._calls) == CALLS:
            self.threads, self.memory = threading.active_count(), _megabytes()
            threading.Thread(target=self._answer).start()
        return future

    def _answer(self) -> None:
        for future, fn, args in self._calls:
            future.set_result(fn(*args))


def _megabytes() -> float:
    return proportional(os.getpid()) / 1e6


@row(
    "R1",
    "10,000 trivial calls under way at once, at a service",
    group="away",
    lines=[
        Line("threads of the caller", "threads", "threads", Entangle.name, 8, worst=True),
        Line("memory of the caller, more than before", "MB", "memory", Entangle.name, 64, worst=True),
        Line("to begin and to deliver one", "µs", "time", Entangle.name, None),
    ],
    note="through an executor that answers none before it has all",
)
def under_way(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Add one to each of ten thousand numbers, somewhere else."""
    from entangle.on import on

    for _ in rounds:
        service = Slow()
        call = on(service)(work.increment).map(range(CALLS))
        before = _megabytes()
        began = time.perf_counter()
        check(call(), list(range(1, CALLS + 1)))
        took = time.perf_counter() - began
        yield {"threads": service.threads, "memory": service.memory - before, "time": took / CALLS * 1e6}
