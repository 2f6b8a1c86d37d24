"""Signals that wait until a step is done.

Python runs a signal's handler between any two instructions of the main thread, and Ctrl-C raises there. While a run makes what
it needs, starts a worker or takes everything down, that would leave a descriptor, a process or a lock that nobody knows of. So
handlers are replaced by a note for that long, and called afterwards.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Deferred:
    """Handlers of signals are called at the end of the block. In the main thread; elsewhere no handler is ever called."""

    def __init__(self) -> None:
        self._kept: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._come: dict[int, FrameType | None] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            try:
                _active.append(self)
                for number in _SIGNALS:
                    handler = signal.getsignal(number)
                    if callable(handler):
                        self._kept[number] = handler
                        signal.signal(number, self._note)
            except ValueError:  # in an interpreter within this one, which has no signals
                self._kept.clear()
            except BaseException:
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.restore()
            while self._come:
                number, frame = self._come.popitem()
                handler = signal.getsignal(number)
                if callable(handler):
                    handler(number, frame)
        except BaseException:
            self.__exit__(None, None, None)  # the others' turn
            raise

    def restore(self) -> None:
        """Put the handlers back."""
        while self._kept:
            number = next(reversed(self._kept))  # SIGINT last
            if signal.getsignal(number) == self._note:
                signal.signal(number, self._kept[number])
            del self._kept[number]
        if self in _active:
            _active.remove(self)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._come[number] = frame

    def lifted(self) -> _Lifted:
        """A block within this one in which signals do what they do."""
        return _Lifted(self)


class _Lifted:
    def __init__(self, deferred: Deferred) -> None:
        self._deferred = deferred

    def __enter__(self) -> None:
        self._deferred.__exit__(None, None, None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._deferred.__enter__()


def handler_of(number: int) -> Any:
    """What this process does about a signal, now or when the step that defers it is done."""
    found = signal.getsignal(number)
    for deferred in reversed(_active):
        found = deferred._kept.get(number, found)
    return found


def _after_fork() -> None:
    # Whoever was forked meanwhile is in no such step.
    for deferred in reversed(_active.copy()):
        deferred.restore()


_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_active: list[Deferred] = []

os.register_at_fork(after_in_child=_after_fork)
