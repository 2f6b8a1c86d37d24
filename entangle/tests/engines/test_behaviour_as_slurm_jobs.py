"""The promises of a run, kept by Slurm jobs: one job for each call."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle._services.caller import open_watchers
from entangle.slurm import slurm as slurm_task

from .. import test_behaviour
from ..services.slurm_cluster import SlurmCluster
from ..ways import Way
from .test_behaviour_at_a_service import AT_SERVICES


@pytest.fixture(scope="module")
def folder(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One mailbox for all tests, so that the code in it is written once."""
    made = tmp_path_factory.mktemp("mailbox")
    yield made
    open_watchers.close_all(str(made))


@pytest.fixture(params=[Way("as-slurm-jobs", where=lambda task: task, whole=False)], ids=lambda way: way.name)
def way(request: pytest.FixtureRequest, folder: Path) -> Way:
    """As jobs with small requests, so that many run at once."""

    def as_a_job(task: Any) -> Any:
        return slurm_task(time=60, memory="300M", python=sys.executable, detached=True, mailbox=str(folder))(task)

    return Way(request.param.name, where=as_a_job, whole=False)


for _name in AT_SERVICES:
    globals()[_name] = getattr(test_behaviour, _name)
