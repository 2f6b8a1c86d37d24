"""Pseudo-terminals: a script runs on one, and a `Screen` shows what a person would see there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import unicodedata
from collections.abc import Callable

from .callers import Caller

_PART = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n])", re.DOTALL)


class Screen:
    """What a terminal of that width shows, including what has scrolled out of sight.

    It knows the control codes that programs use to redraw lines; any other is an error.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0

    def feed(self, text: str) -> Screen:
        """Write a string to the screen."""
        at = 0
        while at < len(text):
            part = _PART.match(text, at)
            assert part is not None, repr(text[at : at + 20])
            at = part.end()
            number, code, move, char = part.groups()
            if code:
                self._obey(code, int(number or 0) if code != "m" else 0)
            elif move == "\r":
                self.column = 0
            elif move == "\n":
                self._down()
            else:
                self._put(char)
        return self

    def _obey(self, code: str, number: int) -> None:
        line = self.rows[self.row]
        if code == "K":
            del line[self.column :]
        elif code == "J":
            del line[self.column :]
            del self.rows[self.row + 1 :]
        elif code == "F":
            assert 0 < number <= self.row, "moved above the first line"
            self.row, self.column = self.row - number, 0
        else:
            assert code == "m", f"an unknown control code: {code}"

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append([])

    def _put(self, char: str) -> None:
        wide = unicodedata.east_asian_width(char) in "WF"
        if self.column + wide >= self.columns:
            self._down()
            self.column = 0
        line = self.rows[self.row]
        line += " " * (self.column - len(line))
        line[self.column : self.column + 1 + wide] = [char, ""] if wide else [char]
        self.column += 1 + wide

    @property
    def lines(self) -> list[str]:
        """The lines, without the empty ones at the end."""
        lines = ["".join(row).rstrip() for row in self.rows]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def on_a_terminal(caller: Caller, columns: int = 120, seen: Callable[[str], object] | None = None, **streams: int) -> str:
    """Run a script on a terminal of its own, check that it succeeds, and return its output.

    `streams` do not go to the terminal. `seen` is called with all output so far whenever more
    arrives; bytes that it returns are typed at the terminal.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("hhhh", 24, columns, 0, 0))
    try:
        caller.environment.setdefault("TERM", "xterm-256color")
        caller.environment.pop("COLUMNS", None)
        caller.environment.pop("NO_COLOR", None)
        caller.start(**{"stdin": theirs, "stdout": theirs, "stderr": theirs, **streams})
        os.close(theirs)
        shown = b""
        while True:
            if select.select([ours], [], [], 30)[0]:
                try:
                    part = os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
                if not part:
                    break
                shown += part
                typed = seen(shown.decode(errors="replace")) if seen is not None else None
                if isinstance(typed, bytes):
                    os.write(ours, typed)
            elif caller.process.poll() is not None:
                break
        assert caller.process.wait(30) == 0, shown.decode()
    finally:
        caller.stop()
        os.close(ours)
    return shown.decode()


def plain(shown: str) -> str:
    """Return the output without control codes."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
