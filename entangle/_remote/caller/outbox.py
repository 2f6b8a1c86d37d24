"""What waits to be written to a stream: the rest of one frame, the frames after it, and messages
whose frames are made one by one, when the stream has room for them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence

from entangle._remote.wire.frames import SMALL, Bytes
from entangle.errors import ProtocolError

#: Answers to questions that may wait, at most (bytes).
MOST_OWED = 256 << 20
#: There is room for more messages while those that wait are so few, or so small together (bytes).
FEW, LITTLE = 4, 1 << 20


class _Message:
    """A message that takes turns with others, frame by frame."""

    __slots__ = ("begun", "frames", "number", "size", "withdrawn")

    def __init__(self, number: int, frames: Iterator[list[Bytes]], size: int) -> None:
        self.number, self.frames, self.size = number, frames, size
        self.begun = self.withdrawn = False


class Outbox:
    """What a stream has not taken yet. The channel says who may write, and when; anyone may add."""

    def __init__(self) -> None:
        self._frame: list[memoryview] = []
        self._waiting: deque[list[Bytes]] = deque()
        #: Bytes of answers to the agent's questions.
        self._owed = 0
        #: Messages that are not written to their end, in the order of their turns, and by number.
        self._turns: deque[_Message] = deque()
        self._messages: dict[int, _Message] = {}
        self._bytes = 0
        self._guard = threading.Lock()

    def __bool__(self) -> bool:
        """Whether anything is left to write."""
        return bool(self._waiting or self._frame or self._turns)

    @property
    def has_room(self) -> bool:
        """Whether more messages should be added now: else they would only wait here."""
        return len(self._messages) < FEW or self._bytes < LITTLE

    def add(self, number: int, frames: Iterator[list[Bytes]], size: int) -> None:
        """Append a message of this number and size (bytes)."""
        message = _Message(number, frames, size)
        with self._guard:
            self._messages[number] = message
            self._bytes += size
        self._turns.append(message)

    def withdraw(self, number: int) -> bool:
        """Write no more of a message. Whether nothing of it was ever written."""
        with self._guard:
            message = self._messages.pop(number, None)
            if message is None:
                return False
            self._bytes -= message.size
            message.withdrawn = True
            return not message.begun

    def holds(self, number: int) -> bool:
        """Whether a message waits here, or a part of it."""
        return number in self._messages

    def post(self, frame: Bytes) -> None:
        """Append a small frame."""
        self._waiting.append([frame])

    def queue(self, pieces: list[Bytes]) -> None:
        """Append a frame in pieces."""
        self._waiting.append(pieces)

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

    def next(self, messages: bool = True) -> bool:
        """Make sure that a frame is begun, also one of the `messages`. False if nothing is left."""
        if not self._frame:
            pieces: list[Bytes] | None
            if self._waiting:
                pieces = self._waiting.popleft()
                self._owed = max(0, self._owed - sum(map(len, pieces))) if self._waiting else 0
            else:
                pieces = self._next_of_messages() if messages else None
            if pieces is None:
                return False
            self.begin(pieces)
        return True

    def _next_of_messages(self) -> list[Bytes] | None:
        while self._turns:
            message = self._turns.popleft()
            with self._guard:  # from now on, a withdrawal needs a CANCEL
                if message.withdrawn:
                    continue
                message.begun = True
            pieces = next(message.frames, None)
            if pieces is not None and message.size > SMALL:
                self._turns.append(message)
                return pieces
            with self._guard:
                if self._messages.pop(message.number, None) is not None:
                    self._bytes -= message.size
            if pieces is not None:  # all of it
                return pieces
        return None

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
