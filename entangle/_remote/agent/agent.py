"""The agent: the far side of a stream. It runs calls for a caller elsewhere, with the same engine.

The main thread reads frames and never waits for the caller. Calls run in threads that stay: the
kernel ends a child with the thread that started it (PR_SET_PDEATHSIG). When its stream ends, the
agent ends as well, with every process that it has started.

Nothing but Python need be installed. This module needs the standard library and the few modules
that come with it; the engine comes over the stream before the first call.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from entangle import _run
from entangle._remote.agent import family, imports
from entangle._remote.agent.prints import Prints
from entangle._remote.wire.frames import (
    CALL,
    CANCEL,
    ERROR,
    FIND,
    HELLO,
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
from entangle.errors import ProtocolError

#: Threads at most, and so bodies that run at the same time. More calls wait for a free thread.
MOST_THREADS = 1024
#: Bytes of a print in one message.
PRINTED = 24 << 10
#: An idle agent sends a PING after this time, so that the network notices a cut (seconds).
IDLE = 30.0


class Agent:
    """One agent. `config` is what the caller says of itself; `silence` in it is in seconds."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self._reads, self._writes = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.close(null)
        # Keeps what other code writes to descriptor 1 out of the frames.
        self._printed, out = os.pipe()
        os.dup2(out, 1)
        os.close(out)
        os.set_blocking(self._printed, False)
        self._sending = threading.Lock()
        self._posted: deque[bytes] = deque()
        self._press = Press([method for method in config["press"] if method in compressions()])
        self._jobs: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._idle = 0
        self._threads = 0
        self._guard = threading.Lock()
        #: How to cancel each call under way; None until it runs.
        self._calls: dict[int, Callable[[], None] | None] = {}
        #: Calls that are over and whose answers are being sent.
        self._answering: set[int] = set()
        #: Calls, running or answered, that nobody waits for any more.
        self._cancelled: set[int] = set()
        #: Threads with a message that somebody waits for. Prints let them go first.
        self._urgent = 0
        self._answers: dict[int, queue.SimpleQueue[Any]] = {}
        #: Numbers of questions begin above those of calls, so that messages of both are told apart.
        self._asked = 1 << 62
        self._ready = threading.Event()
        self.prints = (Prints(self, 1), Prints(self, 2))
        self._serves_modules = False
        self._drained = threading.Lock()
        self._pid = os.getpid()
        self._ending = False
        #: When a call came, or its answer was sent (of the monotonic clock).
        self._used = time.monotonic()
        #: In a session: the state of this process before its first body. The pipe wakes the thread
        #: that reads, to put it back when no call is under way.
        self._before: Any = None
        self._changed = False
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)

    def serve(self) -> None:
        """Say hello, then serve until the stream ends."""
        # The caller keeps the records of what runs here (entangle._records.travels).
        _run.observers.clear()
        family.lead_family()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: self.end())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.send(HELLO, 0, [[json.dumps(_about_here()).encode()]])
        sys.stdout, sys.stderr = self.prints
        sys.stdin = open(os.devnull)
        for finder in imports.finders:
            finder.ask = self.ask
        os.register_at_fork(after_in_child=self._leave_in_child)
        threading.Thread(target=self._drain_for_ever, name="entangle-out", daemon=True).start()
        decoder = Decoder()
        poll = select.poll()
        poll.register(self._reads, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        heard = time.monotonic()
        patience = 3 * float(self.config.get("silence", 120.0))
        lasts = self.config.get("lasts") or float("inf")
        nudges = self.config.get("nudges", False)
        try:
            while True:
                if nudges and decoder.inside and not poll.poll(0):
                    self._post(control(PONG))  # see Transport.nudges
                ready = [fd for fd, _ in poll.poll(1000 * min(IDLE, patience / 3, lasts))]
                if self._wake in ready:
                    os.read(self._wake, 4096)
                    self._put_back()
                    if self._reads not in ready:
                        continue
                if not ready:
                    if self._is_idle() and time.monotonic() - self._used > lasts:
                        return
                    if self._calls and time.monotonic() - heard > patience:
                        return  # a caller that wants the values would have sent a PING
                    self._post(control(PING))
                    continue
                size = os.readv(self._reads, [decoder.room()])
                if not size:
                    return
                heard = time.monotonic()
                for message in decoder.received(size):
                    self._take(message)
        except (OSError, ProtocolError) as error:
            os.write(2, f"entangle: the agent ends: {error}\n".encode())
        finally:
            self.end()

    def _take(self, message: Message) -> None:
        kind, number, parts = message
        if kind == CALL:
            self._put_back()  # the thread of the last call may not have said yet that it is over
            with self._guard:
                self._used = time.monotonic()
                self._changed = True
                self._calls[number] = None
                self._jobs.put(message)
                if self._idle:
                    self._idle -= 1
                elif self._threads < MOST_THREADS:
                    self._threads += 1
                    threading.Thread(target=self._work, name=f"entangle-call-{self._threads}", daemon=True).start()
        elif kind == CANCEL:
            with self._guard:
                if number in self._calls or number in self._answering:
                    self._cancelled.add(number)
                cancel = self._calls.get(number)
            if cancel is not None:
                threading.Thread(target=cancel, name="entangle-cancel", daemon=True).start()
        elif kind == MODULE:
            answer = imports.decode_answer(parts)
            if number:
                waiting = self._answers.pop(number, None)
                if waiting is not None:
                    waiting.put(answer)
            elif self._ready.is_set():  # reloaded there
                imports.renew(answer)
            else:  # the engine
                imports.finders[0].known.update(answer)
                self._ready.set()
        elif kind == PING:
            self._post(control(PONG, number))

    # Calls ----------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            kind, number, parts = self._jobs.get()
            out, err = self.prints
            out.call = err.call = number
            answer: list[Segments] = []
            try:
                if number not in self._cancelled:
                    kind, answer = self._perform(number, parts)
            except BaseException as error:  # a bug of ours, or no memory: the call needs an answer
                kind, answer = ERROR, [[_plain(error)]]
            with self._guard:
                self._answering.add(number)
                self._calls.pop(number, None)
            for stream in self.prints:
                stream.finish(number)
                stream.call = 0
            self.drain()
            parts = []
            if self._ending:
                # We have cancelled the call ourselves. To its caller the connection is lost, so
                # that `retry` may try another one.
                return
            if number not in self._cancelled:
                try:
                    self.send(kind, number, answer)
                except BaseException as error:  # a bug of ours, or no memory, between two frames
                    self.send(CANCEL, number, [[]])  # withdraw the half that was sent
                    self.send(ERROR, number, [[_plain(error)]])
            answer = []
            with self._guard:
                self._answering.discard(number)
                self._cancelled.discard(number)
                self._idle += 1
                self._used = time.monotonic()
            if self._before is not None:
                with contextlib.suppress(OSError):  # it is full, or a body has closed it
                    os.write(self._waker, b"!")

    def _perform(self, number: int, parts: list[Any]) -> tuple[int, list[Segments]]:
        self._ready.wait(60.0)
        from entangle._remote.agent import performing

        if not self._serves_modules:
            self._serve_modules()
        imports.load_renewed()

        def began(cancel: Callable[[], None]) -> None:
            with self._guard:
                self._calls[number] = cancel
                over = number in self._cancelled or self._ending
            if over:  # cancelled before its body began
                cancel()

        given, value, records = performing.perform(parts, began)
        if records and not self._ending and number not in self._cancelled:
            self.send(RECORD, number, [[record] for record in records])
        return (VALUE if given else ERROR), value

    # Sending --------------------------------------------------------------------------------

    def send(self, kind: int, number: int, parts: Sequence[Segments]) -> None:
        """Send a message; returns when the stream has taken it. Threads take turns frame by frame.

        The message of a cancelled call is broken off, which frees the stream for the next one.
        """
        with self._guard:
            self._urgent += 1
        try:
            for pieces in encode(kind, number, parts, self._press):
                if kind != CANCEL and number in self._cancelled:
                    pieces = [control(CANCEL, number)]
                began = time.perf_counter()
                with self._sending:
                    self._write(pieces)
                self._press.wrote(sum(map(len, pieces)), time.perf_counter() - began)
                if kind != CANCEL and number in self._cancelled:
                    break
        finally:
            with self._guard:
                self._urgent -= 1
        self._send_posted()

    def _post(self, frame: bytes) -> None:
        """Send a small frame without waiting, from the thread that reads."""
        self._posted.append(frame)
        self._send_posted()

    def _send_posted(self) -> None:
        # Ask again once the lock is free: avoids a lost wakeup of what was posted meanwhile.
        while self._posted and self._sending.acquire(blocking=False):
            try:
                poll = select.poll()
                poll.register(self._writes, select.POLLOUT)
                if not poll.poll(0):
                    return  # full: the caller will hear from us anyway
                self._write([self._posted.popleft()])
            except IndexError:
                pass
            finally:
                self._sending.release()

    def _write(self, pieces: list[Bytes]) -> None:
        pieces = list(pieces)
        while pieces:
            try:
                size = os.writev(self._writes, pieces[:512])
            # Nobody reads; or no memory in the middle of a frame, after which no frame is possible.
            except BaseException:
                self.end()
            while pieces and size >= len(pieces[0]):
                size -= len(pieces.pop(0))
            if size:
                pieces[0] = memoryview(pieces[0])[size:]

    # Modules --------------------------------------------------------------------------------

    def ask(self, name: str) -> Any:
        """Ask the caller for a module, and wait for the answer."""
        if os.getpid() != self._pid:
            return None
        if name.partition(".")[0] in imports.OURS and not self._ready.is_set() and self._ready.wait(60.0):
            known = imports.finders[0].known
            if name in known:
                return {name: known[name]}
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._guard:
            self._asked += 1
            number = self._asked
            self._answers[number] = answer
        self.send(FIND, number, [[name.encode()]])
        return answer.get()

    def _serve_modules(self) -> None:
        """Serve modules to workers that are not forked from this process: they have no stream."""
        from entangle._remote.agent.module_server import ModuleServer
        from entangle._run import python_command
        from entangle._shared import home
        from entangle._worker import janitor

        settings = self.config.get("session")
        if settings is not None:  # imported without the lock: `ask` takes it
            from entangle._warm.session import Session
            from entangle._worker.putting_back import Before, Descriptors

        with self._guard:
            if not self._serves_modules:
                home.join(self.config.get("branch", ""))
                janitor.watch_for_children()
                python_command.prelude = ModuleServer(self.ask).prelude()
                if settings is not None:
                    Session(None, **settings).__enter__()  # it ends with this process
                    self._before = Before(Descriptors())
                self._serves_modules = True

    # Prints ---------------------------------------------------------------------------------

    def print(self, stream: int, call: int, data: bytes) -> None:
        """Send what was printed, mostly whole lines. The caller joins the pieces of a line."""
        if os.getpid() != self._pid:  # a forked child keeps our `sys.stdout`
            os.write(stream, data)
            return
        self._send_print(bytes((stream,)), call, data)

    def _send_print(self, stream: bytes, call: int, data: bytes) -> None:
        """Send in messages of one frame: prints of several threads never mix. Cut at line ends."""
        at = 0
        while at < len(data):
            until = at + PRINTED
            if until < len(data):
                until = data.rfind(b"\n", at, until) + 1 or until
            while self._urgent:  # endless prints must not hold up answers
                time.sleep(0.0002)
            frame = control(PRINT, call, stream + data[at:until])
            with self._sending:
                self._write([frame])
            at = until
        self._send_posted()

    def _drain_for_ever(self) -> None:
        poll = select.poll()
        poll.register(self._printed, select.POLLIN)
        while True:
            poll.poll()
            self.drain()
            time.sleep(0.001)  # collect several lines

    def drain(self) -> None:
        """Send what was written to descriptor 1 so far."""
        left = 2 * 65536  # more than a pipe holds; a program may write for ever
        with self._drained:
            while left > 0:
                try:
                    data = os.read(self._printed, 65536)
                except OSError:
                    return
                left -= len(data)
                self._send_print(b"\3", 0, data)

    def _put_back(self) -> None:
        """Put back what bodies may have changed of this process, if none runs."""
        if self._before is not None and self._changed and not self._calls:
            self._changed = False
            with contextlib.suppress(Exception):  # it must go on for its caller
                self._before.put_back()

    def _is_idle(self) -> bool:
        """Whether no call is under way, and no answer."""
        with self._guard:
            return not self._calls and not self._answering

    def under_way(self) -> bool:
        """Whether any call is under way."""
        return bool(self._calls)

    def only_call(self) -> int:
        """The call under way, if there is exactly one; else 0."""
        calls = list(self._calls)
        return calls[0] if len(calls) == 1 else 0

    # The end --------------------------------------------------------------------------------

    def _leave_in_child(self) -> None:
        """In a child that a body forks: leave the stream, and print to the usual descriptors."""
        for fd in (self._reads, self._writes, self._printed, self._wake, self._waker):
            if fd >= 0:
                os.close(fd)
        self._wake = self._waker = -1
        self._reads = self._writes = self._printed = -1  # a child of the child must not close them
        for number, name in ((1, "stdout"), (2, "stderr")):
            setattr(sys, name, open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False))
        for prints in self.prints:
            prints.unlock()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

    def end(self) -> None:
        """End the agent, and every process that it and its bodies have started."""
        if os.getpid() != self._pid:
            os._exit(1)
        self._ending = True
        try:
            for cancel in list(self._calls.values()):
                if cancel is not None:
                    threading.Thread(target=cancel, daemon=True).start()
            family.leave_nothing()
        finally:
            os._exit(0)


def _plain(error: BaseException) -> bytes:
    """An error as text, without the engine."""
    import traceback

    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return json.dumps(
        {"text": text, "where": f"host {os.uname().nodename}, pid {os.getpid()}", "short": f"{type(error).__name__}: {error}"}
    ).encode()


def _about_here() -> dict[str, Any]:
    """What the caller wants to know about this place."""
    import platform

    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        memory = 0
    from importlib.util import MAGIC_NUMBER

    return {
        "protocol": VERSION,
        "python": list(sys.version_info[:3]),
        "implementation": sys.implementation.name,
        "magic": MAGIC_NUMBER.hex(),
        "executable": sys.executable,
        "platform": sys.platform,
        "machine": os.uname().machine,
        "system": platform.system(),
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "cpus": cpus,
        "memory": memory,
        "press": compressions(),
    }


#: The agent of this process, if it is one.
agent: Agent | None = None


def serve(config: dict[str, Any]) -> None:
    """Be an agent. Does not return."""
    global agent
    agent = Agent(config)
    agent.serve()
