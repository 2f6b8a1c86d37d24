"""Orders and news between an owner and its warm worker, over a socket pair.

::

    length   4 bytes         of what follows the kind
    kind     1 byte
    body     `length` bytes  descriptors ride with the head (SCM_RIGHTS)
"""

from __future__ import annotations

import _socket
import array
import contextlib
import os
import select
import socket
import struct
from typing import NamedTuple

from entangle._shared.polling import new_poll, readable

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
_NO_SIGNAL, _CUT = int(socket.MSG_NOSIGNAL), int(socket.MSG_CTRUNC)


class Order(NamedTuple):
    """One order, or one piece of news."""

    kind: bytes
    body: bytes
    fds: list[int]


def pair() -> tuple[_socket.socket, _socket.socket]:
    """The two ends that orders go through.

    They are Python's own sockets even where gevent or eventlet has put others in their place:
    those wait also where they are told not to, and lose descriptors if they are full.
    """
    ends = _socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.setblocking(True)  # whatever limit of time the program has set for all sockets
    return ends


class Orders:
    """One end of the socket pair. One thread at a time may send, and one receive."""

    def __init__(self, channel: _socket.socket) -> None:
        self.channel = channel
        self._read = bytearray()
        self._fds: list[int] = []
        #: Where threads are greenlets, one that waits in the kernel stops all. A poll does not.
        self._wait = 0 if issubclass(socket.socket, _socket.socket) else _NO_WAIT

    def send(self, kind: bytes, body: bytes, fds: list[int] | None = None) -> None:
        """Send an order. Waits while the socket is full.

        Raises OSError if the other end is gone.
        """
        head = _HEAD.pack(len(body), kind)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        if len(body) < _PIECE:
            whole = head + body
            sent = self._send(whole, rights)
            if sent < len(whole):
                self._send_all(whole[sent:])
            return
        self._send(head, rights)
        self._send_all(body)

    def _send(self, piece: bytes | memoryview, rights: list[tuple[int, int, array.array[int]]]) -> int:
        while True:
            try:
                return self.channel.sendmsg([piece], rights, _NO_SIGNAL | self._wait)
            except BlockingIOError:
                poll = new_poll()
                poll.register(self.channel.fileno(), select.POLLOUT)
                poll.poll()

    def _send_all(self, piece: bytes) -> None:
        if not self._wait:
            self.channel.sendall(piece, _NO_SIGNAL)
            return
        rest = memoryview(piece)
        while rest:
            rest = rest[self._send(rest, []) :]

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
        flags = _FLAGS | self._wait if wait else _FLAGS | _NO_WAIT
        fds = array.array("i")
        try:
            # Not `socket.recv_fds`, which ignores flags.
            piece, rights, happened, _ = self.channel.recvmsg(_PIECE, _ROOM_FOR_FDS, flags)
        except BlockingIOError:
            if wait:
                readable([self.channel.fileno()], None)
            return wait
        except ConnectionResetError:
            piece, rights, happened = b"", [], 0
        for _, _, numbers in rights:
            fds.frombytes(numbers[: len(numbers) - len(numbers) % fds.itemsize])
        for fd in fds:
            os.set_inheritable(fd, False)
        self._fds += fds
        self._read += piece
        if happened & _CUT:
            self.cut = True
        if not piece:
            self.ended = True
        return bool(piece)

    #: Whether descriptors have been lost, as this process may not open any more.
    cut = False
    #: Whether the other end is gone.
    ended = False

    def close(self) -> None:
        """Close this end, and descriptors that have come with orders that nobody has taken."""
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds = []
        self.channel.close()
