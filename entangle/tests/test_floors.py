"""The layering of the package: imports point down only, no modules import each other in a circle,
and no two files have the same name.

The floors are listed in `house.py`. A module that is on none of them fails the test: add it there.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections import defaultdict
from typing import Any

import pytest

from entangle.tests.house import FLOORS, HOUSE, MODULES, arrows, circles, imports, inner, place

#: Third-party packages that a module may import at its top. Any other is imported where it is used,
#: so that only its users need it.
CORE_DEPENDENCIES = {"cloudpickle", "psutil"}

#: Parts that exist for other packages, and may import these at the top of a module.
OPTIONAL = {"examples.": {"numpy", "numba", "httpx", "fastapi"}, "cli.": {"typer", "rich"}, "pytest_plugin.": {"pytest"}}

#: Files that may have the same name: a door and its transport.
PAIRS = [{name, f"_remote.transport.{name}"} for name in ("docker", "interpreter", "slurm", "ssh")]


def test_every_module_has_a_floor() -> None:
    assert [module for module in MODULES if place(module) is None] == []
    rooms = [room for floor in FLOORS for members in floor.values() for room in members]
    assert [room for room in rooms if room.rstrip(".") not in MODULES] == []


def test_imports_point_down() -> None:
    """Imports inside functions and for the type checker count too."""
    wrong = []
    for module in MODULES:
        here = place(module)
        assert here is not None
        for name, line, _ in imports(module):
            needed = inner(name)
            if needed is None:
                continue
            there = place(needed) if needed in MODULES else None
            if there is None:
                wrong.append(f"{MODULES[module]}:{line}: {name} is no module of the house")
            elif there[0] > here[0]:
                wrong.append(f"{MODULES[module]}:{line}: {name} is above it ({there[1]})")
            elif there[0] == here[0] and there[1] != here[1]:
                wrong.append(f"{MODULES[module]}:{line}: {name} is in the room beside it ({there[1]})")
    assert wrong == []


def test_nobody_imports_in_a_circle() -> None:
    """A module may import another one of its room, but not in a circle, not even by late
    imports."""
    assert [sorted(circle) for circle in circles(arrows())] == []


def test_no_two_files_have_one_name() -> None:
    named = defaultdict(set)
    for module, path in MODULES.items():
        if path.name != "__init__.py":
            named[path.name].add(module)
    assert [sorted(modules) for modules in named.values() if len(modules) > 1 and modules not in PAIRS] == []


def test_no_two_classes_have_one_name() -> None:
    """Public classes, because readers take their names for terms of the project. Examples have
    their own terms."""
    named = defaultdict(list)
    for module, path in MODULES.items():
        if not module.startswith("examples."):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    named[node.name].append(module)
    assert {name: places for name, places in named.items() if len(places) > 1} == {}


def test_other_libraries_are_imported_where_they_are_used() -> None:
    wrong = []
    for module in MODULES:
        allowed = {*CORE_DEPENDENCIES, *(name for room, names in OPTIONAL.items() if (module + ".").startswith(room) for name in names)}
        if module == "errors":
            allowed = set()  # the lowest floor uses the standard library alone
        for name, line, now in imports(module):
            top = name.partition(".")[0]
            if now and top not in ("entangle", "__future__") and top not in sys.stdlib_module_names and top not in allowed:
                wrong.append(f"{MODULES[module]}:{line}: {name}")
    assert wrong == []


def test_relative_imports_leave_no_room() -> None:
    """Inside the package, names are absolute, so that an import shows the floor."""
    for module in MODULES:
        tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{module} line {node.lineno}"


def test_the_picture_is_fresh() -> None:
    """images/floors.svg shows the rooms and arrows of today. `python docs/floors.py` draws it."""
    script = HOUSE.parent / "docs" / "floors.py"
    if not script.exists():
        pytest.skip("only a checkout has the pictures")
    found = importlib.util.spec_from_file_location("floors", script)
    assert found is not None
    assert found.loader is not None
    floors: Any = importlib.util.module_from_spec(found)
    found.loader.exec_module(floors)
    assert floors.TARGET.read_text(encoding="utf-8") == floors.draw()


def test_the_test_would_notice() -> None:
    """The checks read the table as meant: a room is a prefix, a door is not. They see late imports
    and circles."""
    assert place("errors") == (0, "the ground")
    assert place("_shared.table") == place("_shared") == (2, "what all processes of a run share")
    assert place("processes") is None
    assert place("") == place("examples.example") == (len(FLOORS) - 1, "people")
    assert {"errors", "flow", "cookies", "task", "process", "_worker.worker"} <= set(MODULES)
    assert ("entangle.errors", True) in [(name, now) for name, _, now in imports("task")]
    assert ("entangle._records.tags", False) in [(name, now) for name, _, now in imports("")]
    assert circles({"a": "b", "b": "c", "c": "bd", "d": ""}) == [{"b", "c"}]
