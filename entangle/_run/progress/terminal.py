"""Progress on a terminal: a line for each run at the bottom, and what is printed stands above.

Nothing has to be restored when it ends, however it ends: the cursor is never hidden, and the lines
are drawn anew over themselves. What this process prints goes through `_through`, which takes the
lines away, prints, and draws them again. What workers print comes through this process while a line
is shown (`Run.take_prints`): written straight to the terminal, it would land inside a line.

No library does this here: they draw in a thread, beside which a fork is unsafe; or they send what
is printed to the stream of the bar, even where the user has sent stdout into a file.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from typing import Any

from entangle._run.progress.wording import DONE, View, last_line, line, spelled, width

#: Columns of the bar, at most and at least; without room for the least there is none.
WIDEST, NARROWEST = 24, 8
#: After something was printed, the lines are drawn at once if that is so many seconds ago.
_PAUSE = 0.05

_RED, _GREEN, _DIM, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[2m", "\x1b[0m"


class Terminal:
    """The lines at the bottom of the terminal that stderr leads to."""

    def __init__(self) -> None:
        #: The runs that have begun, and what is shown of those that have lasted long enough.
        self._runs: set[str] = set()
        self._views: dict[str, View] = {}
        #: Runs that were shown beside others: their last line says whose it is.
        self._beside: set[str] = set()
        self._guard = threading.RLock()
        #: How many lines are drawn now, when that was, and which.
        self._drawn = 0
        self._drawn_at = 0.0
        self._lines: list[str] = []
        #: Whether the cursor stands within a line that was printed. The lines wait for its end.
        self._within = False
        self._fd = -1
        self._encoding: str | None = "utf-8"
        self._watched: list[tuple[Any, Any]] = []

    @property
    def takes_prints(self) -> bool:
        """Whether what bodies print must pass through this process: it would land in a line."""
        try:
            return sys.stdout.isatty()
        except (AttributeError, ValueError):
            return False

    def begin(self, run: str) -> None:
        """A run has begun that may be shown: from now on we know where the cursor stands."""
        with self._guard:
            if not self._runs:
                self._open()
            self._runs.add(run)

    def show(self, view: View) -> None:
        """Draw a run that lasts. Does nothing while the terminal takes nothing."""
        if not self._guard.acquire(blocking=False):
            return  # something is being printed
        try:
            self._views[view.run] = view
            if len(self._views) > 1:
                self._beside.update(self._views)
            if not self._within and _takes(self._fd):
                self._draw()
        finally:
            self._guard.release()

    def ended(self, view: View) -> None:
        """Print the last line of a run, if it was shown."""
        with self._guard:
            if view.run in self._views and _takes(self._fd, 1.0):
                text = last_line(view, f"{view.name}: " if view.run in self._beside else "")
                self._erase()
                # An echo of what was typed, as of Ctrl-C, is drawn over.
                start = "\n" if self._within else "\r\x1b[K"
                self._write(start + (text if view.end == DONE else self._colored(_RED, text)) + "\n")
                self._within = False
            self.leave(view.run)

    def leave(self, run: str) -> None:
        """A run is over, or is no longer to be shown."""
        with self._guard:
            self._runs.discard(run)
            self._beside.discard(run)
            if self._views.pop(run, None) is not None and _takes(self._fd):
                self._erase()
                if self._views and not self._within:
                    self._draw()
            if not self._views:
                self._drawn = 0
            if not self._runs:
                self._close()

    def forget(self) -> None:
        """Leave the terminal to others: in a forked child."""
        self._guard = threading.RLock()
        self._runs.clear()
        self._views.clear()
        self._drawn = 0
        self._close()

    # Drawing --------------------------------------------------------------------------------------

    def _draw(self) -> None:
        columns, rows = _size(self._fd)
        views = list(self._views.values())
        most = max(1, rows - 1)
        lines = [self._line(view, columns - 1) for view in views[:most]]
        if len(views) > most:
            lines[-1] = f"… and {len(views) - most + 1} more runs"
        if lines == self._lines and self._drawn:
            return
        self._lines = lines
        text = f"\x1b[{self._drawn - 1}F" if self._drawn > 1 else "\r"
        self._write(text + "\x1b[K\n".join(lines) + "\x1b[K" + ("\x1b[J" if self._drawn > len(lines) else ""))
        self._drawn, self._drawn_at = len(lines), time.monotonic()

    def _erase(self) -> None:
        if self._drawn:
            self._write((f"\x1b[{self._drawn - 1}F" if self._drawn > 1 else "\r") + "\x1b[J")
        self._drawn = 0

    def _line(self, view: View, room: int) -> str:
        prefix = f"{view.name}: " if view.run in self._beside else ""
        text = line(view, room, prefix)
        if view.items is not None:
            return text
        bar = min(WIDEST, room - width(text) - 1)
        if bar < NARROWEST:
            return text
        full = int(view.share * bar)
        failed = view.sum("failed")
        return f"{self._colored(_RED if failed else _GREEN, '━' * full)}{self._colored(_DIM, '─' * (bar - full))} {text}"

    def _colored(self, code: str, text: str) -> str:
        return text if os.environ.get("NO_COLOR") or not text else f"{code}{text}{_PLAIN}"

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(self._fd, spelled(text, self._encoding).encode())

    # What is printed ------------------------------------------------------------------------------

    def _open(self) -> None:
        """Begin to draw on the terminal of stderr, if there still is one."""
        self._within = False
        try:
            self._fd, self._encoding = sys.stderr.fileno(), sys.stderr.encoding
        except (AttributeError, OSError, ValueError):
            self._fd = -1
        for stream in (sys.stderr, sys.stdout):
            # Of the stream itself, not of `sys`: handlers of `logging` hold streams for long.
            with contextlib.suppress(AttributeError, OSError, TypeError, ValueError):
                if stream.isatty() and "write" not in vars(stream):
                    stream.flush()
                    through = self._through(stream)
                    stream.write = through  # type: ignore[method-assign]
                    self._watched.append((stream, through))

    def _close(self) -> None:
        for stream, through in self._watched:
            if vars(stream).get("write") is through:
                del stream.write
        self._watched.clear()

    def _through(self, stream: Any) -> Any:
        write = stream.write

        def through(text: str) -> Any:
            with self._guard:
                self._erase()
                try:
                    return write(text)
                finally:
                    if self._views:
                        stream.flush()
                    if text:
                        self._within = not text.endswith("\n")
                    if not self._within and self._views and time.monotonic() - self._drawn_at > _PAUSE:
                        self._draw()

        return through


def _takes(fd: int, seconds: float = 0.0) -> bool:
    """Whether a write would not block: a terminal may be stopped (Ctrl-S), and the run must not."""
    if fd < 0:
        return False
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def _size(fd: int) -> tuple[int, int]:
    """The columns and the rows of a terminal."""
    columns = rows = 0
    with contextlib.suppress(OSError):
        columns, rows = os.get_terminal_size(fd)
    with contextlib.suppress(ValueError):
        columns = int(os.environ.get("COLUMNS", "")) or columns
    return columns or 80, rows or 24
