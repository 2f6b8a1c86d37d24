"""The life of a warm worker: it joins one run after another.

::

    owner ── JOIN ──▶ worker     join a run, as a spare of the forkserver does; its descriptors
    owner ◀─ LEFT ─── worker     left it: the exit status there, and why it retires if it does

    owner ── CALL ──▶ worker     answer calls (`_worker/called.py`)
    owner ◀─ OUTCOMES worker     their outcomes; why it retires if it does

Between two orders the worker puts back what bodies have changed (`_worker/putting_back.py`), and
retires where something goes on growing (`_worker/wear.py`). It ends when its owner is gone, or has
had nothing for it to do for a while. An order that comes at that moment is still carried out.
"""

from __future__ import annotations

import _socket
import contextlib
import contextvars
import functools
import json
import marshal
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from entangle import _run
from entangle._run import life
from entangle._shared import module_lookup
from entangle._shared.frame import Frame
from entangle._shared.home import remove_of_worker
from entangle._shared.orders import CALL, JOIN, LEFT, Order, Orders
from entangle._shared.polling import readable
from entangle._shared.spare_files import spare_files
from entangle._worker import called, child, coverage, inheritance, janitor, joining, trackers
from entangle._worker.imported import Imported
from entangle._worker.joining import BROKEN, AnotherState, NotJoined, join_in_frame, join_run
from entangle._worker.putting_back import Before, Descriptors, seed
from entangle._worker.wear import FULL, Wear
from entangle._worker.worker import Worker, here

#: After this long without an order, a worker keeps no spare files any more (seconds).
_QUIET = 5.0


def begin(server: int, stderr: int, channel: int, settings: dict[str, Any], imported: Imported) -> NoReturn:
    """Be a warm worker, in a process that a forker has forked. Between runs it writes to this
    stderr. `settings` are those of `WarmPool`."""
    code = BROKEN
    try:
        life.settle_in(server, stderr, -1)
        child.begin()
        _run.warm_settings = settings
        kept = _WarmLife(channel, imported, **settings)  # its socket is not to be collected
        code = kept.serve()
    except BaseException:
        life.report_bug()
    finally:
        coverage.save()
        trackers.end_own()
        janitor.dismiss()
        os._exit(code)


