"""Two pipelines that start together, each in a process of its own, and one graph database of both.

Each pipeline makes a figure, samples of it, and a disturbance of every second sample. Each run is
sent to the Gremlin server that ENTANGLE_GRAPH names when it ends; what the database has already,
stays. Queries then tell what each pipeline has done, and which values both have made.
"""

import math
import multiprocessing
import os
import random
import sys
import tempfile
from importlib.util import find_spec
from multiprocessing.synchronize import Barrier

from entangle.process import process
from entangle.task import Call

#: How many samples each has, and how many of them are disturbed.
PIPELINES = {"small": (10, 5), "large": (20, 10)}


@process
def add(a: float, b: float) -> float:
    return a + b


@process
def sample(figure: float, number: int) -> float:
    return figure + number / 10


@process
def disturb(figure: float, seed: int) -> float:
    return figure * random.Random(seed).uniform(-0.5, 0.5)


@process
def total(*figures: float) -> float:
    return sum(figures)


def pipeline(samples: int, disturbed: int) -> Call[float]:
    figure = add(1, math.pi)
    found = [sample(figure, number) for number in range(samples)]
    return total(*found, *(disturb(found[2 * number], number) for number in range(disturbed)))


def start(name: str, together: Barrier) -> None:
    call = pipeline(*PIPELINES[name]).named(name)
    together.wait()
    print(f"{name}: {call():.3f}", flush=True)


def ask(address: str) -> None:
    from gremlin_python.driver.driver_remote_connection import DriverRemoteConnection
    from gremlin_python.process.anonymous_traversal import traversal
    from gremlin_python.process.traversal import P

    driver = DriverRemoteConnection(address, "g")
    try:
        g = traversal().with_remote(driver)
        values: list[set[str]] = []
        for name in PIPELINES:
            calls = g.V().has("run", "name", name).in_("part_of")
            counts = calls.clone().group_count().by("name").next()
            print(f"{name}: {', '.join(f'{count} {task}' for task, count in sorted(counts.items()))}")
            values.append(calls.out("made").values("hash").to_set())
        common = g.V().has("value", "hash", P.within(values[0] & values[1])).in_("made")
        counts = common.group_count().by("name").next()
        print("both have made the values of", ", ".join(f"{count // 2} {task}" for task, count in sorted(counts.items())))
    finally:
        driver.close()


def main() -> None:
    if find_spec("gremlin_python") is None:
        sys.exit("This example needs gremlinpython: pip install 'py-entangle[graph]'")
    if not (address := os.environ.get("ENTANGLE_GRAPH")):
        sys.exit("This example needs a Gremlin server, which ENTANGLE_GRAPH names: ENTANGLE_GRAPH=ws://localhost:8182/gremlin")
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(2)
    programs = [spawn.Process(target=start, args=(name, together)) for name in PIPELINES]
    for program in programs:
        program.start()
    for program in programs:
        program.join()  # a program waits until its runs are sent
    ask(address)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ENTANGLE_RECORD_DIR"] = folder  # records of its own, removed at the end
        main()
