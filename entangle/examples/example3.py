"""One function over numpy arrays, on the GPU where there is one; several such tasks in parallel.

The function follows a population for a hundred years: a share `rate` is born, and a share starves,
`x -> rate·x·(1-x)`. numba compiles it for the GPU, or where there is none for the CPU; without
numba, numpy computes it as it is. Below a rate of 1 a population dies out, so a quarter of the
rates from 0 to 4 must.

Prints where it ran, and for a small and a large array the time taken and the share that died out.
"""

import os
from importlib.util import find_spec
from timeit import default_timer as timer
from typing import Any

from entangle.process import process

YEARS = 100


def population(rate: Any) -> Any:
    """The population after the years: of one number, for numba, or of an array, for numpy."""
    x = rate * 0 + 0.5
    for _ in range(YEARS):
        x = rate * x * (1 - x)
    return x


def compiled() -> tuple[Any, str]:
    """The function in the fastest form this machine has, and the name of what runs it."""
    if find_spec("numba") is None:
        return population, "the CPU, by numpy"
    import numba.cuda

    compiler: Any = numba  # numba has no types
    # Ask in the process that computes: a child cannot use the CUDA context of its parent.
    if compiler.cuda.is_available():
        return compiler.vectorize(["float32(float32)"], target="cuda")(population), "the GPU, by numba"
    return compiler.vectorize(["float32(float32)"], target="cpu")(population), "the CPU, by numba"


@process
def measure(size: int) -> tuple[int, float, float, str]:
    """Compute this many populations: gives size, seconds, the share that died out, and where."""
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
    # numba need not warn that there is no GPU or no driver.
    os.environ.setdefault("NUMBA_CUDA_LOG_LEVEL", "CRITICAL")

    rows = table(measure(100), measure(1_000_000))()
    where = rows[0][3]
    print(f"Ran on {where}" + ("." if "GPU" in where else ": there is no GPU that it could use."))
    for size, seconds, died_out, _ in rows:
        print(f"  {size:>9,} populations over {YEARS} years in {seconds * 1000:7.2f} ms; {died_out:.0%} have died out")


if __name__ == "__main__":
    main()