class _WarmLife:
    def __init__(self, channel: int, imported: Imported, idle: float, max_memory: int) -> None:
        self._imported = imported
        self._orders = Orders(_socket.socket(fileno=channel))
        self._orders.channel.setblocking(True)
        self._idle = idle
        self._frames: dict[int, Frame] = {}
        #: The names of the devices that it serves, if any.
        self._devices: list[str] = []
        self._descriptors = Descriptors()
        self._descriptors.need(channel)
        self._channel = channel
        #: The state of this process before its first order, and with that of its caller.
        self._first = self._before = Before(self._descriptors)
        self._context = contextvars.Context()
        self._state = joining.state_of_caller()
        joining.refuses_another_state = True
        self._wear = Wear(max_memory)
        seed()

    def serve(self) -> int:
        """Carry out orders until there are no more. Return the exit status."""
        while (order := self._next()) is not None:
            # Variables of a context that a body has set are not seen by the next one.
            retires = self._context.copy().run(self._carry_out, order)
            self._imported.tell()
            if retires:
                break
        spare_files.give_back()
        remove_of_worker(os.getpid())
        return 0

    def _next(self) -> Order | None:
        """The next order; None if there is none for so long, or the owner is gone."""
        channel = self._orders.channel
        if not self._orders.waiting() and not self._wait():
            # From now on the owner cannot send any more. What it has sent before is still there.
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RD)
        try:
            return self._orders.receive()
        except OSError:
            return None

    def _wait(self) -> bool:
        """Wait for an order as long as this worker may be idle. Return whether one is there."""
        channel = [self._orders.channel.fileno()]
        if not len(spare_files):
            return bool(readable(channel, self._idle))
        if readable(channel, min(_QUIET, self._idle)):
            return True
        spare_files.give_back()
        return bool(readable(channel, max(0.0, self._idle - _QUIET)))

    def _carry_out(self, order: Order) -> bool:
        """Carry out one order. Return whether the worker retires."""
        outdated = self._wear.outdated() or (FULL if self._orders.cut else "")
        if order.kind == CALL:
            return called.answer(self._orders, order, self, outdated)
        assert order.kind == JOIN
        code = 0
        if outdated:
            for fd in order.fds:
                os.close(fd)
        else:
            code = self._join(order)
            if self._descriptors.lost():  # the owner sees the end of this process
                return True
        why = outdated or self._put_back()
        # Nearly always there is nothing to say.
        with contextlib.suppress(OSError):  # the owner may be gone
            self._orders.send(LEFT, json.dumps([code, why]).encode() if code or why else b"")
        return bool(why)

    def _join(self, order: Order) -> int:
        """Join a run and work for it. Return the exit status that a worker of that run alone would
        have had."""
        number, dropped, directory, flow_path, slot, lane, serial, marks, described, told, forgets, given = marshal.loads(order.body)
        present = iter(order.fds)
        out, *others = [next(present) if mark else -1 for mark in marks]
        if out >= 0:
            life.lead_output(-1, out)
        module_lookup.forget_arrivals()
        if forgets:
            joining.forget_told(forgets)
        if dropped >= 0:
            frame = self._frames.pop(dropped)
            self._descriptors.forget(*frame.descriptors())
            frame.close()
        if number >= 0:
            frame = self._frame(number, others)
            join, ours = functools.partial(join_in_frame, described, told, given, frame, directory, slot, lane, serial), []
        else:
            join, ours = functools.partial(join_run, directory, flow_path, slot, lane, serial, others, self._devices), others
        try:
            try:
                self._work(join)
            except AnotherState:
                self._begin_anew()
                # Nor are variables of a context that the caller does not set any more.
                contextvars.Context().run(self._work, join)
        except NotJoined as why:
            for fd in ours:
                if fd >= 0:
                    os.close(fd)
            return why.code
        return 0

    def _work(self, join: Callable[[], Worker]) -> None:
        """Join a run and work for it."""
        worker = join()
        self._note_state()
        try:
            life.work_for_run(worker)
        finally:
            if worker.serving is not None:
                worker.serving.leave()
            del here.worker
            type(here).worker = None
            worker.site.rest()

    def _begin_anew(self) -> None:
        """Put back what this process began with, before it takes on another state of its caller."""
        joining.forget_state()
        self._before = self._first
        inheritance.put_loggers_back()
        self._before.put_back(streams=False)  # stdout leads to the run already

    def _note_state(self) -> None:
        """Note the state of this process as its caller wants it, to put it back later."""
        if joining.state_of_caller() is not self._state:
            self._state = joining.state_of_caller()
            self._before = Before(self._descriptors)
            self._context = contextvars.copy_context()
        decimal: Any = sys.modules.get("decimal")
        if decimal is not None:  # its context is an object that bodies change in place
            decimal.setcontext(decimal.getcontext().copy())

    def _frame(self, number: int, fds: list[int]) -> Frame:
        """The frame of that number, which comes with its descriptors for the first time."""
        if number not in self._frames:
            table, values, wake, wakes, tell = fds
            self._descriptors.need(*fds)
            self._frames[number] = Frame(number, table, values, (wake, wakes), -1, tell)
        return self._frames[number]

    def settled(self) -> str:
        """Put back what a body may have changed. Why the worker must retire; "" if it need not."""
        return "a body has closed descriptors of the worker" if self._descriptors.lost() else self._put_back()

    def _put_back(self) -> str:
        if janitor.left_running():
            return "a body has left processes running"
        return self._before.put_back() or self._wear.used(len(self._descriptors) + len(spare_files))

    def cut_off(self) -> bool:
        """Whether a call has closed what leads to the owner."""
        return not self._descriptors.has(self._channel)

    def take_as_state(self) -> None:
        """Take the state of now as the one to put back."""
        self._descriptors = Descriptors()
        self._descriptors.need(self._orders.channel.fileno())
        self._before = Before(self._descriptors)
        self._context = contextvars.copy_context()

    def lead_output(self, err: int, out: int) -> None:
        """Write stderr and stdout to these descriptors from now on."""
        life.lead_output(err, out)
