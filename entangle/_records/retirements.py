"""Why warm workers ended: a note beside the log segment of the run that a worker had joined last.

A worker looks at itself when it has left its run. That run is over by then, and so is its log
segment. So the reason goes to a file of its own, `<run>-<pid>.retired`. It is ingested when the row
of its run is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import time
from collections.abc import Iterable
from typing import Any

from entangle._records import queries
from entangle._records.log_segment import SUFFIX
from entangle._shared.masks import masked

#: How their files end.
ENDING = ".retired"
_OURS = re.compile(r"([0-9a-f]{16})-[0-9]+\.retired")
#: The most characters of a reason, and bytes of a file.
_LONGEST, _MOST = 1000, 1 << 16
#: A file that cannot be read is removed when it has not been written to for this long (seconds).
_STALE = 60


def note(segment: str, pid: int, why: str) -> None:
    """Note why a worker ended that had last joined the run with this log segment. Never raises."""
    folder, name = os.path.split(segment)
    run = name.removesuffix(SUFFIX)
    told = {"run": run, "pid": pid, "at": time.time_ns(), "why": masked(why)[:_LONGEST]}
    with contextlib.suppress(OSError):  # what is wrong there is told with the records of runs
        _write(folder, run, pid, json.dumps(told).encode())


def _write(folder: str, run: str, pid: int, told: bytes) -> None:
    path = os.path.join(folder, f"{run}-{pid}{ENDING}")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, told)
    finally:
        os.close(fd)


def keep(folder: str, body: bytes) -> bool:
    """Write a note that has come from another place. Return False if it is no note."""
    if not body.startswith(b'{"run"'):
        return False
    told = json.loads(body)
    if not _OURS.fullmatch(f"{told['run']}-{told['pid']}{ENDING}"):
        raise ValueError("it is no note of a worker that has ended")
    _write(folder, told["run"], told["pid"], body)
    return True


def ingest_notes(connection: sqlite3.Connection, folder: str, names: Iterable[str], waiting: set[str]) -> None:
    """Write rows for the notes of these names. Those of runs that have no row yet, whose log
    segments are `waiting`, stay. Those of a run that has been forgotten go."""
    for name in names:
        found = _OURS.fullmatch(name)
        if found is None:
            continue
        path = os.path.join(folder, name)
        told = _read(path)
        row = queries.run(connection, found[1])
        if told is not None and row is not None:
            connection.execute("INSERT OR IGNORE INTO retirements VALUES (?, ?, ?, ?)", (row["key"], *told))
        elif found[1] + SUFFIX in waiting or (told is None and not _is_stale(path)):
            continue
        with contextlib.suppress(OSError):
            os.unlink(path)


def _read(path: str) -> tuple[int, int, str] | None:
    """pid, when and why; None for what is no note, or not whole yet."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            told: Any = json.loads(file.read(_MOST))
        return int(told["pid"]), int(told["at"]), str(told["why"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _is_stale(path: str) -> bool:
    try:
        return time.time() - os.lstat(path).st_mtime > _STALE
    except OSError:
        return False
