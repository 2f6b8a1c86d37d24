"""The stderr of the program at our end of a stream: shown as it comes, its tail kept for errors."""

from __future__ import annotations

import time

from entangle._remote.caller.shown import PROGRAMS, Shown
from entangle._remote.wire.byte_stream import read_now
from entangle._remote.wire.controls import escaped

#: Size of the tail (bytes).
TAIL = 4096


class Stderr:
    """The program's stderr. It is shown once the agent has said hello; before, errors quote it."""

    def __init__(self, fd: int, shown: Shown) -> None:
        #: Where it is read from; -1 if there is none, or no more.
        self.fd = fd
        self.visible = False
        self._shown = shown
        self._tail = bytearray()

    def read(self) -> bool:
        """Read what has come. Whether there was something."""
        data = read_now(self.fd, 65536) if self.fd >= 0 else None
        if data == b"":
            self.fd = -1
        if not data:
            return False
        self._tail += data
        del self._tail[:-TAIL]
        if self.visible:
            self._shown.show(b"\2", PROGRAMS, data)
        return True

    def read_last(self) -> None:
        """Read what is left; if that has no end, enough."""
        until = time.monotonic() + 0.5
        while self.read() and time.monotonic() < until:
            pass

    def tail(self, more: bytes = b"") -> str:
        """The tail, and more, made safe for the terminal."""
        return escaped((bytes(self._tail) + more).decode("utf-8", "replace"))
