"""The first exchange with a far Python, before frames: it gets the sources of the agent."""

from __future__ import annotations

import os
import time

from entangle._remote.caller import bootstrap
from entangle._remote.caller.stderr import TAIL, Stderr
from entangle._remote.transport import Transport
from entangle._remote.wire.byte_stream import ByteStream, read_now, wait_ready
from entangle.errors import FarError, UnfitPythonError

#: What may come before the agent's first line, such as a banner or a shell's greeting (bytes).
PREFACE = 64 << 10


def greet(transport: Transport, stream: ByteStream, stderr: Stderr, words: memoryview, until: float) -> tuple[memoryview, bytearray]:
    """Write `words`, and read the first line. Gives the rest of the words, and what came after it.

    Raises what the transport makes of a program that ends or stays silent until then (a time of the
    monotonic clock), and UnfitPythonError if the Python is too old.
    """
    heard = bytearray()
    seen = 0
    # Search each byte once: there may be much of it, in small pieces.
    while (greeting := bootstrap.GREETING.search(heard, max(0, seen - bootstrap.LONGEST_GREETING))) is None:
        seen = len(heard)
        ready = wait_ready([stream.reads, stderr.fd], [stream.writes] if words else [], until - time.monotonic())
        if stream.writes in ready and words:
            try:
                words = words[os.write(stream.writes, words) :]
            except BlockingIOError:
                pass
            except OSError:  # the program has gone; its output says why
                words = words[:0]
        stderr.read()
        if stream.reads in ready:
            data = read_now(stream.reads, 65536)
            if not data:
                if data is not None:
                    raise diagnosis(transport, stream, stderr, heard, ended=True)
                continue
            heard += data
        if len(heard) > PREFACE or time.monotonic() >= until:
            raise diagnosis(transport, stream, stderr, heard)
    version = tuple(int(part) for part in greeting.groups()[1:])
    if version < bootstrap.OLDEST:
        raise UnfitPythonError(
            f"{transport.place}: its Python is {'.'.join(map(str, version))}; entangle needs {'.'.join(map(str, bootstrap.OLDEST))} "
            f"or newer. Name another one with python=…"
        )
    return words, heard[greeting.end() :]


def diagnosis(transport: Transport, stream: ByteStream, stderr: Stderr, heard: bytes | bytearray = b"", ended: bool = False) -> FarError:
    """The error that says why there is no agent."""
    # A program that has closed its stdout exits soon. Wait: its status says why.
    until = time.monotonic() + (2.0 if ended else 0.3)
    while (status := stream.status()) is None and time.monotonic() < until:
        wait_ready([stderr.fd], [], 0.01)
        stderr.read()
    stderr.read_last()
    return transport.diagnose(status, stderr.tail(bytes(heard[-TAIL:])))
