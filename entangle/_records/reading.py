"""Reading: rows of the file, and sheets of runs that go on, as what `views` shows."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from entangle._records.database import NAME, how_to_go_on, is_there, opened
from entangle._records.ingest import bind, leave_out, left_out
from entangle._records.log_segment import Sheet
from entangle.errors import RecordsError

if TYPE_CHECKING:
    from entangle._records.views import Node, Run, Task, Value


def find_runs(
    shelf: str,
    *,
    limit: int | None = None,
    name: str | None = None,
    state: str | None = None,
    tags: dict[str, Any] | None = None,
    since: float | None = None,
    nested: bool = False,
) -> list[Run]:
    """Runs that fit, the latest first. Those that go on are among them."""
    lasting = bind(shelf)
    if name is not None and not _is_text(name):
        return []
    going = _going_runs(shelf, lasting)
    if not is_there(shelf):
        return [run for run in going if _fits(run, name, state, tags, since, nested)]
    where, values = ["1"], list[Any]()
    if name is not None:
        where.append("name = ?")
        values.append(name)
    if state is not None:
        where.append("state = ?")
        values.append(state)
    if since is not None:
        where.append("started >= ?")
        values.append(int(since * 1e9))
    if not nested:
        where.append("parent IS NULL")
    found: list[Run] = []
    with opened(shelf) as connection:
        connection.row_factory = sqlite3.Row
        query = f"SELECT * FROM runs WHERE {' AND '.join(where)} ORDER BY started DESC"
        for row in _as_far_as_they_go(shelf, connection.execute(query, values)):
            run = readable_run(shelf, row)
            if run is not None and (tags is None or all(run.tags.get(key) == value for key, value in tags.items())):
                found.append(run)
                if limit is not None and len(found) >= limit:
                    break
    found += [run for run in going if _fits(run, name, state, tags, since, nested)]
    found.sort(key=lambda run: run.started, reverse=True)
    return found[:limit]


def _fits(run: Run, name: str | None, state: str | None, tags: dict[str, Any] | None, since: float | None, nested: bool) -> bool:
    return (
        (name is None or run.name == name)
        and (state is None or run.state == state)
        and (since is None or run.started >= since)
        and (nested or run.parent_id is None)
        and (tags is None or all(run.tags.get(key) == value for key, value in tags.items()))
    )


def find_run(shelf: str, wanted: str) -> Run:
    """The run of this id, or of the one id that begins so; `last` is the latest. Raises RecordsError."""
    if wanted == "last":
        latest = find_runs(shelf, limit=1)
        if not latest:
            raise RecordsError(f"no run is remembered in {shelf}")
        return latest[0]
    if not _is_text(wanted):
        raise RecordsError(f"no run {wanted!r} is remembered in {shelf}")
    going = [sheet for sheet in bind(shelf) if sheet.id.startswith(wanted)]
    if not is_there(shelf) and not going:
        raise RecordsError(f"no run is remembered in {shelf}")
    with opened(shelf) as connection:
        connection.row_factory = sqlite3.Row
        low, high = wanted, wanted + "\U0010ffff"
        rows = connection.execute("SELECT * FROM runs WHERE id >= ? AND id < ? LIMIT 3", (low, high)).fetchall()
    found = [run for row in rows if (run := readable_run(shelf, row)) is not None] + _going_runs(shelf, going)
    exact = [run for run in found if run.id == wanted]
    if wanted and (exact or len(found) == 1):
        return (exact or found)[0]
    if not wanted or not found:
        raise RecordsError(f"no run {wanted!r} is remembered in {shelf}")
    raise RecordsError(f"several runs begin with {wanted!r}: {', '.join(run.id for run in found)}")


def _is_text(word: str) -> bool:
    """Whether a word can be asked for: bytes of a command line that are no UTF-8 are halves of characters, which SQLite refuses."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def run_of(shelf: str, run_id: str) -> Run:
    """The run of exactly this id, where it is in the file already. Raises RecordsError."""
    with opened(shelf) as connection:
        connection.row_factory = sqlite3.Row
        row = connection.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
    if row is None:
        return find_run(shelf, run_id)
    run = readable_run(shelf, row)
    if run is None:
        raise RecordsError(left_out[_row_name(shelf, row)])
    return run


def children_of(run: Run) -> list[Run]:
    """The runs that were called in a run, the oldest first."""
    going = [child for child in _going_runs(run._shelf, bind(run._shelf)) if child.parent_id == run.id]
    with opened(run._shelf) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM runs WHERE parent = ? ORDER BY started", (run.id,)).fetchall()
    return [child for row in rows if (child := readable_run(run._shelf, row)) is not None] + going


def _row_name(shelf: str, row: sqlite3.Row) -> str:
    return f"run {row['id']!s:.40} in {os.path.join(shelf, NAME)}"


def readable_run(shelf: str, row: sqlite3.Row) -> Run | None:
    """The run of a row; None where the row has been damaged, which is said once."""
    try:
        for column, kinds in _KINDS.items():
            if not isinstance(row[column], kinds):
                raise TypeError(f"its {column} is {row[column]!r:.40}")
        return _run(shelf, row)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        name, found = _row_name(shelf, row), str(row["id"])[:40]
        leave_out(name, f"{name} is damaged, and is left out ({type(error).__name__}: {error}); records.forget({found!r}) removes it")
        return None


