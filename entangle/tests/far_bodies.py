"""Bodies that run in other places. Those places can import this module: it needs nothing but
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
    return a + b


def slow(path: str, seconds: float = 60.0) -> int:
    """Note the process, and take some time."""
    note(path, os.getpid())
    time.sleep(seconds)
    return len(notes(path))


def second_time(path: str) -> int:
    """Sleep for a minute the first time, and not at all afterwards."""
    note(path, os.getpid())
    if len(notes(path)) == 1:
        time.sleep(60)
    return len(notes(path))


def held(log: str, go: str, value: Any) -> Any:
    """Note the process, and return the value once the file `go` exists."""
    note(log, os.getpid())
    while not os.path.exists(go):
        time.sleep(0.1)
    return value


def size(data: bytes) -> int:
    return len(data)


def give(count: int) -> bytes:
    """Return `count` bytes."""
    return bytes(count)


def touch(path: str, *_: Any) -> None:
    """Create a file, which shows that the body ran."""
    Path(path).touch()


class Slow:
    """An argument that takes long to unpickle, and creates a file when that begins."""

    def __init__(self, log: str, seconds: float) -> None:
        self.log, self.seconds = log, seconds

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(state["log"]).touch()
        time.sleep(state["seconds"])


def freezes(path: str) -> None:
    """Stop the whole process by SIGSTOP: it then neither reads nor writes."""
    note(path, os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


def print_for_ever() -> None:
    """Print without end."""
    while True:
        print("tick\n" * 100)


def alone_there(path: str, most: int) -> int:
    """Hold one of `most` locks for a moment; raise an error if all are taken."""
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
    """Run a graph in the other place that needs the same limit."""
    from entangle.limit import limit
    from entangle.process import process

    inner = limit("few", at_once=1)(process(int))
    return int(inner(2)()) + int(process(sum)([inner(3), inner(4)])())


def die_once(path: str) -> int:
    """Kill the own process the first time."""
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
    """What `changes` changes, as it is now."""
    mask = os.umask(0)
    os.umask(mask)
    return os.getcwd(), os.environ.get("MINE", "unset"), mask


def calls(task: Any) -> Any:
    """Call a task inside a body."""
    return task()()
