"""The promises of a run, kept by whole graphs on Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import entangle

from .. import test_behaviour
from ..services.ray_head import RayHead
from ..ways import Way

#: A head takes 40 s to notice that its prestarted server for the first client does not start.
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def engine(ray_head: RayHead) -> Iterator[None]:
    """All runs of these tests are on Ray, over one connection."""
    with entangle.engine(ray_head.client):
        yield


@pytest.fixture(params=[Way("on-ray", where=lambda task: task, whole=False)], ids=lambda way: way.name)
def way(request: pytest.FixtureRequest, engine: None) -> Way:
    """On Ray."""
    chosen: Way = request.param
    return chosen


#: Left out: workers have the program's modules, or the error names a missing one. A body that ends
#: its process ends a worker there; the tests of killed workers cover that.
_NOT_THERE = ("test_modules_beside_the_caller_can_be_imported", "test_a_body_that_ends_its_process")

for _name, _test in vars(test_behaviour).items():
    if _name.startswith("test_") and _name not in _NOT_THERE:
        globals()[_name] = _test
