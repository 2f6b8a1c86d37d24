"""W1, W2, W7 and W8: runs that use the warm workers of a session."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import work
from benchmarks.contestants import Contestant, EntangleFork, Futures, Joblib, Mpire, PoolApply
from benchmarks.row import Line, Measured, check, row, seconds, within
from benchmarks.rows.everyday import Recording
from benchmarks.rows.graphs import reduction
from benchmarks.warm import CopyInMemory, EntangleExecutor, EntangleSession, FreshSharedMemory, Loky, Mover
from benchmarks.watch import proportional, tree

RUNS = 10_000
IDLE = 5.0
"""For how many seconds an idle session is looked at."""
FRAMES = 8
"""How many runs at once a session keeps frames for."""


@row(
    "W1",
    "one call of one process task, warm",
    group="session",
    lines=[
        Line("in a session, records off: at most 1 times futures", "µs", "time", EntangleSession.name, 1.0, relative_to=Futures.name),
        Line("in a session, records on: at most 1.5 times futures", "µs", "recorded", EntangleSession.name, 1.5, relative_to=Futures.name),
        Line("by an Executor", "µs", "time", EntangleExecutor.name, None),
    ],
    others=(PoolApply.name, Futures.name, Loky.name, Mpire.name),
    note="all pools warm, one call after the other; off and on in turn. The peers keep no records, so their figures are the same in both",
)
def warm_call(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Add one, once."""

    def once() -> int:
        value: int = contestant.call(work.increment, 1)
        return value

    def timed() -> float:
        return seconds(once, 2, most=2000) * 1e6

    def recorded() -> float:
        from entangle import records

        with Recording():
            took = timed()
            (run,) = records.runs(limit=1)
            check(run.node_count, 1)
        return took

    once()
    for number in rounds:
        if not isinstance(contestant, EntangleSession):
            took = timed()
            yield {"time": took, "recorded": took}
        elif number % 2:
            yield {"time": timed(), "recorded": recorded()}
        else:
            yield {"recorded": recorded(), "time": timed()}


