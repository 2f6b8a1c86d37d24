"""The outcomes of nodes: small values stand in the ledger, each larger one in a file beside it."""

from __future__ import annotations

import contextlib
import os
import pickle
from typing import Any

from entangle._depot.entry import About, Damaged, pack, unpack
from entangle._depot.ledger import TIMES
from entangle._shared.pickling import dumps
from entangle._shared.spare_files import write_all
from entangle._shared.store import map_privately
from entangle._shared.value_files import pickled
from entangle.errors import DurableError

#: Larger values are files (bytes, pickled).
SMALL = 16 * 1024
_HERE, _FILE = b"h", b"f"


def written(directory: str, node: bytes, task: str, value: Any, times: bytes, to_disk: bool) -> bytes:
    """The outcome of a node as the ledger has it; a large value has been written to a file.

    Raises OSError, and what pickling raises.
    """
    body, buffers = pickled(dumps, value)
    if len(body) + sum(buffer.nbytes for buffer in buffers) <= SMALL:
        if buffers:
            body = dumps(value)
        return times + _HERE + body
    made, seconds = TIMES.unpack(times)
    parts, _ = pack(node.hex(), About(task, made, seconds, {}), body, buffers, b"")
    path = _path(directory, node)
    draft = f"{path}-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            for part, at in parts:
                write_all(fd, part, at)
            if to_disk:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(draft, path)
        if to_disk:
            sync_directory(os.path.dirname(path))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    return times + _FILE


def value_of(directory: str, node: bytes, outcome: Any) -> Any:
    """The value of a node. Raises DurableError if it is gone or damaged, and what unpickling
    raises."""
    kind = bytes(outcome[TIMES.size : TIMES.size + 1])
    if kind == _HERE:
        return pickle.loads(outcome[TIMES.size + 1 :])
    path = _path(directory, node)
    try:
        kept = unpack(node.hex(), map_privately(path, {}), b"")
    except (OSError, Damaged) as error:
        raise DurableError(f"a value of a durable run cannot be read: {path}: {error}. Remove the file: its task then runs again") from None
    return pickle.loads(kept.body, buffers=kept.buffers)


def is_there(directory: str, node: bytes, outcome: Any) -> bool:
    """Whether an outcome can be read: its file may have been removed."""
    return bytes(outcome[TIMES.size : TIMES.size + 1]) == _HERE or os.path.exists(_path(directory, node))


def in_ledger(outcome: Any) -> bool:
    """Whether a value stands in the ledger."""
    return bytes(outcome[TIMES.size : TIMES.size + 1]) == _HERE


def sync_directory(path: str) -> None:
    """Write the names in a directory to disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _path(directory: str, node: bytes) -> str:
    return os.path.join(directory, "values", node.hex())
