"""What is printed in other places, as it is shown here: whole lines, each with its place and call path.

On a terminal, what could control that is written out, but for colours (`controls.py`). What goes to a file or a pipe stays as it
was printed. A worker process cannot know where its prints will end up, so it takes that for a terminal.
"""

from __future__ import annotations

import codecs
import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any

from entangle._remote.wire.controls import escaped
from entangle._worker.worker import here

#: Bytes of a line that has no end after which it is shown in pieces.
LONG = 64 << 10


class Shown:
    """Shows what comes of several streams and calls. `where` gives what stands before the lines of a call."""

    def __init__(self, where: Callable[[int], str]) -> None:
        self._where = where
        #: What was printed of lines that have no end yet, by stream and call.
        self._unfinished: dict[tuple[bytes, int], bytes] = {}
        self._guard = threading.RLock()

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
