"""Whole graphs on Dask distributed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle import gather
from entangle.errors import LinkLostError, MissingModuleError, OptionError, ProcessTerminatedException, UnfitPythonError, UnreachableError
from entangle.scheduler import scheduler

from ..evidence import alive, notes, notes_of, wait_until
from ..services.dask_cluster import DaskCluster
from ..services.dask_cluster import dask_cluster as a_cluster
from . import graph_bodies as bodies
from .whole_graphs import WholeGraphs


def address_of(cluster: DaskCluster) -> str:
    return cluster.address.replace("tcp://", "dask://")


@pytest.fixture
def engine(dask_cluster: DaskCluster) -> Any:
    return entangle.engine(address_of(dask_cluster))


@pytest.fixture
def own_cluster(dask_cluster: DaskCluster) -> Iterator[DaskCluster]:
    """A cluster of the test's own, which it may kill."""
    with a_cluster() as cluster:
        yield cluster


class TestOnDask(WholeGraphs):
    pass


def begun(path: Path) -> list[int]:
    """The calls that have begun, in order."""
    return [int(line[1]) for line in notes(path) if line[0] == "begins"]


def test_an_address_that_is_none() -> None:
    for address in ("spark://host", "dask", "dask://", ""):
        with pytest.raises(OptionError, match="dask://host:8786"):
            entangle.engine(address)
    with pytest.raises(OptionError, match="named by a string"):
        entangle.engine(3)  # type: ignore[arg-type]


def test_an_address_as_dask_writes_it(dask_cluster: DaskCluster) -> None:
    assert dask_cluster.address.startswith("tcp://")
    with entangle.engine(dask_cluster.address):
        assert bodies.total(bodies.square.map(range(4)))() == 14


def test_nobody_answers() -> None:
    with pytest.raises(UnreachableError, match="dask scheduler"), entangle.engine("dask://127.0.0.1:9"):
        pass


@pytest.mark.parametrize("way", ["running", "value"])
def test_a_killed_worker_runs_no_body_twice(own_cluster: DaskCluster, tmp_path: Path, way: str) -> None:
    """Calls with neither `retry` nor `idempotent`: one error says why, and no body runs twice."""
    path = tmp_path / "notes"
    with entangle.engine(address_of(own_cluster)):
        future = bodies.total(bodies.noted.starmap([(str(path), x, 0.1) for x in range(50)]))(proc=True)
        wait_until(lambda: len(begun(path)) >= (1 if way == "running" else 6))
        os.kill(own_cluster.workers[0], signal.SIGKILL)
        with pytest.raises(ProcessTerminatedException, match=r"(?s)worker .* is gone.*idempotent=True") as caught:
            future.result(timeout=60)
        assert "call path: total" in notes_of(caught.value)
        time.sleep(0.3)
        assert len(begun(path)) == len(set(begun(path))) < 50
        assert bodies.square(3)() == 9  # the other worker goes on


