"""A run as plain data, fit for JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from entangle._records.rows import Input, NodeRow, RunGraph, RunRow, Value


def value_as_dict(value: Value | None) -> dict[str, Any] | None:
    """A value in short."""
    if value is None:
        return None
    return {"type": value.type, "size": value.size, "hash": value.hash, "text": value.text, "kept": value.kept}


def node_as_dict(node: NodeRow, inputs: Iterable[Input], tasks: dict[int, int]) -> dict[str, Any]:
    """A node; `tasks` maps the identity of its task to the task's place in the list of tasks."""
    return {
        "number": node.number,
        "name": node.name,
        "task": tasks[id(node.task)],
        "state": node.state,
        "attempts": node.attempts,
        "ready": node.ready,
        "started": node.started,
        "ended": node.ended,
        "seconds": node.seconds,
        "times": asdict(node.times),
        "place": node.place,
        "ticket": node.ticket,
        "pid": node.pid,
        "cpu": node.cpu,
        "worker": node.worker,
        "peak_memory": node.peak_memory,
        "items": node.items,
        "items_failed": node.items_failed,
        "items_skipped": node.items_skipped,
        "value": value_as_dict(node.value),
        "error": asdict(node.error) if node.error else None,
        "cause": node.cause,
        "hit": node.hit,
        "made": node.made,
        "depot_key": node.depot_key,
        "inputs": [{"argument": one.argument, "source": one.source, "value": value_as_dict(one.value)} for one in inputs],
        "tries": list(node.tries),
    }


def summary(run: RunRow) -> dict[str, Any]:
    """A run without its nodes."""
    return {
        "id": run.id,
        "name": run.name,
        "task": run.task,
        "state": run.state,
        "started": run.started,
        "ended": run.ended,
        "seconds": run.seconds,
        "nodes": run.node_count,
        "done": run.done_count,
        "failed": run.failed_count,
        "skipped": run.skipped_count,
        "workers": run.workers,
        "host": run.host,
        "pid": run.pid,
        "user": run.user,
        "cwd": run.cwd,
        "program": run.program,
        "python": run.python,
        "platform": run.platform,
        "entangle": run.entangle,
        "way": run.way,
        "git": asdict(run.git) if run.git else None,
        "packages": run.packages,
        "tags": run.tags,
        "parent": run.parent_id,
        "parent_node": run.parent_node,
        "error": asdict(run.error) if run.error else None,
        "graph": run.graph,
        "taken": [asdict(taken) for taken in run.taken],
        "taken_count": run.taken_count,
    }


def run_as_dict(run: RunGraph) -> dict[str, Any]:
    """A run with its tasks, its nodes, and the ids of the runs that were called in it."""
    tasks = run.tasks
    places = {id(task): place for place, task in enumerate(tasks)}
    return {
        **summary(run),
        "tasks": [asdict(task) for task in tasks],
        "node_list": [node_as_dict(node, run.inputs_of(node.number), places) for node in run.nodes],
        "children": [child.id for child in run.children],
        "retirements": [asdict(retirement) for retirement in run.retirements],
    }
