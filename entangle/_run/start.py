"""Starting worker processes: by fork, from the warm forkserver, or by spawning an interpreter.

Fork is the quickest and inherits everything, but it is not safe everywhere (`forking.py`). `auto` looks each time a worker is started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable
from typing import Any

from entangle._run import reaper
from entangle._run.forking import fork_is_safe
from entangle._run.worker_process import WorkerProcess
from entangle._shared import classes, greenlets, measuring
from entangle._shared.interrupts import handler_of, plain
from entangle._shared.site import Site
from entangle._shared.store import Store
from entangle._shared.table import PID, SLOT, STARTING, STATE
from entangle._worker import child, janitor
from entangle._worker.joining import BROKEN, join_run, write_flow
from entangle._worker.taking import flush
from entangle._worker.worker import Worker, here, run_as
from entangle.errors import OptionError

WAYS = ("auto", "fork", "forkserver", "spawn")
_PR_SET_PDEATHSIG = 1

try:
    _prctl: Any = ctypes.CDLL(None).prctl
except AttributeError:  # macOS: a worker there outlives a killed caller by the body that it runs
    _prctl = None


# Choosing ------------------------------------------------------------------------------------------------------


def chosen_way(wanted: str | None) -> str:
    """The way to start workers: what the caller wants, else ENTANGLE_START, else auto.

    The environment speaks of the process that the user has started. A worker is clean: its nested runs look for themselves.
    """
    inside = here.worker is not None and here.worker.in_process
    way = wanted or ("" if inside else os.environ.get("ENTANGLE_START")) or "auto"
    if way not in WAYS:
        raise OptionError(f"start={way!r}: there is no such way to start workers; choose one of {', '.join(WAYS)}")
    return way


def start_worker(way: str, site: Site, store: Store, slot: int, lane: int, serial: int, capture: bool) -> WorkerProcess:
    """Start a worker process of a run in a slot of its table."""
    site.table.slots[slot * SLOT + STATE] = STARTING
    if way == "auto":
        way = "fork" if fork_is_safe() else "forkserver"
    elif way == "fork" and greenlets.patched():
        way = "forkserver"
    flush()  # what the caller has printed comes before what its workers print, and a fork does not print it twice
    err_read, err_write = os.pipe()
    out_read, out_write = os.pipe() if capture else (-1, -1)
    try:
        if way == "fork":
            store.before_fork()
            pid = _fork(site, store, slot, lane, serial, err_write, out_write)
            watch = _watch(pid)
        else:
            write_flow(site)
            fds = [err_write, out_write, *site.wake, *site.wake_threads, site.tell]
            if way == "forkserver":
                from entangle._run.forkserver import ask

                pid, watch = 0, ask(site.directory, site.flow_path, slot, lane, serial, fds)
            else:
                pid = _spawn(site.directory, site.flow_path, slot, lane, serial, fds)
                watch = _watch(pid)
    except BaseException:
        for fd in (err_read, out_read):
            if fd >= 0:
                os.close(fd)
        raise
    finally:
        for fd in (err_write, out_write):
            if fd >= 0:
                os.close(fd)
    os.set_blocking(err_read, False)
    if out_read >= 0:
        os.set_blocking(out_read, False)
    return WorkerProcess(slot, lane, pid, watch, err_read, out_read, ours=way != "forkserver")


def _watch(pid: int) -> int:
    """A descriptor that becomes readable when the process ends; -1 where there is no such thing (macOS)."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


# The child's side ----------------------------------------------------------------------------------------------


def _fork(site: Site, store: Store, slot: int, lane: int, serial: int, err: int, out: int) -> int:
    parent = os.getpid()
    own_handlers = handlers_to_reset()
    alone = not reaper.others()  # reapers hold no lock while somebody forks
    # A newborn that is told to end waits with that until it has the handlers of a worker, and ends without a word.
    masked = _sigmask(signal.SIG_BLOCK, _RESET)
    with janitor.off_duty(), warnings.catch_warnings():
        # Of other threads, which Python warns of: there is none but a reaper, or the caller has asked for fork in so many words.
        warnings.simplefilter("ignore", DeprecationWarning)
        with reaper.still:
            try:
                pid = os.fork()
            except BaseException:
                _sigmask(signal.SIG_SETMASK, masked)
                raise
    if pid:
        _sigmask(signal.SIG_SETMASK, masked)
        return pid
    code = BROKEN
    try:
        site.forked()
        if not alone:
            _unlock()
        settle_in(parent, err, out, own_handlers)
        listen(masked)
        classes.inherit()
        store.become(slot, serial)
        code = live(Worker(site, slot, lane, serial, store))
    except BaseException:
        report_bug()
    finally:
        os._exit(code)


