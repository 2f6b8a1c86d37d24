"""What a body starts, a worker must not leave behind, however it ends.

The supervisor kills the process group of every worker that ends. Where the supervisor itself is killed, the kernel kills the
worker (PR_SET_PDEATHSIG) but not what the worker has started. So the first time a body starts a process, its worker starts a
janitor, which sleeps until the worker is gone and then kills what is left of the group, and what has left the group but
carries the worker's mark. Bodies that start nothing cost nothing: Python's audit events tell.

A body may wait for all its children, so the janitor is none of them: the process that forks it ends at once, and the system's
first process takes it over. For the same reason a worker adopts nobody: daemons are found by their mark.

The mark is a limit that limits nothing here: on the CPU time of real-time threads between two sleeps (RLIMIT_RTTIME), set to a
number of thousands of years that is the worker's alone. Whatever a process does, fork, exec, become a daemon, clear its
environment, it keeps its limits. An entry of the environment says the same to people, and where that limit is in use already.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

from entangle._shared.polling import readable

_STARTING = frozenset(("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"))

#: Those after which a child goes on with a copy of our buffers.
_FORKING = frozenset(("os.fork", "os.forkpty"))

#: The least number that is a mark, in microseconds: thirty thousand years.
_LIMITLESS = 1 << 60

#: The environment variable that marks what a worker has started, with a value that is the worker's alone.
MARK = "ENTANGLE_WORKER"

_listening = False
_wanted_by = 0  # the pid of the worker whose children are watched for
_janitor = 0
_watch = -1  # the janitor's pidfd: its number may be another process's by the time it is dismissed
_hiring = threading.Lock()
_mark = ("", 0)
_off = threading.local()


@contextlib.contextmanager
def off_duty() -> Iterator[None]:
    """For what we start ourselves: workers of nested runs look after themselves."""
    before = getattr(_off, "duty", False)
    _off.duty = True
    try:
        yield
    finally:
        _off.duty = before


def watch_for_children() -> None:
    """Have this worker process hire a janitor when a body first starts a process."""
    global _listening, _wanted_by, _janitor, _watch, _hiring
    if _watch >= 0:  # of the worker that this one was forked from
        os.close(_watch)
    _wanted_by, _janitor, _watch, _hiring = os.getpid(), 0, -1, threading.Lock()
    _off.duty = False
    if not _listening and hasattr(os, "pidfd_open"):
        sys.addaudithook(_hear)
        _listening = True


def _hear(event: str, _: Any) -> None:
    if event not in _STARTING or _wanted_by != os.getpid() or getattr(_off, "duty", False):
        return
    if event in _FORKING:
        # What a body has printed of a line would be in the child's buffer as well, and come out twice.
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
        # The end of the process in between is nothing to a body that listens for the ends of its children.
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
    """In the process in between: fork the janitor, tell its number, and end."""
    try:
        os.setpgid(0, 0)
        pid = _fork()
        if pid:
            os.write(tells, pid.to_bytes(8, "little"))
            os._exit(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # Nobody's pipe may stay open because of us, no home locked, and no file system busy. Before the worker is looked for:
        # what a program does after a fork, done twice by now, may close what it takes for its own.
        os.closerange(0, 1 << 20)
        os.chdir("/")
        with contextlib.suppress(ProcessLookupError):  # it is gone already
            readable([os.pidfd_open(worker)], None)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker, signal.SIGKILL)
        _kill_marked(_mark)
    finally:
        os._exit(0)


def _marked_by(worker: int) -> tuple[str, int]:
    """Mark this process, and with it all that it starts from now on."""
    name = f"{worker}-{os.urandom(8).hex()}"
    os.environ[MARK] = name
    number = 0
    with contextlib.suppress(AttributeError, OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
        if hard == resource.RLIM_INFINITY and (soft == hard or soft >= _LIMITLESS):
            number = _LIMITLESS + int.from_bytes(os.urandom(6), "little")
            resource.setrlimit(resource.RLIMIT_RTTIME, (number, hard))
    return name, number


def hired() -> int:
    """The process id of this process's janitor; 0 where it has none."""
    return _janitor if _wanted_by == os.getpid() else 0


def kill_marked() -> None:
    """Kill what bodies of this process have started, wherever it has put itself; for a process that ends."""
    if hired():
        _kill_marked(_mark, spared=hired())


def _kill_marked(mark: tuple[str, int], spared: int = 0) -> None:
    """Kill every process that carries this mark. Those who have come to look again while we did are found as well."""
    name, number = mark
    entry = f"{MARK}={name}".encode()
    for _ in range(3):
        for found in os.listdir("/proc"):
            if found.isdigit() and int(found) not in (os.getpid(), spared) and _carries(int(found), number, entry):
                with contextlib.suppress(OSError):
                    os.kill(int(found), signal.SIGKILL)


def _carries(pid: int, number: int, entry: bytes) -> bool:
    if number:
        with contextlib.suppress(OSError, ValueError):
            if resource.prlimit(pid, resource.RLIMIT_RTTIME)[0] == number:
                return True
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environment:
        return entry in environment.read().split(b"\0")
    return False


def dismiss() -> None:
    """End the janitor: this process ends in good order, and who has started it kills what is left of the group."""
    global _janitor, _watch
    if hired():
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(_watch, signal.SIGKILL)
        os.close(_watch)
        _janitor, _watch = 0, -1


def reap_adopted() -> None:
    """In the first process of a container, which is our caller then and reaps nobody: let go of janitors that have ended, and of
    what bodies had started and left."""
    if os.getpid() != 1:
        return
    for found in os.listdir("/proc"):
        if not found.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{found}/stat", "rb") as stat:
                state, parent = stat.read().rpartition(b")")[2].split()[:2]
            # Our own children, of which somebody may want to hear, have no such limit.
            if (state, parent) == (b"Z", b"1") and resource.prlimit(int(found), resource.RLIMIT_RTTIME)[0] >= _LIMITLESS:
                os.waitpid(int(found), os.WNOHANG)
