"""A run as a trace for chrome://tracing and ui.perfetto.dev (Trace Event Format, JSON).

There is a track for each worker, a slice for each node, and an arrow from the node that made a
value to the one that took it. Runs that were called in bodies have processes of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from entangle._records.rows import RunGraph

#: Arrows are drawn for up to this many edges: a browser cannot show more.
MOST_ARROWS = 20_000


def to_trace(run: RunGraph) -> str:
    """The trace."""
    events: list[dict[str, Any]] = []
    for number, one in enumerate(_family(run), 1):
        events += _events(one, number, run.started_ns)
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"run": run.id, "name": run.name, "host": run.host}})


def _family(run: RunGraph) -> Iterator[RunGraph]:
    yield run
    for child in run.children:
        yield from _family(child)


def _events(run: RunGraph, number: int, zero: int) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": number, "tid": 0, "name": "process_name", "args": {"name": f"run {run.id} {run.name} on {run.host}"}}
    tracks: dict[tuple[int, int], int] = {}
    nodes = run.nodes
    for node in nodes:
        if node.worker is not None and node.pid is not None and (node.worker, node.pid) not in tracks:
            tracks[node.worker, node.pid] = len(tracks) + 1
    for (worker, pid), track in tracks.items():
        yield {"ph": "M", "pid": number, "tid": track, "name": "thread_name", "args": {"name": f"worker {worker} (pid {pid})"}}
    where: dict[int, tuple[int, float, float]] = {}
    for node in nodes:
        if node.worker is None or node.pid is None or node.started_ns is None or node.ended_ns is None:
            continue
        track = tracks[node.worker, node.pid]
        began, took = (node.started_ns - zero) / 1e3, (node.ended_ns - node.started_ns) / 1e3
        where[node.number] = track, began, began + took
        yield {
            "ph": "X",
            "pid": number,
            "tid": track,
            "name": node.name,
            "cat": node.state,
            "ts": began,
            "dur": took,
            "args": {
                "node": node.number,
                "cpu": node.cpu,
                "attempts": node.attempts,
                **({"place": node.place} if node.place else {}),
                **({"ticket": node.ticket} if node.ticket else {}),
                "value": node.value.text if node.value else None,
                **({"error": str(node.error)} if node.error else {}),
                **({"task": node.task.name} if node.name != node.task.name else {}),
            },
        }
    for ended in run.retirements:
        track = next((track for (_, pid), track in tracks.items() if pid == ended.pid), 0)
        when = ended.at * 1e6 - zero / 1e3
        why = {"pid": ended.pid, "reason": ended.reason}
        yield {"ph": "i", "s": "t", "pid": number, "tid": track, "name": "the worker ends", "cat": "worker", "ts": when, "args": why}
    for node in nodes:
        if node.cause in where:
            # It never ran: an instant on the track of the node that failed.
            track, _, end = where[node.cause]
            about = {"node": node.number, "cause": node.cause}
            yield {"ph": "i", "s": "t", "pid": number, "tid": track, "name": node.name, "cat": node.state, "ts": end, "args": about}
    if len(run.edges) > MOST_ARROWS:
        return
    for serial, edge in enumerate(run.edges):
        if edge.source in where and edge.target in where:
            track, _, end = where[edge.source]
            taker, begin, _ = where[edge.target]
            arrow = {"cat": "value", "name": edge.argument, "id": f"{number}.{serial}", "pid": number}
            yield {**arrow, "ph": "s", "tid": track, "ts": end}
            yield {**arrow, "ph": "f", "bp": "e", "tid": taker, "ts": begin}
