"""Slurm with accounting: the limits of an account, and `sacct` for jobs that the controller has
forgotten."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle import gather
from entangle._remote.caller import allocations as pools
from entangle._remote.transport.slurm_queue import why_ended
from entangle._services.caller import open_watchers, slurm_jobs
from entangle._testing import service_bodies as bodies
from entangle.errors import ProcessTerminatedException
from entangle.slurm import slurm as slurm_task

from ..evidence import wait_until
from ..services import slurm_cluster as slurm_clusters
from ..services.slurm_cluster import SlurmCluster
from ..ways import missing

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def accounting() -> Iterator[SlurmCluster]:
    """A cluster of its own beside that of the other tests, with other node names."""
    if lacking := slurm_clusters.what_is_missing(accounting=True):
        missing(lacking)
    with slurm_clusters.slurm_cluster(nodes=("a1",), accounting=True) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _none_is_left(accounting: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(slurm_jobs, "_sizes", [])  # this cluster has other limits
    yield
    pools.end_all()
    open_watchers.close_all(str(tmp_path))
    accounting.run("scancel", "--user=root")
    wait_until(lambda: not accounting.jobs(), 30, "a job is still there")


def detached(folder: Path, **options: Any) -> Any:
    """@slurm(detached=True) with this Python."""
    stated = {"time": 60, "memory": "200M", "python": sys.executable, "mailbox": str(folder)}
    return slurm_task(detached=True, **{**stated, **options})


def until_it_is_there(path: str) -> str:
    """Wait until a file exists. Return the job's id."""
    wait_until(lambda: os.path.exists(path), 120, "nobody made the file")
    return os.environ["SLURM_JOB_ID"]


def test_more_calls_than_an_account_may_have_jobs_or_an_array_may_have_tasks(accounting: SlurmCluster, tmp_path: Path) -> None:
    """The account `few` may have three jobs, and an array may have seven tasks."""
    assert detached(tmp_path, account="few")(bodies.same).map(range(8))() == list(range(8))
    assert detached(tmp_path)(bodies.same).map(range(12))() == list(range(12))


def test_a_limit_of_the_account_is_why_jobs_are_pending(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The account `one` may run one job at a time."""
    paths = [tmp_path / name for name in ("as-jobs", "in-allocations")]
    said: list[str] = []

    def release() -> None:
        for path in paths:
            wait_until(lambda: "AssocMaxJobsLimit" in _read_on(capfd, said), 120, "nobody said why it is pending")
            path.touch()
            said.clear()

    releasing = threading.Thread(target=release)
    releasing.start()
    try:
        assert len(set(detached(tmp_path, account="one")(until_it_is_there).map([str(paths[0])] * 2)())) == 2
        there = slurm_task(time=300, memory="400M", python=sys.executable, account="one", jobs=2)(until_it_is_there)
        gather(there(str(paths[1])), there(str(paths[1])))()
    finally:
        for path in paths:
            path.touch()
        releasing.join()


def _read_on(capfd: pytest.CaptureFixture[str], said: list[str]) -> str:
    said.append(capfd.readouterr().err)
    return "".join(said)


@pytest.fixture
def forgetful(accounting: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`squeue` and `scontrol` no longer know any job, as happens long after its end."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, refusal in (("squeue", "slurm_load_jobs error: Invalid job id specified"), ("scontrol", "Invalid job id specified")):
        program = folder / name
        program.write_text(f"#!/bin/sh\necho '{refusal}' >&2\nexit 1\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def eat(megabytes: int) -> int:
    """Allocate memory, and write to it."""
    return len(os.urandom(megabytes << 20))


@pytest.mark.usefixtures("forgetful")
def test_what_the_controller_has_forgotten_accounting_knows(accounting: SlurmCluster, tmp_path: Path) -> None:
    there = detached(tmp_path)
    three, killed, memory = gather(there(bodies.same)(3), there(bodies.dying)(0.0), there(eat)(500), return_exceptions=True)()
    assert three == 3
    for error, why in ((killed, "no outcome: FAILED"), (memory, "no outcome: OUT_OF_MEMORY: it needed more memory than it had")):
        assert isinstance(error, ProcessTerminatedException)
        assert why in str(error)
    (job,) = {error.args[0].partition("its job ")[2].partition("_")[0] for error in (killed, memory)}
    assert why_ended(f"{job}_1").startswith("FAILED")
