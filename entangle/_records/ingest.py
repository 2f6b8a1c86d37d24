"""Ingesting: log segments become rows of the file, one transaction each. Commands and the page do
it when they look, and long runs when they end.

Two processes may do it at once, and one may be killed in the middle: a run is in the file whole or
not at all, and its segment is removed only when it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from entangle._records import queries
from entangle._records.database import NAME, how_to_go_on, is_there, opened, patience, transaction
from entangle._records.directory import segments_of
from entangle._records.log_segment import CANCELLED, OURS, OURS_COMING, SUFFIX, LogSegment, Newer, NotASegment, Unfinished, parse, read
from entangle._records.retention import retain_now_and_then
from entangle._records.retirements import ENDING, ingest_notes
from entangle._records.task_versions import each_of
from entangle._shared.notes import COOKIE_WAIT, MEMORY, MOVED
from entangle._shared.store import in_record
from entangle._shared.table import DONE, FAILED, IN_RECORD, READY, RECORD, RUNNING, SKIPPED, WAITING
from entangle.errors import RecordsError

#: States of a node whose run has ended.
_STATES = {DONE: "done", FAILED: "failed", SKIPPED: "skipped", RUNNING: "stopped", READY: "waiting", WAITING: "waiting"}

#: type, size, SHA-256, text, whole.
_Told = tuple[Any, Any, Any, Any, Any]
_NOTHING: _Told = (None, None, None, None, None)
#: The counts of a node that is no stage of a dataflow.
_NO_STAGE = (None, None, None, None)
#: Place, ticket and time queued of a node that ran where its run did.
_HERE = (None, None, None)

#: What could not be read so far, by path, and why. It is logged once in a process.
left_out: dict[str, str] = {}
#: What is raised where a segment lacks something, or has something else in its place.
_UNFIT = (
    *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError),
    *(RecursionError, MemoryError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError),
)


def ingest(directory: str, seconds: float | None = None, largest: int | None = None) -> list[LogSegment]:
    """Ingest every segment whose run is over; gives the segments of live runs. With `seconds`, stop
    after so many, and wait no longer than that for a lock. With `largest`, leave segments of more
    bytes for later."""
    folder = segments_of(directory)
    try:
        found = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        if not is_there(directory):
            raise RecordsError(
                f"records cannot be read in {directory}: {error.strerror}; ENTANGLE_RECORD_DIR names another place"
            ) from error
        leave_out(folder, f"{folder} cannot be read, so runs that have just ended are left out: {error.strerror}")
        return []
    names = sorted(name for name in found if name.endswith(SUFFIX))
    for name in found:
        if OURS_COMING.fullmatch(name):
            _clear_away(os.path.join(folder, name), 3600)
    for path in [path for path in left_out if os.path.dirname(path) == folder and os.path.basename(path) not in names]:
        del left_out[path]  # the user has removed it
    retired = [name for name in found if name.endswith(ENDING)]
    live: list[LogSegment] = []
    if not names and not retired:
        return live
    until = time.monotonic() + seconds if seconds is not None else None
    with opened(directory, patience=patience() if seconds is None else seconds) as connection:
        closed = False
        for name in names:
            if until is not None and time.monotonic() > until:
                break
            path = os.path.join(folder, name)
            if largest is not None and _size_of(path) > largest:
                continue
            segment = _read(path)
            if segment is None:
                continue
            if segment.live:
                live.append(segment)
                continue
            if closed:
                continue
            try:
                ingest_segment(connection, segment)
            except NotASegment as error:
                leave_out(path, _no_record(path, error))
            except sqlite3.OperationalError as error:
                # The file cannot be written now. What is in it can be read, and so can the segments
                # of live runs.
                closed = True
                file = os.path.join(directory, NAME)
                leave_out(file, f"runs that have ended lately are left out: {file} cannot be written: {error}; {how_to_go_on(error)}")
            else:
                left_out.pop(os.path.join(directory, NAME), None)
                _remove(path)
        if retired and not closed:
            with contextlib.suppress(sqlite3.OperationalError):  # they are read the next time
                ingest_notes(connection, folder, retired, set(names))
    if not closed:
        retain_now_and_then(directory, seconds)
    return live


def _size_of(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def _read(path: str) -> LogSegment | None:
    """A segment; None where it cannot be read, which is logged."""
    try:
        return read(path)
    except FileNotFoundError:  # another process has ingested it meanwhile
        pass
    except Unfinished:
        _clear_away(path)
    except Newer as error:
        leave_out(path, f"{path} is left out: {error}")
    except NotASegment as error:
        leave_out(path, _no_record(path, error))
    except OSError as error:
        leave_out(path, f"{path} cannot be read, and is left out: {error.strerror or error}")
    return None


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:  # it will be read again, and its run stays in the file once
        leave_out(path, f"{path} has been read and cannot be removed: {error.strerror or error}")


def _clear_away(path: str, after: float = 60) -> None:
    """Remove an empty segment, or one that has never come whole: its writer was killed. It has not
    been written to for so many seconds."""
    coming = OURS_COMING.fullmatch(os.path.basename(path)) is not None
    if not coming and not OURS.fullmatch(os.path.basename(path)):
        leave_out(path, _no_record(path, "it is empty"))
        return
    try:
        found = os.lstat(path)
        if (coming or not found.st_size) and time.time() - found.st_mtime > after:
            os.unlink(path)
    except OSError:
        pass


def _no_record(path: str, why: object) -> str:
    return f"{path} is no record of a run, and is left out ({why}); remove it to end this warning"


def leave_out(path: str, text: str) -> None:
    """Log once in a process that something is left out. It must not hide other records."""
    if left_out.get(path) != text:
        left_out[path] = text
        import logging

        logging.getLogger("entangle").warning("%s", text)


def take_segments(directory: str, run_ids: list[str]) -> list[bytes]:
    """Remove the segments of runs that are over, and give them."""
    taken = []
    for run_id in run_ids:
        path = os.path.join(segments_of(directory), run_id + SUFFIX)
        try:
            if read(path).live:
                continue
            with open(path, "rb") as file:
                taken.append(file.read())
            os.unlink(path)
        except (OSError, ValueError):
            continue
    return taken


def absorb_segments(directory: str, bodies: list[bytes], parent: tuple[str, int] | None) -> list[str]:
    """Ingest segments of runs that took place elsewhere; `parent` is the run and the node here that
    called them."""
    try:
        segments = [parse(body) for body in bodies]
    except ValueError as error:
        raise RecordsError(f"this is no record of a run, and cannot be absorbed: {error}") from None
    known = {segment.id for segment in segments}
    with opened(directory) as connection:
        for segment in segments:
            if parent is not None and (segment.head.get("parent") or [None])[0] not in known:
                segment.head["parent"] = list(parent)
            try:
                ingest_segment(connection, segment)
            except NotASegment as error:
                raise RecordsError(f"this is no record of a run, and cannot be absorbed: {error}") from None
    return [segment.id for segment in segments]


def ingest_segment(connection: sqlite3.Connection, segment: LogSegment) -> None:
    """Write the rows of a run that is over, unless they are there. Raises NotASegment where
    something in the segment is missing or wrong."""
    try:
        with transaction(connection):
            key = _insert_run(connection, segment)
            if key is None:
                return
            tasks = [_task_key(connection, body) for body in segment.head["bodies"]]
            connection.executemany(
                f"INSERT INTO nodes ({_NODE_COLUMNS}) VALUES ({', '.join('?' * len(_NODE_COLUMNS.split()))})",
                _node_rows(key, segment, tasks),
            )
            connection.executemany("INSERT INTO failures VALUES (?, ?, ?, ?, ?, ?, ?)", _failure_rows(key, segment))
            printed = (segment.tail or {}).get("prints") or {}
            connection.executemany("INSERT INTO prints VALUES (?, ?, ?)", ((key, int(node), text) for node, text in printed.items()))
            connection.executemany("INSERT INTO inputs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", input_rows(key, segment))
    except _UNFIT as error:
        raise NotASegment(f"{type(error).__name__}: {error}") from error


def _insert_run(connection: sqlite3.Connection, segment: LogSegment) -> int | None:
    head, tail = segment.head, segment.tail
    place, git = head["place"], head.get("git") or {}
    parent, parent_node = head.get("parent") or (None, None)
    error = (tail or {}).get("error") or {}
    dirty = (tail or {}).get("dirty")
    row = {
        "id": head["id"],
        "parent": parent,
        "parent_node": parent_node,
        "name": head["name"],
        "task": head.get("task"),
        "state": state_of(tail),
        "started": head["began"],
        "ended": tail["ended"] - head["clock"] + head["began"] if tail else None,
        "node_count": len(segment.body_of),
        "done_count": segment.states.count(DONE) if tail else None,
        "failed_count": _failed_count(segment, tail) if tail else None,
        "skipped_count": segment.states.count(SKIPPED) if tail else None,
        "stream": json.dumps(tail["stream"]) if tail and "stream" in tail else None,
        "workers": (tail or {}).get("workers"),
        "host": place["host"],
        "pid": head["pid"],
        "user": place.get("user"),
        "cwd": head.get("cwd"),
        "program": place.get("program"),
        "python": place.get("python"),
        "platform": place.get("platform"),
        "entangle": place.get("entangle"),
        "way": head.get("way"),
        "git_root": git.get("root"),
        "git_commit": git.get("commit"),
        "git_branch": git.get("branch"),
        "git_dirty": None if dirty is None else int(dirty),
        "packages": json.dumps(head.get("packages") or {}),
        "tags": json.dumps(head.get("tags") or {}),
        "error_type": error.get("type"),
        "error": error.get("message"),
        "traceback": error.get("traceback"),
        "notes": json.dumps(error["notes"]) if error else None,
        "error_node": error.get("node"),
        "tries": json.dumps([_dated(one, head["began"] - head["clock"]) for one in tail["tries"]]) if tail and tail["tries"] else None,
        "graph": head.get("graph"),
        "taken": json.dumps(tail["taken"]) if tail and tail.get("taken") else None,
        "taken_count": tail.get("taken_count") if tail else None,
        "load": json.dumps(tail["load"]) if tail and tail.get("load") else None,
    }
    names = ", ".join(row)
    marks = ", ".join(f":{name}" for name in row)
    cursor = connection.execute(f"INSERT OR IGNORE INTO runs ({names}) VALUES ({marks})", row)
    return cursor.lastrowid if cursor.rowcount else None


def _failed_count(segment: LogSegment, tail: dict[str, Any]) -> int:
    if "stream" in tail:
        return sum(one["failed"] for one in tail["stream"]["stages"])
    return segment.states.count(FAILED)


def _dated(attempt: dict[str, Any], shift: int) -> dict[str, Any]:
    """An attempt, with its times in nanoseconds since 1970. Where its body never began, it has
    none."""
    times = {name: attempt[name] + shift for name in ("began", "ended") if attempt.get("began")}
    return {**{name: value for name, value in attempt.items() if name not in ("began", "ended")}, **times}


def state_of(tail: dict[str, Any] | None) -> str:
    """The state of a run that is over."""
    if tail is None:
        return "killed"
    error = tail.get("error")
    if not error:
        return "done"
    return "cancelled" if error["type"].endswith(CANCELLED) else "failed"


def _task_key(connection: sqlite3.Connection, body: dict[str, Any]) -> int:
    layers, terms = json.dumps(body.get("layers") or []), json.dumps(body.get("terms") or {}, sort_keys=True)
    attributes = json.dumps(body.get("attributes") or {}, sort_keys=True)
    identity = hashlib.sha256("\0".join((body["version"], body.get("file") or "", terms, attributes)).encode()).hexdigest()
    found = queries.task_key(connection, identity)
    if found is not None:
        return found
    cursor = connection.execute(
        "INSERT INTO tasks (identity, version, name, module, qualified, file, line, source, layers, terms, attributes) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            identity,
            body["version"],
            body["name"],
            body.get("module"),
            body.get("qualified"),
            body.get("file"),
            body.get("line"),
            body.get("source"),
            layers,
            terms,
            attributes,
        ),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


class _Values:
    """Values as rows have them. A value that was noted as it is gets its hash here."""

    def __init__(self) -> None:
        self._known: dict[tuple[type, Any], _Told] = {}

    def told(self, value: Any) -> _Told:
        kind = type(value)
        if kind is list and len(value) == 1:
            return value[0], None, None, f"<{value[0].rpartition('.')[2]}>", None
        if kind is list:
            name, size, digest, text, whole = value
            return name, size, digest and bytes.fromhex(digest), text, whole and bytes.fromhex(whole)
        # 0.0 == -0.0, and they have two hashes: zeros are not looked up.
        known = self._known.get((kind, value)) if kind is not float or value else None
        if known is None:
            pickled = pickle.dumps(value, 5)
            known = (
                "None" if value is None else kind.__name__,
                len(pickled),
                hashlib.sha256(pickled).digest(),
                repr(value),
                None,
            )
            if len(self._known) < 100_000:
                self._known[kind, value] = known
        return known


#: The columns of a node, in the order of `_node_rows`.
_NODE_COLUMNS = (
    "run, node, task, state, attempts, ready, started, ended, pid, cpu, worker, memory, cookie_wait, moved, "
    "type, size, hash, text, whole, named, items, items_failed, items_skipped, spent, place, ticket, queued, made, depot_key"
)


def _node_rows(key: int, segment: LogSegment, tasks: list[int]) -> Iterator[tuple[Any, ...]]:
    tail = segment.tail
    names = segment.names.get
    if tail is None:
        for node, body in enumerate(segment.body_of):
            yield (key, node, tasks[body], "unknown", *([None] * 10), *_NOTHING, names(node), *_NO_STAGE, *_HERE, None, None)
        return
    assert segment.ready_at is not None
    began = segment.head["began"]
    shift, began_ns = began - segment.head["clock"], segment.head["clock"]
    values = dict(zip(tail["nodes"], tail["values"], strict=True))
    extras: tuple[dict[int, int], ...] = ({}, {}, {})
    triples = tail["extras"]
    for node, what, much in zip(triples[::3], triples[1::3], triples[2::3], strict=True):
        mine = extras[what]
        mine[node] = max(mine.get(node, 0), much) if what == MEMORY else mine.get(node, 0) + much
    memory, cookies, moved = extras[MEMORY].get, extras[COOKIE_WAIT].get, extras[MOVED].get
    where = tail.get("places", ())
    elsewhere = {
        node: (place, ticket or None, queued or None)
        for node, place, ticket, queued in zip(where[::4], where[1::4], where[2::4], where[3::4], strict=True)
    }.get
    triples = tail.get("looked_up", ())
    looked_up = {node: (made, f"{key:012x}") for node, made, key in zip(triples[::3], triples[1::3], triples[2::3], strict=True)}.get
    inside = Counter(one["node"] for one in tail["tries"] if one.get("inside"))
    told = _Values().told
    stages = [[one["done"], one["failed"], one["skipped"], one["busy"]] for one in tail["stream"]["stages"]] if "stream" in tail else []
    missing = object()
    rows = zip(segment.body_of, segment.states, segment.attempts, segment.ready_at, RECORD.iter_unpack(segment.records), strict=True)
    for node, (body, state, attempts, ready, (started, ended, number, kind, where, pid, cpu, slot)) in enumerate(rows):
        ran = bool(pid)
        value = values.get(node, missing)
        if where == IN_RECORD and state == DONE:
            value = in_record(number, kind)
        place, ticket, queued = elsewhere(node, _HERE)
        if queued is not None and queued < 0 and started:  # its record began before it was queued
            queued = -queued
            started = min(started + queued, ended or started + queued)
        yield (
            key,
            node,
            tasks[body],
            _STATES.get(state, "waiting"),
            attempts + inside[node] + 1 if ran or attempts else 0,
            ready + shift if ready else began if ran else None,
            started + shift if started else None,
            ended + shift if ended else None,
            pid or None,
            cpu if ran and cpu >= 0 else None,
            slot if ran else None,
            memory(node),
            _within(cookies(node), started - (ready or began_ns)),
            moved(node),
            *(_NOTHING if value is missing else told(value)),
            names(node),
            *(stages[node] if stages else _NO_STAGE),
            place,
            ticket,
            _within(queued, started - (ready or began_ns)),
            *looked_up(node, (None, None)),
        )


def _within(waited: int | None, most: int) -> int | None:
    """How long a node has waited for cookies, or in the queue of its place. Of notes of two workers
    one may be lost with it."""
    return waited and max(0, min(waited, most))


def _failure_rows(key: int, segment: LogSegment) -> Iterator[tuple[Any, ...]]:
    """The rows of `failures`: nodes that failed and have not ended the run, and nodes that were
    skipped."""
    for one in (segment.tail or {}).get("failures", ()):
        yield key, one["node"], one["type"], one["message"], one["traceback"], json.dumps(one["notes"]), None
    if segment.tail is None or "stream" in segment.tail:
        return
    states = segment.states
    node = states.find(SKIPPED)
    while node >= 0:
        _, _, cause, *_ = RECORD.unpack_from(segment.records, node * RECORD.size)
        yield key, node, None, None, None, None, cause
        node = states.find(SKIPPED, node + 1)


def input_rows(key: int, segment: LogSegment) -> Iterator[tuple[Any, ...]]:
    """The rows of `inputs` for a run."""
    constants = segment.tail["constants"] if segment.tail else None
    labels = {tuple(map(int, pair.split())): each_of(names) for pair, names in segment.head["labels"].items()}
    told = _Values().told
    starts = segment.starts
    inputs = segment.inputs.tolist()
    for node, (body, shape, first, last) in enumerate(zip(segment.body_of, segment.shape_of, starts, starts[1:], strict=False)):
        if first == last:
            continue
        names = labels[body, shape]
        for position in range(last - first):
            taken = inputs[first + position]
            if taken >= 0:
                yield key, node, position, names[position], taken, None, None, None, None
            elif constants is None:
                yield key, node, position, names[position], None, None, None, None, None
            else:
                yield key, node, position, names[position], None, *told(constants[~taken])[:4]


def note_sent(directory: str, run_key: int, graph: str) -> None:
    """Note that a run has been sent to that Gremlin server."""
    with opened(directory) as connection:
        try:
            connection.execute("INSERT OR REPLACE INTO sent VALUES (?, ?, ?)", (run_key, graph, time.time_ns()))
        except sqlite3.IntegrityError:  # the run has been forgotten meanwhile
            pass
