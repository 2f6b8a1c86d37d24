"""What a worker has of its caller's state, however it was started: the one list.

`docs/state.md` tells users. A forked worker has it by the fork, at no cost. Any other gets it here,
as it is in the caller when the run first starts such a worker. A thread has the process's own, and
the context variables of the thread that has begun the run.

- environment variables, `sys.argv`, `sys.path`, working directory, umask
- warning filters, and whether warnings are logged (`logging.captureWarnings`)
- recursion limit, the limit of digits of numbers as text, switch interval,
  `sys.dont_write_bytecode`, `sys.tracebacklimit`, faulthandler, whether the collector runs and its
  thresholds
- the decimal context, the locale, the timeout of new sockets
- levels of loggers, whether they are disabled and pass messages on; handlers of stderr, stdout and
  of files that are appended to
- context variables that a module has under their own name, where their values can be pickled
- the start method of multiprocessing
- signals that are ignored or left to the system, but for those that end a program; the signal mask
- CPU affinity, niceness, limits of resources

Random generators are seeded anew in each worker. What is not on the list, module globals above all,
is not promised, whatever the way of starting.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import importlib
import os
import pickle
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from entangle._shared.context_variables import module_of, variable_of
from entangle._shared.interrupts import plain
from entangle._shared.pickling import MAIN, dumps_for_others
from entangle._worker.library_threads import users_environment

#: Signals that a worker answers in its own way (`life.settle_in`), or that cannot be answered.
_OWN = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP))
_SIGNALS = [int(number) for number in signal.valid_signals() if number not in _OWN]
_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"]


def take() -> dict[str, Any]:
    """The state of this process and of this thread, in plainly picklable form."""
    return {name: taken() for name, (taken, _) in _ITEMS.items()}


#: The last state that was pickled, and its pickle. Most runs begin in the state of the one before.
_last: tuple[dict[str, Any], bytes] = ({}, b"")


def pickled() -> bytes:
    """The state of this process and of this thread, as `take` gives it, pickled."""
    global _last
    state, (known, body) = take(), _last
    if state != known:
        body = pickle.dumps(state, 5)
        _last = state, body
    return body


def take_on(state: dict[str, Any], when: str) -> None:
    """Take over the caller's state, in two steps.

    What imports of the caller's modules rely on comes `before` them; what may need these modules
    comes `after`.
    """
    for name, value in state.items():
        if (name in _AFTER) == (when == "after"):
            _ITEMS[name][1](value)


# Each item: how it is taken in the caller, and put in a worker ----------------------------------


def _loaded(name: str, attribute: str) -> Any:
    """A module that is loaded so far that it has this attribute; another thread may import it."""
    module = sys.modules.get(name)
    return module if hasattr(module, attribute) else None


def _put_environment(known: dict[str, str]) -> None:
    now = dict(os.environ)
    for name in now.keys() - known.keys():
        del os.environ[name]
    for name, value in known.items():
        if now.get(name) != value:
            os.environ[name] = value
    if now.get("TZ") != known.get("TZ"):
        time.tzset()


def _put_list(known: list[Any], which: list[Any]) -> None:
    if which != known:
        which[:] = known


def directory() -> str | None:
    """The working directory; None if it was removed. A worker then starts wherever its parent
    is."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _put_directory(known: str | None) -> None:
    if known is not None:
        with contextlib.suppress(OSError):
            os.chdir(known)


def _umask() -> int | None:
    """The umask, if it can be read without setting it, which would change it for other threads."""
    if threading.active_count() == 1:
        os.umask(known := os.umask(0o077))  # a native thread may create a file meanwhile: a private one
        return known
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return None


def _put_umask(known: int | None) -> None:
    if known is not None:
        os.umask(known)


def _pickled(value: Any) -> bytes | None:
    try:
        return dumps_for_others(value)
    except Exception:  # what cannot travel is left out
        return None


