"""Tasks that take too long are ended; the error names the task and what it was waiting for.

There are three ways to be late: a body that runs past its `timeout` (its process is killed, with
the program that it started), an argument that does not arrive within `wait`, and a thread. A thread
cannot be killed: the caller gets the error when the time is up, and the thread's value is dropped.
Prints each error and when it came.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from entangle.process import ProcessTimeoutException, process
from entangle.thread import ThreadTimeoutException, thread


@process(timeout=0.3)
def stubborn(diary: str) -> None:
    """Start another program, and wait for it longer than allowed."""
    program = "import sys, time\nwhile True: print('alive', file=open(sys.argv[1], 'a'), flush=True); time.sleep(0.02)"
    subprocess.run([sys.executable, "-c", program, diary], check=False)


@process
def prompt() -> str:
    return "here"


@process
def dawdler() -> str:
    time.sleep(30)
    return "here at last"


@process(wait=0.3)
def gather(*values: str) -> list[str]:
    return list(values)


@thread(timeout=0.3)
def absent_minded() -> str:
    time.sleep(0.6)
    return "of no interest any more"


def late(call: Callable[[], Any]) -> None:
    """Run a call that will be late; print its error and when it came."""
    started = time.perf_counter()
    try:
        call()
    except (ProcessTimeoutException, ThreadTimeoutException) as error:
        print(f"  after {time.perf_counter() - started:.2f} s, {type(error).__name__}: {error}")


def main() -> None:
    print("A body that takes too long:")
    with tempfile.TemporaryDirectory() as folder:
        diary = Path(folder, "diary")
        diary.touch()
        late(stubborn(str(diary)))
        lines = len(diary.read_text(encoding="utf-8").splitlines())
        time.sleep(0.2)
        more = len(diary.read_text(encoding="utf-8").splitlines()) - lines
        print(f"  the program it started wrote {lines} lines while it was allowed to, and {more} since")

    print("Arguments that take too long:")
    late(gather(prompt(), dawdler()))

    print("A thread that takes too long:")
    late(absent_minded())


if __name__ == "__main__":
    main()
