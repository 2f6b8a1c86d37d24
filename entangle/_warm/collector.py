"""The thread that takes the outcomes of one executor's calls, and sees its workers end."""

from __future__ import annotations

import contextlib
import logging
import marshal
import os
import pickle
import select
import shutil
import signal
import socket
import time

from entangle._run.memory_kills import kills
from entangle._shared.orders import OUTCOMES
from entangle._shared.polling import new_poll
from entangle._shared.spare_files import place_of_spares, remove_of_dead, spare_files
from entangle._shared.value_files import Wire
from entangle._warm.broken import broken_by, how_it_ended
from entangle._warm.dispatcher import Dispatcher, Line
from entangle._warm.executor_call import Settled
from entangle._warm.holdings import Sealed
from entangle._worker.board import BATCH, BEGUN, HIGH, LARGE, LOW, NEWS, OUTCOME, REFUSED, SKIPPED, TAIL, VALUE, Board
from entangle._worker.failures import set_traceback
from entangle.errors import EntangleError, add_note

#: How long a call may keep those behind it waiting while another worker has nothing to do (s).
_TICK = 0.005
#: How many workers in a row may end before they have answered anything.
_STILLBORN = 5
#: Spare files of large values are given back after this time without a call (seconds).
_QUIET = 5.0


#: Boards of workers that were forgotten: closing one would close its descriptor, which may be
#: another file's now.
_forgotten: list[Board] = []


