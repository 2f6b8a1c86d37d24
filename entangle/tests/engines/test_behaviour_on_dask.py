"""The promises of a run, kept by whole graphs on Dask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import entangle

from .. import test_behaviour
from ..services.dask_cluster import DaskCluster
from ..ways import Way


@pytest.fixture(params=[Way("on-dask", where=lambda task: task, whole=False)], ids=lambda way: way.name)
def way(request: pytest.FixtureRequest, dask_cluster: DaskCluster) -> Iterator[Way]:
    """All runs of the test are on Dask."""
    chosen: Way = request.param
    with entangle.engine(dask_cluster.address.replace("tcp://", "dask://")):
        yield chosen


#: Left out: workers have the program's modules, or the error names a missing one. A body that ends
#: its process ends a worker there; the tests of killed workers cover that.
_NOT_THERE = ("test_modules_beside_the_caller_can_be_imported", "test_a_body_that_ends_its_process")

for _name, _test in vars(test_behaviour).items():
    if _name.startswith("test_") and _name not in _NOT_THERE:
        globals()[_name] = _test
