"""Slurm: allocations, and agents in them. Each agent is a step, whose stream `srun` carries."""

from __future__ import annotations

import re
import shutil
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from entangle._remote.transport import Transport, did_not_start
from entangle._remote.transport.slurm_allocation import Allocation, Asked
from entangle._remote.transport.slurm_queue import environment, why_ended
from entangle._remote.wire.byte_stream import ByteStream, ProcessStream
from entangle.errors import FarError, LinkLostError, OptionError, UnfitPythonError, UnreachableError

#: The exit status of a setup line that failed.
_SETUP_FAILED = 97


@dataclass(frozen=True)
class SlurmTransport(Asked, Transport):
    """The options of @slurm: what is asked for, and how a Python is started there."""

    name: ClassVar[str] = "slurm"
    ends_with_run: ClassVar[bool] = True

    def step(self, allocation: Allocation, node: int) -> SlurmStep:
        """The transport to an agent on a node of an allocation."""
        return SlurmStep(allocation, node)

    def open(self, arguments: Sequence[str]) -> ByteStream:
        """Not by itself: an agent needs an allocation. Raises UnreachableError."""
        raise UnreachableError(f"{self.place}: it is reached by a call of @slurm alone, which asks for an allocation first")


@dataclass(frozen=True, eq=False)
class SlurmStep(Transport):
    """An agent on one node of an allocation."""

    allocation: Allocation
    node: int

    name: ClassVar[str] = "slurm"
    ends_with_run: ClassVar[bool] = True
    nudges: ClassVar[bool] = True

    @property
    def key(self) -> Hashable:
        """One agent a node of an allocation."""
        return ("SlurmStep", self.allocation.serial, self.node)

    @property
    def place(self) -> str:
        """The node."""
        return f"slurm:{self._node}"

    @property
    def timeout(self) -> float:
        """A node may have to start, and to mount its file systems."""
        return 120.0

    @property
    def ticket(self) -> str:
        """The job of the allocation."""
        return f"job {self.allocation.job}" if self.allocation.job else ""

    @property
    def _node(self) -> str:
        nodes = self.allocation.nodes
        return nodes[self.node] if self.node < len(nodes) else self.allocation.options.partition or "job"

    def open(self, arguments: Sequence[str]) -> ByteStream:
        """Start a step with the agent in it."""
        options = self.allocation.options
        program = found("srun")
        placed = [f"--nodelist={self._node}"] if len(self.allocation.nodes) > 1 else []
        step = ["--overlap", "--nodes=1", "--ntasks=1", f"--cpus-per-task={options.cpus}", "--mem=0", "--unbuffered", "--quiet", *placed]
        # Else srun takes the memory and the time of a step for those of a job of its own.
        command = [program, f"--jobid={self.allocation.job}", *step, "--job-name=entangle-agent", *self._python(arguments)]
        return ProcessStream(command, environment())

    def _python(self, arguments: Sequence[str]) -> list[str]:
        options = self.allocation.options
        lines = [f"{{ {line}\n}} || {{ echo {_quoted(_failed(line))} >&2; exit {_SETUP_FAILED}; }}" for line in options.setup]
        script = "\n".join([*lines, 'exec "$0" "$@"'])
        # `module` and `conda` are functions that a login shell defines.
        shell = ["bash", "-l", "-c"] if lines else ["sh", "-c"]
        return [*shell, script, options.python, *arguments]

    def diagnose(self, status: int | None, words: str) -> FarError:
        """The error for a step that did not start a Python."""
        if status == _SETUP_FAILED or "entangle: the setup line" in words:
            return UnreachableError(f"{self.told()}: {words.strip()[-600:]}")
        if status in (126, 127) or re.search(r"(not found|No such file or directory|Permission denied)", words):
            return UnfitPythonError(
                f"{self.told()}: there is no Python at {self.allocation.options.python!r}: {words.strip()[-300:]}. Name the one there: "
                f"@slurm(python='/path/to/python3'), or load it: @slurm(setup=['module load python'])"
            )
        ended = self.ended(status, words)
        return ended if "job ended" in str(ended) else did_not_start(self.told(), status, words)

    def told(self) -> str:
        """The step, for errors: its node and job."""
        return f"{self.place} (job {self.allocation.job or '?'})"

    def ended(self, status: int | None, words: str) -> FarError:
        """The error for an agent that has ended, with Slurm's reason."""
        said = "; its stderr ended with: " + " / ".join(words.strip().splitlines()[-6:]) if words.strip() else ""
        if re.search(r"oom-kill|Out Of Memory|exceeded memory limit", words, re.IGNORECASE):
            limit = self.allocation.options.memory or "what the partition gives"
            return LinkLostError(
                f"{self.told()}: OUT_OF_MEMORY: the calls needed more than the allocation has ({limit}); ask for more: memory={said}"
            )
        why = why_ended(self.allocation.job) if self.allocation.job else ""
        if why:
            hint = _HINTS.get(why.split()[0], "")
            heard = self.allocation.words()
            keeper = "; salloc said: " + " / ".join(heard.splitlines()[-4:]) if heard else ""
            return LinkLostError(f"{self.told()}: the job ended during the call: {why}{hint}{said}{keeper}")
        how = "" if status is None else f" (exit status {status})" if status >= 0 else f" (signal {-status})"
        return LinkLostError(f"{self.told()}: the agent or the connection to it ended during the call{how}; the job goes on{said}")


def refused(allocation: Allocation) -> FarError:
    """The error for an allocation that was never granted."""
    words = allocation.words()
    place = allocation.options.place
    if allocation.job:
        why = why_ended(allocation.job) or "it ended"
        return LinkLostError(f"{place}: job {allocation.job} ended before it began: {why}; salloc said: {words[-300:]}")
    return UnreachableError(f"{place}: Slurm grants no allocation: {words[-600:] or 'salloc ended without a word'}")


_HINTS = {
    "TIMEOUT": ", the walltime of the allocation was over; say a longer time=, or a timeout: calls that do not fit go to the next one",
    "PREEMPTED": ", another job took its place; retry=1 below sends the call again",
    "NODE_FAIL": ", a node failed; retry=1 below sends the call again",
    "CANCELLED": ", by scancel or by whoever runs the cluster",
}


def found(program: str) -> str:
    """The path of a program of Slurm. Raises UnreachableError."""
    path = shutil.which(program)
    if path is None:
        raise UnreachableError(
            f"@slurm: there is no {program} on PATH; run this on a machine that may submit jobs (a login node), or install Slurm's "
            f"client programs there (Debian: apt install slurm-client; others: the package slurm)"
        )
    return path


def _failed(line: str) -> str:
    return f"entangle: the setup line {line!r} failed"


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)


def check_line(line: str) -> None:
    """Refuse a setup line that is no line. Raises OptionError."""
    if "\n" in line or "\0" in line:
        raise OptionError(f"@slurm: setup={line!r}; write each line of the shell as a string of its own")
