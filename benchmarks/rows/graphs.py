"""P1 to P4: what one task costs that does next to nothing.

Every figure contains the time to build the graph, ours and the peers'. Ours also contain the start
and the end of the workers, which belong to a run; a peer's pool was started and warmed before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks import work
from benchmarks.contestants import PEERS, Contestant, EntangleFork, EntangleForkserver
from benchmarks.row import Line, Measured, row, seconds

NOTE = "start and end of our workers included, the peers' pools warm"


def both(unit: str, by_fork: float, by_forkserver: float) -> list[Line]:
    """Give the two lines of a row that is judged by fork and by a warm forkserver."""
    return [
        Line("by fork", unit, "time", EntangleFork.name, by_fork),
        Line("by a warm forkserver", unit, "time", EntangleForkserver.name, by_forkserver),
    ]


@row(
    "P1",
    "reduction tree, 512 leaves (1,023 tasks)",
    group="small",
    lines=both("µs a task", 10, 25),
    others=PEERS,
    note=NOTE,
)
def reduction(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Add up 512 leaves, two at a time."""
    leaf, add = contestant.task(work.leaf), contestant.task(work.add)

    def once() -> int:
        level = [leaf(i) for i in range(512)]
        while len(level) > 1:
            level = [add(level[i], level[i + 1]) for i in range(0, len(level), 2)]
        value: int = contestant.value(level[0])
        return value

    once()
    for _ in rounds:
        yield {"time": seconds(once, 512 * 511 // 2) / 1023 * 1e6}


@row("P2", "1,000 leaves into one sum", group="small", lines=both("µs a task", 10, 25), others=PEERS, note=NOTE)
def fan_in(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Add up a thousand leaves in one task."""
    leaf, total = contestant.task(work.leaf), contestant.task(work.total)

    def once() -> int:
        value: int = contestant.value(total(*[leaf(i) for i in range(1000)]))
        return value

    once()
    for _ in rounds:
        yield {"time": seconds(once, 499_500) / 1001 * 1e6}


@row("P3", "chain of 200", group="small", lines=both("µs a hop", 15, 15), others=PEERS, note=NOTE)
def chain(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Add one, two hundred times."""
    increment = contestant.task(work.increment)

    def once() -> int:
        end = increment(0)
        for _ in range(199):
            end = increment(end)
        value: int = contestant.value(end)
        return value

    once()
    for _ in rounds:
        yield {"time": seconds(once, 200) / 200 * 1e6}


@row("P4", "one call of one task", group="small", lines=both("ms", 2, 0.5), others=PEERS, note=NOTE)
def one_call(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Add one, once."""
    increment = contestant.task(work.increment)

    def once() -> int:
        value: int = contestant.value(increment(1))
        return value

    once()
    for _ in rounds:
        yield {"time": seconds(once, 2, most=100) * 1e3}
