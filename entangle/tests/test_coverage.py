"""coverage.py sees the lines that bodies run in workers, if it is told to measure subprocesses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .callers import Caller
from .ways import installed

TASKS = """
from entangle.process import process

@process
def one(x):
    y = x + 1
    return y

@process
def add(a, b):
    total = a + b
    return total
"""


@pytest.mark.parametrize("way", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.drill)])
def test_lines_of_bodies_are_measured(tmp_path: Path, way: str) -> None:
    """`patch = subprocess` suffices, as for any program that starts others."""
    installed("coverage")
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / ".coveragerc").write_text("[run]\nparallel = true\npatch = subprocess\n")
    source = "from tasks import add, one\nif __name__ == '__main__':\n    print(add(one(1), one(2))())"
    caller = Caller(tmp_path, source, ENTANGLE_START=way, PYTHONWARNINGS="default")
    measure = [sys.executable, "-m", "coverage"]
    told = {"cwd": tmp_path, "env": caller.environment, "capture_output": True, "text": True, "timeout": 50}
    ran = subprocess.run([*measure, "run", str(caller.script)], **told)  # type: ignore[call-overload]
    assert ran.stdout == "5\n", ran.stderr
    for command in (["combine", "-q"], ["json", "-q", "-o", "found.json"]):
        done = subprocess.run([*measure, *command], **told)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout + done.stderr
    files = json.loads((tmp_path / "found.json").read_text())["files"]
    assert files["tasks.py"]["missing_lines"] == []
    assert caller.files() == []
