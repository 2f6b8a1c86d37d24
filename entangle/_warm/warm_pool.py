"""The warm workers of one owner: started when needed, lent one at a time, replaced when they die.

They come from the clean forkserver (`_run/forkserver.py`) and live as `_run/warm_life.py` says. No
thread watches them: one that has nothing to do for a while ends by itself, and how many there are
is counted when one is wanted.
"""

from __future__ import annotations

import _socket
import atexit
import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
import weakref
from typing import Any

from entangle import _run
from entangle._run import forkserver
from entangle._run.worker_process import WorkerProcess, signal_name
from entangle._shared.descriptors import OwnDescriptors
from entangle._shared.frame import Frame
from entangle._shared.home import remove_of_worker
from entangle._shared.interrupts import Deferred
from entangle._shared.orders import LEFT, Orders, pair
from entangle._shared.polling import readable
from entangle._worker.joining import MOST_TOLD
from entangle.errors import EntangleError

#: How long one is waited for that is about to come back, before another is started (seconds).
_COMING_BACK = 0.05
#: The same where another one would have to load everything first.
_COMING_BACK_LOADED = 1.0
#: How long one is waited for that is about to come back, where there is another way (seconds).
_MOMENT = 0.001
#: How long workers may take to end when their pool closes, before they are killed (seconds).
_ENDING = 1.0


class WarmWorker:
    """A warm worker, as its owner sees it."""

    def __init__(self, settings: dict[str, Any], listened_to: bool, clean: bool) -> None:
        ours, theirs = pair()
        #: What it writes to stderr comes out here; -1: it goes where our own does.
        self.err, err = os.pipe() if listened_to else (-1, -1)
        with contextlib.closing(theirs):
            try:
                status = forkserver.ask_for_warm_worker(theirs.fileno(), err, settings, clean)
            except BaseException:
                ours.close()
                if self.err >= 0:
                    os.close(self.err)
                raise
            finally:
                if err >= 0:
                    os.close(err)
        if self.err >= 0:
            os.set_blocking(self.err, False)
        self._process = WorkerProcess(-1, -1, 0, status, -1, -1, ours=False)
        self.orders = Orders(ours)
        self.closed = False
        #: Whether it was there in time when it was waited for last.
        self.is_prompt = False
        #: The runs that it was told to join and has not said yet that it left: the frame of each,
        #: if any, and where it is recorded. Of two it is still leaving the first.
        self.inside: list[tuple[Frame | None, str]] = []
        #: How many runs it has left, and the exit status with which it has left the last.
        self.runs_left = self.last_status = 0
        #: The numbers of the frames that it has open, the one used last at the end.
        self.frames: list[int] = []
        #: The numbers of what it has been told of calls (`_worker/joining.py`), the one used last
        #: at the end; whether it is to forget all that it was told before.
        self._told: dict[int, None] = {}
        self._forgets = False
        #: Why it retires, if it has said that it does; for what it was killed.
        self.retires = self.killed_for = ""
        #: Where the run that it joined last is recorded; "" if that is not.
        self.record = ""
        #: Readable when it has news, or has ended.
        self.watch = _watch_both(ours.fileno(), status)
        self.own = OwnDescriptors(self.watch, ours.fileno(), status)

    @property
    def away(self) -> bool:
        """Whether it has been told to do something and has not said yet that it is done."""
        return bool(self.inside)

    def joins(self, frame: Frame | None, record: str) -> int:
        """Note that it was told to join a run. Gives the number of that run: it has left it when it
        has left so many."""
        self.inside.append((frame, record))
        self.killed_for = ""
        if len(self.inside) == 1:
            self.record = record
        return self.runs_left + len(self.inside)

    def knows(self, number: int) -> bool:
        """Whether it has been told what has this number."""
        if number not in self._told:
            return False
        self._told[number] = self._told.pop(number)
        return True

    def learns(self, number: int) -> int:
        """Note that it is told what has this number. Gives the number of what it is to forget
        before: 0 for nothing, -1 for all."""
        forgets, self._forgets = -1 if self._forgets else 0, False
        if not forgets and len(self._told) >= MOST_TOLD:
            forgets = next(iter(self._told))
            del self._told[forgets]
        self._told[number] = None
        return forgets

    @property
    def channel(self) -> _socket.socket:
        """The socket over which it gets orders."""
        return self.orders.channel

    @property
    def pid(self) -> int:
        """Its process id; 0 until the forkserver has told it."""
        return self._process.pid

    @property
    def ended_by(self) -> int | None:
        """How it has ended: exit code, or minus the signal."""
        return self._process.ended_by

    def ended(self) -> bool:
        """Whether the process has ended, without waiting. After `close`, as it was then."""
        return self._process.ended() if self.watch >= 0 else self.ended_by is not None

    def wait(self, seconds: float) -> bool:
        """Whether the process has ended, after waiting at most this long (seconds)."""
        until = time.monotonic() + seconds
        while not self.ended():
            if not readable([self._process.watch], max(0.0, until - time.monotonic())) and time.monotonic() >= until:
                return self.ended()
        return True

    def kill(self, number: int) -> None:
        """Send a signal to the worker and to its process group."""
        self._process.kill(number)

    def left(self) -> bool:
        """Whether it has left all runs that it was told to join."""
        while self.inside and self._has_left_one():
            pass
        return not self.inside

    def _has_left_one(self) -> bool:
        try:
            news = self.orders.receive(wait=False)
        except OSError:
            return False
        if news is None or news.kind != LEFT:
            return False
        self.last_status, self.retires = json.loads(news.body) if news.body else (0, "")
        self.runs_left += 1
        del self.inside[0]
        if self.last_status:
            self._told.clear()  # it may have understood nothing of it
            self._forgets = True
        if self.retires:
            self._tell(self.retires)
        elif self.inside:
            self.record = self.inside[0][1]
        return True

    def _tell(self, why: str) -> None:
        """Have it recorded why this worker ends, where its last run is recorded."""
        record, self.record = self.record, ""
        if record and _run.retired is not None:
            _run.retired(record, self.pid, why)

    def _tell_end(self) -> None:
        """Have it recorded how this worker has ended, unless it had nothing to do for a while, or
        its owner wanted no more."""
        if self.away:
            self.left()
        code = self.ended_by if self.ended() else None
        if code is None or not (code or self.away):
            return
        if self.killed_for:
            self._tell(self.killed_for)
        elif code:
            how = f"{signal_name(-code)} killed it" if code < 0 else f"it ended with exit status {code}"
            self._tell(how if self.away else f"{how} while it had nothing to do")
        else:
            self._tell("a body has closed descriptors of the worker, or ended it by os._exit(0)")

    def is_in(self, frame: Frame) -> bool:
        """Whether it may still be in a run in this frame."""
        return not self.closed and any(inside is frame for inside, _ in self.inside) and not self.ended()

    def forget(self) -> None:
        """Drop what led to it, after somebody has closed that."""
        self.closed, self.watch, self.err, self.record = True, -1, -1, ""
        self.channel.detach()
        self._process.forget()

    def close(self) -> None:
        """Close what leads to it: it ends as soon as it has nothing to do."""
        if self.record:
            self._tell_end()
        if self.ended_by is not None:
            remove_of_worker(self.pid)
        self.closed = True
        if self.watch >= 0 and self.watch not in (self.channel.fileno(), self._process.watch):
            os.close(self.watch)
        self.watch = -1
        self.orders.close()
        self._process.close()
        if self.err >= 0:
            os.close(self.err)
            self.err = -1


