"""The messages of a queue of SQS, as the items of a source.

::

    receive ─▶ waiting ─▶ given to the stream ─▶ ended well ─▶ deleted
                  │               │ ended badly: left; it comes again after its visibility timeout
                  └───────────────┴ the stream is over: visible again at once

One thread for each iteration deletes messages, makes them visible again, and extends the visibility
of those that are here, ten a request. A message is here from when it is received until its item has
ended.

Of a group of a FIFO queue one message is given at a time. While all that wait are of groups that
have one in hand, a second thread receives more. SQS gives none of a group that has messages here,
so those are of other groups, and at most one receipt a group waits.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from entangle._aws.account import Account
from entangle._aws.open_requests import end_request, list_connections
from entangle._aws.queue_address import asking_for, by_chance, region_in, told_of, url_of
from entangle._aws.queue_keeper import TRIES, QueueMessage, Shared, log
from entangle._shared.tracebacks import hide


@dataclass
class Wishes:
    """What a user has said of a queue."""

    queue: str
    account: Account
    #: Seconds; None: as the queue has it.
    visibility: int | None
    raw: bool
    most: int
    wait: int
    idle: float | None


class QueueMessages(Iterator[Any]):
    """One pass through a queue. Where no stream listens, a message has ended when the next one is
    asked for."""

    stops_at_once = True

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes
        self._stopped = threading.Event()
        self._shared: Shared | None = None
        self._receiver: Any = None
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._waiting: collections.deque[QueueMessage] = collections.deque()
        self._given: dict[int, QueueMessage] = {}
        self._busy: set[str] = set()
        self._count = 0
        self._listened = False
        self._close: Callable[[], object] = lambda: None
        self._closing = threading.Lock()
        #: Receives while messages wait here for their groups.
        self._beside: threading.Thread | None = None
        self._receives_more = False

    # For the stream -------------------------------------------------------------------------------

    def acknowledging(self) -> Callable[[int, bool], None]:
        """What is to be told of each item that has ended."""
        self._listened = True
        return self._ended

    def stop(self) -> None:
        """End it: whoever waits for the next message gets StopIteration at once."""
        self._stopped.set()
        for connection in list(self._connections):
            end_request(connection)
        if self._shared is not None:
            with self._shared.changed:
                self._shared.changed.notify_all()

    def close(self) -> None:
        """Make visible again what is here and has not ended; wait until all has been sent."""
        with self._closing:
            self.stop()
            beside = self._beside
            if beside is not None and beside is not threading.current_thread():
                beside.join()  # what it has received must go back as well
            self._close()

    def __next__(self) -> Any:
        try:
            if not self._listened and self._count:
                self._ended(self._count - 1, True)
            message = self._next()
            if message is not None:
                return self._item(message)
            if not self._listened:
                self.close()
                self._raise_error()
            elif self._shared is not None:
                self._return_waiting()
        except BaseException as error:
            if not self._listened:
                self.close()
            hide(error)
            raise
        raise StopIteration

    # Giving ---------------------------------------------------------------------------------------

    def _next(self) -> QueueMessage | None:
        """The next message, which is then the item of number `_count`; None at the end."""
        self._raise_error()
        if self._stopped.is_set():
            return None
        shared = self._shared or self._begin()
        began = time.monotonic()
        while True:
            with shared.changed:
                while (self._waiting or self._receives_more) and not self._stopped.is_set() and shared.error is None:
                    if (message := self._of_a_free_group()) is not None:
                        return message
                    if self._waiting:
                        began = time.monotonic()
                        self._receive_more(shared)
                    elif self._seconds_left(began) <= 0:
                        break
                    left = self._seconds_left(began)
                    shared.changed.wait(None if self._waiting or math.isinf(left) else left)
            self._raise_error()
            left = self._seconds_left(began)
            if self._stopped.is_set() or left <= 0:
                return None
            self._receive(shared, math.ceil(min(self._wishes.wait, left)))

    def _seconds_left(self, began: float) -> float:
        """Seconds until nothing has come for too long."""
        return math.inf if self._wishes.idle is None else self._wishes.idle - (time.monotonic() - began)

    def _of_a_free_group(self) -> QueueMessage | None:
        """The first that waits and whose group has none in hand, which is then given. `changed`
        must be held."""
        for message in self._waiting:
            if message.group is None or message.group not in self._busy:
                self._waiting.remove(message)
                if message.group is not None:
                    self._busy.add(message.group)
                self._given[self._count] = message
                self._count += 1
                return message
        return None

    def _receive_more(self, shared: Shared) -> None:
        """Receive in a thread beside, unless it does so already: a request waits for up to 20
        seconds, and a group here may become free before. `changed` must be held."""
        if not self._receives_more:
            self._receives_more = True
            self._beside = threading.Thread(target=self._receive_beside, args=(shared,), name="entangle-sqs-more", daemon=True)
            self._beside.start()

    def _receive_beside(self, shared: Shared) -> None:
        error: BaseException | None = None
        try:
            self._receive(shared, self._wishes.wait)
        except BaseException as raised:
            error = raised
        with shared.changed:
            shared.error = shared.error or error
            self._receives_more = False
            shared.changed.notify_all()

    def _item(self, message: QueueMessage) -> Any:
        if self._wishes.raw:
            return message.found
        body = message.found["Body"]
        try:
            return json.loads(body)
        except ValueError:
            return body

    def _ended(self, number: int, well: bool) -> None:
        shared = self._shared
        assert shared is not None
        with shared.changed:
            message = self._given.pop(number, None)
            if message is None or message not in shared.here:
                return
            shared.here.discard(message)
            self._busy.discard(message.group or "")
            if well:
                shared.done.append(message)
            elif message.group is not None:
                # What follows in its group must not overtake it.
                later = [one for one in self._waiting if one.group == message.group]
                self._give_back(shared, later)
            shared.changed.notify_all()

    def _give_back(self, shared: Shared, messages: list[QueueMessage]) -> None:
        """Make messages visible again that were not given. `changed` must be held."""
        for one in messages:
            self._waiting.remove(one)
            shared.here.discard(one)
        shared.back += messages
        shared.changed.notify_all()

    def _return_waiting(self) -> None:
        assert self._shared is not None
        with self._shared.changed:
            self._give_back(self._shared, list(self._waiting))

    def _raise_error(self) -> None:
        if self._shared is not None and self._shared.error is not None:
            try:
                raise self._shared.error
            finally:
                self._shared.error = None

    # Asking SQS -----------------------------------------------------------------------------------

    def _begin(self) -> Shared:
        wishes, account = self._wishes, self._wishes.account
        if (region := region_in(wishes.queue)) is not None and account.region is None:
            account = replace(account, region=region)
        client = account.client("sqs")
        url = url_of(client, wishes.queue, account)
        visibility = wishes.visibility
        if visibility is None:
            with asking_for(wishes.queue, account):
                found = client.get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])
            visibility = max(1, int(found["Attributes"]["VisibilityTimeout"]))
        # Tried again here, where it can be stopped.
        retries = {"mode": "standard", "total_max_attempts": 1}
        self._receiver = account.client_of_its_own("sqs", connect_timeout=10, read_timeout=wishes.wait + 20, retries=retries)
        list_connections(self._receiver, self._connections, self._stopped)
        shared = self._shared = Shared(client, account, url, visibility)
        stopped, connections = self._stopped, self._connections

        def wake() -> None:  # not a method: the thread must not keep the iteration alive
            stopped.set()
            for connection in list(connections):
                end_request(connection)

        shared.wake = wake
        thread = threading.Thread(target=shared.keep, name="entangle-sqs", daemon=True)
        thread.start()
        self._close = weakref.finalize(self, _over, stopped, shared, thread, self._receiver)
        return shared

    def _receive(self, shared: Shared, wait: int) -> None:
        """Receive some messages. At the end there are perhaps none."""
        from botocore.exceptions import ClientError, HTTPClientError

        given: dict[str, Any] = {
            "QueueUrl": shared.url,
            "MaxNumberOfMessages": self._wishes.most,
            "WaitTimeSeconds": wait,
            "VisibilityTimeout": shared.visibility,
            "AttributeNames": ["All"],
        }
        if self._wishes.raw:
            given["MessageAttributeNames"] = ["All"]
        for tries in range(TRIES):
            began = time.monotonic()
            try:
                answer = self._receiver.receive_message(**given)
                break
            except (ClientError, HTTPClientError) as error:
                if self._stopped.is_set():
                    return
                if tries == TRIES - 1 or not by_chance(error):
                    raise told_of(error, self._wishes.queue, shared.account) from None
            except Exception:
                if self._stopped.is_set():
                    return
                raise
            self._stopped.wait(0.2 * 2**tries)
        found = answer.get("Messages", ())
        # Since when the visibility lasts is known to SQS alone. A request that has waited for long
        # was answered at once when a message came.
        until = (time.monotonic() if time.monotonic() - began > 1 else began) + shared.visibility
        with shared.changed:
            for one in found:
                group = one.get("Attributes", {}).get("MessageGroupId")
                message = QueueMessage(one, until, group if shared.url.endswith(".fifo") else None)
                shared.here.add(message)
                self._waiting.append(message)
            shared.changed.notify_all()


def _over(stopped: threading.Event, shared: Shared, thread: threading.Thread, receiver: Any) -> None:
    stopped.set()
    shared.close(thread)
    if shared.error is not None:
        log.warning("messages of %s come again: %s", shared.url, shared.error)
    with contextlib.suppress(Exception):
        receiver.close()
