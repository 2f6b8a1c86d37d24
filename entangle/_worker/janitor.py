"""A janitor kills what a body has started, once the worker of that body is gone.

The supervisor kills the process group of every worker that ends. If the supervisor itself is
killed, the kernel kills the worker (PR_SET_PDEATHSIG), but not what the worker has started. So when
a body first starts a process, its worker starts a janitor. The janitor sleeps until the worker is
gone, then kills the rest of the group, and every process that has left the group and carries the
worker's mark. Bodies that start nothing pay nothing: Python's audit events say when one does.

A body may wait for all its children, so the janitor must not be one: the process that forks it ends
at once, and init adopts it. For the same reason a worker is no subreaper: its daemons are found by
mark.

The mark is a resource limit that limits nothing: RLIMIT_RTTIME, the CPU time of real-time threads
between two sleeps, set to some thousands of years, a number unique to the worker. A process keeps
its limits whatever it does: fork, exec, become a daemon, clear its environment. A variable in the
environment says the same to people, and serves where that limit is in use already.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

from entangle._shared.polling import readable
from entangle._worker import audit, trackers

_STARTING = frozenset(("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"))

#: After these events a child goes on with a copy of our buffers.
_FORKING = frozenset(("os.fork", "os.forkpty"))

#: The smallest number that is a mark, in microseconds: thirty thousand years.
_LIMITLESS = 1 << 60

#: The environment variable that marks what a worker has started; its value is unique to the worker.
MARK = "ENTANGLE_WORKER"

_listening = False
_wanted_by = 0  # the pid of the worker whose children are watched
_janitor = 0
_watch = -1  # the janitor's pidfd: its pid may be reused by the time it is dismissed
_hiring = threading.Lock()
_mark = ("", 0)
_off = threading.local()


@contextlib.contextmanager
def off_duty() -> Iterator[None]:
    """Ignore what we start ourselves: workers of nested runs have janitors of their own."""
    before = getattr(_off, "duty", False)
    _off.duty = True
    try:
        yield
    finally:
        _off.duty = before


def watch_for_children() -> None:
    """Have this worker process start a janitor when a body first starts a process."""
    global _listening, _wanted_by, _janitor, _watch, _hiring
    if _watch >= 0:  # inherited from the worker that forked this one
        os.close(_watch)
    _wanted_by, _janitor, _watch, _hiring = os.getpid(), 0, -1, threading.Lock()
    _off.duty = False
    if not _listening and hasattr(os, "pidfd_open"):
        audit.listen(_STARTING, _hear)
        _hear_of_spawned()
        _listening = True


def _hear_of_spawned() -> None:
    """Hear of programs that `multiprocessing` starts, of which there is no event."""
    try:
        posix: Any = importlib.import_module("_posixsubprocess")
    except ImportError:
        return
    starts = posix.fork_exec

    def fork_exec(*arguments: Any) -> Any:
        _hear("subprocess.Popen", None)
        return starts(*arguments)

    posix.fork_exec = fork_exec


def _hear(event: str, _: Any) -> None:
    if _wanted_by != os.getpid() or getattr(_off, "duty", False):
        return
    if event in _FORKING:
        # Half a line in our buffers would be copied into the child, and printed twice.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    if not _janitor:
        with off_duty(), _hiring, contextlib.suppress(OSError):
            if not _janitor:
                _hire()


def _hire() -> None:
    global _janitor, _watch, _mark
    worker = os.getpid()
    _mark = _marked_by(worker)
    told, tells = os.pipe()
    try:
        # A body that handles SIGCHLD must not hear of the process in between.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
        try:
            between = _fork()
            if not between:
                _start_janitor(worker, tells)
            os.close(tells)
            tells = -1
            with contextlib.suppress(ChildProcessError):
                os.waitpid(between, 0)
            if signal.SIGCHLD not in before:
                signal.sigtimedwait((signal.SIGCHLD,), 0)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        born = os.read(told, 8)
        if len(born) == 8:
            _janitor = int.from_bytes(born, "little")
            _watch = os.pidfd_open(_janitor)
    finally:
        for fd in (told, tells):
            if fd >= 0:
                os.close(fd)


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


def _start_janitor(worker: int, tells: int) -> NoReturn:
    """In the process in between: fork the janitor, send its pid, and exit."""
    try:
        os.setpgid(0, 0)
        pid = _fork()
        if pid:
            os.write(tells, pid.to_bytes(8, "little"))
            os._exit(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # The janitor must keep no pipe open, no home locked and no file system busy. Close before
        # opening the worker's pidfd: a program's own fork hooks, run twice by now, may have closed
        # descriptors that we would take for ours.
        os.closerange(0, 1 << 20)
        os.chdir("/")
        with contextlib.suppress(ProcessLookupError):  # the worker is gone already
            readable([os.pidfd_open(worker)], None)
        # A tracker ends once all of these are gone, in whatever group.
        trackers.kill_group(worker)
        _kill_marked(_mark)
        trackers.end_group(worker, patience=trackers.HASTE)
    finally:
        os._exit(0)


def _marked_by(worker: int) -> tuple[str, int]:
    """Mark this process, and so all that it starts from now on."""
    name = f"{worker}-{os.urandom(8).hex()}"
    os.environ[MARK] = name
    number = 0
    with contextlib.suppress(AttributeError, OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
        if hard == resource.RLIM_INFINITY and (soft == hard or soft >= _LIMITLESS):
            number = _LIMITLESS + int.from_bytes(os.urandom(6), "little")
            resource.setrlimit(resource.RLIMIT_RTTIME, (number, hard))
    return name, number


def mark_again() -> None:
    """Mark this process as before, if it has a janitor: its environment and limits were put
    back."""
    if not hired():
        return
    name, number = _mark
    os.environ[MARK] = name
    if number:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_RTTIME, (number, resource.getrlimit(resource.RLIMIT_RTTIME)[1]))


def left_running() -> bool:
    """Whether something that bodies of this process have started is still running, in its group or
    not. A child that has ended, and that nobody has waited for, is not; nor is a tracker, which
    serves all bodies."""
    if not hired():
        return False
    name, number = _mark
    entry = f"{MARK}={name}".encode()
    ours = (os.getpid(), hired())
    others = (int(found) for found in os.listdir("/proc") if found.isdigit() and int(found) not in ours)
    return any(_carries(pid, number, entry) and not _is_zombie(pid) and not trackers.is_tracker(pid) for pid in others)


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] == b"Z"
    except (OSError, IndexError):
        return True  # it is gone


def hired() -> int:
    """The pid of this process's janitor; 0 if it has none."""
    return _janitor if _wanted_by == os.getpid() else 0


