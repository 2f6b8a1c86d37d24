"""What a process does after the last of its runs: what belongs to runs, and not to one, ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from entangle._run import ObservedRun, observers


class LastRun:
    """Counts the runs of this process once it watches, and calls `then` after the last of them."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # In a forked child: a new lock, and no runs.
        self._runs: set[int] = set()
        self._guard = threading.Lock()

    def watch(self) -> None:
        """Count the runs that begin from now on."""
        if self not in observers:
            observers.append(self)

    def started(self, run: ObservedRun) -> None:
        """One more."""
        with self._guard:
            self._runs.add(id(run))

    def looked(self, run: ObservedRun) -> None:
        """Nothing to do."""

    def ended(self, run: ObservedRun) -> None:
        """One less. Runs that began before it watched are not counted."""
        with self._guard:
            self._runs.discard(id(run))
            if self._runs:
                return
        self._then()
