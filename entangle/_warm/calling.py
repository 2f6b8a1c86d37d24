"""Calls over the channels of warm workers, for an executor.

::

    submit ──▶ an idle worker, at once            a worker ──▶ the collector: a thread that
           └─▶ else the backlog ◀── takes the next ones ───────  settles futures, sees deaths

A call goes to a worker that has nothing to do. Many short ones go in one message: what calls of a
function take is known after the first. If one of them takes long, those behind it are taken back
and given to others (`_worker/board.py`).

The worker that dies in a call breaks the executor, as in `concurrent.futures`. The error names the
call. One that dies idle, ends after a while, or retires between two calls is replaced.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import marshal
import os
import pickle
import select
import shutil
import signal
import socket
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FuturesTimeoutError
from typing import Any

from entangle._run import forkserver
from entangle._run.worker_process import signal_name
from entangle._shared import home as homes
from entangle._shared import module_lookup
from entangle._shared.limits import no_thread
from entangle._shared.orders import CALL, OUTCOMES
from entangle._shared.pickling import dumps_for_others, otherwise, why_not
from entangle._shared.polling import new_poll
from entangle._shared.tracebacks import hide, passes_on
from entangle._shared.unpickling import failing_part, unpickling_error
from entangle._shared.value_files import INLINE, ValueFiles, Wire, end_of, files_of, pickled
from entangle._warm.broken import broken_by, how_it_ended
from entangle._warm.functions import Function, function_of
from entangle._warm.holdings import Holdings, Sealed
from entangle._warm.warm_pool import WarmPool, WarmWorker
from entangle._worker import board as boards
from entangle._worker import called, inheritance
from entangle._worker.board import BATCH, BEGUN, HIGH, LARGE, LOW, NEWS, OUTCOME, REFUSED, SKIPPED, TAIL, VALUE, Board
from entangle._worker.failures import set_traceback
from entangle.cookies import available_cpus, jobserver_style
from entangle.errors import ArgumentError, EntangleError, UnpicklableError, add_note

#: How long the calls of one message may take together (seconds), how many they may be, and how many
#: bytes their arguments may have.
_MESSAGE, _MOST, _BYTES = 0.004, 1000, 48 * 1024
#: A second message may follow while that many bytes are on their way at most: it must never wait
#: for room in the socket.
_AHEAD = 32 * 1024
#: How long a call may keep those behind it waiting while another worker has nothing to do (s).
_TICK = 0.005
#: Functions that a worker remembers.
_FUNCTIONS = 256
#: How many workers in a row may end before they have answered anything.
_STILLBORN = 5
#: How long the forkserver may take to tell of a worker (seconds).
_TOLD = 5.0
#: Free files of large values are removed after so long without a call (seconds).
_QUIET = 5.0

_UNSET: Any = object()
_ATOMS = frozenset((int, float, bool, str, type(None)))


class CallFuture(Future[Any]):
    """The future of a call. Its value, as it travelled, can go on to another call."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls
        #: The value as it came.
        self.sealed: Sealed | None = None
        #: Whether another call takes it. Its value is then unpickled only if somebody asks.
        self.wanted = False
        self._opening = threading.Lock()

    @passes_on
    def result(self, timeout: float | None = None) -> Any:
        """The value. Raises the error of the call, TimeoutError after so many seconds, and
        CancelledError."""
        try:
            value = super().result(timeout)
            if value is _UNSET:
                self._open()
                value = super().result()
            return value
        except BaseException as error:
            hide(error)
            raise

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error of the call; None if it has a value."""
        error = super().exception(timeout)
        if error is None and self._result is _UNSET:
            self._open()
            error = super().exception()
        return error

    def _get_snapshot(self) -> Any:  # Python 3.14: what asyncio takes
        if self.done() and not self.cancelled() and self._result is _UNSET:
            self._open()
        return super()._get_snapshot()  # type: ignore[misc]

    def _open(self) -> None:
        with self._opening:
            if self._result is _UNSET and self._exception is None:
                assert self.sealed is not None
                try:
                    self._result = self.calls.open(self.sealed)
                except BaseException as problem:
                    self._exception, self._result = problem, None


class Job:
    """One call that is to be made: what is sent, and who gets the outcome."""

    __slots__ = ("body", "buffers", "function", "future", "index", "mapping", "missing", "takes", "under_way", "wires")

    def __init__(self, function: Function, body: bytes, buffers: list[memoryview]) -> None:
        self.function = function
        self.body = body
        self.buffers = buffers
        self.future: CallFuture | None = None
        self.mapping: Mapping | None = None
        self.index = 0
        #: Futures whose values its arguments take, and how many have no value yet.
        self.takes: list[CallFuture] = []
        self.missing = 0
        self.under_way = False
        #: The arguments and the values that they take, once they were stored.
        self.wires: tuple[Wire, tuple[Sealed, ...], Sealed | None] | None = None

    def begin(self) -> bool:
        """Whether it is still wanted. From now on it cannot be cancelled."""
        if not self.under_way:
            if self.mapping is not None:
                self.under_way = not self.mapping.left
            elif self.future is not None:
                self.under_way = self.future.set_running_or_notify_cancel()
        return self.under_way


class Mapping:
    """The calls of one `map`: their outcomes, until they are taken in order."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.Lock())
        self.outcomes: dict[int, tuple[bool, Any]] = {}
        #: Whether nobody waits for the rest any more.
        self.left = False

    def put(self, found: Iterable[tuple[int, bool, Any]]) -> None:
        """Take outcomes: the index of each, whether it is a value, and the value or the error."""
        with self.changed:
            if not self.left:
                for index, good, what in found:
                    self.outcomes[index] = (good, what)
            self.changed.notify_all()

    def take(self, index: int, until: float | None) -> tuple[bool, Any]:
        """The outcome of a call. Raises TimeoutError after that moment."""
        with self.changed:
            while index not in self.outcomes:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise FuturesTimeoutError
                self.changed.wait(left)
            return self.outcomes.pop(index)

    def leave(self) -> None:
        """Drop the rest."""
        with self.changed:
            self.left = True
            self.outcomes.clear()


