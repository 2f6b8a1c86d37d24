"""The caller's side of a stream to an agent. Many calls share it; no thread exists only to read.

One of the threads that wait for an answer is the leader. It reads the stream and hands each message
to the call that it belongs to. When it has its own answer, another waiting thread leads. So a
process without a call under way has no thread of ours in it, and may fork. A thread that finds the
stream full leads as well, if nobody does: otherwise both sides could wait for each other to read.

Calls that are away have no thread that waits. `submit` leaves them in the outbox, and the watcher
of all streams (`stream_watcher.py`) leads.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from entangle import _remote
from entangle._remote.caller import bootstrap, job, modules
from entangle._remote.caller.greeting import diagnosis, greet
from entangle._remote.caller.outbox import Outbox
from entangle._remote.caller.pending_call import PendingCall
from entangle._remote.caller.questions import Questions
from entangle._remote.caller.shown import Shown
from entangle._remote.caller.stderr import Stderr
from entangle._remote.transport import Transport
from entangle._remote.wire.byte_stream import ByteStream, ProcessStream, wait_ready
from entangle._remote.wire.controls import escaped_within
from entangle._remote.wire.frames import (
    CALL,
    CANCEL,
    ERROR,
    FIND,
    HELLO,
    LIMIT,
    MODULE,
    PING,
    PONG,
    PRINT,
    RECORD,
    SMALL,
    VALUE,
    VERSION,
    Bytes,
    Decoder,
    Message,
    Press,
    Segments,
    compressions,
    control,
    encode,
)
from entangle._shared.home import branch
from entangle._shared.interrupts import whole
from entangle._shared.notes import SHORT, WHOLE
from entangle._shared.table import NOBODY, NODE, NOTING
from entangle._shared.whereabouts import tell_of
from entangle._tasks.layer import Decorated
from entangle._worker.worker import here
from entangle.errors import EntangleError, FarError, LinkLostError, ProtocolError, RunCancelledError, UnreachableError

#: Time for an agent to answer a PING after a call to it was given up (seconds).
DOUBT = 2.0
#: How long an agent of a session stays after we have stopped using it (seconds): a call that is on
#: its way must find it.
MARGIN = 10.0
#: Time for output that is still on its way when a channel closes (seconds).
LAST_WORDS = 1.0
#: How long a thread that waits for several channels may write to one of them without a pause
#: (seconds).
_TURN = 0.02


class _Step:
    """A block that keeps a channel consistent: signals wait until its end.

    An exception that gets in all the same ends the channel.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __enter__(self) -> None:
        whole.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: object, at: object) -> None:
        if kind is not None and not issubclass(kind, FarError):
            self._channel.torn = True
        whole.__exit__()


class _Stopped(Exception):
    """Nobody waits for this call any more."""


