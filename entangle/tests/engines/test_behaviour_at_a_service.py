"""The promises of a run, kept at a service: each call is a process that somebody else starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle._services.caller import open_watchers
from entangle.service import service

from .. import test_behaviour
from ..local_jobs import LocalJobs
from ..ways import Way


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One mailbox for all: the code that lies in it is made once."""
    made = tmp_path_factory.mktemp("mailbox")
    yield made
    open_watchers.close_all(str(made))


@pytest.fixture(params=[Way("at-a-service", where=lambda task: task, whole=False)], ids=lambda way: way.name)
def way(request: pytest.FixtureRequest, folder: Path) -> Way:
    """At the service of the documentation."""
    jobs = LocalJobs(str(folder), jobs=8)

    def at_a_service(task: Any) -> Any:
        return service(jobs, mailbox=str(folder))(task)

    return Way(request.param.name, where=at_a_service, whole=False)


for _name, _test in vars(test_behaviour).items():
    if _name.startswith("test_"):
        globals()[_name] = _test
