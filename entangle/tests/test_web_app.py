"""A web app keeps answering while its workers are killed: a short round of the drill program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .callers import ROOT
from .ways import installed

PROGRAM = Path(ROOT) / "benchmarks" / "web_app.py"


@pytest.mark.skipif(not PROGRAM.exists(), reason="only a checkout has the benchmarks")
def test_no_request_fails_while_workers_are_killed() -> None:
    for package in ("fastapi", "uvicorn", "httpx"):
        installed(package)
    command = [sys.executable, "-m", "benchmarks.web_app", "--only=entangle", "--peace=0.5", "--seconds=4", "--every=0.8", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout + done.stderr
    peace, trouble = map(json.loads, done.stdout.splitlines())
    assert peace["right"] == peace["sent"] > 0
    assert trouble["right"] == trouble["sent"] > 0
    assert trouble["killed"] > 0
