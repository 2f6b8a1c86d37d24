"""One function over numpy arrays, on the GPU where there is one, and several such tasks in parallel.

The function follows a population of which a share `rate` is born and a share dies for want of food, `x -> rate·x·(1-x)`,
over a hundred years. numba compiles it for the GPU; where there is none, for the CPU; and without numba, numpy computes
it as it stands. Below a rate of 1 a population dies out, so that a quarter of the rates from 0 to 4 must.

Prints on what it ran, and for a small and a large array the time taken and the share that has died out.
"""

import os
from importlib.util import find_spec
from timeit import default_timer as timer
from typing import Any

from entangle.process import process

YEARS = 100


def population(rate: Any) -> Any:
    """The population after the years. Works on one number, which numba wants, and on an array, which numpy does."""
    x = rate * 0 + 0.5
    for _ in range(YEARS):
        x = rate * x * (1 - x)
    return x


def compiled() -> tuple[Any, str]:
    """The function in the fastest form this machine has, and the name of what runs it."""
    if find_spec("numba") is None:
        return population, "the CPU, by numpy"
    import numba.cuda

    compiler: Any = numba  # which has no types that a checker would know
    # Asked in the process that computes: a CUDA context made by a parent is of no use to its children.
    if compiler.cuda.is_available():
        return compiler.vectorize(["float32(float32)"], target="cuda")(population), "the GPU, by numba"
    return compiler.vectorize(["float32(float32)"], target="cpu")(population), "the CPU, by numba"


@process
def measure(size: int) -> tuple[int, float, float, str]:
    """Compute populations at this many rates: gives size, seconds, the share that died out, and where it ran."""
    import numpy as np

    rates = np.linspace(0, 4, size, endpoint=False, dtype=np.float32)
    function, where = compiled()
    function(rates[:1])  # the first call may set up the device
    started = timer()
    populations = function(rates)
    seconds = timer() - started
    return size, seconds, float(np.mean(populations < 0.01)), where


@process
def table(*rows: tuple[int, float, float, str]) -> list[tuple[int, float, float, str]]:
    return sorted(rows)


def main() -> None:
    missing = [name for name in ("numpy", "numba") if find_spec(name) is None]
    if missing:
        print(f"Without {' and '.join(missing)}; to have all of it: pip install 'py-entangle[gpu]'")
    if "numpy" in missing:
        return
    # No GPU and no driver is no news here, and numba need not say so.
    os.environ.setdefault("NUMBA_CUDA_LOG_LEVEL", "CRITICAL")

    rows = table(measure(100), measure(1_000_000))()
    where = rows[0][3]
    print(f"Ran on {where}" + ("." if "GPU" in where else ": there is no GPU that it could use."))
    for size, seconds, died_out, _ in rows:
        print(f"  {size:>9,} populations over {YEARS} years in {seconds * 1000:7.2f} ms; {died_out:.0%} have died out")


if __name__ == "__main__":
    main()
