"""What runs leave for a test to look at: notes in a file, spans of time, and the processes that are
still there.

Bodies use the first half in whatever process they run, so nothing heavy is imported up here.
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
    """Add one line to the file at `path`: a single write to a file opened for appending, so that
    lines never mix. Where there is a file, there is a line in it."""
    line = (" ".join(str(word) for word in words) + "\n").encode()
    if os.path.exists(path) or not _begun(os.fspath(path), line):
        _write(path, os.O_APPEND, line)


def _begun(path: str, line: bytes) -> bool:
    """Make a file with this line, unless another process is the first."""
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
    """The lines of the file at `path`, each split into its words; none where there is no file."""
    try:
        with open(path, encoding="utf-8") as file:
            return [line.split() for line in file]
    except FileNotFoundError:
        return []


@contextmanager
def span(path: str | os.PathLike[str], name: str = "span") -> Iterator[None]:
    """Note when the block began and ended, by the clock that all processes of a machine share, and
    which process ran it."""
    began = time.monotonic()
    try:
        yield
    finally:
        note(path, name, began, time.monotonic(), os.getpid())


@contextmanager
def place_among(path: str | os.PathLike[str], most: int) -> Iterator[int]:
    """Hold one of `most` locks during the block; an error where all are taken, noted as "excess".

    The kernel frees the lock of a process that is killed, so this sees how many are in such blocks
    at once, whoever dies. Gives the number of the lock.
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
        fcntl.flock(fd, fcntl.LOCK_UN)  # a worker that was forked meanwhile has it open as well
        os.close(fd)


#: Between two looks, and for so much longer on a machine that is busy (seconds).
_PAUSE, _LONGER = 0.005, 10.0


def wait_until(condition: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
    """Ask again and again until `condition` holds, and give what it gave; an `AssertionError` once
    `seconds` have passed.

    On a machine that is busy, whoever waits gets its turns late, and so do those it waits for: then
    it waits until it has asked as often as it would have, for so much longer at most.
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
    """During the block, a thread does something as soon as something holds. Raises what failed
    there."""
    from concurrent.futures import ThreadPoolExecutor

    def wait() -> None:
        wait_until(ready, 60, "the calls to be under way")
        then()

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait)
        yield
        waiting.result()


def most_at_once(path: str | os.PathLike[str], name: str = "span") -> int:
    """How many of the spans called `name` overlapped at the worst moment."""
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
    """Whether a process with this number runs; one that has ended and only waits to be reaped does
    not count.

    One that is killed shows as ended while it still has other threads: until these are gone, its
    descriptors are open, and its parent cannot reap it.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            return fields[0] not in (b"Z", b"X") or int(fields[17]) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids_in(path: str | os.PathLike[str]) -> list[int]:
    """The process numbers noted in a file, one a line, at the end of the line."""
    return [int(line[-1]) for line in notes(path)]


def notes_of(error: BaseException) -> str:
    """The notes on an error, one below the other; on Python 3.10 they are there as well, if the
    error was given any."""
    return "\n".join(getattr(error, "__notes__", ()))


def text_of(error: BaseException) -> str:
    """Everything that an error tells: its own words, its notes, its traceback, and the errors that
    caused it."""
    told: list[str] = []
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        told += [type(at).__name__, str(at), *getattr(at, "__notes__", []), *traceback.format_tb(at.__traceback__)]
        at = at.__cause__ or at.__context__
    return "\n".join(told)
