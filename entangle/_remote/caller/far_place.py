"""A place behind a byte stream, as the place of calls that are away: no thread waits for them.

::

    away worker of a run                    watcher of all streams of the process
      begin ─▶ pack, submit ─▶ outbox ─────▶ writes what the stream takes, reads what has come
      open the answer ◀─ completion queue ◀─ the call is settled: an answer, or the stream is lost

What runs code of the user's (arguments that are pickled, values that are made) happens in the away
worker's thread: it holds up calls of its own run alone. Opening a channel waits, so it has a thread
of its own, for all calls that need that channel.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from entangle import _remote
from entangle._remote.caller import job
from entangle._remote.caller.channel import Channel
from entangle._remote.caller.lost_connections import comes_back, used_up
from entangle._remote.caller.open_channels import channel_to, known_channel
from entangle._remote.caller.pending_call import PendingCall
from entangle._remote.caller.requirements import Furnishing
from entangle._remote.caller.stream_watcher import leave, watch
from entangle._remote.transport import Transport
from entangle._remote.wire.frames import VALUE, Message
from entangle._remote.wire.parts import Given
from entangle._shared.notes import SHORT, WHOLE
from entangle._shared.table import NOTING
from entangle._tasks.layer import Decorated
from entangle._worker.away import AwayCall
from entangle._worker.away_worker import AwayWorker
from entangle._worker.failures import pause
from entangle._worker.worker import here
from entangle.errors import EntangleError, add_note
from entangle.flow import FRESH, PROCESS, Body

#: Calls with a process of their own that are with an agent at once, at most.
MOST_PROCESSES = 256


class FarPlace:
    """A place behind a transport, for the calls of one task."""

    def __init__(self, transport: Transport, rest: Decorated, again: Body | None, furnishing: Furnishing | None) -> None:
        self.transport, self.rest = transport, rest
        #: What is done there before the first call.
        self.furnishing = furnishing
        #: How often a call is begun again whose connection is lost; None: never.
        self.again = again
        #: Whether bodies have processes there, which can be stopped.
        self.in_processes = any(layer.carrier in (PROCESS, FRESH) for layer in rest.layers)
        self._lines: dict[AwayWorker, FarLine] = {}

    def begin(self, calls: Sequence[AwayCall]) -> None:
        """Take over these calls, in the thread of their away worker."""
        worker = here.worker
        assert isinstance(worker, AwayWorker)
        line = self._lines.get(worker)
        if line is None:
            line = self._lines[worker] = self.line_of(worker)
            worker.at_end.append(line.end)
        line.begin(calls)

    def line_of(self, worker: AwayWorker) -> FarLine:
        """The calls of a run at this place."""
        return FarLine(self, worker)

    def end(self, worker: AwayWorker) -> None:
        """The run of this worker is over."""
        self._lines.pop(worker, None)

    def has_begun(self, call: AwayCall) -> bool:
        """Whether the call has left for the place."""
        return call.handle is not None and call.handle.has_begun(call)

    def cancel(self, call: AwayCall) -> bool:
        """Take it back, or have it cancelled there."""
        return call.handle is None or call.handle.cancel(call)


class AwayPending(PendingCall):
    """A call that is away, as its channel sees it."""

    __slots__ = ("call", "channel", "given", "line")

    def __init__(self, channel: Channel, line: FarLine, call: AwayCall) -> None:
        super().__init__(channel.next_number(), call.name, line.worker.site.flow, call.node)
        self.channel, self.line, self.call = channel, line, call
        self.given: Given = None

    def rouse(self) -> None:
        """Have the away worker look at the answer, once there is one."""
        if self.settled:
            self.line.worker.outcomes.put(self.look)

    def look(self) -> None:
        """In the away worker's thread: see what has become of the call."""
        self.line.settled(self)


