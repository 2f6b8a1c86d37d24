"""What the bodies of a run print, kept beside its table for records and for those who look on.

`sys.stdout` and `sys.stderr` of a worker process write on as ever. What is written is appended to a
file of the run's directory as well, with the node whose body runs: a line at a time, so a killed
body's lines are there. Of a body that prints much, the first and the last are kept. What programs
print that a body starts is not Python's, and not in here; nor is what threads of the caller print.

::

    node     4 bytes         then as many bytes of UTF-8 as `length` says
    length   4 bytes         0: a piece of an earlier line of this node was left out here
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from typing import Any

from entangle._shared.spare_files import open_file

#: The name of the file in the run's directory, and the most bytes that it may have.
NAME, MOST = "prints", 8 << 20
#: The most bytes of a body's first lines, and of its last lines, that a worker keeps.
FIRST, LAST = 16 << 10, 8 << 10
#: The most bytes that a record takes of one node, and of all nodes of a run.
OF_NODE, OF_RUN = 32 << 10, 512 << 10

_HEAD = struct.Struct("<ii")
#: An unfinished line that is longer is written in pieces (characters).
_LONG_LINE = 4096


class Printout:
    """Keeps what one worker process prints. `node` tells whose body runs."""

    def __init__(self, directory: str, node: Callable[[], int]) -> None:
        self._node = node
        self._path = os.path.join(directory, NAME)
        self._fd = -1  # opened when something is printed
        self._of = -1
        self._pieces: list[str] = []
        self._kept = self._waiting = 0
        self._last = bytearray()
        self._cut = False

    def listen(self, stream: Any) -> None:
        """Keep what is written to a text stream from now on."""
        write: Callable[[str], int] = unheard(stream)

        def kept(text: str) -> int:
            count = write(text)
            # Whatever goes wrong here must not reach the body.
            with contextlib.suppress(Exception):
                self._keep(text)
            return count

        with contextlib.suppress(AttributeError, TypeError):  # a stream of the user's own, with slots
            kept.unheard = write  # type: ignore[attr-defined]
            stream.write = kept

    def _keep(self, text: str) -> None:
        node = self._node()
        if node != self._of:
            self.settle()
            self._of, self._kept = node, 0
        if node < 0:
            return
        self._pieces.append(text)
        self._waiting += len(text)
        if "\n" in text or self._waiting > _LONG_LINE:
            self._write_lines()

    def _write_lines(self) -> None:
        pieces, self._pieces, self._waiting = self._pieces, [], 0
        if not pieces:
            return
        line = "".join(pieces).encode("utf-8", "backslashreplace")
        room = FIRST - self._kept
        if len(line) > room:
            self._last += line[max(0, room) :]
            if len(self._last) > 2 * LAST:
                del self._last[:-LAST]
                self._cut = True
            line = line[: max(0, room)]
        if line:
            self._kept += len(line)
            self._append(line)

    def _append(self, body: bytes) -> None:
        if self._fd < 0:
            self._fd = open_file(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if os.fstat(self._fd).st_size < MOST:
            # One write to a file opened for appending: lines of several processes do not mix.
            os.write(self._fd, _HEAD.pack(self._of, len(body)) + body)

    def settle(self) -> None:
        """Write down what has waited: an unfinished line, and the last lines of a body that has
        printed much."""
        if self._pieces:
            self._write_lines()
        if self._last:
            cut, last = len(self._last) > LAST, bytes(self._last[-LAST:])
            self._last.clear()
            with contextlib.suppress(OSError):
                if self._cut or cut:
                    self._append(b"")
                self._append(last)
            self._cut = False
            self._kept = FIRST

    def close(self) -> None:
        """Close the file. What is printed from now on is not kept."""
        self.settle()
        # The worker has this object: in a cycle, arguments of its run would stay for a while.
        self._node = _nobody
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _nobody() -> int:
    return -1


def unheard(stream: Any) -> Callable[[str], int]:
    """The `write` of a text stream under which nothing is kept: for what another run's workers have
    printed, which that run keeps."""
    write: Callable[[str], int] = stream.write
    return getattr(write, "unheard", write)


def gather(directory: str, node: int | None = None) -> dict[int, str]:
    """What the bodies of a run have printed so far, by node, or what one of them has. Of what would
    be more than OF_NODE and OF_RUN bytes, the beginnings."""
    found: dict[int, bytearray] = {}
    try:
        with open(os.open(os.path.join(directory, NAME), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            whole = memoryview(file.read(2 * MOST))
    except OSError:
        return {}
    at = taken = 0
    while at + _HEAD.size <= len(whole):
        of, size = _HEAD.unpack_from(whole, at)
        at += _HEAD.size
        if size < 0 or of < 0:
            break  # it is damaged
        body = whole[at : at + size]
        at += size
        if node is not None and of != node:
            continue
        mine = found.setdefault(of, bytearray())
        if len(mine) < OF_NODE and taken < OF_RUN:
            mine += body or b"\n[...]\n"
            taken += len(body)
    return {of: bytes(text).decode("utf-8", "replace") for of, text in found.items() if text}
