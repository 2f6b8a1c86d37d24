"""A log segment: what one run leaves behind, in one file. Writing it needs no database.

::

    head     a line of JSON        what runs, where, for whom; lengths of the columns
             columns               body_of, shape_of, starts, inputs of the flow
    tail     a line of JSON        what became of it: error, values, attempts; lengths
             columns               ready_at, records, states, attempts of the table; constants, if
                                   all are whole numbers of at most 64 bits

A record of a node whose value is a small number has the value itself.

The head is written when the run begins, and the file is locked (`flock`) until it ends; then the
tail is written. A segment without a whole tail belongs to a live run or, where no process holds the
lock, to one whose process was killed. So no process that forks has a connection to a database open,
no run waits for a lock, and a segment travels from another machine as it is.
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

#: How the names of errors end that a cancelled run raises. Without their modules: those have moved
#: since older segments were written.
CANCELLED = ("CancelledError", "KeyboardInterrupt", "interrupts.Terminated")
#: The form of segments. A version of entangle that finds a newer form leaves it alone.
FORM = 2
#: How their files end. It stays: under another ending, the segments of older versions are lost.
SUFFIX = ".run"
#: What every head says.
_SAID = {"id", "began", "clock", "name", "way", "place", "host", "pid", "cwd", "tags", "graph", "packages", "git", "labels", "bodies"}
#: The names of segments written here, and of segments from elsewhere while these are being written.
OURS = re.compile(r"[0-9a-f]{16}\.run")
PART = ".part"
OURS_COMING = re.compile(r"[0-9a-f]{16}\.part")


class NotASegment(ValueError):
    """A file is not what a run leaves behind."""


class Newer(ValueError):
    """A segment was written by a newer version of entangle."""


class Unfinished(ValueError):
    """A file is empty as yet, or its head is being written."""


@dataclass
class LogSegment:
    """A segment, read. `tail` is None where the run is `live`, or was cut off."""

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
    live: bool = False

    @property
    def id(self) -> str:
        """The id of the run."""
        return str(self.head["id"])

    @property
    def names(self) -> dict[int, str]:
        """The names that calls were given, by node."""
        return {int(node): str(name) for node, name in self.head.get("names", {}).items()}


class Writer:
    """Writes the segment of one run: what comes before `begin` is kept until then. Raises OSError
    where there is no room."""

    def __init__(self, folder: str, run_id: str) -> None:
        self.path = os.path.join(folder, run_id + SUFFIX)
        self.fd = -1
        self._kept: list[bytes] = []
        self.begun = False

    def begin(self) -> None:
        """Make the file, which is locked until it is closed, and write what is known so far."""
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.begun = True
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass  # a file system without locks: readers look for the process instead
        kept, self._kept = self._kept, []
        if kept:
            self._write(kept)

    def write(self, line: str, columns: Sequence[Any]) -> None:
        """Write a line of JSON and the columns. The line comes without its end: the lengths of the
        columns become its last member."""
        parts = [memoryview(column).cast("B") for column in columns]
        lengths = ", ".join(str(part.nbytes) for part in parts)
        whole = [memoryview(f'{line}, "columns": [{lengths}]}}\n'.encode("ascii", "backslashreplace")), *parts]
        try:
            if self.begun:
                self._write(whole)
            else:
                self._kept.append(b"".join(whole))
        finally:
            # A debugger or profiler may keep this frame alive, and the views would keep the table
            # mapped.
            for part in whole:
                part.release()

    def _write(self, whole: Sequence[bytes | memoryview]) -> None:
        left = sum(map(len, whole))
        left -= os.writev(self.fd, whole)
        if left:  # one call writes at most 2 GiB, and a nearly full disk takes a part
            rest = b"".join(whole)[-left:]
            while rest:
                rest = rest[os.write(self.fd, rest) :]

    def close(self) -> None:
        """Close the file, which releases the lock."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Remove a segment that cannot be finished."""
        self.close()
        self._kept = []
        if self.begun:
            try:
                os.unlink(self.path)
            except OSError:
                pass


