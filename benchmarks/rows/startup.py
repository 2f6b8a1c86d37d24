"""P12: from the shell to the first result."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

from benchmarks.contestants import (
    Contestant,
    DaskDistributed,
    DaskProcesses,
    Entangle,
    Futures,
    Joblib,
    Mpire,
    Parsl,
    Ray,
)
from benchmarks.row import Line, Measured, row

IMPORTS = {
    Entangle.name: "import entangle.process",
    Futures.name: "import concurrent.futures.process",
    Joblib.name: "import joblib",
    Mpire.name: "import mpire",
    Ray.name: "import ray",
    DaskProcesses.name: "import dask, dask.multiprocessing",
    DaskDistributed.name: "import dask, distributed",
    Parsl.name: "import parsl, parsl.config, parsl.executors, parsl.providers",
}

FIRST = """
if __name__ == "__main__":
    from benchmarks import work
    from benchmarks.contestants import CONTESTANTS
    contestant = CONTESTANTS[{name!r}](2)
    contestant.start()
    print(contestant.value(contestant.task(work.increment)(1)))
    contestant.stop()
"""
"""A peer's first result: its pool or cluster as in other rows, one task, and all ended again."""


def whole(*arguments: str) -> float:
    """Run another Python, and give the milliseconds from its start to its end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1e3


@row(
    "P12",
    "from the shell",
    group="startup",
    lines=[
        Line("import, beyond `python -c pass`", "ms", "import", Entangle.name, 60),
        Line("whole, to the end of the first program", "ms", "first", Entangle.name, 250),
    ],
    others=tuple(name for name in IMPORTS if name != Entangle.name),
    bare=True,
    note="ours: `import entangle.process`, `python -m entangle.examples.example`; a peer's program starts its pool, runs one task and ends",
)
def startup(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Start a Python that imports, and one that runs something, each beside one that does
    nothing."""
    line = IMPORTS[contestant.name]
    program = ("-m", "entangle.examples.example") if contestant.name == Entangle.name else ("-c", FIRST.format(name=contestant.name))
    whole("-c", line)
    if contestant.name == Entangle.name:
        whole(*program)
    for _ in rounds:
        # The difference of two single starts is mostly noise: take three pairs a round, each one
        # after the other.
        pairs = [(whole("-c", "pass"), whole("-c", line)) for _ in range(3)]
        yield {
            "import": statistics.median(importing - bare for bare, importing in pairs),
            "bare": statistics.median(bare for bare, _ in pairs),
            "first": whole(*program),
        }
