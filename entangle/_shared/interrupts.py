"""Signal handlers that are deferred until a step is complete.

Python runs a handler between any two instructions of the main thread, and Ctrl-C raises there.
While a run is set up, starts a worker or is taken down, that could lose a descriptor, a process or
a lock. So handlers are replaced during such a step, and called at its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any


class Terminated(BaseException):
    """Raised by SIGTERM during a run."""


class Deferred:
    """A block that defers signal handlers to its end.

    In the main thread only: no other thread runs handlers.
    """

    def __init__(self) -> None:
        self._kept: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._come: dict[int, FrameType | None] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            if _active and type(last := _active[-1]) is Deferred and last._kept:
                return self  # within a block that defers them to its own end
            try:
                _active.append(self)
                # Most signals have no handler, and asking for all takes microseconds: ask in C.
                for number, handler in zip(_SIGNALS, map(plain.getsignal, _SIGNALS), strict=True):
                    if handler is not None and handler.__class__ is not int and callable(handler):
                        self._kept[number] = handler
                        plain.signal(number, self._note)
            except ValueError:  # a subinterpreter has no signals
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
                handler = plain.getsignal(number)
                if callable(handler):
                    handler(number, frame)
        except BaseException:
            self.__exit__(None, None, None)  # run the remaining handlers
            raise

    def restore(self) -> None:
        """Put the handlers back."""
        while self._kept:
            number = next(reversed(self._kept))  # restores SIGINT last
            if plain.getsignal(number) == self._note:
                plain.signal(number, self._kept[number])
            del self._kept[number]
        if self in _active:
            _active.remove(self)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._come[number] = frame

    def lifted(self) -> _Lifted:
        """A block within this one in which signals are handled at once."""
        return _Lifted(self)


class _Lifted:
    def __init__(self, deferred: Deferred) -> None:
        self._deferred = deferred

    def __enter__(self) -> None:
        self._deferred.__exit__(None, None, None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._deferred.__enter__()


#: The C module behind `signal`. The wrappers make enum members of numbers, which takes ten times as
#: long as the calls; each run asks for all signals several times.
plain: Any = sys.modules.get("_signal", signal)

#: The signals whose handlers usually raise.
_RAISING = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


class Whole:
    """Defers handlers for many short steps, in something that waits in between, such as a stream.

    Between `begin` and `end` handlers run at once, except in a block of this object: then at its
    end. Blocks nest. A block must not wait for anything.
    """

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._depth = 0
        self._late: list[int] = []
        self._kept: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() == self._main:
            self._depth -= 1
            if self._late and not self._depth:
                self._deliver()

    def begin(self) -> None:
        """Defer handlers to the end of blocks from now on."""
        if threading.get_ident() != self._main:
            return
        self._depth += 1  # first: a signal from here on is deferred
        if self not in _active:
            _active.append(self)
        try:
            for number in _RAISING:
                handler = plain.getsignal(number)
                if callable(handler) and handler is not _later:
                    plain.signal(number, _later)
                    self._kept[number] = handler
        except ValueError:  # a subinterpreter has no signals
            pass
        finally:
            self._depth -= 1

    def end(self) -> None:
        """Restore the program's handlers."""
        if threading.get_ident() != self._main:
            return
        self._depth += 1
        try:
            if self in _active:
                _active.remove(self)
            for number in list(self._kept):
                handler = self._kept.pop(number)
                other = plain.signal(number, handler)
                if other is not _later:  # the program has set another one meanwhile
                    plain.signal(number, other)
        finally:
            self._depth -= 1
        if self._late and not self._depth:
            self._deliver()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A block from `begin` to `end`."""
        try:
            self.begin()
            yield
        finally:
            self.end()

    def came(self, number: int, frame: Any) -> Any:
        """Handle a signal, or note it for later."""
        if self._depth:
            self._late.append(number)
            return None
        handler = self._kept.get(number, signal.default_int_handler)
        return handler(number, frame)

    def _deliver(self) -> None:
        while self._late:
            number = self._late.pop(0)
            handler = plain.getsignal(number)
            if handler is _later:
                handler = self._kept.get(number)
            if callable(handler):
                handler(number, sys._getframe())

    def restore(self) -> None:
        """In a forked child, whose only thread is the main one: restore the program's handlers."""
        self._main = threading.get_ident()
        self._depth = 0
        self._late.clear()
        self.end()


whole = Whole()


def _later(number: int, frame: Any) -> Any:
    return whole.came(number, frame)


def handler_of(number: int) -> Any:
    """This process's handler of a signal: the deferred one, if a step defers it."""
    found = plain.getsignal(number)
    for deferred in reversed(_active):
        found = deferred._kept.get(number, found)
    return found


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error comes of Ctrl-C: a KeyboardInterrupt, or the cancellation by which asyncio
    passes one on to the program's coroutine."""
    asyncio = sys.modules.get("asyncio")
    cancelled = asyncio is not None and isinstance(error, asyncio.CancelledError)
    # Python 3.10 cancels while it handles the interrupt. Later ones cancel in a handler of
    # `asyncio.run`, which counts interrupts.
    seen: set[int] = set()
    found = error
    while cancelled and found is not None and id(found) not in seen and not isinstance(found, KeyboardInterrupt):
        seen.add(id(found))
        found = found.__context__
    if isinstance(found, KeyboardInterrupt):
        return True
    runner = getattr(getattr(handler_of(signal.SIGINT), "func", None), "__self__", None)
    return cancelled and getattr(runner, "_interrupt_count", 0) > 0


def ends_by_interrupt() -> bool:
    """Whether the program, which is ending, does so by an interrupt that nothing has caught."""
    # A prompt has shown the error and gone on.
    return not hasattr(sys, "ps1") and isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)


def _after_fork() -> None:
    # The child is in none of its parent's steps.
    if _active:
        for deferred in reversed(_active.copy()):
            deferred.restore()
    whole.restore()  # the thread that forked is the main one now


_SIGNALS = sorted(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_active: list[Deferred | Whole] = []

os.register_at_fork(after_in_child=_after_fork)