def test_a_killed_worker_and_bodies_that_may_run_again(own_cluster: DaskCluster, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with entangle.engine(address_of(own_cluster)):
        running = bodies.total(bodies.again.starmap([(str(path), x, 0.1) for x in range(50)]))(proc=True)
        wait_until(lambda: len(begun(path)) >= 10)
        os.kill(own_cluster.workers[0], signal.SIGKILL)
        own_cluster.start_worker()
        assert running.result(timeout=60) == sum(range(50))
    assert set(begun(path)) == set(range(50))
    assert len(begun(path)) > 50


def test_a_killed_worker_as_a_value(own_cluster: DaskCluster, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with entangle.engine(address_of(own_cluster)):
        calls = [bodies.noted(str(path), x, 0.3) for x in range(8)]
        running = gather(*calls, return_exceptions=True)(proc=True)
        wait_until(lambda: len(begun(path)) >= 2)
        os.kill(own_cluster.workers[0], signal.SIGKILL)
        values = running.result(timeout=60)
    lost = [value for value in values if isinstance(value, ProcessTerminatedException)]
    assert lost
    assert [value for value in values if not isinstance(value, ProcessTerminatedException)] == [
        x for x in range(8) if not isinstance(values[x], ProcessTerminatedException)
    ]
    assert len(begun(path)) == len(set(begun(path)))


def test_the_scheduler_ends_while_a_run_is_under_way(own_cluster: DaskCluster, tmp_path: Path) -> None:
    from distributed import Client

    with Client(own_cluster.address, set_as_default=False) as client:
        scheduler = client.run_on_scheduler(os.getpid)
    path = tmp_path / "notes"
    with entangle.engine(address_of(own_cluster)):
        future = bodies.noted(str(path), 1, 5.0)(proc=True)
        wait_until(lambda: begun(path))
        os.kill(scheduler, signal.SIGKILL)
        with pytest.raises(LinkLostError, match="Dask at"):
            future.result(timeout=30)
        with pytest.raises((LinkLostError, UnreachableError), match="Dask"):
            bodies.square(2)()


def test_runs_go_on_with_a_scheduler_that_was_started_anew(own_cluster: DaskCluster, tmp_path: Path) -> None:
    from distributed import Client

    with Client(own_cluster.address, set_as_default=False) as client:
        scheduler = client.run_on_scheduler(os.getpid)
    path = tmp_path / "notes"
    with entangle.engine(address_of(own_cluster)):
        assert bodies.square(2)() == 4
        os.kill(scheduler, signal.SIGKILL)
        wait_until(lambda: not alive(scheduler))
        own_cluster.start_scheduler("again")
        worker = own_cluster.start_worker()
        assert bodies.square(3)() == 9
        # The new worker has our plugin; without it, Dask would run the body again.
        future = bodies.noted(str(path), 1, 5.0)(proc=True)
        wait_until(lambda: begun(path))
        os.kill(worker, signal.SIGKILL)
        own_cluster.start_worker()
        with pytest.raises(ProcessTerminatedException):
            future.result(timeout=60)
        assert len(begun(path)) == 1


PROGRAM = """
import sys, entangle
from entangle.tests.engines import graph_bodies as bodies
if sys.argv[2] == "block":
    with entangle.engine(sys.argv[1]):
        bodies.total(bodies.noted.starmap([(sys.argv[3], x, 0.2) for x in range(200)]))()
else:
    print(bodies.total(bodies.square.map(range(10)))(), bodies.pid()())
"""


def test_a_killed_caller_leaves_nothing_under_way(dask_cluster: DaskCluster, tmp_path: Path) -> None:
    from distributed import Client

    path = tmp_path / "notes"
    caller = subprocess.Popen([sys.executable, "-c", PROGRAM, address_of(dask_cluster), "block", str(path)])
    wait_until(lambda: len(begun(path)) >= 2)
    caller.kill()
    caller.wait()
    with Client(dask_cluster.address, set_as_default=False) as client:
        wait_until(lambda: not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
    assert len(begun(path)) < 200


def test_ctrl_c_ends_the_run(dask_cluster: DaskCluster, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    caller = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, address_of(dask_cluster), "block", str(path)], stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: len(begun(path)) >= 2)
    caller.send_signal(signal.SIGINT)
    _, said = caller.communicate(timeout=30)
    assert said.rstrip().endswith("KeyboardInterrupt")
    count = len(begun(path))
    time.sleep(0.6)
    assert len(begun(path)) <= count + 2


def test_a_whole_program_by_its_environment(dask_cluster: DaskCluster) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "", "program"],
        env={**os.environ, "ENTANGLE_ENGINE": address_of(dask_cluster)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    value, pid = done.stdout.split()
    assert value == "285", done.stderr
    assert int(pid) in dask_cluster.workers
    assert not done.stderr


def test_a_module_that_is_missing_there(dask_cluster: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("from entangle.process import process\n@process\ndef one():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here  # type: ignore[import-not-found, unused-ignore]

    with entangle.engine(address_of(dask_cluster)), pytest.raises(MissingModuleError, match=r"task 'one' needs the module 'only_here'"):
        only_here.one()()


def test_another_python_is_refused_before_anything_is_sent(dask_cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client

    asked = Client.get_versions

    def other(client: Any, *args: Any, **named: Any) -> Any:
        found = asked(client, *args, **named)
        next(iter(found["workers"].values()))["host"]["python"] = "3.9.2.final.0"
        return found

    monkeypatch.setattr(Client, "get_versions", other)
    with pytest.raises(UnfitPythonError, match=r"runs Python 3\.9\.2, and this is Python 3\."), entangle.engine(address_of(dask_cluster)):
        pass


def test_gpus_are_a_resource_of_workers(dask_cluster: DaskCluster) -> None:
    on_gpu = scheduler(gpus=1)(bodies.pid)
    with entangle.engine(address_of(dask_cluster)):
        with pytest.raises(OptionError, match=r'task .pid.: gpus=1, and no worker of .*--resources "GPU=1"'):
            on_gpu()()
        with_gpu = dask_cluster.start_worker("--resources", "GPU=1")
        try:
            pids = gather(*[on_gpu(bodies.square(x)) for x in range(4)], bodies.same(on_gpu()))()
        finally:
            os.kill(with_gpu, signal.SIGKILL)
            dask_cluster.workers.remove(with_gpu)
        assert set(pids) == {with_gpu}


def test_two_threads_with_two_engines(dask_cluster: DaskCluster, own_cluster: DaskCluster) -> None:
    import threading

    found: dict[int, set[int]] = {}

    def run(number: int, cluster: DaskCluster) -> None:
        with entangle.engine(address_of(cluster)):
            found[number] = {gather(*[bodies.pid(i) for i in range(4)])()[0] for _ in range(5)}

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate((dask_cluster, own_cluster))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] <= set(dask_cluster.workers)
    assert found[1] <= set(own_cluster.workers)
    assert alive(dask_cluster.workers[0])