def _filters() -> tuple[bytes | None, list[bytes | None], bool]:
    global _known_filters
    logging = sys.modules.get("logging")
    logged = logging is not None and warnings.showwarning is getattr(logging, "_showwarning", None)
    now, (known, whole, each) = list(warnings.filters), _known_filters
    # By identity: a class that is defined anew may equal none, and is pickled by value.
    if len(now) != len(known) or any(one is not other for one, other in zip(now, known, strict=True)):
        whole = _pickled(warnings.filters)
        each = [] if whole is not None else [_pickled(entry) for entry in now]
        _known_filters = now, whole, each
    return whole, each, logged


#: The filters that were pickled last; their pickle, or that of each where not all can be pickled.
_known_filters: tuple[list[Any], bytes | None, list[bytes | None]] = ([], None, [])


def _put_filters(known: tuple[bytes | None, list[bytes | None], bool]) -> None:
    whole, each, logged = known
    filters: list[Any] = pickle.loads(whole) if whole is not None else [pickle.loads(entry) for entry in each if entry is not None]
    if list(warnings.filters) != filters:
        warnings.resetwarnings()  # also clears what Python has decided by the old filters
        list.extend(warnings.filters, filters)  # type: ignore[arg-type]
    if logged:
        import logging

        logging.captureWarnings(True)


def _interpreter() -> tuple[Any, ...]:
    handler = sys.modules.get("faulthandler")
    digits = sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else None
    enabled = handler is not None and handler.is_enabled()
    limit = getattr(sys, "tracebacklimit", None)
    return (
        sys.getrecursionlimit(),
        digits,
        sys.getswitchinterval(),
        sys.dont_write_bytecode,
        limit,
        enabled,
        gc.isenabled(),
        gc.get_threshold(),
    )


def _put_interpreter(known: tuple[Any, ...]) -> None:
    recursion, digits, interval, bytecode, limit, faults, collects, thresholds = known
    sys.setrecursionlimit(recursion)
    if digits is not None and hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(digits)
    sys.setswitchinterval(interval)
    sys.dont_write_bytecode = bytecode
    if limit is not None:
        sys.tracebacklimit = limit
    if faults:
        import faulthandler

        with contextlib.suppress(OSError, ValueError, RuntimeError):
            faulthandler.enable()
    if gc.isenabled() != collects:
        (gc.enable if collects else gc.disable)()
    gc.set_threshold(*thresholds)


def _decimal() -> bytes | None:
    decimal = _loaded("decimal", "getcontext")
    if decimal is None:
        return None
    context = decimal.getcontext()
    # Loading the module takes a worker milliseconds, so Python's own context is not sent.
    traps = {decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow}
    usual = (context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp) == _USUAL_DECIMAL
    if usual and {trap for trap, on in context.traps.items() if on} == traps:
        return None
    return pickle.dumps(context, 5)


#: Precision, rounding, exponents, capitals and clamping of Python's default decimal context (see
#: the documentation of the decimal module).
_USUAL_DECIMAL = (28, "ROUND_HALF_EVEN", -999999, 999999, 1, 0)


def _put_decimal(known: bytes | None) -> None:
    if known is not None:
        import decimal

        decimal.setcontext(pickle.loads(known))


def _locale() -> str | None:
    if "locale" not in sys.modules:
        return None  # it follows the environment
    import locale

    return locale.setlocale(locale.LC_ALL)


def _put_locale(known: str | None) -> None:
    if known is not None:
        import _locale

        with contextlib.suppress(Exception):  # the locale may have been removed
            if _locale.setlocale(_locale.LC_ALL, None) != known:
                _locale.setlocale(_locale.LC_ALL, known)


def socket_timeout() -> float | None:
    """The timeout of new sockets (seconds), if any."""
    socket = _loaded("socket", "getdefaulttimeout")
    return socket.getdefaulttimeout() if socket is not None else None


