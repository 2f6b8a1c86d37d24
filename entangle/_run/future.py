"""The future of a run: a `concurrent.futures.Future` that starts, awaits and cancels its run."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from entangle._shared.limits import no_thread
from entangle._shared.tracebacks import hide
from entangle._worker import inline
from entangle._worker.worker import here
from entangle.errors import RunCancelledError

T = TypeVar("T")


class RunFuture(Future[T]):
    """The value of a run, which may not have started yet."""

    def __init__(self, work: Callable[[], T], stop: Callable[[], None]) -> None:
        super().__init__()
        self._work = work
        self._stop = stop
        self._begun = False
        self._guard = threading.Lock()
        #: Whether `cancel` has stopped the run, and whether its outcome is known. The first one
        #: wins: after a cancel that has returned True there is no value.
        self._stopped = self._settled = False
        #: Set after the callbacks have run. `Future` wakes waiters before that.
        self._told = threading.Event()
        self._teller: threading.Thread | None = None

    def result(self, timeout: float | None = None) -> T:
        """Return the value of the run, or raise its error. Starts the run if nothing has.

        Raises TimeoutError after `timeout` seconds; the run goes on.
        """
        try:
            self._start_for(timeout)
            with self._lending():
                return super().result(timeout)
        except BaseException as error:
            hide(error)
            raise

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error of the run, None where it gave a value. Starts the run if nothing has.

        Raises TimeoutError after `timeout` seconds; the run goes on.
        """
        self._start_for(timeout)
        with self._lending():
            return super().exception(timeout)

    def _lending(self) -> contextlib.AbstractContextManager[None]:
        """Lend the cookie of the body that waits here: the tasks of the run may need it."""
        worker = here.worker
        return worker.lending() if worker is not None and not self.done() else contextlib.nullcontext()

    def _start_for(self, timeout: float | None) -> None:
        """Start the run: without a timeout in this thread, which Ctrl-C reaches; else in a thread
        of its own."""
        if self._begun:
            return
        if timeout is None:
            self.run_first()
        else:
            self.start()

    @property
    def begun(self) -> bool:
        """Whether the run has been started, or cancelled before that."""
        return self._begun

    def instead(self, work: Callable[[], T], stop: Callable[[], None]) -> bool:
        """Become the future of another run, unless this one's has begun. Return whether it did."""
        with self._guard:
            if not self._begun:
                self._work, self._stop = work, stop
            return not self._begun

    def run_first(self) -> bool:
        """Run it in this thread, unless it has begun. Return whether it ran here."""
        if not self._begin():
            return False
        self._finish()
        return True

    def entangle(self) -> T:
        """Return the value of the run, or raise its error, after all callbacks. Starts the run if
        nothing has."""
        try:
            if not self.run_first() and not self.cancelled() and self._teller is not threading.current_thread():
                with self._lending():
                    self._told.wait()
            return super().result()
        except BaseException as error:
            hide(error)
            raise

    def start(self) -> None:
        """Start the run in a thread of its own, unless it has begun. If no thread can be started,
        the future ends with an error that says so."""
        if inline.on:
            self.run_first()
            return
        if not self._begin():
            return
        _end_after_error(self)
        try:
            threading.Thread(target=contextvars.copy_context().run, args=(self._finish,), name="entangle-run").start()
        except RuntimeError as problem:
            # Raised only here, the error would leave a future that never ends.
            self._settled = True
            self.set_exception(no_thread(problem))
            self._told.set()
            del self._work, self._stop

    def cancel(self) -> bool:
        """Cancel a run that has not started, or stop one that runs: the future ends with
        RunCancelledError.

        Returns True if the run is cancelled, by this call or before. Returns False if it had ended:
        its value or its error stays.
        """
        with self._guard:
            if self._begun:
                if self.done() or self._settled:
                    return self.cancelled() or self._stopped
                self._stopped = True
            else:
                self._begun = True
                super().cancel()
                self.set_running_or_notify_cancel()
                return True
        self._stop_run()
        return True

    async def wait_in_loop(self) -> T:
        """Start the run and wait for it without blocking the event loop. On cancellation, stop the
        run before raising."""
        self.start()
        waiting = asyncio.wrap_future(self)
        try:
            with self._lending():
                return await asyncio.shield(waiting)
        except asyncio.CancelledError as error:
            self._stop_run()
            # Its processes must be gone before the canceller goes on.
            with contextlib.suppress(BaseException):
                await waiting
            hide(error)
            raise
        except BaseException as error:
            hide(error)
            raise

    def _stop_run(self) -> None:
        stop = getattr(self, "_stop", None)
        if stop is not None and not self.done():
            stop()

    def _begin(self) -> bool:
        with self._guard:
            if self._begun:
                return False
            self._begun = True
        return self.set_running_or_notify_cancel()

    def _finish(self) -> None:
        self._teller = threading.current_thread()
        try:
            try:
                value = self._work()
                with self._guard:
                    self._settled = True
                if self._stopped:
                    raise RunCancelledError("the run was cancelled before it had a value")
            except BaseException as error:
                self._settled = True
                hide(error)
                self.set_exception(error)
                if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                    raise
            else:
                self.set_result(value)
        finally:
            self._told.set()
            del self._work, self._stop


#: The futures of this process whose runs have a thread of their own.
_started: weakref.WeakSet[RunFuture[Any]] = weakref.WeakSet()
#: The process that looks at them when it ends.
_looked_at_by = 0


def _end_after_error(future: RunFuture[Any]) -> None:
    """Stop this run if the program ends by an error, Ctrl-C included.

    Python waits for threads before it ends. After an error nobody wants their values, and the
    program would seem to hang. After its last statement, a program gets what it has started.
    """
    global _looked_at_by
    if _looked_at_by != os.getpid():
        _started.clear()  # a fork's copies of its parent's
        _looked_at_by = os.getpid()
        with contextlib.suppress(AttributeError, RuntimeError):  # no such function, or too late
            # As concurrent.futures does: it is called before Python waits for threads.
            threading._register_atexit(_stop_if_failed)  # type: ignore[attr-defined]
    _started.add(future)


def _stop_if_failed() -> None:
    # Python keeps an error there that it has printed since nobody has caught it.
    if getattr(sys, "last_value", None) is not None and _looked_at_by == os.getpid():
        for future in list(_started):
            future.cancel()
