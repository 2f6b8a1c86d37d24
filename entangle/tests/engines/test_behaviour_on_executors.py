"""The promises of a run, kept with executors."""

from __future__ import annotations

import pytest

from .. import test_behaviour
from ..ways import WAYS_OF_ENGINES, Way


@pytest.fixture(params=WAYS_OF_ENGINES, ids=lambda way: way.name)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    """Each of these ways, one after the other."""
    chosen: Way = request.param
    monkeypatch.setenv("ENTANGLE_START", chosen.start)
    return chosen


for _name, _test in vars(test_behaviour).items():
    if _name.startswith("test_"):
        globals()[_name] = _test
