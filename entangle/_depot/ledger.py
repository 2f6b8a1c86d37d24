"""The ledger of a durable run: what nodes have begun, and how they have ended.

A file that all processes of the run append to. Each record is one write, and is found by a magic
number of this file: what follows a record that is not whole, since its writer was killed or the
disk was full, is read all the same.

::

    file      magic (8 random bytes), then records
    record    magic, length of the text, checksum (CRC-32) of all that follows
              kind (1 byte), node (16 bytes), place (16 bytes), text

A node is the hash of its key, of where it stands, and of how many equal ones stand before it; a
place is the same with code by name alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
import weakref
import zlib
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from entangle.errors import DurableError

#: Kinds of records.
BEGUN, ENDED, FAILED, UNKEPT, RUN, CODE, CONSUMED, AFRESH = range(1, 9)

_HEAD = struct.Struct("<8sII")
_NODE = struct.Struct("<B16s16s")
#: Of an outcome: when it was there (seconds since the epoch), and how many seconds the body took.
TIMES = struct.Struct("<dd")
#: How long nodes and places are (bytes); and the node of bodies that are not kept.
LENGTH = 16
NO_NODE = bytes(LENGTH)

_held: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _after_fork() -> None:
    for ledger in list(_held):
        ledger.close()


os.register_at_fork(after_in_child=_after_fork)


class Record(NamedTuple):
    """A record, and where it ends in its file."""

    kind: int
    node: bytes
    place: bytes
    text: memoryview
    end: int


class Ledger:
    """The right to append to a ledger. A forked child closes it."""

    def __init__(self, path: str, to_disk: bool, alive: str | None = None) -> None:
        """Open it. Raises OSError; and DurableError where the run has been taken up since.

        `alive`: a file of which this process holds a shared lock as long as the ledger is open.
        Whoever takes up the run waits until no process holds it: then no earlier body is running.
        """
        self.path = path
        self._to_disk = to_disk
        self._alive = self._fd = -1
        _held.add(self)
        try:
            if alive is not None:
                self._alive = os.open(alive, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                fcntl.flock(self._alive, fcntl.LOCK_SH)
                stem, _, number = path.rpartition(".")
                if os.path.exists(f"{stem}.{int(number) + 1}"):
                    raise DurableError("another process has taken this durable run up, and goes on with it; this one ends")
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._magic = os.pread(self._fd, 8, 0)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(path: str) -> None:
        """Make a new one. Raises OSError."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, os.urandom(8))
        finally:
            os.close(fd)

    def append(self, kind: int, node: bytes, place: bytes, text: bytes) -> None:
        """Append a record. Raises OSError if it is not there as a whole: then it does not count."""
        body = _NODE.pack(kind, node, place) + text
        record = _HEAD.pack(self._magic, len(text), zlib.crc32(body)) + body
        written = os.write(self._fd, record)
        # Not all of it: the disk is full, or almost. The next try says which.
        if written < len(record) and os.write(self._fd, record) < len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        if self._to_disk:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Let go of it. Repeatable."""
        _held.discard(self)
        for fd in (self._fd, self._alive):
            if fd >= 0:
                os.close(fd)
        self._fd = self._alive = -1

    def __del__(self) -> None:
        self.close()


def read(path: str, start: int = 0) -> Iterator[Record]:
    """The whole records of a ledger, from that place on. Raises OSError."""
    with open(path, "rb") as file:
        magic = file.read(8)
        file.seek(start)
        data = file.read()
    if not start:
        start, data = 8, data[8:]
    if len(magic) < 8:
        return
    view = memoryview(data)
    head, node_of, crc, least = _HEAD.unpack_from, _NODE.unpack_from, zlib.crc32, _HEAD.size + _NODE.size
    at, size = 0, len(data)
    while at + least <= size:
        found, length, checksum = head(data, at)
        end = at + least + length
        if found == magic and end <= size and crc(view[at + _HEAD.size : end]) == checksum:
            kind, node, place = node_of(data, at + _HEAD.size)
            yield Record(kind, node, place, view[at + least : end], start + end)
            at = end
            continue
        at = data.find(magic, at + 1)  # behind what is not whole
        if at < 0:
            return


class Outcomes:
    """What the ledgers of a durable run say of its nodes."""

    def __init__(self) -> None:
        #: Of nodes that have ended well, the outcome.
        self.ended: dict[bytes, memoryview] = {}
        #: How often each node has begun.
        self.begun: dict[bytes, int] = {}
        #: Nodes that have begun and neither ended nor failed.
        self.open: dict[bytes, str] = {}
        #: Nodes whose value could not be kept, and why.
        self.unkept: dict[bytes, str] = {}
        #: The places of nodes that have ended well.
        self.places: dict[bytes, bytes] = {}
        #: The parts of the code of tasks, as JSON, by the name of the task.
        self.code: dict[str, bytes] = {}
        #: The runs that were begun at the top, in order.
        self.runs: dict[bytes, str] = {}
        #: Items of streams whose values were consumed since the run was entered afresh: for the
        #: first time, or after it had been left in good order.
        self.consumed: set[bytes] = set()
        self._read: dict[str, int] = {}

    def read(self, path: str) -> None:
        """Take in what a ledger has that was not read before."""
        for kind, node, place, text, end in read(path, self._read.get(path, 0)):
            self._read[path] = end
            if kind == BEGUN:
                self.begun[node] = self.begun.get(node, 0) + 1
                self.open[node] = str(text, "utf-8")
            elif kind == ENDED:
                self.ended[node] = text
                self.places[place] = node
                self.open.pop(node, None)
                self.unkept.pop(node, None)
            elif kind == FAILED:
                self.open.pop(node, None)
                self.unkept.pop(node, None)
            elif kind == UNKEPT:
                self.unkept[node] = str(text, "utf-8")
                self.open.pop(node, None)
            elif kind == RUN:
                self.runs[node] = str(text, "utf-8")
            elif kind == CODE:
                name, _, parts = bytes(text).partition(b"\n")
                self.code[name.decode()] = parts
            elif kind == CONSUMED:
                self.consumed.add(node)
            elif kind == AFRESH:
                self.consumed.clear()


class LedgerOfFlow:
    """What the workers of a run know of its ledger. It travels with the flow.

    `nodes` and `places` have 16 bytes for each node of the flow; all zeros: it is not kept.
    `earlier`: how often each has begun before this run.
    """

    def __init__(self, name: str, directory: str, number: int, to_disk: bool, secret: bytes) -> None:
        self.name = name
        self.directory = directory
        #: Which of the ledgers in the directory is written to: one for each time it was taken up.
        self.number = number
        self.to_disk = to_disk
        #: What is mixed into the keys of attempts: another run of the same name has others.
        self.secret = secret
        #: The process that holds the lock of the run.
        self.holder = os.getpid()
        self.nodes = self.places = b""
        self.earlier = array("I")

    def for_streams(self, count: int) -> LedgerOfFlow:
        """The same for a flow of that many nodes through which items go, which are kept."""
        return self.like(NO_NODE * count, NO_NODE * count, array("I", bytes(4 * count)))

    def like(self, nodes: bytes, places: bytes, earlier: array[int]) -> LedgerOfFlow:
        """The same for another flow."""
        made = LedgerOfFlow(self.name, self.directory, self.number, self.to_disk, self.secret)
        made.holder, made.nodes, made.places, made.earlier = self.holder, nodes, places, earlier
        return made

    def open(self) -> Ledger:
        """Open the ledger. Raises OSError, and DurableError where the run was taken up since."""
        alive = os.path.join(self.directory, "alive") if os.getpid() != self.holder else None
        return Ledger(os.path.join(self.directory, f"ledger.{self.number}"), self.to_disk, alive)

    def node(self, number: int) -> bytes:
        """A node of the flow, as the ledger knows it; NO_NODE if it is not kept."""
        return self.nodes[16 * number : 16 * number + 16]

    def place(self, number: int) -> bytes:
        """The place of a node of the flow."""
        return self.places[16 * number : 16 * number + 16]

    def outcomes(self, known: Outcomes) -> Outcomes:
        """What the ledgers say up to now."""
        for number in range(self.number + 1):
            path = os.path.join(self.directory, f"ledger.{number}")
            if os.path.exists(path):
                known.read(path)
        return known


def times(began: float) -> bytes:
    """When an outcome was there, and how long it took, since a time of the monotonic clock."""
    return TIMES.pack(time.time(), time.monotonic() - began)
