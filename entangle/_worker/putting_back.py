"""What a warm worker puts back after each order: what a body may have changed for the next one.

The list of `inheritance.py`, and beside it: standard streams and their descriptors, hooks of the
interpreter, signal handlers and timers. Random generators are seeded anew. Module globals are not
put back.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sys
import threading
import warnings
from typing import Any

from entangle._shared.interrupts import plain
from entangle._worker import inheritance, janitor

_STREAMS = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
_HOOKS = ("excepthook", "unraisablehook", "displayhook", "breakpointhook")
_TIMERS = tuple(getattr(signal, name) for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF") if hasattr(signal, name))
_SIGNALS = sorted(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_LIMITS = [
    getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_") and name not in ("RLIMIT_OFILE", "RLIMIT_RTTIME")
]


#: Items of the state that are quick to read.
_QUICK = ("directory", "interpreter", "socket timeout", "start method", "limits", "loggers")


class Before:
    """The state of a warm worker before its first order. It keeps descriptors 0, 1 and 2 open."""

    def __init__(self) -> None:
        import _locale

        self._locale_module: Any = _locale
        self._fds = [_kept(fd) for fd in range(3)]
        self._streams = {name: getattr(sys, name) for name in _STREAMS}
        self._hooks = {name: getattr(sys, name) for name in _HOOKS}
        self._thread_hook = threading.excepthook
        self._handlers = {number: plain.getsignal(number) for number in _SIGNALS}
        self._mask = plain.pthread_sigmask(signal.SIG_BLOCK, [])
        self._locale = _locale.setlocale(_locale.LC_ALL, None)
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._ids = _identity()
        self._limits = {which: resource.getrlimit(which) for which in _LIMITS}
        self._finders: list[tuple[list[Any], list[Any]]] = [(which, list(which)) for which in (sys.meta_path, sys.path_hooks)]
        self._glance = self._at_a_glance()
        self._state = {name: value for name, value in inheritance.take().items() if name not in ("signals", "umask", "locale")}

    def put_back(self) -> str:
        """Put everything back. Why that cannot be done, in a few words; "" if it was."""
        try:
            self._put_streams()
        except OSError as error:
            return f"a body has closed descriptors of the worker ({error.strerror})"
        for timer in _TIMERS:
            if signal.getitimer(timer) != (0.0, 0.0):
                signal.setitimer(timer, 0)
        for number, handler in self._handlers.items():
            if plain.getsignal(number) != handler and handler is not None:
                with contextlib.suppress(OSError, ValueError):
                    plain.signal(number, handler)
        plain.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        os.umask(self._umask)
        for name, hook in self._hooks.items():
            setattr(sys, name, hook)
        threading.excepthook = self._thread_hook
        sys.settrace(None)
        sys.setprofile(None)
        for which, known in self._finders:
            # What a library has added for itself stays: only the order of the first ones matters.
            if which[: len(known)] != known:
                which[:] = [*known, *(one for one in which if one not in known)]
        self._put_state()
        if (now := _identity()) != self._ids:
            return f"a body has changed its user, group, session or root directory ({now} for {self._ids})"
        if any(resource.getrlimit(which) != limit for which, limit in self._limits.items()):
            return "a body has lowered limits that cannot be raised again"
        cpus, niceness, _ = self._state["limits"]
        if os.getpriority(os.PRIO_PROCESS, 0) != niceness:
            return "a body has lowered its priority, which cannot be raised again"
        if cpus is not None and set(cpus) != os.sched_getaffinity(0):
            return "a body has given up CPUs that cannot be had again"
        seed()
        return ""

    def _put_streams(self) -> None:
        for fd, kept in enumerate(self._fds):
            os.dup2(kept, fd)
        for name, stream in self._streams.items():
            now = getattr(sys, name)
            if now is not stream:
                if now is not None and not getattr(now, "closed", True):
                    with contextlib.suppress(Exception):
                        now.flush()
                setattr(sys, name, stream)
            if getattr(stream, "closed", False):
                fresh = open(
                    int(name.strip("_") != "stdin") + int("err" in name), "r" if "stdin" in name else "w", buffering=1, closefd=False
                )
                self._streams[name] = fresh
                setattr(sys, name, fresh)
            elif "write" in getattr(stream, "__dict__", ()):
                del stream.write  # a run that kept what was printed

    def _at_a_glance(self) -> tuple[Any, ...]:
        """What `_put_state` puts back, read quickly."""
        environment = dict(getattr(os.environ, "_data", os.environ))
        path, argv, filters = list(sys.path), list(sys.argv), list(warnings.filters)
        locale = self._locale_module.setlocale(self._locale_module.LC_ALL, None)
        others = (inheritance.take_one(name) for name in _QUICK)
        return (environment, path, argv, filters, locale, *others)

    def _put_state(self) -> None:
        if self._at_a_glance() == self._glance:
            return
        # The environment also lacks what janitors and libraries of this worker have set in it.
        for when in ("before", "after"):
            inheritance.take_on(self._state, when)
        janitor.mark_again()
        if self._state["interpreter"][4] is None and hasattr(sys, "tracebacklimit"):
            del sys.tracebacklimit
        faults: Any = sys.modules.get("faulthandler")
        if faults is not None and faults.is_enabled() and not self._state["interpreter"][5]:
            faults.disable()
        decimal: Any = sys.modules.get("decimal")
        if decimal is not None and self._state["decimal"] is None:
            decimal.setcontext(decimal.DefaultContext.copy())
        if self._locale_module.setlocale(self._locale_module.LC_ALL, None) != self._locale:
            with contextlib.suppress(Exception):
                self._locale_module.setlocale(self._locale_module.LC_ALL, self._locale)
        socket: Any = sys.modules.get("socket")
        if socket is not None and self._state["socket timeout"] is None and socket.getdefaulttimeout() is not None:
            socket.setdefaulttimeout(None)
        if "time" in sys.modules and "TZ" in (*self._state["environment"], *os.environ):
            sys.modules["time"].tzset()


def seed() -> None:
    """Seed random generators anew."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _kept(fd: int) -> int:
    """A copy of a standard descriptor, out of the way of bodies that close some."""
    import fcntl

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            return fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, 64)
        finally:
            os.close(null)


def _identity() -> tuple[object, ...]:
    root = os.stat("/")
    return os.getresuid(), os.getresgid(), os.getsid(0), os.getpgrp(), (root.st_dev, root.st_ino)
