"""An allocation of Slurm: asked for, granted, ended. `slurm_keeper.py` keeps it for us."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from entangle._remote.transport import slurm_keeper
from entangle._remote.transport.slurm_queue import environment, look_up, node_names
from entangle._remote.wire.byte_stream import read_now, wait_ready
from entangle._worker import janitor
from entangle.errors import UnreachableError

#: Seconds for an allocation to end once it is released.
_GRACE = 15.0
#: What is kept of what `salloc` says (bytes).
_TAIL = 4096
#: How many tasks are in the name of a job, and how many characters of their names.
_NAMED, _LONGEST_NAME = 3, 80

_serials = itertools.count(1)


@dataclass(frozen=True)
class Asked:
    """What an allocation is asked for with. `time` is in seconds, `memory` as Slurm writes it."""

    time: float
    partition: str | None = None
    cpus: int = 1
    memory: str | None = None
    gres: str | None = None
    nodes: int = 1
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    jobs: int = 1
    python: str = "python3"

    @property
    def place(self) -> str:
        """The partition."""
        return f"slurm:{self.partition}" if self.partition else "slurm"

    def salloc(self, name: str = "") -> list[str]:
        """The command that asks for an allocation of that name, without what runs in it."""
        minutes = max(1, math.ceil(self.time / 60))
        stated = {
            "job-name": name or None,
            "partition": self.partition,
            "time": str(minutes),
            "nodes": str(self.nodes),
            "ntasks-per-node": "1",
            "cpus-per-task": str(self.cpus),
            "mem": self.memory,
            "gres": self.gres,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            **dict(self.options),
        }
        return [
            "salloc",
            "--no-bell",
            *(f"--{name}={value}" if value else f"--{name}" for name, value in stated.items() if value is not None),
        ]


def job_name(tasks: Iterable[str]) -> str:
    """What `squeue` calls a job for these tasks: by some of their names."""
    named = sorted(set(tasks))
    more = [f"+{len(named) - _NAMED}"] if len(named) > _NAMED else []
    told = ",".join([*named[:_NAMED], *more])
    return "".join(one if one.isprintable() else "?" for one in f"entangle:{told[:_LONGEST_NAME]}")


class Allocation:
    """One `salloc`. It is pending, then granted, then over; `look` sees which.

    The thread that asks for it looks; no thread of ours watches it.
    """

    def __init__(self, options: Asked, idle: float, name: str) -> None:
        self.options = options
        self.serial = next(_serials)
        #: The number of the job; "" until Slurm has said it.
        self.job = ""
        #: The names of the nodes, once it is granted.
        self.nodes: tuple[str, ...] = ()
        self.granted = self.over = False
        #: Why it waits, by Slurm ("Resources", "Priority" …).
        self.pending = ""
        self.asked = time.monotonic()
        #: When its walltime ends, and how long it has waited (seconds, of the monotonic clock).
        self.until = float("inf")
        self.waited = 0.0
        self._words = self._stdout = b""
        self._guard = threading.Lock()
        self._pid = os.getpid()
        keeper = slurm_keeper.__file__
        command = [sys.executable, "-I", "-S", keeper, str(idle), *options.salloc(name), *slurm_keeper.HOLD]
        try:
            with janitor.off_duty():
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=environment(),
                    bufsize=0,
                    start_new_session=True,
                )
        except OSError as error:
            raise UnreachableError(f"@slurm: the keeper of an allocation cannot be started: {error}") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._tells, self._reads, self._errors = (
            file.fileno() for file in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        for fd in (self._tells, self._reads, self._errors):
            os.set_blocking(fd, False)

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to look at. Whether there is."""
        return bool(wait_ready([self._reads, self._errors], [], seconds))

    def look(self) -> None:
        """See what has become of it."""
        with self._guard:
            if self.over:
                return
            for fd in (self._errors, self._reads):
                while data := read_now(fd, 65536):
                    if fd == self._errors:
                        self._words = (self._words + data)[-_TAIL:]
                    else:
                        self._stdout += data
                if data == b"" and fd == self._reads:
                    self.over = True
            if not self.job and (found := re.search(rb"[Jj]ob allocation (\d+)", self._words)) is not None:
                self.job = found[1].decode()
            held = re.search(rb"%s (\d+)\n" % slurm_keeper.HELD.encode(), self._stdout)
            if held is not None and not self.granted:
                self.job = held[1].decode()
                self._see_grant()

    def _see_grant(self) -> None:
        now = time.monotonic()
        state = look_up([self.job]).get(self.job)
        self.waited = now - self.asked
        self.nodes = node_names(state.nodes) if state is not None else ()
        self.until = now + (state.left if state is not None and state.left is not None else self.options.time)
        self.pending = ""
        self.granted = True

    def words(self) -> str:
        """What `salloc` has said."""
        return self._words.decode("utf-8", "replace").strip()

    def tell(self, word: bytes) -> None:
        """Tell the keeper that a call begins ("+") or has ended ("-")."""
        with contextlib.suppress(OSError, ValueError):
            os.write(self._tells, word)

    def release(self) -> None:
        """Have it end. Does not wait."""
        with self._guard:
            self.over = True
            if self._process.stdin is not None and not self._process.stdin.closed:
                self._process.stdin.close()

    def close(self) -> None:
        """Release it, and wait until it is gone."""
        self.release()
        if self._pid != os.getpid():
            return
        until = time.monotonic() + _GRACE
        while self._process.poll() is None and time.monotonic() < until:
            # Read on: what has no reader may block.
            for fd in wait_ready([self._reads, self._errors], [], 0.05):
                if not read_now(fd, 65536):
                    time.sleep(0.01)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for file in (self._process.stdout, self._process.stderr):
            if file is not None:
                file.close()

    def abandon(self) -> None:
        """In a forked child: close the copies of the descriptors, and nothing else."""
        self.over = True
        for file in (self._process.stdin, self._process.stdout, self._process.stderr):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        self._process.returncode = 0