def _put_socket_timeout(known: float | None) -> None:
    if known is not None:
        import socket

        socket.setdefaulttimeout(known)


#: How many modules were loaded at the last look, and which of them configure logging.
_configured: tuple[int, list[str]] = (0, [])


def _loggers() -> tuple[Any, ...] | None:
    logging = _loaded("logging", "root")
    if logging is None or not hasattr(logging.root, "manager"):
        return None
    root = logging.root
    found = []
    for name, logger in [("", root), *root.manager.loggerDict.items()]:
        if isinstance(logger, logging.Logger) and (logger.level or logger.disabled or not logger.propagate or logger.handlers):
            handlers = [_handler(logging, handler) for handler in logger.handlers]
            found.append((name, logger.level, logger.disabled, logger.propagate, handlers))
    global _configured
    if _configured[0] != len(sys.modules):
        _configured = len(sys.modules), [name for name in sys.modules if name.startswith("entangle.logging.")]
    configured = _configured[1]
    return root.manager.disable, found, configured


def _handler(logging: Any, handler: Any) -> tuple[Any, ...] | None:
    """A handler in a form that can be sent: of a standard stream, or of a file appended to."""
    kind: tuple[Any, ...]
    if type(handler) is logging.StreamHandler:
        kind = ("stdout",) if handler.stream in (sys.stdout, sys.__stdout__) else ("stderr",)
        if kind == ("stderr",) and handler.stream not in (sys.stderr, sys.__stderr__):
            return None
    elif type(handler) is logging.FileHandler and handler.mode == "a":
        kind = ("file", handler.baseFilename, handler.encoding)
    elif type(handler) is logging.NullHandler:
        kind = ("null",)
    else:
        return None
    return (*kind, handler.level, _pickled((handler.formatter, handler.filters)))


def _put_loggers(known: tuple[Any, ...] | None) -> None:
    if known is None:
        return
    import logging

    disable, found, configured = known
    for name in configured:
        importlib.import_module(name)  # the caller's own import of it then does nothing
    logging.disable(disable)
    for name, level, disabled, propagate, handlers in found:
        logger = logging.getLogger(name or None)
        _loggers_before.setdefault(name, (logger.level, logger.disabled, logger.propagate, list(logger.handlers)))
        logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        for handler in filter(None, handlers):
            logger.addHandler(_made_handler(logging, handler))


#: Loggers that were set as the caller has them: level, disabled, propagate and handlers before.
_loggers_before: dict[str, tuple[int, bool, bool, list[Any]]] = {}


def put_loggers_back() -> None:
    """Set loggers as they were before they were set as the caller has them."""
    import logging

    while _loggers_before:
        name, (level, disabled, propagate, handlers) = _loggers_before.popitem()
        logger = logging.getLogger(name or None)
        for handler in list(logger.handlers):
            if handler not in handlers:
                logger.removeHandler(handler)
                handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate


def _made_handler(logging: Any, known: tuple[Any, ...]) -> Any:
    *kind, level, pickled = known
    if kind[0] == "file":
        made = logging.FileHandler(kind[1], "a", kind[2], delay=True)
    elif kind[0] == "null":
        made = logging.NullHandler()
    else:
        made = logging.StreamHandler(getattr(sys, kind[0]))
    made.setLevel(level)
    if pickled is not None:
        formatter, made.filters = pickle.loads(pickled)
        made.setFormatter(formatter)
    return made


def _variables() -> list[tuple[str, str, bytes]]:
    found = []
    for variable, value in contextvars.copy_context().items():
        module = module_of(variable)
        pickled = _pickled(value) if module else None
        if module and pickled is not None:
            found.append((module, variable.name, pickled))
    return found


def _put_variables(known: list[tuple[str, str, bytes]]) -> None:
    for module, name, pickled in known:
        if module not in MAIN:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        with contextlib.suppress(Exception):  # what cannot be unpickled here is not set
            variable_of(module, name, ()).set(pickle.loads(pickled))


