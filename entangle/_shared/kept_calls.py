"""A call that was kept: the arguments of a body that has failed, or that has ended well in a run
whose values are kept, to be given to it again.

::

    a line of JSON     which call of which run, what it failed with ("": nothing); lengths
    the shape          pickled: the keywords and templates of the arguments
    values             each pickled, with its large buffers

A value that was not kept has no bytes, and the line says why. One file a call, beside the records
of runs; `_worker/keeping.py` writes it, and `_records/kept.py` finds it.

What all calls of a task have in common is in a file of its own. The process that began the run
writes it when the run ends; it is missing where that process was killed::

    a line of JSON     the digests of the code, the version of Python
    the task           pickled; nothing where it is found by its name alone
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

#: The form of these files. A version of entangle that finds a newer form leaves it alone.
FORM = 2
#: The directory in which they lie, beside that of the log segments.
FOLDER = "calls"
_OURS = re.compile(r"([0-9a-f]{16})-(\d+)\.(call|task)")
#: The most bytes of the values of one call.
MOST = 64 << 20
#: Of calls that have ended well: how many of a run are kept, and the most bytes that the values of
#: all of them may have.
MOST_ENDED, MOST_OF_RUN = 1000, 256 << 20
#: No first line of ours is longer (bytes).
_LONGEST = 32 << 20


def every(count: int) -> int:
    """In a run of `count` nodes whose values are kept, one call in this many is kept."""
    return -(-count // MOST_ENDED)


def share(count: int) -> int:
    """How many bytes the values of one call may have, in a run of `count` nodes whose values are
    kept. So no worker needs to count what others keep."""
    return min(MOST, MOST_OF_RUN // max(1, min(count, MOST_ENDED)))


class KeptValue(NamedTuple):
    """One value that an argument is made of: `why` it was not kept, else its pickle and buffers.
    `at_hand`: it was taken from the body, which may have changed it."""

    argument: str
    pickled: bytes | memoryview = b""
    buffers: Sequence[bytes | memoryview] = ()
    why: str = ""
    at_hand: bool = False

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return sum(memoryview(part).nbytes for part in (self.pickled, *self.buffers))


class KeptTask(NamedTuple):
    """A kept task: its pickle, the digests of the parts of its code, and the version of Python."""

    pickled: bytes = b""
    code: Mapping[str, str] = MappingProxyType({})
    python: Sequence[int] = ()


class KeptCall(NamedTuple):
    """A kept call: what its first line says, the pickled shape, the values, and the task, which has
    a file of its own."""

    head: dict[str, Any]
    shape: bytes
    values: list[KeptValue]
    task: KeptTask = KeptTask()

    @property
    def lacks(self) -> list[KeptValue]:
        """The values that were not kept."""
        return [value for value in self.values if value.why]


class NotKept(ValueError):
    """A file is not a kept call, or one of a newer version."""


def name_of(run: str, node: int) -> str:
    """The name of the file of a call."""
    return f"{run}-{node}.call"


def name_of_task(run: str, body: int) -> str:
    """The name of the file of the task of a body of a run."""
    return f"{run}-{body}.task"


def whose(name: str) -> tuple[str, int, bool] | None:
    """The run and the node that a file is named after, and whether it is that of a call; else the
    number is that of a body. None for another file."""
    found = _OURS.fullmatch(name)
    return (found[1], int(found[2]), found[3] == "call") if found else None


def write(folder: str, call: KeptCall) -> None:
    """Write a call, for this user alone; it is there whole or not at all. Raises OSError."""
    values = [
        {
            "argument": value.argument,
            "why": value.why,
            "at_hand": value.at_hand,
            "lengths": [memoryview(part).nbytes for part in (value.pickled, *value.buffers)],
        }
        for value in call.values
    ]
    head = {"form": FORM, **call.head, "shape_length": len(call.shape), "values": values}
    parts = (call.shape, *(part for value in call.values for part in (value.pickled, *value.buffers)))
    _write(os.path.join(folder, name_of(head["run"], head["node"])), head, parts)


def write_task(folder: str, run: str, body: int, task: KeptTask) -> None:
    """Write the task of a body of a run, as a call is written. Raises OSError."""
    head = {"form": FORM, "code": dict(task.code), "python": list(task.python)}
    _write(os.path.join(folder, name_of_task(run, body)), head, (task.pickled,))


def _write(path: str, head: dict[str, Any], parts: Iterable[bytes | memoryview]) -> None:
    draft = f"{path}.{os.getpid()}"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(json.dumps(head).encode("ascii") + b"\n")
            for part in parts:
                file.write(part)
        os.rename(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def head_of(path: str) -> dict[str, Any]:
    """What the first line of a file says. Raises OSError, and NotKept for what is no such file."""
    with _opened(path) as file:
        return _head(file)


def read(path: str) -> KeptCall:
    """Read a call, with its task if that was kept. Raises OSError, and NotKept for what is no such
    file, or not one of this user."""
    with _opened(path) as file:
        head = _head(file)
        try:
            task = os.path.join(os.path.dirname(path), name_of_task(head["run"], head["body"]))
            shape = file.read(head["shape_length"])
            values = []
            for said in head["values"]:
                pickled, *buffers = [file.read(length) for length in said["lengths"]]
                if [len(pickled), *map(len, buffers)] != said["lengths"]:
                    raise NotKept(f"{path} is cut off")
                values.append(KeptValue(said["argument"], pickled, buffers, said["why"], said["at_hand"]))
        except (LookupError, TypeError, ValueError) as error:
            raise NotKept(f"{path} is damaged ({type(error).__name__}: {error})") from None
    return KeptCall(head, shape, values, _task(task))


def _task(path: str) -> KeptTask:
    """A kept task; an empty one where there is none."""
    try:
        with _opened(path) as file:
            head = _head(file)
            return KeptTask(file.read(), head["code"], head["python"])
    except FileNotFoundError:  # the process that began the run was killed
        return KeptTask()
    except LookupError:
        raise NotKept(f"{path} is damaged") from None


def _opened(path: str) -> Any:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    found = os.fstat(fd)
    # A pickle is code: nobody else may have written it.
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        os.close(fd)
        raise NotKept(f"{path} is not a file of yours that you alone may write to")
    return open(fd, "rb")


def _head(file: Any) -> dict[str, Any]:
    try:
        head: dict[str, Any] = json.loads(file.readline(_LONGEST))
        form = head["form"]
    except (LookupError, TypeError, ValueError, RecursionError):
        raise NotKept(f"{file.name} is no kept call") from None
    if form != FORM:
        raise NotKept(f"it was kept by another version of entangle, in form {form!r:.20}")
    return head