row(
    "W2",
    "P1 in a session: reduction tree of 1,023 tasks",
    group="session",
    lines=[Line("at most 0.7 times P1 by fork", "µs a task", "time", EntangleSession.name, 0.7, relative_to=EntangleFork.name)],
    others=(EntangleFork.name, Futures.name, Joblib.name, Mpire.name),
    note="all pools warm; fork is P1 cold, with the start and the end of its workers",
)(reduction)


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _maps(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_bytes().count(b"\n")


def _threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def _resident(pid: int | str) -> int:
    """Bytes of memory of a process, with what it shares with others."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_nanoseconds(pids: Iterable[int]) -> int:
    """CPU time that all threads of these processes have used."""
    return sum(int(path.read_bytes().split()[0]) for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def _fill(contestant: EntangleSession) -> None:
    """Bring what a session keeps for later runs to its bound.

    How many frames it keeps depends on how often a worker was late, and what SQLite leaves in
    memory on how long ago log segments were ingested. A look at any moment would show that as
    growth. After this, only what has no bound can have grown.
    """
    from entangle import records

    pause, items = contestant.task(work.pause), list(range(1000))  # too long to travel without the store
    with ThreadPoolExecutor(FRAMES) as threads:
        for _ in range(20):  # until each worker has opened as many frames as it keeps
            check(list(threads.map(lambda _: contestant.value(pause(items, 0.01)), range(FRAMES))), [items] * FRAMES)
    check(len(records.runs(limit=1)), 1)  # ingests all log segments


def _held(workers: Iterable[int]) -> Measured:
    """The memory of the caller, and of the largest of its workers."""
    gc.collect()
    workers = list(workers)
    return {
        name: float(look(os.getpid()) + max(map(look, workers)))
        for name, look in (("memory", proportional), ("maps", _maps), ("descriptors", _descriptors), ("threads", _threads))
    }


_IMPORT = """
import importlib, json, sys
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except Exception:
        pass
print(int(open("/proc/self/statm").read().split()[1]))
"""


def _resident_of_modules(names: list[str]) -> int:
    """Bytes of memory of a process that has loaded these modules and done nothing else."""
    pages = subprocess.run([sys.executable, "-c", _IMPORT], input=json.dumps(names), check=True, stdout=subprocess.PIPE, text=True)
    return int(pages.stdout.split()[-1]) * os.sysconf("SC_PAGE_SIZE")


@row(
    "W7",
    "10,000 runs in a session, recorded",
    group="session-long",
    lines=[
        Line("more memory after the last than after 1,000, caller and worker", "MB", "memory", EntangleSession.name, 2, worst=True),
        Line("more maps", "maps", "maps", EntangleSession.name, 0, worst=True),
        Line("more descriptors", "descriptors", "descriptors", EntangleSession.name, 0, worst=True),
        Line("more threads", "threads", "threads", EntangleSession.name, 0, worst=True),
        Line("idle for 5 s: all its processes", "% of a CPU", "idle", EntangleSession.name, 0.1, worst=True),
        Line("a worker beyond its modules", "MB", "worker", EntangleSession.name, 40, worst=True),
    ],
    others=(),
    note="every tenth run has 21 tasks, the others one. Memory is PSS; of a worker all that is resident, shared or not, less that of a "
    "fresh process with the same modules. Before each look eight threads run tasks at once, until the session keeps as many frames as it "
    "ever keeps, and all records are ingested. Idle: what the kernel counts in nanoseconds, the look itself included",
)
def many_runs(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Run ten thousand graphs one after the other, then do nothing."""
    assert isinstance(contestant, EntangleSession)
    increment, leaf = contestant.task(work.increment), contestant.task(work.leaf)
    total, modules = contestant.task(work.total), contestant.task(work.modules)

    def run(numbers: Iterable[int]) -> None:
        for number in numbers:
            if number % 10:
                check(contestant.value(increment(number)), number + 1)
            else:
                check(contestant.value(total(*[leaf(i) for i in range(20)])), 190)

    # Once in a visit, however many rounds there are.
    for _ in within(rounds, 0.0):
        with Recording():
            run(range(RUNS // 10))
            _fill(contestant)
            before = _held(contestant.session.pids)
            run(range(RUNS // 10, RUNS))
            _fill(contestant)
            after = _held(contestant.session.pids)
        names = contestant.value(modules())
        time.sleep(1.0)
        everybody = tree(os.getpid())
        used = _cpu_nanoseconds(everybody)
        began = time.monotonic()
        time.sleep(IDLE)
        used = _cpu_nanoseconds(everybody) - used
        idle = used / (time.monotonic() - began) / 1e9 * 100
        worker = max(map(_resident, contestant.session.pids)) - _resident_of_modules(names)
        grown = {name: after[name] - before[name] for name in before}
        yield {**grown, "memory": grown["memory"] / 1e6, "idle": idle, "worker": worker / 1e6}


@row(
    "W8",
    "an array of 100 MB from a worker to the caller",
    group="session-arrays",
    lines=[
        Line(
            "of a session, the third time, at most 2 times a copy", "ms", "third", EntangleSession.name, 2.0, relative_to=CopyInMemory.name
        ),
        Line("the first time", "ms", "first", EntangleSession.name, None),
        Line("the third time, and the caller has read all of it", "ms", "read", EntangleSession.name, None),
    ],
    others=(CopyInMemory.name, FreshSharedMemory.name, Futures.name, Loky.name),
    note="from the last statement of the task to the caller that holds the array; a new session each round. Beside it: a copy in memory "
    "that has been touched, a copy to shared memory that has just been made",
)
def array_again(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Make an array in a worker, and get it; three times."""
    import numpy  # noqa: F401

    moving = isinstance(contestant, Mover)
    stamped = contestant.task(work.stamped)
    source = work.make(work.ITEMS) if moving else None

    def once(number: int) -> tuple[float, float]:
        """Milliseconds until the caller holds it, and until it has read it."""
        if isinstance(contestant, Mover) and source is not None:
            source[0] = number
            ended = time.monotonic_ns()
            array = contestant.moved(source)
        else:
            array, ended = contestant.value(stamped(work.ITEMS, number))
        held = time.monotonic_ns()
        summed = work.summed(array)
        read = time.monotonic_ns()
        check((array.shape, summed), ((work.ITEMS,), work.ITEMS - 1.0 + number))
        return (held - ended) / 1e6, (read - ended) / 1e6

    once(0)
    for _ in rounds:
        if isinstance(contestant, EntangleSession):
            contestant.stop()
            contestant.start()
        took = [once(number) for number in (1, 2, 3)]
        yield {"first": took[0][0], "third": took[2][0], "read": took[2][1]}
