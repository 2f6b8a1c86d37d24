"""mypy and pyright accept the right lines of the files under `typing/`, and refuse the wrong ones,
which end in `# error`."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .callers import ROOT

FOLDER = Path(__file__).parent / "typing"
FILES = sorted(path for path in FOLDER.glob("*.py") if path.name != "__init__.py")

#: The arguments of mypy, and the modes of pyright.
MYPY = ("--strict", "--python-version", "3.10")
PYRIGHT = ("strict", "basic")


def need(checker: str) -> None:
    """Skip the test if this type checker is missing; in CI it must be installed."""
    if importlib.util.find_spec(checker) is None:
        what = f"{checker} is not installed; `make lint` installs it, or: pip install 'py-entangle[dev]'"
        if os.environ.get("CI"):
            pytest.fail(f"in CI this must be there: {what}")
        pytest.skip(what)


def wrong_lines() -> set[tuple[str, int]]:
    """The lines that must be refused, as pairs of file name and number."""
    return {
        (path.name, number)
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if line.endswith("# error")
    }


def compared(found: dict[tuple[str, int], list[str]]) -> list[str]:
    """What a checker refused wrongly, and what it accepted wrongly."""
    wrong = wrong_lines()
    falsely = [f"{name}:{line} is right, and refused: {told}" for (name, line), told in sorted(found.items()) if (name, line) not in wrong]
    return falsely + [f"{name}:{line} is wrong, and not refused" for name, line in sorted(wrong - set(found))]


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """The files in a directory of their own, so that entangle is a library to them, as for
    users."""
    for path in FILES:
        shutil.copy(path, tmp_path)
    return tmp_path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MYPYPATH": ROOT, "PYTHONPATH": ROOT}
    names = [path.name for path in FILES]
    return subprocess.run(
        [sys.executable, "-m", *command, *names], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )


@pytest.mark.lint
@pytest.mark.timeout(300)
def test_mypy(copies: Path) -> None:
    need("mypy")
    done = run(copies, "mypy", *MYPY, "--follow-imports=silent", "--no-error-summary", "--cache-dir", str(copies / "cache"))
    found: dict[tuple[str, int], list[str]] = {}
    for name, line, told in re.findall(r"^(\w+\.py):(\d+): error: (.*)$", done.stdout, re.MULTILINE):
        found.setdefault((name, int(line)), []).append(told)
    assert found, done.stdout + done.stderr
    assert not compared(found), "\n".join(compared(found))


@pytest.fixture(scope="module")
def refused_by_pyright(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[tuple[str, int], list[str]]]:
    """What pyright refuses in each mode. Both modes share one call, because reading entangle takes
    long."""
    need("pyright")
    folder = tmp_path_factory.mktemp("pyright")
    for mode in PYRIGHT:
        (folder / mode).mkdir()
        for path in FILES:
            shutil.copy(path, folder / mode)
    settings = {
        "typeCheckingMode": "basic",
        "strict": ["strict"],
        "pythonVersion": "3.10",
        "extraPaths": [ROOT],
        "reportUnusedExpression": False,
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
    )
    try:
        told: Any = json.loads(done.stdout)["generalDiagnostics"]
    except ValueError:
        pytest.fail(done.stdout + done.stderr)
    found: dict[str, dict[tuple[str, int], list[str]]] = {mode: {} for mode in PYRIGHT}
    for item in told:
        if item["severity"] == "error":
            path = Path(item["file"])
            found[path.parent.name].setdefault((path.name, item["range"]["start"]["line"] + 1), []).append(item["message"])
    return found


@pytest.mark.lint
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", PYRIGHT)
def test_pyright(refused_by_pyright: dict[str, dict[tuple[str, int], list[str]]], mode: str) -> None:
    found = refused_by_pyright[mode]
    assert found
    assert not compared(found), "\n".join(compared(found))


def test_there_is_something_to_check() -> None:
    """A file is named `refused…` exactly if it has wrong lines."""
    marked = {name for name, _ in wrong_lines()}
    assert marked == {path.name for path in FILES if path.name.startswith("refused")}
    assert len(wrong_lines()) >= 40


def test_the_overloads_are_fresh() -> None:
    """`entangle/_tasks/task_arguments.pyi` is up to date. If it is not: python
    docs/task_arguments.py"""
    script = Path(ROOT) / "docs" / "task_arguments.py"
    if not script.exists():
        pytest.skip("only a checkout has the program")
    found = importlib.util.spec_from_file_location("task_arguments", script)
    assert found is not None
    assert found.loader is not None
    program: Any = importlib.util.module_from_spec(found)
    found.loader.exec_module(program)
    there = program.TARGET.read_text(encoding="utf-8")
    assert ast.dump(ast.parse(there)) == ast.dump(ast.parse(program.written()))
