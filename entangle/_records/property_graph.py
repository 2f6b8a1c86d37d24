"""A run as vertices and edges of a property graph.

::

    (call)-[made]->(value)      (call)-[takes {argument}]->(value)      (call)-[ran]->(task)
    (call)-[part_of]->(run)     (run)-[part_of]->(call)         a run that was called in a body

Ids are made of what they stand for, so what is sent twice is there once. A value belongs to one
call: two calls that made equal values have a vertex each, with the same `hash`. One vertex for both
would say that each call had made the other's value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from entangle._records.rows import RunGraph, TaskRecord, Value

LABELS = ("run", "call", "task", "value")


@dataclass(frozen=True)
class Vertex:
    """A vertex: its id, its label, its properties."""

    id: str
    label: str
    properties: dict[str, Any]


@dataclass(frozen=True)
class GraphEdge:
    """An edge from one vertex to another, by their ids."""

    id: str
    label: str
    source: str
    target: str
    properties: dict[str, Any]


def vertices_of(run: RunGraph) -> Iterator[Vertex]:
    """The vertices of a run."""
    git = {"git_commit": run.git.commit, "git_branch": run.git.branch, "git_dirty": run.git.dirty} if run.git else {}
    error = {"error": str(run.error)} if run.error else {}
    about = {
        "name": run.name,
        "state": run.state,
        "started": run.started,
        "ended": run.ended,
        "seconds": run.seconds,
        "calls": run.node_count,
        "failed": run.failed_count or None,
        "skipped": run.skipped_count or None,
        "host": run.host,
        "user": run.user,
        "python": run.python,
        "platform": run.platform,
        "entangle": run.entangle,
        "retirements": "; ".join(f"pid {ended.pid}: {ended.reason}" for ended in run.retirements) or None,
        **git,
        **error,
        **{f"tag_{name}": value for name, value in run.tags.items()},
    }
    yield Vertex(f"run:{run.id}", "run", _said(about))
    for task in run.tasks:
        told = {"name": task.name, "module": task.module, "version": task.version, "source": task.source, "layers": " ".join(task.layers)}
        plain = {name: value for name, value in task.attributes.items() if isinstance(value, (str, int, float, bool))}
        yield Vertex(_task_id(task), "task", _said({**told, **{f"attribute_{name}": value for name, value in plain.items()}}))
    for node in run.nodes:
        about = {
            "name": node.name,
            "run": run.id,
            "node": node.number,
            "state": node.state,
            "attempts": node.attempts,
            "started": node.started,
            "ended": node.ended,
            "seconds": node.seconds,
            "host": run.host,
            "place": node.place,
            "ticket": node.ticket,
            "pid": node.pid,
            "cpu": node.cpu,
            "peak_memory": node.peak_memory,
            "error": str(node.error) if node.error else None,
            "cause": node.cause,
        }
        yield Vertex(f"call:{run.id}:{node.number}", "call", _said(about))
        if node.state == "done":
            yield _value(f"value:{run.id}:{node.number}", node.value)
        for position, taken in enumerate(run.inputs_of(node.number)):
            if taken.source is None:
                yield _value(f"value:{run.id}:{node.number}:{position}", taken.value)


def edges_of(run: RunGraph) -> Iterator[GraphEdge]:
    """The edges of a run. The edge to the run around it is sent with that run, which may not be
    there yet."""
    mine = f"run:{run.id}"
    for child in run.children:
        around = f"call:{run.id}:{child.parent_node}"
        yield GraphEdge(f"part_of:run:{child.id}", "part_of", f"run:{child.id}", around, {})
    for node in run.nodes:
        serial = f"{run.id}:{node.number}"
        call = f"call:{serial}"
        yield GraphEdge(f"part_of:{serial}", "part_of", call, mine, {})
        yield GraphEdge(f"ran:{serial}", "ran", call, _task_id(node.task), {})
        if node.state == "done":
            yield GraphEdge(f"made:{serial}", "made", call, f"value:{serial}", {})
        for position, taken in enumerate(run.inputs_of(node.number)):
            if taken.source is None:
                value = f"value:{serial}:{position}"
            elif run.nodes[taken.source].state == "done":
                value = f"value:{run.id}:{taken.source}"
            else:
                continue
            yield GraphEdge(f"takes:{serial}:{position}", "takes", call, value, {"argument": taken.argument})


def stubs_of(run: RunGraph) -> Iterator[Vertex]:
    """Vertices of the runs that were called in this one, with a name alone: an edge needs both
    ends. When those runs are sent, they add the rest."""
    for child in run.children:
        yield Vertex(f"run:{child.id}", "run", {"name": child.name})


def _task_id(task: TaskRecord) -> str:
    return f"task:{task.version}"


def _value(identity: str, value: Value | None) -> Vertex:
    if value is None:
        return Vertex(identity, "value", {})
    return Vertex(identity, "value", _said({"type": value.type, "size": value.size, "hash": value.hash, "text": value.text}))


def _said(properties: dict[str, Any]) -> dict[str, Any]:
    """The properties that are known: a property graph has no null. Integers beyond 64 bits become
    text."""
    told = {}
    for name, value in properties.items():
        if value is None:
            continue
        too_large = type(value) is int and not -(1 << 63) <= value < 1 << 63
        told[name] = str(value) if too_large else value
    return told
