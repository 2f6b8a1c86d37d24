"""@on over executors that people have: of the standard library, loky's, Dask's."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle.errors import OptionError, ProcessTerminatedException, ProcessTimeoutException
from entangle.on import on
from entangle.process import process

from .. import bodies
from ..evidence import notes, notes_of, text_of
from ..services.dask_cluster import DaskCluster
from ..ways import installed

VALUES: list[Any] = [None, False, 0, "", [], {}, b"", 10**30, bodies.Point(1, [2]), ValueError("a value")]


@contextmanager
def _dask(cluster: DaskCluster) -> Iterator[Executor]:
    from distributed import Client

    with Client(cluster.address) as client, client.get_executor() as executor:
        yield executor


@pytest.fixture(scope="module", params=["processes", "threads", "loky", "dask"])
def kept(request: pytest.FixtureRequest) -> Iterator[Executor | DaskCluster]:
    """Each of the executors, with what it starts once and keeps; of Dask's, the cluster."""
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
    """Each of the executors. Connections of Dask's are of the test's own."""
    if isinstance(kept, Executor):
        yield kept
        return
    with _dask(kept) as made:
        yield made


@pytest.fixture
def there(executor: Executor) -> Callable[..., Any]:
    """Puts a function there."""

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
