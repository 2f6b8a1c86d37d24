"""S1, S2, S3, C1 and R3: calls to other hosts, into containers, and to a Slurm cluster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks import work
from benchmarks.contestants import Contestant
from benchmarks.distant import BareFrames, BareSrun, BareSsh, DockerExec, EntangleDocker, EntangleParamiko, EntangleSlurm, EntangleSsh
from benchmarks.row import Line, Measured, check, row, seconds

MANY = 50
LARGE = 200_000_000 // 8


@row(
    "S1",
    "one call by ssh on loopback, warm",
    group="ssh-warm",
    lines=[
        Line("", "ms", "time", EntangleSsh.name, 1.0),
        Line("by paramiko", "ms", "time", EntangleParamiko.name, None),
    ],
    others=(BareFrames.name,),
    note="beside it: a frame over an exec channel to a Python that sends it back",
)
def warm(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Call a function that is in its place already."""
    if isinstance(contestant, BareFrames):
        for _ in rounds:
            yield {"time": seconds(lambda: contestant.echo(b"1"), b"1", most=MANY) * 1e3}
        return
    increment = contestant.task(work.increment)
    contestant.value(increment(1))
    for _ in rounds:
        yield {"time": seconds(lambda: contestant.value(increment(1)), 2, most=MANY) * 1e3}


@row(
    "S2",
    "the first value by ssh: connect, start, call",
    group="ssh-cold",
    lines=[
        Line("", "ms", "time", EntangleSsh.name, 1.5, relative_to=BareSsh.name),
        Line("by paramiko", "ms", "time", EntangleParamiko.name, None),
    ],
    others=(BareSsh.name,),
    note="target: 1.5 times `ssh host python3 -c pass`",
)
def cold(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Log in, start a Python there, and get one value."""
    if isinstance(contestant, BareSsh):
        import sys

        for _ in rounds:
            yield {"time": seconds(lambda: contestant.run(sys.executable, "-c", "pass"), b"", most=1) * 1e3}
        return
    assert isinstance(contestant, EntangleSsh)
    increment = contestant.task(work.increment)
    contestant.value(increment(1))
    for _ in rounds:
        contestant.hang_up()
        yield {"time": seconds(lambda: contestant.value(increment(1)), 2, most=1) * 1e3}


@row(
    "S3",
    "an array of 200 MB by ssh, there and back",
    group="ssh-large",
    lines=[
        Line("", "s", "time", EntangleSsh.name, 1 / 0.7, relative_to=BareSsh.name),
        Line("by paramiko", "s", "time", EntangleParamiko.name, None),
    ],
    others=(BareSsh.name,),
    note="target: 0.7 of the speed of `ssh host cat`, which sends back while it still receives",
)
def large(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Send a large array, and get it back."""
    import numpy

    array = numpy.random.default_rng(1).random(LARGE)  # random numbers cannot be compressed
    if isinstance(contestant, BareSsh):
        data = array.tobytes()
        for _ in rounds:
            began = time.perf_counter()
            back = contestant.run("cat", data=data)
            took = time.perf_counter() - began
            check(len(back), len(data))
            yield {"time": took}
        return
    same = contestant.task(work.back)
    contestant.value(same(array[:10]))
    for _ in rounds:
        began = time.perf_counter()
        there = contestant.value(same(array))
        took = time.perf_counter() - began
        check((there.shape, float(there[-1])), (array.shape, float(array[-1])))
        yield {"time": took}


@row(
    "C1",
    "one call in a warm container",
    group="container",
    lines=[Line("", "ms", "time", EntangleDocker.name, 3.0)],
    others=(DockerExec.name,),
    note="beside it: `docker exec` of a Python",
)
def contained(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Call a function in a container that the run has started already."""
    if isinstance(contestant, DockerExec):
        for _ in rounds:
            yield {"time": seconds(contestant.run, 2, most=5) * 1e3}
        return
    assert isinstance(contestant, EntangleDocker)
    for _ in rounds:
        yield {"time": _within(contestant) * 1e3}


@row(
    "R3",
    "one call in a warm allocation of Slurm",
    group="slurm",
    lines=[Line("", "ms", "time", EntangleSlurm.name, 0.05, relative_to=BareSrun.name)],
    others=(BareSrun.name,),
    note="target: 0.05 of `srun true`",
)
def allocated(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Call a function in an allocation that the run has been granted already."""
    if isinstance(contestant, BareSrun):
        for _ in rounds:
            yield {"time": seconds(contestant.run, 0, most=5) * 1e3}
        return
    assert isinstance(contestant, EntangleSlurm)
    for _ in rounds:
        yield {"time": _within(contestant) * 1e3}


def _within(contestant: EntangleDocker | EntangleSlurm) -> float:
    """The time of a call in a run whose place is warm (seconds)."""
    increment = contestant.task(work.increment)

    def calls() -> float:
        took = []
        value: Any = contestant.value(increment(1))
        for _ in range(MANY):
            began = time.perf_counter()
            value = contestant.value(increment(1))
            took.append(time.perf_counter() - began)
        check(value, 2)
        return statistics.median(took)

    found: float = contestant.within(calls)
    return found
