"""Answers for the page about runs whose log segments are large and not ingested yet.

It takes a second or two to ingest a hundred thousand nodes. A user who opens the page just after
such a run does not wait for that: what the page shows first is read from the segment.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from entangle._records.directory import segments_of
from entangle._records.ingest import state_of
from entangle._records.log_segment import OURS, SUFFIX, LogSegment, read
from entangle._shared.table import DONE, FAILED, READY, RECORD, RUNNING, SKIPPED, WAITING
from entangle.web.lanes import Stretch, lane_of
from entangle.web.page_graph import GraphPart

_STATES = {DONE: "done", FAILED: "failed", SKIPPED: "skipped", RUNNING: "cancelled", READY: "waiting", WAITING: "waiting"}


@lru_cache(maxsize=2)
def _read(path: str, size: int, changed: int) -> LogSegment | None:
    """A segment of a run that is over. Such a segment does not change."""
    try:
        segment = read(path)
    except (OSError, ValueError):
        return None
    return None if segment.live or segment.tail is None else segment


def _segment(directory: str, run_id: str) -> LogSegment | None:
    path = os.path.join(segments_of(directory), run_id + SUFFIX)
    if not OURS.fullmatch(os.path.basename(path)):
        return None
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return _read(path, found.st_size, found.st_mtime_ns)


def _summary(segment: LogSegment) -> dict[str, Any]:
    head, tail = segment.head, segment.tail
    assert tail is not None
    git, error = head.get("git") or {}, tail.get("error")
    return {
        "id": segment.id,
        "task": head["name"],
        "state": state_of(tail),
        "began": head["began"] / 1e9,
        "seconds": (tail["ended"] - head["clock"]) / 1e9,
        "nodes": len(segment.body_of),
        "done": segment.states.count(DONE),
        "failed": segment.states.count(FAILED),
        "skipped": segment.states.count(SKIPPED),
        "error": {"type": error["type"], "message": error["message"][:300]} if error else None,
        "program": head["place"].get("program"),
        "commit": git.get("commit"),
        "dirty": bool(tail.get("dirty")),
        "taken": tail.get("taken_count") or 0,
        "tags": head.get("tags") or {},
        "host": head["host"],
        "live": False,
    }


def runs(directory: str) -> list[dict[str, Any]]:
    """The runs that were not called in another run."""
    try:
        names = os.listdir(segments_of(directory))
    except OSError:
        return []
    found = (_segment(directory, name.removesuffix(SUFFIX)) for name in names if OURS.fullmatch(name))
    return [_summary(segment) for segment in found if segment is not None and not segment.head.get("parent")]


def info(directory: str, run_id: str) -> dict[str, Any] | None:
    """What is known of a run as a whole; None where there is no such segment."""
    segment = _segment(directory, run_id)
    if segment is None:
        return None
    assert segment.tail is not None
    found = _summary(segment)
    error = segment.tail.get("error")
    counts: Counter[str] = Counter()
    for state, count in Counter(segment.states).items():
        counts[_STATES.get(state, "waiting")] += count
    place = segment.head["place"]
    return {
        **found,
        "counts": dict(counts),
        "error": {name: error[name] for name in ("type", "message", "traceback", "node")} if error else None,
        "load": [sample[:3] for sample in segment.tail.get("load") or []],
        "stream": None,
        "parent": None,
        "platform": place.get("platform"),
        "python": place.get("python"),
        "command": place.get("program"),
        "pid": segment.head["pid"],
        "workers": segment.tail.get("workers"),
        "retirements": [],
        "packages": {"entangle": place.get("entangle"), **(segment.head.get("packages") or {})},
        "critical": [],
    }


def part(directory: str, run_id: str, opened: bool) -> GraphPart | None:
    """The graph of a run, node by node if `opened`, else with the nodes of a task as one; None
    where there is no such segment."""
    segment = _segment(directory, run_id)
    if segment is None:
        return None
    body_of = segment.body_of
    names = list(dict.fromkeys(body["name"] for body in segment.head["bodies"]))
    place = [names.index(body["name"]) for body in segment.head["bodies"]]
    task_of = [place[body] for body in body_of]
    if opened:
        states = [_STATES.get(state, "waiting") for state in segment.states]
        return GraphPart(run_id, names, task_of, states, _edges(segment), names=segment.names)
    totals: Counter[tuple[int, str]] = Counter()
    for (body, state), count in Counter(zip(body_of, segment.states, strict=True)).items():
        totals[place[body], _STATES.get(state, "waiting")] += count
    links = Counter((task_of[source], task_of[node]) for source, node in _edges(segment))
    return GraphPart(run_id, names, task_of, (), (), links=links, sinks=(), totals=totals)


def _edges(segment: LogSegment) -> Iterator[tuple[int, int]]:
    starts, inputs = segment.starts, segment.inputs
    for node in range(len(segment.body_of)):
        for taken in inputs[starts[node] : starts[node + 1]]:
            if taken >= 0:
                yield taken, node


def stretches(directory: str, run_id: str, by: str) -> tuple[list[Stretch], float] | None:
    """Which worker ran what, in seconds since the run began, and how long it took; None where there
    is no such segment."""
    segment = _segment(directory, run_id)
    if segment is None:
        return None
    tail, clock = segment.tail, segment.head["clock"]
    assert tail is not None
    names = [body["name"] for body in segment.head["bodies"]]
    error, failed = tail.get("error") or {}, {one["node"]: f"{one['type']}: {one['message']}" for one in tail.get("failures") or ()}
    if error.get("node") is not None:
        failed[error["node"]] = f"{error['type']}: {error['message']}"
    found = []
    where = tail.get("places", ())
    ran_at = dict(zip(where[::4], where[1::4], strict=True))
    # How long a node was queued within the time that its record has.
    queued = {node: -much for node, much in zip(where[::4], where[3::4], strict=True) if much < 0}
    host = segment.head["host"]
    for one in tail["tries"]:
        if one.get("began"):
            at = one.get("place") or ran_at.get(one["node"], host)
            lane, label = lane_of(by, one["pid"], None, one["worker"], at)
            began, ended = ((one[moment] - clock) / 1e9 for moment in ("began", "ended"))
            name = names[segment.body_of[one["node"]]]
            found.append(Stretch(lane, label, began, ended, name, str(one["node"]), one["error"][:200], attempt=one["attempt"]))
    lanes: dict[tuple[int | str, ...], tuple[tuple[int | str, ...], str]] = {}
    make, add = tuple.__new__, found.append
    rows = zip(segment.body_of, segment.states, RECORD.iter_unpack(segment.records), strict=True)
    for node, (body, state, (started, ended, _, _, _, pid, cpu, worker)) in enumerate(rows):
        if not started or not ended:
            continue
        at = ran_at.get(node, host)
        if node in queued:
            started = min(started + queued[node], ended)
        key = (at,) if by == "place" else (cpu,) if by == "cpu" else (pid, worker)
        lane_label = lanes.get(key)
        if lane_label is None:
            lane_label = lanes[key] = lane_of(by, pid, cpu, worker, at)
        reason = failed.get(node, "failed")[:200] if state == FAILED else ""
        add(make(Stretch, (*lane_label, (started - clock) / 1e9, (ended - clock) / 1e9, names[body], str(node), reason, 1, 0)))
    return found, (tail["ended"] - clock) / 1e9
