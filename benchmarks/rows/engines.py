"""R2: what a task of a whole graph costs on another engine, beside that engine's own API."""

from __future__ import annotations

from benchmarks.contestants import DaskDistributed, EntangleOnDask, EntangleOnRay, Ray
from benchmarks.row import Line, row
from benchmarks.rows.graphs import fan_in

row(
    "R2",
    "1,000 tasks into one sum, on another engine",
    group="engines",
    lines=[
        Line("on Dask distributed", "µs a task", "time", EntangleOnDask.name, 1.1, relative_to=DaskDistributed.name),
        Line("on Ray", "µs a task", "time", EntangleOnRay.name, 1.1, relative_to=Ray.name),
    ],
    others=(DaskDistributed.name, Ray.name),
    note="`entangle.engine` on the same kind of cluster as the peer has, which is warm",
)(fan_in)