#: What parsing raises where the file is no segment, or is damaged.
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, MemoryError)


def _encodable(said: Any) -> Any:
    """The same without lone surrogates, as file names may have: SQLite takes no text with them."""
    if isinstance(said, str):
        return said.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(said, dict):
        return {_encodable(key): _encodable(value) for key, value in said.items()}
    return [_encodable(item) for item in said] if isinstance(said, list) else said


def _cut(body: bytes, at: int) -> tuple[dict[str, Any], list[bytes], int]:
    """One line of JSON, its columns, and where they end. Raises ValueError where they are not
    whole."""
    end = body.find(b"\n", at)
    if end < 0:
        raise ValueError("it is cut off")
    line = json.loads(body[at:end])
    if body.find(b"\\ud", at, end) >= 0 or body.find(b"\\uD", at, end) >= 0:
        line = _encodable(line)
    at = end + 1
    columns = []
    for length in line["columns"]:
        if not 0 <= length <= len(body) - at:
            raise ValueError("it is cut off")
        columns.append(body[at : at + length])
        at += length
    return line, columns, at


def parse(body: bytes) -> LogSegment:
    """Read a segment. Raises Newer for a newer form, and NotASegment where the head is not whole,
    or is no head."""
    try:
        head, columns, at = _cut(body, 0)
        if head["form"] not in range(1, FORM + 1):
            raise Newer(f"it is of form {head['form']!r:.20}, and this version of entangle reads form {FORM}")
        if missing := _SAID - head.keys():
            raise NotASegment(f"it lacks {', '.join(sorted(missing))}")
        body_of, shape_of, starts, inputs = columns
        segment = LogSegment(head, array("i", body_of), array("i", shape_of), array("q", starts), array("q", inputs))
    except (NotASegment, Newer):
        raise
    except _DAMAGE as error:
        raise NotASegment(f"{type(error).__name__}: {error}"[:200]) from None
    try:
        tail, columns, _ = _cut(body, at)
        ready_at, records, states, attempts, *constants = columns
        if constants:
            tail["constants"] = array(tail["constants"], constants[0])
        segment.tail, segment.ready_at, segment.records, segment.states, segment.attempts = (
            tail,
            array("q", ready_at),
            records,
            states,
            attempts,
        )
    except _DAMAGE:
        segment.tail = None
    return segment


def read(path: str) -> LogSegment:
    """Read the segment at `path`, and see whether its run is live. Raises OSError, NotASegment,
    Newer, and Unfinished."""
    # O_NONBLOCK: opening a FIFO would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise NotASegment("it is no file")
    with open(fd, "rb") as file:
        if found.st_size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2:
            raise NotASegment(f"it has {found.st_size:,} bytes, more than half of the memory of this machine")
        # Ask before reading: a run that ends in between has then written everything.
        locked = _is_locked(fd)
        start = file.read(1)
        if start not in (b"{", b""):
            raise NotASegment("it does not begin as one")
        try:
            body = start + file.read() if start else b""
        except MemoryError:
            raise NotASegment(f"it has {found.st_size:,} bytes, for which there is no memory") from None
    try:
        segment = parse(body)
    except NotASegment:
        if locked or not body:
            raise Unfinished("nothing stands in it as yet") from None
        raise
    segment.live = segment.tail is None and locked and _is_there(segment.head)
    return segment


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # At once: a writer that finds its file locked goes on without a lock.
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError:  # the writer holds it; or the file system has no locks, and the process decides
        return True
    return False


def _is_there(head: dict[str, Any]) -> bool:
    """Whether the process of a run exists, as far as this machine can tell."""
    if head.get("host") != os.uname().nodename:
        return True
    try:
        os.kill(int(head["pid"]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, KeyError, ValueError, TypeError, OverflowError):
        return True
    return True
