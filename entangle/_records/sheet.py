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
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: The form of sheets. Who finds a newer one leaves it alone.
FORM = 1
SUFFIX = ".run"
#: What the head of a sheet says, whatever the run.
_SAID = {"id", "began", "clock", "name", "way", "place", "host", "pid", "cwd", "tags", "graph", "packages", "git", "labels", "bodies"}


class NoSheet(ValueError):
    """A file is whole, and not what a run has left behind."""


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
        left = sum(part.nbytes for part in whole)
        left -= os.writev(self.fd, whole)
        if left:  # a single call writes at most 2 GiB, and a nearly full disk takes a part
            rest = b"".join(whole)[-left:]
            while rest:
                rest = rest[os.write(self.fd, rest) :]

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


def _cut(body: bytes, at: int) -> tuple[dict[str, Any], list[bytes], int]:
    """One line of JSON with its columns, and where it ends. Raises ValueError where it is not whole."""
    end = body.find(b"\n", at)
    if end < 0:
        raise ValueError("a sheet that is cut off")
    line = json.loads(body[at:end])
    at = end + 1
    columns = []
    for length in line["columns"]:
        if at + length > len(body):
            raise ValueError("a sheet that is cut off")
        columns.append(body[at : at + length])
        at += length
    return line, columns, at


def parse(body: bytes) -> Sheet:
    """Read a sheet. Raises ValueError where even its head is not whole, or where it is of another form, and NoSheet where it is none."""
    try:
        head, columns, at = _cut(body, 0)
        if head["form"] != FORM:
            raise ValueError(f"a sheet of form {head['form']!r}, and this version of entangle reads form {FORM}")
        if missing := _SAID - head.keys():
            raise NoSheet(f"it lacks {', '.join(sorted(missing))}")
        body_of, shape_of, starts, inputs = columns
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no sheet: {error!r}") from None
    sheet = Sheet(head, array("i", body_of), array("i", shape_of), array("q", starts), array("q", inputs))
    try:
        tail, columns, _ = _cut(body, at)
        ready_at, records, states, attempts = columns
    except (KeyError, TypeError, ValueError):
        return sheet
    sheet.tail, sheet.ready_at, sheet.records, sheet.states, sheet.attempts = tail, array("q", ready_at), records, states, attempts
    return sheet


def read(path: str) -> Sheet:
    """Read the sheet at `path`, and see whether its run lasts. Raises OSError and ValueError."""
    # Asked before it is read: a run that ends in between has then written all.
    lasts = _is_locked(path)
    with open(path, "rb") as file:
        sheet = parse(file.read())
    sheet.lasts = sheet.tail is None and lasts and _is_there(sheet.head)
    return sheet


def _is_locked(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here: the process tells
        return True
    finally:
        os.close(fd)
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