class FarLine:
    """The calls of one task and run at a place: those that wait here, and those that are with the
    agent.

    All of it happens in the thread of the away worker.
    """

    def __init__(self, place: FarPlace, worker: AwayWorker) -> None:
        self.place, self.worker = place, worker
        self.waiting: collections.deque[AwayCall] = collections.deque()
        self.under_way: dict[AwayCall, AwayPending] = {}
        self._channel: Channel | None = None
        self._opening = False
        #: The watcher has asked for more calls, and none were submitted since.
        self._asked = False
        #: The lost connections of attempts that are not over, by node and attempt.
        self._losses: dict[tuple[int, int], list[BaseException]] = {}
        #: Where records of what runs there go; "" until that is needed.
        self._folder: str | None = None
        self._most = MOST_PROCESSES if place.in_processes else None

    # What the away worker wants ---------------------------------------------------------------

    def begin(self, calls: Sequence[AwayCall]) -> None:
        """Take over these calls."""
        for call in calls:
            call.handle, call.where = self, self.place.transport.place
        self.waiting += calls
        self.submit()

    def has_begun(self, call: AwayCall) -> bool:
        """Whether a call has left."""
        pending = self.under_way.get(call)
        return pending is not None and not pending.channel.is_waiting(pending)

    def cancel(self, call: AwayCall) -> bool:
        """Nobody wants this call any more. Whether its body is stopped, or never begins."""
        pending = self.under_way.pop(call, None)
        if pending is None:
            with contextlib.suppress(ValueError):
                self.waiting.remove(call)
            return True
        self.release(call)
        return pending.channel.forget(pending) or self.place.in_processes

    def end(self) -> None:
        """The run is over."""
        self.waiting.clear()
        leave(self)
        self.place.end(self.worker)

    # Submitting -------------------------------------------------------------------------------

    def wants_room(self) -> bool:
        """Whether calls wait for room in the outbox, and nobody has said yet that there is some.
        Asked by the watcher, which then has `submit` called."""
        if not self.waiting or self._asked or self._is_full():
            return False
        self._asked = True
        return True

    def ask(self) -> None:
        """Have calls submitted. From any thread."""
        self.worker.outcomes.put(self.submit)

    def _is_full(self) -> bool:
        return self._most is not None and len(self.under_way) >= self._most

    def submit(self) -> None:
        """Submit calls as long as there is room for them."""
        self._asked = False
        while self.waiting:
            channel = self._usable()
            if channel is None or not channel.has_room or self._is_full():
                return
            self.send(channel, self.waiting.popleft())

    def send(self, channel: Channel, call: AwayCall) -> None:
        """Submit one call."""
        try:
            pending, parts = self._packed(channel, call)
        except BaseException as error:
            self.release(call)
            call.failed(error)
            return
        self.under_way[call] = pending
        try:
            channel.submit(pending, parts, call.let_go)
        except EntangleError as error:  # lost at this moment
            if self.under_way.pop(call, None) is not None:
                self.release(call)
                self._lost(call, error)

    def release(self, call: AwayCall) -> None:
        """A call is with the place no more."""

    def _packed(self, channel: Channel, call: AwayCall) -> tuple[AwayPending, Any]:
        """A call as the parts of its message."""
        pending = AwayPending(channel, self, call)
        site, record = self.worker.site, None
        mode = site.table.header[NOTING]
        if mode in (SHORT, WHOLE):
            if self._folder is None:
                self._folder = _remote.travels().destination(self.worker)
            pending.records = self._folder
            if self._folder:
                record = site.run_id, call.node, mode == WHOLE
        call.where, call.ticket = channel.place, channel.transport.ticket
        args, kwargs = call.take()
        parts, pending.given = job.pack(self.place.rest, tuple(args), kwargs, channel.about, channel.place, record)
        return pending, parts

    # The channel ------------------------------------------------------------------------------

    def _usable(self) -> Channel | None:
        """The channel; None while it is being opened."""
        channel = self._channel
        if channel is not None and channel.usable():
            return channel
        if self._opening:
            return None
        channel, furnishing = known_channel(self.place.transport), self.place.furnishing
        if channel is None or (furnishing is not None and not furnishing.is_done(channel)):
            self._opening = True
            _open(self)
            return None
        self._use(channel)
        return channel

    def _use(self, channel: Channel) -> None:
        self._channel = channel
        watch(self, channel)

    def opened(self, channel: Channel | None, error: BaseException | None) -> None:
        """The channel is open, or cannot be opened."""
        self._opening = False
        if channel is not None and not channel.usable():
            error = channel.lost
        if error is not None:
            self.fail_waiting(error)
        elif channel is not None:
            self._use(channel)
            self.submit()

    def fail_waiting(self, error: BaseException) -> None:
        """The place cannot be reached: each call that waits fails with an error of its own."""
        waiting, self.waiting = list(self.waiting), collections.deque()
        for call in waiting:
            self._lost(call, _another(error))

    # Outcomes ---------------------------------------------------------------------------------

    def settled(self, pending: AwayPending) -> None:
        """A call has its answer, or its stream is lost."""
        call = pending.call
        if self.under_way.get(call) is not pending:
            return
        del self.under_way[call]
        self.release(call)
        message: Message | None = pending.answer
        pending.answer = None
        error: BaseException | None = None
        value: Any = None
        if message is None:
            assert pending.error is not None
            error = _another(pending.error)
        else:
            place = pending.channel.place
            try:
                if message.kind == VALUE:
                    value = job.value_of(message.parts, call.name, place, pending.given)
                else:
                    error = job.error_of(message.parts, call.name, place, pending.given)
            except BaseException as problem:
                error = problem
        if error is not None:
            self._lost(call, error)
        else:
            self._losses.pop((call.node, call.attempt), None)
            call.done(value)
        error = value = None  # its traceback has this frame
        if self.waiting:
            self.submit()

    def _lost(self, call: AwayCall, error: BaseException) -> None:
        """A call has failed. A lost connection is an attempt where a layer below has `retry`."""
        terms = self.place.again
        key = call.node, call.attempt
        lost = self._losses.get(key, [])
        if terms is None or not comes_back(error, lost):
            self._losses.pop(key, None)
            call.failed(error)
            return
        lost.append(error)
        if len(lost) > terms.retry:
            self._losses.pop(key, None)
            call.failed(used_up(call.name, lost))
            return
        self._losses[key] = lost
        call.again(pause(terms, len(lost)))


