"""Which descriptors can be read: by poll(2), since select(2) fails for numbers above 1023."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Iterable
from typing import Any


def new_poll() -> Any:
    """A poll object. Under eventlet, which removes `select.poll`, a substitute."""
    return select.poll() if hasattr(select, "poll") else _Poll()


class _Poll:
    """A poll for programs under eventlet, which has none that lets other greenlets run."""

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
            time.sleep(0.001)  # eventlet's sleep, which lets other greenlets run


def readable(fds: Iterable[int], seconds: float | None) -> list[int]:
    """Those of `fds` that can be read, or have lost their peer. Waits that long; None: for one."""
    poll = new_poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    # Round up: less than a millisecond must not become no wait at all.
    milliseconds = None if seconds is None else -int(-seconds * 1000 // 1) if seconds > 0 else 0
    return [fd for fd, _ in poll.poll(milliseconds)]
