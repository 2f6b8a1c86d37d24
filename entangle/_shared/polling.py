"""Which descriptors can be read. By poll(2): select(2) cannot look at a descriptor whose number is above 1023."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Iterable
from typing import Any


def new_poll() -> Any:
    """A poll object, also where eventlet has taken `select.poll` away."""
    return select.poll() if hasattr(select, "poll") else _Poll()


class _Poll:
    """The poll of a program under eventlet, which has none that lets others run."""

    def __init__(self) -> None:
        self._poll = sys.modules["eventlet.patcher"].original("select").poll()
        self.register, self.unregister = self._poll.register, self._poll.unregister

    def poll(self, milliseconds: float | None = None) -> list[tuple[int, int]]:
        """As `select.poll.poll`."""
        until = None if milliseconds is None else time.monotonic() + milliseconds / 1000
        while True:
            found: list[tuple[int, int]] = self._poll.poll(0)
            if found or (until is not None and time.monotonic() >= until):
                return found
            time.sleep(0.001)  # eventlet's own, which lets others run


def readable(fds: Iterable[int], seconds: float | None) -> list[int]:
    """Those of `fds` that can be read, or whose other side is gone, after at most so many seconds; None waits for one."""
    poll = new_poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    # Rounded up: a wait of less than a millisecond is a wait all the same.
    milliseconds = None if seconds is None else -int(-seconds * 1000 // 1) if seconds > 0 else 0
    return [fd for fd, _ in poll.poll(milliseconds)]
