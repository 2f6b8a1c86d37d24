"""The engines that these tests share: each is started when the first test wants it, and ends with
the test session. What cannot be started fails in CI; elsewhere the test is skipped."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from ..services import dask_cluster as dask_clusters
from ..services import ray_head as ray_heads
from ..services import slurm_cluster as slurm_clusters
from ..services.dask_cluster import DaskCluster
from ..services.ray_head import RayHead
from ..services.slurm_cluster import SlurmCluster
from ..ways import missing

#: The files whose tests want the Slurm cluster, by what their names have in them.
_ON_SLURM = ("slurm", "allocations", "behaviour_there", "examples_there")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have the tests of one engine in one process: each process starts what its tests want, and two
    Slurm clusters on one machine would share the names of cgroups."""
    scheduling: Any = importlib.import_module("xdist.scheduler").LoadScopeScheduling

    class ByEngine(scheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            if "accounting" in nodeid:  # a cluster of its own, whose nodes have other names
                return "accounting"
            if any(part in nodeid for part in _ON_SLURM):
                return "slurm"
            return "ray" if "ray" in nodeid else "others"

    return ByEngine(config, log)


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A Slurm cluster of two nodes; SLURM_CONF names it."""
    if lacking := slurm_clusters.what_is_missing():
        missing(lacking)
    with slurm_clusters.slurm_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def dask_cluster() -> Iterator[DaskCluster]:
    """A Dask scheduler with two workers."""
    if lacking := dask_clusters.what_is_missing():
        missing(lacking)
    with dask_clusters.dask_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """A Ray head."""
    if lacking := ray_heads.what_is_missing():
        missing(lacking)
    with ray_heads.ray_head() as head:
        yield head
