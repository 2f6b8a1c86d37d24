"""What holds the messages of a queue of SQS that are here: a thread that extends their visibility,
deletes those that have ended, and makes others visible again, ten a request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from entangle._aws.account import Account, asking

log = logging.getLogger("entangle.sources")

#: What SQS takes in one request.
MOST = 10
#: Seconds that the deletion of a message waits for others, to go in one request.
_LINGER = 0.02
#: How often a request is made that fails by chance; the seconds that the end waits for the last.
TRIES, _PATIENCE = 5, 30.0


@dataclass(eq=False)
class QueueMessage:
    """A message that is here."""

    found: dict[str, Any]
    #: When it becomes visible to others, unless that is extended (of the monotonic clock).
    until: float
    group: str | None = None
    tries: int = 0

    @property
    def handle(self) -> str:
        """What stands for it in requests."""
        found: str = self.found["ReceiptHandle"]
        return found


@dataclass
class Shared:
    """What the iteration and its thread share, under `changed`."""

    client: Any
    account: Account
    url: str
    visibility: int
    changed: threading.Condition = field(default_factory=threading.Condition)
    here: set[QueueMessage] = field(default_factory=set)
    done: list[QueueMessage] = field(default_factory=list)
    back: list[QueueMessage] = field(default_factory=list)
    closing: bool = False
    error: BaseException | None = None
    #: Called when `error` was set.
    wake: Callable[[], None] = lambda: None

    def close(self, thread: threading.Thread) -> None:
        """Send what is to be sent, and make visible again what is here."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        if thread.ident is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)

    def keep(self) -> None:
        """The thread: until it is closed, and all has been sent."""
        while True:
            with self.changed:
                while not (self.done or self.back or self.closing or (left := self._seconds_left()) <= 0):
                    self.changed.wait(left)
                if not self.closing and len(self.done) < MOST:
                    self.changed.wait_for(lambda: len(self.done) >= MOST or self.closing, _LINGER)
                if self.closing:
                    self.back += self.here
                    self.here.clear()
                    if not self.done and not self.back:
                        return
                done, self.done = self.done, []
                back, self.back = self.back, []
                now = time.monotonic()
                long = [one for one in self.here if one.until - now < 0.75 * self.visibility]
                for one in long:
                    one.until = now + self.visibility
            try:
                self._send("delete_message_batch", done)
                self._send("change_message_visibility_batch", back, VisibilityTimeout=0)
                self._send("change_message_visibility_batch", long, VisibilityTimeout=self.visibility)
            except BaseException as error:
                with self.changed:
                    if self.closing:  # nobody asks for the next message any more
                        log.warning("messages of %s come again: %s", self.url, error)
                        return
                    self.error = error
                    self.changed.notify_all()
                self.wake()
                return

    def _seconds_left(self) -> float:
        """Seconds until the visibility of a message must be extended: when half of it is over."""
        now = time.monotonic()
        return min((60.0, *(one.until - now - self.visibility / 2 for one in self.here)))

    def _send(self, operation: str, messages: list[QueueMessage], **each: Any) -> None:
        for begin in range(0, len(messages), MOST):
            some = messages[begin : begin + MOST]
            entries = [{"Id": str(at), "ReceiptHandle": one.handle, **each} for at, one in enumerate(some)]
            with asking(self.account, "sqs"):
                answer = getattr(self.client, operation)(QueueUrl=self.url, Entries=entries)
            for failed in answer.get("Failed", ()):
                self._failed(operation, some[int(failed["Id"])], failed)

    def _failed(self, operation: str, message: QueueMessage, failed: dict[str, Any]) -> None:
        deleting = operation == "delete_message_batch"
        message.tries += 1
        if not failed.get("SenderFault") and message.tries < TRIES:
            with self.changed:
                if deleting:
                    self.done.append(message)
                elif message in self.here:
                    message.until = 0.0
            return
        # Its visibility has ended, or a message has been here for twelve hours, the most there is.
        with self.changed:
            message.until = float("inf")
        log.warning(
            "a message of %s comes again, as SQS refuses to %s it: %s %s",
            self.url,
            "delete" if deleting else "hold",
            failed.get("Code", ""),
            failed.get("Message", ""),
        )
