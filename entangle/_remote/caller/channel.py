"""The caller's side of a stream: many calls in flight over one agent, and nobody to wait on them but those who call.

There is no thread that reads. Of the threads that wait for an answer one leads: it reads the stream and hands each message to
whom it belongs, until it has its own; then another one leads. So a process that has agents, but no call under way, has no
thread of ours in it, and may fork. A thread that wants to write while the line is full, and finds nobody reading, reads as well:
both sides can never wait for each other to read.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from entangle import _remote, _run
from entangle._remote.agent.imports import MODULES_ALONE
from entangle._remote.caller import bootstrap, job, modules
from entangle._remote.caller.shown import Shown
from entangle._remote.transport import Transport
from entangle._remote.wire.byte_stream import ByteStream, ProcessStream
from entangle._remote.wire.controls import escaped, escaped_within
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
from entangle._worker.worker import Worker, here
from entangle.errors import EntangleError, FarError, LinkLostError, ProtocolError, RunCancelledError, UnfitPythonError, UnreachableError
from entangle.task import Task

#: What may come before the agent's first line: a banner, the greeting of a shell (bytes).
PREFACE = 64 << 10
#: Lines of stderr that an error quotes.
TAIL = 4096
#: Questions for modules: so many in a row, so many more each second, and so many of the same.
QUESTIONS, QUESTIONS_A_SECOND, SAME_QUESTIONS = 4_000, 100, 100
#: Bytes that may wait to be sent to an agent that asks for them.
MOST_OWED = 256 << 20
#: Seconds for an agent to show that it is there, after a call to it was given up.
DOUBT = 2.0
#: Seconds in which what agents still have to say is heard at the end.
LAST_WORDS = 1.0
#: Whose a printed line is where it is no call's: of a thread that nobody knows; written to descriptor 1 or 2.
NOBODYS, PROGRAMS = 0, -1
#: What is printed to: stdout, stderr, and descriptor 1 by something else than Python's own print.
STREAMS = (b"\1", b"\2", b"\3")


class _Entry:
    """A call under way: what its thread waits for."""

    __slots__ = ("answer", "error", "flow", "name", "node", "number", "settled", "shelf", "wake")

    def __init__(self, number: int, name: str, worker: Worker | None) -> None:
        self.number = number
        self.name = name
        self.flow = worker.site.flow if worker is not None else None
        self.node: int = worker.site.table.slots[worker.base + NODE] if worker is not None else NOBODY
        self.answer: Message | None = None
        self.error: BaseException | None = None
        self.settled = False
        #: Where the records of what ran there go; "" where there is nothing to be remembered.
        self.shelf = ""
        #: Held while there is nothing to wake up for.
        self.wake = threading.Lock()
        self.wake.acquire()

    def path(self) -> str:
        """The call path, for what is printed there."""
        return self.flow.path(self.node) if self.flow is not None and self.node >= 0 else self.name

    def rouse(self) -> None:
        """Have its thread look again, now or when it is about to wait."""
        with contextlib.suppress(RuntimeError):  # it was told already
            self.wake.release()


class _Step:
    """A block that leaves a channel whole: signals wait for its end, and what breaks into it all the same ends the channel."""

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
    """A stream to an agent, from its first word to its last. Any thread may call; made by `channel_to`."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.place = transport.place
        self.lost: FarError | None = None
        #: Something broke off in the middle of a step: what comes next cannot be told.
        self.torn = False
        self._step = _Step(self)
        #: What the agent says of its place.
        self.about: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._entries: dict[int, _Entry] = {}
        self._guard = threading.Lock()
        self._leader: object | None = None
        #: Held by whoever writes. What is written stays here until the line has taken it: who is interrupted leaves it to the next.
        self._sending = threading.Lock()
        self._frame: list[memoryview] = []
        self._outbox: deque[list[Bytes]] = deque()
        #: Bytes in the outbox.
        self._owed = 0
        self._decoder = Decoder(_limit())
        #: What has come and is not seen to yet.
        self._inbox: deque[Message] = deque()
        self._questions = _Allowance()
        #: The number of a PING that was sent since somebody gave up a call; 0 once its PONG has come.
        self._doubt = 0
        self._modules = modules.Sent()
        self._renewing = threading.Lock()
        self._tail = bytearray()
        self._shown = Shown(self._where)
        self._greeted = False
        self._pid = os.getpid()
        self._silence = _silence(transport)
        self._quiet = 0.0
        self._pinged = False
        self._wake, self._waker = os.pipe()
        self._closed = False
        self._errors = -1
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
        self._errors = self._stream.errors
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

    # The beginning ------------------------------------------------------------------------------------------

    def _greet(self) -> None:
        """Start the agent, and learn where it is."""
        until = time.monotonic() + self.transport.timeout
        words = memoryview(bootstrap.first_words({"silence": self._silence, "press": compressions(), "branch": branch()}))
        heard = bytearray()
        stream = self._stream
        seen = 0
        # What has been looked through is not looked through again: there may be much of it, and it may come in small pieces.
        while (greeting := bootstrap.GREETING.search(heard, max(0, seen - bootstrap.LONGEST_GREETING))) is None:
            seen = len(heard)
            ready = _poll([stream.reads, self._errors], [stream.writes] if words else [], until - time.monotonic())
            if stream.writes in ready and words:
                try:
                    words = words[os.write(stream.writes, words) :]
                except BlockingIOError:
                    pass
                except OSError:  # it has gone; what it said tells why
                    words = words[:0]
            self._read_errors()
            if stream.reads in ready:
                data = _read(stream.reads, 65536)
                if not data:
                    if data is not None:
                        raise self._diagnosis(heard, ended=True)
                    continue
                heard += data
            if len(heard) > PREFACE or time.monotonic() >= until:
                raise self._diagnosis(heard)
        version = tuple(int(part) for part in greeting.groups()[1:])
        if version < bootstrap.OLDEST:
            raise UnfitPythonError(
                f"{self.place}: its Python is {'.'.join(map(str, version))}; entangle needs {'.'.join(map(str, bootstrap.OLDEST))} "
                f"or newer. Name another one with python=…"
            )
        with self._leading():
            if words:
                self._write([words])
            try:
                self._inbox.extend(self._decoder.feed(heard[greeting.end() :]))
            except ProtocolError as error:
                self._refuse(error)
            while not self.about and self.lost is None:
                if time.monotonic() >= until:
                    raise self._diagnosis(bytearray())
                self._pump(until - time.monotonic())
        if isinstance(self.lost, ProtocolError):
            raise self.lost
        if self.lost is not None:
            raise self._diagnosis(bytearray())
        if self.about.get("protocol") != VERSION:
            raise ProtocolError(f"{self.place}: its agent speaks version {self.about.get('protocol')} of the protocol, not {VERSION}")
        self._greeted = True
        self._press = Press([method for method in compressions() if method in self.about["press"]])
        with contextlib.suppress(LinkLostError):  # the first call will find out
            self._send(MODULE, 0, [[modules.bundle(self.about["magic"])]])

    def _diagnosis(self, heard: bytearray, ended: bool = False) -> FarError:
        """Why there is no agent."""
        # One that has closed its stdout is on its way out; how it ended is known a moment later.
        until = time.monotonic() + (2.0 if ended or self.lost is not None else 0.3)
        while (status := self._stream.status()) is None and time.monotonic() < until:
            _poll([self._errors], [], 0.01)
            self._read_errors()
        self._read_last_errors()
        words = bytes(self._tail) + bytes(heard[-TAIL:])
        return self.transport.diagnose(status, escaped(words.decode("utf-8", "replace")))

    # Calls --------------------------------------------------------------------------------------------------

    def call(self, rest: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a task there, and give its value. Raises what it raises, LinkLostError, and UnpicklableError for what cannot travel."""
        name = rest.__name__
        worker = here.worker
        entry = _Entry(next(self._numbers), name, worker)
        record = None
        if worker is not None and (mode := worker.site.table.header[NOTING]) in (SHORT, WHOLE):
            entry.shelf = _remote.travels().destination(worker)
            if entry.shelf:
                record = worker.site.run_id, entry.node, mode == WHOLE
        parts, given = job.pack(rest, args, kwargs, self.about, self.place, record)

        def cancel() -> None:
            self._settle(entry)
            with contextlib.suppress(OSError):
                os.write(self._waker, b"!")

        try:
            whole.begin()
            with self._guard:
                if self.lost is not None:
                    raise self._again(self.lost)
                self._entries[entry.number] = entry
            with worker.ending_with(cancel) if worker is not None else contextlib.nullcontext(), contextlib.suppress(_Stopped):
                self._send_renewed(entry)
                self._send(CALL, entry.number, parts, entry)
                del parts, args, kwargs
                self._wait(entry)
        except BaseException:
            self._forget(entry)
            raise
        finally:
            whole.end()
        message = entry.answer
        if message is None:
            self._forget(entry)
            if entry.error is not None:
                raise self._again(entry.error)
            raise RunCancelledError(f"the call of {name!r} at {self.place} was cancelled")
        entry.answer = None
        if message.kind == VALUE:
            return job.value_of(message.parts, name, self.place, given)
        raise job.error_of(message.parts, name, self.place, given)

    def _send_renewed(self, entry: _Entry) -> None:
        """Send the modules that were loaded anew here: no call goes before those that it needs."""
        with self._renewing:
            renewed = self._modules.renewed()
            if renewed is not None:
                try:
                    self._send(MODULE, 0, [[renewed]], entry)
                except BaseException:
                    self._post(control(CANCEL))
                    raise
                self._modules.sent()

    def _again(self, error: BaseException) -> BaseException:
        """An error that several threads get: each its own."""
        return type(error)(*error.args)

    def _forget(self, entry: _Entry) -> None:
        """Nobody waits for this call any more: say so there."""
        with self._step:
            with self._guard:
                known = self._entries.pop(entry.number, None)
            self._hand_over(entry)  # where it was interrupted before it could
            if known is not None and self.lost is None and entry.answer is None:
                self._outbox.append([control(CANCEL, entry.number)])
                self._doubt = entry.number
                self._outbox.append([control(PING, entry.number)])
        self._shown.finish(entry.number)
        self._flush_if_free()

    def _settle(self, entry: _Entry) -> None:
        entry.settled = True
        entry.rouse()

    def _wait(self, entry: _Entry) -> None:
        """Wait for an answer: lead, or be told."""
        while not entry.settled:
            try:
                if self._lead(entry):
                    while not entry.settled:
                        self._pump(self._silence)
                else:
                    entry.wake.acquire()
            finally:
                self._hand_over(entry)

    def _lead(self, who: object) -> bool:
        """Lead from now on, unless somebody does; `_hand_over` ends that, and does no harm where it is not so."""
        with self._step, self._guard:
            if self._leader is None:
                self._leader = who
            return self._leader is who

    @contextlib.contextmanager
    def _leading(self) -> Iterator[bool]:
        """Lead, unless somebody does."""
        me = object()
        try:
            yield self._lead(me)
        finally:
            self._hand_over(me)

    def _hand_over(self, who: object) -> None:
        """Lead no more. Where nobody leads, whoever was asked to may have been interrupted or settled since: ask the next."""
        with self._step:
            with self._guard:
                if self._leader is not None and self._leader is not who:
                    return
                self._leader = None
                heir = next((entry for entry in self._entries.values() if not entry.settled), None)
            if heir is not None:
                heir.rouse()

    # Reading: for the leader --------------------------------------------------------------------------------

    def _pump(self, seconds: float, writes: int = -1) -> bool:
        """Wait for something to come, at most so long, and see to it; whether `writes` can be written to."""
        self._check_whole()
        if self._inbox:
            self._see_to()
            return False
        stream = self._stream
        if writes < 0:
            self._flush_if_free()
            if (self._outbox or self._frame) and not self._sending.locked():
                writes = stream.writes
        most = min(seconds, self._silence / 8)
        began = time.monotonic()
        ready = _poll([stream.reads, self._errors, self._wake], [writes], most)
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        if self._errors in ready:
            self._read_errors()
        if stream.reads in ready:
            self._read_frames()
        elif not ready:
            self._check_silence(min(most, time.monotonic() - began))
        return writes in ready

    def _check_whole(self) -> None:
        if self.torn and self.lost is None:
            self._lose(LinkLostError(f"{self.place}: something broke off in the middle of a message"))
            self._stream.kill()

    def _read_frames(self) -> None:
        """Read what has come, and see to it."""
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
                    for message in self._decoder.received(size):
                        self._inbox.append(message)
        except ProtocolError as error:
            self._refuse(error)
        else:
            if not size:
                self._lose(None)
        if self._inbox:
            self._see_to()

    def _refuse(self, error: ProtocolError) -> None:
        """What comes is not what an agent says: that ends the stream, and is told with the name of the place."""
        self._lose(ProtocolError(f"{self.place}: {error}"))
        self._stream.kill()  # it may be anything

    def _see_to(self) -> None:
        """See to what has come. A message is taken out when it was seen to: who is interrupted leaves it to the next leader."""
        until = time.monotonic() + 0.5
        while self._inbox and self.lost is None:
            message = self._inbox[0]
            try:
                self._take(message)
            except ProtocolError as error:
                self._refuse(error)
            except (IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
                told = f"{type(error).__name__}: {error}"
                self._refuse(ProtocolError(f"a message of kind {message.kind} that cannot be read ({told})"))
            if time.monotonic() > until:
                return  # there is no end of it; look around before the rest

    def _seen(self, message: Message) -> None:
        if self._inbox and self._inbox[0] is message:
            self._inbox.popleft()

    def _take(self, message: Message) -> None:
        kind, number, parts = message
        if kind in (VALUE, ERROR):
            if number in self._entries:
                self._read_errors()  # what was written before the call was over is shown before it
                self._shown.finish(number, NOBODYS, PROGRAMS)
            with self._step:
                with self._guard:
                    entry = self._entries.pop(number, None)
                if entry is not None:
                    entry.answer = message
                    self._settle(entry)
                self._seen(message)
            return
        if kind == FIND:
            self._answer_question(number, bytes(parts[0]))
        with self._step:
            self._seen(message)
            entry = self._entries.get(number) if kind == RECORD else None
            if entry is not None and entry.shelf:
                _remote.travels().keep(entry.shelf, [bytes(part) for part in parts])
        if kind == RECORD:
            pass
        elif kind == PRINT:
            data = bytes(parts[0])
            if data[:1] not in STREAMS:
                raise ProtocolError("a print of no stream")
            known = PROGRAMS if data[:1] == b"\3" else number if number in self._entries else NOBODYS
            self._shown.show(data[:1], known, data[1:])
        elif kind == HELLO:
            self._take_hello(bytes(parts[0]))
        elif kind == PING:
            self._owe([[control(PONG, number)]])
        elif kind == PONG:
            if number and number == self._doubt:
                self._doubt = 0
        elif kind not in (FIND, CANCEL):
            raise ProtocolError(f"a frame of kind {kind}, which an agent does not send")

    def _take_hello(self, said: bytes) -> None:
        if self.about:
            raise ProtocolError("a second hello")
        try:
            about = escaped_within(json.loads(said))
            python = [int(part) for part in about["python"]]
            if len(python) < 2 or not all(isinstance(about[name], str) for name in ("magic", "implementation", "executable", "host")):
                raise ValueError("wrong types")
            self.about = {**about, "python": python, "press": [str(method) for method in about["press"]]}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ProtocolError(f"an agent's hello that says nothing ({type(error).__name__}: {error})") from None

    def _answer_question(self, number: int, said: bytes) -> None:
        """The agent lacks a module."""
        if len(said) > modules.LONGEST:
            raise ProtocolError(f"a question of {len(said):,} bytes; the most is {modules.LONGEST:,}")
        name = said.decode("utf-8", "replace")
        self._questions.take(name)
        body = modules.answer(name, self.about["magic"])
        self._modules.note(name)
        self._owe(list(encode(MODULE, number, [[body]])))

    def _owe(self, found: list[list[Bytes]]) -> None:
        """Have whoever writes next send this. An agent that asks and does not read what it is told must not fill our memory."""
        size = sum(sum(map(len, frame)) for frame in found)
        if self._owed + size > MOST_OWED:
            raise ProtocolError("it asks for more than it takes")
        with self._step:
            self._owed += size
            self._outbox.extend(found)

    def _check_silence(self, waited: float) -> None:
        """Nothing came while we waited: ask whether somebody is there, and in the end believe that nobody is. Only the time
        that we were there to listen counts, so a machine that was asleep has lost nothing."""
        self._quiet += waited
        if self._quiet > self._silence:
            self._stream.kill()
            self._lose(LinkLostError(f"{self.place}: not a word for {self._silence:g} s; the line seems to be cut"))
        elif self._quiet > self._silence / 4 and not self._pinged:
            self._pinged = True
            self._outbox.append([control(PING)])  # its PONG says no more than any other word

    def _lose(self, error: FarError | None) -> None:
        """The stream cannot be used any more: every call under way gets to know."""
        if self.lost is not None:
            return
        if error is None:
            error = self._obituary() if self._greeted else LinkLostError(f"{self.place}: the stream ended")
        with self._step, self._guard:
            if self.lost is not None:
                return
            self.lost = error
            entries = list(self._entries.values())
            self._entries.clear()
            for entry in entries:
                entry.error = error
                self._settle(entry)
            with contextlib.suppress(OSError):
                os.write(self._waker, b"!")
        self._shown.finish()

    def _obituary(self) -> LinkLostError:
        until = time.monotonic() + 0.5
        self._read_last_errors()
        while (status := self._stream.status()) is None and time.monotonic() < until:
            time.sleep(0.002)
        how = "" if status is None else f" (exit status {status})" if status >= 0 else f" (signal {-status})"
        tail = escaped(bytes(self._tail).decode("utf-8", "replace")).strip().splitlines()[-6:]
        said = "; its last words: " + " / ".join(tail) if tail else ""
        return LinkLostError(f"{self.place}: the agent, or the way to it, ended in the middle of the call{how}{said}")

    # What is printed there ----------------------------------------------------------------------------------

    def _where(self, number: int) -> str:
        """What stands before the lines that a call has printed."""
        calls = list(self._entries.values())
        if number == PROGRAMS:
            entry = calls[0] if len(calls) == 1 else None
        else:
            entry = self._entries.get(number)
        return f"[{self.place} {entry.path()}] " if entry is not None else f"[{self.place}] "

    def _read_errors(self) -> bool:
        """What the program wrote to stderr: kept, and shown once the agent is there. Whether there was something."""
        fd = self._errors
        data = _read(fd, 65536) if fd >= 0 else None
        if data == b"":
            self._errors = -1
        if not data:
            return False
        self._tail += data
        del self._tail[:-TAIL]
        if self._greeted:
            self._shown.show(b"\2", PROGRAMS, data)
        return True

    def _read_last_errors(self) -> None:
        """What there is of stderr; of one that goes on for ever, enough."""
        until = time.monotonic() + 0.5
        while self._read_errors() and time.monotonic() < until:
            pass

    # Writing ------------------------------------------------------------------------------------------------

    def _send(self, kind: int, number: int, parts: Sequence[Segments], entry: _Entry | None = None) -> None:
        """Send a message. Raises LinkLostError, or _Stopped where its call is settled before it is sent."""
        for pieces in encode(kind, number, parts, self._press):
            began = time.perf_counter()
            self._write(pieces, entry)
            self._press.wrote(sum(map(len, pieces)), time.perf_counter() - began)
        self._flush_if_free()

    def _write(self, pieces: Sequence[Bytes], entry: _Entry | None = None) -> None:
        """Write a frame, after what others have begun or owe. Raises as `_send` does; then the rest of a frame that has begun stays
        for whoever writes next, and the far side never sees half of one."""
        turn = False
        try:
            while not turn:
                if entry is not None and entry.settled:
                    raise _Stopped
                with self._step:  # who has it must know that he has it
                    turn = self._sending.acquire(timeout=0.05)
            while not self._push():
                self._wait_to_write(entry)
            with self._step:
                self._frame = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
            while not self._push():
                self._wait_to_write(entry)
        except BaseException:
            if turn:
                with self._step:  # of memory that is the caller's, who may change it from now on
                    self._frame = [memoryview(b"".join(self._frame))] if self._frame else []
            raise
        finally:
            if turn:
                self._sending.release()

    def _push(self) -> bool:
        """Write what the line takes now of the frame that has begun, and of the outbox. Whether nothing is left. The caller holds the
        right to send. Raises what has ended the stream."""
        ended = False
        while not ended:
            self._check_whole()
            if self.lost is not None:
                raise self._again(self.lost)
            with self._step:
                left = self._frame
                if not left:
                    if not self._outbox:
                        return True
                    pieces = self._outbox.popleft()
                    self._owed = max(0, self._owed - sum(map(len, pieces))) if self._outbox else 0
                    left = self._frame = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
                try:
                    size = os.writev(self._stream.writes, left[:512])
                except BlockingIOError:
                    return False
                except OSError:
                    ended = True
                    continue
                done = 0
                while done < len(left) and size >= len(left[done]):
                    size -= len(left[done])
                    done += 1
                del left[:done]
                if size:
                    left[0] = left[0][size:]
        self._lose(None)
        raise self._again(self.lost) if self.lost is not None else AssertionError

    def _wait_to_write(self, entry: _Entry | None = None) -> None:
        """The line is full. Whoever reads on the other side may be waiting to be read himself."""
        if entry is not None and entry.settled:
            raise _Stopped
        with self._leading() as leads:
            if leads:
                self._pump(1.0, self._stream.writes)
            else:
                _poll([], [self._stream.writes], 0.1)

    def _post(self, frame: bytes) -> None:
        """Send a small frame without waiting for anything."""
        self._outbox.append([frame])
        self._flush_if_free()

    def _flush_if_free(self) -> None:
        """Send what is in the outbox as far as the line takes it without waiting, unless somebody is sending, who will do it. Asked again
        after the lock is free: what was posted meanwhile found it taken, and relies on us."""
        full = False
        while (self._outbox or self._frame) and not full:
            turn = False
            try:
                with self._step:
                    turn = self._sending.acquire(blocking=False)
                if not turn:
                    return
                full = not self._push()  # then who leads goes on with it
            except FarError:
                return
            finally:
                if turn:
                    self._sending.release()

    # The end ------------------------------------------------------------------------------------------------

    def alive(self) -> bool:
        """Whether the agent is there, as far as can be told without asking it. Sees to what has come meanwhile. Where somebody has given
        up a call and nobody else has one, it is asked: it may be what the call was given up for."""
        if self.lost is not None or self._pid != os.getpid():
            return False
        if self._doubt and not self._entries:
            with whole.held():
                self._ask_again()
        self._hear(0.05)
        return self.lost is None and not self.torn

    def _hear(self, seconds: float) -> None:
        """See to what has come, for a while: there may be no end of it."""
        if not self._inbox and not _poll([self._stream.reads], [], 0):
            return
        until = time.monotonic() + seconds
        with whole.held(), self._leading() as leads:
            while leads and self.lost is None and (self._inbox or _poll([self._stream.reads], [], 0)):
                self._read_frames()
                if time.monotonic() > until:
                    break

    def _ask_again(self) -> None:
        """Wait a moment for the answer to a PING: one that is stopped, or has megabytes of an old call before it, is given up."""
        until = time.monotonic() + DOUBT
        while self._doubt and self.lost is None and not self._entries:
            if time.monotonic() > until:
                self._lose(LinkLostError(f"{self.place}: the agent does not answer any more"))
                self._stream.kill()
                return
            with self._leading() as leads:
                if leads:
                    self._pump(0.1)
            if not leads:
                time.sleep(0.005)

    def hang_up(self, until: float) -> None:
        """Show what the agent still has to say, until then at the latest, and let go of the stream: over there that is the end."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
        if self._greeted and self.lost is None and not self.torn and self._pid == os.getpid():
            self._hear(max(0.0, until - time.monotonic()))
        self._lose(LinkLostError(f"{self.place}: the channel was closed"))
        with contextlib.suppress(Exception):
            self._read_errors()
            self._shown.finish()
        until = time.monotonic() + 0.5
        while self._leader is not None and time.monotonic() < until:
            time.sleep(0.001)  # it has been told, and must not read from what is somebody else's by then
        self._stream.hang_up()

    def close(self) -> None:
        """End the agent, and show what it still had to say."""
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
        """End the agent at once, without a word."""
        self._stream.hang_up()
        self._stream.kill()

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent."""
        self._stream.abandon()
        for fd in (self._wake, self._waker):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.lost = LinkLostError(f"{self.place}: this stream belongs to another process")


class _Allowance:
    """How many questions an agent may ask: many at once, as a program does that begins, and some a second. It keeps what it was told."""

    def __init__(self) -> None:
        self._left = float(QUESTIONS)
        self._at = time.monotonic()
        self._asked: Counter[str] = Counter()

    def take(self, name: str) -> None:
        """One more. Raises ProtocolError where there were too many."""
        now = time.monotonic()
        self._left = min(QUESTIONS, self._left + (now - self._at) * QUESTIONS_A_SECOND) - 1
        self._at = now
        if not name.startswith(MODULES_ALONE):  # which is asked whenever a body looks for files
            self._asked[name] += 1
        if self._left < 0 or self._asked[name] > SAME_QUESTIONS:
            raise ProtocolError("it asks for more modules than any program has")
        if len(self._asked) > 10 * QUESTIONS:
            self._asked.clear()


def _poll(reads: Sequence[int], writes: Sequence[int], seconds: float) -> set[int]:
    """Which of these descriptors can be read, or written to, within so long."""
    poll = select.poll()
    for fd in reads:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    for fd in writes:
        if fd >= 0:
            poll.register(fd, select.POLLOUT | (select.POLLIN if fd in reads else 0))
    return {fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)}


def _read(fd: int, size: int) -> bytes | None:
    """What can be read now; None where nothing can, b"" at the end."""
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _limit() -> int:
    given = os.environ.get("ENTANGLE_WIRE_LIMIT", LIMIT)
    try:
        return int(given)
    except ValueError:
        raise EntangleError(f"ENTANGLE_WIRE_LIMIT={given}: it is a whole number of bytes") from None


def _silence(transport: Transport) -> float:
    given = os.environ.get("ENTANGLE_SILENCE", "120")
    try:
        return max(0.1, float(given))
    except ValueError:
        raise EntangleError(f"ENTANGLE_SILENCE={given}: it is a number of seconds") from None


# The channels of this process ----------------------------------------------------------------------------------------

_channels: dict[Hashable, Future[Channel]] = {}
_guard = threading.Lock()
_registered = False


def channel_to(transport: Transport) -> Channel:
    """The channel of this process to that place; dialled if there is none, or the one there was is lost.

    Threads that come while another one dials get what that gets: the channel, or the error.
    """
    global _registered
    key = transport.key
    while True:
        mine: Future[Channel] | None = None
        channel: Channel | None = None
        try:
            with _guard:
                found = _channels.get(key)
                if found is None:
                    mine = Future()
                    found = _channels[key] = mine
                if not _registered:
                    _registered = True
                    atexit.register(close_all)
                    _run.at_termination.append(let_go)
            if mine is not None:
                channel = Channel(transport)
                mine.set_result(channel)
                return channel
        except BaseException as error:
            if mine is not None and not mine.done():
                with _guard:
                    if _channels.get(key) is mine:
                        del _channels[key]
                mine.set_exception(error)
                if channel is not None:
                    channel.close()
            raise
        error_there = found.exception()  # waits
        if isinstance(error_there, FarError):
            raise type(error_there)(*error_there.args) from error_there
        if error_there is not None:
            continue  # who dialled was interrupted; that is nothing to us
        channel = found.result()
        if channel.alive():
            return channel
        with _guard:
            closes = _channels.get(key) is found
            if closes:
                del _channels[key]
        if closes:
            channel.close()


def close_all(chosen: Callable[[Transport], bool] = lambda transport: True) -> None:
    """Close the channels of this process, those whose transport is `chosen`. All are told at once, and then waited for; who is interrupted
    meanwhile waits no longer."""
    with _guard:
        ending = {key: future for key, future in _channels.items() if future.done() and not future.exception()}
        ending = {key: future for key, future in ending.items() if chosen(future.result().transport)}
        for key in ending:
            del _channels[key]
    channels = [future.result() for future in ending.values()]
    until = time.monotonic() + LAST_WORDS
    try:
        for channel in channels:
            channel.hang_up(until)
        for channel in channels:
            channel.close()
    except BaseException:
        for channel in channels:
            channel.kill()
        raise


def let_go() -> None:
    """End the agents of this process, which is about to be ended by a signal. The end of its stream is enough for one that is well."""
    channels = [future.result() for future in _channels.values() if future.done() and not future.exception()]
    until = time.monotonic() + 1.0
    for channel in channels:
        channel.hang_up(0.0)
    while any(channel.runs() for channel in channels) and time.monotonic() < until:
        time.sleep(0.005)
    for channel in channels:
        channel.kill()


def _after_fork() -> None:
    """A forked child has its parent's channels by name only; it dials its own."""
    global _guard, _registered
    for future in _channels.values():
        if future.done() and not future.exception():
            future.result().abandon()
    _channels.clear()
    with contextlib.suppress(ValueError):
        _run.at_termination.remove(let_go)
    _guard, _registered = threading.Lock(), False


os.register_at_fork(after_in_child=_after_fork)
