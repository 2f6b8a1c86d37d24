"""A pipeline that is killed twice, and goes on each time where it was.

The program starts the pipeline in a process of its own, and starts it again each time it is killed.
Prints how each process ended, the value of the last, and how often each body has run.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import entangle
from entangle.process import process


@process
def download(name: str) -> str:
    """Must not run twice: a download costs money."""
    note(f"download({name!r})")
    return name * 40


@process(retry=1)
def measure(texts: list[str]) -> list[int]:
    """May run again if it had begun, and nobody knows whether it has ended."""
    note("measure")
    return [len(text) for text in texts]


@process(idempotent=True)
def total(sizes: list[int]) -> int:
    """May always run again."""
    note("total")
    return sum(sizes)


def note(what: str) -> None:
    """Write down what runs; kill the pipeline at the first run of each task that may run again."""
    ran = Path(os.environ["NOTES"])
    is_new = what not in ran.read_text(encoding="utf-8")
    with ran.open("a", encoding="utf-8") as file:
        file.write(f"{what}\n")
    if is_new and "(" not in what:
        os.kill(int(os.environ["PIPELINE"]), signal.SIGKILL)
        time.sleep(60)


if __name__ == "__main__" and "NOTES" in os.environ:
    os.environ["PIPELINE"] = str(os.getpid())
    with entangle.durable("sizes"):
        print(total(measure([download(name) for name in ("al", "bo", "cy", "di")]))())
elif __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder, "ran")
        notes.touch()
        around = {**os.environ, "NOTES": str(notes), "ENTANGLE_RECORD_DIR": f"{folder}/records"}
        while status := subprocess.run([sys.executable, "-m", "entangle.examples.durableexample"], env=around).returncode:
            print("killed" if status < 0 else sys.exit(status), flush=True)
        for what, times in Counter(notes.read_text(encoding="utf-8").splitlines()).items():
            print(f"{what:14} ran {times} {'time' if times == 1 else 'times'}")
