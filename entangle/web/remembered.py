"""Runs that are remembered, as the page wants them: read from the file of records in bulk, since a run may have a million nodes."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from entangle._records import ingest as binding
from entangle._records.database import opened
from entangle._records.directory import find_shelf
from entangle._records.ingest import bind
from entangle._records.log_segment import Sheet
from entangle._records.reading import readable_run
from entangle.errors import RecordsError
from entangle.web.condensed import Part, name_of
from entangle.web.lanes import Stretch

#: Runs nested in one that are drawn with it.
NESTED = 300
#: Calls that are listed on the way to a value.
LISTED = 200
#: Nodes of a graph whose values are shown on them.
LABELLED = 400


#: Words of a question that SQLite looks for itself. It takes only so many terms and so long a pattern, and ends a text at a zero byte.
MOST_WORDS, LONGEST_WORD = 20, 1000


def _having_words(connection: sqlite3.Connection, text: str, query: str) -> tuple[list[str], list[str]]:
    """The conditions, and their parameters, that hold where every word of `query` is in `text`, an expression of SQL."""
    words = list(dict.fromkeys(query.split()))
    if len(words) <= MOST_WORDS and len(query) <= LONGEST_WORD and "\0" not in query:
        return [f"({text}) LIKE ? ESCAPE '\\'"] * len(words), [_containing(word) for word in words]
    wanted = [word.lower() for word in words]
    connection.create_function("has_words", 1, lambda found: all(word in found.lower() for word in wanted))
    return [f"has_words({text})"], []


def _containing(word: str) -> str:
    """The pattern of what has this word in it."""
    return "%" + word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


class Absent(Exception):
    """There is no such run, node or value."""


@contextlib.contextmanager
def shelf(fresh: bool = True) -> Iterator[sqlite3.Connection]:
    """The file of records. `fresh`: with the runs in it that have ended since anybody looked."""
    path = find_shelf()
    if fresh:
        bind(path)
    with opened(path) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def version() -> str:
    """Changes whenever a run is added to the records or taken from them."""
    path = find_shelf()
    with contextlib.suppress(RecordsError, OSError):
        bind(path)
    found = []
    for name in ("records.sqlite", "records.sqlite-wal"):
        with contextlib.suppress(OSError):
            status = os.stat(os.path.join(path, name))
            found.append(f"{status.st_mtime_ns}-{status.st_size}")
    return " ".join(found)


def lasting() -> list[Sheet]:
    """The sheets of runs that last."""
    return bind(find_shelf())


def runs(limit: int, query: str) -> tuple[list[dict[str, Any]], bool]:
    """The runs that are remembered and not nested in others, the latest first, and whether there are more. Every word of `query`
    must be in its task, id, state, tags, program or commit."""
    text = " || ' ' || ".join(("name", "id", "state", "tags", "coalesce(program, '')", "coalesce(git_commit, '')"))
    with shelf() as connection:
        where, values = _having_words(connection, text, query)
        rows = connection.execute(
            f"SELECT * FROM runs WHERE {' AND '.join(['parent IS NULL', *where])} ORDER BY started DESC LIMIT ?", (*values, limit + 1)
        ).fetchall()
    path = find_shelf()
    readable = [row for row in rows[:limit] if readable_run(path, row) is not None]
    return [_summary(row) for row in readable], len(rows) > limit


def left_out() -> list[str]:
    """What of the records cannot be read, in a line each: files that are there, and rows."""
    return [line for path, line in binding.left_out.items() if os.path.lexists(path) or not os.path.isabs(path)]


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
    row: sqlite3.Row | None = connection.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
    if row is None:
        raise Absent(f"No run {run_id} is remembered.")
    return row


def info(run_id: str) -> dict[str, Any]:
    """What is known of a run as a whole."""
    with shelf() as connection:
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


def parts(run_id: str) -> list[Part]:
    """The graph of a run, and those of the runs nested in it."""
    with shelf() as connection:
        family = _family(connection, find(connection, run_id))
        total = sum(row["node_count"] for row in family)
        return [_part(connection, row, total <= LABELLED) for row in family]


def _family(connection: sqlite3.Connection, root: sqlite3.Row) -> list[sqlite3.Row]:
    """A run and the runs that were called in its nodes, and in theirs, as far as they are drawn."""
    family = [root]
    for row in family:
        if len(family) >= NESTED:
            break
        family += connection.execute(
            "SELECT * FROM runs WHERE parent = ? ORDER BY started LIMIT ?", (row["id"], NESTED - len(family))
        ).fetchall()
    return family


def _tasks(connection: sqlite3.Connection, key: int) -> tuple[list[str], dict[int, int]]:
    """The names of a run's tasks, and the place of each task's key among them."""
    rows = connection.execute("SELECT key, name FROM tasks WHERE key IN (SELECT DISTINCT task FROM nodes WHERE run = ?)", (key,)).fetchall()
    names = list(dict.fromkeys(name for _, name in rows))
    places = {name: place for place, name in enumerate(names)}
    return names, {key: places[name] for key, name in rows}


def _part(connection: sqlite3.Connection, row: sqlite3.Row, labelled: bool) -> Part:
    key = row["key"]
    names, place = _tasks(connection, key)
    plain = connection.cursor()
    plain.row_factory = None
    columns = "task, state, started, ended" + (", text" if labelled else "")
    nodes = plain.execute(f"SELECT {columns} FROM nodes WHERE run = ? ORDER BY node", (key,)).fetchall()
    edges = plain.execute("SELECT source, node FROM inputs WHERE run = ? AND source IS NOT NULL", (key,)).fetchall()
    return Part(
        row["id"],
        names,
        [place[node[0]] for node in nodes],
        [_STATES.get(node[1], node[1]) for node in nodes],
        edges,
        [(node[3] - node[2]) / 1e9 if node[3] is not None and node[2] is not None else None for node in nodes],
        [node[4] for node in nodes] if labelled else (),
        (row["parent"], row["parent_node"]) if row["parent"] else None,
    )


#: How the page shows the states of nodes whose run did not come to its end.
_STATES = {"stopped": "cancelled", "unknown": "waiting"}


def stretches(run_id: str, by: str) -> tuple[list[Stretch], float]:
    """Who ran what when, in seconds since the run began, and how long it took."""
    found: list[Stretch] = []
    with shelf() as connection:
        root = find(connection, run_id)
        began = root["started"]
        last = root["ended"] or began
        for row in _family(connection, root):
            names, place = _tasks(connection, row["key"])
            plain = connection.cursor()
            plain.row_factory = None
            mine = row["id"]
            for node, task, state, started, ended, pid, cpu, worker in plain.execute(
                "SELECT node, task, state, started, ended, pid, cpu, worker FROM nodes "
                "WHERE run = ? AND started IS NOT NULL AND ended IS NOT NULL",
                (row["key"],),
            ):
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


def lane_of(by: str, pid: int | None, cpu: int | None, worker: int | None) -> tuple[tuple[int, ...], str]:
    """The lane of a node, and what is written beside it."""
    if by == "cpu":
        return (cpu if cpu is not None else -1,), f"cpu {cpu}" if cpu is not None and cpu >= 0 else "cpu ?"
    return (pid or 0, worker or 0), f"{pid or '?'}·{worker or 0}"


_ORDERS = {"node": "node", "seconds": "ended - started DESC", "started": "started IS NULL, started", "memory": "memory DESC"}


def nodes(run_id: str, limit: int, order: str, state: str, query: str) -> dict[str, Any]:
    """Nodes of a run that fit, in that order, at most `limit`, and how many there are."""
    where, values = ["run = ?"], list[Any]()
    if state:
        where.append("state = ?")
        values.append({"cancelled": "stopped"}.get(state, state))
    with shelf() as connection:
        fitting, words = _having_words(connection, "tasks.name || ' ' || coalesce(text, '')", query)
        condition = " AND ".join([*where, *fitting])
        values += words
        key = find(connection, run_id)["key"]
        joined = f"nodes JOIN tasks ON tasks.key = nodes.task WHERE {condition}"
        (total,) = connection.execute(f"SELECT count(*) FROM {joined}", (key, *values)).fetchone()
        rows = connection.execute(
            f"SELECT nodes.*, tasks.name FROM {joined} ORDER BY {_ORDERS.get(order, 'node')}, node LIMIT ?", (key, *values, limit)
        ).fetchall()
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


#: The value of an input: its own where it is a constant, else that of the node which gives it.
_GIVEN = ", ".join(
    f"CASE WHEN inputs.source IS NULL THEN inputs.{name} ELSE nodes.{name} END AS {name}" for name in ("type", "size", "hash", "text")
)
_GIVER = "LEFT JOIN nodes ON nodes.run = inputs.run AND nodes.node = inputs.source"


def node(root: str, run_id: str, number: int) -> dict[str, Any]:
    """All that is known of a node; nodes are named as the page of `root` names them."""
    with shelf(fresh=False) as connection:
        run = find(connection, run_id)
        key = run["key"]
        row = connection.execute("SELECT * FROM nodes WHERE run = ? AND node = ?", (key, number)).fetchone()
        if row is None:
            raise Absent(f"Run {run_id} has no node {number}.")
        task = connection.execute("SELECT * FROM tasks WHERE key = ?", (row["task"],)).fetchone()
        inputs = connection.execute(
            f"SELECT inputs.argument, inputs.source, tasks.name, {_GIVEN} FROM inputs {_GIVER} "
            "LEFT JOIN tasks ON tasks.key = nodes.task WHERE inputs.run = ? AND inputs.node = ? ORDER BY position LIMIT 1000",
            (key, number),
        ).fetchall()
        nested = connection.execute(
            "SELECT * FROM runs WHERE parent = ? AND parent_node = ? ORDER BY started LIMIT 50", (run_id, number)
        ).fetchall()
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
    """All nodes that a node's value was made of, or that it has gone into."""
    here, there = ("node", "source") if back else ("source", "node")
    # One direction has no index of its own, so the edges of the run are read once.
    with shelf(fresh=False) as connection:
        key = find(connection, run_id)["key"]
        plain = connection.cursor()
        plain.row_factory = None
        further: dict[int, list[int]] = {}
        for at, to in plain.execute(f"SELECT {here}, {there} FROM inputs WHERE run = ? AND source IS NOT NULL", (key,)):
            further.setdefault(at, []).append(to)
        seen, waiting = set[int](), [number]
        while waiting:
            for one in further.get(waiting.pop(), ()):
                if one not in seen:
                    seen.add(one)
                    waiting.append(one)
        shown = sorted(seen, reverse=back)[:LISTED]
        marks = ",".join("?" * len(shown))
        rows = connection.execute(
            f"SELECT node, name, text FROM nodes JOIN tasks ON tasks.key = nodes.task WHERE run = ? AND node IN ({marks})", (key, *shown)
        ).fetchall()
        told = {row["node"]: row for row in rows}
        taken_part = connection.execute(
            "SELECT DISTINCT tasks.name FROM nodes JOIN tasks ON tasks.key = nodes.task "
            "WHERE run = ? AND node IN (SELECT value FROM json_each(?))",
            (key, json.dumps([number, *seen])),
        ).fetchall()
    return {
        "total": len(seen),
        "nodes": [name_of(root, run_id, one) for one in (number, *sorted(seen)[:20_000])],
        "tasks": sorted(row[0] for row in taken_part),
        "list": [{"id": name_of(root, run_id, one), "task": told[one]["name"], "value": told[one]["text"]} for one in shown if one in told],
    }


