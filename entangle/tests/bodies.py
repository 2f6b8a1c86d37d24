"""Functions for graphs. Workers that are not forked import this module, so it must be quick to
import."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

from entangle.process import process
from entangle.thread import thread

from .evidence import alive, note, notes, span, wait_until


class Refused(Exception):
    """An error with two arguments of its own, as errors of applications have."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what, code)
        self.what = what
        self.code = code


class Frozen(Exception):
    """An error that refuses attributes, as a frozen dataclass does."""

    a: int

    def __init__(self, a: int) -> None:
        BaseException.__setattr__(self, "a", a)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot assign to field {name!r}")


def raise_frozen(a: int) -> None:
    raise Frozen(a)


class NeedsTwo(Exception):
    """An error that can be pickled but not unpickled: its `args` are not the arguments of its
    constructor."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what} ({code})")
        self.code = code


class HoldsALock(Exception):
    """An error that cannot be pickled."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.lock = threading.Lock()


class Stack(list):  # type: ignore[type-arg]
    """A subclass of list."""


class Point(NamedTuple):
    """A named tuple of two fields."""

    x: Any
    y: Any


class Account:
    """A class whose methods are tasks."""

    rate = 3

    def __init__(self, balance: int) -> None:
        self.balance = balance

    @process
    def after(self, amount: int) -> int:
        """Return the balance after a deposit."""
        return self.balance + amount

    @classmethod
    @process
    def interest(cls, amount: int) -> int:
        """Return the amount times the rate of the class."""
        return amount * cls.rate

    @staticmethod
    @process
    def double(amount: int) -> int:
        """Return twice the amount."""
        return 2 * amount


# --- arithmetic -----------------------------------------------------------------------------------


def one() -> int:
    return 1


def two() -> int:
    return 2


def five() -> int:
    return 5


def num(n: int) -> int:
    return n


def add(a: Any, b: Any) -> Any:
    return a + b


def subtract(a: int, b: int) -> int:
    return a - b


def inc(x: int) -> int:
    return x + 1


def inverse(x: float) -> float:
    return 1 / x


def total(*values: int) -> int:
    return sum(values)


def same(x: Any) -> Any:
    return x


def pair(a: Any, b: Any) -> tuple[Any, Any]:
    return a, b


def gather(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def describe(a: int, b: int = 20, *rest: int, k: int = 3, **more: int) -> str:
    """Show which parameter received which value."""
    return f"a={a} b={b} rest={rest} k={k} more={sorted(more.items())}"


@process
def decorated(x: int) -> int:
    """A task bound to the name of its function, which pickle therefore cannot look up by name."""
    return x * 10


@thread
def in_thread(x: int) -> tuple[int, int]:
    """Return the value, and the process that ran this."""
    return x, os.getpid()


# --- what bodies note -----------------------------------------------------------------------------


def pid() -> int:
    return os.getpid()


def pid_and(_: Any) -> int:
    return os.getpid()


def pids_up_to(before: list[int]) -> list[int]:
    return [*before, os.getpid()]


def noted(path: str, value: Any = None) -> Any:
    """Note the process, and return the value."""
    note(path, "noted", os.getpid())
    return value


def noted_after(path: str, _: Any) -> int:
    note(path, "noted", os.getpid())
    return len(notes(path))


def spanned(path: str, seconds: float = 0.02, *_: Any) -> int:
    """Take some time, and note the start and the end."""
    with span(path):
        time.sleep(seconds)
    return os.getpid()


def length_and(content: bytes, other: Any) -> tuple[int, Any]:
    """Return the length of the first argument, and the second one."""
    return len(content), other


def meet(path: str, number: int) -> int:
    """Sleep until `number` bodies have called this, which proves that they run at the same time.

    Each body opens the same named pipe, then adds a line to the file. The last one writes a byte
    into the pipe. Nobody reads the byte, so every body sees it."""
    gate = f"{path}.gate"
    try:
        os.mkfifo(gate)
    except FileExistsError:
        pass
    fd = os.open(gate, os.O_RDWR)
    try:
        note(path, "here", os.getpid())
        if len(notes(path)) >= number:
            os.write(fd, b"!")
        if not select.select([fd], [], [], 30)[0]:
            raise AssertionError(f"only {len(notes(path))} of {number} came to the meeting")
    finally:
        os.close(fd)
    return os.getpid()


def burn(seconds: float) -> int:
    """Keep a CPU busy for `seconds` of CPU time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return os.getpid()


def linger(path: str, seconds: float = 30.0) -> str:
    """Note the process, and sleep until something kills it."""
    note(path, "lingering", os.getpid())
    time.sleep(seconds)
    return "nobody ended it"


def linger_with_child(path: str, own_session: bool = False) -> str:
    """Start a program that outlives the body, note both processes, and wait for the program."""
    child = subprocess.Popen(["sleep", "100"], start_new_session=own_session)
    note(path, "lingering", os.getpid(), child.pid)
    note(path, "child", child.pid)
    note(path, "self", os.getpid())
    child.wait()
    return "nobody ended it"


def linger_deaf(path: str) -> str:
    """Sleep, and ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(path, "lingering", os.getpid())
    time.sleep(30)
    return "nobody ended it"


def fail(what: str = "no such thing") -> None:
    raise ValueError(what)


def fail_once_there(path: str, *_: Any) -> None:
    """Fail as soon as the file has a line."""
    wait_until(lambda: notes(path))
    raise ValueError("no such thing")


def fail_until(path: str, attempts: int, value: Any = "done") -> Any:
    """Fail at each attempt before number `attempts`."""
    note(path, time.monotonic(), os.getpid())
    tried = len(notes(path))
    if tried < attempts:
        raise ValueError(f"attempt {tried}")
    return value


def die_until(path: str, attempts: int, value: Any = "done") -> Any:
    """Kill the own process at each attempt before number `attempts`."""
    note(path, time.monotonic(), os.getpid())
    if len(notes(path)) < attempts:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def refuse(what: str, code: int) -> None:
    raise Refused(what, code)


def raise_needs_two() -> None:
    raise NeedsTwo("no", 7)


def raise_lock() -> None:
    raise HoldsALock("held")


def a_lock() -> Any:
    return {"fine": 1, "parts": [2, threading.Lock()]}


def exit_with(code: Any) -> None:
    sys.exit(code)


def interrupt() -> None:
    raise KeyboardInterrupt


def die(status: int) -> None:
    """Exit without the cleanup that Python does at its end."""
    os.write(2, b"these were my last words\n")
    os._exit(status)


def recurse(n: int = 0) -> int:
    return recurse(n + 1) + 1


def someone_alive(pids: list[int]) -> list[int]:
    """Return those of the processes that are alive."""
    return [number for number in pids if alive(number)]
