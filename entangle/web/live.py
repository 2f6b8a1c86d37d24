"""Answers for the page about live runs. Their tables are mapped only while they are read."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from entangle._shared import printout
from entangle._shared.masks import is_secret, masked
from entangle._shared.table import BEGUN, DONE, FAILED, READY, RECORD, RUNNING, RUNS, SKIPPED, SLOT, UNARMED, WAITING
from entangle._shared.whole_files import open_file, read_whole
from entangle._watch.live_runs import LiveRun, live_runs
from entangle._watch.outline import HOW_FAR, LOAD, Outline, read_outline
from entangle.web import stage_numbers
from entangle.web.lanes import HERE, Stretch, lane_of
from entangle.web.page_graph import GraphPart, condensed, drawn, name_of, reached, short_call
from entangle.web.recorded import Absent

_STATES = {WAITING: "waiting", READY: "ready", RUNNING: "running", DONE: "done", FAILED: "failed", UNARMED: "waiting", SKIPPED: "skipped"}


@contextlib.contextmanager
def watched() -> Iterator[list[LiveRun]]:
    """All live runs."""
    found = live_runs()
    try:
        yield found
    finally:
        for run in found:
            run.close()


@contextlib.contextmanager
def family(run_id: str) -> Iterator[list[LiveRun]]:
    """A live run, and those nested in it. Raises Absent if it is not, or no longer, live."""
    with watched() as found:
        mine = {run_id}
        for run in found:  # a nested run comes after the run around it
            if run.outer in mine:
                mine.add(run.id)
        chosen = [run for run in found if run.id in mine]
        if not chosen or chosen[0].id != run_id:
            raise Absent(f"Run {run_id} is not running.")
        yield chosen


def cards() -> list[dict[str, Any]]:
    """The live runs that are not nested in others."""
    with watched() as found:
        return [_summary(run) for run in found if run.outer is None]


def _summary(run: LiveRun) -> dict[str, Any]:
    told = _how_far(run)
    counts = _counts(run, told)
    outline = run.outline
    return {
        "id": run.id,
        "task": told["stages"][0]["name"] if told else run.name(run.table.nodes - 1),
        "state": "running",
        "live": True,
        "began": outline.about["began"] if outline else None,
        "seconds": run.seconds,
        "nodes": len(told["stages"]) if told else run.table.nodes,
        "stream": bool(told),
        "counts": counts,
        **{name: counts.get(name, 0) for name in ("done", "running", "failed")},
        "pid": run.pid,
        "command": " ".join(outline.about["command"]) if outline else "",
    }


def info(run_id: str) -> dict[str, Any]:
    """What is known of a run as a whole."""
    with family(run_id) as runs:
        found = _summary(runs[0])
        told = _how_far(runs[0])
        found["stream"] = stage_numbers.summary(told, runs[0].seconds, live=True) if told else None
        found["load"] = _load(runs)
        found["away"] = _away(runs)
        if runs[0].parent is not None:
            found["parent"] = dict(zip(("run", "node"), runs[0].parent, strict=True))
        return found


def _away(runs: list[LiveRun]) -> list[dict[str, Any]]:
    """How many nodes are at other places, and why they wait there; the largest numbers first."""
    total: Counter[tuple[str, str]] = Counter()
    for run in runs:
        for one in run.whereabouts()[1]:
            total[one.place, one.why] += one.nodes
    return [{"place": place, "why": why, "nodes": nodes} for (place, why), nodes in total.most_common(MOST_REASONS)]


def _counts(run: LiveRun, told: dict[str, Any] | None) -> dict[str, int]:
    """How many nodes are in each state; of a stream, how many items."""
    if told:
        first, last = told["stages"][0], told["stages"][-1]
        failed = sum(stage["failed"] for stage in told["stages"])
        under_way = max(0, told.get("pulled", first["done"]) - last["done"] - failed)
        return {"done": last["done"], "running": under_way, "failed": failed}
    counts: Counter[str] = Counter()
    states = bytes(run.table.states)
    for number, name in _STATES.items():
        counts[name] += states.count(number)
    queued = min(run.queued(), counts["running"])
    counts["running"] -= queued
    counts["ready"] += queued
    return {name: count for name, count in counts.items() if count}


def _how_far(run: LiveRun) -> dict[str, Any] | None:
    """What a stream says of its stages; None for any other run, and in the first moments of one."""
    told = read_whole(os.path.join(run.directory, HOW_FAR))
    return told if isinstance(told, dict) and told.get("stages") else None


def _load(runs: list[LiveRun]) -> list[list[float]]:
    """CPU and memory of a run and of those nested in it, as their supervisors last reported them:
    seconds, CPUs, bytes."""
    first, *nested = (read_whole(os.path.join(run.directory, LOAD)) or [] for run in runs)
    total = [[at, cpus, memory] for at, cpus, memory, _ in first]
    for run, samples in zip(runs[1:], nested, strict=True):
        later = (run.began_ns - runs[0].began_ns) / 1e9
        at = 0
        for moment in total:
            while at < len(samples) and later + samples[at][0] < moment[0]:
                at += 1
            if samples and later <= moment[0]:
                _, cpus, memory, _ = samples[min(at, len(samples) - 1)]
                moment[1], moment[2] = round(moment[1] + cpus, 3), moment[2] + memory
    return total


def look(run_id: str, seen: dict[str, GraphPart]) -> dict[str, Any]:
    """How far a run is: its counts, and its graph now. `seen` keeps the graphs of nested runs that
    are over."""
    with family(run_id) as runs:
        now = {run.id: part for run in runs if (part := _part(run)) is not None}
        for over in seen.keys() - now.keys():
            seen[over].states = ["done"] * len(seen[over].states)
        seen.update(now)
        parts = [seen[run_id], *(part for run, part in seen.items() if run != run_id)] if run_id in seen else [_shapeless(runs[0])]
        told = _how_far(runs[0])
        return {
            "seconds": runs[0].seconds,
            "counts": _counts(runs[0], told),
            "nodes": len(told["stages"]) if told else runs[0].table.nodes,
            **({"stream": stage_numbers.summary(told, runs[0].seconds, live=True)} if told else {}),
            "workers": sum(len(run.workers()) for run in runs),
            "away": _away(runs),
            "graph": drawn(parts),
        }


def graph(run_id: str, opened: list[str]) -> dict[str, Any]:
    """The present graph of a run."""
    with family(run_id) as runs:
        return drawn([part for run in runs if (part := _part(run)) is not None] or [_shapeless(runs[0])], opened)


class _Edges:
    """The edges of an outline. They can be iterated again and again, and are never all in
    memory."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline

    def __iter__(self) -> Iterator[tuple[int, int]]:
        starts, inputs = self._outline.starts, self._outline.inputs
        for node in range(len(starts) - 1):
            for taken in inputs[starts[node] : starts[node + 1]]:
                if taken >= 0:
                    yield taken, node


