"""Bodies that run in other places, in a module that those can import: it needs nothing but
Python."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from .evidence import note, notes


def where() -> str:
    """The address at which the host of this process was reached by ssh."""
    return os.environ["SSH_CONNECTION"].split()[2]


def add(a: Any, b: Any) -> Any:
    """Two values as one."""
    return a + b


def slow(path: str, seconds: float = 60.0) -> int:
    """Note the number of this process, and take some time."""
    note(path, os.getpid())
    time.sleep(seconds)
    return len(notes(path))


def second_time(path: str) -> int:
    """Take for ever the first time, and no time after that."""
    note(path, os.getpid())
    if len(notes(path)) == 1:
        time.sleep(60)
    return len(notes(path))


def held(log: str, go: str, value: Any) -> Any:
    """Note the number of this process, and give the value once a file is there."""
    note(log, os.getpid())
    while not os.path.exists(go):
        time.sleep(0.1)
    return value


def size(data: bytes) -> int:
    """How much has come."""
    return len(data)


def give(count: int) -> bytes:
    """So much, to be sent back."""
    return bytes(count)


def touch(path: str, *_: Any) -> None:
    """Leave a file that says that we ran."""
    Path(path).touch()


class Slow:
    """An argument that takes its time to be made; says when that begins."""

    def __init__(self, log: str, seconds: float) -> None:
        self.log, self.seconds = log, seconds

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(state["log"]).touch()
        time.sleep(state["seconds"])


def freezes(path: str) -> None:
    """Stop the whole process, which then neither reads nor says anything."""
    note(path, os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


def print_for_ever() -> None:
    """Never come to an end."""
    while True:
        print("tick\n" * 100)


def alone_there(path: str, most: int) -> int:
    """Take one of so many locks for a moment; an error where all are taken."""
    import fcntl

    for number in range(most):
        fd = os.open(f"{path}.place-{number}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            os.close(fd)
    else:
        raise AssertionError("too many at once")
    time.sleep(0.02)
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
    return 1


def waits_there(path: str) -> int:
    """Begins a run there that needs the same place."""
    from entangle.limit import limit
    from entangle.process import process

    inner = limit("few", at_once=1)(process(int))
    return int(inner(2)()) + int(process(sum)([inner(3), inner(4)])())


def die_once(path: str) -> int:
    """The first time, kill the process that this runs in."""
    note(path, "tries")
    if len(notes(path)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def ids() -> tuple[str, int, int]:
    """Host, pid and parent of the process that runs this."""
    return os.uname().nodename, os.getpid(), os.getppid()


def changes() -> None:
    """Change the state of the process."""
    os.chdir("/")
    os.environ["MINE"] = "changed"
    os.umask(0o077)


def state() -> tuple[str, str, int]:
    """What `changes` changes."""
    mask = os.umask(0)
    os.umask(mask)
    return os.getcwd(), os.environ.get("MINE", "unset"), mask


def calls(task: Any) -> Any:
    """Call a task in a body."""
    return task()()
