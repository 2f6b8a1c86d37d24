"""The modules that an agent gets: those that are sent at the start, and those that it asks for."""

from __future__ import annotations

import compileall
import importlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import entangle
from entangle._remote.agent.imports import Finder
from entangle._remote.caller.modules import _ENGINE, FIRST

from .house import MODULES, imports
from .places import far_pythons


def test_the_first_modules_need_only_each_other() -> None:
    """An agent cannot ask for modules before it runs, and nothing of ours is installed there."""
    for name in FIRST:
        for needed, line, at_once in imports(name.removeprefix("entangle").removeprefix(".")):
            if not at_once:
                continue
            known = needed in FIRST or needed.partition(".")[0] in {*sys.stdlib_module_names, "__future__"}
            assert known, f"{name}:{line} imports {needed}"


def test_the_engine_is_named_as_it_is() -> None:
    """An outdated name would otherwise be noticed only if nothing had loaded the module here."""
    ours = [name for name in (*FIRST, *_ENGINE) if name.startswith("entangle.")]
    assert [name for name in ours if name.removeprefix("entangle.") not in MODULES] == []


def test_the_far_program_of_a_service_has_all_that_it_may_import() -> None:
    """Nothing there answers a request for another module. It would fail late, perhaps when a body
    fails."""
    # In a process that has loaded nothing else.
    code = "from entangle._services.caller.code import Code; print(*Code._engine(None))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    known = {name for name in done.stdout.split() if name.startswith("entangle.")}
    lacking = {
        needed
        for name in known - {"entangle._records.views"}  # drawing is not needed there
        if name.startswith(tuple(f"entangle.{room}" for room in ("_shared", "_worker", "_run", "_records", "_depot", "_services")))
        for needed, _, _ in imports(name.removeprefix("entangle."))
        if needed.startswith("entangle.") and needed not in known
    }
    assert "entangle._worker.keeping" in known
    assert lacking == {"entangle._run.progress.following"}  # used only at a terminal


def test_other_threads_import_while_one_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that reads the answer must not need a lock that the asking thread holds."""
    imported = []

    def ask(name: str) -> object:
        monkeypatch.delitem(sys.modules, "colorsys", raising=False)
        other = threading.Thread(target=lambda: imported.append(importlib.import_module("colorsys")), daemon=True)
        other.start()
        other.join(10)
        return {name: (False, "nowhere.py", "answer = 42")}

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder(ask, False)])
    try:
        assert importlib.import_module("comes_over_the_stream").answer == 42
    finally:
        sys.modules.pop("comes_over_the_stream", None)
    assert len(imported) == 1


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A directory with a copy of entangle, without its tests."""
    there = tmp_path / "copy"
    shutil.copytree(Path(entangle.__file__).parent, there / "entangle", ignore=shutil.ignore_patterns("tests", "__pycache__"))
    return there


def _said_elsewhere(tmp_path: Path, path: Path) -> str:
    """The output of a program that runs a task in another Python, with entangle from that path."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import entangle\nassert entangle.__file__.startswith({os.fspath(path)!r})\n"
        "from entangle.interpreter import interpreter\nfrom entangle.process import process\n"
        "@process\ndef double(x):\n    return 2 * x\n"
        f"@interpreter(python={far_pythons(same=True)!r})\ndef there(x):\n    return double(x + 1)()\n"
        "try:\n    print(there(20)())\nexcept Exception as error:\n    print(f'{type(error).__name__}: {error}')\n"
    )
    run = [sys.executable, os.fspath(script)]
    ran = subprocess.run(run, env={**os.environ, "PYTHONPATH": os.fspath(path)}, capture_output=True, text=True, timeout=100)
    assert ran.stderr == ""
    return ran.stdout


def test_entangle_may_lie_in_a_zip_file(tmp_path: Path, copy: Path) -> None:
    """`python -m zipapp` packs a program with all that it needs."""
    packed = Path(shutil.make_archive(os.fspath(tmp_path / "packed"), "zip", copy))
    assert _said_elsewhere(tmp_path, packed) == "42\n"


def test_entangle_without_its_source_says_so(tmp_path: Path, copy: Path) -> None:
    compileall.compile_dir(copy, quiet=1, legacy=True)
    for file in copy.rglob("*.py"):
        file.unlink()
    told = _said_elsewhere(tmp_path, copy)
    assert told.startswith("MissingModuleError: entangle cannot be sent to other places, since it is installed here without its source")
    assert "install it with its files that end in .py" in told
