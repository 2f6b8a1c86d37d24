"""Killing workers on purpose: graphs in which any node may be the victim, and a killer process."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from entangle._shared.table import BUSY, RESTING, SLOT, STATE
from entangle.process import ProcessTerminatedException, process

from .evidence import note, notes, pids_in, text_of

NODES = 200

#: Runs beside the test process. Reads one order a line, kills one process, and answers with its
#: number.
_KILLER = """
import os, random, signal, sys, time

def children(parent, server=False):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, ppid = file.read().rpartition(b")")[2].split()[:2]
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    command = file.read()
            except OSError:
                continue
            if int(ppid) != parent or state in b"ZX" or int(name) in spared:
                continue
            if b"forkserver" in command and not server:
                found += children(int(name), server=True)  # these have its command
            else:
                found.append(int(name))
    return found

def noted(path):
    try:
        with open(path) as file:
            text = file.read()
    except OSError:
        return []
    return [int(line.split()[-1]) for line in text.splitlines()] if text.endswith("\\n") else []

parent, spared = int(sys.argv[1]), ()
spared = children(parent)  # servers of other tests, say
for line in sys.stdin:
    order, argument = line.split(maxsplit=1)
    end = time.monotonic() + 20
    pids = []
    while not pids and time.monotonic() < end:
        pids = noted(argument.strip()) if order == "noted" else children(parent)
    killed = 0
    if pids:
        chance = random.Random(argument)
        if order == "any":
            time.sleep(chance.uniform(0, 0.06))
            pids = children(parent)
        if pids:
            killed = chance.choice(pids)
            try:
                os.kill(killed, signal.SIGKILL)
            except ProcessLookupError:
                killed = 0
    print(killed, flush=True)
"""


class Killer:
    """A process that kills workers of this one, on a signal in a file or at random. Use it in a
    `with`."""

    def __enter__(self) -> Killer:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _KILLER, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def _order(self, words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()

    def kill_when_noted(self, path: Path) -> None:
        """Kill the process whose number appears in this file."""
        self._order(f"noted {path}")

    def kill_any_child(self, seed: int) -> None:
        """Kill a child of this process at a random moment after the first child has appeared."""
        self._order(f"any {seed}")

    def killed(self) -> list[int]:
        """What the last order killed: one process, or none if it came too late."""
        assert self._process.stdout is not None
        return [pid] if (pid := int(self._process.stdout.readline())) else []


def begun_workers(stream: Any) -> list[int]:
    """The workers of a stream that have begun; some may be dead already. If all workers of a run
    are killed before they begin, the run fails, as it should: so tests kill only these."""
    supervisor = stream._pump.run.supervisor
    if supervisor is None:
        return []
    states = supervisor.table.slots
    # Not `pid`: it reads the message that is meant for the supervisor.
    workers = [worker for worker in list(supervisor.processes.values()) if worker._pid > 0]
    return [worker._pid for worker in workers if states[worker.slot * SLOT + STATE] in (BUSY, RESTING)]


def plain(value: int, *others: int) -> int:
    """A node that takes a little time."""
    time.sleep(0.002)
    return (value * 31 + sum(others)) % 1_000_003


def victim(folder: str, value: int, *others: int) -> int:
    """A node that at its first attempt notes its process and waits to be killed. At the second it
    works as `plain`."""
    path = os.path.join(folder, "victim")
    if not notes(path):
        note(path, os.getpid())
        time.sleep(30)
    return plain(value, *others)


def victims(folder: Path) -> list[int]:
    """The processes that have run the victim in this folder."""
    return pids_in(folder / "victim")


def graph_with_a_victim(folder: Path | None, seed: int, retry: int) -> tuple[Any, int]:
    """A random graph of 200 nodes, and the value that it must return. With a folder, one node is
    the victim."""
    chance = random.Random(seed)
    options: dict[str, Any] = {"retry": retry} if retry else {}
    task = process(**options)(plain)
    chosen = chance.randrange(NODES) if folder else -1
    calls: list[Any] = []
    values: list[int] = []
    taken: set[int] = set()
    for node in range(NODES):
        some = [chance.randrange(node) for _ in range(chance.choice((0, 0, 1, 2, 3)))] if node else []
        if node == NODES - 1:
            some = [n for n in range(NODES - 1) if n not in taken]  # the root takes what no other node takes
        taken.update(some)
        others = [values[n] for n in some]
        values.append((node * 31 + sum(others)) % 1_000_003)
        if node == chosen:
            calls.append(process(**options)(victim)(str(folder), node, *(calls[n] for n in some)))
        else:
            calls.append(task(node, *(calls[n] for n in some)))
    return calls[-1], values[-1]


def kill_and_compare(killer: Killer, folder: Path, seed: int) -> None:
    """Kill the worker that runs the victim, once. The graph must still return the right value."""
    folder.mkdir()
    call, expected = graph_with_a_victim(folder, seed, retry=3)
    killer.kill_when_noted(folder / "victim")
    assert call() == expected, f"seed {seed}"
    assert killer.killed() == victims(folder), f"seed {seed}"


def kill_at_any_moment(killer: Killer, seeds: range, retry: int) -> None:
    """For each seed, kill a random worker some time after the first worker has started.

    More than half as many kills as seeds must hit a worker. A busy machine may need more runs for
    that."""
    hits, tries = 0, 0
    for seed in range(seeds.start, seeds.start + 5 * len(seeds)):
        tries += 1
        call, expected = graph_with_a_victim(None, seed=seed, retry=retry)
        killer.kill_any_child(seed)
        told = ""
        try:
            assert call() == expected, f"seed {seed}"
        except ProcessTerminatedException as error:
            told = text_of(error)
        assert not told or ("SIGKILL" in told and not retry), f"seed {seed}: {told}"
        hits += len(killer.killed())
        if tries >= len(seeds) and hits > len(seeds) / 2:
            break
    assert hits > len(seeds) / 2, f"only {hits} of {tries} kills hit a worker"
