"""Process state that a body may change: functions that read all of it, and functions that change
it.

Workers import this module, so it imports nothing heavy.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import decimal
import faulthandler
import gc
import io
import locale
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

from entangle._worker.library_threads import VARIABLES
from entangle.process import process

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")

SIGNALS = sorted(int(number) for number in signal.valid_signals())
LIMITS = sorted(name for name in dir(resource) if name.startswith("RLIMIT_") and name not in ("RLIMIT_OFILE", "RLIMIT_RTTIME"))


# --- reading the state ----------------------------------------------------------------------------


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "it is gone"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _environment() -> list[tuple[str, str]]:
    # These variables describe one worker: what it is, holds or may use. They differ between
    # workers.
    others = {"ENTANGLE_WORKER", "PYTEST_CURRENT_TEST", "MAKEFLAGS", *VARIABLES}
    return sorted((name, value) for name, value in os.environ.items() if name not in others)


def _environment_of_children() -> bytes:
    """Return the environment of the C library: children without an environment of their own get
    that."""
    import ctypes

    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    return b" ".join(libc.getenv(name) or b"-" for name in (b"MINE", b"PATH", b"HOME"))


def _handlers() -> dict[int, str]:
    found = {}
    for number in SIGNALS:
        handler = signal.getsignal(number)
        found[number] = getattr(handler, "__name__", str(handler))
    return found


def _wakeup() -> int:
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    return fd


def _stream(name: str) -> str:
    stream = getattr(sys, name, "is missing")
    if not isinstance(stream, io.TextIOWrapper):
        return str(type(stream))
    try:
        settings = stream.fileno(), stream.closed, stream.encoding, stream.errors, stream.line_buffering, stream.write_through
    except ValueError as error:
        return str(error)
    return f"{settings} {sorted(set(stream.__dict__) - {'mode'})} {stream is getattr(sys, name.strip('_'))}"


def _descriptor(fd: int) -> str:
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return "closed"
    # The descriptor of stderr is a pipe of the run, and each run has its own.
    return f"{target.partition(':[')[0]} {os.get_inheritable(fd)}"


def _filters() -> str:
    logged = warnings.showwarning is getattr(logging, "_showwarning", None)
    return f"{list(warnings.filters)} {logged} {warnings.showwarning.__name__}"


def _hooks() -> str:
    hooks = sys.excepthook, sys.unraisablehook, sys.displayhook, sys.breakpointhook, threading.excepthook
    names = [getattr(hook, "__name__", str(type(hook))) for hook in hooks]
    return f"{names} {sys.gettrace()} {sys.getprofile()} {threading.gettrace()} {threading.getprofile()} {sys.get_asyncgen_hooks()}"


def _interpreter() -> str:
    return str(
        (
            sys.getrecursionlimit(),
            getattr(sys, "get_int_max_str_digits", int)(),
            sys.getswitchinterval(),
            sys.dont_write_bytecode,
            getattr(sys, "tracebacklimit", "none"),
            sys.get_coroutine_origin_tracking_depth(),
            sys.getdlopenflags(),
            faulthandler.is_enabled(),
            gc.isenabled(),
            gc.get_threshold(),
            gc.get_debug(),
            threading.stack_size(),
        )
    )


def _decimal() -> str:
    context = decimal.getcontext()
    traps = sorted(trap.__name__ for trap, on in context.traps.items() if on)
    flags = sorted(flag.__name__ for flag, on in context.flags.items() if on)
    return f"{context.prec} {context.rounding} {context.Emin} {context.Emax} {traps} {flags}"


def _loop() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy: Any = asyncio.get_event_loop_policy()
    loop = getattr(getattr(policy, "_local", None), "_loop", None)
    return f"{type(policy).__name__} {loop} {asyncio._get_running_loop()}"


def _root_logger() -> str:
    names = [type(handler).__name__ for handler in logging.root.handlers]
    return f"{logging.root.level} {names} {logging.root.filters} {logging.root.manager.disable} {logging.root.disabled}"


LOOKS: dict[str, Callable[[], object]] = {
    "directory": _directory,
    "environment": _environment,
    "environment of children": _environment_of_children,
    "environment as bytes": lambda: os.environb.get(b"MINE"),
    "kind of environment": lambda: type(os.environ).__name__,
    "time zone": lambda: (time.tzname, time.timezone, time.localtime(0).tm_hour),
    "umask": _umask,
    "signal handlers": _handlers,
    "signal mask": lambda: sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "pending signals": lambda: sorted(signal.sigpending()),
    "timers": lambda: [signal.getitimer(which) for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)],
    "wakeup descriptor": _wakeup,
    "streams": lambda: [_stream(name) for name in ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")],
    "descriptors": lambda: [_descriptor(fd) for fd in range(3)],
    "affinity": lambda: sorted(os.sched_getaffinity(0)),
    "niceness": lambda: os.getpriority(os.PRIO_PROCESS, 0),
    "scheduling": lambda: os.sched_getscheduler(0),
    "limits": lambda: [resource.getrlimit(getattr(resource, name)) for name in LIMITS],
    "warning filters": _filters,
    "path": lambda: list(sys.path),
    "arguments": lambda: list(sys.argv),
    "finders": lambda: f"{[str(finder) for finder in sys.meta_path[:3]]} {len(sys.path_hooks)}",
    "hooks": _hooks,
    "interpreter": _interpreter,
    "decimal": _decimal,
    "locale": lambda: locale.setlocale(locale.LC_ALL),
    "socket timeout": socket.getdefaulttimeout,
    "event loop": _loop,
    "context": variable.get,
    "start method": lambda: multiprocessing.get_start_method(allow_none=True),
    "root logger": _root_logger,
    "identity": lambda: (os.getuid() == os.geteuid(), os.getgid() == os.getegid(), os.getpgrp() == os.getpid(), os.getgroups()),
}


def look() -> dict[str, str]:
    """Return the whole state, as text."""
    return {name: str(looked()) for name, looked in LOOKS.items()}


# --- changing it ----------------------------------------------------------------------------------

Change = Callable[[], object]
#: Changes that a worker undoes after the body.
CHANGES: dict[str, Change] = {}
#: Changes that cannot be undone: the worker exits, and another one takes over.
PARTING: dict[str, Change] = {}
#: Changes that a body cannot see in its own process.
UNSEEN: set[str] = set()

_lasting: list[Any] = []


def _change(function: Change) -> Change:
    CHANGES[function.__name__.replace("_", " ")] = function
    return function


def _parting(function: Change) -> Change:
    PARTING[function.__name__.replace("_", " ")] = function
    return function


def _unseen(function: Change) -> Change:
    UNSEEN.add(function.__name__.replace("_", " "))
    return function


def _answer(*_: object) -> None:
    """A signal handler, or a hook, that does nothing."""


@_change
def directory() -> None:
    os.chdir("/proc")


@_change
def removed_directory() -> None:
    os.chdir(tempfile.mkdtemp())
    os.rmdir(os.getcwd())


@_change
def new_variable() -> None:
    os.environ["MINE"] = "set"


@_change
def new_variable_as_bytes() -> None:
    os.environb[b"MINE"] = b"\xff"


@_change
def changed_variable() -> None:
    os.environ["PATH"] = "/nowhere"


@_change
def removed_variable() -> None:
    del os.environ["PATH"]


@_change
def no_variables() -> None:
    os.environ.clear()


@_change
def another_environment() -> None:
    os.environ = {"MINE": "set"}  # type: ignore[assignment]  # noqa: B003


@_change
def putenv() -> None:
    os.putenv("MINE", "set")


@_change
def unsetenv() -> None:
    os.unsetenv("PATH")


@_change
def time_zone() -> None:
    os.environ["TZ"] = "XYZ-7"
    time.tzset()


@_change
def umask() -> None:
    os.umask(0o077 if _umask() != 0o077 else 0o027)


@_change
def each_signal_answered() -> None:
    for number in SIGNALS:
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, _answer)


@_change
def each_signal_ignored() -> None:
    for number in SIGNALS:
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)


@_change
def each_signal_by_default() -> None:
    for number in SIGNALS:
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)


@_change
def each_signal_blocked() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


@_change
def pending_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM))
    for number in (signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM):
        os.kill(os.getpid(), number)


@_change
def pending_alarm() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGALRM,))
    signal.setitimer(signal.ITIMER_REAL, 0.0001)
    while signal.SIGALRM not in signal.sigpending():
        time.sleep(0.0001)


@_change
def timers() -> None:
    for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(which, 3600, 3600)


@_change
def quick_timer() -> None:
    """The timer goes off in the body and between the runs."""
    signal.signal(signal.SIGALRM, _answer)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)


@_change
def wakeup_descriptor() -> None:
    reads, writes = socket.socketpair()
    writes.setblocking(False)
    _lasting.append((reads, writes))
    signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)


@_change
@_unseen
def signal_that_writes_a_traceback() -> None:
    faulthandler.register(signal.SIGUSR2, file=_open_null())


@_change
@_unseen
def traceback_later() -> None:
    """If it stays set, it ends the process."""
    faulthandler.dump_traceback_later(0.2, exit=True, file=_open_null())


def _open_null() -> Any:
    file = open(os.devnull, "w")
    _lasting.append(file)
    return file


@_change
def streams_in_memory() -> None:
    sys.stdout, sys.stderr, sys.stdin = io.StringIO(), io.StringIO(), io.StringIO()


@_change
def own_streams_replaced() -> None:
    sys.__stdout__, sys.__stderr__, sys.__stdin__ = io.StringIO(), None, None  # type: ignore[assignment, misc]


@_change
def no_streams() -> None:
    sys.stdout = sys.stderr = sys.stdin = None


@_change
def streams_deleted() -> None:
    del sys.stdout, sys.stderr, sys.stdin


@_change
def stdout_closed() -> None:
    sys.stdout.close()


@_change
def stderr_closed() -> None:
    sys.stderr.close()


@_change
def stdin_closed() -> None:
    sys.stdin.close()


@_change
def stdout_detached() -> None:
    _lasting.append(sys.stdout.detach())  # type: ignore[union-attr]


@_change
def stdout_reconfigured() -> None:
    sys.stdout.reconfigure(encoding="latin-1", errors="ignore", line_buffering=False)  # type: ignore[union-attr]


@_change
def write_patched() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.write = stream.flush = _answer  # type: ignore[method-assign]


@_change
def half_a_line() -> None:
    sys.stdout.reconfigure(line_buffering=False)  # type: ignore[union-attr]
    print("half a line", end="")


@_change
def stdout_redirected() -> None:
    fd = os.open(os.devnull, os.O_WRONLY)
    os.dup2(fd, 1)
    os.close(fd)


@_change
def descriptors_closed() -> None:
    for fd in range(3):
        os.close(fd)


@_change
def range_of_descriptors_closed() -> None:
    os.closerange(0, 3)


@_change
def descriptors_not_inherited() -> None:
    for fd in range(3):
        os.set_inheritable(fd, not os.get_inheritable(fd))


@_change
def affinity() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) == 1:
        UNSEEN.add("affinity")
    os.sched_setaffinity(0, allowed[:1])


@_change
def scheduling() -> None:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _lower(name: str) -> None:
    which = getattr(resource, name)
    soft, hard = resource.getrlimit(which)
    # Low enough to be a change, and enough to go on with.
    least = {"RLIMIT_NOFILE": 512, "RLIMIT_NPROC": 100_000, "RLIMIT_CPU": 100_000}.get(name, 1 << 40)
    if soft == resource.RLIM_INFINITY or soft > least:
        resource.setrlimit(which, (least, hard))
    elif soft:
        resource.setrlimit(which, (soft - 1, hard))
    else:
        UNSEEN.add(name)


for _name in LIMITS:
    CHANGES[_name] = lambda name=_name: _lower(name)  # type: ignore[misc]


@_change
def warnings_ignored() -> None:
    warnings.simplefilter("ignore")


@_change
def warnings_as_errors() -> None:
    warnings.filterwarnings("error", category=UserWarning, message="look out")


@_change
def no_warning_filters() -> None:
    warnings.resetwarnings()


@_change
def another_list_of_filters() -> None:
    warnings.filters = []


@_change
def warnings_logged() -> None:
    logging.captureWarnings(True)


@_change
def warnings_shown_elsewhere() -> None:
    warnings.showwarning = _answer  # type: ignore[assignment]


@_change
def longer_path() -> None:
    sys.path.insert(0, "/mine")


@_change
def another_path() -> None:
    sys.path = ["/mine", *sys.path]


@_change
def another_argv() -> None:
    sys.argv = ["mine"]


@_change
def finders() -> None:
    sys.meta_path.insert(0, types.SimpleNamespace(find_spec=lambda *_: None))


@_change
def no_finders() -> None:
    sys.meta_path.clear()
    sys.path_hooks.clear()


@_change
def other_lists_of_finders() -> None:
    sys.meta_path = [types.SimpleNamespace(find_spec=lambda *_: None), *sys.meta_path]
    sys.path_hooks = []


@_change
def hooks() -> None:
    sys.excepthook = sys.unraisablehook = sys.displayhook = sys.breakpointhook = _answer
    threading.excepthook = _answer


@_change
def tracing() -> None:
    sys.settrace(_answer)
    threading.settrace(_answer)


@_change
def profiling() -> None:
    sys.setprofile(_answer)
    threading.setprofile(_answer)


@_change
def hooks_of_generators() -> None:
    sys.set_asyncgen_hooks(_answer, _answer)


@_change
def recursion_limit() -> None:
    sys.setrecursionlimit(4321)


@_change
def digits() -> None:
    getattr(sys, "set_int_max_str_digits", int)(5001)


@_change
def switch_interval() -> None:
    sys.setswitchinterval(0.0625)


@_change
def bytecode() -> None:
    sys.dont_write_bytecode = not sys.dont_write_bytecode


@_change
def short_tracebacks() -> None:
    sys.tracebacklimit = 0


@_change
def origins_of_coroutines() -> None:
    sys.set_coroutine_origin_tracking_depth(3)


@_change
def flags_of_libraries() -> None:
    sys.setdlopenflags(sys.getdlopenflags() ^ os.RTLD_GLOBAL)


@_change
def fault_handler() -> None:
    (faulthandler.disable if faulthandler.is_enabled() else faulthandler.enable)()


@_change
def no_collector() -> None:
    gc.disable()


@_change
def collector() -> None:
    gc.set_threshold(701, 12, 13)


@_change
def collector_that_tells() -> None:
    gc.set_debug(gc.DEBUG_SAVEALL)


@_change
def size_of_stacks() -> None:
    threading.stack_size(1 << 20)


@_change
def decimal_precision() -> None:
    decimal.getcontext().prec = 5
    decimal.getcontext().traps[decimal.Inexact] = True


@_change
def decimal_context() -> None:
    decimal.setcontext(decimal.BasicContext)


@_change
def decimal_flags() -> None:
    _lasting.append(decimal.Decimal(1) / 7)


@_change
def numbers_of_a_country() -> None:
    for name in ("C", "POSIX", "C.UTF-8"):
        if locale.setlocale(locale.LC_CTYPE) != name:
            locale.setlocale(locale.LC_CTYPE, name)
            return


@_change
def socket_timeout() -> None:
    socket.setdefaulttimeout(7.5)


@_change
def event_loop() -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.close()


@_change
def running_event_loop() -> None:
    loop = asyncio.new_event_loop()
    asyncio._set_running_loop(loop)
    loop.close()


@_change
def event_loop_policy() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        class Mine(asyncio.DefaultEventLoopPolicy):
            pass

        asyncio.set_event_loop_policy(Mine())


@_change
def context_variable() -> None:
    variable.set("mine")


@_change
def start_method() -> None:
    multiprocessing.set_start_method("spawn" if multiprocessing.get_start_method(allow_none=True) != "spawn" else "fork", force=True)


@_change
def level_of_the_root_logger() -> None:
    logging.root.setLevel(logging.DEBUG)


@_change
def handlers_of_the_root_logger() -> None:
    logging.basicConfig(level=logging.DEBUG, force=True)


@_change
def logging_disabled() -> None:
    logging.disable(logging.CRITICAL)


@_change
def niceness() -> None:
    os.nice(1)


if os.getuid():  # only root may raise its priority again
    PARTING["niceness"] = CHANGES.pop("niceness")


@_parting
def session_of_processes() -> None:
    child = os.getpid()
    with contextlib.suppress(PermissionError):  # the leader of a process group cannot start a session
        os.setsid()
    if os.getsid(0) != child:
        os.setpgid(0, os.getsid(0) if os.getsid(0) else 0)


if not os.getuid():

    @_parting
    def group() -> None:
        os.setegid(12_345)

    @_parting
    def groups() -> None:
        os.setgroups([*os.getgroups(), 12_345])


@_parting
@_unseen
def many_descriptors_closed() -> None:
    os.closerange(64, 256)


@_parting
@_unseen
def many_descriptors_used_again() -> None:
    """The body's files take descriptor numbers that the worker used."""
    os.closerange(64, 256)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(64, 256):
        os.dup2(null, fd)


# --- in a worker ----------------------------------------------------------------------------------


@process
def state() -> tuple[int, dict[str, str]]:
    return os.getpid(), look()


@process
def changed(kind: str) -> tuple[int, dict[str, str], bool]:
    {**CHANGES, **PARTING}[kind]()
    try:
        return os.getpid(), look(), kind in UNSEEN
    except Exception as error:  # the state cannot be read, which is a change too
        return os.getpid(), {"error": str(error)}, False
