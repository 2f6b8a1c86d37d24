"""An ordinary nested expression is a graph, and its parts run in parallel processes.

Prints the graph before anything has run, then a line from each task as it finishes (its value and
its process), then the result. The order of finishing may differ from run to run.
"""

import os
import time
from typing import Any

from entangle.process import process


@process
def num(n: int) -> int:
    return report(f"num({n})", work(n))


@process
def one() -> int:
    return report("one()", work(1))


@process
def two() -> int:
    return report("two()", work(2))


@process
def five() -> int:
    return report("five()", work(5))


@process
def add(a: int, b: int) -> int:
    return report(f"add({a}, {b})", a + b)


@process
def subtract(a: int, b: int) -> int:
    return report(f"subtract({a}, {b})", a - b)


def work(value: int) -> int:
    """Return the value after a moment: else one process might do everything alone."""
    time.sleep(0.02)
    return value


def report(what: str, value: int) -> int:
    """Print what was computed and where, and return the value."""
    print(f"  {what:<15} = {value:>2}   in process {os.getpid()}", flush=True)
    return value


def draw(graph: Any, depth: int = 1) -> None:
    """Print a graph: each call, and below it, further in, its arguments."""
    # A dict holds a name only once: where siblings share a name, the level is a list of dicts.
    for level in graph if isinstance(graph, list) else [graph]:
        for name, arguments in level.items():
            print("  " * depth + name)
            draw(arguments, depth + 1)


def main() -> None:
    expression = add(
        add(num(6), one()),
        subtract(five(), two()),
    )
    print("The graph, of which nothing has run yet:")
    draw(expression.graph())

    print(f"What ran where (the caller is process {os.getpid()}):", flush=True)
    started = time.perf_counter()
    result = expression()
    duration = time.perf_counter() - started
    print(f"The result is {result}, after {duration * 1000:.0f} ms.")


if __name__ == "__main__":
    main()
