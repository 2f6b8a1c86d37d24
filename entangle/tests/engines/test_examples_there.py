"""Examples that need an engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..evidence import wait_until
from ..services import given
from ..services.hosts import what_is_missing
from ..services.slurm_cluster import SlurmCluster
from ..test_examples import TELLING, run
from ..ways import installed, missing


@pytest.mark.timeout(120)
def test_one_graph_over_four_places(slurm: SlurmCluster, tmp_path: Path) -> None:
    if lacking := what_is_missing():
        missing(lacking)
    installed("docker")
    done = run("mixedplacesexample", tmp_path, ENTANGLE_IMAGE=given.image())
    assert done.returncode == 0, done.stderr
    for wanted in TELLING["mixedplacesexample"]:
        assert re.search(wanted, done.stdout), f"{wanted!r} is not in what it printed:\n{done.stdout}"
    wait_until(lambda: not slurm.jobs(), 20, "the example has left a job behind")
