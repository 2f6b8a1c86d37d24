"""Programs whose threads are greenlets, because gevent or eventlet has patched blocking calls.

Our own waits go through `poll`, which lets other greenlets run. A plain blocking read would stop
them all. A fork copies all of them: a child that waits would go on with its parent's work. So
nothing is forked there, even if the user asks for it.
"""

from __future__ import annotations

import os
import posix
import sys

from entangle._shared.polling import readable


def patched() -> bool:
    """Whether the threads of this process are greenlets."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        return True
    eventlet = sys.modules.get("eventlet.patcher")
    return eventlet is not None and bool(eventlet.is_monkey_patched("thread"))


def read_byte(fd: int) -> bytes:
    """Read a byte from a pipe that several wait on. Blocks only the calling greenlet."""
    if not patched():
        return posix.read(fd, 1)
    os.set_blocking(fd, False)
    while True:
        try:
            return posix.read(fd, 1)
        except BlockingIOError:
            readable([fd], None)