class _Line:
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
        #: Files of arguments that it has not said to be gone; files lent to it for its values.
        self.held: Counter[str] = Counter()
        self.lent: dict[str, int] = {}
        #: Bytes of its last large value.
        self.wants = 0
        self.answered = False
        self.retires = ""
        self.closed = False
        #: Numbers that are being taken back, and what the board said at the last tick.
        self.recalled: tuple[int, int] | None = None
        self.seen = (-1, -1, -1)
        self.seen_at = 0.0


class Calls:
    """The calls of one executor, and its workers.

    `initializer` and its arguments come pickled. `each` is how many calls a worker answers before
    another takes its place.
    """

    def __init__(self, most: int, initializer: bytes | None, initializer_name: str, each: int | None) -> None:
        self.most = most
        self.each = each
        #: How long a worker with nothing to do stays (seconds). Workers that an initializer has
        #: prepared stay, unless who has made the executor says otherwise before its first call.
        self.idle = _IDLE if initializer is None else _FOREVER
        self._initializer = initializer
        self._initializer_name = initializer_name
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._backlog: deque[Job] = deque()
        self._lines: dict[int, _Line] = {}
        self._idle: list[_Line] = []
        #: Calls that wait for futures.
        self._waiting = 0
        self._pool: WarmPool | None = None
        self._thread: threading.Thread | None = None
        self._wake: tuple[int, int] = (-1, -1)
        self._woken = False
        self._new_lines: list[_Line] = []
        self._stillborn = 0
        self.files: ValueFiles | None = None
        self._holdings: Holdings | None = None
        #: Why nothing runs here any more: makes an error for a call.
        self.broken: Callable[[], BaseException] | None = None
        #: No more calls are taken; nobody has the executor any more.
        self.shut = self.dropped = False
        self.over = False
        _all.add(self)

    # Calls in ------------------------------------------------------------------------------------

    def submit(self, function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> CallFuture:
        """Make a call. What cannot be pickled is the error of the future.

        Raises ArgumentError for a future of somebody else.
        """
        future = CallFuture(self)
        try:
            job = self._job(function, args, named)
        except ArgumentError:
            raise
        except BaseException as problem:
            if not isinstance(problem, Exception):
                raise
            with self._lock:
                self._check()
            future.set_running_or_notify_cancel()
            future.set_exception(problem)
            return future
        job.future = future
        if job.takes:
            self._submit_later(job)
        else:
            with self._lock:
                self._check()
                self._backlog.append(job)
                if self._idle or len(self._lines) < self.most:
                    failed = self._dispatch()
                else:
                    failed = []
            self._settle(failed)
        return future

    def _submit_later(self, job: Job) -> None:
        """Submit a call once the futures among its arguments have values."""
        takes = list(dict.fromkeys(job.takes))
        for future in takes:
            future.wanted = True
        with self._lock:
            self._check()
            self._waiting += 1
            job.missing = len(takes)
        reference = weakref.ref(self)
        for future in takes:
            future.add_done_callback(lambda _: _arrived(reference, job))

    def _arrives(self, job: Job) -> None:
        with self._lock:
            job.missing -= 1
            if job.missing:
                return
        own = job.future
        assert own is not None
        failed: BaseException | None = None
        cancelled = own.cancelled()
        for future in job.takes:
            if future.cancelled():
                cancelled = True
            elif future.sealed is None and failed is None:
                failed = future.exception()
        if cancelled:
            own.cancel()
            own.set_running_or_notify_cancel()
        elif failed is not None and own.set_running_or_notify_cancel():
            own.set_exception(failed)
        with self._lock:
            self._waiting -= 1
            settled: list[_Settled] = []
            if not cancelled and failed is None:
                if self.broken is not None:
                    settled = [(job, False, self.broken())]
                else:
                    self._backlog.append(job)
                    settled = self._dispatch()
            self._tell()
        self._settle(settled)

    def _job(self, function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Job:
        travels = function if type(function) is Function else function_of_call(function)
        if not named and all(type(arg) in _ATOMS for arg in args):
            return Job(travels, pickle.dumps((args, named), 5), [])
        found: list[CallFuture] = []
        _taking.futures = found
        _taking.calls = self
        try:
            body, buffers = pickled(dumps_for_others, (args, named))
        except ArgumentError:
            raise
        except Exception as problem:
            raise _what_cannot_travel(travels.name, args, named, problem) from None
        finally:
            _taking.calls = None
            _taking.futures = []
        job = Job(travels, body, buffers)
        job.takes = found
        return job

    def map(self, function: Any, items: Iterable[tuple[Any, ...]], mapping: Mapping, first: int) -> int:
        """Make a call for each tuple of arguments. Gives how many there are, counted from
        `first`."""
        index, travels = first, _UNSET
        jobs: list[Job] = []
        step = 1
        for args in items:
            try:
                if travels is _UNSET:
                    travels = function_of_call(function)
                job = self._job(travels, args, {})
            except ArgumentError:
                raise
            except Exception as problem:
                mapping.put([(index, False, problem)])
            else:
                if job.takes:
                    self._map_later(job, mapping, index)
                else:
                    job.mapping, job.index = mapping, index
                    jobs.append(job)
            index += 1
            if len(jobs) >= step:
                self._add(jobs)
                jobs = []
                step = min(256, step * 2) if index - first >= self.most else 1
        self._add(jobs)
        return index

    def _map_later(self, job: Job, mapping: Mapping, index: int) -> None:
        job.future = own = CallFuture(self)
        self._submit_later(job)

        def settled(future: Future[Any]) -> None:
            if future.cancelled():
                mapping.put([(index, False, CancelledError())])
            else:
                error = future.exception()
                mapping.put([(index, error is None, error if error is not None else own.sealed)])

        own.add_done_callback(settled)

    def _add(self, jobs: list[Job]) -> None:
        with self._lock:
            self._check()
            self._backlog.extend(jobs)
            failed = self._dispatch() if self._idle or len(self._lines) < self.most else []
        self._settle(failed)

    def check(self) -> None:
        """Raise the error of an executor that takes no more calls."""
        with self._lock:
            self._check()

    def _check(self) -> None:
        if self.pid != os.getpid():
            raise RuntimeError(f"this executor belongs to process {self.pid}, which forked this one; make another one here")
        if self.broken is not None:
            raise self.broken()
        if self.shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._thread is None:
            self._begin()

    def _begin(self) -> None:
        """Start the collector, and what workers need. Lock held."""
        forkserver.warm_up()
        self._pool = WarmPool(None, self.idle)
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        self._wake = (read, write)
        thread = threading.Thread(target=_Collector(self).collect, name="entangle-executor")
        try:
            thread.start()
        except RuntimeError as problem:
            os.close(read)
            os.close(write)
            self._wake = (-1, -1)
            raise no_thread(problem) from None
        self._thread = thread

    # Out to workers ------------------------------------------------------------------------------

    def _dispatch(self) -> list[_Settled]:
        """Give calls of the backlog to workers that have nothing to do. Lock held.

        Gives those that could not be sent: they are to be settled without the lock.
        """
        failed: list[_Settled] = []
        backlog = self._backlog
        while backlog:
            if self._idle:
                line = self._idle.pop()
            elif len(self._lines) < self.most and self.broken is None:
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
                self._idle.append(line)
        return failed

    def _load_ahead(self, failed: list[_Settled]) -> None:
        """Give busy workers short calls to go on with, one message each. Lock held."""
        for line in self._lines.values():
            if not self._backlog:
                return
            seconds = self._backlog[0].function.seconds
            if seconds is None or seconds > _MESSAGE / 4 or len(self._backlog[0].body) > _AHEAD:
                return  # who sends more than the socket has room for waits for the reader
            if not line.pending or line.closed or line.retires or line.recalled is not None or line.left == 0:
                continue
            first = next(iter(line.pending))
            if first > line.before_last and line.bytes <= _AHEAD:
                busy = line.pending[first].function.seconds
                if busy is not None and busy <= _MESSAGE / 4:
                    self._load(line, failed)

    def _start(self, failed: list[_Settled]) -> _Line | None:
        """Start a worker. Lock held."""
        assert self._pool is not None
        try:
            worker = self._pool.take()
            assert worker is not None
        except Exception as problem:
            error = problem
            self._break(lambda: EntangleError(f"no worker can be started: {type(error).__name__}: {error}"), failed)
            return None
        fd = boards.make()
        line = _Line(worker, Board(fd), self.each)
        try:
            self._send(line, [], [], self._first_words(), [fd])
        except OSError:
            pass  # it has died at once: the collector sees that
        finally:
            os.close(fd)
        self._lines[worker.watch] = line
        self._new_lines.append(line)
        self._tell()
        return line

    def _first_words(self) -> dict[str, Any]:
        if self.files is None:
            found = homes.home()
            name = f"x{os.urandom(8).hex()}"
            self.files = ValueFiles(os.path.join(found.path, name), os.path.join(found.spill, name))
            os.mkdir(self.files.directory, 0o700)
            self._holdings = Holdings(self.files)
            self._surroundings = {
                "home": found.path,
                "home_spill": found.spill,
                "jobserver": jobserver_style(),
                "threads": max(1, len(available_cpus()) // self.most),
            }
        return {
            "directory": self.files.directory,
            "spill": self.files.spill,
            "initializer": self._initializer,
            "state": inheritance.pickled(),
            **self._surroundings,
        }

    def _load(self, line: _Line, failed: list[_Settled]) -> None:
        """Give a worker calls of the backlog, as many as are short. Lock held."""
        backlog = self._backlog
        most = min(_MOST, 1 + len(backlog) // (2 * self.most))
        most = most if line.left is None else min(most, line.left)
        spent, size, before = 0.0, 0, line.number
        functions: list[Any] = []
        calls: list[Any] = []
        assert self.files is not None
        assert self._holdings is not None
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
                    self._holdings.hold(name)
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
            assert self._holdings is not None
            if job.buffers or len(job.body) > INLINE:
                wire = self.files.put(job.body, job.buffers)
                self._holdings.note(self.files)
                own: Sealed | None = self._holdings.seal(wire)
            else:
                wire, own = job.body, None
            values = tuple(future.sealed for future in job.takes if future.sealed is not None)
            job.wires = (wire, values, own)
            job.body, job.buffers, job.takes = b"", [], []
        wire, sealed, _ = job.wires
        return wire, tuple(one.wire for one in sealed)

    def _function_for(self, line: _Line, function: Function, functions: list[Any]) -> int:
        """The number that a worker knows a function by; it is told if it does not. Lock held."""
        known = line.functions.get(function.key)
        if known is not None:
            return known
        if function.buffers or len(function.body) > INLINE:
            if function.wire is None:
                assert self.files is not None
                assert self._holdings is not None
                wire = self.files.put(function.body, function.buffers)
                self._holdings.note(self.files)
                # Held for as long as the executor lives.
                for name in files_of(wire):
                    self._holdings.hold(name)
                function.wire = (self, wire)
            owner, wire = function.wire
            if owner is not self:
                wire = self.files.put(function.body, function.buffers)  # type: ignore[union-attr]
                self._holdings.note(self.files)  # type: ignore[union-attr, arg-type]
                for name in files_of(wire):
                    self._holdings.hold(name)  # type: ignore[union-attr]
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

    def _send(self, line: _Line, functions: list[Any], calls: list[Any], first: dict[str, Any] | None = None, fds: Any = ()) -> None:
        spare: list[tuple[int, str]] = []
        if self._holdings is not None and line.wants:
            spare = self._holdings.lend(line.wants, line.lent)
        travelled: tuple[str, ...] = ()
        if len(module_lookup.travelled) != line.travelled:
            travelled = tuple(module_lookup.travelled)
            line.travelled = len(travelled)
        given = [*fds]
        if first is not None:
            given += [fd for fd in (2, 1) if _is_open(fd)]
            first["streams"] = len(given) - len(fds)
        line.worker.orders.send(CALL, marshal.dumps((first, travelled, functions, spare, calls)), given)

    # Back from workers ---------------------------------------------------------------------------

    def _settle(self, settled: list[_Settled]) -> None:
        """Tell those who wait. Without the lock: callbacks may do anything."""
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
                    if not job.under_way and not future.set_running_or_notify_cancel():
                        continue
                    future.set_exception(what)
                    continue
                future.sealed = what
                if future.wanted:
                    future.set_result(_UNSET)
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
        assert self._holdings is not None
        try:
            body, buffers = sealed.parts or self.files.read(sealed.wire)
        except FileNotFoundError:
            if sealed.parts is None:
                raise
            body, buffers = sealed.parts  # the executor has ended at this moment
        if sealed.parts is not None:
            return pickle.loads(body, buffers=buffers)
        with self._lock:
            for name in files_of(sealed.wire):
                self._holdings.hold(name)
                self.files.held[name] += 1
        return pickle.loads(body, buffers=buffers)

    def _break(self, make: Callable[[], BaseException], failed: list[_Settled], number: int = signal.SIGKILL) -> None:
        """Nothing runs here any more. All calls fail, and workers get a signal. Lock held."""
        if self.broken is None:
            self.broken = make
        for line in self._lines.values():
            failed += [(job, False, self.broken()) for job in line.pending.values()]
            line.pending.clear()
            line.worker.kill(number)
        self._idle.clear()
        failed += [(job, False, self.broken()) for job in self._backlog]
        self._backlog.clear()
        self._tell()

    # The end -------------------------------------------------------------------------------------

    def shutdown(self, wait: bool, cancel: bool) -> None:
        """Take no more calls; with `cancel`, drop those that no worker has; with `wait`, return
        when all is over."""
        if self.pid != os.getpid():
            return
        dropped: list[Job] = []
        with self._lock:
            self.shut = True
            if cancel:
                dropped = list(self._backlog)
                self._backlog.clear()
            self._tell()
        for job in dropped:
            if job.future is not None:
                if job.future.cancel():
                    job.future.set_running_or_notify_cancel()
            elif job.mapping is not None:
                job.mapping.put([(job.index, False, CancelledError())])
        thread = self._thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    def kill(self, number: int) -> None:
        """Send a signal to all workers. What they run fails."""
        failed: list[_Settled] = []
        told = f"the workers were ended by signal {signal_name(number)}, as the program has asked"
        with self._lock:
            if not self.over:
                self._break(lambda: broken_by(told), failed, number)
        self._settle(failed)

    def pids(self) -> list[int]:
        """The process ids of the workers that live."""
        until = time.monotonic() + _TOLD
        while True:
            with self._lock:
                found = [line.worker.pid for line in self._lines.values() if not line.worker.ended()]
            if 0 not in found or time.monotonic() > until:
                return [pid for pid in found if pid > 0]
            time.sleep(0.001)  # the forkserver is about to tell

    def drop(self, _: object = None) -> None:
        """Nobody has the executor any more. May be called anywhere: it takes no lock."""
        self.dropped = True
        self._tell()

    def _tell(self) -> None:
        """Wake the collector."""
        if self._wake[1] >= 0 and self.pid == os.getpid():
            with contextlib.suppress(OSError):
                os.write(self._wake[1], b"!")

    def _is_finished(self) -> bool:
        """Whether the collector has nothing left to do. Lock held."""
        if not (self.shut or self.dropped or _exiting or self.broken is not None):
            return False
        return not self._backlog and not self._waiting and not any(line.pending for line in self._lines.values())


_Settled = tuple[Job, bool, Any]

#: How long a worker with nothing to do stays by default (seconds), and where it never ends.
_IDLE, _FOREVER = 60.0, 1e6


class _Collector:
    """The thread that takes the outcomes of one executor's calls."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self._poll = new_poll()

    def collect(self) -> None:
        """Settle calls until the executor is over."""
        calls = self.calls
        poll = self._poll
        wake = calls._wake[0]
        poll.register(wake, select.POLLIN)
        try:
            while True:
                timeout = self._timeout()
                ready = poll.poll(timeout)
                if calls.pid != os.getpid():
                    return
                settled: list[_Settled] = []
                with calls._lock:
                    for line in calls._new_lines:
                        if line.worker.watch in calls._lines:
                            poll.register(line.worker.watch, select.POLLIN)
                    calls._new_lines.clear()
                for fd, _ in ready:
                    if fd == wake:
                        with contextlib.suppress(OSError):
                            os.read(wake, 4096)
                    else:
                        self._hear(fd, settled)
                with calls._lock:
                    if not ready or timeout is not None:
                        self._tick(settled)
                    settled += calls._dispatch()
                calls._settle(settled)
                settled.clear()
                with calls._lock:
                    if calls._is_finished():
                        break
        finally:
            self._end()

    def _timeout(self) -> float | None:
        """How long to wait for news (ms)."""
        calls = self.calls
        with calls._lock:
            for line in calls._lines.values():
                if len(line.pending) > 1 or line.recalled is not None:
                    return _TICK * 1000
            if calls._holdings is not None and calls._holdings.free and not any(line.pending for line in calls._lines.values()):
                return _QUIET * 1000
        return None

    # News of a worker ----------------------------------------------------------------------------

    def _hear(self, fd: int, settled: list[_Settled]) -> None:
        calls = self.calls
        line = calls._lines.get(fd)
        if line is None:
            return
        orders = line.worker.orders
        while True:
            try:
                order = orders.receive(wait=False)
            except OSError:
                orders.ended = True
                order = None
            if order is None:
                break
            assert order.kind == OUTCOMES
            with calls._lock:
                self._take(line, memoryview(order.body), settled)
        with calls._lock:
            ended = line.worker.ended()
            if not ended:
                self._rest(line)
        if ended:
            self._bury(fd, line, settled)
        elif orders.ended:
            time.sleep(0.001)  # how it has ended is about to be told

    def _rest(self, line: _Line) -> None:
        """Note that a worker has nothing to do, if so. Lock held."""
        calls = self.calls
        if line.pending or line.closed or line.retires or line in calls._idle or calls.broken is not None:
            return
        if line.left is not None and line.left <= 0:
            line.closed = True
            with contextlib.suppress(OSError):
                line.worker.channel.shutdown(socket.SHUT_WR)
            return
        calls._idle.append(line)

    def _take(self, line: _Line, body: memoryview, settled: list[_Settled]) -> None:
        """Take the outcomes in a message, or on the board. Lock held."""
        calls = self.calls
        at, end = 0, len(body)
        while at + OUTCOME.size <= end:
            number, took, kind, size = OUTCOME.unpack_from(body, at)
            at += OUTCOME.size
            part = bytes(body[at : at + size])
            at += size
            if kind == NEWS:
                self._take_news(line, part)
                continue
            if kind == REFUSED:
                self._refused(line, part, settled)
                continue
            job = line.pending.pop(number, None)
            if job is None:
                continue  # it was read from the board, or has been taken back
            if kind == SKIPPED:
                calls._backlog.appendleft(job)
                continue
            line.answered = True
            calls._stillborn = 0
            function = job.function
            known = function.seconds
            function.seconds = took if known is None else max(took, known * 0.7 + took * 0.3)
            if kind == VALUE:
                settled.append((job, True, Sealed(part)))
            elif kind == LARGE:
                wire: Wire = marshal.loads(part)
                assert calls._holdings is not None
                settled.append((job, True, calls._holdings.seal(wire)))
                # Not only when the worker tells: it may die before.
                for name in files_of(wire):
                    line.lent.pop(name, None)
                line.wants = end_of(wire)
            else:
                settled.append((job, False, error_of(part)))
            job.wires = None

    def _take_news(self, line: _Line, part: bytes) -> None:
        holdings = self.calls._holdings
        assert holdings is not None
        written, gone, retires = marshal.loads(part)
        for name, size in written:
            line.lent.pop(name, None)
            holdings.sizes[name] = size
        for name in gone:
            line.held[name] -= 1
            holdings.drop(name)
        if retires:
            line.retires = retires
            if line in self.calls._idle:
                self.calls._idle.remove(line)

    def _refused(self, line: _Line, part: bytes, settled: list[_Settled]) -> None:
        """The initializer has failed in a worker. Lock held."""
        calls = self.calls
        error = error_of(part)
        name = calls._initializer_name
        logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=error)
        calls._break(lambda: broken_by(f"the initializer {name!r} failed in a worker process, so nothing can run here", error), settled)

    # The end of a worker -------------------------------------------------------------------------

    def _bury(self, fd: int, line: _Line, settled: list[_Settled]) -> None:
        calls = self.calls
        self._poll.unregister(fd)
        with calls._lock:
            calls._lines.pop(fd, None)
            if line in calls._idle:
                calls._idle.remove(line)
            self._take_board(line, settled)
            code, pid = line.worker.ended_by or 0, line.worker.pid
            begun = line.board.words[BEGUN]
            lost = line.pending.pop(begun, None)
            if calls._holdings is not None:
                calls._holdings.bury(line.held, line.lent)
            rest = list(line.pending.values())
            line.pending.clear()
            calls._backlog.extendleft(reversed(rest))
            if calls.broken is None and lost is not None:
                name = lost.function.name
                how = how_it_ended(code)
                settled.append((lost, False, broken_by(f"the worker process (pid {pid}) of {name!r} ended by {how} while it ran")))
                told = f"a worker process (pid {pid}) ended by {how} while it ran {name!r}, so nothing more runs here"
                calls._break(lambda: broken_by(told), settled)
            elif calls.broken is None and rest and not line.answered and not line.retires:
                calls._stillborn += _STILLBORN if calls._initializer is not None else 1
                if calls._stillborn >= _STILLBORN:
                    told = f"worker processes end before they answer, the last one by {how_it_ended(code)}"
                    calls._break(lambda: broken_by(told), settled)
            line.board.close()
        assert calls._pool is not None
        calls._pool.give(line.worker)

    # What messages do not tell -------------------------------------------------------------------

    def _take_board(self, line: _Line, settled: list[_Settled]) -> None:
        """Take outcomes that wait to be sent. Lock held."""
        words = line.board.words
        batch, tail = words[BATCH], words[TAIL]
        if tail:
            kept = bytes(line.board.outcomes[:tail])
            if words[BATCH] == batch:
                self._take(line, memoryview(kept), settled)

    def _tick(self, settled: list[_Settled]) -> None:
        """Look after workers with several calls. Lock held."""
        calls = self.calls
        if calls._holdings is not None and calls._holdings.free and not any(line.pending for line in calls._lines.values()):
            calls._holdings.trim()
        others = not calls._backlog and (bool(calls._idle) or len(calls._lines) < calls.most)
        now = time.monotonic()
        for line in list(calls._lines.values()):
            if now - line.seen_at < _TICK:
                continue
            line.seen_at = now
            words = line.board.words
            seen = (words[BATCH], words[TAIL], words[BEGUN])
            stands, line.seen = seen == line.seen, seen
            if line.recalled is not None:
                low, high = line.recalled
                line.recalled = None
                back = [number for number in line.pending if max(low, seen[2] + 1) <= number < high]
                calls._backlog.extendleft(reversed([line.pending.pop(number) for number in back]))
                continue
            if not stands or len(line.pending) < 2:
                continue
            self._take_board(line, settled)
            if others and len(line.pending) > 1 and seen[2]:
                words[HIGH] = line.number + 1
                words[LOW] = seen[2] + 1
                line.recalled = (seen[2] + 1, line.number + 1)

    # The end -------------------------------------------------------------------------------------

    def _end(self) -> None:
        """End the workers, and remove what they used."""
        calls = self.calls
        failed: list[_Settled] = []
        with calls._lock:
            if not calls._is_finished():  # a fault of ours: nobody may wait for ever
                calls._break(lambda: broken_by("the thread that collects outcomes has failed"), failed)
            calls.over = True
            lines, calls._lines = list(calls._lines.values()), {}
            calls._idle.clear()
            pool, files, holdings = calls._pool, calls.files, calls._holdings
        calls._settle(failed)
        for line in lines:
            line.board.close()
            if pool is not None:
                pool.give(line.worker)
        if pool is not None:
            pool.close()
        if holdings is not None:
            with calls._lock:
                holdings.map_all()
                holdings.over = True
        if files is not None:
            for path in (files.directory, files.spill):
                shutil.rmtree(path, ignore_errors=True)
        with calls._lock:
            wake, calls._wake = calls._wake, (-1, -1)
            for fd in wake:
                os.close(fd)


# Arguments and errors ---------------------------------------------------------------------------


class _Taking(threading.local):
    """The futures found in arguments while these are pickled, and whose call it is."""

    calls: Calls | None = None
    futures: list[CallFuture]


_taking = _Taking()


def _reduce_future(future: Any) -> Any:
    """Pickle a future of the same executor as the place of its value."""
    calls = _taking.calls
    if calls is None:
        return NotImplemented
    if isinstance(future, CallFuture) and future.calls is calls:
        _taking.futures.append(future)
        return called.taken, (len(_taking.futures) - 1,)
    raise ArgumentError(
        f"an argument is a future of somebody else ({type(future).__module__}.{type(future).__qualname__}): only futures of the same "
        "executor can be arguments; pass its result()"
    )


otherwise(Future, _reduce_future)


def _arrived(reference: weakref.ref[Calls], job: Job) -> None:
    calls = reference()
    if calls is not None:
        calls._arrives(job)


def function_of_call(function: Any) -> Function:
    """The travelling form of a function.

    Raises UnpicklableError that names what cannot travel.
    """
    try:
        return function_of(function)
    except Exception as problem:
        raise why_not(function, "the function of a call", dumps_for_others) from problem


def _what_cannot_travel(name: str, args: tuple[Any, ...], named: dict[str, Any], problem: Exception) -> Exception:
    for key, value in itertools.chain(enumerate(args, 1), named.items()):
        if getattr(type(value), "_asyncio_future_blocking", _UNSET) is not _UNSET:
            return ArgumentError(f"argument {key} of {name!r} is a future of asyncio: only futures of the same executor can be arguments")
        try:
            dumps_for_others(value)
        except Exception:
            return why_not(value, f"argument {key} of {name!r}", dumps_for_others)
    return UnpicklableError(f"the arguments of {name!r} cannot travel to another process: {type(problem).__name__}: {problem}")


def error_of(pickled_report: bytes) -> BaseException:
    """The error that a worker has reported, with its traceback there."""
    error: BaseException
    try:
        report = pickle.loads(pickled_report)
        error = pickle.loads(report["error"])
    except BaseException as problem:
        error = EntangleError(f"a call failed with an error that cannot be unpickled here ({type(problem).__name__}: {problem})")
        report = {"text": "", "call": "", "where": ""}
    with contextlib.suppress(Exception):
        if report["text"]:
            set_traceback(error, report["text"])
        if report["call"]:
            add_note(error, f"call: {report['call']}")
        if report["where"]:
            add_note(error, report["where"])
    return error


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# The end of the program -------------------------------------------------------------------------

_all: weakref.WeakSet[Calls] = weakref.WeakSet()
#: Whether the interpreter is about to end.
_exiting = False


def _finish() -> None:
    """Wait for what is under way: the program has come to its end."""
    global _exiting
    _exiting = True
    found = [calls for calls in list(_all) if calls.pid == os.getpid()]
    for calls in found:
        calls._tell()
    for calls in found:
        if calls._thread is not None:
            calls._thread.join()


# As concurrent.futures does: it is called before Python waits for threads.
threading._register_atexit(_finish)  # type: ignore[attr-defined]


def _after_fork() -> None:
    """In a forked child, close what leads to the parent's workers."""
    for calls in list(_all):
        calls._lock = threading.Lock()
        for fd in calls._wake:
            if fd >= 0:
                os.close(fd)
        calls._wake = (-1, -1)
        calls._thread = None
        if calls._holdings is not None:
            calls._holdings.over = True
    _all.clear()


os.register_at_fork(after_in_child=_after_fork)
