"""The program that keeps an allocation of Slurm while its caller lives. One process an allocation.

It runs `salloc` with a small step in the allocation, and sends that step a sign of life every few
seconds. Whatever ends releases the allocation:

- the caller: our stdin ends. The step's stdin ends then, with it the step, with it `salloc`. Where
  the job still waits, `salloc` is told.
- this program and `salloc`, both killed: the step hears nothing, and cancels its own job.
- nothing to do: granted, and no call for `idle` seconds. The caller writes "+" when a call begins,
  "-" when it ends. However long a job waits in the queue, it is kept.

It is run as a script, by the Python of the caller, and imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

#: Seconds between two signs of life, and after how many without one the step cancels its job.
BEAT, PATIENCE = 10.0, 30
#: What the step says first, before the number of its job.
HELD = "entangle-held"

#: The step in the allocation. No `read -t`: not every sh has it.
STEP = (
    f'echo "{HELD} $SLURM_JOB_ID"; '
    f'while [ -n "$(timeout {PATIENCE} head -c 1)" ]; do :; done; '
    'n=0; until scancel "$SLURM_JOB_ID" || [ "$n" -gt 60 ]; do n=$((n + 1)); sleep 2; done'
)
HOLD = ("srun", "--overlap", "--nodes=1", "--ntasks=1", "--mem=0", "--gres=none", "--unbuffered", "--quiet", "sh", "-c", STEP)

_JOB = re.compile(rb"[Jj]ob allocation (\d+)")


class Keeper:
    """`salloc`, and what was heard of it and of the caller."""

    def __init__(self, idle: float, command: Sequence[str]) -> None:
        self._idle = idle
        self._salloc = subprocess.Popen(list(command), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._salloc.stdin is not None
        assert self._salloc.stderr is not None
        self._beats, self._errors = self._salloc.stdin.fileno(), self._salloc.stderr.fileno()
        for fd in (self._beats, self._errors):
            os.set_blocking(fd, False)
        self._heard = b""
        self._job = b""
        self._granted = False
        self._calls, self._used = 0, time.monotonic()
        #: When the end began, by the monotonic clock, and the steps that are still to be taken.
        self._ending = 0.0
        self._steps = [(0.0, self._hang_up), (3.0, self._terminate), (8.0, self._cancel), (12.0, self._salloc.kill)]

    def keep(self) -> int:
        """Until `salloc` ends; gives its exit status."""
        caller, errors = [0], [self._errors]
        beat = 0.0
        while (status := self._salloc.poll()) is None:
            now = time.monotonic()
            if now >= beat and not self._ending:
                beat = now + BEAT
                with contextlib.suppress(OSError):  # full, or it has ended
                    os.write(self._beats, b".")
            pause = 0.2 if self._ending else beat - now
            if self._granted and not self._calls:
                pause = min(pause, max(0.1, self._used + self._idle - now))
            ready, _, _ = select.select(caller + errors + [_wake], [], [], max(0.0, pause))
            if _wake in ready:
                os.read(_wake, 4096)
            if self._errors in ready and not self._pass_on():
                errors = []
            if 0 in ready and not self._listen():
                caller = []
            self._end_or_not(bool(caller))
        while self._pass_on():
            pass
        return status if status >= 0 else 128 - status

    def _listen(self) -> bool:
        """Hear of calls. Whether the caller is there."""
        data = os.read(0, 4096)
        self._calls += data.count(b"+") - data.count(b"-")
        self._used = time.monotonic()
        return bool(data)

    def _pass_on(self) -> bool:
        """Pass on what `salloc` says. Whether there was something."""
        try:
            data = os.read(self._errors, 65536)
        except BlockingIOError:
            return False
        with contextlib.suppress(OSError):
            os.write(2, data)
        self._heard = (self._heard + data)[-4096:]
        if (found := _JOB.search(self._heard)) is not None:
            self._job = found[1]
        if not self._granted and b"Granted" in self._heard:
            self._granted, self._used = True, time.monotonic()
        return bool(data)

    def _end_or_not(self, caller: bool) -> None:
        now = time.monotonic()
        is_idle = self._granted and not self._calls and now - self._used > self._idle
        if not self._ending and (not caller or _told_to_end or is_idle):
            self._ending = now
        while self._ending and self._steps and now >= self._ending + self._steps[0][0]:
            self._steps.pop(0)[1]()

    def _hang_up(self) -> None:
        assert self._salloc.stdin is not None
        self._salloc.stdin.close()
        if not self._granted:
            self._terminate()

    def _terminate(self) -> None:
        self._salloc.terminate()

    def _cancel(self) -> None:
        if self._job:
            with contextlib.suppress(OSError):
                subprocess.Popen(["scancel", self._job.decode()], stdin=subprocess.DEVNULL)


_told_to_end: list[int] = []
_wake = -1


def main(arguments: Sequence[str]) -> int:
    """`idle` in seconds, then the command."""
    global _wake
    _wake, waker = os.pipe()
    for fd in (_wake, waker):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: _told_to_end.append(number))
    return Keeper(float(arguments[0]), arguments[1:]).keep()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
