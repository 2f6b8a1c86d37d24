"""Very many runs, very large graphs, very deep nesting: nothing may be left, and nothing may grow."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from entangle.process import process
from entangle.tests import bodies
from entangle.tests.evidence import most_at_once, notes, span, wait_until
from entangle.thread import thread

pytestmark = pytest.mark.drill

one = process(bodies.one)
num = process(bodies.num)
add = process(bodies.add)
inc = process(bodies.inc)
gather = process(bodies.gather)
total = process(bodies.total)


def _held() -> tuple[int, int, int]:
    gc.collect()
    with open("/proc/self/maps") as maps:
        mine = sum("entangle" in line for line in maps)
    return len(os.listdir("/proc/self/fd")), threading.active_count(), mine


@pytest.mark.parametrize("how", ["fork", "forkserver"])
def test_two_thousand_runs(how: str) -> None:
    for n in range(50):
        assert add(num(n), thread(bodies.num)(1))(start=how) == n + 1
    wait_until(lambda: threading.active_count() == 1, 1.0)
    before = _held()
    for n in range(2_000):
        assert add(num(n), num(1))(start=how) == n + 1
    wait_until(lambda: _held()[1] <= before[1], 1.0)
    assert _held() <= before


def test_two_hundred_thousand_tasks() -> None:
    level = [num(i) for i in range(100_000)]
    while len(level) > 1:
        odd = level[-1:] if len(level) % 2 else []
        level = [add(a, b) for a, b in zip(level[::2], level[1::2], strict=False)] + odd
    assert level[0]() == sum(range(100_000))


def test_a_hundred_thousand_levels(start: str) -> None:
    call = inc(0)
    for _ in range(99_999):
        call = inc(call)
    assert call() == 100_000


def test_two_hundred_nested_runs_three_deep(tmp_path: Path) -> None:
    """However the runs nest, the bodies that compute at one moment are about as many as there are CPUs."""
    log = str(tmp_path / "log")

    @process
    def work(path: str) -> int:
        with span(path):
            return 1 if bodies.burn(0.005) else 0

    @process
    def inner(path: str) -> Any:
        return total(*(work(path) for _ in range(5)))()

    @process
    def middle(path: str) -> Any:
        return total(*(inner(path) for _ in range(5)))()

    assert total(*(middle(log) for _ in range(40)))() == 1000
    assert len(notes(log)) == 1000
    assert most_at_once(log) <= len(os.sched_getaffinity(0)) + 2


def test_two_hundred_bodies_that_wait_for_each_other(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    meet = process(bodies.meet)
    pids, _ = gather(*(meet(log, 200) for _ in range(200)))()
    assert len(set(pids)) == 200


def test_threads_that_start_runs_all_the_time() -> None:
    wrong: list[Any] = []

    def work(me: int) -> None:
        for n in range(100):
            value = add(num(n), num(me))()
            if value != n + me:
                wrong.append((me, n, value))

    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []
