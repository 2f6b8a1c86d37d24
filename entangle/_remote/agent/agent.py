"""The agent: the far side of a stream. A Python that runs calls for somebody else, with the same engine.

The main thread reads frames and does nothing that could wait for the caller. Calls run in threads that stay, since the
kernel ties the processes that a body starts to the thread that has started them. The agent ends, with everything that it has
started, when its stream does.

It runs where nothing is installed but Python: this module needs the standard library, `wire` and `imports`; the engine comes over
the stream before the first call.
"""

from __future__ import annotations

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

#: Pool threads, and with them bodies that wait at the same time. More calls wait for one of these.
MOST_THREADS = 1024
#: Bytes of a print that go in one message.
PRINTED = 24 << 10
#: Seconds without a word after which an idle agent sends one, so that the network finds out that the line is cut.
IDLE = 30.0


class Agent:
    """One agent. `config` is what the caller says of himself: `silence` is in seconds."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self._reads, self._writes = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.close(null)
        # What is written to descriptor 1 by other than Python's own print is no frame either.
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
        #: Calls under way: how to cancel them, once they run.
        self._calls: dict[int, Callable[[], None] | None] = {}
        #: Calls that are over and whose answers are being sent; those of both kinds that nobody waits for any more.
        self._answering: set[int] = set()
        self._cancelled: set[int] = set()
        #: Threads that want to send something that somebody waits for; prints let them go first.
        self._urgent = 0
        self._answers: dict[int, queue.SimpleQueue[Any]] = {}
        #: Numbers of questions; none is that of a call, whose messages come the same way.
        self._asked = 1 << 62
        self._ready = threading.Event()
        self.prints = (Prints(self, 1), Prints(self, 2))
        self._serves_modules = False
        self._drained = threading.Lock()
        self._pid = os.getpid()
        self._ending = False

    def serve(self) -> None:
        """Say hello, then do what comes, until nothing comes any more."""
        # What runs here is remembered where it was called, if at all (entangle._records.travels).
        _run.observers.clear()
        family.lead_family()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: self.end())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.send(HELLO, 0, [[json.dumps(_about_here()).encode()]])
        sys.stdout, sys.stderr = self.prints
        sys.stdin = open(os.devnull)
        for finder in imports.finders:
            finder._ask = self.ask
        os.register_at_fork(after_in_child=self._leave_in_child)
        threading.Thread(target=self._drain_for_ever, name="entangle-out", daemon=True).start()
        decoder = Decoder()
        poll = select.poll()
        poll.register(self._reads, select.POLLIN)
        heard = time.monotonic()
        patience = 3 * float(self.config.get("silence", 120.0))
        try:
            while True:
                if not poll.poll(1000 * min(IDLE, patience / 3)):
                    if self._calls and time.monotonic() - heard > patience:
                        return  # whoever wants those values would have said a word
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
            with self._guard:
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
            elif self._ready.is_set():  # what was loaded anew there
                imports.renew(answer)
            else:  # the engine
                imports.finders[0].known.update(answer)
                self._ready.set()
        elif kind == PING:
            self._post(control(PONG, number))

    # Calls ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            kind, number, parts = self._jobs.get()
            out, err = self.prints
            out.call = err.call = number
            answer: list[Segments] = []
            try:
                if number not in self._cancelled:
                    kind, answer = self._perform(number, parts)
            except BaseException as error:  # a bug of ours, or no memory: the call must have an answer
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
                return  # that the call was cancelled is our doing; for its caller the line is lost, and `retry` may try another
            if number not in self._cancelled:
                try:
                    self.send(kind, number, answer)
                except BaseException as error:  # a bug of ours, or no memory, between two frames
                    self.send(CANCEL, number, [[]])  # half of an answer is no answer
                    self.send(ERROR, number, [[_plain(error)]])
            answer = []
            with self._guard:
                self._answering.discard(number)
                self._cancelled.discard(number)
                self._idle += 1

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
            if over:  # while its arguments were made: its body must not begin
                cancel()

        given, value, records = performing.perform(parts, began)
        if records and not self._ending and number not in self._cancelled:
            self.send(RECORD, number, [[record] for record in records])
        return (VALUE if given else ERROR), value

    # Sending ----------------------------------------------------------------------------------------------

    def send(self, kind: int, number: int, parts: Sequence[Segments]) -> None:
        """Send a message; waits until the line has taken it. Frames of several threads take turns. What belongs to a call that nobody
        waits for any more is broken off, so that the line is free for the next."""
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
        """Send a small frame from the thread that reads, which must not wait: whoever is writing takes it along."""
        self._posted.append(frame)
        self._send_posted()

    def _send_posted(self) -> None:
        # Asked again after the lock is free: what was posted meanwhile found it taken, and relies on us.
        while self._posted and self._sending.acquire(blocking=False):
            try:
                poll = select.poll()
                poll.register(self._writes, select.POLLOUT)
                if not poll.poll(0):
                    return  # full: whoever reads that will have heard from us
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
            except BaseException:  # nobody reads; or no memory in the middle of a frame, after which there is nothing to be said
                self.end()
            while pieces and size >= len(pieces[0]):
                size -= len(pieces.pop(0))
            if size:
                pieces[0] = memoryview(pieces[0])[size:]

    # Modules ----------------------------------------------------------------------------------------------

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
        """Have the workers of our runs, who are no children of this interpreter, ask us for modules."""
        from entangle._remote.agent.module_server import ModuleServer
        from entangle._run import python_command
        from entangle._shared import home
        from entangle._worker import janitor

        with self._guard:
            if not self._serves_modules:
                home.join(self.config.get("branch", ""))
                janitor.watch_for_children()
                python_command.prelude = ModuleServer(self.ask).prelude()
                self._serves_modules = True

    # What is printed --------------------------------------------------------------------------------------

    def print(self, stream: int, call: int, data: bytes) -> None:
        """Send what was printed; whole lines, mostly. The caller puts together what is not."""
        if os.getpid() != self._pid:  # a child that a body has forked holds on to our `sys.stdout`
            os.write(stream, data)
            return
        self._send_print(bytes((stream,)), call, data)

    def _send_print(self, stream: bytes, call: int, data: bytes) -> None:
        """In messages of one frame, so that those of several threads do not get into one another; cut where lines end, if they do."""
        at = 0
        while at < len(data):
            until = at + PRINTED
            if until < len(data):
                until = data.rfind(b"\n", at, until) + 1 or until
            while self._urgent:  # one that prints for ever must not keep the answers of others from being sent
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
            time.sleep(0.001)  # several lines at a time

    def drain(self) -> None:
        """Send what was written to descriptor 1 so far."""
        left = 2 * 65536  # what the pipe may hold, and more: a program may go on writing for ever
        with self._drained:
            while left > 0:
                try:
                    data = os.read(self._printed, 65536)
                except OSError:
                    return
                left -= len(data)
                self._send_print(b"\3", 0, data)

    def under_way(self) -> bool:
        """Whether any call is."""
        return bool(self._calls)

    def only_call(self) -> int:
        """The call under way, if there is exactly one."""
        calls = list(self._calls)
        return calls[0] if len(calls) == 1 else 0

    # The end ----------------------------------------------------------------------------------------------

    def _leave_in_child(self) -> None:
        """In a child that a body forks: the stream is not its own, and prints go where a process's prints go."""
        for fd in (self._reads, self._writes, self._printed):
            if fd >= 0:
                os.close(fd)
        self._reads = self._writes = self._printed = -1  # a child of the child has them closed already
        for number, name in ((1, "stdout"), (2, "stderr")):
            setattr(sys, name, open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False))
        for prints in self.prints:
            prints.unlock()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

    def end(self) -> None:
        """End the agent and all that it and its bodies have started."""
        if os.getpid() != self._pid:
            os._exit(1)
        self._ending = True
        try:
            for cancel in list(self._calls.values()):
                if cancel is not None:
                    threading.Thread(target=cancel, daemon=True).start()
            janitor = sys.modules.get("entangle._worker.janitor")
            family.kill_family(janitor.hired() if janitor is not None else 0)
            if janitor is not None:
                janitor.kill_marked()  # daemons, who have left the family
                janitor.dismiss()
            homes = sys.modules.get("entangle._shared.home")
            if homes is not None:
                homes.leave()
        finally:
            os._exit(0)


def _plain(error: BaseException) -> bytes:
    """An error for which not even the engine is there: as text."""
    import traceback

    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return json.dumps(
        {"text": text, "where": f"host {os.uname().nodename}, pid {os.getpid()}", "short": f"{type(error).__name__}: {error}"}
    ).encode()


def _about_here() -> dict[str, Any]:
    """What the caller wants to know of this place."""
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


#: The agent that this process is, if it is one.
agent: Agent | None = None


def serve(config: dict[str, Any]) -> None:
    """Be an agent."""
    global agent
    agent = Agent(config)
    agent.serve()
