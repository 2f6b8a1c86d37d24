"""What waits to be written to a stream: the rest of the frame that was begun, and the frames after it, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence

from entangle._remote.wire.frames import Bytes
from entangle.errors import ProtocolError

#: Bytes that may wait to be sent to an agent that asks for them.
MOST_OWED = 256 << 20


class Outbox:
    """What a stream has not taken yet. It has no lock of its own: the channel says who may write, and when nothing may interrupt."""

    def __init__(self) -> None:
        self._frame: list[memoryview] = []
        self._waiting: deque[list[Bytes]] = deque()
        #: Bytes that wait in answer to the agent's questions.
        self._owed = 0

    def __bool__(self) -> bool:
        """Whether anything is left to be written."""
        return bool(self._waiting or self._frame)

    def post(self, frame: Bytes) -> None:
        """One more small frame, after those that wait."""
        self._waiting.append([frame])

    def check_room(self, frames: Sequence[Sequence[Bytes]]) -> None:
        """Whether these may wait as well. An agent that asks and does not read what it is told must not fill our memory: ProtocolError."""
        if self._owed + _size(frames) > MOST_OWED:
            raise ProtocolError("it asks for more than it takes")

    def owe(self, frames: list[list[Bytes]]) -> None:
        """More frames, in answer to the agent, after those that wait."""
        self._owed += _size(frames)
        self._waiting.extend(frames)

    def begin(self, pieces: Sequence[Bytes]) -> None:
        """Write this frame next. There is none under way."""
        self._frame = [memoryview(piece).cast("B") for piece in pieces if len(piece)]

    def copy(self) -> None:
        """Copy the rest of the frame under way: it is memory of a caller who may change it from now on."""
        self._frame = [memoryview(b"".join(self._frame))] if self._frame else []

    def next(self) -> bool:
        """Have a frame under way, unless nothing is left."""
        if not self._frame:
            if not self._waiting:
                return False
            pieces = self._waiting.popleft()
            self._owed = max(0, self._owed - sum(map(len, pieces))) if self._waiting else 0
            self.begin(pieces)
        return True

    def write(self, fd: int) -> None:
        """Write what the descriptor takes now of the frame under way. Raises OSError: BlockingIOError where it takes nothing."""
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
