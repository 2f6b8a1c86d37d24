"""Reading: runs and nodes from the file, and from the log segments of live runs."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

from entangle._records import queries
from entangle._records.database import NAME, how_to_go_on, is_there, opened
from entangle._records.ingest import ingest, input_rows, leave_out, left_out
from entangle._records.log_segment import LogSegment
from entangle._records.rows import Error, Git, RunRow, Taken, TaskRecord
from entangle.errors import RecordsError


def find_runs(
    directory: str,
    *,
    limit: int | None = None,
    name: str | None = None,
    state: str | None = None,
    tags: dict[str, Any] | None = None,
    since: float | None = None,
    nested: bool = False,
) -> list[RunRow]:
    """Runs that fit, the latest first. Live ones are among them."""
    segments = ingest(directory)
    if name is not None and not _is_text(name):
        return []
    live = _live_runs(directory, segments)
    if not is_there(directory):
        return [run for run in live if _fits(run, name, state, tags, since, nested)]
    found: list[RunRow] = []
    with opened(directory) as connection:
        rows = queries.runs(connection, name, state, int(since * 1e9) if since is not None else None, nested)
        for row in _as_far_as_they_go(directory, rows):
            run = readable_run(directory, row)
            if run is not None and (tags is None or all(run.tags.get(key) == value for key, value in tags.items())):
                found.append(run)
                if limit is not None and len(found) >= limit:
                    break
    found += [run for run in live if _fits(run, name, state, tags, since, nested)]
    found.sort(key=lambda run: run.started, reverse=True)
    return found[:limit]


def _fits(run: RunRow, name: str | None, state: str | None, tags: dict[str, Any] | None, since: float | None, nested: bool) -> bool:
    return (
        (name is None or name in (run.name, run.task))
        and (state is None or run.state == state)
        and (since is None or run.started >= since)
        and (nested or run.parent_id is None)
        and (tags is None or all(run.tags.get(key) == value for key, value in tags.items()))
    )


def find_run(directory: str, wanted: str) -> RunRow:
    """The run of this id, or of the one id that begins so; `last` is the latest. Raises
    RecordsError."""
    if wanted == "last":
        latest = find_runs(directory, limit=1)
        if not latest:
            raise RecordsError(f"no run is remembered in {directory}")
        return latest[0]
    if not _is_text(wanted):
        raise RecordsError(f"no run {wanted!r} is remembered in {directory}")
    live = [segment for segment in ingest(directory) if segment.id.startswith(wanted)]
    if not is_there(directory) and not live:
        raise RecordsError(f"no run is remembered in {directory}")
    with opened(directory) as connection:
        rows = queries.runs_beginning(connection, wanted, 3)
    found = [run for row in rows if (run := readable_run(directory, row)) is not None] + _live_runs(directory, live)
    exact = [run for run in found if run.id == wanted]
    if wanted and (exact or len(found) == 1):
        return (exact or found)[0]
    if not wanted or not found:
        raise RecordsError(f"no run {wanted!r} is remembered in {directory}")
    raise RecordsError(f"several runs begin with {wanted!r}; write more of the id: {', '.join(run.id for run in found)}")


def _is_text(word: str) -> bool:
    """Whether a word can be asked for. Bytes of a command line that are no UTF-8 become surrogates,
    which SQLite refuses."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def run_of(directory: str, run_id: str) -> RunRow:
    """The run of exactly this id, where it is in the file already. Raises RecordsError."""
    with opened(directory) as connection:
        row = queries.run(connection, run_id)
    if row is None:
        return find_run(directory, run_id)
    run = readable_run(directory, row)
    if run is None:
        raise RecordsError(left_out[_row_name(directory, row)])
    return run


def to_be_forgotten(directory: str, wanted: str) -> str:
    """The id of a run that is over, found as `find_run` finds it. Raises RecordsError."""
    try:
        run = find_run(directory, wanted)
    except RecordsError:
        with opened(directory) as connection:
            if queries.run(connection, wanted) is None:
                raise
        return wanted  # its row is damaged: it shows no run, and can be removed all the same
    if run.state == "running":
        raise RecordsError(f"run {run.id} is still running; it can be forgotten when it has ended")
    return run.id


