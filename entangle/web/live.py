"""Live runs, as the page wants them. Their tables are mapped for as long as one look takes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from entangle._shared.table import DONE, FAILED, READY, RECORD, RUNNING, WAITING
from entangle._watch.live_runs import LiveRun, live_runs
from entangle._watch.outline import Outline, read_outline
from entangle.web.lanes import Stretch, lane_of
from entangle.web.page_graph import GraphPart, condensed, drawn, name_of, reached
from entangle.web.recorded import Absent

_STATES = {WAITING: "waiting", READY: "ready", RUNNING: "running", DONE: "done", FAILED: "failed"}


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
    """A live run, and those nested in it. Raises Absent where it is not live, or no longer."""
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
    done, running, waiting, failed = run.counts()
    outline = run.outline
    return {
        "id": run.id,
        "task": run.name(run.table.nodes - 1),
        "state": "running",
        "live": True,
        "began": outline.about["began"] if outline else None,
        "seconds": run.seconds,
        "nodes": run.table.nodes,
        "done": done,
        "running": running,
        "waiting": waiting,
        "failed": failed,
        "pid": run.pid,
        "command": " ".join(outline.about["command"]) if outline else "",
    }


def info(run_id: str) -> dict[str, Any]:
    """What is known of a run as a whole."""
    with family(run_id) as runs:
        found = _summary(runs[0])
        found["counts"] = _counts(runs[0])
        if runs[0].parent is not None:
            found["parent"] = dict(zip(("run", "node"), runs[0].parent, strict=True))
        return found


def _counts(run: LiveRun) -> dict[str, int]:
    return dict(zip(("done", "running", "waiting", "failed"), run.counts(), strict=True))


def look(run_id: str, seen: dict[str, GraphPart]) -> dict[str, Any]:
    """How far a run is: counts, and its graph as it is now. `seen` keeps the graphs of nested runs
    that are over by now."""
    with family(run_id) as runs:
        now = {run.id: part for run in runs if (part := _part(run)) is not None}
        for over in seen.keys() - now.keys():
            seen[over].states = ["done"] * len(seen[over].states)
        seen.update(now)
        parts = [seen[run_id], *(part for run, part in seen.items() if run != run_id)] if run_id in seen else [_shapeless(runs[0])]
        return {
            "seconds": runs[0].seconds,
            "counts": _counts(runs[0]),
            "nodes": runs[0].table.nodes,
            "workers": sum(len(run.workers()) for run in runs),
            "graph": drawn(parts),
        }


def graph(run_id: str, opened: list[str]) -> dict[str, Any]:
    """The graph of a run as it is now."""
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
    """The outline of a run, and its edges in short. Neither changes, and a run may have a million
    nodes, so they are kept from one look to the next. The name of a directory is never used
    again."""
    outline = read_outline(directory)
    if outline is None:
        raise Absent(f"{directory} has no outline.")
    return outline, *condensed(outline.body_of, _Edges(outline))


def _part(run: LiveRun) -> GraphPart | None:
    try:
        outline, links, sinks = _structure(run.directory)
    except Absent:
        return None
    return GraphPart(
        run.id,
        outline.names,
        outline.body_of,
        run.states(),
        _Edges(outline),
        inside=tuple(outline.about["parent"]) if outline.about["parent"] else None,
        links=links,
        sinks=sinks,
    )


def _shapeless(run: LiveRun) -> GraphPart:
    """A run in its first moments: its states are known, its names are not yet."""
    states = run.states()
    return GraphPart(run.id, ["task"], [0] * len(states), states, ())


def stretches(run_id: str, by: str) -> tuple[list[Stretch], float]:
    """Which worker ran what, in seconds since the run began, and how long it has lasted. Nodes that
    are running are included."""
    found: list[Stretch] = []
    with family(run_id) as runs:
        lasted = runs[0].seconds
        began = runs[0].began_ns
        for run in runs:
            states = bytes(run.table.states)
            for node, (started, ended, _, _, _, pid, cpu, worker) in enumerate(RECORD.iter_unpack(bytes(run.table.records))):
                if states[node] not in (DONE, FAILED) or not started:
                    continue
                lane, label = lane_of(by, pid, cpu, worker)
                found.append(
                    Stretch(
                        lane,
                        label,
                        (started - began) / 1e9,
                        (ended - began) / 1e9,
                        run.name(node) or "task",
                        name_of(run_id, run.id, node),
                        states[node] == FAILED,
                    )
                )
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
                                view.task or "task",
                                name_of(run_id, run.id, view.node),
                                False,
                            )
                        )
    return found, lasted


def nodes(run_id: str, limit: int, order: str, state: str, query: str) -> dict[str, Any]:
    """Nodes of a run that fit, in that order, at most `limit`, and how many there are."""
    words = query.lower().split()
    with family(run_id) as runs:
        run = runs[0]
        rows: list[dict[str, Any]] = []
        states = bytes(run.table.states)
        for node, (started, ended, _, _, _, pid, cpu, _) in enumerate(RECORD.iter_unpack(bytes(run.table.records))):
            name = run.name(node)
            told = _STATES.get(states[node], "waiting")
            if (state and told != state) or not all(word in name.lower() for word in words):
                continue
            over = states[node] in (DONE, FAILED) and started
            rows.append(
                {
                    "node": node,
                    "task": name or "task",
                    "state": told,
                    "seconds": (ended - started) / 1e9 if over else None,
                    "started": started if over else 1 << 62,
                    "value": None,
                    "pid": pid if over else None,
                    "cpu": cpu if over else -1,
                    "attempts": run.table.attempts[node] + 1 if over else 0,
                }
            )
    if order == "seconds":
        rows.sort(key=lambda row: -(row["seconds"] or 0.0))
    elif order == "started":
        rows.sort(key=lambda row: row["started"])
    return {"total": len(rows), "nodes": rows[:limit]}


def node(root: str, run_id: str, number: int) -> dict[str, Any]:
    """What is known of a node of a live run. Values and source come with its record."""
    with family(run_id) as runs:
        run = runs[0]
        if not 0 <= number < run.table.nodes:
            raise Absent(f"Run {run_id} has no node {number}.")
        started, ended, _, _, _, pid, cpu, _ = run.table.record(number)
        state = run.table.states[number]
        over = state in (DONE, FAILED) and bool(started)
        worker = next((view for view in run.workers() if view.node == number), None)
        outline = run.outline
        return {
            "node": name_of(root, run_id, number),
            "task": run.name(number) or "task",
            "state": _STATES.get(state, "waiting"),
            "attempts": run.table.attempts[number] + 1,
            "error": None,
            "output": None,
            "inputs": [
                {"name": "", "source": name_of(root, run_id, taken), "task": run.name(taken), "value": None}
                for taken in (outline.sources(number) if outline else ())
            ],
            "spans": {"running": (ended - started) / 1e9 if over else worker.seconds if worker else 0.0},
            "started": (started - run.began_ns) / 1e9 if over else None,
            "pid": pid if over else worker.pid if worker else None,
            "cpu": cpu if over else -1,
            "nested": [
                {"id": inner.id, "task": inner.name(inner.table.nodes - 1), "nodes": inner.table.nodes}
                for inner in runs[1:]
                if inner.parent == (run_id, number)
            ],
        }


def way(root: str, run_id: str, number: int, back: bool) -> dict[str, Any]:
    """All nodes that a node's value is made from, or that will be made from it."""
    with family(run_id) as runs:
        run = runs[0]
        outline = run.outline
        if outline is None:
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
    """The tasks of a run: how many calls, and how long those took that are over."""
    with family(run_id) as runs:
        run = runs[0]
        found: dict[str, dict[str, Any]] = {}
        states = bytes(run.table.states)
        for node, (started, ended, *_) in enumerate(RECORD.iter_unpack(bytes(run.table.records))):
            name = run.name(node) or "task"
            row = found.setdefault(name, {"task": name, "code": None, "count": 0, "over": 0, "failed": 0, "total": 0.0, "longest": 0.0})
            row["count"] += 1
            row["failed"] += states[node] == FAILED
            if states[node] == DONE and started:
                lasted = (ended - started) / 1e9
                row["over"] += 1
                row["total"] += lasted
                row["longest"] = max(row["longest"], lasted)
        for row in found.values():
            row["mean"] = row["total"] / row.pop("over") if row["over"] else row.pop("over") or None
        return list(found.values())
