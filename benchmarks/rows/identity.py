"""O2: the key of a call, by which its value is found on other days."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.contestants import Contestant, EntangleFork
from benchmarks.row import Line, Measured, check, row

HELPERS = 20
_HELPER = """
def h{number}(x, factor=1):
    y = x + {number} + K
    for z in range(3):
        y += abs(z) if y else len(str(y))
    return y * {next}
"""
_TASK = """
K = 3
T = {"a": 1}

def f(a, b, c, d, e, f, g, h, i=9, j="j"):
    return h0(a)
"""
_ARGUMENTS = (1, 2.0, "three", 4, None, True, b"x", (1, 2))


def _project(number: int) -> dict[str, Any]:
    """The names of a module with a task and its helpers, of which each calls the next."""
    space: dict[str, Any] = {"__name__": f"project{number}"}
    nexts = [f"h{one + 1}(x)" for one in range(HELPERS - 1)] + ["T['a']"]
    exec(_TASK + "".join(_HELPER.format(number=one, next=after) for one, after in enumerate(nexts)), space)
    return space


@row(
    "O2",
    "the key of a call: 20 helpers, 10 arguments",
    group="identity",
    lines=[
        Line("asked for first", "ms", "first", EntangleFork.name, 20),
        Line("again", "µs", "again", EntangleFork.name, 30),
        Line("again, after a helper has changed", "ms", "changed", EntangleFork.name, None),
    ],
    note="functions of 45 instructions, each of which calls the next; new functions in every round, which nothing has seen before",
    bare=True,
)
def identity(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Take the key of one call over and over."""
    from entangle._shared.identity import identify

    for number in rounds:
        space = _project(number)
        task = space["f"]
        began = time.perf_counter()
        key, parts = identify("f", task, _ARGUMENTS, {})
        first = time.perf_counter() - began
        check(sum(part.startswith("the function ") for part in parts), HELPERS + 1)
        took = []
        for _ in range(1000):
            began = time.perf_counter()
            again = identify("f", task, _ARGUMENTS, {})
            took.append(time.perf_counter() - began)
            check(again.key, key)
        exec(_HELPER.format(number=7, next="h8(x + 1)"), space)
        began = time.perf_counter()
        changed = identify("f", task, _ARGUMENTS, {})
        walked = time.perf_counter() - began
        check(changed.key == key, False)
        yield {"first": first * 1e3, "again": sorted(took)[len(took) // 2] * 1e6, "changed": walked * 1e3}
