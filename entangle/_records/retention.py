"""Retention: old runs are removed, and the oldest ones where the file is too large."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time

from entangle._records import kept, queries
from entangle._records.database import opened, transaction, without_references
from entangle._records.directory import segments_of
from entangle._records.log_segment import SUFFIX
from entangle.errors import RecordsError

DAYS, BYTES = 90.0, 1 << 30
#: Seconds between two times that ingesting does it by itself.
EVERY = 3600.0
#: The same, where there was no time to finish (seconds).
_SOON = 60.0
_MARK = "retained"
#: How long one piece of the work should take (seconds), how many runs it removes at most, and how
#: many pages of the file are given back at once.
_PIECE, _RUNS, _PAGES = 0.02, 64, 256
#: Later than any run begins (seconds since 1970).
_LATEST = 9e9

#: A run, and all runs that were called in it.
_FAMILY = """
WITH RECURSIVE family (id) AS (VALUES (?) UNION SELECT runs.id FROM runs JOIN family ON runs.parent = family.id)
SELECT id FROM family
"""


def usual_days() -> float:
    """For how many days runs are remembered, from the environment; `inf` is for ever. Raises
    RecordsError for what is no number."""
    return _limit("ENTANGLE_RECORD_DAYS", DAYS)


def usual_size() -> float:
    """How many bytes the file may have, from the environment; `inf` is any size. Raises
    RecordsError for what is no number."""
    return _limit("ENTANGLE_RECORD_BYTES", BYTES)


def _limit(variable: str, usual: float) -> float:
    given = os.environ.get(variable, "").strip()
    try:
        limit = float(given) if given else usual
    except ValueError:
        limit = -1.0
    if not limit >= 0:  # this is also true of nan
        raise RecordsError(f"{variable} is {given!r}; it must be a number from 0 on, or inf")
    return limit


def forget_run(directory: str, run_id: str) -> None:
    """Remove the run of exactly this id, and those called in it."""
    with opened(directory) as connection:
        with transaction(connection):
            gone = [str(row[0]) for row in connection.execute(_FAMILY, (run_id,)).fetchall()]
            connection.executemany("DELETE FROM runs WHERE id = ?", [(one,) for one in gone])
        with without_references(connection), transaction(connection):
            _drop_tasks(connection)
        connection.execute("PRAGMA incremental_vacuum").fetchall()
    kept.remove_of(directory, gone)


def remove_unremembered(directory: str) -> list[str]:
    """Remove the kept calls of runs that are forgotten. Gives the paths."""
    named = {call.run for call in kept.all_kept(directory)}
    if not named and not os.path.isdir(kept.folder_of(directory)):
        return []
    with opened(directory) as connection:
        remembered = {run for run in named if queries.run(connection, run) is not None}
    with contextlib.suppress(OSError):
        remembered |= {name.removesuffix(SUFFIX) for name in os.listdir(segments_of(directory))}
    return kept.sweep(directory, remembered)


def retain(directory: str, days: float | None = None, size: float | None = None) -> int:
    """Remove runs that are older than so many days, then the oldest until the file is small enough.
    Gives how many were removed."""
    since = time.time() - (usual_days() if days is None else days) * 86_400
    most = usual_size() if size is None else size
    with opened(directory) as connection:
        count = queries.count_runs(connection)
        if _remove_old(connection, since, most, float("inf")):
            with without_references(connection), transaction(connection):
                _drop_tasks(connection)
        connection.execute("PRAGMA incremental_vacuum").fetchall()
        removed = count - queries.count_runs(connection)
    remove_unremembered(directory)
    return removed


def retain_in_part(directory: str, days: float, size: float, seconds: float) -> bool:
    """Remove such runs for about so many seconds: a caller waits. Gives whether none is left."""
    until = time.monotonic() + seconds
    with opened(directory, patience=seconds) as connection:
        try:
            _remove_old(connection, time.time() - days * 86_400, size, until)
            free = _free(connection)
            while time.monotonic() < until:
                connection.execute(f"PRAGMA incremental_vacuum({_PAGES})").fetchall()
                before, free = free, _free(connection)
                if free in (0, before):
                    return True
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):  # another process writes
                raise
    return False


def _remove_old(connection: sqlite3.Connection, since: float, most: float, until: float) -> bool:
    """Remove runs in small pieces, so that others can write in between: those that began before
    `since` (seconds since 1970), then the oldest while the file has more than `most` bytes. Gives
    whether any were removed."""
    removed = False
    for before, enough in ((since, -1.0), (_LATEST, most)):
        count = 1
        while before > 0 and time.monotonic() < until and _used(connection) > enough:
            began = time.monotonic()
            with transaction(connection):
                gone = connection.execute(
                    "DELETE FROM runs WHERE key IN (SELECT key FROM runs WHERE started < ? ORDER BY started LIMIT ?)",
                    (int(before * 1e9), count),
                ).rowcount
            if not gone:
                break
            removed = True
            took = time.monotonic() - began
            count = min(2 * count, _RUNS) if took < _PIECE else max(1, count // 2)
            time.sleep(min(took, _PIECE))  # for those that wait for the file
    return removed


def _used(connection: sqlite3.Connection) -> int:
    """How many bytes of the file are in use."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (width,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - _free(connection)) * width)


def _free(connection: sqlite3.Connection) -> int:
    """How many pages of the file are not in use."""
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(free)


def _drop_tasks(connection: sqlite3.Connection) -> None:
    """Remove the tasks of no node."""
    connection.execute("DELETE FROM tasks WHERE key NOT IN (SELECT DISTINCT task FROM nodes)")


def retain_now_and_then(directory: str, seconds: float | None = None) -> None:
    """Remove old runs, unless that has been done within the hour. For about so many seconds, if a
    caller waits."""
    mark = os.path.join(directory, _MARK)
    try:
        if time.time() - os.stat(mark).st_mtime < EVERY:
            return
    except OSError:
        pass
    try:
        # Before the mark is set: a wrong variable is reported each time.
        days, size = usual_days(), usual_size()
        with open(mark, "a", encoding="ascii"):
            os.utime(mark)
        if seconds is None:
            retain(directory, days, size)
        elif not retain_in_part(directory, days, size, seconds):
            at = time.time() - EVERY + _SOON
            os.utime(mark, (at, at))
    except (RecordsError, OSError) as error:  # no reason to show no runs
        import logging

        logging.getLogger("entangle").warning("old records are not removed: %s", error)
