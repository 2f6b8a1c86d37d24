"""Queries: all SQL that reads the file of records. Each takes a connection and gives rows.

Rows with many columns have names (`sqlite3.Row`). Where there is a row for each node or edge of a
run, of which there may be a million, rows are plain tuples. What the columns mean is said beside
the tables, in `database.py`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

#: How many words, in a query of how many characters, SQLite looks for itself. It limits both terms
#: and patterns, and for SQLite a text ends at a zero byte.
MOST_WORDS, LONGEST_WORD = 20, 1000


def _named(connection: sqlite3.Connection, query: str, values: Sequence[Any]) -> sqlite3.Cursor:
    """Ask, for rows whose columns have names."""
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    return cursor.execute(query, values)


# Runs ---------------------------------------------------------------------------------------------


def runs(
    connection: sqlite3.Connection, name: str | None = None, state: str | None = None, since: int | None = None, nested: bool = True
) -> Iterable[sqlite3.Row]:
    """The runs of that task or call, in that state, begun since then (nanoseconds since 1970), the
    latest first. Without `nested`, only those that no other run has called. Rows are fetched while
    the caller iterates."""
    where, values = ["1"], list[Any]()
    if name is not None:
        where.append("(name = ? OR task = ?)")
        values += [name, name]
    if state is not None:
        where.append("state = ?")
        values.append(state)
    if since is not None:
        where.append("started >= ?")
        values.append(since)
    if not nested:
        where.append("parent IS NULL")
    return _named(connection, f"SELECT * FROM runs WHERE {' AND '.join(where)} ORDER BY started DESC", values)


def runs_with_words(connection: sqlite3.Connection, query: str, limit: int, state: str = "") -> list[sqlite3.Row]:
    """The runs in that state ("": any) that no other run has called, the latest first. Every word
    of `query` is in their task, id, state, tags, program or commit."""
    text = " || ' ' || ".join(("name", "id", "state", "tags", "coalesce(program, '')", "coalesce(git_commit, '')"))
    fitting, words = _having_words(connection, text, query)
    if state:
        fitting.append("state = ?")
        words.append(state)
    where = " AND ".join(["parent IS NULL", *fitting])
    return _named(connection, f"SELECT * FROM runs WHERE {where} ORDER BY started DESC LIMIT ?", (*words, limit)).fetchall()


def run(connection: sqlite3.Connection, run_id: str) -> sqlite3.Row | None:
    """The run of exactly this id."""
    found: sqlite3.Row | None = _named(connection, "SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
    return found


def runs_beginning(connection: sqlite3.Connection, start: str, limit: int) -> list[sqlite3.Row]:
    """The runs whose ids begin with `start`."""
    return _named(connection, "SELECT * FROM runs WHERE id >= ? AND id < ? LIMIT ?", (start, start + "\U0010ffff", limit)).fetchall()


def count_runs(connection: sqlite3.Connection) -> int:
    """How many runs there are."""
    (count,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    return int(count)


def children(connection: sqlite3.Connection, run_id: str, node: int | None = None, limit: int = -1) -> list[sqlite3.Row]:
    """The runs that were called in a run, or in one node of it, the oldest first."""
    of_node, values = ("AND parent_node = ? ", (run_id, node)) if node is not None else ("", (run_id,))
    return _named(connection, f"SELECT * FROM runs WHERE parent = ? {of_node}ORDER BY started LIMIT ?", (*values, limit)).fetchall()


def unsent(connection: sqlite3.Connection, graph: str, everything: bool) -> list[tuple[int, str]]:
    """Keys and ids of the runs that are meant for that Gremlin server, with the runs called in
    them, and have not been sent, the oldest first; of all runs that have not been sent, if
    `everything`."""
    found: list[tuple[int, str]] = connection.execute(
        """
        WITH RECURSIVE wanted (id) AS (
            SELECT id FROM runs WHERE graph = :graph OR :all
            UNION SELECT runs.id FROM runs JOIN wanted ON runs.parent = wanted.id
        )
        SELECT runs.key, runs.id FROM runs JOIN wanted USING (id)
        WHERE NOT EXISTS (SELECT 1 FROM sent WHERE sent.run = runs.key AND sent.graph = :graph)
        ORDER BY runs.started
        """,
        {"graph": graph, "all": everything},
    ).fetchall()
    return found


def retirements(connection: sqlite3.Connection, run_key: int) -> list[tuple[int, int, str]]:
    """The warm workers that ended after a run, which was their last: pid, when (nanoseconds since
    1970), why."""
    return connection.execute("SELECT pid, at, why FROM retirements WHERE run = ? ORDER BY at", (run_key,)).fetchall()


# Tasks --------------------------------------------------------------------------------------------


def task(connection: sqlite3.Connection, key: int) -> sqlite3.Row | None:
    """The task with this key."""
    found: sqlite3.Row | None = _named(connection, "SELECT * FROM tasks WHERE key = ?", (key,)).fetchone()
    return found


def task_key(connection: sqlite3.Connection, identity: str) -> int | None:
    """The key of the task with this identity."""
    found = connection.execute("SELECT key FROM tasks WHERE identity = ?", (identity,)).fetchone()
    return None if found is None else int(found[0])


def tasks(connection: sqlite3.Connection, run_key: int) -> list[tuple[Any, ...]]:
    """The tasks of a run: key, name, qualified, module, version, source, file, line, layers, terms,
    attributes."""
    return connection.execute(
        "SELECT key, name, qualified, module, version, source, file, line, layers, terms, attributes FROM tasks "
        "WHERE key IN (SELECT DISTINCT task FROM nodes WHERE run = ?)",
        (run_key,),
    ).fetchall()


def task_names(connection: sqlite3.Connection, run_key: int) -> list[tuple[int, str]]:
    """The tasks of a run: key, name."""
    return connection.execute(
        "SELECT key, name FROM tasks WHERE key IN (SELECT DISTINCT task FROM nodes WHERE run = ?)", (run_key,)
    ).fetchall()


def task_totals(connection: sqlite3.Connection, run_key: int) -> list[sqlite3.Row]:
    """The tasks of a run: name, version, count of nodes, how many of them are done, failed and
    skipped; total, mean and longest seconds of their bodies."""
    return _named(
        connection,
        "SELECT tasks.name, tasks.version, count(*) AS count, sum(nodes.state = 'done') AS done, "
        "sum(nodes.state = 'failed') AS failed, sum(nodes.state = 'skipped') AS skipped, "
        "sum(ended - started) / 1e9 AS total, avg(ended - started) / 1e9 AS mean, max(ended - started) / 1e9 AS longest "
        "FROM nodes JOIN tasks ON tasks.key = nodes.task WHERE run = ? GROUP BY nodes.task ORDER BY total DESC",
        (run_key,),
    ).fetchall()


# Nodes --------------------------------------------------------------------------------------------


def nodes(connection: sqlite3.Connection, run_key: int, columns: str = "*") -> list[tuple[Any, ...]]:
    """The nodes of a run, by number."""
    return connection.execute(f"SELECT {columns} FROM nodes WHERE run = ? ORDER BY node", (run_key,)).fetchall()


def node(connection: sqlite3.Connection, run_key: int, number: int) -> sqlite3.Row | None:
    """One node of a run."""
    found: sqlite3.Row | None = _named(connection, "SELECT * FROM nodes WHERE run = ? AND node = ?", (run_key, number)).fetchone()
    return found


def state_counts(connection: sqlite3.Connection, run_key: int) -> dict[str, int]:
    """How many nodes of a run are in each state."""
    return dict(connection.execute("SELECT state, count(*) FROM nodes WHERE run = ? GROUP BY state", (run_key,)).fetchall())


def task_states(connection: sqlite3.Connection, run_key: int) -> list[tuple[int, str, int, float | None, int]]:
    """The nodes of a run by task and state: task, state, how many, seconds of their bodies, the
    first of them."""
    return connection.execute(
        "SELECT task, state, count(*), sum(ended - started) / 1e9, min(node) FROM nodes WHERE run = ? GROUP BY task, state", (run_key,)
    ).fetchall()


def task_links(connection: sqlite3.Connection, run_key: int) -> list[tuple[int, int, int]]:
    """How often nodes of one task of a run take values from those of another: the task that gives,
    the one that takes, how often."""
    return connection.execute(
        "SELECT source.task, node.task, count(*) FROM inputs "
        "JOIN nodes AS source ON source.run = inputs.run AND source.node = inputs.source "
        "JOIN nodes AS node ON node.run = inputs.run AND node.node = inputs.node "
        "WHERE inputs.run = ? AND inputs.source IS NOT NULL GROUP BY source.task, node.task",
        (run_key,),
    ).fetchall()


def sinks(connection: sqlite3.Connection, run_key: int) -> list[int]:
    """The nodes of a run whose values no other takes."""
    found = connection.execute(
        "SELECT node FROM nodes WHERE run = ?1 AND node NOT IN (SELECT source FROM inputs WHERE run = ?1 AND source IS NOT NULL)",
        (run_key,),
    ).fetchall()
    return [node for (node,) in found]


def given(connection: sqlite3.Connection, run_key: int) -> Iterable[tuple[int, str | None]]:
    """The arguments of all nodes of a run in their order: node, text of the value. Rows are fetched
    while the caller iterates."""
    return connection.execute(
        "SELECT inputs.node, CASE WHEN inputs.source IS NULL THEN inputs.text ELSE nodes.text END FROM inputs "
        "LEFT JOIN nodes ON nodes.run = inputs.run AND nodes.node = inputs.source "
        "WHERE inputs.run = ? ORDER BY inputs.node, inputs.position",
        (run_key,),
    )


def names(connection: sqlite3.Connection, run_key: int) -> dict[int, str]:
    """The names that calls of a run were given, by node."""
    return dict(connection.execute("SELECT node, named FROM nodes WHERE run = ? AND named IS NOT NULL", (run_key,)).fetchall())


def finished_nodes(connection: sqlite3.Connection, run_key: int) -> Iterable[tuple[Any, ...]]:
    """The nodes of a run whose bodies have ended: node, task, whether it failed, started, ended,
    pid, cpu, worker, place. Rows are fetched while the caller iterates."""
    return connection.execute(
        "SELECT node, task, state = 'failed', started, ended, pid, cpu, worker, place FROM nodes "
        "WHERE run = ? AND started IS NOT NULL AND ended IS NOT NULL",
        (run_key,),
    )


def failures(connection: sqlite3.Connection, run_key: int) -> list[tuple[Any, ...]]:
    """The nodes of a run that have failed and not ended it, and those that were skipped: node;
    type, message, traceback and notes of the error; the node whose failure is why it was
    skipped."""
    return connection.execute(
        "SELECT node, type, message, traceback, notes, cause FROM failures WHERE run = ? ORDER BY node", (run_key,)
    ).fetchall()


def failure(connection: sqlite3.Connection, run_key: int, number: int) -> sqlite3.Row | None:
    """The failure of one node of a run: type, message, traceback, notes, cause."""
    found: sqlite3.Row | None = _named(connection, "SELECT * FROM failures WHERE run = ? AND node = ?", (run_key, number)).fetchone()
    return found


#: The orders in which `nodes_with_words` gives nodes, by name.
ORDERS = {"node": "node", "seconds": "ended - started DESC", "started": "started IS NULL, started", "memory": "memory DESC"}


def nodes_with_words(
    connection: sqlite3.Connection, run_key: int, state: str, query: str, order: str, limit: int
) -> tuple[list[sqlite3.Row], int]:
    """The nodes of a run in that state ("": any), with every word of `query` in the name of their
    task, that of their call or the text of their value: at most `limit` of them, with the name of
    their task; and how many fit."""
    where, values = ["run = ?"], list[Any]([run_key])
    if state:
        where.append("state = ?")
        values.append(state)
    fitting, words = _having_words(connection, "tasks.name || ' ' || coalesce(named, '') || ' ' || coalesce(text, '')", query)
    values += words
    joined = f"nodes JOIN tasks ON tasks.key = nodes.task WHERE {' AND '.join([*where, *fitting])}"
    (total,) = connection.execute(f"SELECT count(*) FROM {joined}", values).fetchone()
    rows = _named(
        connection, f"SELECT nodes.*, tasks.name FROM {joined} ORDER BY {ORDERS.get(order, 'node')}, node LIMIT ?", (*values, limit)
    ).fetchall()
    return rows, total


def nodes_numbered(connection: sqlite3.Connection, run_key: int, numbers: Sequence[int]) -> list[tuple[int, str, str | None]]:
    """These nodes of a run: node, name of the task, text of the value."""
    return connection.execute(
        "SELECT node, name, text FROM nodes JOIN tasks ON tasks.key = nodes.task "
        "WHERE run = ? AND node IN (SELECT value FROM json_each(?))",
        (run_key, json.dumps(numbers)),
    ).fetchall()


def task_name_of(connection: sqlite3.Connection, run_key: int, number: int) -> str | None:
    """The name that a call of a run was given; without one, that of its task."""
    found = connection.execute(
        "SELECT coalesce(named, tasks.name) FROM nodes JOIN tasks ON tasks.key = nodes.task WHERE run = ? AND node = ?", (run_key, number)
    ).fetchone()
    return None if found is None else str(found[0])


def task_names_of(connection: sqlite3.Connection, run_key: int, numbers: Sequence[int]) -> list[str]:
    """The names of the tasks of these nodes of a run, each once."""
    found = connection.execute(
        "SELECT DISTINCT tasks.name FROM nodes JOIN tasks ON tasks.key = nodes.task "
        "WHERE run = ? AND node IN (SELECT value FROM json_each(?))",
        (run_key, json.dumps(numbers)),
    ).fetchall()
    return [name for (name,) in found]


def values(connection: sqlite3.Connection, run_key: int) -> list[tuple[str, str | None, bytes | None]]:
    """The nodes of a run by number: name of the task, text and hash of the value."""
    return connection.execute(
        "SELECT tasks.name, text, hash FROM nodes JOIN tasks ON tasks.key = nodes.task WHERE run = ? ORDER BY node", (run_key,)
    ).fetchall()


def makers(connection: sqlite3.Connection, digest: bytes, limit: int) -> list[sqlite3.Row]:
    """The nodes of any run that made a value of this hash, the latest first; with the id of their
    run, and the name and version of their task."""
    return _named(
        connection,
        "SELECT nodes.*, runs.id, tasks.name, tasks.version FROM nodes JOIN runs ON runs.key = nodes.run "
        "JOIN tasks ON tasks.key = nodes.task WHERE nodes.hash = ? ORDER BY nodes.ended DESC LIMIT ?",
        (digest, limit),
    ).fetchall()


def printed(connection: sqlite3.Connection, run_key: int, number: int) -> str | None:
    """What the body of a node printed, in short; None where that is nothing, or not known."""
    found = connection.execute("SELECT text FROM prints WHERE run = ? AND node = ?", (run_key, number)).fetchone()
    return None if found is None else str(found[0])


# Inputs -------------------------------------------------------------------------------------------


def inputs(connection: sqlite3.Connection, run_key: int) -> list[tuple[Any, ...]]:
    """The arguments of all nodes of a run, in their order."""
    return connection.execute("SELECT * FROM inputs WHERE run = ? ORDER BY node, position", (run_key,)).fetchall()


#: The value of an input: its own where it is a constant, else the value of its source.
_GIVEN = ", ".join(
    f"CASE WHEN inputs.source IS NULL THEN inputs.{name} ELSE nodes.{name} END AS {name}" for name in ("type", "size", "hash", "text")
)


def inputs_of(connection: sqlite3.Connection, run_key: int, node: int, limit: int) -> list[sqlite3.Row]:
    """The arguments of one node with their values: argument, source, name of the task of the
    source, type, size, hash, text."""
    return _named(
        connection,
        f"SELECT inputs.argument, inputs.source, tasks.name, {_GIVEN} FROM inputs "
        "LEFT JOIN nodes ON nodes.run = inputs.run AND nodes.node = inputs.source "
        "LEFT JOIN tasks ON tasks.key = nodes.task WHERE inputs.run = ? AND inputs.node = ? ORDER BY position LIMIT ?",
        (run_key, node, limit),
    ).fetchall()


def edges(connection: sqlite3.Connection, run_key: int, backwards: bool = False) -> Iterable[tuple[int, int]]:
    """Which node takes whose value: source, node; node, source if `backwards`. Rows are fetched
    while the caller iterates."""
    columns = "node, source" if backwards else "source, node"
    return connection.execute(f"SELECT {columns} FROM inputs WHERE run = ? AND source IS NOT NULL", (run_key,))


def edges_by_place(connection: sqlite3.Connection, run_key: int) -> list[tuple[int, int, int]]:
    """Which node takes whose value, and as which argument: node, position, source; ordered by the
    first two."""
    return connection.execute(
        "SELECT node, position, source FROM inputs WHERE run = ? AND source IS NOT NULL ORDER BY node, position", (run_key,)
    ).fetchall()


# Words --------------------------------------------------------------------------------------------


def _having_words(connection: sqlite3.Connection, text: str, query: str) -> tuple[list[str], list[str]]:
    """SQL conditions, and their parameters, that hold where every word of `query` is in `text`, an
    SQL expression."""
    words = list(dict.fromkeys(query.split()))
    if len(words) <= MOST_WORDS and len(query) <= LONGEST_WORD and "\0" not in query:
        return [f"({text}) LIKE ? ESCAPE '\\'"] * len(words), [_containing(word) for word in words]
    wanted = [word.lower() for word in words]
    connection.create_function("has_words", 1, lambda found: all(word in found.lower() for word in wanted))
    return [f"has_words({text})"], []


def _containing(word: str) -> str:
    """The LIKE pattern of texts that contain this word."""
    return "%" + word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