def children_of(run: RunRow) -> list[RunRow]:
    """The runs that were called in a run, the oldest first."""
    live = [child for child in _live_runs(run._directory, ingest(run._directory)) if child.parent_id == run.id]
    with opened(run._directory) as connection:
        rows = queries.children(connection, run.id)
    return [child for row in rows if (child := readable_run(run._directory, row)) is not None] + live


def _row_name(directory: str, row: sqlite3.Row) -> str:
    return f"run {row['id']!s:.40} in {os.path.join(directory, NAME)}"


def readable_run(directory: str, row: sqlite3.Row) -> RunRow | None:
    """The run of a row; None where the row is damaged, which is logged once."""
    try:
        for column, kinds in _KINDS.items():
            if not isinstance(row[column], kinds):
                raise TypeError(f"its {column} is {row[column]!r:.40}")
        return _run(directory, row)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        name, found = _row_name(directory, row), str(row["id"])[:40]
        leave_out(name, f"{name} is damaged, and is left out ({type(error).__name__}: {error}); records.forget({found!r}) removes it")
        return None


#: The types that columns must have for a run to be shown.
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("id", "name", "state", "packages", "tags"), str),
    **dict.fromkeys(("started", "node_count"), int),
    **dict.fromkeys(
        ("ended", "done_count", "workers", "pid", "parent_node", "error_node", "failed_count", "skipped_count"), (int, type(None))
    ),
    **dict.fromkeys(("parent", "error_type", "error", "traceback", "tries", "host", "program", "task"), (str, type(None))),
}


def _run(directory: str, row: sqlite3.Row) -> RunRow:
    error = None
    if row["error_type"] is not None:
        error = Error(row["error_type"], row["error"], row["traceback"], tuple(json.loads(row["notes"])), row["error_node"])
    git = None
    if row["git_root"] is not None:
        dirty = row["git_dirty"]
        git = Git(row["git_root"], row["git_commit"], row["git_branch"], None if dirty is None else bool(dirty))
    return RunRow(
        row["id"],
        row["name"],
        row["state"],
        row["started"],
        row["ended"],
        row["node_count"],
        row["done_count"],
        row["workers"],
        row["host"],
        row["pid"],
        row["user"],
        row["cwd"],
        row["program"],
        row["python"],
        row["platform"],
        row["entangle"],
        row["way"],
        git,
        json.loads(row["packages"]),
        json.loads(row["tags"]),
        row["parent"],
        row["parent_node"],
        error,
        row["graph"],
        directory,
        row["key"],
        json.loads(row["tries"]) if row["tries"] else [],
        failed_count=row["failed_count"],
        skipped_count=row["skipped_count"],
        stream=row["stream"] is not None,
        taken=tuple(Taken(str(task), int(made) / 1e9, str(key)) for task, made, key in _loaded(row["taken"], [])),
        taken_count=row["taken_count"] or 0,
        _task=row["task"],
    )


def _as_far_as_they_go(directory: str, rows: Iterable[sqlite3.Row]) -> Iterator[sqlite3.Row]:
    """Rows, up to where the file is damaged."""
    count = 0
    try:
        for row in rows:
            yield row
            count += 1
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if not count or isinstance(error, sqlite3.ProgrammingError):
            raise
        path = os.path.join(directory, NAME)
        broken = error if isinstance(error, sqlite3.DatabaseError) else sqlite3.DatabaseError("it is damaged")
        leave_out(path, f"{path} cannot be read to its end, and the rest is left out: {broken}; {how_to_go_on(broken)}")


def _live_runs(directory: str, segments: list[LogSegment]) -> list[RunRow]:
    """The live runs, from their segments. A damaged segment hides no other."""
    found = []
    for segment in segments:
        try:
            found.append(_live_run(directory, segment))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            name = f"the record of run {segment.id:.40}, which is still running,"
            leave_out(name, f"{name} is damaged, and is left out ({type(error).__name__}: {error})")
    return found


