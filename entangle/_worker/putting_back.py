"""What a warm worker puts back after each order: what a body may have changed for the next one.

The list of `inheritance.py`, and beside it: standard streams and their descriptors, hooks of the
interpreter, signal handlers and timers, the event loop. Random generators are seeded anew. Module
globals are not put back.

It comes between two runs that a caller waits for, so each part is compared first, and set only
where it differs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import io
import operator
import os
import random
import resource
import signal
import sys
import threading
import time
import warnings
from typing import Any

from entangle._shared.descriptors import file_of
from entangle._shared.interrupts import plain
from entangle._worker import audit, inheritance, janitor

_STREAMS = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
_HOOKS = ("excepthook", "unraisablehook", "displayhook", "breakpointhook")
_TIMERS = tuple(int(getattr(signal, name)) for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF") if hasattr(signal, name))
#: As plain numbers, like all that is given to `plain`: an enum takes longer to read than the call.
_BLOCK, _SETMASK = int(signal.SIG_BLOCK), int(signal.SIG_SETMASK)
_SIGNALS = sorted(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
#: Those that faulthandler answers by `enable`, and refuses otherwise.
_FATAL = (signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)
#: RLIMIT_RTTIME is the janitor's.
_LIMITS = [
    getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_") and name not in ("RLIMIT_OFILE", "RLIMIT_RTTIME")
]
#: Seconds between two looks at limits of which nobody has heard that they were set.
_PAUSE = 0.005
#: This many handlers of a body may raise while its signals are stopped.
_RAISE = 10


class Descriptors:
    """Descriptors of a warm worker that a body may close: 0, 1 and 2, of which it keeps copies, and
    those that it cannot do without."""

    def __init__(self) -> None:
        self._fds = [_kept(fd) for fd in range(3)]
        self._ours: dict[int, tuple[int, int, int] | None] = {}
        self._marked: list[int] = []
        self._ours.update((fd, file_of(fd)) for fd in self._fds)

    def need(self, *fds: int) -> None:
        """Note that the worker cannot do without these, which no program of the user's has open."""
        for fd in fds:
            if _mark(fd):
                self._marked.append(fd)
            else:
                self._ours[fd] = file_of(fd)

    def forget(self, *fds: int) -> None:
        """Note that the worker can do without these from now on."""
        for fd in fds:
            self._ours.pop(fd, None)
            if fd in self._marked:
                self._marked.remove(fd)

    def __len__(self) -> int:
        return len(self._ours) + len(self._marked)

    def lost(self) -> bool:
        """Whether one is closed that the worker cannot do without. Its number may be that of
        another file now."""
        try:
            if [fcntl.fcntl(fd, _GETSIG) for fd in self._marked].count(_OURS) != len(self._marked):
                return True
        except OSError:
            return True
        return list(map(file_of, self._ours)) != list(self._ours.values())

    def has(self, fd: int) -> bool:
        """Whether one that the worker cannot do without is still there."""
        if fd in self._marked:
            return _is_marked(fd)
        return self._ours.get(fd) is not None and file_of(fd) == self._ours[fd]

    def put_back(self) -> None:
        """Lead 0, 1 and 2 to where they led at first."""
        for fd, kept in enumerate(self._fds):
            os.dup2(kept, fd)

    def close(self) -> None:
        """Close the copies: nothing can be put back any more."""
        for fd in self._fds:
            os.close(fd)


