"""Which descriptors can be read. By poll(2): select(2) cannot look at a descriptor whose number is above 1023."""

from __future__ import annotations

import select
from collections.abc import Iterable


def readable(fds: Iterable[int], seconds: float | None) -> list[int]:
    """Those of `fds` that can be read, or whose other side is gone, after at most so many seconds; None waits for one."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    # Rounded up: a wait of less than a millisecond is a wait all the same.
    milliseconds = None if seconds is None else -int(-seconds * 1000 // 1) if seconds > 0 else 0
    return [fd for fd, _ in poll.poll(milliseconds)]