class Channel:
    """A stream to an agent. Threads share it. `open_channels.channel_to` makes it."""

    def __init__(self, transport: Transport, settings: dict[str, Any] | None = None) -> None:
        self.transport = transport
        #: The settings of the session that it was opened in, if any; when its last call began or
        #: ended (of the monotonic clock).
        self._settings, self._used = settings, time.monotonic()
        #: It is no longer used after this time without a call (seconds); None: it stays.
        self._idle: float | None = settings["idle"] if settings is not None else transport.idle
        self.place = transport.place
        self.lost: FarError | None = None
        #: A step was broken off: the bytes that follow have no known meaning.
        self.torn = False
        self._step = _Step(self)
        #: What the agent has said about its place.
        self.about: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._calls: dict[int, PendingCall] = {}
        self._guard = threading.Lock()
        self._leader: object | None = None
        #: Wakes the thread that leads this channel among others, where there is one: it leads
        #: whenever no other thread does.
        self.watcher: Callable[[], None] | None = None
        #: Held while writing. An interrupted writer leaves the rest in the outbox to the next one.
        self._sending = threading.Lock()
        self._outbox = Outbox()
        self._decoder = Decoder(_limit())
        #: Messages that have arrived and are not handled yet.
        self._inbox: deque[Message] = deque()
        #: The number of the last PING after a call was given up; 0 once its PONG has come.
        self._doubt = 0
        self._modules = modules.Sent()
        self._questions = Questions(self._modules)
        self._renewing = threading.Lock()
        self._shown = Shown(self.place, self._calls)
        self._greeted = False
        self._pid = os.getpid()
        self._silence = _silence(transport)
        self._quiet = 0.0
        self._pinged = False
        #: Part of an answer has come, and the rest may wait for a sign of ours.
        self._partly = False
        self._wake, self._waker = os.pipe()
        self._closed = False
        for fd in (self._wake, self._waker):
            os.set_blocking(fd, False)
        try:
            self._stream: ByteStream = transport.open(bootstrap.ARGUMENTS)
        except BaseException as error:
            os.close(self._wake)
            os.close(self._waker)
            if isinstance(error, OSError) and not isinstance(error, EntangleError):
                raise UnreachableError(f"{self.place}: {error}") from error
            raise
        self._stderr = Stderr(self._stream.errors, self._shown)
        try:
            for fd in (self._stream.reads, self._stream.writes, self._stream.errors):
                if fd >= 0:
                    os.set_blocking(fd, False)
            with whole.held():
                self._greet()
        except BaseException:
            self._stream.kill()
            self.close()
            raise

    # The beginning --------------------------------------------------------------------------

    def _greet(self) -> None:
        """Start the agent, and wait for its HELLO."""
        until = time.monotonic() + self.transport.timeout
        words = memoryview(bootstrap.first_words(self._config()))
        words, heard = greet(self.transport, self._stream, self._stderr, words, until)
        with self._leading():
            if words:
                self._write([words])
            try:
                self._inbox.extend(self._decoder.feed(heard))
            except ProtocolError as error:
                self._refuse(error)
            while not self.about and self.lost is None:
                if time.monotonic() >= until:
                    raise diagnosis(self.transport, self._stream, self._stderr)
                self._pump(until - time.monotonic())
        if isinstance(self.lost, ProtocolError):
            raise self.lost
        if self.lost is not None:
            raise diagnosis(self.transport, self._stream, self._stderr, ended=True)
        if self.about.get("protocol") != VERSION:
            raise ProtocolError(f"{self.place}: its agent speaks version {self.about.get('protocol')} of the protocol, not {VERSION}")
        self._greeted = self._stderr.visible = True
        self._press = Press([method for method in compressions() if method in self.about["press"]])
        with contextlib.suppress(LinkLostError):  # the first call will notice
            self._send(MODULE, 0, [[modules.bundle(self.about["magic"])]])

    def _config(self) -> dict[str, Any]:
        """What the agent is told of us before anything else."""
        lasts = self._idle + MARGIN if self._idle is not None else None
        told = {"silence": self._silence, "press": compressions(), "branch": branch()}
        return {**told, "session": self._settings, "lasts": lasts, "nudges": self.transport.nudges}

    # Calls ----------------------------------------------------------------------------------

    def call(self, rest: Decorated, args: tuple[Any, ...], kwargs: dict[str, Any], queued: int = 0) -> Any:
        """Run a task there, and give its value. It was `queued` for this long (nanoseconds).

        Raises what the task raises, LinkLostError if the connection ends first, and
        UnpicklableError if an argument or the value cannot travel.
        """
        name = rest.__name__
        worker = here.worker
        flow, node = (worker.site.flow, worker.site.table.slots[worker.base + NODE]) if worker is not None else (None, NOBODY)
        call = PendingCall(self.next_number(), name, flow, node)
        record = None
        if worker is not None and (mode := worker.site.table.header[NOTING]) in (SHORT, WHOLE):
            call.records = _remote.travels().destination(worker)
            if call.records:
                record = worker.site.run_id, call.node, mode == WHOLE
        if worker is not None:
            tell_of(worker, call.node, self.place, self.transport.ticket, since=time.monotonic_ns())
            if worker.notes is not None:
                worker.notes.elsewhere(call.node, self.place, self.transport.ticket, -queued)
        parts, given = job.pack(rest, args, kwargs, self.about, self.place, record)

        def cancel() -> None:
            self._settle(call)
            with contextlib.suppress(OSError):
                os.write(self._waker, b"!")

        try:
            whole.begin()
            with self._guard:
                if self.lost is not None:
                    raise self._again(self.lost)
                self._calls[call.number] = call
                self._used = time.monotonic()
            with worker.ending_with(cancel) if worker is not None else contextlib.nullcontext(), contextlib.suppress(_Stopped):
                self._send_renewed(call)
                self._send(CALL, call.number, parts, call)
                del parts, args, kwargs
                self._wait(call)
        except BaseException:
            self._forget(call)
            raise
        finally:
            whole.end()
        message = call.answer
        if message is None:
            self._forget(call)
            if call.error is not None:
                raise self._again(call.error)
            raise RunCancelledError(f"the call of {name!r} at {self.place} was cancelled")
        call.answer = None
        if message.kind == VALUE:
            return job.value_of(message.parts, name, self.place, given)
        raise job.error_of(message.parts, name, self.place, given)

    def next_number(self) -> int:
        """A number for a call, which no other has."""
        return next(self._numbers)

    def submit(self, call: PendingCall, parts: Sequence[Segments], gone: Callable[[], None]) -> None:
        """Have a call sent, in turn with others; returns at once. `gone` is called when all of it
        has left, from any thread, and `call` is roused when it is settled.

        Raises what ended the stream, if that has ended.
        """
        with self._guard:
            if self.lost is not None:
                raise self._again(self.lost)
            self._calls[call.number] = call
            self._used = time.monotonic()
        with self._renewing:
            renewed = self._modules.renewed()
            if renewed is not None:  # it goes before any message
                for pieces in encode(MODULE, 0, [[renewed]]):
                    self._outbox.queue(pieces)
                self._modules.sent()
        size = sum(len(segment) for part in parts for segment in part)
        self._outbox.add(call.number, self._measured(encode(CALL, call.number, parts, self._press), gone), size)
        if size <= SMALL:  # its one frame is little beside what it is made of
            gone()
        self._flush_if_free()

    def _measured(self, frames: Iterator[list[Bytes]], gone: Callable[[], None]) -> Iterator[list[Bytes]]:
        """Frames whose way out is measured: the next one is asked for when the last one is out."""
        for pieces in frames:
            began = time.perf_counter()
            yield pieces
            self._press.wrote(sum(map(len, pieces)), time.perf_counter() - began)
        gone()

    @property
    def has_room(self) -> bool:
        """Whether a call that is submitted now would soon be on its way."""
        return self._outbox.has_room

    def is_waiting(self, call: PendingCall) -> bool:
        """Whether a call that was submitted has not left wholly."""
        return self._outbox.holds(call.number)

    def forget(self, call: PendingCall) -> bool:
        """Nobody waits for this call any more. Whether nothing of it has ever left."""
        if self._outbox.withdraw(call.number):
            with self._guard:
                self._calls.pop(call.number, None)
            return True
        self._forget(call)
        return False

    def _send_renewed(self, call: PendingCall) -> None:
        """Send the modules that were reloaded here, before any call that needs them."""
        with self._renewing:
            renewed = self._modules.renewed()
            if renewed is not None:
                try:
                    self._send(MODULE, 0, [[renewed]], call)
                except BaseException:
                    self._post(control(CANCEL))
                    raise
                self._modules.sent()

    def _again(self, error: BaseException) -> BaseException:
        """A copy of an error, so that each thread raises one of its own."""
        return type(error)(*error.args)

    def _forget(self, call: PendingCall) -> None:
        """Nobody waits for this call any more: cancel it there."""
        with self._step:
            with self._guard:
                known = self._calls.pop(call.number, None)
                self._used = time.monotonic()
            self._hand_over(call)  # an interrupt may have come before it could
            if known is not None and self.lost is None and call.answer is None:
                self._outbox.post(control(CANCEL, call.number))
                self._doubt = call.number
                self._outbox.post(control(PING, call.number))
        self._shown.finish(call.number)
        self._flush_if_free()

    def _settle(self, call: PendingCall) -> None:
        call.settled = True
        call.rouse()

    def _wait(self, call: PendingCall) -> None:
        """Wait for an answer: lead, or wait to be woken."""
        while not call.settled:
            try:
                if self._lead(call):
                    while not call.settled:
                        self._pump(self._silence)
                else:
                    call.wake.acquire()
            finally:
                self._hand_over(call)

    def _lead(self, leader: object) -> bool:
        """Lead from now on, unless another thread does. It is always safe to `_hand_over`."""
        with self._step, self._guard:
            if self._leader is None:
                self._leader = leader
            return self._leader is leader

    @contextlib.contextmanager
    def _leading(self) -> Iterator[bool]:
        """Lead in this block, unless another thread does."""
        me = object()
        try:
            yield self._lead(me)
        finally:
            self._hand_over(me)

    def _hand_over(self, leader: object) -> None:
        """Stop leading, and wake another waiting thread.

        This also holds if nobody leads: the thread that was woken last may have been interrupted.
        """
        with self._step:
            with self._guard:
                if self._leader is not None and self._leader is not leader:
                    return
                self._leader = None
                watcher = self.watcher
                heir = next((call for call in self._calls.values() if not call.settled), None) if watcher is None else None
            if watcher is not None:
                watcher()
            elif heir is not None:
                heir.rouse()

    # Leading for many channels, in a thread that waits for all of them ----------------------

    def be_led(self, leader: object) -> bool:
        """Have a thread lead that waits for more than this channel, unless another one does. It
        calls `attend` whenever one of `interests` is ready."""
        return self.lost is None and self._lead(leader)

    def be_left(self, leader: object) -> None:
        """That thread leads no more."""
        self._hand_over(leader)

    def interests(self) -> dict[int, int]:
        """The descriptors that its leader waits for, and for which events of poll(2)."""
        found = {fd: select.POLLIN for fd in (self._stream.reads, self._stderr.fd, self._wake) if fd >= 0}
        if self._outbox and not self._sending.locked():
            found[self._stream.writes] = found.get(self._stream.writes, 0) | select.POLLOUT
        return found

    @property
    def patience(self) -> float:
        """How long its leader may wait before it calls `attend` (seconds)."""
        return 0.0 if self._inbox or self.torn else self._silence / 8

    def attend(self, ready: Container[int], waited: float) -> None:
        """Handle what has come. `ready` has the descriptors that poll(2) has found, `waited` how
        long the wait was (seconds)."""
        self._check_whole()
        if self._inbox:
            self._handle_inbox()
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        if self._stderr.fd >= 0 and self._stderr.fd in ready:
            self._stderr.read()
        if self._stream.reads in ready:
            self._read_frames()
        else:
            self._check_silence(waited)
        self._flush_if_free(leads=True)
        if self._partly:
            self._partly = False
            if not wait_ready([self._stream.reads], [], 0):
                self._outbox.post(control(PONG))
                self._flush_if_free(leads=True)

    def give_up(self, error: FarError) -> None:
        """End the stream, for a fault of our own."""
        self._lose(error)
        self._stream.kill()

    # Reading, by the leader -----------------------------------------------------------------

    def _pump(self, seconds: float, writes: int = -1) -> bool:
        """Wait for something to arrive, and handle it. Gives whether `writes` can be written to."""
        self._check_whole()
        if self._inbox:
            self._handle_inbox()
            return False
        stream = self._stream
        if writes < 0:
            self._flush_if_free(leads=True)
            if self._outbox and not self._sending.locked():
                writes = stream.writes
        if self._partly:
            self._partly = False
            if not wait_ready([stream.reads], [], 0):
                self._post(control(PONG))
        most = min(seconds, self._silence / 8)
        began = time.monotonic()
        ready = wait_ready([stream.reads, self._stderr.fd, self._wake], [writes], most)
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        if self._stderr.fd in ready:
            self._stderr.read()
        if stream.reads in ready:
            self._read_frames()
        elif not ready:
            self._check_silence(min(most, time.monotonic() - began))
        return writes in ready

    def _check_whole(self) -> None:
        if self.torn and self.lost is None:
            self._lose(LinkLostError(f"{self.place}: an interrupt broke off a message, so the connection was closed"))
            self._stream.kill()

    def _read_frames(self) -> None:
        """Read what has arrived, and handle it."""
        size = 0
        try:
            with self._step:
                try:
                    size = os.readv(self._stream.reads, [self._decoder.room()])
                except BlockingIOError:
                    return
                except OSError:
                    pass
                if size:
                    self._quiet, self._pinged = 0.0, False
                    self._partly = self.transport.nudges
                    for message in self._decoder.received(size):
                        self._inbox.append(message)
                        self._partly = self._partly and message.kind not in (PONG, VALUE, ERROR)
                    self._partly = self.transport.nudges and (self._decoder.inside or self._partly)
        except ProtocolError as error:
            self._refuse(error)
        else:
            if not size:
                self._lose(None)
        if self._inbox:
            self._handle_inbox()

    def _refuse(self, error: ProtocolError) -> None:
        """End the stream: what arrived is nothing that an agent sends."""
        self._lose(ProtocolError(f"{self.place}: {error}"))
        self._stream.kill()  # it may be any program

    def _handle_inbox(self) -> None:
        """Handle what has arrived. A message leaves the inbox last, so an interrupt loses none."""
        until = time.monotonic() + 0.5
        while self._inbox and self.lost is None:
            message = self._inbox[0]
            try:
                self._handle(message)
            except ProtocolError as error:
                self._refuse(error)
            except (IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
                told = f"{type(error).__name__}: {error}"
                self._refuse(ProtocolError(f"a message of kind {message.kind} cannot be read ({told})"))
            if time.monotonic() > until:
                return  # messages may come without end: look around in between

    def _handled(self, message: Message) -> None:
        if self._inbox and self._inbox[0] is message:
            self._inbox.popleft()

    def _handle(self, message: Message) -> None:
        kind, number, parts = message
        if kind in (VALUE, ERROR):
            if number in self._calls:
                self._stderr.read()  # what was written before the value is shown before it
                self._shown.finish_call(number)
            with self._step:
                with self._guard:
                    call = self._calls.pop(number, None)
                    self._used = time.monotonic()
                if call is not None:
                    call.answer = message
                    self._settle(call)
                self._handled(message)
            return
        if kind == FIND:
            self._answer_question(number, bytes(parts[0]))
        with self._step:
            self._handled(message)
            call = self._calls.get(number) if kind == RECORD else None
            if call is not None and call.records:
                _remote.travels().keep(call.records, [bytes(part) for part in parts])
        if kind == RECORD:
            pass
        elif kind == PRINT:
            self._shown.take(number, bytes(parts[0]))
        elif kind == HELLO:
            self._handle_hello(bytes(parts[0]))
        elif kind == PING:
            self._owe([[control(PONG, number)]])
        elif kind == PONG:
            if number and number == self._doubt:
                self._doubt = 0
        elif kind not in (FIND, CANCEL):
            raise ProtocolError(f"a message of kind {kind}, which an agent does not send")

    def _handle_hello(self, said: bytes) -> None:
        if self.about:
            raise ProtocolError("the agent has said HELLO twice")
        try:
            about = escaped_within(json.loads(said))
            python = [int(part) for part in about["python"]]
            if len(python) < 2 or not all(isinstance(about[name], str) for name in ("magic", "implementation", "executable", "host")):
                raise ValueError("wrong types")
            self.about = {**about, "python": python, "press": [str(method) for method in about["press"]]}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ProtocolError(f"the agent's HELLO cannot be read ({type(error).__name__}: {error})") from None

    def _answer_question(self, number: int, said: bytes) -> None:
        """Send a module that the agent lacks."""
        body = self._questions.answer(said, self.about["magic"])
        self._owe(list(encode(MODULE, number, [[body]])))

    def _owe(self, frames: list[list[Bytes]]) -> None:
        """Have the next writer send these."""
        self._outbox.check_room(frames)
        with self._step:
            self._outbox.owe(frames)

    def _check_silence(self, waited: float) -> None:
        """Nothing has arrived for a while: send a PING, and in the end give up.

        Only time spent listening counts, so a machine that was asleep loses nothing.
        """
        self._quiet += waited
        if self._quiet > self._silence:
            self._stream.kill()
            told = f"the agent has been silent for {self._silence:g} s, so the connection counts as cut (ENTANGLE_SILENCE sets this time)"
            self._lose(LinkLostError(f"{self.place}: {told}"))
        elif self._quiet > self._silence / 4 and not self._pinged:
            self._pinged = True
            self._outbox.post(control(PING))  # any message is an answer, not only its PONG

    def _lose(self, error: FarError | None) -> None:
        """The stream cannot be used any more: tell every call under way."""
        if self.lost is not None:
            return
        if error is None:
            error = self._exit_error() if self._greeted else LinkLostError(f"{self.place}: the stream ended")
        with self._step, self._guard:
            if self.lost is not None:
                return
            self.lost = error
            calls = list(self._calls.values())
            self._calls.clear()
            for call in calls:
                call.error = error
                self._settle(call)
            with contextlib.suppress(OSError):
                os.write(self._waker, b"!")
        self._shown.finish()

    def _exit_error(self) -> FarError:
        """Why the stream has ended: how the program exited, and the tail of its stderr."""
        until = time.monotonic() + 0.5
        self._stderr.read_last()
        while (status := self._stream.status()) is None and time.monotonic() < until:
            time.sleep(0.002)
        if (told := self.transport.ended(status, self._stderr.tail())) is not None:
            return told
        how = "" if status is None else f" (exit status {status})" if status >= 0 else f" (signal {-status})"
        tail = self._stderr.tail().strip().splitlines()[-6:]
        said = "; its stderr ended with: " + " / ".join(tail) if tail else ""
        return LinkLostError(f"{self.place}: the agent or the connection to it ended during the call{how}{said}")

    # Writing --------------------------------------------------------------------------------

    def _send(self, kind: int, number: int, parts: Sequence[Segments], call: PendingCall | None = None) -> None:
        """Send a message. Raises LinkLostError, or _Stopped if its call is settled before that."""
        for pieces in encode(kind, number, parts, self._press):
            began = time.perf_counter()
            self._write(pieces, call)
            self._press.wrote(sum(map(len, pieces)), time.perf_counter() - began)
            if self._outbox:  # messages that take turns have theirs
                self._flush_if_free()
        self._flush_if_free()

    def _write(self, pieces: Sequence[Bytes], call: PendingCall | None = None) -> None:
        """Write a frame, after the frames that wait. Raises as `_send` does.

        After an error the next writer goes on with the rest: the agent never sees half a frame.
        """
        turn = False
        try:
            while not turn:
                if call is not None and call.settled:
                    raise _Stopped
                with self._step:  # an interrupt must not hide that we hold it
                    turn = self._sending.acquire(timeout=0.05)
            while not self._push(messages=False):
                self._wait_to_write(call)
            with self._step:
                self._outbox.begin(pieces)
            while not self._push(messages=False):
                self._wait_to_write(call)
        except BaseException:
            if turn:
                with self._step:
                    self._outbox.copy()
            raise
        finally:
            if turn:
                self._sending.release()

    def _push(self, messages: bool = True) -> bool:
        """Write what the stream takes now, also of the `messages` that take turns. Gives whether
        nothing is left. Raises what ended it.

        The caller holds `_sending`.
        """
        ended = False
        until = time.monotonic() + _TURN
        while not ended:
            self._check_whole()
            if self.lost is not None:
                raise self._again(self.lost)
            with self._step:
                if not self._outbox.next(messages):
                    return True
                if messages and time.monotonic() > until:
                    return False
                try:
                    self._outbox.write(self._stream.writes)
                except BlockingIOError:
                    return False
                except OSError:
                    ended = True
        self._lose(None)
        raise self._again(self.lost) if self.lost is not None else AssertionError

    def _wait_to_write(self, call: PendingCall | None = None) -> None:
        """The stream is full. The peer may be blocked writing; keep reading to avoid a deadlock."""
        if call is not None and call.settled:
            raise _Stopped
        with self._leading() as leads:
            if leads:
                self._pump(1.0, self._stream.writes)
            else:
                wait_ready([], [self._stream.writes], 0.1)

    def _post(self, frame: bytes) -> None:
        """Send a small frame without waiting."""
        self._outbox.post(frame)
        self._flush_if_free()

    def _flush_if_free(self, leads: bool = False) -> None:
        """Send what the stream takes without waiting, unless another thread is sending.

        Asks again once the lock is free: avoids a lost wakeup of what was posted meanwhile. A
        leader that sleeps is told to wait for room for the rest.
        """
        full = False
        while self._outbox and not full:
            turn = False
            try:
                with self._step:
                    turn = self._sending.acquire(blocking=False)
                if not turn:
                    return
                full = not self._push()  # the leader goes on when it can
            except FarError:
                return
            finally:
                if turn:
                    self._sending.release()
        if full and not leads:
            self._nudge()

    def _nudge(self) -> None:
        """Have the leader look again."""
        with contextlib.suppress(OSError):
            os.write(self._waker, b"!")

    # The end --------------------------------------------------------------------------------

    def usable(self) -> bool:
        """As `alive`, of what is known without asking the agent."""
        known = self.lost is None and not self.torn and self._pid == os.getpid() and not self._is_stale()
        return known and not (self._doubt and not self._calls)

    def alive(self) -> bool:
        """Whether the agent is there, as far as we know. Handles what has arrived meanwhile.

        If a call was given up and no other is under way, the agent is asked: it may be the reason.
        """
        if self.lost is not None or self._pid != os.getpid() or self._is_stale():
            return False
        if self._doubt and not self._calls:
            with whole.held():
                self._ask_again()
        self._hear(0.05)
        return self.lost is None and not self.torn

    def busy(self) -> bool:
        """Whether calls are under way."""
        return bool(self._calls)

    def _is_stale(self) -> bool:
        """Whether it has had nothing to do for so long that its agent may be about to end."""
        return self._idle is not None and not self._calls and time.monotonic() - self._used > self._idle

    def _hear(self, seconds: float) -> None:
        """Handle what has arrived, for a while: messages may come without end."""
        if not self._inbox and not wait_ready([self._stream.reads], [], 0):
            return
        until = time.monotonic() + seconds
        with whole.held(), self._leading() as leads:
            while leads and self.lost is None and (self._inbox or wait_ready([self._stream.reads], [], 0)):
                self._read_frames()
                if time.monotonic() > until:
                    break

    def _ask_again(self) -> None:
        """Wait for the PONG after a call was given up. Without one, the agent counts as lost."""
        until = time.monotonic() + DOUBT
        while self._doubt and self.lost is None and not self._calls:
            if time.monotonic() > until:
                told = f"the agent has not answered for {DOUBT:g} s after a call was given up"
                self._lose(LinkLostError(f"{self.place}: {told}"))
                self._stream.kill()
                return
            with self._leading() as leads:
                if leads:
                    self._pump(0.1)
            if not leads:
                time.sleep(0.005)

    def hang_up(self, until: float) -> None:
        """Show the output that is still on its way, then close the stream. The agent ends with it.

        `until` is a time of the monotonic clock.
        """
        with self._guard:
            if self._closed:
                return
            self._closed = True
        if self._greeted and self.lost is None and not self.torn and self._pid == os.getpid():
            self._hear(max(0.0, until - time.monotonic()))
        self._lose(LinkLostError(f"{self.place}: the channel was closed"))
        with contextlib.suppress(Exception):
            self._stderr.read()
            self._shown.finish()
        until = time.monotonic() + 0.5
        while self._leader is not None and time.monotonic() < until:
            # The leader must stop first: these descriptors may soon belong to another file.
            time.sleep(0.001)
        self._stream.hang_up()

    def close(self) -> None:
        """End the agent, and show its last output."""
        self.hang_up(time.monotonic() + LAST_WORDS)
        with self._guard:
            if self._wake < 0:
                return
            wake, waker, self._wake, self._waker = self._wake, self._waker, -1, -1
        self._stream.close()
        os.close(wake)
        os.close(waker)

    def runs(self) -> bool:
        """Whether the program at our end of the stream is known to run."""
        return self._stream.status() is None and isinstance(self._stream, ProcessStream)

    def kill(self) -> None:
        """End the agent at once."""
        self._stream.hang_up()
        self._stream.kill()

    def abandon(self) -> None:
        """In a forked child: close what belongs to the parent."""
        self._stream.abandon()
        for fd in (self._wake, self._waker):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.lost = LinkLostError(f"{self.place}: this stream belongs to another process")


def _limit() -> int:
    given = os.environ.get("ENTANGLE_WIRE_LIMIT", LIMIT)
    try:
        limit = int(given)
    except ValueError:
        limit = 0
    if limit < 1:
        raise EntangleError(f"ENTANGLE_WIRE_LIMIT={given}: it must be a whole number of bytes above 0")
    return limit


def _silence(transport: Transport) -> float:
    given = os.environ.get("ENTANGLE_SILENCE", "120")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:  # this is also true of nan
        raise EntangleError(f"ENTANGLE_SILENCE={given}: it must be a number of seconds above 0")
    return max(0.1, seconds)