#: What must be so of a row, for a run to be shown.
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("id", "name", "state", "packages", "tags"), str),
    **dict.fromkeys(("started", "node_count"), int),
    **dict.fromkeys(("ended", "done_count", "workers", "pid", "parent_node", "error_node"), (int, type(None))),
    **dict.fromkeys(("parent", "error_type", "error", "traceback", "tries", "host", "program"), (str, type(None))),
}


def _run(shelf: str, row: sqlite3.Row) -> Run:
    from entangle._records.views import Error, Git, Run

    error = None
    if row["error_type"] is not None:
        error = Error(row["error_type"], row["error"], row["traceback"], tuple(json.loads(row["notes"])), row["error_node"])
    git = None
    if row["git_root"] is not None:
        dirty = row["git_dirty"]
        git = Git(row["git_root"], row["git_commit"], row["git_branch"], None if dirty is None else bool(dirty))
    return Run(
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
        shelf,
        row["key"],
        json.loads(row["tries"]) if row["tries"] else [],
    )


def _as_far_as_they_go(shelf: str, rows: Iterable[sqlite3.Row]) -> Iterator[sqlite3.Row]:
    """Rows, up to where the file is damaged: what comes before is worth something."""
    count = 0
    try:
        for row in rows:
            yield row
            count += 1
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if not count or isinstance(error, sqlite3.ProgrammingError):
            raise
        path = os.path.join(shelf, NAME)
        broken = error if isinstance(error, sqlite3.DatabaseError) else sqlite3.DatabaseError("it is damaged")
        leave_out(path, f"{path} cannot be read to its end, and what comes there is left out: {broken}; {how_to_go_on(broken)}")


def _going_runs(shelf: str, sheets: list[Sheet]) -> list[Run]:
    """The runs of sheets of runs that last; one that is damaged hides no other."""
    found = []
    for sheet in sheets:
        try:
            found.append(_going(shelf, sheet))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            name = f"the record of run {sheet.id:.40}, which lasts,"
            leave_out(name, f"{name} is damaged, and is left out ({type(error).__name__}: {error})")
    return found


def _going(shelf: str, sheet: Sheet) -> Run:
    from entangle._records.views import Git, Run

    head, place, git = sheet.head, sheet.head["place"], sheet.head.get("git")
    parent, parent_node = head.get("parent") or (None, None)
    return Run(
        head["id"],
        head["name"],
        "running",
        head["began"],
        None,
        len(sheet.body_of),
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
        shelf,
        None,
        [],
        sheet,
    )


def value_of(kind: str | None, size: int | None, digest: bytes | None, text: str | None, whole: bytes | None = None) -> Value | None:
    """A value as the file has it."""
    from entangle._records.views import Value

    return Value(kind, size, digest.hex() if digest else None, text or "", whole) if kind is not None else None


def nodes_of(run: Run) -> list[Node]:
    """The nodes of a run."""
    from entangle._records.views import Node

    if run._key is None:
        tasks = [_task_of_sheet(body) for body in run._sheet.head["bodies"]]
        nothing = ("unknown", *(None,) * 15)
        return [Node(run, number, tasks[body], nothing) for number, body in enumerate(run._sheet.body_of)]
    with opened(run._shelf) as connection:
        known = {
            row[0]: _task(row[1:])
            for row in connection.execute(
                "SELECT key, name, qualified, module, version, source, file, line, layers, terms, attributes FROM tasks "
                "WHERE key IN (SELECT DISTINCT task FROM nodes WHERE run = ?)",
                (run._key,),
            )
        }
        rows = connection.execute("SELECT * FROM nodes WHERE run = ? ORDER BY node", (run._key,)).fetchall()
    lost = _task(("?", *(None,) * 9))
    return [Node(run, row[1], known.get(row[2], lost), row[3:]) for row in rows]


def _task(row: tuple[Any, ...]) -> Task:
    from entangle._records.views import Task

    name, qualified, module, version, source, file, line, layers, terms, attributes = row
    return Task(
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
    """What JSON says; `usual` where it is damaged, as one task must not hide the others."""
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return usual
    return found if isinstance(found, type(usual)) else usual


def _task_of_sheet(body: dict[str, Any]) -> Task:
    told = {name: json.dumps(body.get(name) or default) for name, default in (("layers", []), ("terms", {}), ("attributes", {}))}
    plain = [body.get(name) for name in ("name", "qualified", "module", "version", "source", "file", "line")]
    return _task((*plain, told["layers"], told["terms"], told["attributes"]))


def inputs_of(run: Run) -> list[list[tuple[Any, ...]]]:
    """For each node of a run, the rows of its arguments."""
    from entangle._records.ingest import input_rows

    if run._key is None:
        rows = list(input_rows(0, run._sheet))
    else:
        with opened(run._shelf) as connection:
            rows = connection.execute("SELECT * FROM inputs WHERE run = ? ORDER BY node, position", (run._key,)).fetchall()
    taken: list[list[tuple[Any, ...]]] = [[] for _ in range(run.node_count)]
    for row in rows:
        taken[row[1]].append(row)
    return taken
