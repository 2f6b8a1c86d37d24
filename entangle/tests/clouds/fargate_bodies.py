"""Bodies that run in containers. The image has a Python, and nothing of the project."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from typing import Any


def double(x: Any) -> Any:
    """Twice as much, which is printed before."""
    print("doubling", x)
    return 2 * x


def sleep(seconds: float) -> None:
    """Say so, and sleep."""
    print("sleeping", flush=True)
    time.sleep(seconds)


def fail(text: str) -> None:
    """An error with this text."""
    raise ValueError(text)


def hungry(size: int) -> int:
    """Use so much memory (MiB)."""
    return len(bytearray(b"x" * (size << 20)))


def second(mark: str) -> str:
    """Sleep, the first time; which time it is, an object of a bucket says, at this address."""
    headers = {"Content-Type": "application/octet-stream", "If-None-Match": "*"}
    try:
        urllib.request.urlopen(urllib.request.Request(mark, b"-", headers, method="PUT"), timeout=20).close()
    except urllib.error.HTTPError as error:
        error.close()
        return "second"
    sleep(600)
    return "first"
