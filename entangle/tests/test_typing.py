"""mypy and pyright agree with the files under `typing/`, and find every mistake in them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .callers import ROOT

FOLDER = Path(__file__).parent / "typing"


def check(tmp_path: Path, *command: str) -> None:
    """Run a type checker from the project's root, whose settings it reads."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(180)
def test_mypy(tmp_path: Path) -> None:
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed; `make lint` has it")
    check(tmp_path, "mypy", "--strict", "--warn-unused-ignores", "--cache-dir", str(tmp_path / "cache"), str(FOLDER))


@pytest.mark.timeout(180)
def test_pyright(tmp_path: Path) -> None:
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed; `make lint` has it")
    check(tmp_path, "pyright", "--pythonpath", sys.executable, str(FOLDER))
