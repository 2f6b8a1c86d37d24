"""W3 to W6: entangle in place of the pools of other libraries, with unchanged programs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

from benchmarks import work
from benchmarks.contestants import Contestant, DaskDistributed, DaskProcesses, Futures, Joblib, Mpire, PoolMap
from benchmarks.row import Line, Measured, check, row, seconds
from benchmarks.warm import DaskInOneProcess, EntangleDask, EntangleExecutor, EntangleJoblib, JoblibThreads, Loky

ITEMS, CHUNK = 10_000, 100
ARRAYS, ARRAY_ITEMS = 100, 1_250_000
FITS = 200
BLOCKS, BLOCK_ITEMS = 20, 6_250_000


@row(
    "W3",
    "map(square, range(10_000)) by an Executor",
    group="executor",
    lines=[
        Line("chunksize left alone: at most 1/5 of futures", "ms", "alone", EntangleExecutor.name, 1 / 5, relative_to=Futures.name),
        Line("chunksize=100: at most 1 times futures", "ms", "chunks", EntangleExecutor.name, 1.0, relative_to=Futures.name),
    ],
    others=(Futures.name, Loky.name, Mpire.name, PoolMap.name),
    note="all pools warm. futures and loky send one item at a time unless told otherwise, mpire and Pool.map choose chunks",
)
def tiny_functions(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Square ten thousand numbers."""
    wanted = [x * x for x in range(ITEMS)]
    alone = partial(contestant.map, work.square, range(ITEMS))
    chunks = partial(contestant.map_in_chunks, work.square, range(ITEMS), CHUNK)
    alone()
    chunks()
    for _ in rounds:
        yield {"alone": seconds(alone, wanted) * 1e3, "chunks": seconds(chunks, wanted) * 1e3}


@row(
    "W4",
    "100 arrays of 10 MB in and out of an Executor",
    group="executor",
    lines=[Line("at most 1/4 of futures", "s", "time", EntangleExecutor.name, 1 / 4, relative_to=Futures.name)],
    others=(Futures.name, Loky.name),
    note="map of a * 1.0; the caller reads all of each array that comes back, then drops it",
)
def arrays_in_and_out(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Send a hundred arrays, and get a new one for each."""
    import numpy

    arrays = [numpy.full(ARRAY_ITEMS, float(number)) for number in range(ARRAYS)]
    wanted = [float(number * ARRAY_ITEMS) for number in range(ARRAYS)]

    def once(some: list[Any]) -> list[float]:
        return [work.summed(array) for array in contestant.stream([work.touch], some)]

    once(arrays[:4])
    for _ in rounds:
        began = time.perf_counter()
        sums = once(arrays)
        took = time.perf_counter() - began
        check(sums, wanted)
        yield {"time": took}


@row(
    "W5",
    "joblib",
    group="joblib",
    lines=[
        Line(
            "10,000 tasks of 0.1 ms of CPU: at most the better of the peers",
            "ms",
            "tasks",
            EntangleJoblib.name,
            1.0,
            relative_to=(Joblib.name, JoblibThreads.name),
        ),
        Line(
            f"GridSearchCV of {FITS} small fits: at most the better of the peers",
            "ms",
            "search",
            EntangleJoblib.name,
            1.0,
            relative_to=(Joblib.name, JoblibThreads.name),
        ),
    ],
    others=(Joblib.name, JoblibThreads.name),
    note="joblib is loky, its default, warm; 40 candidates of an SVC on the iris data, five folds each, the same scores from all",
)
def joblibs(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Many short tasks, and a search over a grid."""
    assert isinstance(contestant, Joblib)
    config: Any = import_module("joblib").parallel_config
    search, data = _search(), import_module("sklearn.datasets").load_iris(return_X_y=True)
    alone = search.fit(*data)
    scores: list[float] = list(alone.cv_results_["mean_test_score"])
    check(len(scores) * search.cv, FITS)

    def tasks() -> list[int]:
        values: list[int] = contestant.parallel(contestant.delayed(work.busy)(i, 1e-4) for i in range(ITEMS))
        return values

    def searched() -> list[float]:
        with config(backend=contestant.backend, n_jobs=contestant.workers):
            return list(_search().fit(*data).cv_results_["mean_test_score"])

    tasks()
    searched()
    for _ in rounds:
        yield {"tasks": seconds(tasks, list(range(ITEMS))) * 1e3, "search": seconds(searched, scores) * 1e3}


def _search() -> Any:
    """A search over 40 candidates with five folds."""
    svm, selection = import_module("sklearn.svm"), import_module("sklearn.model_selection")
    grid = {"C": [2.0**power for power in range(-3, 5)], "gamma": [0.01, 0.03, 0.1, 0.3, 1.0]}
    return selection.GridSearchCV(svm.SVC(), grid, cv=5)


@row(
    "W6",
    "dask",
    group="dask",
    lines=[
        Line(
            "1,000 tiny tasks into one sum: at most 1/5 of processes",
            "ms",
            "tiny",
            EntangleDask.name,
            1 / 5,
            relative_to=DaskProcesses.name,
        ),
        Line(
            "x.sum() of 1 GB: at most 1/0.9 of threads",
            "ms",
            "sum",
            EntangleDask.name,
            1 / 0.9,
            relative_to=DaskInOneProcess.name,
        ),
        Line(
            "(x - x.min()).max() of 1 GB, where blocks go from task to task: at most 1/0.9 of threads",
            "ms",
            "twice",
            EntangleDask.name,
            1 / 0.9,
            relative_to=DaskInOneProcess.name,
        ),
    ],
    others=(DaskProcesses.name, DaskInOneProcess.name, DaskDistributed.name),
    note=f"all pools warm; the array is made by the tasks, in {BLOCKS} blocks of 50 MB",
)
def dasks(contestant: Contestant, rounds: Iterable[int]) -> Iterator[Measured]:
    """Many tiny tasks, and reductions over an array of blocks."""
    array: Any = import_module("dask.array")
    leaf, total = contestant.task(work.leaf), contestant.task(work.total)
    items = BLOCKS * BLOCK_ITEMS

    def numbers(blocks: int = BLOCKS) -> Any:
        return array.arange(blocks * BLOCK_ITEMS, chunks=BLOCK_ITEMS, dtype="float64")

    def tiny() -> int:
        value: int = contestant.value(total(*[leaf(i) for i in range(1000)]))
        return value

    def summed(blocks: int = BLOCKS) -> float:
        return float(contestant.value(numbers(blocks).sum()))

    def twice(blocks: int = BLOCKS) -> float:
        x = numbers(blocks)
        return float(contestant.value((x - x.min()).max()))

    tiny()
    summed(1)
    twice(1)
    for _ in rounds:
        yield {
            "tiny": seconds(tiny, 499_500) * 1e3,
            # Whole numbers, so that the sum is the same in any order.
            "sum": seconds(summed, items * (items - 1) / 2) * 1e3,
            "twice": seconds(twice, items - 1.0) * 1e3,
        }
