"""Progress in a log: a line now and then, without control codes."""

from __future__ import annotations

import contextlib
import select
import sys
from dataclasses import dataclass

from entangle._run.progress.wording import View, clock, last_line, line, spelled

#: A line is written after so many seconds; sooner after so large a part of the run, or where nodes
#: wait for another reason, but not before so many seconds.
SECONDS, PART, SOONEST = 10.0, 0.1, 2.0
#: Columns of a line, at most.
ROOM = 160


@dataclass
class _Last:
    seconds: float
    share: float
    #: Why nodes wait at other places.
    waits: frozenset[str]


class Log:
    """Lines on a stderr that is no terminal: a file, a pipe, the log of a service."""

    def __init__(self) -> None:
        self._last: dict[str, _Last] = {}
        self._beside: set[str] = set()

    @property
    def takes_prints(self) -> bool:
        """What bodies print may go where it goes."""
        return False

    def begin(self, run: str) -> None:
        """Nothing to do yet."""

    def leave(self, run: str) -> None:
        """Nothing is shown of it any more."""
        self._last.pop(run, None)

    def show(self, view: View) -> None:
        """Write a line, if it is time for one."""
        last = self._last.get(view.run)
        if last is not None:
            passed = view.seconds - last.seconds
            far = view.items is None and view.share - last.share >= PART
            if passed < SOONEST or (passed < SECONDS and not far and last.waits >= view.waits.keys()):
                return
        self._last[view.run] = _Last(view.seconds, view.share, frozenset(view.waits))
        if len(self._last) > 1:
            self._beside.update(self._last)
        _write(f"{clock(view.seconds)} {line(view, ROOM, self._prefix(view))}")

    def ended(self, view: View) -> None:
        """Write the last line of a run."""
        if self._last.pop(view.run, None) is not None:
            _write(last_line(view, self._prefix(view)))
            self._beside.discard(view.run)

    def forget(self) -> None:
        """In a forked child: write nothing more to the log."""
        self._last.clear()

    def _prefix(self, view: View) -> str:
        return f"{view.name}: " if view.run in self._beside else ""


def _write(text: str) -> None:
    """Write a line, unless nobody reads the other end and the run would have to wait."""
    stream = sys.stderr
    with contextlib.suppress(Exception):  # no stderr, or a broken one; the run goes on
        with contextlib.suppress(OSError, ValueError):
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
            if not poll.poll(1000):
                return
        stream.write(spelled(text, getattr(stream, "encoding", None) or "utf-8") + "\n")
        stream.flush()
