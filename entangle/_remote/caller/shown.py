"""What is printed in other places, as it is shown here: whole lines, each with its place and call path.

On a terminal, what could control that is written out, but for colours (`controls.py`). What goes to a file or a pipe stays as it
was printed. A worker process cannot know where its prints will end up, so it takes that for a terminal.
"""

from __future__ import annotations

import codecs
import contextlib
import sys
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from entangle._remote.wire.controls import escaped
from entangle._worker.worker import here
from entangle.errors import ProtocolError

#: Bytes of a line that has no end after which it is shown in pieces.
LONG = 64 << 10
#: Whose a printed line is where it is no call's: of a thread that nobody knows; written to descriptor 1 or 2.
NOBODYS, PROGRAMS = 0, -1
#: What is printed to: stdout, stderr, and descriptor 1 by something else than Python's own print.
STREAMS = (b"\1", b"\2", b"\3")


class PrintingCall(Protocol):
    """A call under way, as far as what it prints is concerned."""

    def path(self) -> str:
        """The call path, for what is printed there."""


class Shown:
    """Shows what comes of several streams and calls of one place. `calls` are those under way, by number."""

    def __init__(self, place: str, calls: Mapping[int, PrintingCall]) -> None:
        self._place = place
        self._calls = calls
        #: What was printed of lines that have no end yet, by stream and call.
        self._unfinished: dict[tuple[bytes, int], bytes] = {}
        self._guard = threading.RLock()

    def take(self, number: int, data: bytes) -> None:
        """Show what a PRINT message brings. Raises ProtocolError for one of no stream."""
        if data[:1] not in STREAMS:
            raise ProtocolError("a print of no stream")
        known = PROGRAMS if data[:1] == b"\3" else number if number in self._calls else NOBODYS
        self.show(data[:1], known, data[1:])

    def show(self, stream: bytes, number: int, data: bytes) -> None:
        """Show whole lines; keep the rest, which may be half a word or half a character."""
        with self._guard:
            data = self._unfinished.pop((stream, number), b"") + data
            lines, end, rest = data.rpartition(b"\n")
            if len(rest) > LONG:
                _, whole = codecs.utf_8_decode(data, "replace", False)
                lines, end, rest = data[:whole], b"\n", data[whole:]
            if rest:
                self._unfinished[stream, number] = rest
            if end:
                self._show_lines(stream, number, lines)

    def finish(self, *numbers: int) -> None:
        """Show lines that have no end, and will not get one: those of these calls, or all."""
        with self._guard:
            for stream, number in sorted(self._unfinished):
                if not numbers or number in numbers:
                    self._show_lines(stream, number, self._unfinished.pop((stream, number)))

    def finish_call(self, number: int) -> None:
        """A call is over: show the lines of it, and of no call, that have no end."""
        self.finish(number, NOBODYS, PROGRAMS)

    def _where(self, number: int) -> str:
        """What stands before the lines that a call has printed."""
        calls = list(self._calls.values())
        if number == PROGRAMS:
            call = calls[0] if len(calls) == 1 else None
        else:
            call = self._calls.get(number)
        return f"[{self._place} {call.path()}] " if call is not None else f"[{self._place}] "

    def _show_lines(self, stream: bytes, number: int, data: bytes) -> None:
        where = self._where(number)
        out = sys.stderr if stream == b"\2" else sys.stdout
        text = data.decode("utf-8", "replace")
        lines: list[str] = []
        # By hand: what else ends a line for `splitlines` is part of what was printed. A return would write over our words.
        for line in text.split("\n"):
            lines += [part for part in line.split("\r") if part] or [""]
        if is_terminal(out):
            lines = [escaped(line) for line in lines]
        text = "".join(f"{where}{line}\n" for line in lines)
        with contextlib.suppress(Exception):
            try:
                out.write(text)
            except UnicodeEncodeError:  # a terminal of few characters
                code = out.encoding or "ascii"
                out.write(text.encode(code, "backslashreplace").decode(code))
            out.flush()


def is_terminal(out: Any) -> bool:
    """Whether what is written there is, or may be, seen on a terminal."""
    worker = type(here).worker  # set for all threads of a worker process
    if worker is not None and worker.in_process:
        return True
    try:
        return bool(out.isatty())
    except Exception:  # somebody's own stream
        return False
