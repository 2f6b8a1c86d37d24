"""Shows here what is printed in other places: whole lines, each with its place and call path."""

from __future__ import annotations

import codecs
import threading
from collections.abc import Mapping
from typing import Protocol

from entangle._remote.wire.printed_lines import show_lines
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
        show_lines(self._where(number), data, stream == b"\2")
