"""What Slurm says of jobs: one `squeue` for all that are asked for, and why one has ended."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass

from entangle._worker import janitor

#: Seconds that a command of Slurm may take.
_PATIENCE = 20.0
#: Seconds until Slurm has the reason of an end; and the pause between two looks.
_GRACE, _PAUSE = 8.0, 0.25
#: States of a job that has not ended, or whose end is not told yet.
_UNDER_WAY = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "RESIZING", "")


@dataclass(frozen=True)
class JobState:
    """A job as `squeue` sees it. `left` is in seconds, None where there is no end."""

    state: str
    reason: str
    left: float | None
    nodes: str


def environment() -> dict[str, str]:
    """The environment for commands of Slurm, which is that of agents too.

    Without the settings of a job that we run in, of this Python, and of entangle here: as by ssh,
    those of the other side hold there.
    """
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    dropped = ("SLURM_", "SALLOC_", "SBATCH_", "ENTANGLE_", "PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__")
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(dropped)}


def _said(*command: str) -> str:
    """What a command prints; "" where it fails or there is none."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired), janitor.off_duty():
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment(),
            timeout=_PATIENCE,
            check=False,
        )
        return done.stdout if done.returncode == 0 else ""
    return ""


def look_up(jobs: Iterable[str]) -> dict[str, JobState]:
    """The states of these jobs, by one `squeue`. Jobs that it does not know are left out."""
    told = _said("squeue", "--noheader", "--states=all", f"--jobs={','.join(jobs)}", "--format=%i|%T|%r|%L|%N")
    found = {}
    for line in told.splitlines():
        parts = line.strip().split("|")
        if len(parts) == 5:
            found[parts[0]] = JobState(parts[1], parts[2], seconds_of(parts[3]), parts[4])
    return found


def node_names(listed: str) -> tuple[str, ...]:
    """The nodes of a list such as `n[1-2]`."""
    if not re.search(r"[\[,]", listed):
        return (listed,) if listed else ()
    return tuple(_said("scontrol", "show", "hostnames", listed).split()) or (listed,)


def seconds_of(text: str) -> float | None:
    """The seconds of a time such as `1-02:03:04`, `02:03` or `5`, which are minutes; None if it is
    none."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if found is None:
        return None
    days, first, second, third = (None if part is None else int(part) for part in found.groups())
    if days is not None:
        return days * 86400.0 + (first or 0) * 3600 + (second or 0) * 60 + (third or 0)
    if second is None:
        return (first or 0) * 60.0
    return (first or 0) * 60.0 + second if third is None else (first or 0) * 3600.0 + second * 60 + third


def why_ended(job: str) -> str:
    """The state that a job has ended in (`TIMEOUT`, `NODE_FAIL` …), and Slurm's reason if it gives
    one; "" where Slurm says that it goes on, or does not know it.

    Waits a few seconds for it: a step ends before its job does.
    """
    until = time.monotonic() + _GRACE
    while True:
        state, reason = _state_of(job)
        if state not in _UNDER_WAY or time.monotonic() > until:
            break
        time.sleep(_PAUSE)
    if state in _UNDER_WAY:
        return ""
    return f"{state} ({reason})" if reason and reason.lower().replace("_", "") not in ("none", state.lower().replace("_", "")) else state


def _state_of(job: str) -> tuple[str, str]:
    """The state and reason of a job by the controller, or where it has forgotten, by accounting."""
    told = _said("scontrol", "--oneliner", "show", "job", job)
    state = re.search(r"\bJobState=(\S+)", told)
    if state is not None:
        reason = re.search(r"\bReason=(\S+)", told)
        return state[1], reason[1] if reason else ""
    told = _said("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State,Reason").strip()
    state_there, _, reason_there = told.partition("|")
    return (state_there.split() or [""])[0], reason_there
