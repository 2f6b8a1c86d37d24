"""One graph, run once for each of many parameters: each run has a record of its own.

`target` is a graph of two calls. `trigger` begins a run of it for each parameter. It takes a list,
a generator or a function that gives either, and refuses one without parameters. All runs are under
way at once, in one session; waiting costs no CPU, so forty take hardly longer than one. One of them
fails, and the others go on. Prints how it went, and what the records say of the runs.
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import entangle
from entangle import records
from entangle.task import Call
from entangle.thread import thread

Parameters = Iterable[int] | Callable[[], Iterable[int]]


@thread
def fetch(parameter: int) -> int:
    time.sleep(0.5)  # as if it waited for a server
    return parameter


@thread
def answer(parameter: int) -> str:
    if parameter == 13:
        raise ValueError(f"{parameter} is none of ours")
    return f"ran with {parameter}"


def target(parameter: int) -> Call[str]:
    return answer(fetch(parameter))


def trigger(graph: Callable[[int], Call[str]], parameters: Parameters) -> dict[int, Future[str]]:
    """Begin a run of the graph for each parameter; gives the futures. Raises ValueError if there is
    no parameter."""
    found = list(parameters() if callable(parameters) else parameters)
    if not found:
        raise ValueError("there is nothing to run: no parameters")
    with entangle.tags(triggered_by="multitriggerexample"):
        return {one: start(graph(one).named(f"target {one}")) for one in found}


def start(call: Call[str]) -> Any:
    return call(proc=True)


def main() -> None:
    began = time.monotonic()
    with entangle.session():
        under_way = trigger(target, lambda: (2 * n + 1 for n in range(40)))
        done = {one: future.result() for one, future in under_way.items() if future.exception() is None}
    took = time.monotonic() - began
    print(f"{len(under_way)} runs, of which each waits 0.5 s, took {took:.1f} s in all; {len(done)} ended well")
    print(f"  {done[1]} … {done[79]}")
    print(f"  {type(under_way[13].exception()).__name__}: {under_way[13].exception()}")
    try:
        trigger(target, [])
    except ValueError as error:
        print(f"  {error}")
    states = [run.state for run in records.runs(tags={"triggered_by": "multitriggerexample"})]
    print(f"remembered: {states.count('done')} done, {states.count('failed')} failed")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        import os

        os.environ["ENTANGLE_RECORD_DIR"] = folder  # records of its own, removed at the end
        main()
