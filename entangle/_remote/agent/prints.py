"""What bodies print, on its way to the caller: whole lines, each with its call.

This comes with the agent's first modules, so it needs the standard library only.
"""

from __future__ import annotations

import codecs
import io
import threading
from typing import Any, Protocol


class PrintSender(Protocol):
    """What prints need of their agent."""

    def print(self, stream: int, call: int, data: bytes) -> None:
        """Send what was printed."""

    def under_way(self) -> bool:
        """Whether any call is under way."""

    def only_call(self) -> int:
        """The call under way, if there is exactly one; else 0."""


class _Line:
    """The unfinished line of one thread."""

    __slots__ = ("call", "text", "thread")

    def __init__(self) -> None:
        self.text = b""
        self.call = 0
        self.thread = threading.current_thread()


class Prints(io.TextIOBase):
    """`sys.stdout` and `sys.stderr` of bodies. Sends lines, each with the call of its thread.

    What is written to the descriptors 1 and 2 does not come here, but reaches the caller as well.
    """

    encoding = "utf-8"
    errors = "backslashreplace"
    line_buffering = True
    #: `fileno` knows no call, so what is written here does not go there (entangle._run.forwarding).
    apart = True

    def __init__(self, agent: PrintSender, stream: int) -> None:
        self._agent = agent
        self._stream = stream
        self.name = "<stdout>" if stream == 1 else "<stderr>"
        self._here = threading.local()
        self._guard = threading.RLock()  # a signal handler may print within a print
        self._begun: set[_Line] = set()
        self.buffer = _Raw(self)

    @property
    def call(self) -> int:
        """The call of this thread. For a thread that a body has started: the only call, or 0."""
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
        """Send this thread's unfinished line. The caller shows it with the rest of the line."""
        line: _Line | None = getattr(self._here, "line", None)
        if line is not None:
            self._send([line], b"")

    @property
    def unfinished(self) -> bool:
        """Whether any line has begun and not ended."""
        return bool(self._begun)

    def finish(self, call: int) -> None:
        """A call is over: send the unfinished lines of its threads, and of ended threads."""
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
        """As that of a file. Prints travel as lines of UTF-8 in any case."""
        unknown = sorted(settings.keys() - {"newline", "line_buffering", "write_through"})
        if unknown:
            raise TypeError(f"reconfigure() got an unexpected keyword argument {unknown[0]!r}")
        if encoding is not None:
            codecs.lookup(encoding)
        if errors is not None:
            codecs.lookup_error(errors)
            self.errors = errors

    def fileno(self) -> int:
        """The descriptor for programs: 1 is a pipe to the agent, 2 the stderr of the connection."""
        return self._stream

    def writable(self) -> bool:
        """Always."""
        return True

    def unlock(self) -> None:
        """In a forked child: a new lock, since the thread that held the old one may not be here."""
        self._guard = threading.RLock()
        self._begun.clear()


class _Raw(io.RawIOBase):
    """`sys.stdout.buffer`, for code that prints bytes."""

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
