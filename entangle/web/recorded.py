"""Runs that are remembered, as the page wants them. They are read in bulk: a run may have a million
nodes."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from entangle._records import ingest, queries
from entangle._records.database import NAME, opened
from entangle._records.directory import find_directory
from entangle._records.reading import readable_run
from entangle.errors import RecordsError
from entangle.web.lanes import Stretch, lane_of
from entangle.web.page_graph import GraphPart, name_of, reached

#: Runs nested in one that are drawn with it.
NESTED = 300
#: Calls that are listed on the way to a value.
LISTED = 200
#: Nodes of a graph whose values are shown on them.
LABELLED = 400


class Absent(Exception):
    """There is no such run, node or value."""


@contextlib.contextmanager
def records_file(fresh: bool = True) -> Iterator[sqlite3.Connection]:
    """A connection to the file of records. `fresh`: ingest first, so that runs are in it that have
    just ended."""
    directory = find_directory()
    if fresh:
        ingest.ingest(directory)
    with opened(directory) as connection:
        yield connection


def version() -> str:
    """A word that changes whenever a run is added to the records, or removed."""
    directory = find_directory()
    with contextlib.suppress(RecordsError, OSError):
        ingest.ingest(directory)
    found = []
    for name in (NAME, f"{NAME}-wal"):
        with contextlib.suppress(OSError):
            status = os.stat(os.path.join(directory, name))
            found.append(f"{status.st_mtime_ns}-{status.st_size}")
    return " ".join(found)


def runs(limit: int, query: str) -> tuple[list[dict[str, Any]], bool]:
    """The runs that no other run has called, the latest first, and whether there are more. Every
    word of `query` is in their task, id, state, tags, program or commit."""
    with records_file() as connection:
        rows = queries.runs_with_words(connection, query, limit + 1)
    directory = find_directory()
    readable = [row for row in rows[:limit] if readable_run(directory, row) is not None]
    return [_summary(row) for row in readable], len(rows) > limit


def left_out() -> list[str]:
    """What cannot be read of the records, in a line each: files that still exist, and rows."""
    return [line for path, line in ingest.left_out.items() if os.path.lexists(path) or not os.path.isabs(path)]


def _summary(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "task": row["name"],
        "state": row["state"],
        "began": row["started"] / 1e9,
        "seconds": (row["ended"] - row["started"]) / 1e9 if row["ended"] is not None else None,
        "nodes": row["node_count"],
        "done": row["done_count"],
        "commit": row["git_commit"],
        "dirty": bool(row["git_dirty"]),
        "tags": json.loads(row["tags"]),
        "host": row["host"],
        "live": False,
    }


def find(connection: sqlite3.Connection, run_id: str) -> sqlite3.Row:
    """The row of a run. Raises Absent."""
    row = queries.run(connection, run_id)
    if row is None:
        raise Absent(f"No run {run_id} is remembered.")
    return row


def info(run_id: str) -> dict[str, Any]:
    """What is known of a run as a whole."""
    with records_file() as connection:
        row = find(connection, run_id)
    error = None
    if row["error_type"] is not None:
        error = {"type": row["error_type"], "message": row["error"], "traceback": row["traceback"], "node": row["error_node"]}
    return {
        **_summary(row),
        "parent": {"run": row["parent"], "node": row["parent_node"]} if row["parent"] else None,
        "error": error,
        "platform": row["platform"],
        "python": row["python"],
        "command": row["program"],
        "pid": row["pid"],
        "workers": row["workers"],
        "packages": {"entangle": row["entangle"], **json.loads(row["packages"])},
        "critical": _critical(run_id) if row["node_count"] <= 20_000 else [],
    }


def _critical(run_id: str) -> list[dict[str, Any]]:
    from entangle import records

    path = records.run(run_id).critical_path()
    return [{"node": node.number, "task": node.name} for node in (path if len(path) <= 30 else [*path[:10], *path[-20:]])]


def parts(run_id: str) -> list[GraphPart]:
    """The graph of a run, and those of the runs nested in it."""
    with records_file() as connection:
        family = _family(connection, find(connection, run_id))
        total = sum(row["node_count"] for row in family)
        return [_part(connection, row, total <= LABELLED) for row in family]


def _family(connection: sqlite3.Connection, root: sqlite3.Row) -> list[sqlite3.Row]:
    """A run, the runs called in its nodes, and those called in theirs, as far as they are drawn."""
    family = [root]
    for row in family:
        if len(family) >= NESTED:
            break
        family += queries.children(connection, row["id"], limit=NESTED - len(family))
    return family


def _tasks(connection: sqlite3.Connection, key: int) -> tuple[list[str], dict[int, int]]:
    """The names of a run's tasks, and the place of each task's key among them."""
    rows = queries.task_names(connection, key)
    names = list(dict.fromkeys(name for _, name in rows))
    places = {name: place for place, name in enumerate(names)}
    return names, {key: places[name] for key, name in rows}


def _part(connection: sqlite3.Connection, row: sqlite3.Row, labelled: bool) -> GraphPart:
    key = row["key"]
    names, place = _tasks(connection, key)
    nodes = queries.nodes(connection, key, "task, state, started, ended" + (", text" if labelled else ""))
    return GraphPart(
        row["id"],
        names,
        [place[node[0]] for node in nodes],
        [_STATES.get(node[1], node[1]) for node in nodes],
        list(queries.edges(connection, key)),
        [(node[3] - node[2]) / 1e9 if node[3] is not None and node[2] is not None else None for node in nodes],
        [node[4] for node in nodes] if labelled else (),
        (row["parent"], row["parent_node"]) if row["parent"] else None,
    )


#: How the page shows the states of nodes whose run did not come to its end.
_STATES = {"stopped": "cancelled", "unknown": "waiting"}


def stretches(run_id: str, by: str) -> tuple[list[Stretch], float]:
    """Which worker ran what, in seconds since the run began, and how long it took."""
    found: list[Stretch] = []
    with records_file() as connection:
        root = find(connection, run_id)
        began = root["started"]
        last = root["ended"] or began
        for row in _family(connection, root):
            names, place = _tasks(connection, row["key"])
            mine = row["id"]
            for node, task, state, started, ended, pid, cpu, worker in queries.finished_nodes(connection, row["key"]):
                lane, label = lane_of(by, pid, cpu, worker)
                found.append(
                    Stretch(
                        lane,
                        label,
                        (started - began) / 1e9,
                        (ended - began) / 1e9,
                        names[place[task]],
                        name_of(run_id, mine, node),
                        state == "failed",
                    )
                )
                if ended > last:
                    last = ended
    return found, (last - began) / 1e9


def nodes(run_id: str, limit: int, order: str, state: str, query: str) -> dict[str, Any]:
    """Nodes of a run that fit, in that order, at most `limit`, and how many there are."""
    state = {"cancelled": "stopped"}.get(state, state)
    with records_file() as connection:
        key = find(connection, run_id)["key"]
        rows, total = queries.nodes_with_words(connection, key, state, query, order, limit)
    return {
        "total": total,
        "nodes": [
            {
                "node": row["node"],
                "task": row["name"],
                "state": _STATES.get(row["state"], row["state"]),
                "seconds": _lasted(row),
                "value": row["text"],
                "pid": row["pid"],
                "cpu": row["cpu"] if row["cpu"] is not None else -1,
                "attempts": row["attempts"],
            }
            for row in rows
        ],
    }


def _lasted(row: sqlite3.Row) -> float | None:
    return (row["ended"] - row["started"]) / 1e9 if row["ended"] is not None and row["started"] is not None else None


def _value(row: sqlite3.Row) -> dict[str, Any] | None:
    if row["type"] is None:
        return None
    return {"type": row["type"], "size": row["size"], "hash": row["hash"].hex() if row["hash"] else None, "text": row["text"]}


def node(root: str, run_id: str, number: int) -> dict[str, Any]:
    """All that is known of a node; nodes are named as the page of `root` names them."""
    with records_file(fresh=False) as connection:
        run = find(connection, run_id)
        key = run["key"]
        row = queries.node(connection, key, number)
        if row is None:
            raise Absent(f"Run {run_id} has no node {number}.")
        task = queries.task(connection, row["task"])
        if task is None:
            raise Absent(f"The task of node {number} of run {run_id} is not in the records.")
        inputs = queries.inputs_of(connection, key, number, 1000)
        nested = queries.children(connection, run_id, number, 50)
    error = None
    if run["error_type"] is not None and run["error_node"] == number:
        error = {"type": run["error_type"], "message": run["error"], "traceback": run["traceback"]}
    return {
        "node": name_of(root, run_id, number),
        "task": task["name"],
        "state": _STATES.get(row["state"], row["state"]),
        "attempts": row["attempts"],
        "error": error,
        "output": _value(row),
        "inputs": [
            {
                "name": given["argument"],
                "source": name_of(root, run_id, given["source"]) if given["source"] is not None else None,
                "task": given["name"],
                "value": _value(given),
            }
            for given in inputs
        ],
        "spans": _spans(run, row),
        "started": (row["started"] - run["started"]) / 1e9 if row["started"] is not None else None,
        "host": run["host"],
        "pid": row["pid"],
        "cpu": row["cpu"] if row["cpu"] is not None else -1,
        "memory": row["memory"],
        "attributes": json.loads(task["attributes"]),
        "layers": " ".join(f"@{layer}" for layer in json.loads(task["layers"])),
        "nested": [{"id": inner["id"], "task": inner["name"], "nodes": inner["node_count"]} for inner in nested],
        "source": task["source"],
        "code": task["version"],
    }


def _spans(run: sqlite3.Row, row: sqlite3.Row) -> dict[str, float]:
    """Where the time of a node went, in seconds."""
    if row["ready"] is None or row["started"] is None:
        return {}
    cookie = row["cookie_wait"] or 0
    spans = {
        "arguments": row["ready"] - run["started"],
        "queue": row["started"] - row["ready"] - cookie,
        "cookie": cookie,
        "moving": row["moved"] or 0,
        "running": (row["ended"] or row["started"]) - row["started"],
    }
    return {name: max(0, lasted) / 1e9 for name, lasted in spans.items()}


def way(root: str, run_id: str, number: int, back: bool) -> dict[str, Any]:
    """All nodes that a node's value was made from, or that were made from it."""
    # Edges have an index for one direction only: read those of the run once.
    with records_file(fresh=False) as connection:
        key = find(connection, run_id)["key"]
        seen = reached(number, queries.edges(connection, key, backwards=back))
        shown = sorted(seen, reverse=back)[:LISTED]
        told = {node: (name, text) for node, name, text in queries.nodes_numbered(connection, key, shown)}
        taken_part = queries.task_names_of(connection, key, [number, *seen])
    return {
        "total": len(seen),
        "nodes": [name_of(root, run_id, one) for one in (number, *sorted(seen)[:20_000])],
        "tasks": sorted(taken_part),
        "list": [{"id": name_of(root, run_id, one), "task": told[one][0], "value": told[one][1]} for one in shown if one in told],
    }


