"""The caller's side of a stream: many calls in flight over one agent, and nobody to wait on them but those who call.

There is no thread that reads. Of the threads that wait for an answer one leads: it reads the stream and hands each message to
whom it belongs, until it has its own; then another one leads. So a process that has agents, but no call under way, has no
thread of ours in it, and may fork. A thread that wants to write while the line is full, and finds nobody reading, reads as well:
both sides can never wait for each other to read.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import itertools
import json
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from entangle import _run
from entangle._remote import bootstrap, job, modules, wire
from entangle._remote.stream import Stream
from entangle._remote.transport import Transport
from entangle._remote.wire import CALL, CANCEL, ERROR, FIND, HELLO, MODULE, PING, PONG, PRINT, RECORD, VALUE, Decoder, Message, Press
from entangle._run.home import branch
from entangle._run.notes import SHORT, WHOLE
from entangle._run.table import NOBODY, NODE, NOTING
from entangle._run.worker import Worker, here
from entangle.errors import EntangleError, FarError, LinkLostError, ProtocolError, RunCancelledError, UnfitPythonError, UnreachableError
from entangle.task import Task

#: What may come before the agent's first line: a banner, the greeting of a shell (bytes).
PREFACE = 64 << 10
#: Lines of stderr that an error quotes.
TAIL = 4096
#: Bytes of a line that has no end after which it is shown in pieces.
LONG = 64 << 10
#: Whose a printed line is where it is no call's: of a thread that nobody knows; written to descriptor 1 or 2.
NOBODYS, PROGRAMS = 0, -1


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
        self.wake = threading.Semaphore(0)

    def path(self) -> str:
        """The call path, for what is printed there."""
        return self.flow.path(self.node) if self.flow is not None and self.node >= 0 else self.name


class Channel:
    """A stream to an agent, from its first word to its last. Any thread may call; made by `channel_to`."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.place = transport.place
        self.lost: FarError | None = None
        #: What the agent says of its place.
        self.about: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._entries: dict[int, _Entry] = {}
        self._guard = threading.Lock()
        self._leader: object | None = None
        self._sending = threading.Lock()
        self._outbox: deque[list[wire.Bytes]] = deque()
        self._decoder = Decoder(_limit())
        self._modules = modules.Sent()
        self._renewing = threading.Lock()
        self._tail = bytearray()
        #: What was printed of lines that have no end yet, by stream and call.
        self._unfinished: dict[tuple[bytes, int], bytes] = {}
        self._showing = threading.RLock()
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
            self._stream: Stream = transport.open(bootstrap.ARGUMENTS)
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
            self._greet()
        except BaseException:
            self._stream.kill()
            self.close()
            raise

    # The beginning ------------------------------------------------------------------------------------------

    def _greet(self) -> None:
        """Start the agent, and learn where it is."""
        until = time.monotonic() + self.transport.timeout
        words = memoryview(bootstrap.first_words({"silence": self._silence, "press": wire.methods(), "branch": branch()}))
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
            if len(heard) > PREFACE or (not ready and time.monotonic() >= until):
                raise self._diagnosis(heard)
        version = tuple(int(part) for part in greeting.groups()[1:])
        if version < bootstrap.OLDEST:
            raise UnfitPythonError(
                f"{self.place}: its Python is {'.'.join(map(str, version))}; entangle needs {'.'.join(map(str, bootstrap.OLDEST))} "
                f"or newer. Name another one with python=…"
            )
        with self._leading(self):
            if words:
                self._write([words])
            for message in self._decoder.feed(heard[greeting.end() :]):
                self._take(message)
            while not self.about and self.lost is None:
                if time.monotonic() >= until:
                    raise self._diagnosis(bytearray())
                self._pump(until - time.monotonic())
        if self.lost is not None:
            raise self._diagnosis(bytearray())
        if self.about.get("protocol") != wire.VERSION:
            raise ProtocolError(f"{self.place}: its agent speaks version {self.about.get('protocol')} of the protocol, not {wire.VERSION}")
        self._greeted = True
        self._press = Press([method for method in wire.methods() if method in self.about["press"]])
        with contextlib.suppress(LinkLostError):  # the first call will find out
            self._send(MODULE, 0, [[modules.bundle(self.about["magic"])]])

    def _diagnosis(self, heard: bytearray, ended: bool = False) -> FarError:
        """Why there is no agent."""
        # One that has closed its stdout is on its way out; how it ended is known a moment later.
        until = time.monotonic() + (2.0 if ended or self.lost is not None else 0.3)
        while (status := self._stream.status()) is None and time.monotonic() < until:
            _poll([self._errors], [], 0.01)
            self._read_errors()
        while self._read_errors():
            pass
        words = bytes(self._tail) + bytes(heard[-TAIL:])
        return self.transport.diagnose(status, words.decode("utf-8", "replace"))

    # Calls --------------------------------------------------------------------------------------------------

    def call(self, rest: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a task there, and give its value. Raises what it raises, LinkLostError, and UnpicklableError for what cannot travel."""
        name = rest.__name__
        worker = here.worker
        entry = _Entry(next(self._numbers), name, worker)
        record = None
        if worker is not None and (mode := worker.site.table.header[NOTING]) in (SHORT, WHOLE):
            entry.shelf = _run.travels.destination(worker)
            if entry.shelf:
                record = worker.site.run_id, entry.node, mode == WHOLE
        parts, given = job.pack(rest, args, kwargs, self.about, self.place, record)
        with self._guard:
            if self.lost is not None:
                raise self._again(self.lost)
            self._entries[entry.number] = entry

        def cancel() -> None:
            self._settle(entry)
            with contextlib.suppress(OSError):
                os.write(self._waker, b"!")

        try:
            with worker.ending_with(cancel) if worker is not None else contextlib.nullcontext():
                with self._renewing:  # nobody's call goes before the modules that it needs
                    if renewed := self._modules.renewed():
                        self._send(MODULE, 0, [[renewed]], entry)
                self._send(CALL, entry.number, parts, entry)
                del parts, args, kwargs
                self._wait(entry)
        except BaseException:
            self._forget(entry)
            raise
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

    def _again(self, error: BaseException) -> BaseException:
        """An error that several threads get: each its own."""
        return type(error)(*error.args)

    def _forget(self, entry: _Entry) -> None:
        """Nobody waits for this call any more: say so there."""
        with self._guard:
            known = self._entries.pop(entry.number, None)
        self._show_unfinished(entry.number)
        if known is not None and self.lost is None and not entry.answer:
            self._post(wire.control(CANCEL, entry.number))

    def _settle(self, entry: _Entry) -> None:
        entry.settled = True
        entry.wake.release()

    def _wait(self, entry: _Entry) -> None:
        """Wait for an answer: lead, or be told."""
        while not entry.settled:
            with self._guard:
                leads = self._leader is None
                if leads:
                    self._leader = entry
            if not leads:
                entry.wake.acquire()
                continue
            try:
                while not entry.settled:
                    self._pump(self._silence)
            finally:
                self._hand_over()

    @contextlib.contextmanager
    def _leading(self, who: object) -> Iterator[bool]:
        """Lead, unless somebody does."""
        with self._guard:
            leads = self._leader is None
            if leads:
                self._leader = who
        try:
            yield leads
        finally:
            if leads:
                self._hand_over()

    def _hand_over(self) -> None:
        with self._guard:
            self._leader = None
            heir = next((entry for entry in self._entries.values() if not entry.settled), None)
        if heir is not None:
            heir.wake.release()

    # Reading: for the leader --------------------------------------------------------------------------------

    def _pump(self, seconds: float, writes: int = -1) -> bool:
        """Wait for something to come, at most so long, and see to it; whether `writes` can be written to."""
        stream = self._stream
        if self._outbox and writes < 0:
            self._flush_if_free()
        waiting = [stream.writes] if self._outbox and writes < 0 else [writes]
        most = min(seconds, self._silence / 8)
        began = time.monotonic()
        ready = _poll([stream.reads, self._errors, self._wake], waiting, most)
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

    def _read_frames(self) -> None:
        try:
            size = os.readv(self._stream.reads, [self._decoder.room()])
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._lose(None)
            return
        self._quiet, self._pinged = 0.0, False
        try:
            for message in self._decoder.received(size):
                self._take(message)
        except ProtocolError as error:
            self._lose(ProtocolError(f"{self.place}: {error}"))

    def _take(self, message: Message) -> None:
        kind, number, parts = message
        if kind in (VALUE, ERROR):
            if number in self._entries:
                self._read_errors()  # what was written before the call was over is shown before it
                self._show_unfinished(number, NOBODYS, PROGRAMS)
            with self._guard:
                entry = self._entries.pop(number, None)
            if entry is not None:
                entry.answer = message
                self._settle(entry)
        elif kind == RECORD:
            entry = self._entries.get(number)
            if entry is not None and entry.shelf:
                _run.travels.keep(entry.shelf, [bytes(part) for part in parts])
        elif kind == PRINT:
            data = bytes(parts[0])
            known = PROGRAMS if data[:1] == b"\3" else number if number in self._entries else NOBODYS
            self._show(data[:1], known, data[1:])
        elif kind == FIND:
            name = bytes(parts[0]).decode("utf-8", "replace")
            body = modules.answer(name, self.about["magic"])
            self._modules.note(name)
            self._outbox.extend(wire.frames(MODULE, number, [[body]]))
        elif kind == HELLO:
            try:
                about = json.loads(bytes(parts[0]))
                self.about = {**about, "python": list(about["python"]), "magic": str(about["magic"]), "press": list(about["press"])}
            except (ValueError, KeyError, TypeError) as error:
                raise ProtocolError(f"an agent's hello that says nothing ({error})") from None
        elif kind == PING:
            self._outbox.append([wire.control(PONG)])
        elif kind != PONG:
            raise ProtocolError(f"a frame of kind {kind}, which an agent does not send")

    def _check_silence(self, waited: float) -> None:
        """Nothing came while we waited: ask whether somebody is there, and in the end believe that nobody is. Only the time
        that we were there to listen counts, so a machine that was asleep has lost nothing."""
        self._quiet += waited
        if self._quiet > self._silence:
            self._stream.kill()
            self._lose(LinkLostError(f"{self.place}: not a word for {self._silence:g} s; the line seems to be cut"))
        elif self._quiet > self._silence / 4 and not self._pinged:
            self._pinged = True
            self._outbox.append([wire.control(PING)])

    def _lose(self, error: FarError | None) -> None:
        """The stream cannot be used any more: every call under way gets to know."""
        if self.lost is not None:
            return
        if error is None:
            error = self._obituary() if self._greeted else LinkLostError(f"{self.place}: the stream ended")
        with self._guard:
            if self.lost is not None:
                return
            self.lost = error
        self._show_unfinished()
        with self._guard:
            entries = list(self._entries.values())
            self._entries.clear()
        for entry in entries:
            entry.error = error
            self._settle(entry)

    def _obituary(self) -> LinkLostError:
        until = time.monotonic() + 0.5
        while self._read_errors():
            pass
        while (status := self._stream.status()) is None and time.monotonic() < until:
            time.sleep(0.002)
        how = "" if status is None else f" (exit status {status})" if status >= 0 else f" (signal {-status})"
        tail = bytes(self._tail).decode("utf-8", "replace").strip().splitlines()[-6:]
        said = "; its last words: " + " / ".join(tail) if tail else ""
        return LinkLostError(f"{self.place}: the agent, or the way to it, ended in the middle of the call{how}{said}")

    # What is printed there ----------------------------------------------------------------------------------

    def _show(self, stream: bytes, number: int, data: bytes) -> None:
        """Show whole lines, each with its place and call path; keep the rest, which may be half a word or half a character."""
        with self._showing:
            data = self._unfinished.pop((stream, number), b"") + data
            lines, end, rest = data.rpartition(b"\n")
            if len(rest) > LONG:
                _, whole = codecs.utf_8_decode(data, "replace", False)
                lines, end, rest = data[:whole], b"\n", data[whole:]
            if rest:
                self._unfinished[stream, number] = rest
            if end:
                self._show_lines(stream, number, lines)

    def _show_unfinished(self, *numbers: int) -> None:
        """Show lines that have no end, and will not get one: those of these calls, or all."""
        with self._showing:
            for stream, number in sorted(self._unfinished):
                if not numbers or number in numbers:
                    self._show_lines(stream, number, self._unfinished.pop((stream, number)))

    def _show_lines(self, stream: bytes, number: int, data: bytes) -> None:
        calls = list(self._entries.values())
        if number == PROGRAMS:
            entry = calls[0] if len(calls) == 1 else None
        else:
            entry = self._entries.get(number)
        where = f"[{self.place} {entry.path()}] " if entry is not None else f"[{self.place}] "
        lines: list[str] = []
        # By hand: what else ends a line for `splitlines` is part of what was printed. A return would write over our words.
        for line in data.decode("utf-8", "replace").split("\n"):
            lines += [part for part in line.split("\r") if part] or [""]
        out = sys.stderr if stream == b"\2" else sys.stdout
        with contextlib.suppress(Exception):
            out.write("".join(f"{where}{line}\n" for line in lines))
            out.flush()

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
            self._show(b"\2", PROGRAMS, data)
        return True

    # Writing ------------------------------------------------------------------------------------------------

    def _send(self, kind: int, number: int, parts: Sequence[wire.Segments], entry: _Entry | None = None) -> None:
        """Send a message. Raises LinkLostError, or stops, where its call is settled before it is sent."""
        for pieces in wire.frames(kind, number, parts, self._press):
            began = time.perf_counter()
            with self._sending:
                self._flush_outbox(self._write)
                self._write(pieces)
            self._press.wrote(sum(map(len, pieces)), time.perf_counter() - began)
        self._flush_if_free()

    def _write(self, pieces: Sequence[wire.Bytes]) -> None:
        """Write all of it; the caller holds the right to send. Frames are never left half written."""
        left = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        while left:
            if self.lost is not None:
                raise self._again(self.lost)
            try:
                size = os.writev(self._stream.writes, left[:512])
            except BlockingIOError:
                self._wait_to_write()
                continue
            except OSError:
                self._lose(None)
                continue
            while left and size >= len(left[0]):
                size -= len(left.pop(0))
            if size:
                left[0] = left[0][size:]

    def _wait_to_write(self) -> None:
        """The line is full. Whoever reads on the other side may be waiting to be read himself."""
        with self._leading(self) as leads:
            if leads:
                self._pump(1.0, self._stream.writes)
            else:
                _poll([], [self._stream.writes], 0.1)

    def _flush_outbox(self, write: Callable[[Sequence[wire.Bytes]], None] | None = None) -> None:
        """Send what the leader has to say, as far as the line takes it without waiting. The caller holds the right to send."""
        while self._outbox:
            if write is None and not _poll([], [self._stream.writes], 0):
                return
            try:
                pieces = self._outbox.popleft()
            except IndexError:
                return
            try:
                self._write(pieces)
            except FarError:
                return

    def _post(self, frame: bytes) -> None:
        """Send a small frame without waiting for anything."""
        self._outbox.append([frame])
        self._flush_if_free()

    def _flush_if_free(self) -> None:
        """Send what is in the outbox, unless somebody is sending, who will do it. Asked again after the lock is free: what was
        posted meanwhile found it taken, and relies on us."""
        while (left := len(self._outbox)) and self._sending.acquire(blocking=False):
            try:
                self._flush_outbox()
            finally:
                self._sending.release()
            if len(self._outbox) >= left:
                return  # the line is full; who leads goes on with it

    # The end ------------------------------------------------------------------------------------------------

    def alive(self) -> bool:
        """Whether the agent is there, as far as can be told without asking it. Sees to what has come meanwhile."""
        if self.lost is not None or self._pid != os.getpid():
            return False
        with self._leading(self) as leads:
            while leads and self.lost is None and _poll([self._stream.reads], [], 0):
                self._read_frames()
        return self.lost is None

    def close(self) -> None:
        """End the agent, and show what it still had to say."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
        if self._greeted:
            self.alive()
        self._lose(LinkLostError(f"{self.place}: the channel was closed"))
        with contextlib.suppress(Exception):
            self._read_errors()
            self._show_unfinished()
        self._stream.close()
        os.close(self._wake)
        os.close(self._waker)

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent."""
        self._stream.abandon()
        for fd in (self._wake, self._waker):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.lost = LinkLostError(f"{self.place}: this stream belongs to another process")


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
    given = os.environ.get("ENTANGLE_WIRE_LIMIT", wire.LIMIT)
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
        with _guard:
            found = _channels.get(key)
            dials = found is None
            if found is None:
                found = _channels[key] = Future()
            if not _registered:
                _registered = True
                atexit.register(close_all)
        if dials:
            try:
                channel = Channel(transport)
            except BaseException as error:
                with _guard:
                    _channels.pop(key, None)
                found.set_exception(error)
                raise
            found.set_result(channel)
            return channel
        try:
            channel = found.result()
        except FarError as error:
            raise type(error)(*error.args) from error
        if channel.alive():
            return channel
        with _guard:
            if _channels.get(key) is found:
                del _channels[key]
        channel.close()


def close_all(chosen: Callable[[Transport], bool] = lambda transport: True) -> None:
    """Close the channels of this process, those whose transport is `chosen`."""
    with _guard:
        ending = {key: future for key, future in _channels.items() if future.done() and not future.exception()}
        ending = {key: future for key, future in ending.items() if chosen(future.result().transport)}
        for key in ending:
            del _channels[key]
    for future in ending.values():
        future.result().close()


def _after_fork() -> None:
    """A forked child has its parent's channels by name only; it dials its own."""
    global _guard, _registered
    for future in _channels.values():
        if future.done() and not future.exception():
            future.result().abandon()
    _channels.clear()
    _guard, _registered = threading.Lock(), False


os.register_at_fork(after_in_child=_after_fork)
