"""A graph as a future, and a callback that gets it.

The expression counts the words of three lines, two at a time in parallel. Prints the future before
and after it is entangled, and from the callback how wide and how deep the graph is.
"""

from concurrent.futures import Future
from typing import Any

from entangle.process import process

LINES = (
    "a call is a value and nothing runs",
    "until somebody calls the call",
    "and then everything runs that it needs",
)


@process
def count(line: str) -> int:
    return len(line.split())


@process
def total(*counts: int) -> int:
    return sum(counts)


def depth(graph: Any) -> int:
    """How many levels a graph has."""
    levels = graph if isinstance(graph, list) else [graph]
    return max((1 + depth(below) for level in levels for below in level.values()), default=0)


def show(future: "Future[Any]") -> None:
    """Describe the graph that a future has come to hold."""
    graph = future.result()
    (root,) = graph
    print(f"  called back: '{root}' takes {len(graph[root])} arguments, and the graph is {depth(graph)} levels deep")
    print(f"  {graph}")


def main() -> None:
    words = total(*(count(line) for line in LINES))

    future = words.graph(wait=False)
    future.add_done_callback(show)
    print("Before:", "done" if future.done() else "pending")
    future.entangle()
    print("After:", "done" if future.done() else "pending")
    print(f"And the result: {words()} words")


if __name__ == "__main__":
    main()
