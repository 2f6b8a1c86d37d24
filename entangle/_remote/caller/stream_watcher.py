"""The watcher of streams: one thread that leads all channels of this process with calls that are
away.

It waits for all of them in one poll(2), reads what has come, and writes what waits in their
outboxes. It runs no code of the user's. It is there as long as a run has such calls, and is gone
before that run ends: a process that has nothing under way may fork.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import Any, Protocol

from entangle._remote.caller.channel import Channel
from entangle._shared.polling import new_poll
from entangle.errors import LinkLostError

#: How long the end of the thread is waited for (seconds).
_END = 2.0


class Submitter(Protocol):
    """Calls that go through a channel."""

    def wants_room(self) -> bool:
        """Whether calls wait for room in the outbox, and nobody has told of some yet."""

    def ask(self) -> None:
        """Have calls submitted."""


class _Watcher:
    """The thread, and what it watches. `_guard` of this module is held for `lines`."""

    def __init__(self) -> None:
        self.lines: dict[Submitter, Channel] = {}
        self._reads, self._writes = os.pipe()
        for fd in (self._reads, self._writes):
            os.set_blocking(fd, False)
        self._open = threading.Lock()
        self._closed = False
        self.thread = threading.Thread(target=self._watch, name="entangle-streams", daemon=True)

    def wake(self) -> None:
        """Have it look around. From any thread."""
        with self._open:
            if not self._closed:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._writes, b"!")

    def close(self) -> None:
        """Close its pipe."""
        with self._open:
            if not self._closed:
                self._closed = True
                os.close(self._reads)
                os.close(self._writes)

    def _watch(self) -> None:
        global _watcher
        led: dict[Channel, None] = {}
        while True:
            with _guard:
                lines = list(self.lines.items())
                if not lines and _watcher is self:
                    _watcher = None
            channels = dict.fromkeys(channel for _, channel in lines)
            for channel in [channel for channel in led if channel not in channels or channel.lost is not None]:
                del led[channel]
                channel.be_left(self)
            if not lines:
                break
            led.update(dict.fromkeys(channel for channel in channels if channel.be_led(self)))
            self._wait(led)
            for line, channel in lines:
                if channel.has_room and line.wants_room():
                    line.ask()
        self.close()

    def _wait(self, led: dict[Channel, None]) -> None:
        """Wait until something has come or can be written, and handle it."""
        poll: Any = new_poll()
        poll.register(self._reads, select.POLLIN)
        longest = 60.0
        for channel in led:
            for fd, events in channel.interests().items():
                poll.register(fd, events)
            longest = min(longest, channel.patience)
        began = time.monotonic()
        ready = {fd for fd, _ in poll.poll(longest * 1000)}
        waited = min(longest, time.monotonic() - began)
        if self._reads in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._reads, 4096)
        for channel in led:
            try:
                channel.attend(ready, waited)
            except Exception as error:  # a bug of ours: no call may hang
                channel.give_up(LinkLostError(f"{channel.place}: {type(error).__name__}: {error}"))


_watcher: _Watcher | None = None
_guard = threading.Lock()


def watch(line: Submitter, channel: Channel) -> None:
    """Watch a channel for these calls from now on, in place of the one before."""
    global _watcher
    with _guard:
        before = _watcher.lines.get(line) if _watcher is not None else None
        if before is channel:
            return
        begins = _watcher is None
        if _watcher is None:
            _watcher = _Watcher()
        watcher = _watcher
        watcher.lines[line] = channel
        channel.watcher = watcher.wake
        if before is not None and before not in watcher.lines.values():
            before.watcher = None
        if begins:
            watcher.thread.start()
    if not begins:
        watcher.wake()


def leave(line: Submitter) -> None:
    """These calls are over. With the last ones the thread ends; waits for that."""
    with _guard:
        watcher = _watcher
        channel = watcher.lines.pop(line, None) if watcher is not None else None
        if watcher is None or channel is None:
            return
        if channel not in watcher.lines.values():
            channel.watcher = None
        last = not watcher.lines
    watcher.wake()
    if last:
        watcher.thread.join(_END)


def _after_fork() -> None:
    """A forked child has none: the channels are its parent's."""
    global _watcher, _guard
    if _watcher is not None:
        _watcher._open = threading.Lock()
        _watcher.close()
    _watcher, _guard = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
