"""Every example runs as the documentation says, ends well, and prints something worth reading."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import entangle.examples

from .callers import ROOT
from .services import given
from .services.hosts import what_is_missing
from .ways import missing

#: What each example's output must show, as regular expressions.
TELLING = {
    "dataflowexample": [r"told: emit", r"told: greet", r"leaves: \(27, 'ADA LOVELACE!', 12\)", r"again"],
    "dataflowexample2": [r"most frequent", r"process \d+", r"thread"],
    "lambdaexample": [r"is even", r"is odd", r"ends here"],
    "listexample": [r"3 ways", r"1 way\b", r"0 ways"],
    "listexample2": [r"invoice.*archived", r"urgent", r"discarded"],
    "streamexample": [r"window", r"rows", r"skipped", r"results"],
    "aiexample": [r"337 parameters", r"accuracy +\d"],
    "dockerexample": [r"here .*Python 3", r"container .*Python 3", r"3 calls in 1 container"],
    "hosts": [r"port \d+: Python 3"],
    "sshdataflowexample": [r"emit +gave", r"leaves are", r"hello > emit@here > printx@\d+ > printz@\d+ > echo@\d+"],
    "sshschedulerexample": [r"three +on", r"add +on", r"result is 5"],
    "example": [r"add", r"process \d+", r"result is 10"],
    "example2": [r"(?i)server", r"\d+"],
    "example3": [r"(?i)gpu|cpu", r"\d"],
    "example4": [r"(?i)struck out", r"78,?498"],
    "example5": [r"(?i)area", r"\d\.\d"],
    "example6": [r"(?i)process", r"\d+"],
    "example_graph": [r'"add": \[', r'"6": \[\]', r'"subtract"'],
    "example_graph_future": [r"pending", r"called back", r"done"],
    "example_with_future": [r"called back with 9592", r"9592"],
    "retry_example": [r"done on attempt 3", r"ProcessRetryException", r"attempt 4"],
    "schedulerexample": [r"(?i)cpu", r"\d"],
    "schedulerexample2": [r"(?i)cpu", r"\d"],
    "timeoutexample": [r"ProcessTimeoutException|took|longer", r"ThreadTimeoutException|thread"],
}

#: What runs in containers, and what on other hosts.
CONTAINED = ("aiexample", "dockerexample")
#: What installs packages in its container, from an index that is elsewhere.
INSTALLING = ("aiexample",)
FAR = ("hosts", "sshdataflowexample", "sshschedulerexample")

FOUND = sorted(module.name for module in pkgutil.iter_modules(entangle.examples.__path__))


def run(name: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an example as a user would."""
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", f"entangle.examples.{name}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(runs), **environment},
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_every_example_is_known_here() -> None:
    assert sorted(TELLING) == FOUND


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.timeout(120)
def test_example(name: str, tmp_path: Path) -> None:
    if name in FAR and (lacking := what_is_missing()):
        missing(lacking)
    if name in INSTALLING:
        given.packages()
    done = run(name, tmp_path, **({"ENTANGLE_IMAGE": given.image()} if name in CONTAINED else {}))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for wanted in TELLING.get(name, []):
        assert re.search(wanted, done.stdout), f"{wanted!r} is not in what it printed:\n{done.stdout}"
    assert [path.name for path in (tmp_path / "runs").glob("entangle-*/*")] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]  # an example leaves no files about


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
@pytest.mark.parametrize("name", ["example", "retry_example", "example5"])
def test_example_without_fork(name: str, start: str, tmp_path: Path) -> None:
    done = run(name, tmp_path, ENTANGLE_START=start)
    assert done.returncode == 0, done.stderr
    for wanted in TELLING[name]:
        assert re.search(wanted, done.stdout), done.stdout


@pytest.mark.parametrize("name", FOUND)
def test_an_example_says_what_it_shows(name: str) -> None:
    source = Path(entangle.examples.__path__[0], f"{name}.py").read_text(encoding="utf-8")
    assert source.startswith('"""')
    assert '__name__ == "__main__"' in source
