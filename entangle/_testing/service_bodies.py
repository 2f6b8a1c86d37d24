"""The bodies of the calls that `check_service` makes."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any


def same(value: Any) -> Any:
    """Return the value."""
    return value


def printed(text: str) -> int:
    """Print the text, and to stderr as well."""
    print(text)
    print(text, file=sys.stderr)
    return len(text)


def large(size: int) -> bytes:
    """So many bytes."""
    return os.urandom(size)


def version() -> tuple[int, int]:
    """The version of the Python there."""
    return sys.version_info[:2]


def failing(text: str) -> None:
    """Raise a ValueError."""
    raise ValueError(text)


def unpicklable() -> Any:
    """Return a value that cannot travel."""
    return open(os.devnull)


def dying(seconds: float) -> None:
    """Be killed after a while."""
    print("last words", flush=True)
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def dying_once(path: str) -> str:
    """Be killed in the first attempt alone."""
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "second"


def importing(name: str) -> None:
    """Import a module."""
    __import__(name)


def marking(path: str, seconds: float, value: Any = None) -> Any:
    """Write into a file ten times a second, for this long (seconds)."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with open(path, "a") as file:
            file.write("x")
        time.sleep(0.1)
    return value


def beginning(path: str) -> None:
    """Write once into a file."""
    with open(path, "a") as file:
        file.write("x")
