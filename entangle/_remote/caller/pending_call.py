"""A call that was sent and has no answer yet."""

from __future__ import annotations

import contextlib
import threading

from entangle._remote.wire.frames import Message
from entangle._shared.table import NOBODY
from entangle.flow import Flow


class PendingCall:
    """What the thread of a call waits for."""

    __slots__ = ("answer", "error", "flow", "name", "node", "number", "records", "settled", "wake")

    def __init__(self, number: int, name: str, flow: Flow | None = None, node: int = NOBODY) -> None:
        self.number = number
        self.name = name
        self.flow, self.node = flow, node
        self.answer: Message | None = None
        self.error: BaseException | None = None
        self.settled = False
        #: Where the records of what ran there go; "" if there are to be none.
        self.records = ""
        #: Held until there is something to wake up for.
        self.wake = threading.Lock()
        self.wake.acquire()

    def path(self) -> str:
        """The call path, for what the call prints."""
        return self.flow.path(self.node) if self.flow is not None and self.node >= 0 else self.name

    def rouse(self) -> None:
        """Have its thread look again, now or before it waits."""
        with contextlib.suppress(RuntimeError):  # it was woken already
            self.wake.release()
