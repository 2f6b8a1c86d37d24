"""Long streams whose workers are killed: the output is exact, and nothing grows."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle.dataflow import dataflow, process, thread
from entangle.errors import ProcessTerminatedException

from ..callers import ROOT
from ..killing import begun_workers

pytestmark = pytest.mark.drill


@dataflow
@thread
def read(x: int) -> int:
    return x


class SkippedError(Exception):
    """Raised for one value in a hundred."""


@dataflow
@process(retry=50, on=ProcessTerminatedException)
def parse(x: int) -> int:
    if random.Random(x).random() < 0.01:
        raise SkippedError(x)
    return x + 1


@dataflow
@process(retry=50, on=ProcessTerminatedException)
def score(x: int) -> int:
    return x * 2


def shoot(stream: Any, every: float, over: threading.Event, killed: list[int]) -> None:
    """Kill a worker of a stream from time to time."""
    chance = random.Random(1)
    while not over.wait(every):
        pids = begun_workers(stream)
        if pids:
            try:
                os.kill(chance.choice(pids), signal.SIGKILL)
                killed.append(1)
            except ProcessLookupError:
                pass


@pytest.mark.parametrize("every", [0.2, 0.05])
@pytest.mark.parametrize("round", range(2))
def test_a_hundred_thousand_values_with_workers_killed(every: float, round: int) -> None:
    many, bad = 100_000, {n for n in range(100_000) if random.Random(n).random() < 0.01}
    failed: list[tuple[str, int, str]] = []

    def skip(node: Any, value: int, error: BaseException) -> None:
        failed.append((node.__name__, value, type(error).__name__))

    stream = read(parse(score())).stream(range(many), on_error=skip)
    over = threading.Event()
    killed: list[int] = []
    gun = threading.Thread(target=shoot, args=(stream, every, over, killed))
    gun.start()
    try:
        got = [y for (y,) in stream]
    finally:
        over.set()
        gun.join()
    assert got == [(n + 1) * 2 for n in range(many) if n not in bad]
    assert sorted(failed) == [("parse", n, "SkippedError") for n in sorted(bad)]
    assert len(killed) > 3


def test_an_endless_stream_is_gone_within_a_second() -> None:
    def endless() -> Iterator[int]:
        n = 0
        while True:
            yield n
            n += 1

    for _ in range(20):
        for n, _ in enumerate(read(parse(score())).stream(endless(), on_error="skip")):
            if n == 10:
                begin = time.monotonic()
                break
        assert time.monotonic() - begin < 1.0
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("entangle-")]


_GROWTH = """
import itertools, os, sys
from entangle.dataflow import dataflow, process, thread
from entangle.errors import ProcessTerminatedException
@dataflow
@thread
def read(x): return x
@dataflow
@process
def one(x): return [x] * 20
@dataflow
@process
def two(x): return len(x)
def used():
    kb = 0
    for pid in [os.getpid(), *children(os.getpid())]:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                kb += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except (FileNotFoundError, ProcessLookupError):  # it has ended since it was listed, and holds nothing any more
            pass
    return kb // 1024
def children(pid):
    import psutil
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]
for n, _ in enumerate(read(one(two())).stream(range(1_000_000))):
    if n in (200_000, 990_000):
        print(used(), flush=True)
"""


def test_memory_over_a_million_values(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT}, timeout=500
    )
    assert done.returncode == 0, done.stderr
    early, late = map(int, done.stdout.split())
    assert late < early + 20, (early, late)
