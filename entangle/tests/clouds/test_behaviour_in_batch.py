"""The promises of a run, kept in jobs of AWS Batch: the tests for which the path of a call matters,
without those whose bodies share a directory or send calls to Batch themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from entangle._services.caller import open_watchers
from entangle.aws import aws, batch

from .. import test_behaviour
from ..services.emulators import Emulator, JobQueue
from ..ways import Way

IN_BATCH = (
    "test_a_nested_expression_gives_its_value",
    "test_a_huge_value",
    "test_modules_beside_the_caller_can_be_imported",
    "test_an_error_tells_the_call_path_and_where_it_ran",
    "test_an_error_that_cannot_be_pickled",
    "test_a_value_that_cannot_be_pickled",
    "test_a_body_that_ends_its_process",
    "test_await",
)


@pytest.fixture(scope="module", autouse=True)
def _ends() -> Iterator[None]:
    """One mailbox for all tests, so that the code in it is uploaded once."""
    yield
    open_watchers.close_all()


@pytest.fixture(params=[Way("in-batch", where=lambda task: task, whole=False)], ids=lambda way: way.name)
def way(request: pytest.FixtureRequest, aws_environment: Emulator, bucket: str, job_queue: JobQueue, test_image: str) -> Way:
    """In moto's Batch."""

    def in_batch(task: Any) -> Any:
        return aws(bucket=bucket)(batch(queue=job_queue.name, image=test_image, memory=512)(task))

    return Way(request.param.name, where=in_batch, whole=False)


for _name in IN_BATCH:
    globals()[_name] = getattr(test_behaviour, _name)
