"""Bodies that run in containers. The image has a Python, and nothing of the project."""

from __future__ import annotations

import os
import signal
import time
import urllib.error
import urllib.request
from typing import Any


def add(a: Any, b: Any) -> Any:
    """Their sum."""
    return a + b


def square(x: int) -> int:
    """Print the number, and return its square."""
    print("squaring", x)
    return x * x


def fail(text: str) -> None:
    """Raise an error with this text."""
    raise ValueError(text)


def environment() -> dict[str, str]:
    """The environment variables of the job."""
    return dict(os.environ)


def size(data: bytes) -> bytes:
    """The same bytes, reversed."""
    return data[::-1]


def many(size: int) -> bytes:
    """This many bytes."""
    return b"e" * size


def die() -> None:
    """Print something, and die by SIGKILL."""
    print("about to die", flush=True)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


def leave(status: int) -> None:
    """Exit with this status."""
    print("about to leave", flush=True)
    os._exit(status)


def sleep(seconds: float) -> str:
    """Print that it sleeps, and sleep."""
    print("sleeping", flush=True)
    time.sleep(seconds)
    return "slept"


def hungry(size: int) -> int:
    """Use this much memory (MiB)."""
    return len(bytearray(b"x" * (size << 20)))


def second(mark: str) -> str:
    """Sleep in the first attempt. The object at this presigned URL exists from then on."""
    headers = {"Content-Type": "application/octet-stream", "If-None-Match": "*"}
    try:
        urllib.request.urlopen(urllib.request.Request(mark, b"-", headers, method="PUT"), timeout=20).close()
    except urllib.error.HTTPError as error:
        error.close()
        return "second"
    return sleep(600)


def paint(word: str) -> tuple[str, str, int, str]:
    """A value of the image's package, the address of Lambda's Runtime API, the user id, and the
    package's file."""
    import colours  # type: ignore[import-not-found]

    print("painting", word)
    return f"{word} {colours.RED}", os.environ["AWS_LAMBDA_RUNTIME_API"], os.getuid(), colours.__file__
