"""docs/how_to/deployment.md: docker compose and systemd take the files that the page shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .shown_blocks import documentation, read
from .ways import missing

PAGE = "how_to/deployment.md"


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """The files of the page, by their names."""
    return {block.title: block.code for block in read(documentation() / PAGE).blocks if block.title is not None}


def _compose() -> list[str]:
    """The command of compose: docker's plugin, or the older program."""
    plugin = ["docker", "compose"]
    if shutil.which("docker") and not subprocess.run([*plugin, "version"], capture_output=True, timeout=30, check=False).returncode:
        return plugin
    if shutil.which("docker-compose") is None:
        missing("docker compose: make services; elsewhere, the package docker-compose-plugin")
    return ["docker-compose"]


def test_compose_takes_its_file(shown: dict[str, str], tmp_path: Path) -> None:
    for name in ("compose.yaml", "Dockerfile"):
        (tmp_path / name).write_text(shown[name], encoding="utf-8")
    command = [*_compose(), "-f", "compose.yaml", "config"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ENTANGLE_RECORD_DIR: /state/records" in done.stdout


def test_systemd_takes_its_unit(shown: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        missing("systemd-analyze, of the package systemd: make services")
    unit = tmp_path / "work.service"
    there = shown["work.service"].replace("/opt/work/venv/bin/python", sys.executable)
    unit.write_text(there, encoding="utf-8")
    # It ends with 0 where it ignores a line, and says so.
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
