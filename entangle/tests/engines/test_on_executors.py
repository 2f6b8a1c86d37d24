"""@on with other executors: the standard library's, loky's and Dask's."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle.errors import OptionError, ProcessTerminatedException, ProcessTimeoutException
from entangle.on import on
from entangle.process import process

from .. import bodies
from ..evidence import note, notes, notes_of, text_of, wait_until
from ..services.dask_cluster import DaskCluster
from ..services.dask_cluster import dask_cluster as a_cluster
from ..ways import installed

VALUES: list[Any] = [None, False, 0, "", [], {}, b"", 10**30, bodies.Point(1, [2]), ValueError("a value")]


@pytest.fixture(scope="module", autouse=True)
def _forkserver() -> None:
    """The forkserver starts before the tests, and stays until this process ends."""
    forkserver.ensure_running()


@contextmanager
def _dask(cluster: DaskCluster) -> Iterator[Executor]:
    from distributed import Client

    with Client(cluster.address) as client, client.get_executor() as executor:
        yield executor


@pytest.fixture(scope="module", params=["processes", "threads", "loky", "dask"])
def kept(request: pytest.FixtureRequest) -> Iterator[Executor | DaskCluster]:
    """Each executor, with the processes that it keeps; for Dask, the cluster."""
    made: AbstractContextManager[Executor]
    if request.param == "processes":
        made = ProcessPoolExecutor(2, multiprocessing.get_context("forkserver"))
    elif request.param == "threads":
        made = ThreadPoolExecutor(2)
    elif request.param == "loky":
        installed("loky")
        made = importlib.import_module("loky").ProcessPoolExecutor(2)
    else:
        yield request.getfixturevalue("dask_cluster")
        return
    with made as executor:
        for future in [executor.submit(time.sleep, 0.2) for _ in range(4)]:
            future.result()
        yield executor


@pytest.fixture
def executor(kept: Executor | DaskCluster) -> Iterator[Executor]:
    """Each executor. With Dask, each test has its own connections."""
    if isinstance(kept, Executor):
        yield kept
        return
    with _dask(kept) as made:
        yield made


@pytest.fixture
def there(executor: Executor) -> Callable[..., Any]:
    """Makes a task of a function that runs on the executor."""

    def decorate(function: Any, **terms: Any) -> Any:
        return process(idempotent=True, **terms)(on(executor)(function))

    return decorate


def test_values_and_errors(there: Callable[..., Any]) -> None:
    same, add = there(bodies.same), there(bodies.add)
    found = same.map(VALUES)()
    assert [repr(value) for value in found] == [repr(value) for value in VALUES]
    assert add(process(bodies.add)(1, add(2, 3)), there(lambda: 4)())() == 10
    with pytest.raises(ValueError, match="no such thing") as raised:
        add(there(bodies.fail)(), 1)()
    assert "call path: add(fail(), 1) → fail" in notes_of(raised.value)
    assert "in fail" in text_of(raised.value)
    two, failed = entangle.gather(add(1, 1), there(bodies.fail)(), return_exceptions=True)()
    assert (two, type(failed)) == (2, ValueError)


def test_equal_calls_are_different_calls(there: Callable[..., Any], tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    noted = there(bodies.noted)
    assert entangle.gather(noted(log, 7), noted(log, 7))() == [7, 7]
    assert noted(log, 7)() == 7
    assert len(notes(log)) == 3


def test_attempts_and_deadlines(there: Callable[..., Any], tmp_path: Path) -> None:
    assert there(bodies.fail_until, retry=2)(str(tmp_path / "tries"), 2)() == "done"
    with pytest.raises(ProcessTimeoutException, match="ran longer than its timeout of 0"):
        there(time.sleep, timeout=0.3)(1.0)()


def test_many_calls(there: Callable[..., Any]) -> None:
    assert sum(there(bodies.inc).map(range(300))()) == 301 * 150


def test_a_process_that_is_killed() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        with pytest.raises(ProcessTerminatedException, match="the ProcessPoolExecutor of task 'kill' has lost the call: BrokenProcessPool"):
            on(pool)(kill)()()
        with pytest.raises(ProcessTerminatedException, match="the ProcessPoolExecutor of task 'inc' has lost the call: BrokenProcessPool"):
            on(pool)(bodies.inc)(1)()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_dask_is_refused_what_must_not_run_twice(dask_cluster: DaskCluster) -> None:
    with _dask(dask_cluster) as executor, pytest.raises(OptionError, match="say idempotent=True or retry="):
        on(executor)(bodies.inc)(1)()


@pytest.fixture
def own_cluster(dask_cluster: DaskCluster) -> Iterator[DaskCluster]:
    """A cluster of the test's own, which it may kill."""
    with a_cluster() as cluster:
        yield cluster


@pytest.mark.timeout(180)
def test_a_worker_of_dask_that_is_killed_with_fifty_calls_under_way(own_cluster: DaskCluster, tmp_path: Path) -> None:
    """They may run again, so each returns its value."""
    log = str(tmp_path / "log")
    with _dask(own_cluster) as executor:
        running = entangle.gather(*[process(idempotent=True)(on(executor)(_noted_slowly))(log, x) for x in range(50)])(proc=True)
        wait_until(lambda: len(notes(log)) >= 6, 60, "no call has begun")
        os.kill(own_cluster.workers[0], signal.SIGKILL)
        own_cluster.start_worker()
        assert running.result(timeout=120) == list(range(50))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("retry", [0, 2])
def test_a_worker_of_a_pool_that_is_killed_with_fifty_calls_under_way(tmp_path: Path, retry: int) -> None:
    """Each is an error that says why, or a value, if it may be retried in another pool."""
    found = _fifty_calls(str(tmp_path / "log"), retry)
    lost = [x for x, value in enumerate(found) if value != x]
    assert all("has lost the call: BrokenProcessPool" in found[x] for x in lost)
    assert bool(lost) == (not retry)
    gc.collect()  # errors hold the frames in which they were raised, and these hold the pool


def _fifty_calls(log: str, retry: int) -> list[Any]:
    """The results of fifty calls, after a worker was killed among them: values, or messages of
    errors."""
    task = process(retry=retry)(on(_pool)(_noted_slowly))
    running = entangle.gather(*[task(log, x) for x in range(50)], return_exceptions=True)(proc=True)
    wait_until(lambda: len(notes(log)) >= 6, 60, "no call has begun")
    os.kill(int(notes(log)[-1][1]), signal.SIGKILL)
    return [str(value) if isinstance(value, ProcessTerminatedException) else value for value in running.result(timeout=120)]


def _pool() -> Executor:
    return ProcessPoolExecutor(2, multiprocessing.get_context("forkserver"))


def _noted_slowly(path: str, x: int) -> int:
    note(path, x, os.getpid())
    time.sleep(0.2)
    return x
