"""Slurm's `sbatch` as a service: a job a call, in arrays where many are ready at once.

A script lies beside the logs of its jobs, and its lines say what each of them runs. Values do not
pass through them: logs have what `setup` and Slurm say, and why a job died.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from entangle._remote.transport.slurm import found
from entangle._remote.transport.slurm_allocation import job_name
from entangle._remote.transport.slurm_queue import environment
from entangle._services import OVER, PENDING, RUNNING, Limits, Service, State, Submission, asked
from entangle.errors import EntangleError, ProcessTerminatedException, ProcessTimeoutException, UnfitPythonError, UnreachableError

#: How long a command of Slurm may take (seconds).
PATIENCE = 20.0
#: Tickets in one command: a line of the shell has an end.
MANY = 500
#: States in which a job waits; and in which it has ended, with what to do about it.
WAITS = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
ENDED: dict[str, tuple[type[EntangleError], str]] = {
    "OUT_OF_MEMORY": (ProcessTerminatedException, "it needed more memory than it had; ask for more: memory="),
    "TIMEOUT": (ProcessTimeoutException, "its walltime was over; ask for a longer one: time="),
    "DEADLINE": (ProcessTimeoutException, "Slurm's deadline for it was over"),
    "PREEMPTED": (ProcessTerminatedException, "another job took its place; retry=1 submits it again"),
    "NODE_FAIL": (ProcessTerminatedException, "its node failed; retry=1 submits it again"),
    "BOOT_FAIL": (ProcessTerminatedException, "its node did not start; retry=1 submits it again"),
    "CANCELLED": (ProcessTerminatedException, "by scancel, or by whoever runs the cluster"),
    "REVOKED": (ProcessTerminatedException, "another cluster runs it"),
}
#: sbatch says so where a limit on submitted jobs is reached: of the user, of the QOS, of all.
_FULL = re.compile(r"(MaxSubmit|SubmitJobs|submit limit|JobLimit|MaxJobCount|temporarily unable to accept|Resource temporarily)", re.I)

_SCRIPT = """\
#!/bin/bash
# Written by entangle: one job a call. Line N is what the job of index N runs.
{setup}
eval "exec $(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {lines})"
"""


@dataclass(frozen=True)
class SlurmJobs(Service):
    """Jobs of Slurm with these options. Scripts and logs lie in `folder`, which both sides see.

    They outlive their caller: what has begun runs to its end.
    """

    #: The options of sbatch, the walltime (seconds), lines of the shell before the Python starts.
    stated: tuple[str, ...]
    time: float
    folder: str
    interpreter: str = "python3"
    setup: tuple[str, ...] = ()
    partition: str | None = None

    name: ClassVar[str] = "slurm"
    every: ClassVar[float] = 2.0
    grace: ClassVar[float] = 5.0
    leased: ClassVar[bool] = False

    @property
    def place(self) -> str:
        """The partition."""
        return f"slurm:{self.partition}" if self.partition else "slurm"

    @property
    def python(self) -> Sequence[str]:
        """The Python there."""
        return [self.interpreter]

    def limits(self) -> Limits:
        """The walltime."""
        return Limits(life=self.time)

    def about(self) -> dict[str, Any]:
        """Asked here, after the lines of `setup`; where that fails, in a job."""
        lines = [*self.setup, f'exec {shlex.quote(self.interpreter)} "$@"']
        here = ["bash", "-ec", "\n".join(lines), "bash"]
        try:
            return asked(here, self.place)
        except UnfitPythonError:
            pass
        try:
            return asked([found("srun"), "--quiet", *self.stated, *here], self.place, 600.0)
        except UnfitPythonError as error:
            raise UnfitPythonError(
                f"{self.place}: there is no Python at {self.interpreter!r}, or none that entangle can use; name the one there, "
                f"python='/path/to/python3', or load it, setup=['module load python']. {str(error)[-300:]}"
            ) from None

    def submit(self, messages: Sequence[Submission]) -> Sequence[str]:
        """One array of all, or smaller ones where Slurm takes no more jobs at once."""
        tickets: list[str] = []
        size = min(len(messages), _largest_array())
        while len(tickets) < len(messages):
            batch = messages[len(tickets) : len(tickets) + size]
            try:
                job = self._submit(batch)
            except _Full as full:
                if size > 1:
                    size = math.ceil(size / 2)
                    continue
                if not tickets and not _bases:  # the jobs that are too many are not ours
                    raise UnreachableError(
                        f"{self.place}: Slurm takes no job: {full}. Wait until others of yours have ended (squeue --me), "
                        "or ask for a higher limit"
                    ) from None
                break
            tickets += [f"{job}_{index}" for index in range(len(batch))]
        return tickets

    def _submit(self, batch: Sequence[Submission]) -> str:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        base = os.path.join(self.folder, f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{os.urandom(3).hex()}")
        with open(f"{base}.lines", "x") as lines:
            lines.writelines(f"{shlex.join(message.command)}\n" for message in batch)
        failed = [f"{line} || {{ echo {shlex.quote(f'entangle: the setup line {line!r} failed')} >&2; exit 97; }}" for line in self.setup]
        with open(f"{base}.sh", "x") as script:
            script.write(_SCRIPT.format(setup="\n".join(failed), lines=shlex.quote(lines.name)))
        command = [
            found("sbatch"),
            "--parsable",
            "--no-requeue",
            f"--job-name={job_name(message.name for message in batch)}",
            f"--array=0-{len(batch) - 1}",
            f"--output={base}-%a.log",
            *self.stated,
            script.name,
        ]
        done = _run(command)
        if done.returncode:
            for file in (lines.name, script.name):
                os.unlink(file)
            said = done.stderr.strip()
            if _FULL.search(said):
                raise _Full(said)
            raise UnreachableError(f"{self.place}: sbatch has failed: {said[-600:]}\nThe command was: {shlex.join(command)}")
        job = done.stdout.strip().partition(";")[0]
        _bases[job], _left[job] = base, len(batch)
        return job

    def outcomes(self, tickets: Collection[str]) -> Mapping[str, State]:
        """One `squeue`; for what it has forgotten, one `sacct` where there is one."""
        jobs = ",".join(sorted({ticket.partition("_")[0] for ticket in tickets}))
        command = [found("squeue"), "--noheader", "--array", "--states=all", f"--jobs={jobs}", "--format=%i|%T|%r"]
        done = _run(command)
        if done.returncode and "Invalid job id" not in done.stderr:
            raise UnreachableError(f"{self.place}: squeue has failed: {done.stderr.strip()[-300:]}")
        states = {ticket: _state(state, reason) for ticket, state, reason in _rows(done.stdout)}
        lost = [ticket for ticket in tickets if ticket not in states]
        if lost and shutil.which("sacct"):
            for some in _in_pieces(lost):
                asking = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,Reason"]
                told = _run([*asking, f"--jobs={','.join(some)}"])
                states.update({ticket: _state(state, reason) for ticket, state, reason in _rows(told.stdout)})
        return {ticket: states[ticket] for ticket in tickets if ticket in states}

    def cancel(self, tickets: Collection[str]) -> None:
        """One `scancel` for many."""
        for some in _in_pieces(list(tickets)):
            _run([found("scancel"), "--quiet", *some])

    def logs(self, ticket: str) -> str:
        """The end of its log."""
        _, log = self._files(ticket)
        with open(log, encoding="utf-8", errors="replace") as file:
            return file.read()[-2000:]

    def kept(self, ticket: str) -> str:
        """Its script and its log."""
        script, log = self._files(ticket)
        return f"job {ticket} of {self.place}; script: {script}; log: {log}" if script else ""

    def forget(self, tickets: Collection[str]) -> None:
        """Remove their logs, and the script when all its jobs have given values."""
        for ticket in tickets:
            os.unlink(self._files(ticket)[1])
            job = ticket.partition("_")[0]
            _left[job] -= 1
            if not _left[job]:
                for suffix in ("sh", "lines"):
                    os.unlink(f"{_bases[job]}.{suffix}")

    def _files(self, ticket: str) -> tuple[str, str]:
        job, _, index = ticket.partition("_")
        base = _bases.get(job, "")
        return (f"{base}.sh", f"{base}-{index}.log") if base else ("", "")


class _Full(Exception):
    """Slurm takes no more jobs at the moment."""


#: Where the script and the logs of each job of this process lie: the path, without its end.
_bases: dict[str, str] = {}
#: How many jobs of each array have not given a value.
_left: dict[str, int] = {}


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    return subprocess.run(command, **options, env=environment(), timeout=PATIENCE, check=False)


def _rows(text: str) -> Iterator[tuple[str, str, str]]:
    for line in text.splitlines():
        ticket, _, rest = line.strip().partition("|")
        state, _, reason = rest.partition("|")
        if state:
            yield ticket, state.split()[0], reason  # sacct says "CANCELLED by 0"


def _state(state: str, reason: str) -> State:
    """What a state of Slurm's is to a call."""
    if state in WAITS:
        return State(PENDING, f"pending because {reason}" if reason not in ("", "None") else "pending")
    if state == "FAILED" or state == "COMPLETED" or state in ENDED:
        error, hint = ENDED.get(state, (ProcessTerminatedException, ""))
        told = f"{state} ({reason})" if reason not in ("", "None") and reason.upper() != state.replace("_", "") else state
        return State(OVER, f"{told}: {hint}" if hint else told, error)
    return State(RUNNING, "" if state == "RUNNING" else state.lower())


def _in_pieces(tickets: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(tickets), MANY):
        yield tickets[at : at + MANY]


_sizes: list[int] = []


def _largest_array() -> int:
    """How many jobs an array may have: MaxArraySize."""
    if not _sizes:
        told = re.search(r"MaxArraySize\s*=\s*(\d+)", _run([found("scontrol"), "show", "config"]).stdout)
        _sizes.append(max(1, int(told[1]) - 1) if told else 1000)
    return _sizes[0]
