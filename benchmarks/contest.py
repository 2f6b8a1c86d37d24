"""Runs contestants in both orders: ours first, then the peers first. Every visit is a process of
its own.

Processes that a visit leaves are ended before the next visit begins: this process adopts orphans
(``PR_SET_CHILD_SUBREAPER``), so that it finds every daemon of a peer, and none disturbs the next
contestant.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS
from benchmarks.pace import Pace, pace
from benchmarks.row import Measured, Row
from benchmarks.watch import children, tree

ROOT = Path(__file__).resolve().parent.parent
PR_SET_CHILD_SUBREAPER = 36
LIMIT = 240.0
"""Seconds after which a visit is ended and its missing rows are errors."""

DISTURBED = 0.2
"""CPUs that processes of somebody else may use during a visit before it is said."""


@dataclass
class Tally:
    """What one contestant measured in one row, by the order of visits."""

    ours_first: list[Measured] = field(default_factory=list)
    peers_first: list[Measured] = field(default_factory=list)
    error: str | None = None
    disturbed: float = 0.0
    """How many CPUs processes of somebody else used during a visit, at most."""
    paces: list[Pace] = field(default_factory=list)
    """How fast the machine was before each visit."""

    def values(self, metric: str) -> list[float]:
        """Give the values of a metric from all rounds."""
        return [one[metric] for one in (*self.ours_first, *self.peers_first) if metric in one]


Tallies = dict[str, dict[str, Tally]]
"""Of each row, by its key: of each contestant, by name."""


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_leftovers() -> int:
    """End every process below this one and give how many there were."""
    left = [pid for pid in tree(os.getpid()) if pid != os.getpid()]
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    while children(os.getpid()):
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    return len(left)


def settled() -> int:
    """Give the helper processes of a visit a moment to end by themselves, end those that still run,
    and give how many there were."""
    deadline = time.monotonic() + 1.0
    while children(os.getpid()) and time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.02)
        except ChildProcessError:
            break
    return end_leftovers()


def cpu_seconds() -> tuple[float, float]:
    """Give the seconds that the CPUs of this process have worked so far, and those of them that
    descendants used."""
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    worked = 0.0
    with open("/proc/stat", encoding="utf-8") as file:
        for line in file:
            name, *ticks = line.split()
            if name in mine:
                user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, ticks[:8])
                worked += user + nice + system + irq + softirq + steal
    descendants = resource.getrusage(resource.RUSAGE_CHILDREN)
    return worked / os.sysconf("SC_CLK_TCK"), descendants.ru_utime + descendants.ru_stime


def visit(name: str, keys: Sequence[str], rounds: range, say: Callable[[str], None]) -> dict[str, Any]:
    """Let one contestant run some rows in a fresh process; give for each row a list of rounds, or
    the error as a string."""
    reader, writer = os.pipe()
    modules = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Parsl looks for its own programs on PATH, which has this environment only if it was activated.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = [sys.executable, "-m", "benchmarks.arena", str(writer), str(rounds.start), str(rounds.stop), name, *keys]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output,
        # Files that a contestant leaves are removed with it. The name is short, since the path of a
        # socket below it must be.
        tempfile.TemporaryDirectory(prefix="b-", ignore_cleanup_errors=True) as room,
    ):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                **os.environ,
                "TMPDIR": room,
                "ENTANGLE_RECORD_DIR": os.path.join(room, "records"),
                "PATH": programs,
                "PYTHONPATH": modules,
                "PYTHONWARNINGS": "ignore",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[writer],
        )
        os.close(writer)
        late = False
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            late = True
        left = settled()
        with os.fdopen(reader, encoding="utf-8") as lines:
            said = [json.loads(line) for line in lines if line.endswith("\n")]
        found: dict[str, Any] = {one["row"]: one.get("rounds", one.get("error")) for one in said if "row" in one}
        if any("missing" in one for one in said):
            return dict.fromkeys(keys, "not installed")
        for key in keys:
            if key not in found:
                found[key] = f"not done after {LIMIT:.0f} s" if late else f"ended with status {process.returncode}"
        if any(isinstance(one, str) for one in found.values()):
            output.seek(0)
            say("\n".join(["    " + line.rstrip() for line in output][-25:]))
    if left and name.startswith("entangle"):
        say(f"    {name} left {left} processes running")
    return found


def measured_visit(name: str, keys: Sequence[str], rounds: range, say: Callable[[str], None]) -> tuple[float, dict[str, Any]]:
    """Do what ``visit`` does, and give how many CPUs other processes used meanwhile."""
    began, before = time.monotonic(), cpu_seconds()
    found = visit(name, keys, rounds, say)
    took, after = time.monotonic() - began, cpu_seconds()
    if not CONTESTANTS[name].waits_for_children:
        return 0.0, found
    return max(0.0, (after[0] - before[0] - after[1] + before[1]) / took), found


def wait_for_calm(longest: float = 60.0) -> None:
    """Return when no process has used the CPUs for a second, or after ``longest`` seconds."""
    deadline = time.monotonic() + longest
    while time.monotonic() < deadline:
        before = cpu_seconds()[0]
        time.sleep(1.0)
        if cpu_seconds()[0] - before < DISTURBED:
            return


def hold(
    rows: Sequence[Row], rounds: int, say: Callable[[str], None], *, only_ours: bool = False, skip: Sequence[str] = (), again: int = 0
) -> Tallies:
    """Run the rows in both orders.

    Takes how many rounds each contestant runs of each row (half of them in either order), a
    function that shows a line, names of contestants to leave out, and how often a disturbed visit
    is repeated. Gives everything measured.
    """
    adopt_orphans()
    tallies: Tallies = {row.key: {} for row in rows}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    half = (rounds + 1) // 2
    for members in groups.values():
        ours = list(dict.fromkeys(name for row in members for name in row.ours))
        others = [] if only_ours else list(dict.fromkeys(name for row in members for name in row.others))
        order = [name for name in (*ours, *others) if name not in skip]
        for backwards, part in ((False, range(half)), (True, range(half, rounds))):
            if not part:
                continue
            for name in reversed(order) if backwards else order:
                keys = [row.key for row in members if name in row.contestants]
                before = pace()
                began = time.monotonic()
                tries = [measured_visit(name, keys, part, say)]
                while tries[-1][0] >= DISTURBED and len(tries) <= again:
                    say(f"  {' '.join(keys)} · {name} · once more: somebody else used {tries[-1][0]:.1f} CPUs")
                    wait_for_calm()
                    tries.append(measured_visit(name, keys, part, say))
                foreign, found = min(tries, key=lambda one: one[0])
                took = time.monotonic() - began
                for key in keys:
                    tally = tallies[key].setdefault(name, Tally())
                    tally.disturbed = max(tally.disturbed, foreign)
                    tally.paces.append(before)
                    if isinstance(found[key], str):
                        tally.error = found[key]
                    else:
                        (tally.peers_first if backwards else tally.ours_first).extend(found[key])
                which = "peers first" if backwards else "ours first"
                trouble = "".join(f"; {key}: {found[key]}" for key in keys if isinstance(found[key], str))
                others_work = f"; somebody else used {foreign:.1f} CPUs" if foreign >= DISTURBED else ""
                say(f"  {' '.join(keys)} · {which} · {name} · {took:.1f} s{others_work}{trouble}")
    return tallies
