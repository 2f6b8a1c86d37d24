"""Bodies on a real GPU, with the usual libraries: `make gpu` runs this.

Each library runs in programs of its own, since a process that has opened a device cannot fork.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from entangle._run import gpus

from .callers import ROOT

LIBRARIES = ("numba", "cupy", "torch", "jax")

#: The same functions in each library. `numbers` creates the numbers from 0 on the device.
DIALECTS = {
    "numba": """
import numpy as np
from numba import cuda

@cuda.jit
def kernel(a):
    at = cuda.grid(1)
    if at < a.size:
        a[at] *= 2

def numbers(size):
    return cuda.to_device(np.arange(size, dtype=np.float32))

def twice(a):
    kernel.forall(a.size)(a)
    return a

def total(a):
    return float(a.copy_to_host().sum())
""",
    "cupy": """
import cupy

def numbers(size):
    return cupy.arange(size, dtype="float32")

def twice(a):
    a *= 2
    return a

def total(a):
    return float(a.sum())
""",
    "torch": """
import torch

def numbers(size):
    return torch.arange(size, dtype=torch.float32, device="cuda")

def twice(a):
    a *= 2
    return a

def total(a):
    return float(a.sum())
""",
    "jax": """
import os
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
import jax.numpy

def numbers(size):
    return jax.numpy.arange(size, dtype="float32")

def twice(a):
    return a * 2

def total(a):
    return float(a.sum())
""",
}

BODIES = """
import json, logging, os, signal, sys, time
import entangle
from entangle import Executor, session
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.errors import *

on_gpu = scheduler(gpus=1)

def where(a):
    return a.__cuda_array_interface__["data"][0]

@on_gpu
@process
def load(size):
    return numbers(size)

@on_gpu
@process
def double(a):
    return twice(a)

@on_gpu
@process
def look(a):
    '''The array, where it lies, and who says so.'''
    seen.append((os.getpid(), where(a)))
    return a

@on_gpu
@process
def result(a):
    return total(a), seen, os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]

@process
def without(a):
    return total(a)

@on_gpu
@process
def both(a, b):
    return total(a) + total(b)

@on_gpu
@process(retry=1)
def dies_once(path, size):
    a = numbers(size)
    b = total(a)
    if not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return b

@scheduler(gpus=1, share=4)
@process
def beside(seconds):
    a = numbers(1000)
    began = time.monotonic()
    time.sleep(seconds)
    return total(a), os.getpid(), began, time.monotonic()

@on_gpu
@process
def pass_on(a):
    seen.append(time.perf_counter())
    return a

@on_gpu
@process
def took(a):
    return [b - a for a, b in zip(seen, seen[1:])]

@on_gpu
@process
def seeded(now):
    if now:
        torch.manual_seed(1)
    return torch.rand(1, device="cuda").item()

@process
def gather(*values):
    return list(values)

seen = []

def say(value):
    print(json.dumps(value), flush=True)
"""

MAIN = """
if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, format="log: %(message)s", level=logging.WARNING)
    logging.getLogger("entangle").setLevel(logging.INFO)
"""


@pytest.fixture(scope="module", autouse=True)
def a_gpu() -> None:
    if not gpus.find().gpus:
        pytest.skip("needs a GPU that NVML finds (`entangle doctor` lists them)")


@pytest.fixture(params=LIBRARIES)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A function that runs a program with this library, and returns the values that it printed and
    the lines that it logged."""
    library = request.param
    if find_spec(library) is None:
        pytest.skip(f"needs {library}")

    def run(text: str, dialect: bool = True) -> tuple[list[Any], list[str]]:
        body = "".join(f"    {line}\n" for line in text.strip().splitlines())
        (tmp_path / "program.py").write_text(DIALECTS[library] * dialect + BODIES + MAIN + body)
        environment = {**os.environ, "PYTHONPATH": ROOT + os.pathsep + os.environ.get("PYTHONPATH", "")}
        done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        logged = [line for line in lines if line.startswith("log: ")]
        return [json.loads(line) for line in lines if line not in logged], logged

    return run


@pytest.fixture(autouse=True)
def gives_its_memory_back() -> Iterator[None]:
    """Check that no process stays on the device: afterwards as much of its memory is in use as
    before."""
    before = _used()
    yield
    end = time.monotonic() + 10
    while _used() > before + 64 and time.monotonic() < end:
        time.sleep(0.1)
    assert _used() <= before + 64


