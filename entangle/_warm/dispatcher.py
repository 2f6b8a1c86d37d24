"""The workers of an executor, and the calls that they have: who gets which call of the backlog."""

from __future__ import annotations

import contextlib
import marshal
import os
import pickle
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

from entangle import _run
from entangle._shared import home as homes
from entangle._shared import module_lookup
from entangle._shared.descriptors import OwnDescriptors
from entangle._shared.orders import CALL
from entangle._shared.unpickling import failing_part, unpickling_error
from entangle._shared.value_files import INLINE, ValueFiles, Wire, files_of
from entangle._warm.executor_call import UNOPENED, Job, Mapping, Settled
from entangle._warm.functions import Function
from entangle._warm.holdings import Holdings, Sealed
from entangle._warm.warm_pool import WarmPool, WarmWorker
from entangle._worker import board as boards
from entangle._worker import inheritance
from entangle._worker.board import Board
from entangle._worker.worker import here
from entangle.cookies import available_cpus, jobserver_style
from entangle.errors import EntangleError

#: How long the calls of one message may take together (seconds), how many they may be, and how many
#: bytes their arguments may have.
_MESSAGE, _MOST, _BYTES = 0.004, 1000, 48 * 1024
#: A second message may follow while that many bytes are on their way at most: it must never wait
#: for room in the socket.
_AHEAD = 32 * 1024
#: Functions that a worker remembers.
_FUNCTIONS = 256
#: How long a worker with nothing to do stays by default (seconds), and where it never ends.
_IDLE, _FOREVER = 60.0, 1e6


class Line:
    """A worker, and the calls that it has."""

    def __init__(self, worker: WarmWorker, board: Board, most: int | None) -> None:
        self.worker = worker
        self.board = board
        #: Calls without an outcome, by number.
        self.pending: dict[int, Job] = {}
        self.number = 0
        #: The last call of the message before the last, and bytes sent since it had nothing to do.
        self.before_last = 0
        self.bytes = 0
        #: How many calls it may still be given; None: any number.
        self.left = most
        self.functions: dict[Any, int] = {}
        self.keys: list[Any] = [None] * _FUNCTIONS
        self.next_function = 0
        self.travelled = 0
        #: Files of arguments that it has not said to be gone.
        self.held: Counter[str] = Counter()
        self.answered = False
        self.retires = ""
        self.closed = False
        #: Numbers that are being taken back, and what the board said at the last tick.
        self.recalled: tuple[int, int] | None = None
        self.seen = (-1, -1, -1)
        self.seen_at = 0.0


