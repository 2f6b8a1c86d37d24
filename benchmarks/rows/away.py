"""R1 and RS1: ten thousand calls under way at once, at a service and by ssh."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

from benchmarks import work
from benchmarks.contestants import Contestant, Entangle
from benchmarks.distant import EntangleFarSsh
from benchmarks.row import Line, Measured, check, row
from benchmarks.watch import proportional

CALLS = 10_000
#: How many calls are timed one after the other.
ALONE = 20


class Slow(futures.Executor):
    """A service that answers none of its calls before it has all of them."""

    def __init__(self) -> None:
        self._calls: list[tuple[futures.Future[Any], Any, tuple[Any, ...]]] = []
        self.threads = 0
        self.memory = 0.0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        """Keep a call; when the last one comes, answer all."""
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
    """Add one to each of ten thousand numbers, at a service."""
    from entangle.on import on

    for _ in rounds:
        service = Slow()
        call = on(service)(work.increment).map(range(CALLS))
        before = _megabytes()
        began = time.perf_counter()
        check(call(), list(range(1, CALLS + 1)))
        took = time.perf_counter() - began
        yield {"threads": service.threads, "memory": service.memory - before, "time": took / CALLS * 1e6}


@row(
    "RS1",
    "10,000 trivial calls under way at once, by ssh to a host 50 ms away",
    group="ssh-away",
    lines=[
        Line("threads of the caller", "threads", "threads", EntangleFarSsh.name, 8, worst=True),
        Line("memory of the caller, more than before", "MB", "memory", EntangleFarSsh.name, 64, worst=True),
        Line("one, of the time of one after the other", "", "share", EntangleFarSsh.name, 0.02),
        Line("one after the other", "ms", "alone", EntangleFarSsh.name, None),
    ],
    note="target: 50 times as many as one after the other; a relay on loopback holds every byte for 25 ms",
)
def under_way_by_ssh(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Add one to each of ten thousand numbers, on another host."""
    increment = contestant.task(work.increment)
    check(contestant.value(increment(1)), 2)

    def at_once() -> None:
        check(contestant.value(increment.map(range(CALLS))), list(range(1, CALLS + 1)))  # type: ignore[attr-defined]

    for _ in rounds:
        alone = statistics.median(_timed(lambda: contestant.value(increment(1))) for _ in range(ALONE))
        watch = Watch()
        took = _timed(at_once)
        yield {**watch.most(), "alone": alone * 1e3, "share": took / CALLS / alone}


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class Watch:
    """Watches the threads and the memory of this process, and keeps the largest figures."""

    def __init__(self) -> None:
        self._before, self._memory, self._threads = _megabytes(), 0.0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self._threads = max(self._threads, threading.active_count() - 1)
            self._memory = max(self._memory, _megabytes() - self._before)

    def most(self) -> Measured:
        """Stop watching; gives the largest figures."""
        self._over.set()
        self._thread.join()
        return {"threads": float(self._threads), "memory": self._memory}
