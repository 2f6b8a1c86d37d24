"""Answers for the page about remembered runs. Rows are read in bulk: a run may have a million
nodes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from entangle._records import ingest, queries
from entangle._records.database import NAME, opened
from entangle._records.directory import find_directory
from entangle._records.reading import readable_run
from entangle.errors import RecordsError
from entangle.web import large_segments, stage_numbers
from entangle.web.lanes import Stretch, lane_of
from entangle.web.page_graph import WHOLE, GraphPart, name_of, reached

#: The most nested runs that are drawn with a run.
NESTED = 300
#: The most calls that are listed on the way to a value; the most workers that ended after a run.
LISTED, RETIRED = 200, 20
#: The most nodes of a graph on which arguments and values are shown. With an opened task the limit
#: is higher, since they are read for all nodes and shown on some.
LABELLED, MOST_LABELLED = 400, 20_000


class Absent(Exception):
    """There is no such run, node or value."""


#: A log segment of more bytes takes long to ingest. A user who opens the page does not wait for
#: that: the run is shown from the segment.
LARGE = 1 << 20
#: For so many seconds after a page was opened, large segments are not ingested: that would slow the
#: page down.
_FIRST = 2.0
_opened_at = 0.0


@contextlib.contextmanager
def records_file(fresh: bool = True, largest: int | None = None) -> Iterator[sqlite3.Connection]:
    """A connection to the file of records. With `fresh`, runs that have just ended are ingested
    first; with `largest`, all but segments of more bytes."""
    directory = find_directory()
    if fresh:
        ingest.ingest(directory, largest=largest)
    with opened(directory) as connection:
        yield connection


def version() -> str:
    """A string that changes whenever a run is added to the records, or removed."""
    directory = find_directory()
    with contextlib.suppress(RecordsError, OSError):
        ingest.ingest(directory, largest=LARGE if time.monotonic() < _opened_at + _FIRST else None)
    found = []
    for name in (NAME, f"{NAME}-wal"):
        with contextlib.suppress(OSError):
            status = os.stat(os.path.join(directory, name))
            found.append(f"{status.st_mtime_ns}-{status.st_size}")
    return " ".join(found)


def runs(limit: int, query: str, state: str = "") -> tuple[list[dict[str, Any]], bool]:
    """The runs in that state ("": any) that were not called in another run, the latest first, and
    whether there are more. Every word of `query` is in their task, id, state, tags, program or
    commit."""
    global _opened_at
    _opened_at = time.monotonic()
    with records_file(largest=LARGE) as connection:
        rows = queries.runs_with_words(connection, query, limit + 1, state)
    directory = find_directory()
    found = [_summary(row) for row in rows[:limit] if readable_run(directory, row) is not None]
    known = {run["id"] for run in found}
    for run in () if query or state else large_segments.runs(directory):
        if run["id"] not in known:
            found.append(run)
    found.sort(key=lambda run: -run["began"])
    return found[:limit], len(rows) > limit


def left_out() -> list[str]:
    """A line for each part of the records that cannot be read: files that still exist, and rows."""
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
        "failed": row["failed_count"] or 0,
        "skipped": row["skipped_count"] or 0,
        "stream": row["stream"] is not None,
        "error": {"type": row["error_type"], "message": (row["error"] or "")[:300]} if row["error_type"] is not None else None,
        "program": row["program"],
        "commit": row["git_commit"],
        "dirty": bool(row["git_dirty"]),
        "taken": row["taken_count"] or 0,
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
    with records_file(largest=LARGE) as connection:
        row = queries.run(connection, run_id)
        if row is None and (found := large_segments.info(find_directory(), run_id)) is not None:
            return found
        row = find(connection, run_id)
        counts = queries.state_counts(connection, row["key"])
        load = _load(connection, row)
        retired = queries.retirements(connection, row["key"])
    error = None
    if row["error_type"] is not None:
        error = {"type": row["error_type"], "message": row["error"], "traceback": row["traceback"], "node": row["error_node"]}
    return {
        **_summary(row),
        "counts": {_STATES.get(state, state): count for state, count in counts.items()},
        "load": load,
        "stream": stage_numbers.summary(stream, _lasted(row) or 0.0, live=False) if (stream := _history(row)) else None,
        "parent": {"run": row["parent"], "node": row["parent_node"]} if row["parent"] else None,
        "error": error,
        "platform": row["platform"],
        "python": row["python"],
        "command": row["program"],
        "pid": row["pid"],
        "workers": row["workers"],
        "retirements": [{"pid": pid, "reason": why} for pid, _, why in retired[:RETIRED]],
        "packages": {"entangle": row["entangle"], **json.loads(row["packages"])},
        "critical": _critical(run_id) if row["node_count"] <= 20_000 else [],
    }


def _critical(run_id: str) -> list[dict[str, Any]]:
    from entangle import records

    path = records.run(run_id).critical_path()
    return [{"node": node.number, "task": node.name} for node in (path if len(path) <= 30 else [*path[:10], *path[-20:]])]


def _history(row: sqlite3.Row) -> dict[str, Any] | None:
    """The history of a stream; None for any other run."""
    found: dict[str, Any] | None = json.loads(row["stream"]) if row["stream"] else None
    return found


def _load(connection: sqlite3.Connection, root: sqlite3.Row) -> list[list[float]]:
    """CPU and memory of a run and of those nested in it, at the moments of its own samples:
    seconds, CPUs, bytes."""
    own: list[list[float]] = json.loads(root["load"]) if root["load"] else []
    total = [[at, cpus, memory] for at, cpus, memory, _ in own]
    for row in _family(connection, root)[1:]:
        samples = json.loads(row["load"]) if row["load"] else []
        later = (row["started"] - root["started"]) / 1e9
        ended = later + (_lasted(row) or 0.0)
        at = 0
        for moment in total:
            while at < len(samples) and later + samples[at][0] < moment[0]:
                at += 1
            if samples and later <= moment[0] <= ended:
                _, cpus, memory, _ = samples[min(at, len(samples) - 1)]
                moment[1], moment[2] = round(moment[1] + cpus, 3), moment[2] + memory
    return total


def parts(run_id: str, opened: bool = False) -> list[GraphPart]:
    """The graph of a run, and those of the runs nested in it; with `opened`, node by node, however
    many there are."""
    with records_file(largest=LARGE) as connection:
        row = queries.run(connection, run_id)
        if row is None and (found := large_segments.part(find_directory(), run_id, opened)) is not None:
            return [found]
    with records_file(fresh=row is None) as connection:
        family = _family(connection, find(connection, run_id))
        total = sum(row["node_count"] for row in family)
        if total > WHOLE and not opened:
            return [_condensed(connection, row, len(family) == 1) for row in family]
        return [_part(connection, row, total <= (MOST_LABELLED if opened else LABELLED)) for row in family]


def _inside(row: sqlite3.Row) -> tuple[str, int] | None:
    return (row["parent"], row["parent_node"]) if row["parent"] and row["parent_node"] is not None else None


def _condensed(connection: sqlite3.Connection, row: sqlite3.Row, alone: bool) -> GraphPart:
    """The graph of a run, with what is needed to draw the nodes of a task as one. SQLite does the
    counting: to read a hundred thousand rows would take a second. `alone` says that no run is
    nested in it."""
    key = row["key"]
    names, place = _tasks(connection, key)
    totals: Counter[tuple[int, str]] = Counter()
    spent: dict[int, float] = {}
    firsts: dict[int, int] = {}
    for task, state, count, seconds, first in queries.task_states(connection, key):
        at = place[task]
        firsts[at] = min(first, firsts.get(at, first))
        totals[at, _STATES.get(state, state)] += count
        spent[at] = spent.get(at, 0.0) + (seconds or 0.0)
    links: Counter[tuple[int, int]] = Counter()
    for source, target, count in queries.task_links(connection, key):
        links[place[source], place[target]] += count
    return GraphPart(
        row["id"],
        names,
        () if alone else array("i", [place[task] for (task,) in queries.nodes(connection, key, "task")]),
        (),
        (),
        inside=_inside(row),
        links=links,
        sinks=queries.sinks(connection, key) if row["parent"] else (),
        totals=totals,
        spent=spent,
        firsts=firsts,
    )


def _family(connection: sqlite3.Connection, root: sqlite3.Row) -> list[sqlite3.Row]:
    """A run, the runs called in its nodes, and so on, as far as they are drawn."""
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
        values=[node[4] for node in nodes] if labelled else (),
        calls=_calls(connection, key, len(nodes)) if labelled else (),
        names=queries.names(connection, key),
        items=stage_numbers.items_of(stream, _lasted(row) or 0.0, live=False) if (stream := _history(row)) else (),
        inside=_inside(row),
    )


#: The most characters of an argument, and the most arguments, on a node.
_ARGUMENT, _ARGUMENTS = 12, 4


def _calls(connection: sqlite3.Connection, key: int, count: int) -> list[str]:
    """The arguments of each node in short."""
    found: list[list[str]] = [[] for _ in range(count)]
    for node, text in queries.given(connection, key):
        mine = found[node]
        if len(mine) < _ARGUMENTS:
            shown = "…" if text is None else text if len(text) <= _ARGUMENT else f"{text[: _ARGUMENT - 1]}…"
            mine.append(" ".join(shown.split()))
        elif len(mine) == _ARGUMENTS:
            mine.append("…")
    return [", ".join(mine) for mine in found]


#: The states that the page shows of nodes whose run did not come to its end.
_STATES = {"stopped": "cancelled", "unknown": "waiting"}


def stretches(run_id: str, by: str) -> tuple[list[Stretch], float]:
    """Which worker ran what, in seconds since the run began, and how long it took."""
    found: list[Stretch] = []
    with records_file(largest=LARGE) as connection:
        row = queries.run(connection, run_id)
        if row is None and (waiting := large_segments.stretches(find_directory(), run_id, by)) is not None:
            return waiting
    with records_file(fresh=row is None) as connection:
        root = find(connection, run_id)
        began = root["started"]
        last = root["ended"] or began
        for row in _family(connection, root):
            names, place = _tasks(connection, row["key"])
            mine = row["id"]
            if (stream := _history(row)) is not None:
                later = (row["started"] - began) / 1e9
                for one in stage_numbers.stretches(stream, by, functools.partial(name_of, run_id, mine)):
                    found.append(one._replace(started=one.started + later, ended=one.ended + later))
                continue
            why = {node: _last_of(error) for node, error in _errors(connection, row).items()}
            found += _tried(connection, row, by, began, functools.partial(name_of, run_id, mine))
            task_of = {task: names[at] for task, at in place.items()}
            lanes: dict[tuple[int | str | None, ...], tuple[tuple[int | str, ...], str]] = {}
            before = "" if mine == run_id else f"{mine}:"
            # There may be a million nodes: this loop makes no call of a Python function.
            make, add = tuple.__new__, found.append
            for node, task, failed, started, ended, pid, cpu, worker, at in queries.finished_nodes(connection, row["key"]):
                key = (at,) if by == "place" else (cpu,) if by == "cpu" else (pid, worker)
                lane = lanes.get(key)
                if lane is None:
                    lane = lanes[key] = lane_of(by, pid, cpu, worker, at or row["host"])
                reason = why.get(node, "failed")[:200] if failed else ""
                told = (*lane, (started - began) / 1e9, (ended - began) / 1e9, task_of[task], f"{before}{node}", reason, 1, 0)
                add(make(Stretch, told))
                if ended > last:
                    last = ended
    return found, (last - began) / 1e9


def _errors(connection: sqlite3.Connection, run: sqlite3.Row) -> dict[int, dict[str, Any]]:
    """The errors of the nodes of a run that have failed: type and message."""
    found = {node: {"type": kind, "message": message} for node, kind, message, *_ in queries.failures(connection, run["key"]) if kind}
    if run["error_node"] is not None:
        found[run["error_node"]] = {"type": run["error_type"], "message": run["error"]}
    return found


def _tried(connection: sqlite3.Connection, run: sqlite3.Row, by: str, began: int, named: Callable[[int], str]) -> Iterator[Stretch]:
    """The failed attempts of nodes that were tried again, in seconds since `began`."""
    tries = [one for one in _tries(run) if "began" in one]
    if not tries:
        return
    names, place = _tasks(connection, run["key"])
    rows: list[tuple[Any, ...]] = queries.nodes(connection, run["key"], "node, task, place")
    task_of = {node: names[place[task]] for node, task, _ in rows}
    ran_at = {node: at for node, _, at in rows if at is not None}
    for one in tries:
        lane, label = lane_of(by, one["pid"], None, one["worker"], one.get("place") or ran_at.get(one["node"], run["host"]))
        started, ended = ((one[name] - began) / 1e9 for name in ("began", "ended"))
        task = task_of.get(one["node"], "?")
        yield Stretch(lane, label, started, ended, task, named(one["node"]), one["error"][:200], attempt=one["attempt"])


def nodes(run_id: str, limit: int, order: str, state: str, query: str) -> dict[str, Any]:
    """Nodes of a run that match, in that order, at most `limit`, and how many match in all."""
    state = {"cancelled": "stopped"}.get(state, state)
    with records_file() as connection:
        run = find(connection, run_id)
        key = run["key"]
        rows, total = queries.nodes_with_words(connection, key, state, query, order, limit)
        why = {node: _in_a_line(error) for node, error in _errors(connection, run).items()}
        counts = queries.state_counts(connection, key)
    return {
        "total": total,
        "counts": {_STATES.get(name, name): count for name, count in counts.items()},
        "nodes": [
            {
                "node": row["node"],
                "task": row["name"],
                "name": row["named"],
                "state": _STATES.get(row["state"], row["state"]),
                "seconds": _lasted(row),
                "value": row["text"],
                "error": why.get(row["node"], "")[:300] or None,
                "place": row["place"],
                "ticket": row["ticket"],
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
        failure = queries.failure(connection, key, number)
        printed = queries.printed(connection, key, number)
        why = queries.task_name_of(connection, key, failure["cause"]) if failure is not None and failure["cause"] is not None else None
    error = cause = None
    if run["error_type"] is not None and run["error_node"] == number:
        error = {"type": run["error_type"], "message": run["error"], "traceback": run["traceback"]}
    elif failure is not None and failure["type"] is not None:
        error = {"type": failure["type"], "message": failure["message"], "traceback": failure["traceback"]}
    if failure is not None and failure["cause"] is not None:
        cause = {"node": name_of(root, run_id, failure["cause"]), "task": why}
    attempts = _attempts(run, row, error)
    stream = _history(run)
    return {
        "node": name_of(root, run_id, number),
        "task": task["name"],
        "name": row["named"],
        "state": _STATES.get(row["state"], row["state"]),
        "attempts": row["attempts"],
        "tries": attempts,
        "error": error,
        "cause": cause,
        "printed": printed,
        "items": stage_numbers.items_of(stream, _lasted(run) or 0.0, live=False)[number] if stream else None,
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
        "spans": {} if stream else _spans(run, row, attempts),
        "started": (row["started"] - run["started"]) / 1e9 if row["started"] is not None else None,
        "host": run["host"],
        "place": row["place"],
        "ticket": row["ticket"],
        "queued": row["queued"] / 1e9 if row["queued"] else None,
        "hit": None if row["made"] is None else bool(row["made"]),
        "made": row["made"] / 1e9 if row["made"] else None,
        "depot_key": row["depot_key"],
        "pid": row["pid"],
        "cpu": row["cpu"] if row["cpu"] is not None else -1,
        "memory": row["memory"],
        "attributes": json.loads(task["attributes"]),
        "layers": " ".join(f"@{layer}" for layer in json.loads(task["layers"])),
        "nested": [{"id": inner["id"], "task": inner["name"], "nodes": inner["node_count"]} for inner in nested],
        "source": task["source"],
        "code": task["version"],
    }


def _tries(run: sqlite3.Row) -> list[dict[str, Any]]:
    """The failed attempts of nodes that were tried again."""
    return json.loads(run["tries"]) if run["tries"] else []


def _in_a_line(error: dict[str, Any]) -> str:
    """An error for a table: without the module of its class. The error of a node whose attempts are
    used up says everything in its message."""
    kind, message = error["type"].rpartition(".")[2], (error["message"] or "").partition("\n")[0]
    return message if kind == "ProcessRetryException" and message else f"{kind}: {message}" if message else kind


def _last_of(error: dict[str, Any] | None) -> str:
    """The error of the last attempt of a node whose attempts are used up; "" if there is none."""
    if error is None:
        return ""
    _, last, reason = (error["message"] or "").partition("; the last time with ")
    return reason if last and error["type"].endswith("ProcessRetryException") else f"{error['type']}: {error['message']}"


def _attempts(run: sqlite3.Row, row: sqlite3.Row, why: dict[str, Any] | None) -> list[dict[str, Any]]:
    """All attempts of a node, if there was more than one: number, began and ended (seconds since
    the run began), pid, and the error of those that failed."""
    mine = sorted((one for one in _tries(run) if one["node"] == row["node"]), key=lambda one: one["attempt"])
    if not mine:
        return []
    began = run["started"]

    def told(number: int, started: int | None, ended: int | None, pid: int | None, error: str | None, **there: Any) -> dict[str, Any]:
        times = [(moment - began) / 1e9 if moment is not None else None for moment in (started, ended)]
        where = {"place": there.get("place"), "ticket": there.get("ticket"), "queued": (there.get("queued") or 0) / 1e9}
        return {"number": number, "began": times[0], "ended": times[1], "pid": pid, "error": error, **where}

    found = []
    for one in mine:
        where = {name: one.get(name) for name in ("place", "ticket", "queued")}
        found.append(told(one["attempt"], one.get("began"), one.get("ended"), one.get("pid"), one["error"], **where))
    if row["started"] is not None and (row["attempts"] or 0) > len(mine):
        error = None if row["state"] != "failed" else _last_of(why) or "failed"
        where = {name: row[name] for name in ("place", "ticket", "queued")}
        found.append(told(row["attempts"], row["started"], row["ended"], row["pid"], error, **where))
    return found


def _spans(run: sqlite3.Row, row: sqlite3.Row, attempts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Where the time of a node went, in seconds. A pause between two attempts does not count as
    waiting for a worker."""
    if row["ready"] is None or row["started"] is None:
        return {}
    cookie, queued = row["cookie_wait"] or 0, (row["queued"] or 0) / 1e9
    ready = (row["ready"] - run["started"]) / 1e9
    started = (row["started"] - run["started"]) / 1e9
    before = [one for one in attempts if one["began"] is not None and one["began"] < started]
    first = min([one["began"] for one in before], default=started)
    tried = sum(one["ended"] - one["began"] for one in before)
    # The attempts that had begun in their place. The queue of the first came before anything else.
    earlier = [one["queued"] for one in sorted(before, key=lambda one: one["began"])]
    later = cookie / 1e9 + queued + sum(earlier[1:])
    spans = {
        "arguments": ready,
        "queue": first - ready - (earlier[0] if before else later),
        "cookie": cookie / 1e9,
        "tried": tried,
        "pauses": started - first - tried - (later if before else 0),
        "moving": (row["moved"] or 0) / 1e9,
        "elsewhere": queued + sum(earlier),
        "running": ((row["ended"] or row["started"]) - row["started"]) / 1e9,
    }
    return {name: max(0.0, lasted) for name, lasted in spans.items()}


def way(root: str, run_id: str, number: int, back: bool) -> dict[str, Any]:
    """All nodes that a node's value was made from, or that were made from it."""
    # Edges have an index for one direction only: read all edges of the run once.
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
        run = find(connection, run_id)
        rows = queries.task_totals(connection, run["key"])
    if (stream := _history(run)) is not None:
        versions = {row["name"]: row["version"] for row in rows}
        return [{**stage, "code": versions.get(stage["task"])} for stage in stage_numbers.totals(stream)]
    return [
        {
            "task": row["name"],
            "code": row["version"],
            "count": row["count"],
            "done": row["done"],
            "failed": row["failed"],
            "skipped": row["skipped"],
            "total": row["total"],
            "mean": row["mean"],
            "longest": row["longest"],
        }
        for row in rows
    ]


def makers(digest: str) -> dict[str, Any]:
    """The nodes of any run that made a value of this hash, and their arguments."""
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


#: What is compared between two runs besides their tasks and values.
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
