"""The engines of these tests can be started, and each does some work without entangle."""

from __future__ import annotations

import subprocess
import sys

from ..evidence import wait_until
from ..services.dask_cluster import DaskCluster
from ..services.ray_head import RayHead
from ..services.slurm_cluster import SlurmCluster


def _said(*command: str) -> list[str]:
    """The words that a program prints. It must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_slurm_runs_a_job_on_each_node(slurm: SlurmCluster) -> None:
    assert sorted(_said("srun", "-N2", "sh", "-c", "echo $SLURMD_NODENAME")) == ["n1", "n2"]
    wait_until(lambda: not slurm.jobs(), 20, "the job is still listed")


def test_slurm_keeps_memory_limits(slurm: SlurmCluster) -> None:
    body = "x = bytearray(300 << 20); import time; time.sleep(20)"
    command = ["srun", "--mem=60", sys.executable, "-c", body]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Out Of Memory" in done.stderr or "memory limit" in done.stderr


def test_dask_runs_a_function(dask_cluster: DaskCluster) -> None:
    program = f"from distributed import Client\nwith Client({dask_cluster.address!r}) as c: print(c.submit(sum, [1, 2]).result())"
    assert _said(sys.executable, "-c", program) == ["3"]


def test_ray_runs_a_function(ray_head: RayHead) -> None:
    program = (
        f"import ray\nray.init({ray_head.address!r}, log_to_driver=False, logging_level='error')\n"
        "print(ray.get(ray.remote(lambda a, b: a + b).remote(1, 2)))"
    )
    assert _said(sys.executable, "-c", program) == ["3"]
