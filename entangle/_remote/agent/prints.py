"""What bodies print, on its way to the caller: whole lines, each with the call that printed it.

It comes with the agent's first modules, so it needs the standard library only.
"""

from __future__ import annotations

import codecs
import io
import threading
from typing import Any, Protocol


class PrintSender(Protocol):
    """What prints need of the agent that they belong to."""

    def print(self, stream: int, call: int, data: bytes) -> None:
        """Send what was printed."""

    def under_way(self) -> bool:
        """Whether any call is."""

    def only_call(self) -> int:
        """The call under way, if there is exactly one."""


class _Line:
    """What one thread has written of a line that has no end yet."""

    __slots__ = ("call", "text", "thread")

    def __init__(self) -> None:
        self.text = b""
        self.call = 0
        self.thread = threading.current_thread()


class Prints(io.TextIOBase):
    """What a body's `print` writes to: sent line by line, with the call that the printing thread belongs to.

    It is not the stream of its descriptor, but a program to which that is given, and whatever writes to it by number, is heard too.
    """

    encoding = "utf-8"
    errors = "backslashreplace"
    line_buffering = True
    #: What is written here does not go to the descriptor of `fileno`, which knows of no call (entangle._run.forwarding).
    apart = True

    def __init__(self, agent: PrintSender, stream: int) -> None:
        self._agent = agent
        self._stream = stream
        self.name = "<stdout>" if stream == 1 else "<stderr>"
        self._here = threading.local()
        self._guard = threading.RLock()  # a signal's handler prints where its thread was printing
        self._begun: set[_Line] = set()
        self.buffer = _Raw(self)

    @property
    def call(self) -> int:
        """The call that this thread runs; of threads that a body has started, the only one under way; 0 for none that we know of."""
        number: int = getattr(self._here, "call", 0)
        return number or self._agent.only_call()

    @call.setter
    def call(self, number: int) -> None:
        self._here.call = number

    def write(self, text: str) -> int:
        """Send whole lines; keep the rest."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.write_bytes(text.encode("utf-8", self.errors))
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Send whole lines; keep the rest, which may end within a character."""
        line: _Line | None = getattr(self._here, "line", None)
        if line is None:
            line = self._here.line = _Line()
        call = self.call
        with self._guard:
            lines, end, rest = (line.text + data).rpartition(b"\n")
            if len(rest) > 1 << 16:
                lines, end, rest = lines + end, rest, b""
            line.text, line.call = rest, call
            (self._begun.add if rest else self._begun.discard)(line)
        if end:
            self._agent.print(self._stream, call, lines + end)

    def flush(self) -> None:
        """Send what this thread has written of a line; it is shown with the rest of it."""
        line: _Line | None = getattr(self._here, "line", None)
        if line is not None:
            self._send([line], b"")

    def finish(self, call: int) -> None:
        """A call is over: send the lines that will get no end, those of its threads and of threads that have ended."""
        with self._guard:
            last = not self._agent.under_way()
            lines = [line for line in self._begun if last or line.call == call or not line.thread.is_alive()]
        self._send(lines, b"\n")

    def _send(self, lines: list[_Line], end: bytes) -> None:
        for line in lines:
            with self._guard:
                text, line.text = line.text, b""
                self._begun.discard(line)
            if text:
                self._agent.print(self._stream, line.call, text + end)

    def reconfigure(self, *, encoding: str | None = None, errors: str | None = None, **settings: Any) -> None:
        """As that of a file; but what is printed travels as UTF-8, and by lines, in any case."""
        unknown = sorted(settings.keys() - {"newline", "line_buffering", "write_through"})
        if unknown:
            raise TypeError(f"reconfigure() got an unexpected keyword argument {unknown[0]!r}")
        if encoding is not None:
            codecs.lookup(encoding)
        if errors is not None:
            codecs.lookup_error(errors)
            self.errors = errors

    def fileno(self) -> int:
        """The descriptor for a program's own prints: 1 is a pipe to the agent, 2 is where the agent's last words would come out."""
        return self._stream

    def writable(self) -> bool:
        """It is."""
        return True

    def unlock(self) -> None:
        """In a forked child: whoever held the lock is not there."""
        self._guard = threading.RLock()
        self._begun.clear()


class _Raw(io.RawIOBase):
    """`sys.stdout.buffer`, for those who print bytes."""

    def __init__(self, prints: Prints) -> None:
        self._prints = prints

    def write(self, data: Any) -> int:
        data = memoryview(data).tobytes()
        self._prints.write_bytes(data)
        return len(data)

    def flush(self) -> None:
        self._prints.flush()

    def fileno(self) -> int:
        return self._prints.fileno()

    def writable(self) -> bool:
        return True
