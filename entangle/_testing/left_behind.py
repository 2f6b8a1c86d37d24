"""Finds what a piece of code has left behind: processes, threads, descriptors, shared memory.

Some things last until the program ends, however short the code was that needed them first. They are
left out, since a program has each of them once and ends it:

- the warm server of entangle (`_run/forkserver.py`) with the spare workers that it keeps, agents in
  other places (`_remote/caller/open_channels.py`), and the warm workers that graphs of dask and
  joblib keep for the next one, until they have been idle for a minute;
- what belongs to a session or an Executor that was there before, even if it was started later;
- the home of this process with its locks and queues of cookies (`_shared/home.py`), and with what
  a session keeps there from run to run;
- the resource tracker and the server of Python's `multiprocessing`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from entangle._run import descendants
from entangle._testing import shared_segments

#: The number of a process, and the time of its start: another process may have that number later.
_Process = tuple[int, str]

#: The commands of processes that last as long as the program.
_LASTING = re.compile(r"resource_tracker import main|multiprocessing\.forkserver import main|entangle-agent")
_SERVER = "entangle._run.forkserver"
#: A worker has the table of its run mapped, which lies in the directory of the run.
_IN_A_RUN = re.compile(r"/p\d+-[0-9a-f]+(\.spill)?/r")
#: The longest command that is shown (characters).
_SHOWN = 200


class LeftBehind:
    """Remembers what is there when it is made; `found` names what has come since.

    Shared memory counts only if `notes`, or the processes that use it, show that it is certainly
    ours: others on this machine may run such code at the same time. `marks` are parts of the
    environment of processes that are started meanwhile: by them it finds processes whose parents
    have ended.
    """

    def __init__(self, notes: shared_segments.SegmentNotes, marks: Iterable[str] = ()) -> None:
        self._notes = notes
        self._marks = [mark.encode() for mark in marks]
        self._allowed: list[str] = []
        self._pools = set(_pools())
        self._executors = set(_executors())
        self._everybody = set(_all_processes())
        self._processes = {process for process, line in _our_processes().items() if not self._is_spare(process[0], line)}
        self._threads = set(threading.enumerate())
        self._descriptors = _descriptors()
        self._shared = shared_segments.there()
        self._runs = set(_run_directories())

    def allow(self, text: str) -> None:
        """Leave out everything in whose description this text occurs."""
        self._allowed.append(text)

    def found(self, patience: float = 0.0) -> list[str]:
        """What was left behind, in words. Waits up to `patience` seconds for what is about to
        end."""
        until = time.monotonic() + patience
        collected = False
        pause = 0.002
        while left := self._look():
            if not collected and patience:
                import gc

                gc.collect()  # closes what only a cycle of objects holds
                collected = True
                continue
            if time.monotonic() >= until:
                break
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return left

    def _look(self) -> list[str]:
        told = [*self._left_processes(), *self._left_threads(), *self._left_descriptors(), *self._left_memory()]
        return [text for text in told if not any(allowed in text for allowed in self._allowed)]

    def _is_spare(self, pid: int, line: list[int]) -> bool:
        """Whether a process is the warm server, or one of its workers that has nothing to do."""
        return _of_the_server(line) and not _IN_A_RUN.search(_read(f"/proc/{pid}/maps"))

    def _left_processes(self) -> Iterator[str]:
        ours = _our_processes()
        lasting = {*self._pools, *_kept_pools(), *(executor.pool for executor in self._executors)}
        warm = {worker.pid: pool for pool in _pools() for worker in pool.living()}
        for process, line in ours.items():
            pid, _ = process
            if process in self._processes or warm.get(pid) in lasting:
                continue
            command = _command(pid)
            if pid in warm:
                yield f"process {pid}: a warm worker of a session or an Executor that is still open"
            elif _of_the_server(line):
                if not self._is_spare(pid, line):
                    yield f"process {pid}: a worker of a run that goes on"
            elif command and not _LASTING.search(command):
                ended = " (it has ended, and nobody has waited for it)" if _state(pid) == "Z" else ""
                yield f"process {pid}: {command}{ended}"
        if self._marks:
            pids = {pid for pid, _ in ours}
            for pid in _all_processes() - self._everybody - pids:
                command, environment = _command(pid), _read_bytes(f"/proc/{pid}/environ")
                if all(mark in environment for mark in self._marks) and _is_orphan(pid) and not _LASTING.search(command):
                    yield f"process {pid}: {command} (it lives on without its parent)"

    def _left_threads(self) -> Iterator[str]:
        lasting = {executor.thread for executor in (*self._executors, *_kept_executors())}
        for thread in threading.enumerate():
            # A thread that Python has not started belongs to a library; a debugger has its own.
            if (
                thread not in self._threads
                and thread not in lasting
                and not isinstance(thread, threading._DummyThread)
                and not getattr(thread, "is_pydev_daemon_thread", False)
            ):
                yield f"thread {thread.name!r}"

    def _left_descriptors(self) -> Iterator[str]:
        now = _descriptors()
        new = {fd: target for fd, target in now.items() if self._descriptors.get(fd) != target}
        # Count them: a file that replaces another one, as of a log that rotates, is no leak.
        if len(now) > len(self._descriptors):
            for fd, target in sorted(new.items()):
                yield f"descriptor {fd}: {target}"

    def _left_memory(self) -> Iterator[str]:
        if new := sorted(shared_segments.there() - self._shared):
            for name in shared_segments.made_by({os.getpid(), *descendants.of((os.getpid(),))}, self._notes, new):
                yield f"shared memory {shared_segments.FOLDER}/{name}"
        for directory in sorted(set(_run_directories()) - self._runs):
            yield f"directory of a run {directory}"


# Processes ----------------------------------------------------------------------------------------


def _read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # gone meanwhile, or somebody else's
        return b""


def _read(path: str) -> str:
    return _read_bytes(path).decode("utf-8", "replace")


def _stat(pid: int) -> list[str]:
    """State, parent and so on, as proc(5) lists them after the name."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _state(pid: int) -> str:
    found = _stat(pid)
    return found[0] if found else ""


