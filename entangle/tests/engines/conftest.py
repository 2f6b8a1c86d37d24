"""The engines that these tests share: the first test that needs one starts it, and it ends with the
test session. If one cannot be started, the test fails in CI, and is skipped elsewhere."""

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

#: Parts of the names of files whose tests use the Slurm cluster.
_ON_SLURM = ("slurm", "allocations", "behaviour_there", "examples_there")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the tests of one engine in one process. Each process starts what its tests need, and two
    Slurm clusters on one machine would use the same names of cgroups."""
    scheduling: Any = importlib.import_module("xdist.scheduler").LoadScopeScheduling

    class ByEngine(scheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            if "accounting" in nodeid:  # a cluster of its own, with other node names
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