def _unlock() -> None:
    """In a worker that was forked beside other threads: free what they may have locked, since they did not come along.

    Python does so for its own modules, and the modules of ours for theirs, but not for text streams, numpy's random numbers and
    cloudpickle.
    """
    fresh: dict[int, Any] = {}
    for name, fd in (("stdout", 1), ("stderr", 2)):
        for stream in (getattr(sys, name), getattr(sys, f"__{name}__")):
            with contextlib.suppress(Exception):
                if stream.fileno() == fd and id(stream) not in fresh:
                    fresh[id(stream)] = open(fd, "w", buffering=1, encoding=stream.encoding, errors=stream.errors, closefd=False)
                    _locked.append(stream)
        for place in (name, f"__{name}__"):
            setattr(sys, place, fresh.get(id(getattr(sys, place)), getattr(sys, place)))
    logging = sys.modules.get("logging")
    if logging is not None:
        loggers = [logging.root, *logging.root.manager.loggerDict.values()]
        for handler in {handler for logger in loggers for handler in getattr(logger, "handlers", ())}:
            if id(getattr(handler, "stream", None)) in fresh:
                handler.stream = fresh[id(handler.stream)]
    numpy_random: Any = sys.modules.get("numpy.random")
    if hasattr(numpy_random, "set_bit_generator"):
        numpy_random.set_bit_generator(type(numpy_random.get_bit_generator())())
    pickling: Any = sys.modules.get("cloudpickle.cloudpickle")
    if hasattr(pickling, "_DYNAMIC_CLASS_TRACKER_LOCK"):
        pickling._DYNAMIC_CLASS_TRACKER_LOCK = threading.Lock()


#: Streams that nobody flushes any more; freed, they would flush themselves.
_locked: list[Any] = []


def live(worker: Worker) -> int:
    """A worker process's life; gives its exit status."""
    slots = worker.site.table.slots
    slots[worker.base + PID] = os.getpid()
    here.worker = type(here).worker = worker
    child.begin()
    if worker.site.makeflags is not None:
        os.environ["MAKEFLAGS"] = worker.site.makeflags
    try:
        run_as(worker)
    finally:
        flush()
        measuring.save()
        janitor.dismiss()
    return 0


def report_bug() -> None:
    """Say on stderr what went wrong in a worker outside of any body."""
    import traceback

    with contextlib.suppress(Exception):
        os.write(2, ("entangle: a worker failed outside of any task\n" + traceback.format_exc()).encode())


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we could ask to be told
            os._exit(1)


_sigmask = plain.pthread_sigmask

#: Signals whose handlers a worker does not keep.
_RESET = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


def handlers_to_reset() -> list[int]:
    """The signals among them that this process handles in a way of its own; asked before the fork, since in the child,
    whose pages are all copied when first touched, everything takes several times as long."""
    usual = (signal.SIG_DFL, signal.default_int_handler)
    return [number for number in _RESET if handler_of(number) not in usual]


def settle_in(parent: int, err: int, out: int, own_handlers: Iterable[int] = _RESET) -> None:
    """Make this process a worker: it dies with its parent, is deaf to the terminal, and its stderr goes to the supervisor."""
    die_with(parent)
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in own_handlers:
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null > 2:
        os.close(null)
    os.dup2(err, 2)
    if out >= 0:
        os.dup2(out, 1)
    for fd in (err, out):
        if fd > 2:
            os.close(fd)
    _open_streams(replaced=out >= 0)
    loop = sys.modules.get("asyncio.events")
    if loop is not None:
        loop._set_running_loop(None)  # the caller's loop does not run here
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()  # else every worker would draw the same numbers
    janitor.watch_for_children()


def listen(mask: Iterable[int] | None = None) -> None:
    """Let signals come again that were blocked while this process was born: those that the caller lets come, or Ctrl-C alone.
    One from the terminal was the caller's."""
    if hasattr(signal, "sigtimedwait"):
        signal.sigtimedwait((signal.SIGINT,), 0)
    if mask is None:
        _sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    else:
        _sigmask(signal.SIG_SETMASK, mask)


def _open_streams(replaced: bool) -> None:
    """Text streams on descriptors 1 and 2: line by line, so that what is printed is out before a worker is killed."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        try:
            usable = stream.fileno() == fd and not (replaced and fd == 1)
            if usable and (stream.write_through or not stream.line_buffering):
                # Written through (python -u), a line would leave in pieces, and mix with what others print.
                stream.reconfigure(line_buffering=True, write_through=False)
        except Exception:
            usable = False
        if not usable:
            fresh = open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
            setattr(sys, name, fresh)


# Without fork: the run is found by its directory -----------------------------------------------------------------


def _spawn(directory: str, flow_path: str, slot: int, lane: int, serial: int, fds: list[int]) -> int:
    import subprocess

    from entangle._run.forkserver import command_of_interpreter, environment_of_interpreter, prelude
    from entangle._worker import importing

    numbers = ",".join(str(fd) for fd in fds)
    where = f"{os.getpid()}, {directory!r}, {flow_path!r}, {slot}, {lane}, {serial}, [{numbers}]"
    code = f"{importing.prelude}{prelude}from entangle._run.start import spawned; spawned({where})"
    # Ctrl-C reaches it too as long as it is in our process group: it would tell of that while it imports.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        with janitor.off_duty():
            process = subprocess.Popen(
                command_of_interpreter(code),
                pass_fds=[fd for fd in fds if fd >= 0],
                env=environment_of_interpreter(),
                cwd="/",
                stdin=subprocess.DEVNULL,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    pid = process.pid
    process.returncode = 0  # we reap it ourselves
    return pid


def spawned(parent: int, directory: str, flow_path: str, slot: int, lane: int, serial: int, fds: list[int]) -> None:
    """What a spawned interpreter runs."""
    code = BROKEN
    try:
        err, out, *others = fds
        settle_in(parent, err, out)
        listen()
        code = live(join_run(directory, flow_path, slot, lane, serial, others))
    except BaseException:
        report_bug()
    finally:
        os._exit(code)