def start_method() -> str | None:
    """How multiprocessing starts processes; None where nobody has said so."""
    context = _loaded("multiprocessing.context", "_default_context")
    found: str | None = context._default_context.get_start_method(allow_none=True) if context is not None else None
    return found


def _put_start_method(known: str | None) -> None:
    if known is not None:
        import multiprocessing

        multiprocessing.set_start_method(known, force=True)


def _signals() -> tuple[dict[int, bool], list[int]]:
    global _known_signals
    now, (known, answers) = list(map(plain.getsignal, _SIGNALS)), _known_signals
    if now != known:
        answers = {number: answer == signal.SIG_IGN for number, answer in zip(_SIGNALS, now, strict=True) if not callable(answer)}
        _known_signals = now, answers
    # Signals with an answer of the worker's own may be blocked here while a worker is started.
    return answers, sorted(plain.pthread_sigmask(int(signal.SIG_BLOCK), ()) - _OWN)


#: The answers to signals at the last look, and what was made of them.
_known_signals: tuple[list[Any], dict[int, bool]] = ([], {})


def _put_signals(known: tuple[dict[int, bool], list[int]]) -> None:
    answers, mask = known
    for number, ignored in answers.items():
        wanted = signal.SIG_IGN if ignored else signal.SIG_DFL
        if plain.getsignal(number) != wanted:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, wanted)
    plain.pthread_sigmask(signal.SIG_BLOCK, mask)
    plain.pthread_sigmask(signal.SIG_UNBLOCK, [number for number in _SIGNALS if number not in mask])


def _limits() -> tuple[Any, ...]:
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return cpus, os.getpriority(os.PRIO_PROCESS, 0), list(map(resource.getrlimit, _LIMITS))


def _put_limits(known: tuple[Any, ...]) -> None:
    cpus, niceness, limits = known
    with contextlib.suppress(OSError):
        if cpus is not None and set(cpus) != os.sched_getaffinity(0):
            os.sched_setaffinity(0, cpus)
    with contextlib.suppress(OSError):
        if niceness != os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
    for which, wanted in zip(_LIMITS, limits, strict=True):
        with contextlib.suppress(OSError, ValueError):
            if resource.getrlimit(which) != wanted:
                resource.setrlimit(which, wanted)


_ITEMS: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "path": (lambda: list(sys.path), lambda known: _put_list(known, sys.path)),
    "argv": (lambda: list(sys.argv), lambda known: _put_list(known, sys.argv)),
    "environment": (users_environment, _put_environment),
    "directory": (directory, _put_directory),
    "umask": (_umask, _put_umask),
    "interpreter": (_interpreter, _put_interpreter),
    "locale": (_locale, _put_locale),
    "socket timeout": (socket_timeout, _put_socket_timeout),
    "start method": (start_method, _put_start_method),
    "signals": (_signals, _put_signals),
    "limits": (_limits, _put_limits),
    "loggers": (_loggers, _put_loggers),
    "filters": (_filters, _put_filters),
    "decimal": (_decimal, _put_decimal),
    "variables": (_variables, _put_variables),
}
#: What may consist of the caller's own classes, or be changed by importing its modules.
_AFTER = frozenset(("loggers", "filters", "decimal", "variables"))


# Threads ----------------------------------------------------------------------------------------


def in_context_of(context: contextvars.Context, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called in a fresh copy of that context each time, as by `asyncio.to_thread`."""

    def within(*args: Any, **named: Any) -> Any:
        decimal = _loaded("decimal", "getcontext")
        if decimal is not None:
            # The decimal context is a context variable, and an object that is changed in place.
            decimal.setcontext(decimal.getcontext().copy())
        return function(*args, **named)

    def body(*args: Any, **named: Any) -> Any:
        return context.copy().run(within, *args, **named)

    return body