@lru_cache(maxsize=16)
def _structure(directory: str) -> tuple[Outline, Counter[tuple[int, int]], list[int]]:
    """The outline of a run, and its condensed edges. A run may have a million nodes, so both are
    cached: they do not change, and the name of a directory is never used again."""
    outline = read_outline(directory)
    if outline is None:
        raise Absent(f"{directory} has no outline.")
    return outline, *condensed(outline.body_of, _Edges(outline))


def _part(run: LiveRun) -> GraphPart | None:
    try:
        outline, links, sinks = _structure(run.directory)
    except Absent:
        return None
    inside = tuple(outline.about["parent"]) if outline.about["parent"] else None
    told = _how_far(run)
    if told:
        return stage_numbers.part(run.id, told, run.seconds, inside)
    return GraphPart(
        run.id,
        outline.names,
        outline.body_of,
        run.states(),
        _Edges(outline),
        seconds=_seconds(run) if run.table.nodes <= LABELLED else (),
        calls=[short_call(call) for call in outline.about["calls"]],
        names={int(node): name for node, name in outline.about["given"].items()},
        inside=inside,
        links=links,
        sinks=sinks,
    )


#: The most reasons that are shown why nodes wait in other places.
MOST_REASONS = 8
#: The most nodes of a graph on which the page shows how long they took.
LABELLED = 400


