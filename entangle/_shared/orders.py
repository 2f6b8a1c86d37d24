"""Orders and news between an owner and its warm worker, over a socket pair.

::

    length   4 bytes         of what follows the kind
    kind     1 byte
    body     `length` bytes  descriptors ride with the head (SCM_RIGHTS)
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from typing import NamedTuple

#: Kinds of orders: join a run; answer a call.
JOIN, CALL = b"J", b"C"
#: The news that a worker has left the run that it had joined; outcomes of calls.
LEFT, OUTCOMES = b"L", b"O"

_HEAD = struct.Struct("<Ic")
#: The most descriptors that ride with one order.
_MOST_FDS = 64
_ROOM_FOR_FDS = socket.CMSG_SPACE(_MOST_FDS * array.array("i").itemsize)
_PIECE = 1 << 16
#: As plain numbers: members of an enum take longer to join than the call.
_FLAGS, _NO_WAIT = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0)), int(socket.MSG_DONTWAIT)


class Order(NamedTuple):
    """One order, or one piece of news."""

    kind: bytes
    body: bytes
    fds: list[int]


class Orders:
    """One end of the socket pair. One thread at a time may send, and one receive."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self._read = bytearray()
        self._fds: list[int] = []

    def send(self, kind: bytes, body: bytes, fds: list[int] | None = None) -> None:
        """Send an order. Waits while the socket is full.

        Raises OSError if the other end is gone.
        """
        head = _HEAD.pack(len(body), kind)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        if len(body) < _PIECE:
            whole = head + body
            sent = self.channel.sendmsg([whole], rights, socket.MSG_NOSIGNAL)
            if sent < len(whole):
                self.channel.sendall(whole[sent:], socket.MSG_NOSIGNAL)
            return
        self.channel.sendmsg([head], rights, socket.MSG_NOSIGNAL)
        self.channel.sendall(body, socket.MSG_NOSIGNAL)

    def receive(self, wait: bool = True) -> Order | None:
        """The next order; None if the other end is gone, or if none is there and `wait` is false.

        `ended` tells these two apart.
        """
        while True:
            if len(self._read) >= _HEAD.size:
                length, kind = _HEAD.unpack_from(self._read)
                end = _HEAD.size + length
                if len(self._read) >= end:
                    body = bytes(memoryview(self._read)[_HEAD.size : end])
                    del self._read[:end]
                    fds, self._fds = self._fds, []
                    return Order(kind, body, fds)
            if not self._more(wait):
                return None

    def waiting(self) -> bool:
        """Whether something has been read already that belongs to the next order."""
        return bool(self._read)

    def _more(self, wait: bool) -> bool:
        flags = _FLAGS if wait else _FLAGS | _NO_WAIT
        fds = array.array("i")
        try:
            # Not `socket.recv_fds`, which ignores flags.
            piece, rights, _, _ = self.channel.recvmsg(_PIECE, _ROOM_FOR_FDS, flags)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            piece, rights = b"", []
        for _, _, numbers in rights:
            fds.frombytes(numbers[: len(numbers) - len(numbers) % fds.itemsize])
        for fd in fds:
            os.set_inheritable(fd, False)
        self._fds += fds
        self._read += piece
        if not piece:
            self.ended = True
        return bool(piece)

    #: Whether the other end is gone.
    ended = False

    def close(self) -> None:
        """Close this end, and descriptors that have come with orders that nobody has taken."""
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds = []
        self.channel.close()
