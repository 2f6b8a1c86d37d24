"""The workers, the forkserver and the owner of a session are killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from entangle.tests.callers import Caller
from entangle.tests.evidence import alive, wait_until

pytestmark = pytest.mark.drill

OWNER = """
import os, random, sys
from entangle import session
from entangle.errors import EntangleError
from entangle.process import process

@process
def add(a, b):
    return a + b

@process(retry=2)
def again(a, b):
    return a * b

if __name__ == "__main__":
    turns = int(sys.argv[1])
    with session(workers=2):
        for turn in range(turns):
            try:
                value = add(again(turn, 2), again(turn, 3))()
            except EntangleError as error:
                text = str(error)
                assert "SIGKILL" in text or "forkserver" in text or "died" in text, text
                print("death", flush=True)
            else:
                assert value == 5 * turn, (value, turn)
                print("value", flush=True)
"""


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(10))
def test_three_hundred_deaths(tmp_path: Path, seed: int) -> None:
    """Each run gives its value, or an error that names a death. Nothing hangs, and nothing is left
    behind."""
    chance = random.Random(seed)
    caller = Caller(tmp_path, OWNER).start("1000000")
    assert caller.process.stdout is not None
    outcomes: list[str] = []
    seen: set[int] = set()
    deaths = 0
    while deaths < 30:
        for _ in range(chance.randrange(1, 6)):
            outcomes.append(caller.process.stdout.readline().strip())
            assert outcomes[-1] in ("value", "death"), caller.process.communicate()
        time.sleep(chance.uniform(0, 0.02))
        family = descendants(caller.process.pid)
        seen.update(family)
        if family:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(chance.choice(family), signal.SIGKILL)
                deaths += 1
    caller.process.kill()
    caller.process.communicate(timeout=20)
    assert "value" in outcomes
    wait_until(lambda: not any(map(alive, seen)), 5.0)
