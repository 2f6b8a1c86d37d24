"""Submits calls to an executor whose `submit` may wait."""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from entangle._worker.away import AwayCall

#: How long the thread stays when there is nothing to submit (seconds).
_IDLE = 0.05


class Waits:
    """The handle of a call that waits in line."""

    #: Whether nobody wants it any more; whether it is being submitted.
    cancelled = submitting = False


class SubmitLine:
    """Submits calls one after another, in a thread that exists while there are any.

    So a full queue, or a function that takes long to make the executor, holds up no other calls.
    """

    def __init__(self, ready: Callable[[], Any], submit: Callable[[Any, AwayCall], None]) -> None:
        """`ready` gives the executor, `submit` submits a call to it; either may wait."""
        self._ready, self._submit = ready, submit
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._more = threading.Condition(self._guard)
        self._calls: collections.deque[AwayCall] = collections.deque()
        self._runs = False

    def add(self, calls: Sequence[AwayCall]) -> None:
        """Have these calls submitted. Returns at once."""
        if self._pid != os.getpid():
            self._forget()  # this process is a fork, and the thread is its parent's
        for call in calls:
            call.handle = Waits()
        with self._guard:
            self._calls += calls
            if self._runs:
                self._more.notify()
                return
            self._runs = True
        try:
            threading.Thread(target=self._run, name="entangle-submit", daemon=True).start()
        except BaseException:
            with self._guard:
                self._runs = False
                self._calls.clear()
            raise

    def _run(self) -> None:
        while True:
            with self._guard:
                if not self._calls and not self._more.wait_for(lambda: self._calls, _IDLE):
                    self._runs = False
                    return
            try:
                executor = self._ready()
            except BaseException as error:
                with self._guard:
                    calls = list(self._calls)
                    self._calls.clear()
                for call in calls:
                    call.failed(error)
                continue
            with self._guard:
                call = self._calls.popleft()
            waits = call.handle
            waits.submitting = True
            if not waits.cancelled:
                self._submit(executor, call)
                future = call.handle
                if waits.cancelled and future is not None:  # meanwhile
                    future.cancel()
                future = None
            del call, executor
