"""A task that fails may be given further attempts, with a pause before each.

`flaky` works the third time. `hopeless` never does, and its caller gets an error that tells of
every attempt. `fragile` dies with its process the first time, which is a failure like any other.
Prints the attempts and what came of them.
"""

import os
import signal
import tempfile
import time
from pathlib import Path

from entangle.process import ProcessRetryException, ProcessTerminatedException, process


class Busy(Exception):
    """Something is in use just now."""


@process(retry=5, sleep=0.05, on=Busy)
def flaky(diary: str) -> str:
    """Fails twice. An error of another kind than `Busy` would not be tried again."""
    attempt = note(diary)
    if attempt < 3:
        raise Busy(f"not on attempt {attempt}")
    return f"done on attempt {attempt}"


@process(retry=3, sleep=0.02, backoff=2, jitter=0.01)
def hopeless(diary: str) -> str:
    """Always fails. The pauses double, and vary so that many such tasks do not retry at once."""
    raise Busy(f"not on attempt {note(diary)}")


@process(retry=1, on=ProcessTerminatedException)
def fragile(diary: str) -> str:
    """Kills its own process the first time."""
    attempt = note(diary)
    if attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"done on attempt {attempt}"


def note(diary: str) -> int:
    """Write down an attempt, in a file, since that outlasts the process; gives how many there
    were."""
    with open(diary, "a", encoding="utf-8") as file:
        file.write(f"{time.time()} {os.getpid()}\n")
    return len(Path(diary).read_text(encoding="utf-8").splitlines())


def show(diary: str) -> None:
    """Print when each attempt began, after the first, and in which process."""
    lines = [line.split() for line in Path(diary).read_text(encoding="utf-8").splitlines()]
    first = float(lines[0][0])
    for number, (begin, pid) in enumerate(lines, 1):
        print(f"    attempt {number} began after {(float(begin) - first) * 1000:4.0f} ms, in process {pid}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print("flaky:")
        diary = os.path.join(folder, "flaky")
        print(f"  {flaky(diary)()}")
        show(diary)

        print("hopeless:")
        diary = os.path.join(folder, "hopeless")
        try:
            hopeless(diary)()
        except ProcessRetryException as error:
            print(f"  {type(error).__name__}: {error}")
            print(f"  the last of its reasons: {error.__cause__!r}")
        show(diary)

        print("fragile:")
        diary = os.path.join(folder, "fragile")
        print(f"  {fragile(diary)()}")
        show(diary)


if __name__ == "__main__":
    main()