class Before:
    """The state of a warm worker before an order.

    Its caller has asked whether descriptors are lost before it has anything put back.
    """

    def __init__(self, descriptors: Descriptors) -> None:
        import _locale

        self._locale_module: Any = _locale
        self._descriptors = descriptors
        self._streams = {name: getattr(sys, name) for name in _STREAMS}
        self._settings = {id(stream): _settings(stream) for stream in self._streams.values()}
        self._hooks = {name: getattr(sys, name) for name in _HOOKS}
        self._thread_hook = threading.excepthook
        self._tracing: Any = sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()
        self._asyncgen = sys.get_asyncgen_hooks()
        self._handlers = list(map(plain.getsignal, _SIGNALS))
        self._mask = plain.pthread_sigmask(signal.SIG_BLOCK, [])
        self._environ: Any = os.environ
        self._environb: Any = os.environb
        self._variables: dict[bytes, bytes] = dict(_variables())
        self._zone = _zone()
        self._directory = inheritance.directory()
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._lists = {name: (found := getattr(sys, name), list(found)) for name in ("path", "argv")}
        self._finders = {name: (found := getattr(sys, name), list(found)) for name in ("meta_path", "path_hooks")}
        self._filters, self._known_filters = warnings.filters, list(warnings.filters)
        self._showwarning, self._logged = warnings.showwarning, _warnings_are_logged()
        self._interpreter = _interpreter()
        self._collector = gc.isenabled(), gc.get_threshold(), gc.get_debug()
        self._stack_size = threading.stack_size()
        self._tracebacklimit = getattr(sys, "tracebacklimit", None)
        self._locale = _locale.setlocale(_locale.LC_ALL, None)
        self._socket_timeout = inheritance.socket_timeout()
        self._start_method = inheritance.start_method()
        self._faults = _faults_are_told()
        self._root = _root_logger()
        self._ids = identity()
        self._limits, self._priority, self._cpus, self._scheduling = limits()
        self._looked_at = 0.0
        audit.listen(("os.putenv", "os.unsetenv"), _note_variable)
        audit.listen(("resource.setrlimit", "resource.prlimit"), _note_limit)

    def put_back(self, streams: bool = True) -> str:
        """Put everything back, streams and 0, 1 and 2 only with `streams`. Why that cannot be done,
        in a few words; "" if it was."""
        self._stop_signals()
        if streams:
            self._put_streams()
        plain.pthread_sigmask(_SETMASK, self._mask)
        self._put_hooks()
        self._put_imports()
        self._put_environment()
        self._put_warnings()
        self._put_interpreter()
        self._put_libraries()
        seed()
        return self._put_limits()

    def _stop_signals(self) -> None:
        """Stop timers, drop what is pending, and put handlers back. All signals are blocked then.

        A handler that the body has left may run, and raise, before that.
        """
        for turn in range(_RAISE):
            try:
                self._block_signals()
                break
            except BaseException:
                if turn == _RAISE - 1:
                    raise
        for number in plain.sigpending():
            plain.signal(number, int(signal.SIG_IGN))  # the kernel drops it then
        handlers = list(map(plain.getsignal, _SIGNALS))
        if handlers == self._handlers:
            return
        for number, handler, now in zip(_SIGNALS, self._handlers, handlers, strict=True):
            if now != handler and handler is not None:
                with contextlib.suppress(OSError, ValueError):
                    plain.signal(number, handler)

    def _block_signals(self) -> None:
        plain.pthread_sigmask(_BLOCK, _SIGNALS)
        plain.set_wakeup_fd(-1)
        for timer in _TIMERS:
            if plain.getitimer(timer) != (0.0, 0.0):
                plain.setitimer(timer, 0)
        faults: Any = sys.modules.get("faulthandler")
        if faults is not None:
            faults.cancel_dump_traceback_later()
            for number in _SIGNALS:
                if number not in _FATAL:
                    faults.unregister(number)

    def _put_streams(self) -> None:
        # What bodies have left in buffers belongs to their run.
        now = [getattr(sys, name, ...) for name in _STREAMS]
        for stream in {*self._streams.values(), *now}:
            try:
                stream.flush()
            except Exception:
                pass
        self._descriptors.put_back()
        if all(map(operator.is_, now, self._streams.values())) and all(
            stream is None or (settings := self._settings[id(stream)]) is None or _restored(stream, settings) for stream in {*now}
        ):
            return
        opened: dict[int, Any] = {}
        for name, stream in self._streams.items():
            settings = self._settings[id(stream)]
            if id(stream) not in opened:
                opened[id(stream)] = stream if settings is None or _restored(stream, settings) else _reopened(name, settings)
            fresh = opened[id(stream)]
            if fresh is not stream:
                self._streams[name] = fresh
                self._settings[id(fresh)] = settings
            if getattr(sys, name, None) is not fresh or fresh is None:
                setattr(sys, name, fresh)

    def _put_hooks(self) -> None:
        for name, hook in self._hooks.items():
            setattr(sys, name, hook)
        threading.excepthook = self._thread_hook
        trace, profile, *of_threads = self._tracing
        if sys.gettrace() is not trace:
            sys.settrace(trace)
        if sys.getprofile() is not profile:
            sys.setprofile(profile)
        if [threading.gettrace(), threading.getprofile()] != of_threads:
            threading.settrace(of_threads[0])
            threading.setprofile(of_threads[1])
        if sys.get_asyncgen_hooks() != self._asyncgen:
            sys.set_asyncgen_hooks(*self._asyncgen)

    def _put_imports(self) -> None:
        for name, (which, known) in self._lists.items():
            if getattr(sys, name, None) is not which:
                setattr(sys, name, which)
            if which != known:
                which[:] = known
        for name, (which, known) in self._finders.items():
            # What a library has added for itself stays, behind those that were there before.
            now: Any = getattr(sys, name, None)
            if now is not which or which[: len(known)] != known:
                added = [one for one in now or () if one not in known]
                which[:] = [*known, *added]
                setattr(sys, name, which)

    def _put_environment(self) -> None:
        if os.environ is not self._environ:
            os.environ = self._environ  # noqa: B003
        os.environb = self._environb
        variables = _variables()
        if variables != self._variables:
            for name in [name for name in variables if name not in self._variables]:
                del variables[name]
                _set_below.add(name)
            for name, value in self._variables.items():
                if variables.get(name) != value:
                    variables[name] = value
                    _set_below.add(name)
        while _set_below:
            name = _set_below.pop()
            if name in variables:
                os.putenv(name, variables[name])
            else:
                os.unsetenv(name)
            _set_below.discard(name)
        janitor.mark_again()
        if _zone() != self._zone:
            time.tzset()
        if self._directory is not None:
            with contextlib.suppress(OSError):
                os.chdir(self._directory)
        os.umask(self._umask)

    def _put_warnings(self) -> None:
        if _warnings_are_logged() != self._logged:
            sys.modules["logging"].captureWarnings(self._logged)
        warnings.showwarning = self._showwarning
        warnings.filters = self._filters
        # Python forgets which warnings it has shown already: the next body's are shown as well.
        warnings.resetwarnings()
        list.extend(warnings.filters, self._known_filters)  # type: ignore[arg-type]
        getattr(warnings, "onceregistry", {}).clear()

    def _put_interpreter(self) -> None:
        for now, known, put in zip(_interpreter(), self._interpreter, _SETTERS, strict=True):
            if now != known:
                put(known)
        if self._tracebacklimit is not None:
            sys.tracebacklimit = self._tracebacklimit
        elif hasattr(sys, "tracebacklimit"):
            del sys.tracebacklimit
        collects, thresholds, debug = self._collector
        if gc.isenabled() != collects:
            (gc.enable if collects else gc.disable)()
        gc.set_threshold(*thresholds)
        gc.set_debug(debug)
        threading.stack_size(self._stack_size)
        if self._locale_module.setlocale(self._locale_module.LC_ALL, None) != self._locale:
            with contextlib.suppress(Exception):
                self._locale_module.setlocale(self._locale_module.LC_ALL, self._locale)

    def _put_libraries(self) -> None:
        """The state of modules of the standard library that were loaded, maybe by the body."""
        modules = sys.modules
        faults: Any = modules.get("faulthandler")
        if faults is not None:
            if self._faults:
                faults.enable(2)
            elif faults.is_enabled():
                faults.disable()
        socket: Any = modules.get("socket")
        if socket is not None:
            socket.setdefaulttimeout(self._socket_timeout)
        events: Any = modules.get("asyncio.events")
        if events is not None:
            events._set_running_loop(None)
            events._event_loop_policy = None  # and with it the loop that a body has set
        if inheritance.start_method() != self._start_method:
            modules["multiprocessing"].set_start_method(self._start_method, force=True)
        if "logging" in modules and (now := _root_logger()) != self._root:
            _put_root_logger(self._root, now)

    def _put_limits(self) -> str:
        if (now := identity()) != self._ids:
            return f"a body has changed its user, groups, session or root directory ({now} for {self._ids})"
        global _limited
        moment = time.monotonic()
        # Code in C may set them as well, without an event.
        if (_limited or moment - self._looked_at > _PAUSE) and list(map(resource.getrlimit, _LIMITS)) != self._limits:
            for which, known in zip(_LIMITS, self._limits, strict=True):
                try:
                    resource.setrlimit(which, known)
                except (OSError, ValueError):
                    return "a body has lowered limits that cannot be raised again"
        _limited, self._looked_at = False, moment
        try:
            if _scheduling() != self._scheduling and self._scheduling is not None:
                os.sched_setscheduler(0, self._scheduling, os.sched_param(0))
            if os.getpriority(os.PRIO_PROCESS, 0) != self._priority:
                os.setpriority(os.PRIO_PROCESS, 0, self._priority)
        except OSError:
            return "a body has lowered its priority, which cannot be raised again"
        try:
            if self._cpus is not None and os.sched_getaffinity(0) != self._cpus:
                os.sched_setaffinity(0, self._cpus)
        except OSError:
            return "a body has given up CPUs that cannot be had again"
        return ""


