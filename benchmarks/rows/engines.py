"""R2: what a task of a whole graph costs on another engine, beside that engine's own API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks import work
from benchmarks.contestants import Contestant, DaskDistributed, EntangleOnDask, EntangleOnRay, Ray
from benchmarks.row import Line, Measured, row, seconds


@row(
    "R2",
    "1,000 tasks into one sum, on another engine",
    group="engines",
    lines=[
        Line("on Dask distributed", "µs a task", "time", EntangleOnDask.name, 1.1, relative_to=DaskDistributed.name),
        Line("on Ray", "µs a task", "time", EntangleOnRay.name, 1.1, relative_to=Ray.name),
    ],
    others=(DaskDistributed.name, Ray.name),
    note="`entangle.engine` on the same kind of cluster as the peer has, which is warm",
)
def on_engines(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Add up a thousand leaves in one task."""
    leaf, total = contestant.task(work.leaf), contestant.task(work.total)

    def once() -> int:
        value: int = contestant.value(total(*[leaf(i) for i in range(1000)]))
        return value

    once()
    for _ in rounds:
        yield {"time": seconds(once, 499_500) / 1001 * 1e6}
