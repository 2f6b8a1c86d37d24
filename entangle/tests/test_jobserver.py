"""The GNU make jobserver: programs that tasks start keep to the budget."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from entangle.process import process

from . import bodies
from .callers import ROOT
from .evidence import notes
from .ways import missing

one = process(bodies.one)
add = process(bodies.add)


def test_make_runs_one_job_at_a_time(tmp_path: Path) -> None:
    """A `make -j8` of a task with one cookie runs one job at a time."""
    if shutil.which("make") is None:
        missing("make is not installed")
    from entangle.scheduler import scheduler

    log = tmp_path / "log"
    targets = " ".join("abcdefgh")
    (tmp_path / "Makefile").write_text(
        f"all: {targets}\n{targets}:\n\t@echo start $@ >> {log}\n\t@sleep 0.02\n\t@echo end $@ >> {log}\n.PHONY: all {targets}\n"
    )

    @scheduler(cpus=1)
    @process
    def build(folder: str, *arguments: str) -> str:
        done = subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    for arguments in (["-j8"], ["-j", "8"], []):
        log.unlink(missing_ok=True)
        add(build(str(tmp_path), *arguments), "")()
        running = most = 0
        lines = notes(log)
        assert len(lines) == 16
        for what, _ in lines:
            running += 1 if what == "start" else -1
            most = max(most, running)
        assert most == 1, f"make {' '.join(arguments)} ran {most} jobs at once"


def test_somebody_elses_jobserver_is_left_alone(tmp_path: Path) -> None:
    """If the caller is itself a job of make, its tokens are neither lost nor duplicated."""
    if shutil.which("make") is None:
        missing("make is not installed")
    (tmp_path / "job.py").write_text(
        "from entangle.process import process\n"
        "def one():\n    return 1\n"
        "if __name__ == '__main__':\n    one = process(one)\n    print(sum(one()() for _ in range(3)))\n"
    )
    (tmp_path / "Makefile").write_text(f"all: a b c\na b c:\n\t+@{sys.executable} job.py\n.PHONY: all a b c\n")
    environment = {**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(tmp_path)}
    done = subprocess.run(["make", "-j2"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "3", "3"]
    assert done.stderr == ""