def tasks(run_id: str) -> list[dict[str, Any]]:
    """The tasks of a run: how many calls, how long they took."""
    with shelf() as connection:
        key = find(connection, run_id)["key"]
        rows = connection.execute(
            "SELECT tasks.name, tasks.version, count(*) AS count, sum(nodes.state = 'failed') AS failed, "
            "sum(ended - started) / 1e9 AS total, avg(ended - started) / 1e9 AS mean, max(ended - started) / 1e9 AS longest "
            "FROM nodes JOIN tasks ON tasks.key = nodes.task WHERE run = ? GROUP BY nodes.task ORDER BY total DESC",
            (key,),
        ).fetchall()
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
    """Every node, in whatever run, that gave a value of this hash, and what it was given."""
    try:
        wanted = bytes.fromhex(digest)
    except ValueError:
        raise Absent("That is no SHA-256 in hex.") from None
    with shelf() as connection:
        rows = connection.execute(
            "SELECT nodes.*, runs.id, runs.key AS run_key, tasks.name, tasks.version FROM nodes JOIN runs ON runs.key = nodes.run "
            "JOIN tasks ON tasks.key = nodes.task WHERE nodes.hash = ? ORDER BY nodes.ended DESC LIMIT 100",
            (wanted,),
        ).fetchall()
        if not rows:
            raise Absent("No call that is remembered has made this value; it was a constant.")
        found = []
        for row in rows:
            given = connection.execute(
                f"SELECT inputs.argument, {_GIVEN} FROM inputs {_GIVER} WHERE inputs.run = ? AND inputs.node = ? ORDER BY position LIMIT 8",
                (row["run_key"], row["node"]),
            ).fetchall()
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
    with shelf() as connection:
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
        plain = connection.cursor()
        plain.row_factory = None
        query = "SELECT tasks.name, text, hash FROM nodes JOIN tasks ON tasks.key = nodes.task WHERE run = ? ORDER BY node"
        ones, others = (plain.execute(query, (row["key"],)).fetchall() for row in (a, b))
        edge_query = "SELECT node, position, source FROM inputs WHERE run = ? AND source IS NOT NULL ORDER BY node, position"
        same = [one[0] for one in ones] == [other[0] for other in others] and (
            plain.execute(edge_query, (a["key"],)).fetchall() == plain.execute(edge_query, (b["key"],)).fetchall()
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