def _another(error: BaseException) -> BaseException:
    """A copy of an error that several calls share."""
    if not isinstance(error, EntangleError):
        return error
    try:
        copy = type(error)(*error.args)
    except Exception:
        return error
    for note in getattr(error, "__notes__", ()):
        add_note(copy, note)
    return copy


# Opening channels ---------------------------------------------------------------------------------

#: The lines that wait for a channel, by its key and what is to be done there.
_openings: dict[Hashable, list[FarLine]] = {}
_guard = threading.Lock()


def _open(line: FarLine) -> None:
    """Have a thread open the channel for a line, unless one does so already."""
    place = line.place
    key = place.transport.key, place.furnishing
    with _guard:
        lines = _openings.get(key)
        if lines is not None:
            lines.append(line)
            return
        _openings[key] = [line]
    opener = threading.Thread(target=_open_for_all, args=(key, place), name="entangle-open", daemon=True)
    try:
        opener.start()
    except RuntimeError as error:
        _tell(key, None, error)


def _open_for_all(key: Hashable, place: FarPlace) -> None:
    channel: Channel | None = None
    failure: BaseException | None = None
    try:
        channel = channel_to(place.transport)
        if place.furnishing is not None:
            place.furnishing.see_to(channel)
    except BaseException as error:
        channel, failure = None, error
    _tell(key, channel, failure)


def _tell(key: Hashable, channel: Channel | None, error: BaseException | None) -> None:
    with _guard:
        lines = _openings.pop(key, [])
    for line in lines:
        line.worker.outcomes.put(_opened(line, channel, error))


def _opened(line: FarLine, channel: Channel | None, error: BaseException | None) -> Callable[[], None]:
    return lambda: line.opened(channel, error)


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    _openings.clear()


os.register_at_fork(after_in_child=_after_fork)
