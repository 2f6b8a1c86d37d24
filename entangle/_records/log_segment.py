"""A sheet: what one run leaves behind, in one file that needs no database to be written.

::

    head     a line of JSON        what runs, where, for whom; lengths of the columns that follow
             columns               body_of, shape_of, starts, inputs of the flow
    tail     a line of JSON        what became of it: error, values, attempts; lengths of the columns that follow
             columns               ready_at, records, states, attempts of the table

The head is written when the run begins and the file is locked (`flock`) for as long as it lasts; the tail comes when it ends. So
a sheet without a whole tail is that of a run that lasts, or, where nobody holds the lock, of one whose process was killed.
No connection to a database is open in a process that forks, nobody waits for a lock, and a sheet can be sent home from another
machine as it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: The form of sheets. Who finds a newer one leaves it alone.
FORM = 1
SUFFIX = ".run"
#: What the head of a sheet says, whatever the run.
_SAID = {"id", "began", "clock", "name", "way", "place", "host", "pid", "cwd", "tags", "graph", "packages", "git", "labels", "bodies"}


#: The names of sheets that we have written.
OURS = re.compile(r"[0-9a-f]{16}\.run")


class NoSheet(ValueError):
    """What lies there is not what a run has left behind."""


class Newer(ValueError):
    """A sheet of a newer version of entangle."""


class Unfinished(ValueError):
    """A file in which nothing stands yet, or whose writer is at work."""


@dataclass
class Sheet:
    """A sheet, read. `tail` is None where the run was cut off; `lasts`, where it goes on."""

    head: dict[str, Any]
    body_of: array[int]
    shape_of: array[int]
    starts: array[int]
    inputs: array[int]
    tail: dict[str, Any] | None = None
    ready_at: array[int] | None = None
    records: bytes = b""
    states: bytes = b""
    attempts: bytes = b""
    lasts: bool = False

    @property
    def id(self) -> str:
        """The name of the run."""
        return str(self.head["id"])


class Writer:
    """Writes the sheet of one run. Raises OSError where there is no room."""

    def __init__(self, sheets: str, run_id: str) -> None:
        self.path = os.path.join(sheets, run_id + SUFFIX)
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass  # a file system without locks: whether the run lasts is told by its process alone

    def write(self, line: str, columns: Sequence[Any]) -> None:
        """Write a line of JSON without its end, and the columns, whose lengths it is given as its last member."""
        parts = [memoryview(column).cast("B") for column in columns]
        lengths = ", ".join(str(part.nbytes) for part in parts)
        whole = [memoryview(f'{line}, "columns": [{lengths}]}}\n'.encode("ascii", "backslashreplace")), *parts]
        try:
            left = sum(part.nbytes for part in whole)
            left -= os.writev(self.fd, whole)
            if left:  # a single call writes at most 2 GiB, and a nearly full disk takes a part
                rest = b"".join(whole)[-left:]
                while rest:
                    rest = rest[os.write(self.fd, rest) :]
        finally:
            for part in whole:  # who looks at the frames of all threads keeps this one a while, and with it the table mapped
                part.release()

    def close(self) -> None:
        """Let go of the file, and with it of the lock."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Remove what cannot be finished."""
        self.close()
        try:
            os.unlink(self.path)
        except OSError:
            pass


#: What reading a file raises that is no sheet, or has been damaged.
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, MemoryError)


def _cut(body: bytes, at: int) -> tuple[dict[str, Any], list[bytes], int]:
    """One line of JSON with its columns, and where it ends. Raises ValueError where it is not whole."""
    end = body.find(b"\n", at)
    if end < 0:
        raise ValueError("it is cut off")
    line = json.loads(body[at:end])
    at = end + 1
    columns = []
    for length in line["columns"]:
        if not 0 <= length <= len(body) - at:
            raise ValueError("it is cut off")
        columns.append(body[at : at + length])
        at += length
    return line, columns, at


def parse(body: bytes) -> Sheet:
    """Read a sheet. Raises NoSheet where even its head is not whole or is that of something else, and Newer where it is of a newer form."""
    try:
        head, columns, at = _cut(body, 0)
        if head["form"] != FORM:
            raise Newer(f"it is of form {head['form']!r:.20}, and this version of entangle reads form {FORM}")
        if missing := _SAID - head.keys():
            raise NoSheet(f"it lacks {', '.join(sorted(missing))}")
        body_of, shape_of, starts, inputs = columns
        sheet = Sheet(head, array("i", body_of), array("i", shape_of), array("q", starts), array("q", inputs))
    except (NoSheet, Newer):
        raise
    except _DAMAGE as error:
        raise NoSheet(f"{type(error).__name__}: {error}"[:200]) from None
    try:
        tail, columns, _ = _cut(body, at)
        ready_at, records, states, attempts = columns
        sheet.tail, sheet.ready_at, sheet.records, sheet.states, sheet.attempts = tail, array("q", ready_at), records, states, attempts
    except _DAMAGE:
        sheet.tail = None
    return sheet


def read(path: str) -> Sheet:
    """Read the sheet at `path`, and see whether its run lasts. Raises OSError, NoSheet, Newer, and Unfinished."""
    # A FIFO would keep us until somebody writes to it.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise NoSheet("it is no file")
    with open(fd, "rb") as file:
        if found.st_size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2:
            raise NoSheet(f"it has {found.st_size:,} bytes, more than half of the memory of this machine")
        # Asked before it is read: a run that ends in between has then written all.
        lasts = _is_locked(fd)
        start = file.read(1)
        if start not in (b"{", b""):
            raise NoSheet("it does not begin as one")
        try:
            body = start + file.read() if start else b""
        except MemoryError:
            raise NoSheet(f"it has {found.st_size:,} bytes, for which there is no memory") from None
    try:
        sheet = parse(body)
    except NoSheet:
        if lasts or not body:
            raise Unfinished("nothing stands in it as yet") from None
        raise
    sheet.lasts = sheet.tail is None and lasts and _is_there(sheet.head)
    return sheet


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)  # at once: a writer that finds its file locked goes on without a lock
    except OSError:  # somebody has it; or there are no locks here, and the process tells
        return True
    return False


def _is_there(head: dict[str, Any]) -> bool:
    """Whether the process of a run is there, as far as that can be told from here."""
    if head.get("host") != os.uname().nodename:
        return True
    try:
        os.kill(int(head["pid"]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, KeyError, ValueError, TypeError, OverflowError):
        return True
    return True