def _used() -> int:
    """MiB in use, on all devices together."""
    told = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True
    )
    return sum(map(int, told.stdout.split()))


SIZE = 1 << 20
SUM = float(SIZE * (SIZE - 1) // 2)


def near(value: float, wanted: float) -> bool:
    """Whether two sums are equal, but for the rounding of float32."""
    return abs(value - wanted) < 1e-3 * wanted


def test_a_chain_stays_where_its_array_is(run: Any) -> None:
    [[value, seen, pid, device]], logged = run(f"say(result(look(look(look(load({SIZE})))))())")
    assert near(value, SUM)
    assert {who for who, _ in seen} == {pid}
    assert len({at for _, at in seen}) == 1  # it was never copied
    assert device == "0"
    assert logged == []


def test_what_leaves_the_device_is_told(run: Any) -> None:
    [alone, shared], logged = run(f"say(without(double(load({SIZE})))())\na = load({SIZE})\nsay(both(double(a), a)())")
    assert near(alone, 2 * SUM)
    assert near(shared, 3 * SUM) or near(shared, 4 * SUM)  # it is doubled in place, if both bodies have the same array
    assert f"{4 * SIZE:,} bytes through the host" in logged[0]


def test_an_array_of_the_caller_and_for_the_caller(run: Any) -> None:
    """The caller has opened a device, so its workers are not forked from it."""
    text = f"""
a = numbers({SIZE})
say(total(a))
say(os.getpid() == process(os.getppid)()())
try:
    process(os.getppid)()(start="fork")
except OptionError as error:
    say(str(error))
say(result(double(a))()[0])
say(total(load({SIZE})()))
"""
    [own, forked, refused, doubled, loaded], _ = run(text)
    assert near(own, SUM)
    assert forked is False
    assert "start='fork': this process has opened a GPU" in refused
    assert near(doubled, 2 * SUM)
    assert near(loaded, SUM)


def test_a_killed_body_gives_its_memory_back(run: Any, tmp_path: Path) -> None:
    [value], _ = run(f"say(dies_once({str(tmp_path / 'mark')!r}, {64 * SIZE})())")
    assert value > 0
    assert (tmp_path / "mark").exists()


def test_four_share_a_device(run: Any) -> None:
    [rows], _ = run("say(gather(*[beside(3) for _ in range(8)]).run(workers=8))")
    spans = [(began, ended) for _, _, began, ended in rows]
    at_once = max(sum(began <= at < ended for began, ended in spans) for at, _ in spans)
    assert all(value == rows[0][0] for value, *_ in rows)
    assert at_once == 4


def test_runs_of_a_session_keep_their_device(run: Any) -> None:
    """What a library has loaded and opened stays for the next run."""
    text = f"""
with entangle.session():
    for _ in range(4):
        began = time.monotonic()
        value, seen, pid, device = result(double(load({SIZE})))()
        say([value, pid, time.monotonic() - began])
"""
    rows, _ = run(text)
    assert all(near(value, 2 * SUM) for value, _, _ in rows)
    print([f"{seconds:.3f} s" for _, _, seconds in rows])
    assert len({pid for _, pid, _ in rows}) == 1


def test_functions_of_an_executor_use_the_device(run: Any) -> None:
    text = f"""
with entangle.Executor(2) as pool:
    for future in [pool.submit(sums, {SIZE}) for _ in range(6)]:
        say(future.result())
"""
    values, _ = run("def sums(size):\n    return total(twice(numbers(size)))\n" + text)
    assert len(values) == 6
    assert all(near(value, 2 * SUM) for value in values)


def test_what_a_hop_costs(run: Any) -> None:
    """An array of a gigabyte is passed on as fast as a small value. Prints the time."""
    text = """
from functools import reduce
chain = reduce(lambda a, _: pass_on(a), range(200), load(1 << 28))
say(sorted(took(chain)())[100])
"""
    [hop], _ = run(text)
    print(f"{hop * 1e6:.0f} us a hop")
    assert hop < 0.01  # a copy would take a tenth of a second


def test_random_numbers_of_torch_are_seeded_anew(run: Any) -> None:
    text = """
if "torch" in globals():
    with entangle.session():
        say([seeded(True)(), seeded(False)(), seeded(True)()])
"""
    values, _ = run(text)
    for first, second, third in values:
        assert first == third != second
