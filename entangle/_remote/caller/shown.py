"""Shows here what is printed in other places: whole lines, each with its place and call path.

For a terminal, control characters other than colours are written out (`controls.py`). A file or a
pipe gets the text as it was printed. A worker process cannot know where its output ends up, so it
assumes a terminal.
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

#: An unfinished line of this size is shown in pieces (bytes).
LONG = 64 << 10
#: Owners of output that belongs to no call: an unknown thread; a program that writes to 1 or 2.
NOBODYS, PROGRAMS = 0, -1
#: What was printed to: stdout, stderr, and descriptor 1 by a program.
STREAMS = (b"\1", b"\2", b"\3")


class PrintingCall(Protocol):
    """What `Shown` needs of a call."""

    def path(self) -> str:
        """The call path, for what is printed there."""


class Shown:
    """Shows the output of one place. `calls` has the calls under way, by number."""

    def __init__(self, place: str, calls: Mapping[int, PrintingCall]) -> None:
        self._place = place
        self._calls = calls
        #: Unfinished lines, by stream and call.
        self._unfinished: dict[tuple[bytes, int], bytes] = {}
        self._guard = threading.RLock()

    def take(self, number: int, data: bytes) -> None:
        """Show the content of a PRINT message. Raises ProtocolError if it names no stream."""
        if data[:1] not in STREAMS:
            raise ProtocolError("a PRINT message names no stream")
        known = PROGRAMS if data[:1] == b"\3" else number if number in self._calls else NOBODYS
        self.show(data[:1], known, data[1:])

    def show(self, stream: bytes, number: int, data: bytes) -> None:
        """Show whole lines; keep the rest, which may end within a character."""
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
        """Show unfinished lines as they are: those of these calls, or all."""
        with self._guard:
            for stream, number in sorted(self._unfinished):
                if not numbers or number in numbers:
                    self._show_lines(stream, number, self._unfinished.pop((stream, number)))

    def finish_call(self, number: int) -> None:
        """A call is over: show its unfinished lines, and those that belong to no call."""
        self.finish(number, NOBODYS, PROGRAMS)

    def _where(self, number: int) -> str:
        """The start of each line of this call."""
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
        # `splitlines` ends lines at other characters as well. A return would overwrite our prefix.
        for line in text.split("\n"):
            lines += [part for part in line.split("\r") if part] or [""]
        if is_terminal(out):
            lines = [escaped(line) for line in lines]
        text = "".join(f"{where}{line}\n" for line in lines)
        with contextlib.suppress(Exception):
            try:
                out.write(text)
            except UnicodeEncodeError:  # an encoding with few characters
                code = out.encoding or "ascii"
                out.write(text.encode(code, "backslashreplace").decode(code))
            out.flush()


def is_terminal(out: Any) -> bool:
    """Whether what is written there is shown on a terminal, or may be."""
    worker = type(here).worker  # set for all threads of a worker process
    if worker is not None and worker.in_process:
        return True
    try:
        return bool(out.isatty())
    except Exception:  # any object may be in its place
        return False
