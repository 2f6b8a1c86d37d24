"""What bodies leave for a test to check: notes in a file, spans of time, and live processes.

Bodies use the first half in any process, so this module imports nothing heavy.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# --- for bodies, in any process -------------------------------------------------------------------


def note(path: str | os.PathLike[str], *words: object) -> None:
    """Append one line to the file at `path` by a single write, so that lines of several processes
    never mix. The file never exists without a line."""
    line = (" ".join(str(word) for word in words) + "\n").encode()
    if os.path.exists(path) or not _begun(os.fspath(path), line):
        _write(path, os.O_APPEND, line)


def _begun(path: str, line: bytes) -> bool:
    """Create the file with this line; False if another process was first."""
    new = f"{path}.{os.getpid()}-{time.monotonic_ns()}"
    _write(new, os.O_CREAT, line)
    try:
        os.link(new, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(new)
    return True


def _write(path: str | os.PathLike[str], how: int, line: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | how, 0o600)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)


def notes(path: str | os.PathLike[str]) -> list[list[str]]:
    """The lines of the file at `path`, each split into words; empty if there is no file."""
    try:
        with open(path, encoding="utf-8") as file:
            return [line.split() for line in file]
    except FileNotFoundError:
        return []


@contextmanager
def span(path: str | os.PathLike[str], name: str = "span") -> Iterator[None]:
    """Note when the block began and ended, and the process that ran it. All processes of a machine
    share the clock."""
    began = time.monotonic()
    try:
        yield
    finally:
        note(path, name, began, time.monotonic(), os.getpid())


@contextmanager
def place_among(path: str | os.PathLike[str], most: int) -> Iterator[int]:
    """Hold one of `most` locks during the block, and yield its number. If all are taken, note
    "excess" and raise an error.

    The kernel releases the lock of a process that is killed, so this counts live holders whichever
    process dies.
    """
    import fcntl

    for number in range(most):
        fd = os.open(f"{os.fspath(path)}.place-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            os.close(fd)
    else:
        note(path, "excess", os.getpid())
        raise AssertionError(f"more than {most} at once")
    try:
        yield number
    finally:
        # A worker that was forked meanwhile has inherited the descriptor: closing it here would not
        # release the lock.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


#: The pause between two checks, and the most that a busy machine adds to a time limit (seconds).
_PAUSE, _LONGER = 0.005, 10.0


def wait_until(condition: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
    """Check repeatedly until `condition` holds, and return its value; raise `AssertionError` after
    `seconds`.

    On a busy machine the test, and what it waits for, get the CPU late. The limit is then extended,
    by `_LONGER` at most, until as many checks were made as would have fitted into `seconds`.
    """
    end, turns = time.monotonic() + seconds, 0
    while True:
        answer = condition()
        if answer:
            return answer
        now, turns = time.monotonic(), turns + 1
        if now > end and (turns * _PAUSE >= seconds or now > end + _LONGER):
            raise AssertionError(f"waited {seconds} s in vain{': ' if what else ''}{what}")
        time.sleep(_PAUSE)


# --- for tests ------------------------------------------------------------------------------------


@contextmanager
def when(ready: Callable[[], bool], then: Callable[[], Any]) -> Iterator[None]:
    """During the block, a thread waits for `ready` and then calls `then`. An error of the thread is
    raised at the end of the block."""
    from concurrent.futures import ThreadPoolExecutor

    def wait() -> None:
        wait_until(ready, 60, "the calls to be under way")
        then()

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait)
        yield
        waiting.result()


def most_at_once(path: str | os.PathLike[str], name: str = "span") -> int:
    """The largest number of spans called `name` that overlapped."""
    changes: list[tuple[float, int]] = []
    for line in notes(path):
        if line[0] == name:
            changes += [(float(line[1]), 1), (float(line[2]), -1)]
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def alive(pid: int) -> bool:
    """Whether a process with this number runs. A zombie does not count.

    A killed process is already shown as a zombie while other threads of it still exit. Until they
    have, its descriptors are open and its parent cannot reap it, so it counts as alive.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            return fields[0] not in (b"Z", b"X") or int(fields[17]) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids_in(path: str | os.PathLike[str]) -> list[int]:
    """The process numbers noted in a file: the last word of each line."""
    return [int(line[-1]) for line in notes(path)]


def notes_of(error: BaseException) -> str:
    """The notes on an error, one a line. Python 3.10 has no `add_note`, but an error may have
    `__notes__` there too."""
    return "\n".join(getattr(error, "__notes__", ()))


def text_of(error: BaseException) -> str:
    """Everything that an error says: its message, its notes, its traceback, and the same of its
    causes."""
    told: list[str] = []
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        told += [type(at).__name__, str(at), *getattr(at, "__notes__", []), *traceback.format_tb(at.__traceback__)]
        at = at.__cause__ or at.__context__
    return "\n".join(told)
