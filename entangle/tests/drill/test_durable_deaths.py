"""The program of a durable run of 300 nodes is killed at random moments, 200 times, and restarted
each time. The value is right, and no node that has ended runs again. A node that may not run twice
runs once, or is named."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from entangle._depot.durable_directory import DurableDirectory
from entangle._depot.ledger import BEGUN, ENDED, read
from entangle.tests.callers import ROOT

pytestmark = pytest.mark.drill

KILLS = 200

#: 12 rows of 24 nodes and a workflow each: 300 bodies, which log that they run, and a sum.
_PROGRAM = """
import os, random, sys, time
from pathlib import Path
import entangle
from entangle import gather
from entangle._tasks.taking_up import decide
from entangle.errors import MayHaveRunError
from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow

HERE = Path(__file__).parent

def ran(what):
    fd = os.open(HERE / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, (what + "\\n").encode())
    os.close(fd)

def body(kind, row, at, *values):
    ran(f"{kind} {row} {at}")
    time.sleep(0.004 * ((7 * row + at) % 4))
    big = bytes(50_000) if at % 8 == 0 else b""
    return row + at + sum(value[0] for value in values), big

@process
def once(row, at, *values): return body("once", row, at, *values)

@process(retry=1)
def again(row, at, *values): return body("again", row, at, *values)

@process(idempotent=True)
def harmless(row, at, *values): return body("harmless", row, at, *values)

@thread
def in_thread(row, at, *values): return body("thread", row, at, *values)

@workflow
def row_of(row):
    ran(f"workflow {row} 0")
    kinds = [once, again, harmless, in_thread]
    below = [kinds[at % 4](row, at) for at in range(12)]
    above = [kinds[(row + at) % 4](row, 12 + at, below[at], below[(at + 1) % 12]) for at in range(12)]
    return gather(*above)

@process(idempotent=True)
def total(rows): return sum(value[0] for row in rows for value in row)

if __name__ == "__main__":
    name = sys.argv[1]
    while True:
        try:
            with entangle.durable(name):
                print("entered", flush=True)
                value = total([row_of(row) for row in range(12)])()
            print("value", value, flush=True)
            break
        except MayHaveRunError as error:
            for node in error.nodes:
                (HERE / "named").open("a").write(node + "\\n")
            decide(name, list(error.nodes), [])
"""


@pytest.mark.timeout(3600)
def test_killed_at_random_instants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    below = {(row, at): row + at for row in range(12) for at in range(12)}
    expected = sum(row + 12 + at + below[row, at] + below[row, (at + 1) % 12] for row in range(12) for at in range(12))
    rng = random.Random(17)
    kills = runs = named_twice = 0
    longest = 1.5
    while kills < KILLS:
        name = f"drill {runs}"
        runs += 1
        for left in ("log", "named"):
            (tmp_path / left).unlink(missing_ok=True)
        began = time.monotonic()
        value = ""
        while not value:
            started = subprocess.Popen(
                [sys.executable, str(program), name], env={**os.environ, "PYTHONPATH": ROOT}, stdout=subprocess.PIPE, text=True
            )
            assert started.stdout is not None
            assert select.select([started.stdout], [], [], 60)[0]
            started.stdout.readline()
            try:
                # Some may run to their end, so that there are complete runs on slow machines, too.
                said, _ = started.communicate(timeout=rng.uniform(0, longest) if rng.random() < 0.9 and kills < KILLS else 120)
            except subprocess.TimeoutExpired:
                started.send_signal(signal.SIGKILL)
                started.communicate()
                kills += 1
                continue
            assert started.returncode == 0
            value = said.split()[-1]
        assert value == str(expected)
        named = Counter((tmp_path / "named").read_text().split()) if (tmp_path / "named").exists() else Counter()
        _check(name, tmp_path, named)
        print(f"run {runs}: {kills} kills so far, {sum(named.values())} nodes named in it", flush=True)
        named_twice += sum(1 for count in named.values() if count > 1)
        longest = min(3.0, max(0.5, time.monotonic() - began))
    print(f"{kills} kills of {runs} runs, {named_twice} nodes named more than once")


def _check(name: str, directory: Path, named: Counter[str]) -> None:
    """Check that no node ran again after its end, and that `once` nodes ran again only if they were
    named."""
    place = DurableDirectory(name)
    begun: Counter[bytes] = Counter()
    ended: set[bytes] = set()
    tasks: dict[bytes, str] = {}
    for number in place.numbers():
        for record in read(os.path.join(place.path, f"ledger.{number}")):
            if record.kind == BEGUN:
                assert record.node not in ended, "what had ended has run again"
                begun[record.node] += 1
                tasks[record.node] = str(record.text, "utf-8")
            elif record.kind == ENDED:
                assert record.node not in ended
                ended.add(record.node)
    assert len(ended) == 301
    for node, times in begun.items():
        if tasks[node] in ("once", "in_thread"):
            assert times <= 1 + named[node.hex()[:8]], tasks[node]
    # A node that is not in the ledger did not run.
    ran = Counter(line for line in (directory / "log").read_text().split("\n")[:-1])
    assert len(ran) == 300
    for kind in ("once", "thread"):
        extra = sum(times - 1 for what, times in ran.items() if what.startswith(f"{kind} "))
        assert extra <= sum(named.values())