def _seconds(run: LiveRun) -> list[float | None]:
    """How long the body of each node took; None if it is not over."""
    states = bytes(run.table.states)
    records = RECORD.iter_unpack(bytes(run.table.records))
    return [
        (ended - started) / 1e9 if state in (DONE, FAILED) and started else None
        for state, (started, ended, *_) in zip(states, records, strict=True)
    ]


def _shapeless(run: LiveRun) -> GraphPart:
    """A run in its first moments: its states are known, its names are not."""
    states = run.states()
    return GraphPart(run.id, ["task"], [0] * len(states), states, ())


def stretches(run_id: str, by: str) -> tuple[list[Stretch], float]:
    """Which worker ran what, in seconds since the run began, and how long the run has lasted. Nodes
    that are running are included."""
    found: list[Stretch] = []
    with family(run_id) as runs:
        lasted = runs[0].seconds
        began = runs[0].began_ns
        for run in runs:
            told = _how_far(run)
            if told:
                later = (run.began_ns - began) / 1e9
                for one in stage_numbers.stretches(told, by, functools.partial(name_of, run_id, run.id)):
                    found.append(one._replace(started=one.started + later, ended=one.ended + later))
                continue
            places = run.places() if by == "place" else {}
            for tried in _attempts(run):
                if tried["began"]:
                    place = tried.get("place") or (places[tried["node"]].place if tried["node"] in places else HERE)
                    lane, label = lane_of(by, tried["pid"], None, tried["worker"], place)
                    since, until = ((tried[moment] - began) / 1e9 for moment in ("began", "ended"))
                    name, task = name_of(run_id, run.id, tried["node"]), _task(run, tried["node"])
                    found.append(Stretch(lane, label, since, until, task, name, tried["error"][:200], attempt=tried["attempt"]))
            states = bytes(run.table.states)
            for node, (started, ended, _, _, _, pid, cpu, worker) in enumerate(RECORD.iter_unpack(bytes(run.table.records))):
                if states[node] not in (DONE, FAILED) or not started:
                    continue
                lane, label = lane_of(by, pid, cpu, worker, places[node].place if node in places else HERE)
                found.append(
                    Stretch(
                        lane,
                        label,
                        (started - began) / 1e9,
                        (ended - began) / 1e9,
                        _task(run, node),
                        name_of(run_id, run.id, node),
                        "failed" if states[node] == FAILED else "",
                    )
                )
            if by == "place":
                now = time.monotonic_ns()
                for there in places.values():
                    if states[there.node] == RUNNING and not there.why and there.since:
                        task, name = _task(run, there.node), name_of(run_id, run.id, there.node)
                        since, until = ((moment - began) / 1e9 for moment in (there.since, now))
                        found.append(Stretch(*lane_of(by, None, None, None, there.place), since, until, task, name))
            if by == "worker":
                for view in run.workers():
                    if view.node >= 0:
                        lane, label = lane_of(by, view.pid, None, view.slot)
                        found.append(
                            Stretch(
                                lane,
                                label,
                                max(0.0, lasted - view.seconds),
                                lasted,
                                _task(run, view.node),
                                name_of(run_id, run.id, view.node),
                            )
                        )
    return found, lasted


