"""Cookies: how many a process tree has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from entangle.cookies import available_cpus, budget_of, cpu_quota

from .groups import control_group


def quota_of(tmp_path: Path, membership: str, files: dict[str, str]) -> float | None:
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "membership").write_text(membership)
    return cpu_quota(str(tmp_path / "groups"), str(tmp_path / "membership"))


def test_no_limit_is_no_quota(tmp_path: Path) -> None:
    assert quota_of(tmp_path, "0::/\n", {"cpu.max": "max 100000\n"}) is None
    assert cpu_quota(str(tmp_path), str(tmp_path / "no such file")) is None


def test_a_container_sees_its_quota_at_the_top(tmp_path: Path) -> None:
    assert quota_of(tmp_path, "0::/\n", {"cpu.max": "150000 100000\n"}) == 1.5
    assert quota_of(tmp_path, "0::/../../docker/abc\n", {"cpu.max": "150000 100000\n"}) == 1.5


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}
    assert quota_of(tmp_path, "0::/a/b\n", files) == 3


def test_version_1(tmp_path: Path) -> None:
    files = {"cpu/a/cpu.cfs_quota_us": "50000\n", "cpu/a/cpu.cfs_period_us": "100000\n", "cpu/cpu.cfs_quota_us": "-1\n"}
    assert quota_of(tmp_path, "4:cpu,cpuacct:/a\n3:memory:/a\n", files) == 0.5


def test_a_broken_file_limits_nothing(tmp_path: Path) -> None:
    assert quota_of(tmp_path, "0::/\n", {"cpu.max": ""}) is None


@pytest.fixture
def half_a_cpu() -> Iterator[Path]:
    """A control group that gives half of a CPU's time."""
    places = {"/sys/fs/cgroup": {"cpu.max": "50000 100000"}, "/sys/fs/cgroup/cpu": {"cpu.cfs_quota_us": "50000"}}
    with control_group(places) as group:
        yield group


def test_a_tree_under_a_real_quota_keeps_to_it(half_a_cpu: Path) -> None:
    assert budget_of(available_cpus()) >= 1
    source = (
        "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "from entangle.cookies import budget_of, cpu_quota; print(cpu_quota(), budget_of([0, 1, 2, 3]))"
    )
    done = subprocess.run([sys.executable, "-c", source, str(half_a_cpu)], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("0.5 1\n", "")
