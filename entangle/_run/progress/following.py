"""Which runs are shown, and when to look.

Shown are runs that no other run has called. What they call in this process, such as the graph that
a workflow makes, counts with them; what bodies in worker processes call does not.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from entangle._run import ObservedRun, observers
from entangle._run.progress.log import Log
from entangle._run.progress.tally import Count, Tally, printable
from entangle._run.progress.terminal import Terminal
from entangle._run.progress.wording import CANCELLED, DONE, FAILED, INTERRUPTED, TERMINATED, TIMED_OUT, View
from entangle._shared.block import block
from entangle._shared.interrupts import Terminated
from entangle._shared.table import FAILED_NODE
from entangle.errors import RunCancelledError

#: Runs shorter than this (seconds) show nothing.
SILENT = 1.0
#: Seconds between two looks at the tables of a run; more where a look takes long.
EVERY = 0.1
#: A look may take this part of the time.
_PART = 0.02
#: Over how many seconds it is averaged how many items of a stream come out.
_RECENT = 5.0


class Display(Protocol):
    """Where progress is shown. It is told of a run in the thread that supervises it, and must not
    wait."""

    @property
    def takes_prints(self) -> bool:
        """Whether what bodies print must pass through this process."""

    def begin(self, run: str, /) -> None:
        """A run has begun that may be shown."""

    def show(self, view: View, /) -> None:
        """A run that lasts."""

    def ended(self, view: View, /) -> None:
        """How a run has ended."""

    def leave(self, run: str, /) -> None:
        """Show it no longer, without a last line."""

    def forget(self) -> None:
        """This is a forked child: nothing is shown any more."""


class _Shown:
    """A run that is shown, with the runs inside it in this process."""

    def __init__(self, run: ObservedRun, place: Display) -> None:
        self.place = place
        self.began = time.monotonic()
        self.due = self.began + SILENT
        self.run = run
        self.inside: dict[str, ObservedRun] = {}
        self._tallies: dict[str, Tally] = {}
        #: What runs inside it had done that are over, by task name.
        self._past: dict[str, Count] = {}
        self._rate, self._items, self._counted_at = 0.0, 0, self.began

    def view(self, end: str | None = None) -> View:
        """Look at it, and at the runs inside it."""
        run = self.run
        view = View(run.id, run.name, [], time.monotonic() - self.began, end=end)
        if run.many and run.history is not None:
            view.items = run.history.out()
            view.rate = self._rate_of(view.items)
        waiting: dict[str, set[int]] = {}
        for inner in self.inside.values():
            if inner.parent is not None:
                waiting.setdefault(inner.parent[0], set()).add(inner.parent[1])
        counts: dict[str, Count] = {}
        for one in (run, *self.inside.values()):
            tally = self._look(one)
            view.taken += len(one.taken)
            if end is not None:
                tally.close()
            else:
                view.left.add(tally.left(waiting.get(one.id, set())))
                view.at_once += tally.at_once
                if one.whereabouts is not None:
                    for told in one.whereabouts.counts:
                        if told.why:
                            why = printable(told.why)
                            view.waits[why] = view.waits.get(why, 0) + told.nodes
            for count in tally.counts:
                _add(counts, count)
        view.at_once -= len(self.inside)
        for count in self._past.values():
            _add(counts, count)
        view.counts = list(counts.values())
        if end == FAILED:
            node = run.table.header[FAILED_NODE] if run.table is not None else -1
            view.failed_in = printable(run.flow.name(node)) if node >= 0 else ", ".join(count.name for count in view.counts if count.failed)
        return view

    def close(self, run: ObservedRun) -> None:
        """A run inside it is over: keep what it has done."""
        tally = self._look(run)
        tally.close()
        for count in tally.counts:
            count.running = 0
            _add(self._past, count)
        del self.inside[run.id], self._tallies[run.id]

    def _look(self, run: ObservedRun) -> Tally:
        tally = self._tallies.get(run.id)
        if tally is None:
            tally = self._tallies[run.id] = Tally(run.flow, run.history, run.many)
        if run.table is not None:
            tally.look(run.table, run.whereabouts.waiting if run.whereabouts is not None else frozenset())
        return tally

    def _rate_of(self, items: int) -> float:
        now = time.monotonic()
        passed = now - self._counted_at
        if passed > 0:
            share = 1.0 if self._counted_at == self.began else min(1.0, passed / _RECENT)
            self._rate += share * ((items - self._items) / passed - self._rate)
            self._items, self._counted_at = items, now
        return self._rate


def _add(counts: dict[str, Count], count: Count) -> None:
    known = counts.get(count.name)
    if known is None:
        known = counts[count.name] = Count(count.name)
    known.add(count)


class _Following:
    """The runs of this process that are shown. While there are any, it is told of the runs that
    they call."""

    def __init__(self) -> None:
        self._guard = threading.RLock()
        #: Each run that is shown or lies inside one, with the one that is shown.
        self._by_run: dict[str, _Shown] = {}

    def begin(self, run: ObservedRun, place: Display) -> None:
        """Show a run, unless it is known already."""
        with self._guard:
            self.started(run)
            if run.id in self._by_run or run.nested:
                return
            if not self._by_run:
                observers.append(self)
            self._by_run[run.id] = _Shown(run, place)
            place.begin(run.id)
        if place.takes_prints:
            run.take_prints()

    def started(self, run: ObservedRun) -> None:
        """A run begins, inside one that is shown or not."""
        if run.nested or run.parent is None:
            return
        with self._guard:
            shown = self._by_run.get(run.parent[0])
            if shown is not None and run.id not in self._by_run:
                self._by_run[run.id] = shown
                shown.inside[run.id] = run
        if shown is not None and shown.place.takes_prints:
            run.take_prints()

    def looked(self, run: ObservedRun) -> None:
        """Show the run, if it is time."""
        shown = self._by_run.get(run.id)
        if shown is None or time.monotonic() < shown.due or not self._guard.acquire(blocking=False):
            return
        try:
            if self._by_run.get(run.id) is shown:
                began = time.monotonic()
                shown.place.show(shown.view())
                now = time.monotonic()
                shown.due = now + max(EVERY, (now - began) / _PART)
        finally:
            self._guard.release()

    def ended(self, run: ObservedRun) -> None:
        """Show how the run has ended."""
        if run.id not in self._by_run:
            return
        with self._guard:
            shown = self.leave(run)
            if shown is None:
                return
            if shown.run is run:
                shown.place.ended(shown.view(_end_of(run)))
            else:
                shown.close(run)

    def leave(self, run: ObservedRun) -> _Shown | None:
        """Follow a run no longer. Gives the one with which it was shown, if it was."""
        with self._guard:
            shown = self._by_run.pop(run.id, None)
            if shown is not None and shown.run is run:
                for inner in list(shown.inside):
                    self._by_run.pop(inner, None)
                if not self._by_run:
                    observers.remove(self)
            return shown

    def forget(self) -> None:
        """This is a forked child: its runs are its own."""
        self._guard = threading.RLock()
        if self._by_run:
            observers.remove(self)
        for shown in self._by_run.values():
            shown.place.forget()
        self._by_run.clear()


def _end_of(run: ObservedRun) -> str:
    reason = run.reason()
    if reason is None:
        return DONE
    if isinstance(reason, RunCancelledError):
        return CANCELLED
    if isinstance(reason, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(reason, (Terminated, SystemExit)):
        return TERMINATED
    return TIMED_OUT if type(reason).__name__ == "RunTimeoutException" else FAILED


_following = _Following()
_terminal, _log = Terminal(), Log()
os.register_at_fork(after_in_child=_following.forget)


def _place() -> Display:
    """Where progress is shown, as seen from the thread that asks for it."""
    if "IPython" in sys.modules or "marimo" in sys.modules:
        from entangle._run.progress.notebook import notebook

        found = notebook()
        if found is not None:
            return found
    try:
        terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    except (AttributeError, ValueError):
        terminal = False
    return _terminal if terminal else _log


class Bar:
    """An observer that shows one run."""

    def __init__(self) -> None:
        self._place = _place()

    def started(self, run: ObservedRun) -> None:
        """Follow the run; nothing is shown yet."""
        _following.begin(run, self._place)

    def looked(self, run: ObservedRun) -> None:
        """Show it, if it is time."""
        _following.looked(run)

    def ended(self, run: ObservedRun) -> None:
        """Show how it has ended."""
        _following.ended(run)


class NoBar:
    """An observer that keeps one run from being shown, in a block that shows all."""

    def started(self, run: ObservedRun) -> None:
        """Follow it no longer."""
        shown = _following.leave(run)
        if shown is not None:
            shown.place.leave(run.id)

    def looked(self, run: ObservedRun) -> None:
        """Nothing to do."""

    def ended(self, run: ObservedRun) -> None:
        """Nothing to do."""


@block
def showing() -> Iterator[None]:
    """Show the progress of every run of the block."""
    bar = Bar()
    observers.append(bar)
    try:
        yield
    finally:
        observers.remove(bar)