def nodes(run_id: str, limit: int, order: str, state: str, query: str) -> dict[str, Any]:
    """Nodes of a run that match, in that order, at most `limit`, and how many match in all."""
    words = query.lower().split()
    with family(run_id) as runs:
        run = runs[0]
        rows: list[dict[str, Any]] = []
        stream = _how_far(run)
        if stream:
            return _stages(stream, run.seconds)
        states = bytes(run.table.states)
        counts = _counts(run, None)
        given = run.outline.about["given"] if run.outline is not None else {}
        places = run.places()
        for node, (started, ended, _, _, _, pid, cpu, _) in enumerate(RECORD.iter_unpack(bytes(run.table.records))):
            name = _task(run, node)
            there = places.get(node)
            told = "ready" if there is not None and there.why else _STATES.get(states[node], "waiting")
            if (state and told != state) or not all(word in f"{name} {given.get(str(node), '')}".lower() for word in words):
                continue
            over = states[node] in (DONE, FAILED) and started
            rows.append(
                {
                    "node": node,
                    "task": name,
                    "name": given.get(str(node)),
                    "state": told,
                    "seconds": (ended - started) / 1e9 if over else None,
                    "started": started if over else 1 << 62,
                    "value": None,
                    "place": there.place if there is not None else None,
                    "ticket": there.ticket if there is not None else None,
                    "why": there.why if there is not None else "",
                    "pid": pid if over else None,
                    "cpu": cpu if over else -1,
                    "attempts": run.table.attempts[node] + 1 if over else 0,
                }
            )
    if order == "seconds":
        rows.sort(key=lambda row: -(row["seconds"] or 0.0))
    elif order == "started":
        rows.sort(key=lambda row: row["started"])
    return {"total": len(rows), "counts": counts, "nodes": rows[:limit]}


def _task(run: LiveRun, node: int) -> str:
    """The name of the task of a node."""
    outline = run.outline
    return (outline.task(node) if outline is not None and 0 <= node < run.table.nodes else "") or "task"


def _stages(told: dict[str, Any], seconds: float) -> dict[str, Any]:
    items = stage_numbers.items_of(told, seconds, live=True)
    rows = [
        {
            "node": number,
            "task": stage["name"],
            "state": stage_numbers.state_of(one),
            "seconds": one["busy"],
            "value": None,
            "place": stage.get("place"),
            "pid": None,
            "cpu": -1,
            "attempts": 0,
        }
        for number, (stage, one) in enumerate(zip(told["stages"], items, strict=True))
    ]
    return {"total": len(rows), "counts": dict(Counter(row["state"] for row in rows)), "nodes": rows}