class Collector:
    """The thread that takes the outcomes of one executor's calls."""

    def __init__(self, calls: Dispatcher) -> None:
        self.calls = calls
        self._poll = new_poll()
        kills()  # counted from here on

    def collect(self) -> None:
        """Settle calls until the executor is over."""
        calls = self.calls
        poll = self._poll
        wake = calls.wake[0]
        poll.register(wake, select.POLLIN)
        try:
            while True:
                timeout = self._timeout()
                ready = poll.poll(timeout)
                if calls.pid != os.getpid():
                    return
                settled: list[Settled] = []
                if calls.own.lost() or any(line.worker.own.lost() for fd, _ in ready if (line := calls.lines.get(fd)) is not None):
                    self._forget(settled)
                    break
                with calls.lock:
                    for line in calls.new_lines:
                        if line.worker.watch in calls.lines:
                            poll.register(line.worker.watch, select.POLLIN)
                    calls.new_lines.clear()
                for fd, _ in ready:
                    if fd == wake:
                        with contextlib.suppress(OSError):
                            os.read(wake, 4096)
                    else:
                        self._hear(fd, settled)
                with calls.lock:
                    if not ready or timeout is not None:
                        self._tick(settled)
                    if not ready and timeout == _QUIET * 1000:
                        spare_files.give_back()
                    calls.dispatch()
                calls.settle(settled)
                with calls.lock:
                    if calls.is_finished():
                        break
        finally:
            self._end()

    def _forget(self, settled: list[Settled]) -> None:
        """Break the executor, whose descriptors somebody has closed."""
        calls = self.calls
        told = "this process has closed descriptors of the executor, as os.closerange does, so nothing runs here any more; make another one"
        with calls.lock:
            for line in calls.lines.values():
                if line.worker.own.lost():
                    line.worker.forget()
                    _forgotten.append(line.board)
            if calls.own.lost():
                calls.wake = (-1, -1)
            calls.break_off(lambda: broken_by(told), settled)
        calls.settle(settled)

    def _timeout(self) -> float | None:
        """How long to wait for news (ms)."""
        calls = self.calls
        with calls.lock:
            for line in calls.lines.values():
                if len(line.pending) > 1 or line.recalled is not None:
                    return _TICK * 1000
            if len(spare_files) and not any(line.pending for line in calls.lines.values()):
                return _QUIET * 1000
        return None

    # News of a worker ----------------------------------------------------------------------------

    def _hear(self, fd: int, settled: list[Settled]) -> None:
        calls = self.calls
        line = calls.lines.get(fd)
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
            with calls.lock:
                self._take(line, memoryview(order.body), settled)
        with calls.lock:
            ended = line.worker.ended()
            if not ended:
                self._rest(line)
        if ended:
            self._bury(fd, line, settled)
        elif orders.ended:
            time.sleep(0.001)  # how it has ended is about to be told

    def _rest(self, line: Line) -> None:
        """Note that a worker has nothing to do, if so. Lock held."""
        calls = self.calls
        if line.pending or line.closed or line.retires or line in calls.resting or calls.broken is not None:
            return
        if line.left is not None and line.left <= 0:
            line.closed = True
            with contextlib.suppress(OSError):
                line.worker.channel.shutdown(socket.SHUT_WR)
            return
        calls.resting.append(line)

    def _take(self, line: Line, body: memoryview, settled: list[Settled]) -> None:
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
                calls.backlog.appendleft(job)
                continue
            line.answered = True
            calls.stillborn = 0
            function = job.function
            known = function.seconds
            function.seconds = took if known is None else max(took, known * 0.7 + took * 0.3)
            if kind == VALUE:
                settled.append((job, True, Sealed(part)))
            elif kind == LARGE:
                wire: Wire = marshal.loads(part)
                assert calls.holdings is not None
                settled.append((job, True, calls.holdings.seal(wire)))
            else:
                settled.append((job, False, error_of(part)))
            job.wires = None

    def _take_news(self, line: Line, part: bytes) -> None:
        holdings = self.calls.holdings
        assert holdings is not None
        gone, retires = marshal.loads(part)
        for name in gone:
            line.held[name] -= 1
            holdings.drop(name)
        if retires:
            line.retires = retires
            if line in self.calls.resting:
                self.calls.resting.remove(line)

    def _refused(self, line: Line, part: bytes, settled: list[Settled]) -> None:
        """The initializer has failed in a worker. Lock held."""
        calls = self.calls
        error = error_of(part)
        name = calls.initializer_name
        logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=error)
        calls.break_off(lambda: broken_by(f"the initializer {name!r} failed in a worker process, so nothing can run here", error), settled)

    # The end of a worker -------------------------------------------------------------------------

    def _bury(self, fd: int, line: Line, settled: list[Settled]) -> None:
        calls = self.calls
        self._poll.unregister(fd)
        with calls.lock:
            calls.lines.pop(fd, None)
            if line in calls.resting:
                calls.resting.remove(line)
            self._take_board(line, settled)
            code, pid = line.worker.ended_by or 0, line.worker.pid
            begun = line.board.words[BEGUN]
            lost = line.pending.pop(begun, None)
            if calls.holdings is not None:
                calls.holdings.bury(line.held)
            rest = list(line.pending.values())
            line.pending.clear()
            calls.backlog.extendleft(reversed(rest))
            if calls.broken is None and lost is not None:
                name = lost.function.name
                how = how_it_ended(code)
                killed = kills().why() if code == -signal.SIGKILL else ""
                call = lost.in_short(calls.files)
                why = f"the worker process (pid {pid}) of {name!r} ended by {how} while it ran"
                settled.append((lost, False, broken_by(why, call=call, killed=killed)))
                told = f"a worker process (pid {pid}) ended by {how} while it ran {name!r}, so nothing more runs here"
                calls.break_off(lambda: broken_by(told, call=call, killed=killed), settled)
            elif calls.broken is None and rest and not line.answered and not line.retires:
                calls.stillborn += _STILLBORN if calls.initializer is not None else 1
                if calls.stillborn >= _STILLBORN:
                    told = f"worker processes end before they answer, the last one by {how_it_ended(code)}"
                    calls.break_off(lambda: broken_by(told), settled)
            line.board.close()
            files = calls.files
        assert calls.pool is not None
        assert files is not None
        calls.pool.give(line.worker)
        for path in files.runs_of(pid):  # it was killed amid a call that had begun runs
            if os.path.exists(path):
                shutil.rmtree(path, ignore_errors=True)

    # What messages do not tell -------------------------------------------------------------------

    def _take_board(self, line: Line, settled: list[Settled]) -> None:
        """Take outcomes that wait to be sent. Lock held."""
        words = line.board.words
        batch, tail = words[BATCH], words[TAIL]
        if tail:
            kept = bytes(line.board.outcomes[:tail])
            if words[BATCH] == batch:
                self._take(line, memoryview(kept), settled)

    def _tick(self, settled: list[Settled]) -> None:
        """Look after workers with several calls. Lock held."""
        calls = self.calls
        others = not calls.backlog and (bool(calls.resting) or len(calls.lines) < calls.most)
        now = time.monotonic()
        for line in list(calls.lines.values()):
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
                calls.backlog.extendleft(reversed([line.pending.pop(number) for number in back]))
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
        failed: list[Settled] = []
        with calls.lock:
            if not calls.is_finished():  # a bug of ours: no caller may hang
                calls.break_off(lambda: broken_by("the thread that collects outcomes has failed"), failed)
            calls.over = True
            lines, calls.lines = list(calls.lines.values()), {}
            calls.resting.clear()
            pool, files, holdings = calls.pool, calls.files, calls.holdings
        calls.settle(failed)
        for line in lines:
            if line.board not in _forgotten:
                line.board.close()
            if pool is not None:
                pool.give(line.worker)
        if pool is not None:
            pool.close()
        if holdings is not None:
            with calls.lock:
                holdings.map_all()
                holdings.over = True
        spare_files.give_back()
        if files is not None:
            for path in (files.directory, files.spill):
                shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):  # there are none
                remove_of_dead(place_of_spares(os.path.dirname(files.directory)))
        with calls.lock:
            wake, calls.wake = calls.wake, (-1, -1)
            for fd in wake:
                if fd >= 0:
                    os.close(fd)


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
