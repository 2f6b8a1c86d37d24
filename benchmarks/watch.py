"""Observes a process tree: how much memory it holds, and how many of its processes could run at
once.

It is a program of its own, so that it takes nothing but a share of a CPU from the process that it
observes:

    python watch.py PID memory|runnable

It looks until its stdin ends, then prints one line of JSON. It leaves itself out. Linux only: it
reads ``/proc``.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def children(pid: int) -> list[int]:
    """Give the child processes of a process, whichever of its threads has started them."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found.extend(map(int, file.read().split()))
        except OSError:
            continue
    return found


def tree(root: int) -> list[int]:
    """Give a process and all below it, without this one."""
    me = os.getpid()
    found = [root]
    for pid in found:
        found.extend(child for child in children(pid) if child != me)
    return found


def proportional(pid: int) -> int:
    """Give the bytes that a process holds; a page that several share counts in shares (PSS)."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def runs(pid: int) -> bool:
    """Tell whether a process has a thread that is on a CPU or waits for one."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/stat", "rb") as file:
                if file.read(400).rpartition(b")")[2].split(None, 1)[0] == b"R":
                    return True
        except OSError:
            continue
    return False


def runnable(root: int) -> int:
    """Count the processes of a tree that could run at one moment.

    One look takes a while: if a process hands over to another meanwhile, both would be counted. So
    those that were seen running are looked at again at once, and only those that run both times
    count.
    """
    return sum([runs(pid) for pid in [pid for pid in tree(root) if runs(pid)]])


def look(root: int, what: str) -> dict[str, float]:
    """Look until stdin ends; give the largest sum and the number of looks."""
    largest = 0
    looks = 0
    pause = 0.1 if what == "memory" else 0.0005
    while not select.select([0], [], [], pause)[0]:
        seen = sum(map(proportional, tree(root))) if what == "memory" else runnable(root)
        largest = max(largest, seen)
        looks += 1
    return {"largest": float(largest), "looks": float(looks)}


@contextmanager
def watching(what: str) -> Iterator[dict[str, float]]:
    """Watch this process and all below it while the block runs; the dict is filled when the block
    ends.

    with watching("memory") as seen: ...
    print(seen["largest"])                 # bytes
    """
    seen: dict[str, float] = {}
    eye = subprocess.Popen([sys.executable, "-S", "-E", __file__, str(os.getpid()), what], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        time.sleep(0.1)  # else the start of the watcher would count as use of a CPU
        yield seen
    finally:
        said, _ = eye.communicate()
        seen.update(json.loads(said))


if __name__ == "__main__":
    print(json.dumps(look(int(sys.argv[1]), sys.argv[2])))
