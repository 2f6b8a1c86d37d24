"""A chain of functions whose array stays on the GPU.

Each function of a chain under `@scheduler(gpus=1)` runs in the process that made its argument, so
the array on the device goes from one to the next as it is. Only what leaves the process is copied
to the host: here the mean, and in the second graph the array itself, for a function that runs
without a GPU. Where there is no GPU, numba simulates two on the CPU, slowly.

Prints where each function ran, and the results.
"""

import os
from importlib.util import find_spec
from typing import Any

from entangle.errors import DeviceError
from entangle.examples.example3 import simulate
from entangle.process import process
from entangle.scheduler import scheduler

on_gpu = scheduler(gpus=1)

#: `numba.cuda`. It is imported only in a process that uses a GPU.
cuda: Any = None


def say(what: str) -> None:
    print(f"  {what:6} in process {os.getpid()} on GPU {os.environ['CUDA_VISIBLE_DEVICES']}")


@on_gpu
@process
def load(size: int) -> Any:
    """The numbers from 0, on the device."""
    global cuda
    import numba.cuda
    import numpy as np

    cuda = numba.cuda

    say("load")
    return cuda.to_device(np.arange(size, dtype=np.float32))


def each_squared(numbers: Any) -> None:
    """The kernel: each thread of the GPU squares one number."""
    at = cuda.grid(1)
    if at < numbers.size:
        numbers[at] *= numbers[at]


@on_gpu
@process
def square(array: Any) -> Any:
    """The same array, squared where it lies."""
    global cuda
    import numba.cuda

    cuda = numba.cuda

    say("square")
    cuda.jit(each_squared).forall(array.size)(array)
    return array


@on_gpu
@process
def mean(array: Any) -> float:
    """The mean, computed on the host."""
    say("mean")
    return float(array.copy_to_host().mean())


@on_gpu
@process
def fetch(array: Any) -> Any:
    """The array on the host: what a function without a GPU can take."""
    say("fetch")
    return array.copy_to_host()


@process
def largest(array: Any) -> float:
    """The largest number, in any process."""
    return float(array.max())


def show(size: int) -> None:
    print(f"A chain over {size:,} numbers:")
    print(f"  their mean is {mean(square(square(load(size))))():.6g}")
    print("The same, and at its end the array leaves the GPU:")
    print(f"  the largest is {largest(fetch(square(load(size))))():.6g}")


def main() -> None:
    missing = [name for name in ("numpy", "numba") if find_spec(name) is None]
    if missing:
        print(f"This example needs {' and '.join(missing)}, to run on a GPU or without one: pip install 'py-entangle[gpu]'")
        return
    try:
        show(10_000_000)
    except DeviceError as error:
        print(f"There is no GPU: {error}")
        print("So numba simulates two GPUs, with a small array.")
        simulate()
        show(200)


if __name__ == "__main__":
    main()
