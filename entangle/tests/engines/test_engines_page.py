"""The programs of docs/engines.md and docs/how_to/dask_and_ray.md do what is shown."""

from __future__ import annotations

from pathlib import Path

from ..services.dask_cluster import DaskCluster
from ..services.ray_head import RayHead
from ..shown_blocks import documentation
from ..shown_programs import programs_of, run_shown

documentation()
PAGE, HOW_TO = "engines.md", "how_to/dask_and_ray.md"
SCHEDULER = "dask://scheduler:8786"


def test_every_program_is_run() -> None:
    # The program for Slurm is run by test_slurm_jobs.py, which has the cluster.
    assert list(programs_of(PAGE)) == ["on_pool.py", "on_dask.py", "on_a_cluster.py", "on_slurm.py"]
    assert list(programs_of(HOW_TO)) == ["on_dask_or_ray.py"]


def test_on_a_pool(tmp_path: Path) -> None:
    run_shown(PAGE, "on_pool.py", tmp_path)


def test_on_the_executor_of_dask(dask_cluster: DaskCluster, tmp_path: Path) -> None:
    run_shown(PAGE, "on_dask.py", tmp_path, {"tcp://scheduler:8786": dask_cluster.address})


def test_a_graph_on_dask(dask_cluster: DaskCluster, tmp_path: Path) -> None:
    run_shown(PAGE, "on_a_cluster.py", tmp_path, {SCHEDULER: dask_cluster.address.replace("tcp", "dask")})
    run_shown(HOW_TO, "on_dask_or_ray.py", tmp_path, {SCHEDULER: dask_cluster.address.replace("tcp", "dask")})


def test_a_graph_on_ray(ray_head: RayHead, tmp_path: Path) -> None:
    run_shown(PAGE, "on_a_cluster.py", tmp_path, {SCHEDULER: ray_head.client})
    run_shown(HOW_TO, "on_dask_or_ray.py", tmp_path, {SCHEDULER: ray_head.client})
