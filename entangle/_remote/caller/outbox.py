"""What waits to be written to a stream: the rest of one frame, and the frames after it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence

from entangle._remote.wire.frames import Bytes
from entangle.errors import ProtocolError

#: Answers to questions that may wait, at most (bytes).
MOST_OWED = 256 << 20


class Outbox:
    """What a stream has not taken yet. It has no lock: the channel says who may write, and when."""

    def __init__(self) -> None:
        self._frame: list[memoryview] = []
        self._waiting: deque[list[Bytes]] = deque()
        #: Bytes of answers to the agent's questions.
        self._owed = 0

    def __bool__(self) -> bool:
        """Whether anything is left to write."""
        return bool(self._waiting or self._frame)

    def post(self, frame: Bytes) -> None:
        """Append a small frame."""
        self._waiting.append([frame])

    def check_room(self, frames: Sequence[Sequence[Bytes]]) -> None:
        """Raise ProtocolError if these are too much: without a limit they would fill our memory."""
        if self._owed + _size(frames) > MOST_OWED:
            raise ProtocolError("the agent asks for modules and does not read the answers")

    def owe(self, frames: list[list[Bytes]]) -> None:
        """Append frames that answer the agent."""
        self._owed += _size(frames)
        self._waiting.extend(frames)

    def begin(self, pieces: Sequence[Bytes]) -> None:
        """Write this frame next. No other may be unfinished."""
        self._frame = [memoryview(piece).cast("B") for piece in pieces if len(piece)]

    def copy(self) -> None:
        """Copy the rest of the unfinished frame: the caller may change its memory from now on."""
        self._frame = [memoryview(b"".join(self._frame))] if self._frame else []

    def next(self) -> bool:
        """Make sure that a frame is begun. False if nothing is left."""
        if not self._frame:
            if not self._waiting:
                return False
            pieces = self._waiting.popleft()
            self._owed = max(0, self._owed - sum(map(len, pieces))) if self._waiting else 0
            self.begin(pieces)
        return True

    def write(self, fd: int) -> None:
        """Write what the descriptor takes now. Raises OSError, or BlockingIOError if it is full."""
        left = self._frame
        size = os.writev(fd, left[:512])
        done = 0
        while done < len(left) and size >= len(left[done]):
            size -= len(left[done])
            done += 1
        del left[:done]
        if size:
            left[0] = left[0][size:]


def _size(frames: Sequence[Sequence[Bytes]]) -> int:
    return sum(sum(map(len, frame)) for frame in frames)
