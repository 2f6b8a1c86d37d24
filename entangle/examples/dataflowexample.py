"""Values pushed through a graph of functions: each value goes to the functions in the parentheses.

In a workflow `a(b(), c())` runs b and c first, for a. In a dataflow it is the other way round: a
runs first, and b and c both get its value, at the same time. The callback sees each value as it
comes, in this process.

Prints what each function passed on and the values of the leaves, then the same for another value.
"""

import threading
from typing import Any

from entangle.dataflow import dataflow, thread


def told(func: Any, value: Any) -> None:
    print(f"  told: {func.__name__} gave {value!r}")


@dataflow(callback=told)
@thread
def greet(name: str) -> str:
    return f"Good morning, {name}"


@dataflow(callback=told)
@thread
def shout(text: str) -> str:
    return text.upper() + "!"


@dataflow(callback=told)
@thread
def count(text: str) -> int:
    return len(text)


@dataflow(callback=told, maxworkers=3)
def emit(name: str) -> str:
    return name.strip().title()


def main() -> None:
    # This builds the graph; nothing runs yet.
    flow = emit(greet(shout(count())), shout(), count())
    print("the graph:", flow.graph())
    print("  leaves:", flow(" ada lovelace "))
    print("and again, for somebody else:")
    print("  leaves:", flow("GRACE HOPPER"))
    print("threads left:", threading.active_count() - 1)


if __name__ == "__main__":
    main()
