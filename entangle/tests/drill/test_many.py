"""Very many runs, very large graphs, very deep nesting: nothing is left behind, and nothing
grows."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from entangle.dataflow import dataflow
from entangle.errors import RunCancelledError
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


def _held() -> dict[str, int]:
    """What this process holds: memory maps, threads, descriptors, pages of memory."""
    gc.collect()
    with open("/proc/self/maps") as maps, open("/proc/self/statm") as memory:
        pages = int(memory.read().split()[1])
        found = {"maps": len(maps.readlines()), "threads": threading.active_count(), "pages": pages}
    return {**found, "descriptors": len(os.listdir("/proc/self/fd"))}


def _failing(start: Any) -> None:
    with pytest.raises(ValueError):
        process(bodies.fail)()(start=start)


def _cancelled() -> None:
    future = num(1).future()
    future.start()
    future.cancel()
    with pytest.raises((RunCancelledError, CancelledError)):
        future.result()


def _nested(start: Any) -> None:
    @process
    def outer(way: Any) -> Any:
        return num(1)(start=way)

    assert outer(start)(start=start) == 1


#: Runs with each start method and each kind of end.
_RUNS: dict[str, Any] = {
    "fork": lambda: add(num(1), num(1))(start="fork"),
    "auto": lambda: add(num(1), num(1))(),
    "forkserver": lambda: add(num(1), num(1))(start="forkserver"),
    "spawn": lambda: num(1)(start="spawn"),
    "thread": lambda: thread(bodies.num)(1)(),
    "both": lambda: add(num(1), thread(bodies.num)(1))(),
    "future": lambda: num(1).future().result(),
    "cancelled": _cancelled,
    "failing by fork": lambda: _failing("fork"),
    "failing by forkserver": lambda: _failing("forkserver"),
    "nested by fork": lambda: _nested("fork"),
    "stream": lambda: list(dataflow(process(bodies.num))().stream(range(3))),
    "large": lambda: process(bodies.same)(bytes(1 << 20))(),
}


@pytest.mark.parametrize("how", list(_RUNS))
def test_two_thousand_runs_hold_nothing(how: str) -> None:
    """Maps, threads, descriptors and memory stay flat. Starting a spawned interpreter takes a tenth
    of a second, so there are fewer of those runs."""
    run, number = _RUNS[how], 100 if how == "spawn" else 2_000
    for _ in range(50 if how != "spawn" else 10):
        run()
    wait_until(lambda: threading.active_count() == 1, 20.0)
    before = _held()
    for _ in range(number):
        run()
    wait_until(lambda: threading.active_count() <= before["threads"], 20.0)
    more = {what: held - before[what] for what, held in _held().items()}
    # The allocator and the recorder keep some maps and pages for later.
    most = {"maps": number // 50 + 8, "threads": 0, "descriptors": 0, "pages": 1_000}
    assert all(more[what] <= most[what] for what in most), more


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
    """At any depth, about as many bodies compute at a time as there are CPUs."""
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
