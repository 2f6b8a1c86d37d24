"""A complete small service: jobs that are processes of this machine. docs/services.md shows it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from entangle.service import OVER, PENDING, RUNNING, Limits, Service, State, Submission

#: By ticket: the processes that were started, and the messages that wait.
_started: dict[str, subprocess.Popen[bytes]] = {}
_waiting: dict[str, Submission] = {}
#: Message ids are unique only within one mailbox, so tickets have numbers of their own.
_numbers = itertools.count(1)


@dataclass(frozen=True)
class LocalJobs(Service):
    """Each message is a process of this machine, at most `jobs` at a time. Logs go to a folder."""

    folder: str
    jobs: int = 4
    interpreter: str = sys.executable

    name = "local"
    every = 0.1
    grace = 1.0

    @property
    def python(self) -> Sequence[str]:
        return [self.interpreter]

    def submit(self, messages: Sequence[Submission]) -> Sequence[str]:
        tickets = [f"{os.getpid()}-{next(_numbers)}" for _ in messages]
        _waiting.update(zip(tickets, messages, strict=True))
        self._start()
        return tickets

    def _start(self) -> None:
        while _waiting and sum(process.poll() is None for process in _started.values()) < self.jobs:
            ticket = next(iter(_waiting))
            with open(self._log(ticket), "wb") as log:
                command = _waiting.pop(ticket).command
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            _started[ticket] = process
            threading.Thread(target=process.wait, daemon=True).start()  # reaps it

    def outcomes(self, tickets: Collection[str]) -> Mapping[str, State]:
        self._start()
        states = {}
        for ticket in tickets:
            if ticket in _waiting:
                states[ticket] = State(PENDING, f"{self.jobs} jobs run already")
            elif ticket in _started:
                status = _started[ticket].poll()
                how = f"killed by signal {-status}" if status is not None and status < 0 else f"exit status {status}"
                states[ticket] = State(RUNNING) if status is None else State(OVER, how)
        return states

    def cancel(self, tickets: Collection[str]) -> None:
        for ticket in tickets:
            _waiting.pop(ticket, None)
            if ticket in _started and _started[ticket].poll() is None:
                with contextlib.suppress(ProcessLookupError):  # it has exited meanwhile
                    os.killpg(_started[ticket].pid, signal.SIGTERM)

    def logs(self, ticket: str) -> str:
        with open(self._log(ticket), encoding="utf-8", errors="replace") as log:
            return f"{log.name}:\n{log.read()[-2000:]}"

    def limits(self) -> Limits:
        return Limits(life=86400.0)

    def _log(self, ticket: str) -> str:
        return os.path.join(self.folder, f"local-job-{ticket}.log")