def _variables() -> dict[bytes, bytes]:
    """What `os.environ` holds, which encodes it anew at each access."""
    environ: Any = os.environ
    found: dict[bytes, bytes] = environ._data
    return found


#: Variables that bodies have set by `os.putenv`, of which `os.environ` does not know.
_set_below: set[bytes] = set()


def _note_variable(_: str, arguments: tuple[Any, ...]) -> None:
    if sys._getframe(2).f_globals is not vars(os):
        _set_below.add(arguments[0])


#: Whether a limit has been set since they were looked at.
_limited = False


def _note_limit(_: str, __: tuple[Any, ...]) -> None:
    global _limited
    _limited = True


def seed() -> None:
    """Seed random generators anew."""
    random.seed(int.from_bytes(os.urandom(32), "little"))  # by itself it takes 2,500 bytes
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch: Any = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "seed"):  # its import may have failed half-way
        torch.seed()


def _kept(fd: int) -> int:
    """A copy of a standard descriptor, out of the way of bodies that close some."""
    try:
        return _out_of_the_way(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            return _out_of_the_way(null)
        finally:
            os.close(null)


def _out_of_the_way(fd: int) -> int:
    """A copy with a number that bodies are unlikely to close by chance, as high as the limit of
    descriptors allows."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for lowest in (64, 32, 16):
        if limit == resource.RLIM_INFINITY or lowest < limit:
            try:
                return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _mark(fd: int) -> bool:
    """Mark an open file of ours, by the signal that it would send if it sent any. Reading that
    takes a quarter of the time that it takes to ask which file it is. False where there is none."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, _OURS)  # type: ignore[attr-defined,unused-ignore]
    except (AttributeError, OSError):  # macOS
        return False
    return True


def _is_marked(fd: int) -> bool:
    try:
        return fcntl.fcntl(fd, _GETSIG) == _OURS
    except OSError:
        return False


_GETSIG = getattr(fcntl, "F_GETSIG", -1)
_OURS = int(getattr(signal, "SIGRTMAX", 0))


def _settings(stream: Any) -> Any:
    """The settings of a text stream of the worker's own; None of any other."""
    try:
        if type(stream) is not io.TextIOWrapper or not 0 <= stream.fileno() <= 2:
            return None
        kept = stream.fileno(), stream.encoding, stream.errors, stream.line_buffering, stream.write_through
    except ValueError:
        return None
    return (*kept, frozenset(stream.__dict__))


def _restored(stream: Any, settings: tuple[Any, ...]) -> bool:
    """Give a stream its settings again. False if it can be used no more."""
    try:
        for name in [name for name in stream.__dict__ if name not in settings[-1]]:
            delattr(stream, name)  # a method that was replaced, also by a run that kept what was printed
        if stream.closed:
            return False
        if _settings(stream) != settings:
            _, encoding, errors, line_buffering, write_through, _ = settings
            stream.reconfigure(encoding=encoding, errors=errors, line_buffering=line_buffering, write_through=write_through)
    except (ValueError, OSError):
        return False
    return True


def _reopened(name: str, settings: tuple[Any, ...]) -> Any:
    fd, encoding, errors, *_ = settings
    mode = "r" if "stdin" in name else "w"
    fresh: Any = open(fd, mode, buffering=1, encoding=encoding, errors=errors, closefd=False)
    return fresh if _restored(fresh, settings) else None


def _warnings_are_logged() -> bool:
    logging = sys.modules.get("logging")
    return logging is not None and warnings.showwarning is getattr(logging, "_showwarning", None)


def _zone() -> tuple[Any, ...]:
    return time.tzname, time.timezone, time.altzone, time.daylight


def _interpreter() -> tuple[Any, ...]:
    """In the order of `_SETTERS`."""
    return (
        sys.getrecursionlimit(),
        sys.getswitchinterval(),
        sys.dont_write_bytecode,
        sys.get_coroutine_origin_tracking_depth(),
        sys.getdlopenflags(),
        sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else 0,
    )


def _set_bytecode(known: bool) -> None:
    sys.dont_write_bytecode = known


_SETTERS: tuple[Any, ...] = (
    sys.setrecursionlimit,
    sys.setswitchinterval,
    _set_bytecode,
    sys.set_coroutine_origin_tracking_depth,
    sys.setdlopenflags,
    getattr(sys, "set_int_max_str_digits", None),
)


def _faults_are_told() -> bool:
    faults: Any = sys.modules.get("faulthandler")
    return faults is not None and faults.is_enabled()


def _root_logger() -> tuple[Any, ...]:
    """Level, handlers, filters and `logging.disable` of the root logger."""
    logging: Any = sys.modules.get("logging")
    if logging is None:
        return 30, [], [], False, 0
    root = logging.root
    return root.level, list(root.handlers), list(root.filters), root.disabled, root.manager.disable


def _put_root_logger(known: tuple[Any, ...], now: tuple[Any, ...]) -> None:
    logging: Any = sys.modules["logging"]
    root = logging.root
    level, handlers, root.filters, root.disabled, disable = known
    for handler in now[1]:
        if handler not in handlers:
            root.removeHandler(handler)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.disable(disable)


def _scheduling() -> int | None:
    return os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None


def limits() -> tuple[Any, ...]:
    """What only some processes may put back: limits, priority, CPUs and scheduling."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return list(map(resource.getrlimit, _LIMITS)), os.getpriority(os.PRIO_PROCESS, 0), cpus, _scheduling()


def identity() -> tuple[object, ...]:
    """User, groups, session and root directory of this process, which nothing puts back."""
    root = os.stat("/")
    return os.getresuid(), os.getresgid(), os.getgroups(), os.getsid(0), os.getpgrp(), (root.st_dev, root.st_ino)