def _watch_both(channel: int, status: int) -> int:
    """A descriptor that is readable when one of these is."""
    if hasattr(select, "epoll"):
        both = select.epoll(sizehint=2)
        for fd in (channel, status):
            both.register(fd, select.EPOLLIN)
        # The object would close it when it is collected.
        return os.dup(both.fileno())
    return channel  # its peer is the worker's alone, unless a body has forked


class WarmPool:
    """At most `workers` warm workers (None: as many as are wanted).

    With `listened_to`, what they write to stderr comes out of a pipe of each (`WarmWorker.err`).
    With `clean`, they have loaded nothing of the user's before their first order.
    A worker ends after `idle` seconds in which it had nothing to do, and retires where it has more
    than `max_memory` bytes of its own (0: no limit). Any thread may use a pool. A forked child may
    not: for it, the pool is closed.
    """

    def __init__(
        self, workers: int | None = None, idle: float = 60.0, max_memory: int = 0, listened_to: bool = False, clean: bool = False
    ) -> None:
        self.workers = workers
        self._listened_to = listened_to
        self._clean = clean
        self._settings = {"idle": idle, "max_memory": max_memory}
        self._guard = threading.Lock()
        #: Those that are lent to nobody, the last one used at the end. Some may be coming back.
        self._here: list[WarmWorker] = []
        self._lent: set[WarmWorker] = set()
        self._pid = os.getpid()
        self.closed = False
        #: How many have been started.
        self.started = 0
        _pools.add(self)

    def take(self) -> WarmWorker | None:
        """Borrow a worker: one that is here, else a new one; None if all are lent and there may be
        no more.

        Raises EntangleError if the pool is closed.
        """
        until = 0.0
        while True:
            with Deferred(), self._guard:
                if self.closed or self._pid != os.getpid():
                    raise EntangleError(
                        "these warm workers are gone: their session is over, or belongs to the process that forked this one; "
                        "open a session here"
                    )
                worker = self._idle()
                coming = [away.watch for away in self._here if away.away]
                now = time.monotonic()
                until = until or now + (_COMING_BACK_LOADED if self._clean else _COMING_BACK)
                if worker is None and (not coming or now >= until):
                    if self.workers is not None and len(self._here) + len(self._lent) >= self.workers:
                        return None
                    worker = WarmWorker(self._settings, self._listened_to, self._clean)
                    self.started += 1
                if worker is not None:
                    self._lent.add(worker)
                    return worker
            # Others may take and give meanwhile, and close what is watched here.
            readable(coming, min(_MOMENT, until - now))

    def take_idle(self) -> WarmWorker | None:
        """Borrow the worker that was used last, if it is here and idle within a moment. It may have
        ended since."""
        with self._guard:
            if not self._here or self.closed or self._pid != os.getpid():
                return None
            worker = self._idle()
            if worker is None and len(self._here) == 1 and (last := self._here[0]).away:
                if last.is_prompt and len(last.inside) == 1:
                    # It puts back what the run before has changed. With an order that is there by
                    # then, nobody has to sleep.
                    worker = self._here.pop()
                else:
                    readable([last.watch], _MOMENT)
                    worker = self._idle()
                    last.is_prompt = worker is last
            if worker is not None:
                self._lent.add(worker)
            return worker

    def _idle(self) -> WarmWorker | None:
        """Take the best of those that are here: the last one used that is ready."""
        for worker in reversed(self._here):
            # One that has just said that it has left is there.
            just_left = worker.away and worker.left()
            if not worker.away and not worker.retires and not worker.orders.ended and (just_left or not worker.ended()):
                self._here.remove(worker)
                return worker
        self._drop_ended()
        return None

    def look(self) -> None:
        """See which of those that are here have left their runs."""
        with self._guard:
            for worker in self._here:
                worker.left()

    def _drop_ended(self) -> None:
        for worker in list(self._here):
            if worker.ended() or worker.retires or worker.orders.ended:
                self._here.remove(worker)
                if worker.orders.ended and not worker.wait(_ENDING):
                    worker.killed_for = "a body has closed descriptors of the worker"
                    worker.kill(signal.SIGKILL)
                    worker.wait(_ENDING)
                worker.close()

    def give(self, worker: WarmWorker) -> None:
        """Give a borrowed worker back. It may still be busy leaving its run, or have ended."""
        with Deferred(), self._guard:
            self._lent.discard(worker)
            if not (over := self.closed):
                # Of one that is leaving its run, `take` sees whether it ends there.
                if worker.retires or worker.ended_by is not None or (not worker.away and worker.ended()):
                    worker.close()
                else:
                    self._here.append(worker)
        if over:
            _end([worker])

    def living(self) -> list[WarmWorker]:
        """The workers that are alive, lent or not."""
        with self._guard:
            return [worker for worker in (*self._here, *self._lent) if not worker.ended()]

    def descriptors(self) -> set[int]:
        """What is open here for its workers."""
        with self._guard:
            workers = (*self._here, *self._lent)
        return {fd for worker in workers for fd in (worker.channel.fileno(), worker.watch, worker.err, worker._process.watch)}

    def close(self) -> None:
        """End all workers that are lent to nobody; the others end when they are given back."""
        with Deferred(), self._guard:
            if self._pid != os.getpid():
                return
            self.closed = True
        self.dismiss()

    def rests(self) -> bool:
        """Whether a worker is here that could be borrowed, or is coming back."""
        with self._guard:
            self._drop_ended()
            return bool(self._here)

    def dismiss(self) -> None:
        """End all workers that are lent to nobody."""
        with Deferred(), self._guard:
            here, self._here = self._here, []
        _end(here)


def _end(workers: list[WarmWorker]) -> None:
    """End workers that have nothing to do, or are leaving their runs."""
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.channel.shutdown(socket.SHUT_WR)
    until = time.monotonic() + _ENDING
    for worker in workers:
        if not worker.wait(max(0.0, until - time.monotonic())):
            worker.killed_for = worker.killed_for or "it did not end with its session"
            worker.kill(signal.SIGKILL)
            worker.wait(_ENDING)
        worker.close()


_pools: weakref.WeakSet[WarmPool] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


forkserver.served.append(_close_all)


def _after_fork() -> None:
    """Close the parent's ends in a forked child: the workers must see when the parent is gone."""
    for pool in list(_pools):
        pool._guard = threading.Lock()
        for worker in (*pool._here, *pool._lent):
            worker.record = ""  # the parent tells
            worker.close()
        pool._here, pool._lent, pool.closed = [], set(), True
    _pools.clear()


os.register_at_fork(after_in_child=_after_fork)
