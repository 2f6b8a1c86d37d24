"""What a body starts, a worker must not leave behind, however it ends.

The supervisor kills the process group of every worker that ends. Where the supervisor itself is killed, the kernel kills the
worker (PR_SET_PDEATHSIG) but not what the worker has started. So the first time a body starts a process, its worker
forks a janitor, who sleeps until the worker is gone and then kills what is left of the group, and what has left the group
but carries the worker's mark in its environment. Bodies that start nothing cost nothing: Python's audit events tell.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from entangle._run.readable import readable

_STARTING = frozenset(("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"))

#: The environment variable that marks what a worker has started, with a value that is the worker's alone.
MARK = "ENTANGLE_WORKER"

_listening = False
_wanted_by = 0  # the pid of the worker whose children are watched for
_janitor = 0
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
    global _listening, _wanted_by, _janitor
    _wanted_by, _janitor = os.getpid(), 0
    _off.duty = False
    if not _listening and hasattr(os, "pidfd_open"):
        sys.addaudithook(_hear)
        _listening = True


def _hear(event: str, _: Any) -> None:
    if event in _STARTING and not _janitor and _wanted_by == os.getpid() and not getattr(_off, "duty", False):
        with off_duty(), contextlib.suppress(OSError):
            _hire()


def _hire() -> None:
    global _janitor
    worker = os.getpid()
    watch = os.pidfd_open(worker)
    mark = f"{worker}-{os.urandom(8).hex()}"
    os.environ[MARK] = mark
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid:
        _janitor = pid
        os.close(watch)
        return
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # Nobody's pipe may stay open because of us, and no home locked.
        os.closerange(0, watch)
        os.closerange(watch + 1, 1 << 20)
        readable([watch], None)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker, signal.SIGKILL)
        _kill_marked(f"{MARK}={mark}".encode())
    finally:
        os._exit(0)


def hired() -> int:
    """The process id of this process's janitor; 0 where it has none."""
    return _janitor if _wanted_by == os.getpid() else 0


def kill_marked() -> None:
    """Kill what bodies of this process have started, wherever it has put itself; for a process that ends."""
    if hired():
        _kill_marked(f"{MARK}={os.environ.get(MARK)}".encode())


def _kill_marked(mark: bytes) -> None:
    """Kill every process whose environment has this entry. Those who have come to look again while we did are found as well."""
    for _ in range(3):
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as environment:
                    if mark in environment.read().split(b"\0"):
                        os.kill(int(name), signal.SIGKILL)


def dismiss() -> None:
    """Send the janitor home: the process ends in good order, and who has started it kills what is left of the group."""
    global _janitor
    if hired():
        with contextlib.suppress(OSError):
            os.kill(_janitor, signal.SIGKILL)
            os.waitpid(_janitor, 0)
        _janitor = 0
