"""Retention: old runs are removed, and the oldest ones where the file is too large."""

from __future__ import annotations

import os
import sqlite3
import time

from entangle._records import queries
from entangle._records.database import opened, transaction
from entangle.errors import RecordsError

DAYS, BYTES = 90.0, 1 << 30
#: Seconds between two times that ingesting does it by itself.
EVERY = 3600.0
_MARK = "retained"

#: Removes a run, and all runs that were called in it.
_FAMILY = """
WITH RECURSIVE family (id) AS (VALUES (?) UNION SELECT runs.id FROM runs JOIN family ON runs.parent = family.id)
DELETE FROM runs WHERE id IN family
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
            connection.execute(_FAMILY, (run_id,))
            _drop_tasks(connection)
        connection.execute("PRAGMA incremental_vacuum").fetchall()


def retain(directory: str, days: float | None = None, size: float | None = None) -> int:
    """Remove runs that are older than so many days, then the oldest until the file is small enough.
    Gives how many were removed."""
    since = time.time() - (usual_days() if days is None else days) * 86_400
    most = usual_size() if size is None else size
    with opened(directory) as connection:
        before = connection.total_changes
        count = queries.count_runs(connection)
        if since > 0:
            with transaction(connection):
                connection.execute("DELETE FROM runs WHERE started < ?", (int(since * 1e9),))
        while _used(connection) > most:
            with transaction(connection):
                gone = connection.execute(
                    "DELETE FROM runs WHERE key IN (SELECT key FROM runs ORDER BY started LIMIT max(1, (SELECT count(*) FROM runs) / 20))"
                ).rowcount
            if not gone:
                break
        if connection.total_changes != before:
            with transaction(connection):
                _drop_tasks(connection)
            connection.execute("PRAGMA incremental_vacuum").fetchall()
        left = queries.count_runs(connection)
    return count - left


def _used(connection: sqlite3.Connection) -> int:
    """How many bytes of the file are in use."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (width,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * width)


def _drop_tasks(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM tasks WHERE key NOT IN (SELECT DISTINCT task FROM nodes)")


def retain_now_and_then(directory: str) -> None:
    """Remove old runs, unless that has been done within the hour."""
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
        retain(directory, days, size)
    except (RecordsError, OSError) as error:  # no reason to show no runs
        import logging

        logging.getLogger("entangle").warning("old records are not removed: %s", error)
