"""Threads that fetch and processes that compute, in one dataflow.

`fetch` waits, so it runs in a thread of this process; the others compute, so they run in processes.
Values go from one to the other all the same. Siblings run at the same time. The words of a text are
counted once, although two functions take the counts.

Prints what was found out about each text, and by which process.
"""

import collections
import os
import threading
from typing import Any

from entangle.dataflow import dataflow, process, thread

TEXTS = {
    "sonnet": "shall I compare thee to a summer's day thou art more lovely and more temperate",
    "report": "the market fell and the market rose and the market fell again by the end of the day",
}


@dataflow
@thread
def fetch(name: str) -> str:
    print(f"  a thread ({threading.current_thread().name}) fetches {name!r}")
    return TEXTS[name]


@dataflow
@process
def words(text: str) -> collections.Counter[str]:
    print(f"  process {os.getpid()} counts words", flush=True)
    return collections.Counter(text.lower().split())


@dataflow
@process
def most_frequent(counts: Any) -> str:
    word, times = counts.most_common(1)[0]
    return f"most frequent: {word!r}, {times} times"


@dataflow
@process
def variety(counts: Any) -> str:
    return f"{len(counts) / sum(counts.values()):.0%} of its words are there once each"


@dataflow
@process
def length(text: str) -> str:
    return f"{len(text)} characters"


def main() -> None:
    flow = fetch(words(most_frequent(), variety()), length())
    for name in TEXTS:
        print(name)
        for finding in flow(name):
            print("   ", finding)


if __name__ == "__main__":
    main()