def kill_marked() -> None:
    """Kill what bodies of this process have started, in any group; for a process that ends."""
    if hired():
        _kill_marked(_mark, spared=hired())


def _kill_marked(mark: tuple[str, int], spared: int = 0) -> None:
    """Kill every process that carries this mark."""
    name, number = mark
    entry = f"{MARK}={name}".encode()
    ours = (os.getpid(), spared)
    trackers.end(
        lambda: [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid not in ours and _carries(pid, number, entry)],
        trackers.HASTE,
    )


def _carries(pid: int, number: int, entry: bytes) -> bool:
    if number:
        with contextlib.suppress(OSError, ValueError):
            if resource.prlimit(pid, resource.RLIMIT_RTTIME)[0] == number:
                return True
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environment:
        return entry in environment.read().split(b"\0")
    return False


def dismiss() -> None:
    """End the janitor: this process exits normally, and its parent kills the rest of the group."""
    global _janitor, _watch
    if hired():
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(_watch, signal.SIGKILL)
        os.close(_watch)
        _janitor, _watch = 0, -1


def reap_adopted() -> None:
    """In a container's first process, which is our caller and reaps nobody, reap adopted processes.

    They are janitors that have ended, and what bodies had started and left.
    """
    if os.getpid() != 1:
        return
    for found in os.listdir("/proc"):
        if not found.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{found}/stat", "rb") as stat:
                state, parent = stat.read().rpartition(b")")[2].split()[:2]
            # Our own children do not have that limit; somebody may wait for them.
            if (state, parent) == (b"Z", b"1") and resource.prlimit(int(found), resource.RLIMIT_RTTIME)[0] >= _LIMITLESS:
                os.waitpid(int(found), os.WNOHANG)