def tasks(run_id: str) -> list[dict[str, Any]]:
    """The tasks of a run: how many calls, how long they took."""
    with records_file() as connection:
        key = find(connection, run_id)["key"]
        rows = queries.task_totals(connection, key)
    return [
        {
            "task": row["name"],
            "code": row["version"],
            "count": row["count"],
            "failed": row["failed"],
            "total": row["total"],
            "mean": row["mean"],
            "longest": row["longest"],
        }
        for row in rows
    ]


def makers(digest: str) -> dict[str, Any]:
    """The nodes of any run that made a value of this hash, and what each was given."""
    try:
        wanted = bytes.fromhex(digest)
    except ValueError:
        raise Absent(f"{digest!r} is not a SHA-256 in hex.") from None
    with records_file() as connection:
        rows = queries.makers(connection, wanted, 100)
        if not rows:
            raise Absent("No call that is remembered has made this value. It was a constant, or its run is not remembered.")
        found = []
        for row in rows:
            given = queries.inputs_of(connection, row["run"], row["node"], 8)
            found.append(
                {
                    "task": row["name"],
                    "run": row["id"],
                    "node": row["node"],
                    "ended": row["ended"] / 1e9 if row["ended"] is not None else None,
                    "seconds": _lasted(row),
                    "code": row["version"],
                    "from": [
                        {
                            "text": f"{one['argument']}={one['text'] if one['text'] is not None else '?'}",
                            "hash": one["hash"].hex() if one["hash"] else None,
                        }
                        for one in given
                    ],
                }
            )
    return {"text": rows[0]["text"], "makers": found}


