"""The promises of a run, kept in an allocation of Slurm."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from entangle._remote.caller import allocations as pools
from entangle._remote.transport.slurm import SlurmStep, SlurmTransport
from entangle._remote.transport.slurm_allocation import Allocation
from entangle.process import process
from entangle.slurm import Slurm
from entangle.task import decorate

from .. import test_behaviour
from ..services.slurm_cluster import SlurmCluster
from ..ways import Way


class KeptStep(SlurmStep):
    """An agent that stays for all tests that run in this way."""

    ends_with_run = False

    @property
    def key(self) -> str:
        """One key, since there is one agent."""
        return "kept in Slurm"


class KeptAllocations(SlurmTransport):
    """Allocations that outlive runs, so that the tests need not each wait for one."""

    ends_with_run = False

    def step(self, allocation: Allocation, node: int) -> SlurmStep:
        """The transport to the agent."""
        return KeptStep(allocation, node)


@functools.lru_cache(maxsize=1)
def _options() -> KeptAllocations:
    return KeptAllocations(time=900, python=sys.executable, cpus=2, memory="900M")


def in_slurm(task: Any) -> Any:
    """A task that runs in an allocation."""
    return decorate("slurm", task, Slurm(_options(), None))


def warm_slurm() -> str:
    """Start the agent. Return the key under which it is kept."""
    in_slurm(process(abs))(-1)()
    return "kept in Slurm"


@pytest.fixture(params=[Way("in-slurm", where=in_slurm, whole=False, warm=warm_slurm)], ids=lambda way: way.name)
def way(request: pytest.FixtureRequest, slurm: SlurmCluster) -> Way:
    """In an allocation of Slurm."""
    chosen: Way = request.param
    return chosen


@pytest.fixture(scope="module", autouse=True)
def _ends(slurm: SlurmCluster) -> Iterator[None]:
    yield
    pools.end_all()


for _name, _test in vars(test_behaviour).items():
    if _name.startswith("test_"):
        globals()[_name] = _test