def _command(pid: int) -> str:
    command = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
    if not command and (stat := _read(f"/proc/{pid}/stat")):
        command = stat.partition("(")[2].rpartition(")")[0]
    return command if len(command) <= _SHOWN else command[:_SHOWN] + " …"


def _all_processes() -> set[int]:
    with contextlib.suppress(OSError):
        return {int(name) for name in os.listdir("/proc") if name.isdigit()}
    return set()


def _our_processes() -> dict[_Process, list[int]]:
    """The processes below this one, each with its ancestors below this one."""
    found: dict[_Process, list[int]] = {}
    me, parents = os.getpid(), {}
    for pid in descendants.of((me,)):
        if stat := _stat(pid):
            parents[pid] = int(stat[1])
            found[(pid, stat[19])] = []
    for (pid, _), line in found.items():
        while pid in parents and pid not in line:
            line.append(pid)
            pid = parents[pid]
    return found


def _of_the_server(line: list[int]) -> bool:
    return any(_SERVER in _read(f"/proc/{pid}/cmdline") or "entangle-agent" in _read(f"/proc/{pid}/cmdline") for pid in line)


def _is_orphan(pid: int) -> bool:
    """Whether its parent has only adopted it: the first process, or a subreaper."""
    stat = _stat(pid)
    if not stat or stat[0] == "Z":
        return False
    parent = int(stat[1])
    return parent == 1 or b"\0PYTEST_CURRENT_TEST=" not in b"\0" + _read_bytes(f"/proc/{parent}/environ")


def _pools() -> list[Any]:
    """The pools of warm workers of this process that are open."""
    module = sys.modules.get("entangle._warm.warm_pool")
    return [pool for pool in list(module._pools) if not pool.closed] if module is not None else []


def _executors() -> list[Any]:
    """The parts of this process's Executors that do their work."""
    module = sys.modules.get("entangle._warm.calling")
    return list(module._all) if module is not None else []


def _kept_executors() -> list[Any]:
    """The same of the Executors that joblib keeps for the next time."""
    module = sys.modules.get("entangle._joblib.lease")
    return [executor._calls for _, executor in list(module.unused)] if module is not None else []


def _sessions() -> list[Any]:
    """The session that is open, and the one that graphs of dask use."""
    current = getattr(sys.modules.get("entangle._warm.session"), "current", lambda: None)()
    kept = getattr(sys.modules.get("entangle._dask.graph_run"), "_opened", None)
    return [session for session in (current, kept) if session is not None]


def _kept_pools() -> list[Any]:
    """The warm workers that are kept for the next graph of dask, or for the next call of joblib."""
    kept = getattr(sys.modules.get("entangle._dask.graph_run"), "_opened", None)
    return [*(executor.pool for executor in _kept_executors()), *([kept._pool] if kept is not None else [])]


# Descriptors --------------------------------------------------------------------------------------


def _descriptors() -> dict[int, str]:
    """The open descriptors and their targets, without those that last."""
    found: dict[int, str] = {}
    lasting, homes = set(_lasting_descriptors()), tuple(_homes())
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the descriptor of the listing itself
                target = os.readlink(f"/proc/self/fd/{name}")
                if int(name) not in lasting and "entangle-board" not in target and not (homes and _is_of_home(target, homes)):
                    found[int(name)] = target
    return found


def _homes() -> Iterator[str]:
    module = sys.modules.get("entangle._shared.home")
    for home in list(module._homes.values()) if module is not None else ():
        yield from (home.path, home.spill, home._shared[0] or home.path)


def _is_of_home(target: str, homes: tuple[str, ...]) -> bool:
    """Whether a file belongs to a home: a lock, a queue, what a session keeps from run to run.
    Files of a run lie in a directory of its own."""
    return any(target == home or (target.startswith(home + "/") and target[len(home) + 1] != "r") for home in homes)


def _lasting_descriptors() -> Iterator[int]:
    server = getattr(sys.modules.get("entangle._run.forkserver"), "_server", None)
    if server is not None:
        yield from (server.socket.fileno(), server.preloading._hear.fileno(), server.preloading.tell.fileno())
    for session in _sessions():
        for frame in list(session._frames):
            yield from (*frame.wake, frame.listen, frame.tell)
    for executor in _executors():
        yield from executor.wake
    for pool in _pools():
        yield from pool.descriptors()
    for name, module in list(sys.modules.items()):
        # Python's own, and copies of it in other libraries.
        if name.endswith("resource_tracker"):
            yield getattr(getattr(module, "_resource_tracker", None), "_fd", None) or -1
    forkserver: Any = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if forkserver is not None:
        yield from (fd for fd in (forkserver._forkserver_alive_fd,) if fd is not None)


def _run_directories() -> Iterator[str]:
    """The directories of runs of this process."""
    for home in _homes():
        with contextlib.suppress(OSError):
            yield from (os.path.join(home, name) for name in os.listdir(home) if name.startswith("r"))