#: What is compared of two runs besides their tasks and values.
_COMPARED = (
    ("commit", "git_commit"),
    ("host", "host"),
    ("python", "python"),
    ("platform", "platform"),
    ("entangle", "entangle"),
    ("program", "program"),
    ("started by", "way"),
    ("workers", "workers"),
)


def compare(first: str, second: str) -> dict[str, Any]:
    """Two runs side by side: what differs in code, place, values and time."""
    with records_file() as connection:
        a, b = find(connection, first), find(connection, second)
        differences = [{"what": what, "a": _text(a[column]), "b": _text(b[column])} for what, column in _COMPARED if a[column] != b[column]]
        if a["git_dirty"] != b["git_dirty"]:
            words = {None: None, 0: "as committed", 1: "with changes"}
            differences.append({"what": "working tree", "a": words[a["git_dirty"]], "b": words[b["git_dirty"]]})
        for what, column in (("package", "packages"), ("tag", "tags")):
            one, other = json.loads(a[column]), json.loads(b[column])
            for name in sorted({*one, *other}):
                if one.get(name) != other.get(name):
                    differences.append({"what": f"{what} {name}", "a": _text(one.get(name)), "b": _text(other.get(name))})
        ones, others = (queries.values(connection, row["key"]) for row in (a, b))
        same = [one[0] for one in ones] == [other[0] for other in others] and (
            queries.edges_by_place(connection, a["key"]) == queries.edges_by_place(connection, b["key"])
        )
    values: list[dict[str, Any]] = []
    if same:
        for number, (one, other) in enumerate(zip(ones, others, strict=True)):
            if (one[2] or one[1]) != (other[2] or other[1]):
                values.append({"node": number, "task": one[0], "a": one[1] or "—", "b": other[1] or "—"})
    return {
        "a": _summary(a),
        "b": _summary(b),
        "differences": differences,
        "tasks": _side_by_side(tasks(first), tasks(second)),
        "same_graph": same,
        "values": values[:LISTED],
        "values_total": len(values),
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _side_by_side(ones: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    first, second = ({task["task"]: task for task in side} for side in (ones, others))
    rows = []
    for name in dict.fromkeys((*first, *second)):
        a, b = first.get(name, {}), second.get(name, {})
        rows.append(
            {
                "task": name,
                "a_count": a.get("count", 0),
                "b_count": b.get("count", 0),
                "a_mean": a.get("mean"),
                "b_mean": b.get("mean"),
                "code_changed": bool(a and b) and a["code"] != b["code"],
            }
        )
    return rows
