"""The promises of a run, kept at a service: each call is a process that something else starts."""

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

#: The tests for which the path of a call matters. A job takes a second. Values, errors and
#: functions are sent as to an agent, and the tests of agents cover those.
AT_SERVICES = (
    "test_a_nested_expression_gives_its_value",
    "test_the_same_call_twice_is_one_node",
    "test_a_huge_value",
    "test_a_closure_over_a_task",
    "test_modules_beside_the_caller_can_be_imported",
    "test_an_error_tells_the_call_path_and_where_it_ran",
    "test_an_error_that_cannot_be_pickled",
    "test_a_value_that_cannot_be_pickled",
    "test_a_body_that_ends_its_process",
    "test_retry",
    "test_a_deadline_kills_the_body_and_what_it_started",
    "test_an_error_deep_in_nested_runs",
    "test_await",
    "test_several_runs_at_once",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One mailbox for all tests, so that the code in it is written once."""
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


for _name in AT_SERVICES:
    globals()[_name] = getattr(test_behaviour, _name)
