"""The error of a worker that the kernel's OOM killer killed says so."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from entangle._run.memory_kills import MemoryKills

from .callers import ROOT
from .evidence import wait_until

PROGRAM = """
import os, sys, signal
from entangle.executor import Executor
from entangle.process import process

def greedy():
    return len(bytearray(os.urandom(1 << 20) * 300))

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    for function in (killed, greedy, killed):
        try:
            process(function)()()
        except Exception as error:
            print(type(error).__name__, [note for note in error.__notes__ if "memory" in note])
    with Executor(1) as executor:
        print(executor.submit(greedy).exception().__notes__)
"""


def _as_version(number: int, folder: Path, kills: int) -> tuple[str, str]:
    """The files of a control group as the kernel writes them."""
    groups, membership = folder / "groups", folder / "membership"
    ours = groups / ("memory/job_7" if number == 1 else "job_7")
    ours.mkdir(parents=True, exist_ok=True)
    membership.write_text("12:cpu,cpuacct:/other\n4:memory:/job_7\n0::/\n" if number == 1 else "0::/job_7\n")
    if number == 1:
        (ours / "memory.oom_control").write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
        (ours / "memory.limit_in_bytes").write_text(f"{150 << 20}\n")
    else:
        (ours / "memory.events").write_text(f"low 0\nhigh 0\nmax 5\noom 2\noom_kill {kills}\noom_group_kill 0\n")
        (ours / "memory.max").write_text("max\n")
    return str(groups), str(membership)


@pytest.mark.parametrize("version", [1, 2])
def test_each_kill_explains_one_death(version: int, tmp_path: Path) -> None:
    kills = MemoryKills(*_as_version(version, tmp_path, 3))
    assert "or from a user" in kills.why()  # kills before ours explain no death of ours
    _as_version(version, tmp_path, 5)
    for _ in range(2):
        assert kills.why().startswith("out of memory: the kernel has killed it")
        _as_version(version, tmp_path, 5)
    assert "or from a user" in kills.why()
    _as_version(version, tmp_path, 6)
    assert ("may use 150 MiB" in kills.why()) == (version == 1)


def test_no_control_groups(tmp_path: Path) -> None:
    assert "or from a user" in MemoryKills(str(tmp_path / "none"), str(tmp_path / "nor-this")).why()


def test_a_worker_in_a_small_control_group(tmp_path: Path) -> None:
    top = Path("/sys/fs/cgroup/memory")
    try:
        group = Path(tempfile.mkdtemp(prefix="entangle-test-", dir=top if top.is_dir() else top.parent))
        limit = next(group / name for name in ("memory.limit_in_bytes", "memory.max") if (group / name).exists())
        limit.write_text(str(200 << 20))
        for name, most in (("memory.memsw.limit_in_bytes", 200 << 20), ("memory.swap.max", 0)):
            if (group / name).exists():  # otherwise it would swap
                (group / name).write_text(str(most))
    except (OSError, StopIteration):
        pytest.skip("no control group with a limit on memory can be made here")
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    try:
        done = subprocess.run(
            ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), sys.executable, str(script)],
            env={**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RECORD": "0"},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), 20, "something is left in the control group")
        group.rmdir()
    by_user, by_memory, by_user_again, in_executor = done.stdout.splitlines()
    for line in (by_user, by_user_again):
        assert "or from a user" in line
    for line in (by_memory, in_executor):
        assert (
            "out of memory: the kernel has killed it, or another process of its control group; this group of processes may use 200" in line
        )
