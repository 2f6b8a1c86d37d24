"""Two kernels in parallel, each on a GPU of its own.

`@scheduler(gpus=1)` runs a function in a process that sees one GPU alone. The kernel follows a
population for a hundred years: a share `rate` is born, and a share starves, `x -> rate·x·(1-x)`.
Below a rate of 1 a population dies out, so with rates from 0 to 4 a quarter of them must. With one
GPU, the two kernels take turns. Without a GPU, numba simulates two on the CPU, slowly.

Prints on which GPU each ran, the time that its kernel took, and the share that died out.
"""

import os
from importlib.util import find_spec
from timeit import default_timer as timer
from typing import Any, NamedTuple

from entangle.errors import DeviceError
from entangle.process import process
from entangle.scheduler import scheduler

YEARS = 100

#: `numba.cuda`. It is imported only in a process that uses a GPU: that process sees its own GPU
#: alone, and this program opens none.
cuda: Any = None


class Row(NamedTuple):
    """What one task has measured."""

    size: int
    gpu: str
    pid: int
    seconds: float
    died_out: float


def population(rates: Any, found: Any) -> None:
    """The kernel: each thread of the GPU follows one population."""
    at = cuda.grid(1)
    if at < rates.size:
        x = 0.5
        for _ in range(YEARS):
            x = rates[at] * x * (1 - x)
        found[at] = x


@scheduler(gpus=1)
@process
def measure(size: int) -> Row:
    """Compute this many populations on the GPU of this process."""
    global cuda
    import numba.cuda
    import numpy as np

    cuda = numba.cuda

    populations = cuda.jit(population)
    rates = cuda.to_device(np.linspace(0, 4, size, endpoint=False, dtype=np.float32))
    found = cuda.device_array_like(rates)
    populations.forall(size)(rates, found)  # compiles it
    cuda.synchronize()
    started = timer()
    populations.forall(size)(rates, found)
    cuda.synchronize()
    seconds = timer() - started
    return Row(size, os.environ["CUDA_VISIBLE_DEVICES"], os.getpid(), seconds, float((found.copy_to_host() < 0.01).mean()))


@process
def table(*rows: Row) -> list[Row]:
    """The rows, the smallest first."""
    return sorted(rows)


def simulate() -> None:
    """Make numba simulate two GPUs in processes that start from now on."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        os.environ.pop(name, None)
    os.environ.update(ENTANGLE_GPUS="0,1", NUMBA_ENABLE_CUDASIM="1")


def main() -> None:
    missing = [name for name in ("numpy", "numba") if find_spec(name) is None]
    if missing:
        print(f"This example needs {' and '.join(missing)}, to run on a GPU or without one: pip install 'py-entangle[gpu]'")
        return
    try:
        rows = table(measure(100), measure(10_000_000))()
    except DeviceError as error:
        print(f"There is no GPU: {error}")
        print("So numba simulates two GPUs, with small arrays.")
        simulate()
        rows = table(measure(100), measure(400))()
    for row in rows:
        print(
            f"  GPU {row.gpu}, process {row.pid}: {row.size:>10,} populations over {YEARS} years in {row.seconds * 1000:8.2f} ms; "
            f"{row.died_out:.0%} have died out"
        )


if __name__ == "__main__":
    main()
