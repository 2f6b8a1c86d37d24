"""A docker container's stdin and stdout as a stream: by docker's program or by its library."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import time
from collections.abc import Sequence
from typing import Any

from entangle._remote.transport.docker_daemon import connected, remove
from entangle._remote.wire.byte_stream import ByteStream, ProcessStream, PumpedStream

#: Seconds until a container whose agent has ended is removed by force.
_GONE = 3.0


def start(client: Any, identity: str) -> ByteStream:
    """Start a container that has been made; gives its stdin and stdout."""
    program = shutil.which("docker")
    if program is not None:
        return _Attached([program, "--context", "default", "start", "--attach", "--interactive", identity], identity)
    return _attach(client, identity)


class _Attached(ProcessStream):
    """A container by docker's own program, which carries the bytes without a thread of ours."""

    def __init__(self, command: Sequence[str], identity: str) -> None:
        super().__init__(command)
        self._identity = identity

    def close(self) -> None:
        """End the agent. The container ends with it, or is removed."""
        super().close()
        _see_off(self._identity)


def _attach(client: Any, identity: str) -> ByteStream:
    """A container by docker's library, where there is no docker program.

    Its stdout and stderr come mixed, in frames of docker's: eight bytes of header (kind, length),
    then the data.
    """
    held = client.attach_socket(identity, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    link = getattr(held, "_sock", held)
    link.settimeout(None)
    client.start(identity)
    errors, into = os.pipe()
    left = 0  # bytes of the current frame that are still to come

    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = link.recv(size - len(data))
            if not more:
                return b""
            data += more
        return data

    def read(size: int) -> bytes:
        nonlocal left
        while not left:
            head = exactly(8)
            if not head:
                os.close(into)
                return b""
            kind, left = struct.unpack(">BxxxL", head)
            if kind == 2:
                view = memoryview(exactly(left))
                left = 0
                while view:
                    view = view[os.write(into, view) :]
        data: bytes = link.recv(min(size, left))
        left -= len(data)
        return data

    def shut() -> None:
        import socket

        link.shutdown(socket.SHUT_WR)

    def end() -> None:
        _see_off(identity)
        held.close()

    return PumpedStream(read, link.sendall, shut, end, lambda: None, errors)


def _see_off(identity: str) -> None:
    """Wait until a container is gone; remove it if that takes long."""
    with contextlib.suppress(Exception), connected(5) as client:
        end = time.monotonic() + _GONE
        while time.monotonic() < end:
            found = client.containers(all=True, quiet=True, filters={"id": identity})
            if not found:
                return
            time.sleep(0.02)
        remove(client, identity)
