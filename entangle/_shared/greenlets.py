"""Programs in which threads are greenlets: gevent and eventlet have patched what waits, so that others run meanwhile.

Where we wait, in `poll`, others run too. What reads without asking first would stop them all, and a fork takes all of them along: a child
that waits for anything would go on with what its parent has begun. So nothing is forked there, whoever has asked for it.
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
    """Wait for a byte on a pipe that many wait for."""
    if not patched():
        return posix.read(fd, 1)
    os.set_blocking(fd, False)
    while True:
        try:
            return posix.read(fd, 1)
        except BlockingIOError:
            readable([fd], None)
