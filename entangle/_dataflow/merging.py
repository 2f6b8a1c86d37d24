"""Several sources at once, their values as they come."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from entangle._dataflow.iteration import Iteration
from entangle._shared.tracebacks import passes_on

T = TypeVar("T")


class Merging(Iteration[T]):
    """One pass through several sources. Those that want to know which items have ended are told."""

    def __init__(self, sources: tuple[Iterable[T], ...]) -> None:
        # Not with methods of this object: it has to end when it is dropped.
        self._state = _Merged(sources)
        super().__init__(functools.partial(_merged, self._state))

    def __getattr__(self, name: str) -> Any:
        # A stream looks for it. It is here only if one of the sources has it: others cost nothing.
        if name == "acknowledging":
            self._state.begin()
            if any(self._state.asked):
                return self._state.listen
        raise AttributeError(name)

    def close(self) -> None:
        """Close the sources: what has not ended in them is told to have not."""
        self.stop()
        super().close()
        for one in self._state.iterations or ():
            _end(one, "stop", "close")


class _Merged:
    """What is known of sources that are merged."""

    def __init__(self, sources: tuple[Iterable[Any], ...]) -> None:
        self._sources = sources
        self.iterations: list[Iterator[Any]] | None = None
        #: By source: what to tell of its items, and how many have come. None where it does not ask.
        self.asked: list[tuple[Callable[[int, bool], None], Iterator[int]] | None] = []
        #: Of items that have not ended: what to tell of them, and their numbers there.
        self.under_way: dict[int, tuple[Callable[[int, bool], None], int]] = {}
        self.listened = False

    def begin(self) -> list[Iterator[Any]]:
        """Iterate over each source; stopping these iterations leaves others alone."""
        if self.iterations is None:
            self.iterations = [iter(source) for source in self._sources]
            for one in self.iterations:
                listens = getattr(one, "acknowledging", None)
                self.asked.append(None if listens is None else (listens(), itertools.count()))
        return self.iterations

    def listen(self) -> Callable[[int, bool], None]:
        """A stream tells what has ended."""
        self.listened = True
        return self.ended

    def ended(self, number: int, well: bool) -> None:
        """Pass it on to the source."""
        found = self.under_way.pop(number, None)
        if found is not None:
            found[0](found[1], well)


@passes_on
def _merged(state: _Merged, stopped: threading.Event) -> Iterator[Any]:
    changed = threading.Condition()
    come: collections.deque[tuple[int, Any]] = collections.deque()
    going = state.begin()
    asked = state.asked if any(state.asked) else None
    left, count = len(going), 0

    def pull(at: int, source: Iterator[Any]) -> None:
        nonlocal left
        try:
            for value in source:
                with changed:
                    changed.wait_for(lambda: len(come) < len(going) or stopped.is_set())
                    if stopped.is_set():
                        return
                    come.append((at, value))
                    changed.notify_all()
        except BaseException as error:
            with changed:
                come.append((-1, error))
        finally:
            with changed:
                left -= 1
                changed.notify_all()

    threads = [threading.Thread(target=pull, args=one, name="entangle-merge", daemon=True) for one in enumerate(going)]
    for thread in threads:
        thread.start()
    try:
        while True:
            with changed:
                while not come and left and not stopped.is_set():
                    changed.wait(0.05)
                if stopped.is_set() or not come:
                    return
                at, value = come.popleft()
                changed.notify_all()
            if at < 0:
                raise value
            if asked is not None and (one := asked[at]) is not None:
                state.under_way[count] = one[0], next(one[1])
            yield value
            if not state.listened:
                state.ended(count, True)
            count += 1
    finally:
        over = stopped.is_set() or not state.listened
        stopped.set()
        with changed:
            changed.notify_all()
        for source in going:
            # Where one is told of ends, the stream closes it when it is over itself.
            _end(source, *(("stop", "close") if over or not hasattr(source, "acknowledging") else ("stop",)))
        for thread in threads:
            thread.join(0.5)


def _end(iteration: object, *names: str) -> None:
    for name in names:
        end = getattr(iteration, name, None)
        if end is not None:
            # A generator that is running refuses to close, and ends by itself.
            with contextlib.suppress(Exception):
                end()