def _live_run(directory: str, segment: LogSegment) -> RunRow:
    head, place, git = segment.head, segment.head["place"], segment.head.get("git")
    parent, parent_node = head.get("parent") or (None, None)
    return RunRow(
        head["id"],
        head["name"],
        "running",
        head["began"],
        None,
        len(segment.body_of),
        None,
        None,
        head["host"],
        head["pid"],
        place["user"],
        head["cwd"],
        place["program"],
        place["python"],
        place["platform"],
        place["entangle"],
        head["way"],
        Git(git["root"], git["commit"], git["branch"], None) if git else None,
        head["packages"],
        head["tags"],
        parent,
        parent_node,
        None,
        head["graph"],
        directory,
        None,
        [],
        segment,
        _task=head.get("task"),
    )


def nodes_of(run: RunRow) -> Iterator[tuple[int, TaskRecord, tuple[Any, ...]]]:
    """The nodes of a run: number, task, and the columns of the file from `state` on."""
    if run._key is None:
        assert run._segment is not None
        tasks = [_task_of_segment(body) for body in run._segment.head["bodies"]]
        nothing, names = ("unknown", *(None,) * 15), run._segment.names
        return ((number, tasks[body], (*nothing, names.get(number), *(None,) * 9)) for number, body in enumerate(run._segment.body_of))
    with opened(run._directory) as connection:
        known = {row[0]: _task(row[1:]) for row in queries.tasks(connection, run._key)}
        rows = queries.nodes(connection, run._key)
    lost = _task(("?", *(None,) * 9))
    return ((row[1], known.get(row[2], lost), row[3:]) for row in rows)


def _task(row: tuple[Any, ...]) -> TaskRecord:
    name, qualified, module, version, source, file, line, layers, terms, attributes = row
    return TaskRecord(
        name,
        qualified or name,
        module or "",
        version,
        source or "",
        file or "",
        line or 0,
        tuple(_loaded(layers, [])),
        _loaded(terms, {}),
        _loaded(attributes, {}),
    )


def _loaded(text: Any, usual: Any) -> Any:
    """What JSON says; `usual` where it is damaged: one task must not hide the others."""
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return usual
    return found if isinstance(found, type(usual)) else usual


def _task_of_segment(body: dict[str, Any]) -> TaskRecord:
    told = {name: json.dumps(body.get(name) or default) for name, default in (("layers", []), ("terms", {}), ("attributes", {}))}
    plain = [body.get(name) for name in ("name", "qualified", "module", "version", "source", "file", "line")]
    return _task((*plain, told["layers"], told["terms"], told["attributes"]))


def failures_of(run: RunRow) -> tuple[dict[int, Error], dict[int, int]]:
    """The errors of nodes that have not ended the run; and for nodes that were skipped, the node
    whose failure is why."""
    if run._key is None or not (run.failed_count or run.skipped_count):
        return {}, {}
    with opened(run._directory) as connection:
        rows = queries.failures(connection, run._key)
    errors = {
        node: Error(str(kind), str(message or ""), str(traceback or ""), tuple(map(str, _loaded(notes, []))), node)
        for node, kind, message, traceback, notes, _ in rows
        if kind is not None
    }
    # A number that is damaged names no node.
    return errors, {row[0]: row[5] for row in rows if type(row[5]) is int and 0 <= row[5] < run.node_count}


def inputs_of(run: RunRow) -> list[list[tuple[Any, ...]]]:
    """For each node of a run, the rows of its arguments."""
    if run._key is None:
        assert run._segment is not None
        rows = list(input_rows(0, run._segment))
    else:
        with opened(run._directory) as connection:
            rows = queries.inputs(connection, run._key)
    taken: list[list[tuple[Any, ...]]] = [[] for _ in range(run.node_count)]
    for row in rows:
        taken[row[1]].append(row)
    return taken