class Dispatcher:
    """Gives calls to the workers of one executor, which it starts as they are needed.

    `initializer` and its arguments come pickled. `each` is how many calls a worker answers before
    another takes its place.
    """

    def __init__(self, most: int, initializer: bytes | None, initializer_name: str, each: int | None) -> None:
        self.most = most
        self.each = each
        #: How long a worker with nothing to do stays (seconds). Workers that an initializer has
        #: prepared stay, unless the maker of the executor says otherwise before its first call.
        self.idle = _IDLE if initializer is None else _FOREVER
        self.initializer = initializer
        self.initializer_name = initializer_name
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.backlog: deque[Job] = deque()
        self.lines: dict[int, Line] = {}
        self.resting: list[Line] = []
        #: Calls that wait for futures.
        self.waiting = 0
        #: Calls that are over, as some thread has seen. The collector settles them: callbacks take
        #: locks of their own, and may come back here.
        self.unsettled: list[Settled] = []
        self.pool: WarmPool | None = None
        self.wake: tuple[int, int] = (-1, -1)
        self.own = OwnDescriptors()
        self.new_lines: list[Line] = []
        self.stillborn = 0
        self.files: ValueFiles | None = None
        self.holdings: Holdings | None = None
        #: Why nothing runs here any more: makes an error for a call.
        self.broken: Callable[[], BaseException] | None = None
        #: No more calls are taken; nobody has the executor any more.
        self.shut = self.dropped = False
        self.over = False
        #: Whether the interpreter is about to end.
        self.exiting = False

    # Out to workers ------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Give calls of the backlog to workers that have nothing to do. Lock held, and handlers of
        signals deferred: one that raises would lose a worker, or calls."""
        failed, backlog = self.unsettled, self.backlog
        while backlog:
            if self.resting:
                line = self.resting.pop()
            elif len(self.lines) < self.most and self.broken is None:
                started = self._start(failed)
                if started is None:
                    break
                line = started
            else:
                self._load_ahead(failed)
                break
            line.bytes = 0
            self._load(line, failed)
            if not line.pending and not line.closed:
                self.resting.append(line)
        if failed:
            self.tell()

    def _load_ahead(self, failed: list[Settled]) -> None:
        """Give busy workers short calls to go on with, one message each. Lock held."""
        for line in self.lines.values():
            if not self.backlog:
                return
            seconds = self.backlog[0].function.seconds
            if seconds is None or seconds > _MESSAGE / 4 or len(self.backlog[0].body) > _AHEAD:
                return  # sending more than the socket has room for would wait for the reader
            if not line.pending or line.closed or line.retires or line.recalled is not None or line.left == 0:
                continue
            first = next(iter(line.pending))
            if first > line.before_last and line.bytes <= _AHEAD:
                busy = line.pending[first].function.seconds
                if busy is not None and busy <= _MESSAGE / 4:
                    self._load(line, failed)

    def _start(self, failed: list[Settled]) -> Line | None:
        """Start a worker. Lock held."""
        assert self.pool is not None
        try:
            worker = self.pool.take()
            assert worker is not None
        except Exception as problem:
            error = problem
            self.break_off(lambda: EntangleError(f"no worker can be started: {type(error).__name__}: {error}"), failed)
            return None
        fd = boards.make()
        line = Line(worker, Board(fd), self.each)
        try:
            self._send(line, [], [], self._first_words(), [fd])
        except OSError:
            pass  # it has died at once: the collector sees that
        finally:
            os.close(fd)
        self.lines[worker.watch] = line
        self.new_lines.append(line)
        self.tell()
        return line

    def _first_words(self) -> dict[str, Any]:
        if self.files is None:
            found = homes.locked_home()
            self.files = ValueFiles(*_make_directory(found))
            self.holdings = Holdings(self.files)
            self._surroundings = {
                "home": found.path,
                "home_spill": found.spill,
                "jobserver": jobserver_style(),
                "threads": max(1, len(available_cpus()) // self.most),
            }
        return {
            "directory": self.files.directory,
            "spill": self.files.spill,
            "initializer": self.initializer,
            "state": inheritance.pickled(),
            **self._surroundings,
        }

    def _load(self, line: Line, failed: list[Settled]) -> None:
        """Give a worker calls of the backlog, as many as are short. Lock held."""
        backlog = self.backlog
        most = min(_MOST, 1 + len(backlog) // (2 * self.most))
        most = most if line.left is None else min(most, line.left)
        spent, size, before = 0.0, 0, line.number
        functions: list[Any] = []
        calls: list[Any] = []
        assert self.files is not None
        assert self.holdings is not None
        while backlog and len(calls) < most:
            job = backlog[0]
            seconds = job.function.seconds
            if calls and (
                seconds is None or spent + seconds > _MESSAGE or size + len(job.body) > _BYTES or len(functions) >= _FUNCTIONS // 2
            ):
                break
            backlog.popleft()
            if not job.begin():
                continue
            try:
                wire, values = self._stored(job)
                which = self._function_for(line, job.function, functions)
            except Exception as problem:
                failed.append((job, False, problem))
                continue
            line.number += 1
            line.pending[line.number] = job
            for each in (wire, *values):
                for name in files_of(each):
                    self.holdings.hold(name)
                    line.held[name] += 1
            calls.append((line.number, which, wire, values))
            spent += seconds or 0.0
            size += len(wire) + 32 if isinstance(wire, bytes) else 256
        if not calls:
            return
        line.before_last = before
        line.bytes += size
        if line.left is not None:
            line.left -= len(calls)
        try:
            self._send(line, functions, calls)
        except OSError:
            # It has ended, or is about to. The collector gives its calls to another.
            line.closed = True

    def _stored(self, job: Job) -> tuple[Wire, tuple[Wire, ...]]:
        """The arguments of a job and the values that they take, as they are sent. Lock held."""
        if job.wires is None:
            assert self.files is not None
            assert self.holdings is not None
            if job.buffers or len(job.body) > INLINE:
                wire = self.files.put(job.body, job.buffers)
                self.holdings.look()
                own: Sealed | None = self.holdings.seal(wire)
            else:
                wire, own = job.body, None
            values = tuple(future.sealed for future in job.takes if future.sealed is not None)
            job.wires = (wire, values, own)
            job.body, job.buffers, job.takes = b"", [], []
        wire, sealed, _ = job.wires
        return wire, tuple(one.wire for one in sealed)

    def _function_for(self, line: Line, function: Function, functions: list[Any]) -> int:
        """The number that a worker knows a function by; it is told if it does not. Lock held."""
        known = line.functions.get(function.key)
        if known is not None:
            return known
        if function.buffers or len(function.body) > INLINE:
            owner, wire = function.wire or (None, b"")
            if owner is not self:
                assert self.files is not None
                assert self.holdings is not None
                wire = self.files.put(function.body, function.buffers)
                self.holdings.look()
                # Held for as long as the executor lives.
                for name in files_of(wire):
                    self.holdings.hold(name)
                function.wire = function.wire or (self, wire)
        else:
            wire = function.body
        number = line.next_function
        line.next_function = (number + 1) % _FUNCTIONS
        if line.keys[number] is not None:
            line.functions.pop(line.keys[number], None)
        line.keys[number] = function.key
        line.functions[function.key] = number
        functions.append((number, function.name, wire, function.shared))
        return number

    def _send(self, line: Line, functions: list[Any], calls: list[Any], first: dict[str, Any] | None = None, fds: Any = ()) -> None:
        holdings = self.holdings
        if holdings is not None and (holdings.dropped or holdings.files.held):
            holdings.look()
        travelled: tuple[str, ...] = ()
        if len(module_lookup.travelled) != line.travelled:
            travelled = tuple(module_lookup.travelled)
            line.travelled = len(travelled)
        given = [*fds]
        if first is not None:
            given += [fd for fd in (2, 1) if _is_open(fd)]
            first["streams"] = len(given) - len(fds)
        line.worker.orders.send(CALL, marshal.dumps((first, travelled, functions, calls)), given)

    # Back from workers ---------------------------------------------------------------------------

    def settle(self, settled: list[Settled]) -> None:
        """Tell those who wait, also of what is over because of that. In the collector, without the
        lock: callbacks may do anything."""
        while True:
            with self.lock:
                settled += self.unsettled
                self.unsettled.clear()
            if not settled:
                return
            self._settle(settled)
            settled.clear()

    def _settle(self, settled: list[Settled]) -> None:
        grouped: dict[int, tuple[Mapping, list[tuple[int, bool, Any]]]] = {}
        for job, good, what in settled:
            if job.mapping is not None:
                mapping = job.mapping
                grouped.setdefault(id(mapping), (mapping, []))[1].append((job.index, good, what))
                continue
            future = job.future
            if future is None:
                continue
            with contextlib.suppress(Exception):  # somebody else has settled it
                if not good:
                    if isinstance(what, CancelledError) and not job.under_way:
                        future.cancel()
                    if not job.under_way and not future.set_running_or_notify_cancel():
                        continue
                    future.set_exception(what)
                    continue
                future.sealed = what
                if future.wanted:
                    future.set_result(UNOPENED)
                    continue
                try:
                    value = self.open(what)
                except BaseException as problem:
                    future.set_exception(problem)
                else:
                    future.set_result(value)
                    del value
        for mapping, found in grouped.values():
            mapping.put(found)

    def open(self, sealed: Sealed) -> Any:
        """Unpickle a value."""
        wire = sealed.wire
        try:
            if isinstance(wire, bytes):
                return pickle.loads(wire)
            return self._open_files(sealed)
        except Exception as problem:
            part = None
            with contextlib.suppress(Exception):
                assert self.files is not None
                part = failing_part(*self.files.read(wire))
            raise unpickling_error(problem, "the value of a call cannot be unpickled in the caller", part) from problem

    def _open_files(self, sealed: Sealed) -> Any:
        assert self.files is not None
        assert self.holdings is not None
        try:
            body, buffers = sealed.parts or self.files.read(sealed.wire)
        except FileNotFoundError:
            if sealed.parts is None:
                raise
            body, buffers = sealed.parts  # the executor has ended at this moment
        if sealed.parts is not None:
            return pickle.loads(body, buffers=buffers)
        with self.lock:
            for name in files_of(sealed.wire):
                self.holdings.hold(name)
                self.files.held[name] += 1
        return pickle.loads(body, buffers=buffers)

    def break_off(self, make: Callable[[], BaseException], failed: list[Settled], number: int = signal.SIGKILL) -> None:
        """Nothing runs here any more. All calls fail, and workers get a signal. Lock held."""
        if self.broken is None:
            self.broken = make
        for line in self.lines.values():
            failed += [(job, False, self.broken()) for job in line.pending.values()]
            line.pending.clear()
            line.worker.kill(number)
        self.resting.clear()
        failed += [(job, False, self.broken()) for job in self.backlog]
        self.backlog.clear()
        self.tell()

    # The end -------------------------------------------------------------------------------------

    def tell(self) -> None:
        """Wake the collector."""
        if self.wake[1] >= 0 and self.pid == os.getpid() and not self.own.lost():
            with contextlib.suppress(OSError):
                os.write(self.wake[1], b"!")

    def is_finished(self) -> bool:
        """Whether the collector has nothing left to do. Lock held."""
        if not (self.shut or self.dropped or self.exiting or self.broken is not None):
            return False
        return not self.backlog and not self.waiting and not self.unsettled and not any(line.pending for line in self.lines.values())


def _make_directory(found: homes.Home) -> tuple[str, str]:
    """Make the directory of an executor of this process. Return it with the name of its twin on
    disk. A worker that is killed removes nothing, so it lies in what others remove then."""
    name = f"x{os.urandom(8).hex()}"
    worker = here.worker
    if worker is None or not worker.in_process:
        return found.make_directory(name)
    if _run.warm_settings is not None:  # it may be used in the next run as well
        return found.make_directory(os.path.join(f"w{os.getpid()}", name))
    directory, spill = os.path.join(worker.site.directory, name), os.path.join(worker.site.spill, name)
    os.mkdir(directory, 0o700)
    return directory, spill


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