def _attempts(run: LiveRun) -> list[dict[str, Any]]:
    """The failed attempts of nodes that were tried again, or will be."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError), open(open_file(os.path.join(run.directory, "attempts")), encoding="utf-8") as lines:
        for line in lines:
            one = json.loads(line)
            one["error"] = masked(one["error"])
            found.append(one)
    return found


def node(root: str, run_id: str, number: int) -> dict[str, Any]:
    """What is known of a node of a live run. Values and source come with its record."""
    with family(run_id) as runs:
        run = runs[0]
        stream = _how_far(run)
        if not 0 <= number < (len(stream["stages"]) if stream else run.table.nodes):
            raise Absent(f"Run {run_id} has no node {number}.")
        if stream:
            return _stage(root, run, stream, number)
        started, ended, _, _, _, pid, cpu, _ = run.table.record(number)
        state = run.table.states[number]
        over = state in (DONE, FAILED) and bool(started)
        worker = next((view for view in run.workers() if view.node == number), None)
        there = run.places().get(number)
        waits = there is not None and bool(there.why)
        outline = run.outline
        tries = [
            {**one, "number": one["attempt"], **{name: _moment(run, one[name]) for name in ("began", "ended")}}
            for one in _attempts(run)
            if one["node"] == number
        ]
        return {
            "node": name_of(root, run_id, number),
            "task": _task(run, number),
            "name": outline.about["given"].get(str(number)) if outline is not None else None,
            "state": "ready" if waits else _STATES.get(state, "waiting"),
            "pausing": bool(tries) and not over and (worker is None or run.table.slots[worker.slot * SLOT + BEGUN] != RUNS),
            "attempts": run.table.attempts[number] + 1,
            "tries": tries,
            "printed": None if is_secret(_task(run, number)) else masked(printout.gather(run.directory, number).get(number, "")) or None,
            "error": None,
            "output": None,
            "inputs": [
                {"name": "", "source": name_of(root, run_id, taken), "task": run.name(taken), "value": None}
                for taken in (outline.sources(number) if outline else ())
            ],
            "place": there.place if there is not None else None,
            "ticket": there.ticket if there is not None else None,
            "why": there.why if there is not None else "",
            "spans": {
                "elsewhere" if waits else "running": (ended - started) / 1e9
                if over
                else worker.seconds
                if worker
                else _away_for(state, there.since if there is not None and there.since else started)
            },
            "started": (started - run.began_ns) / 1e9 if over else None,
            "pid": pid if over else worker.pid if worker else None,
            "cpu": cpu if over else -1,
            "nested": [
                {"id": inner.id, "task": inner.name(inner.table.nodes - 1), "nodes": inner.table.nodes}
                for inner in runs[1:]
                if inner.parent == (run_id, number)
            ],
        }


def _away_for(state: int, started: int) -> float:
    """How long a node has run elsewhere, in seconds; 0 for one in a worker, whose record comes
    later."""
    return (time.monotonic_ns() - started) / 1e9 if state == RUNNING and started else 0.0


def _moment(run: LiveRun, clock: int) -> float | None:
    """Seconds from the beginning of the run to a moment of CLOCK_MONOTONIC (ns); None for 0."""
    return (clock - run.began_ns) / 1e9 if clock else None


def _stage(root: str, run: LiveRun, told: dict[str, Any], number: int) -> dict[str, Any]:
    """What is known of a stage of a live stream."""
    items, stage = stage_numbers.items_of(told, run.seconds, live=True)[number], told["stages"][number]
    return {
        "node": name_of(root, run.id, number),
        "task": stage["name"],
        "state": stage_numbers.state_of(items),
        "attempts": 1,
        "error": None,
        "output": None,
        "items": items,
        "place": stage.get("place"),
        "inputs": [
            {"name": "", "source": name_of(root, run.id, taken), "task": told["stages"][taken]["name"], "value": None}
            for taken in stage["inputs"]
        ],
        "spans": {},
        "started": None,
        "pid": None,
        "cpu": -1,
        "nested": [],
    }


def way(root: str, run_id: str, number: int, back: bool) -> dict[str, Any]:
    """All nodes that a node's value is made from, or that will be made from it."""
    with family(run_id) as runs:
        run = runs[0]
        outline = run.outline
        if outline is None or _how_far(run):
            return {"total": 0, "nodes": [], "tasks": [], "list": []}
        edges = _Edges(outline)
        seen = reached(number, ((node, source) for source, node in edges) if back else edges)
        shown = sorted(seen, reverse=back)[:200]
        return {
            "total": len(seen),
            "nodes": [name_of(root, run_id, one) for one in (number, *sorted(seen)[:20_000])],
            "tasks": sorted({run.name(one) for one in (number, *seen)}),
            "list": [{"id": name_of(root, run_id, one), "task": run.name(one), "value": None} for one in shown],
        }


def tasks(run_id: str) -> list[dict[str, Any]]:
    """The tasks of a run: how many calls, and how long the calls took that are over."""
    with family(run_id) as runs:
        run = runs[0]
        stream = _how_far(run)
        if stream:
            return stage_numbers.totals(stream)
        found: dict[str, dict[str, Any]] = {}
        states = bytes(run.table.states)
        for node, (started, ended, *_) in enumerate(RECORD.iter_unpack(bytes(run.table.records))):
            name = _task(run, node)
            row = found.get(name)
            if row is None:
                row = found[name] = {"task": name, "code": None, "over": 0, "total": 0.0, "longest": 0.0, **dict.fromkeys(_COUNTED, 0)}
            row["count"] += 1
            told = _STATES.get(states[node], "waiting")
            if told in _COUNTED:
                row[told] += 1
            if states[node] == DONE and started:
                lasted = (ended - started) / 1e9
                row["over"] += 1
                row["total"] += lasted
                row["longest"] = max(row["longest"], lasted)
        for row in found.values():
            row["mean"] = row["total"] / row.pop("over") if row["over"] else row.pop("over") or None
        return list(found.values())


#: States of nodes that are counted for each task.
_COUNTED = ("count", "done", "running", "failed", "skipped")
