"""Starting worker processes: by fork, from the warm forkserver, or by spawning an interpreter.

Fork is the quickest and inherits everything, but it is not always safe (`forking.py`). `auto`
decides anew for each worker.
"""

from __future__ import annotations

import os
import signal
import warnings
from itertools import chain

from entangle import _run
from entangle._run import life, python_command, reaper
from entangle._run.forking import fork_is_safe, opened_device
from entangle._run.worker_process import WorkerProcess
from entangle._shared import greenlets, pickled_classes
from entangle._shared.interrupts import plain
from entangle._shared.site import Site
from entangle._shared.store import Store
from entangle._shared.summaries import value_in_short
from entangle._shared.table import SLOT, STARTING, STATE
from entangle._worker import janitor, library_threads
from entangle._worker.joining import BROKEN, write_flow
from entangle._worker.serving import serve
from entangle._worker.taking import flush
from entangle._worker.worker import Worker, here
from entangle.errors import OptionError, UnpicklableError
from entangle.flow import DEVICE, PROCESS

WAYS = ("auto", "fork", "forkserver", "spawn")


class NoWorkerNow(Exception):
    """All warm workers that may serve a run are lent to others."""


_sigmask = plain.pthread_sigmask


# Choosing -----------------------------------------------------------------------------------------


def chosen_way(wanted: str | None) -> str:
    """The way to start workers: what the caller wants, else ENTANGLE_START, else auto.

    A worker ignores ENTANGLE_START: the variable is about the user's process, and a worker is a
    clean one.
    """
    inside = here.worker is not None and here.worker.in_process
    stated = wanted is not None
    way = wanted if stated else ("" if inside else os.environ.get("ENTANGLE_START")) or "auto"
    if way not in WAYS:
        where = "start" if stated else "ENTANGLE_START"
        raise OptionError(f"{where}={value_in_short(way)} is no way to start workers; choose one of {', '.join(WAYS)}")
    return way


def session() -> _run.Warm | None:
    """The session that is open in this process; the first run may open one for the whole
    program."""
    if _run.warm is None and _run.open_session is not None:
        _run.open_session()
    return _run.warm


def start_worker(way: str, site: Site, store: Store, slot: int, lane: int, serial: int, capture: bool) -> WorkerProcess:
    """Start a worker process of a run in a slot of its table."""
    site.table.slots[slot * SLOT + STATE] = STARTING
    outlives = lane == PROCESS or (lane >= DEVICE and not site.claims[lane - DEVICE].fresh)
    if outlives and way in ("auto", "forkserver") and (warm := site.warm or session()) is not None:
        try:
            worker = warm.lend(site, slot, lane, serial, capture)
        except UnpicklableError:
            if way != "auto" or not fork_is_safe():
                raise
            way = "fork"  # which has everything without a pickle
        else:
            if worker is not None:
                return worker
    if site.frame is not None:
        site.frame.spoiled = True
    if way == "auto":
        way = "fork" if fork_is_safe() else "forkserver"
    elif way == "fork" and greenlets.patched():
        way = "forkserver"
    elif way == "fork" and (opened := opened_device()):
        raise OptionError(
            f"start='fork': this process has opened a GPU ({opened}), and a fork of it could not use any; leave out start= and "
            "ENTANGLE_START, or say 'forkserver' or 'spawn'"
        )
    # Output of the caller comes before that of its workers. A fork must not copy it, or it would be
    # printed twice.
    flush()
    err_read, err_write = os.pipe()
    out_read, out_write = os.pipe() if capture else (-1, -1)
    try:
        if way == "fork":
            store.before_fork()
            pid = _fork(site, store, slot, lane, serial, err_write, out_write)
            watch = _watch(pid)
        else:
            write_flow(site)
            fds = [err_write, out_write, *site.wake, *site.wake_threads, site.tell, *chain(*site.wake_devices)]
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
    """A descriptor that becomes readable when the process ends; -1 where there is none (macOS)."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


# By fork ------------------------------------------------------------------------------------------


def _fork(site: Site, store: Store, slot: int, lane: int, serial: int, err: int, out: int) -> int:
    parent = os.getpid()
    own_handlers = life.handlers_to_reset()
    if site.settings is None:
        site.settings = library_threads.settings(site.shares.each, forked=True)
    alone = not reaper.others()  # reapers hold no lock during a fork
    # A signal to the newborn waits until it has the handlers of a worker. It would print a
    # traceback otherwise.
    masked = _sigmask(signal.SIG_BLOCK, life.RESET)
    with janitor.off_duty(), warnings.catch_warnings():
        # Python warns of other threads. There are none but reapers, or the caller has asked for
        # fork.
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
            life.free_locks()
        life.settle_in(parent, err, out, own_handlers)
        life.unblock_signals(masked)
        pickled_classes.inherit()
        library_threads.apply(site.settings)
        store.become(slot, serial)
        worker = Worker(site, slot, lane, serial, store)
        if lane >= DEVICE:
            claim = site.claims[lane - DEVICE]
            worker.serving = serve(lambda: site.devices, claim, site.visible, site.run_id, site.table, slot, lane)
        code = life.live(worker) if lane < DEVICE or worker.serving is not None else 0
    except BaseException:
        life.report_bug()
    finally:
        os._exit(code)


# Without fork: the run is found by its directory --------------------------------------------------


def _spawn(directory: str, flow_path: str, slot: int, lane: int, serial: int, fds: list[int]) -> int:
    import subprocess

    numbers = ",".join(str(fd) for fd in fds)
    where = f"{os.getpid()}, {directory!r}, {flow_path!r}, {slot}, {lane}, {serial}, [{numbers}]"
    code = f"from entangle._run.life import spawned; spawned({where})"
    # The interpreter is in our process group until it has set itself up. Ctrl-C in that time would
    # print a traceback from its imports.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        with janitor.off_duty():
            process = subprocess.Popen(
                python_command.command(code),
                pass_fds=[fd for fd in fds if fd >= 0],
                env=python_command.environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    pid = process.pid
    process.returncode = 0  # we reap it ourselves
    return pid
