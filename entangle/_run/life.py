"""What every new process does first: it settles in, joins its run if it must, and works.

::

    fork         the memory of the caller               free_locks, settle_in, unblock_signals, live
    forkserver   a spare forked ahead, told of its run  die_with, settle_in, join_run, live
    spawn        a new interpreter, told of its run     settle_in, unblock_signals, join_run, live
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterable
from typing import Any

from entangle._shared.interrupts import handler_of, plain
from entangle._shared.printout import Printout
from entangle._shared.table import PID
from entangle._worker import child, coverage, janitor, trackers
from entangle._worker.joining import BROKEN, NotJoined, join_run, offer_jobs
from entangle._worker.taking import flush
from entangle._worker.worker import Worker, here, run_as

_PR_SET_PDEATHSIG = 1

try:
    _prctl: Any = ctypes.CDLL(None).prctl
except AttributeError:  # macOS: a worker outlives a killed caller until its body ends
    _prctl = None

_sigmask = plain.pthread_sigmask


# Settling in --------------------------------------------------------------------------------------


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)


#: Signals that a worker handles in the default way, whatever its caller does.
RESET = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


def handlers_to_reset() -> list[int]:
    """Those of RESET that this process has handlers for. Call it before the fork: a child copies
    every page that it touches, which makes each step several times as slow."""
    usual = (signal.SIG_DFL, signal.default_int_handler)
    return [number for number in RESET if handler_of(number) not in usual]


def settle_in(parent: int, err: int, out: int, own_handlers: Iterable[int] = RESET) -> None:
    """Make this process a worker: it dies with its parent, ignores the terminal, and writes its
    stderr to the supervisor."""
    die_with(parent)
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in own_handlers:
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null > 2:
        os.close(null)
    lead_output(err, out)
    loop = sys.modules.get("asyncio.events")
    if loop is not None:
        loop._set_running_loop(None)  # the caller's loop does not run here
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()  # every worker would draw the same numbers otherwise
    janitor.watch_for_children()


def lead_output(err: int, out: int) -> None:
    """Write stderr and stdout to these descriptors, which are closed here; -1: as before."""
    if err >= 0:
        os.dup2(err, 2)
    if out >= 0:
        os.dup2(out, 1)
    for fd in (err, out):
        if fd > 2:
            os.close(fd)
    _open_streams(replaced=out >= 0)


def unblock_signals(mask: Iterable[int] | None = None) -> None:
    """Unblock the signals that were blocked during the fork: all but those in `mask`, or Ctrl-C
    alone. A Ctrl-C that is pending was meant for the caller, and is dropped."""
    if hasattr(signal, "sigtimedwait"):
        signal.sigtimedwait((signal.SIGINT,), 0)
    if mask is None:
        _sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    else:
        _sigmask(signal.SIG_SETMASK, mask)


def _open_streams(replaced: bool) -> None:
    """Open text streams on descriptors 1 and 2, buffered by line: what was printed is out before a
    worker is killed."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        try:
            usable = stream.fileno() == fd and not (replaced and fd == 1)
            if usable and (stream.write_through or not stream.line_buffering):
                # Unbuffered (python -u), a line leaves in pieces, which mix with other output.
                stream.reconfigure(line_buffering=True, write_through=False)
        except Exception:
            usable = False
        if not usable:
            fresh = open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
            setattr(sys, name, fresh)


def free_locks() -> None:
    """Free locks that threads of the parent held during the fork: those threads are not in this
    process.

    Python does so for its own modules, and ours do for theirs. Left are text streams, numpy's
    random numbers and cloudpickle.
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


#: Streams that hold a lock for ever. Freed, they would flush themselves and hang.
_locked: list[Any] = []


# Working ------------------------------------------------------------------------------------------


def live(worker: Worker) -> int:
    """Be a worker of one run, for life. Return the exit status."""
    child.begin()
    try:
        work_for_run(worker)
    finally:
        coverage.save()
        trackers.end_own()
        janitor.dismiss()
    return 0


def work_for_run(worker: Worker) -> None:
    """Work for a run until it is over."""
    slots = worker.site.table.slots
    slots[worker.base + PID] = os.getpid()
    here.worker = type(here).worker = worker
    if worker.notes is not None:
        worker.notes.prints = kept = Printout(worker.site.directory, worker.node)
        kept.listen(sys.stdout)
        kept.listen(sys.stderr)
    offer_jobs(worker.site)
    try:
        run_as(worker)
    finally:
        if worker.notes is not None:
            worker.notes.close()
        flush()


def report_bug() -> None:
    """Write to stderr what went wrong in a worker outside of any body."""
    import traceback

    with contextlib.suppress(Exception):
        os.write(2, ("entangle: a worker failed outside of any task\n" + traceback.format_exc()).encode())


def spawned(parent: int, directory: str, flow_path: str, slot: int, lane: int, serial: int, fds: list[int]) -> None:
    """Join a run and work for it: the main function of a spawned interpreter."""
    code = BROKEN
    try:
        err, out, *others = fds
        settle_in(parent, err, out)
        unblock_signals()
        code = live(join_run(directory, flow_path, slot, lane, serial, others))
    except NotJoined as why:
        code = why.code
    except BaseException:
        report_bug()
    finally:
        os._exit(code)
