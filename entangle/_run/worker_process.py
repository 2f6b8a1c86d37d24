"""A worker process as its supervisor sees it: its end, its signals, the CPU that it uses."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import time
from typing import Any

from entangle._run import descendants
from entangle._shared.polling import readable
from entangle._worker import trackers

#: Between SIGTERM and SIGKILL, for workers past a deadline or of a run that is over (seconds).
GRACE = 0.5

#: The most processes started by a body whose CPU time is looked at.
_MOST_LOOKED_AT = 64

_EXIT = struct.Struct("<i")
_BORN = struct.Struct("<q")


class WorkerProcess:
    """A worker process: whether it has ended, how to end it, how much CPU it uses."""

    def __init__(self, slot: int, lane: int, pid: int, watch: int, err: int, out: int, ours: bool) -> None:
        self.slot = slot
        self.lane = lane
        self._pid = pid
        self.watch = watch
        self.err = err
        self.out = out
        self._ours = ours
        self.ended_by: int | None = None
        self.tail = bytearray()
        #: CPUs used between the last two looks, by it and what it has started. More than 1 counts
        #: as 1.
        self.share = 1.0
        self._used = 0
        self._looked_at = time.monotonic_ns()
        self._low_looks = 0
        self._body = (-1, -1)
        #: CPU time of each process that the body has started, at the last look (ns).
        self._family: dict[int, int] = {}

    @property
    def is_child(self) -> bool:
        """Whether it is our child. One from the forkserver is not."""
        return self._ours

    @property
    def pid(self) -> int:
        """The process id. 0 until the forkserver has told it, -1 where it never will."""
        if self._pid == 0:
            self._read_pid(0)
        return self._pid

    def _read_pid(self, seconds: float) -> None:
        """Read the process id from the forkserver, if it comes within so many seconds."""
        if readable([self.watch], seconds):
            born = os.read(self.watch, _BORN.size)
            if len(born) == _BORN.size:
                self._pid = _BORN.unpack(born)[0]
            else:  # the server has died, and its workers with it
                self._pid = -1
                self.ended_by = -signal.SIGKILL

    def ended(self) -> bool:
        """Whether the process has ended, without waiting. If so, `ended_by` is its exit code or
        minus the signal."""
        if self.ended_by is not None:
            return True
        if self._ours:
            try:
                found = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            # The caller ignores SIGCHLD or reaps all children: how this one ended is lost.
            except ChildProcessError:
                self.ended_by = _exit_code_elsewhere(self._pid)
                return self.ended_by is not None
            if found is None:
                return False
            # Kill what it has left in its process group, before the pid can be used again.
            end_rest_of_group(self._pid, found)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self.ended_by = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            return True
        if self.pid > 0 and self.ended_by is None and readable([self.watch], 0):
            status = os.read(self.watch, _EXIT.size)
            self.ended_by = _EXIT.unpack(status)[0] if len(status) == _EXIT.size else -signal.SIGKILL
        return self.ended_by is not None

    def kill(self, number: int) -> None:
        """Send a signal to the worker and to its process group."""
        if self.pid == 0:
            self._read_pid(1.0)
            if self.pid == 0:  # it will find that its run is over, and end
                self.ended_by = 0
        if self.ended_by is None and self.pid > 0:
            if number == signal.SIGKILL:
                trackers.kill_group(self.pid)
            else:
                _signal_group(self.pid, number)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def look(self, body: tuple[int, int], supervises: bool) -> bool:
        """Look at the CPU time since the last look, and set `share`. Return False if the worker is
        gone or not there yet.

        `body` is what it runs, and since when. `supervises` says that the body waits for a nested
        run, which counts its own workers.
        """
        spent = cpu_time(self.pid)
        # Read here: whoever looks may wait for a CPU between two workers.
        now = time.monotonic_ns()
        if spent is None:
            return False
        used = spent - self._used + (self._used_by_family() if self._family and not supervises else 0)
        self.share = min(1.0, max(0, used) / max(1, now - self._looked_at))
        self._used, self._looked_at = spent, now
        if supervises:
            self._family = {}
            return True
        if self.share >= 0.3:
            self._low_looks = 0
            return True
        self._low_looks = self._low_looks + 1 if body == self._body else 1
        self._body = body
        if self._low_looks <= 4 or self._low_looks % 8 == 0:
            # It waits. But what it has started may compute: the body may have called another
            # program.
            known, self._family = self._family, self._cpu_times_of_family()
            if self._family.keys() - known.keys():
                self.share = 1.0  # assume the most until the next look
        return True

    def _used_by_family(self) -> int:
        """CPU time used since the last look by processes that the body has started (ns)."""
        before, self._family = self._family, self._cpu_times_of_family()
        return sum(max(0, spent - before.get(pid, 0)) for pid, spent in self._family.items())

    def _cpu_times_of_family(self) -> dict[int, int]:
        found = descendants.of((self.pid,), most=_MOST_LOOKED_AT) if descendants.listed() else ()
        return {pid: cpu_time(pid) or 0 for pid in found}

    def runnable(self) -> bool:
        """Whether the worker or what it has started could use a CPU now; False where that is
        unknown."""
        return self.pid > 0 and any(map(has_runnable, (self.pid, *self._family)))

    def close_stream(self, fd: int) -> None:
        """Close stderr or stdout at its end."""
        os.close(fd)
        if fd == self.err:
            self.err = -1
        else:
            self.out = -1

    def forget(self) -> None:
        """Close nothing: somebody else has, and the numbers may be other files' now. The worker
        counts as killed."""
        self.watch = self.err = self.out = -1
        if self.ended_by is None:
            self.ended_by = -signal.SIGKILL
        self._pid = self._pid or -1

    def close(self) -> None:
        """Close all descriptors."""
        for fd in (self.watch, self.err, self.out):
            if fd >= 0:
                os.close(fd)
        self.watch = self.err = self.out = -1


def _exit_code_elsewhere(pid: int) -> int | None:
    """The exit code of a child that somebody else may have reaped, such as gevent's loop; None if
    it lives."""
    with contextlib.suppress(OSError):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
    return None if _alive(pid) else 0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def end_rest_of_group(pid: int, found: Any) -> None:
    """Kill what a worker that has ended, as `os.waitid` has told, has left in its process group."""
    if found.si_code == os.CLD_EXITED and found.si_status == 0:
        # In order: it has waited for its trackers itself. Looking for them takes milliseconds.
        _signal_group(pid, signal.SIGKILL)
    else:
        trackers.end_group(pid)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def cpu_time(pid: int) -> int | None:
    """CPU time that a process has used (ns); None if it is gone."""
    if pid <= 0:
        return None
    # The clock id of another process, as clock_getcpuclockid(3) makes it.
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except (OSError, AttributeError):
        return None


def has_runnable(pid: int) -> bool:
    """Whether a thread of a process runs or waits for a CPU alone; False where that is unknown."""
    state, threads = _state(str(pid))
    if state == b"R" or threads < 2:
        return state == b"R"
    try:
        others = os.listdir(f"/proc/{pid}/task")[:_MOST_LOOKED_AT]
    except OSError:  # it has ended
        return False
    return any(is_runnable(f"{pid}/task/{thread}") for thread in others)


def is_runnable(name: str) -> bool:
    """Whether a thread runs or waits for a CPU alone, by its directory in /proc; False where that
    is unknown."""
    return _state(name)[0] == b"R"


def _state(name: str) -> tuple[bytes, int]:
    """The state letter of a thread, and the number of threads of its process: see proc(5)."""
    try:
        with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
            fields = file.read(512).rpartition(b")")[2].split()
        return fields[0], int(fields[17])
    except (OSError, IndexError, ValueError):
        return b"", 0


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
