"""Bodies that run in other places, in a module that those can import: it needs nothing but Python."""

from __future__ import annotations

import os
import time
from typing import Any

from .evidence import note, notes


def where() -> str:
    """The address at which the host of this process was reached by ssh."""
    return os.environ["SSH_CONNECTION"].split()[2]


def add(a: Any, b: Any) -> Any:
    """Two values as one."""
    return a + b


def slow(path: str, seconds: float = 60.0) -> int:
    """Say who we are, and take some time."""
    note(path, os.getpid())
    time.sleep(seconds)
    return len(notes(path))


def second_time(path: str) -> int:
    """Take for ever the first time, and no time after that."""
    note(path, os.getpid())
    if len(notes(path)) == 1:
        time.sleep(60)
    return len(notes(path))
