"""P5, P6, P10, P11 and P14: whether all CPUs are busy, and no more processes than CPUs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benchmarks import work
from benchmarks.contestants import PEERS, BareFork, Contestant, DaskThreads, Entangle, Futures, Mpire, NestedPools
from benchmarks.row import Line, Measured, check, row, seconds
from benchmarks.watch import watching

CPUS = len(os.sched_getaffinity(0))


@row(
    "P5",
    "64 tasks of 20 ms of CPU",
    group="load",
    lines=[Line("", "ms", "time", Entangle.name, 655 / 640 * 64 * 20 / CPUS)],
    others=(BareFork.name, *PEERS),
    note=f"ideal on {CPUS} CPUs: {64 * 20 / CPUS:.0f} ms",
)
def busy(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Keep every CPU busy."""
    busy, total = contestant.task(work.busy), contestant.task(work.total)

    def once() -> int:
        value: int = contestant.value(total(*[busy(i, 0.020) for i in range(64)]))
        return value

    contestant.value(total(*[busy(i, 0.0) for i in range(4)]))
    for _ in rounds:
        yield {"time": seconds(once, 64 * 63 // 2) * 1e3}


@row(
    "P6",
    "200 tasks of time.sleep(0.5)",
    group="sleep",
    lines=[Line("", "s", "time", Entangle.name, 0.9)],
    others=(Futures.name, Mpire.name, DaskThreads.name),
    workers=200,
    note="the peers were told beforehand to keep 200 workers warm; with one for each CPU they need "
    f"{100 / CPUS:.0f} s. entangle is told nothing",
)
def sleep(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Wait in many tasks at once."""
    pause, total = contestant.task(work.pause), contestant.task(work.total)

    def once() -> int:
        value: int = contestant.value(total(*[pause(i, 0.5) for i in range(200)]))
        return value

    contestant.value(total(*[pause(i, 0.0) for i in range(4)]))
    for _ in rounds:
        yield {"time": seconds(once, 200 * 199 // 2)}


@row(
    "P10",
    "200 tasks of skewed length (lognormal, sigma 1.5, mean 10 ms)",
    group="load",
    lines=[Line("", "times the best schedule", "time", Entangle.name, 1.05)],
    others=PEERS,
    note="another seed each round. The best schedule is the lower bound max(longest task, all work ÷ CPUs), which "
    "nobody who does not know the lengths can plan for; longest first, which does know them, comes within 0.1 % of it",
)
def skewed(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Keep every CPU busy with tasks of unknown lengths."""
    busy, total = contestant.task(work.busy), contestant.task(work.total)
    contestant.value(total(*[busy(i, 0.0) for i in range(4)]))
    for seed in rounds:
        lengths = work.durations(seed)
        best = work.lower_bound(lengths, CPUS)

        def once(lengths: list[float] = lengths) -> int:
            value: int = contestant.value(total(*[busy(i, length) for i, length in enumerate(lengths)]))
            return value

        yield {
            "time": seconds(once, 200 * 199 // 2) / best,
            "longest first": work.longest_first(lengths, CPUS) / best,
        }


DOWNLOADS, WAIT, CRUNCH = 32, 0.5, 0.2


@row(
    "P14",
    f"{DOWNLOADS} tasks that wait {WAIT} s, then {DOWNLOADS} that compute {CRUNCH} s with what those bring",
    group="load",
    lines=[
        Line("", "times the best schedule", "time", Entangle.name, 1.1),
        Line("at most", "computing at once", "computing", Entangle.name, CPUS + 1, worst=True),
    ],
    note=f"the best schedule: all wait at once, then every CPU computes to the end, {WAIT + DOWNLOADS * CRUNCH / CPUS:.1f} s",
)
def download_and_crunch(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Wait in many tasks at once, and compute in no more than there are CPUs."""
    pause, crunch, together = (contestant.task(task) for task in (work.pause, work.crunch, work.together))
    for _ in rounds:
        call = together(*[crunch(pause(i, WAIT), CRUNCH) for i in range(DOWNLOADS)])
        began = time.perf_counter()
        computing: int = contestant.value(call)
        took = time.perf_counter() - began
        check(1 <= computing <= DOWNLOADS, True)
        yield {"time": took / (WAIT + DOWNLOADS * CRUNCH / CPUS), "computing": computing}


SPIN = 0.002


def nested_sum(seconds: float, depth: int) -> int:
    """Do what ``decorated.inner`` and ``decorated.innermost`` do, with a pool for each nested
    run."""
    calls: list[tuple[Callable[..., int], tuple[Any, ...]]]
    if depth == 2:
        calls = [(nested_sum, (seconds, 3))] * 4 + [(work.busy, (1, seconds))]
    else:
        calls = [(work.busy, (1, seconds))] * 5
    value: int = NestedPools(CPUS).value((work.total, calls))
    return value


@row(
    "P11",
    "200 runs of 5 tasks inside tasks, depth 3: processes that could run at once",
    group="nested",
    lines=[
        Line("at most", "processes", "runnable", Entangle.name, CPUS + 2, worst=True),
        Line("time", "s", "time", Entangle.name, None),
    ],
    others=(NestedPools.name,),
    note="the most that a sampler ever saw runnable, looking about a thousand times a second",
)
def nested(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Run 40 tasks that each run five, four of which run five again: 200 nested runs."""
    ours = isinstance(contestant, Entangle)

    def once() -> int:
        value: int
        if ours:
            decorated: Any = contestant.decorated  # type: ignore[attr-defined]
            value = contestant.value(decorated.total(*[decorated.inner(SPIN) for _ in range(40)]))
        else:
            value = contestant.value((work.total, [(nested_sum, (SPIN, 2)) for _ in range(40)]))
        return value

    check(once(), 40 * 21)
    for _ in rounds:
        with watching("runnable") as seen:
            took = seconds(once, 40 * 21)
        yield {"runnable": seen["largest"], "time": took, "looks": seen["looks"]}
