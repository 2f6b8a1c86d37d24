"""How a child that a body has forked ends: as a Python program does, never as a second worker.

The child has returned from the body, by a value or an error, and the caller of the body is the
worker's code. So it ends here, in the order of Python's own exit: print the error, wait for
threads, run `atexit`, flush the streams, exit with a program's code. What was registered before the
worker began belongs to the caller and is not run: it might remove a directory that the caller still
uses.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import traceback
import weakref
from typing import Any, NoReturn

from entangle._shared.tracebacks import hide

#: The exit code of a child that is ending.
_code: int | None = None
#: Finalizers with a higher number were made since the worker began.
_first_finalizer = -1


def begin() -> None:
    """Note that this process begins as a worker, or was forked by a thread's body.

    A child runs what is registered from now on when it ends.
    """
    global _first_finalizer
    numbers = getattr(weakref.finalize, "_index_iter", None)
    _first_finalizer = next(numbers) if numbers is not None else -1
    atexit.register(_end_of_ours)  # atexit runs the last registered first


def _end_of_ours() -> None:
    """End here: what was registered since has run, and the rest is not for this process."""
    if _code is not None:
        _leave(_code)


def end_child(error: BaseException | None) -> NoReturn:
    """End this process as Python ends a program that raised `error`, or nothing."""
    global _code
    _code = 1
    with contextlib.suppress(BaseException):
        _code = _told(error)
    if error is not None:
        # Clearing the frames closes, and so writes, files that the body left open.
        with contextlib.suppress(BaseException):
            traceback.clear_frames(error.__traceback__)
        error = None
    with contextlib.suppress(BaseException):
        getattr(threading, "_shutdown", lambda: None)()
    with contextlib.suppress(BaseException):
        _finalize()
        run = getattr(atexit, "_run_exitfuncs", None)
        if run is not None:
            run()
    _leave(_code)


def _told(error: BaseException | None) -> int:
    """Print an error as Python does, and give the exit code."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    with contextlib.suppress(Exception):
        hide(error, passed_on=True)
    sys.excepthook(type(error), error, error.__traceback__)
    return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


def _finalize() -> None:
    """Run what `weakref.finalize` runs at exit, for objects made since the worker began.

    If the caller has used it before, its own `atexit` entry lies below ours and does not run.
    """
    known: dict[Any, Any] = getattr(weakref.finalize, "_registry", {})
    if _first_finalizer < 0:
        return
    fresh = [(info.index, call) for call, info in list(known.items()) if info.atexit and info.index > _first_finalizer]
    for _, call in sorted(fresh, key=lambda found: found[0], reverse=True):
        try:
            call()
        except Exception:
            sys.excepthook(*sys.exc_info())


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except Exception:
            if stream is sys.stdout:
                code = 120  # as Python's own end
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)
