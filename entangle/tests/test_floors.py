"""The floors of the house: imports point down only.

The table below is the whole house. A module that is not in it fails the test: say on which floor it lives.
"""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import entangle

HOUSE = Path(entangle.__file__).resolve().parent

#: Floors from the ground up. A name ending in a dot is a whole room: every module in that package.
FLOORS: list[tuple[str, tuple[str, ...]]] = [
    ("ground", ("errors",)),
    ("what can be run", ("flow", "cookies")),
    ("what processes share", ("_shared.",)),
    ("what happens in a worker", ("_worker.",)),
    ("looking on from outside", ("_watch.",)),
    ("what happens in the caller", ("_run.",)),
    ("what users hold", ("_tasks.", "task", "_terms", "_cache")),
    ("both sides of a byte stream", ("_remote", "_remote.wire.")),
    ("the far side", ("_remote.agent.",)),
    ("how a far Python is started", ("_remote.transport.",)),
    ("the near side", ("_remote.caller.",)),
    ("dataflows", ("_dataflow.",)),
    ("doors", ("process", "thread", "workflow", "scheduler", "local", "http", "logging.")),
    ("doors to other places", ("interpreter", "ssh", "docker", "containers", "aws", "gpu", "dataflow", "sources")),
    ("memory", ("_records.", "records")),
    ("people", ("", "__main__", "cli.", "web.", "examples.")),
]

#: What may be imported, at the top of a module, besides the standard library and ourselves. Anything else is imported
#: where it is used, so that it is needed only by those who use it.
CORE_DEPENDENCIES = {"cloudpickle", "psutil"}

#: Modules whose business another library is, which must not be there for anybody else.
OPTIONAL = {"examples.": {"numpy", "numba", "httpx"}, "cli.": {"typer", "rich"}}


def _modules() -> dict[str, Path]:
    """Every module of the house by its name within it, '' being the package itself; the tests are no part of it."""
    found = {}
    for path in sorted(HOUSE.rglob("*.py")):
        parts = path.relative_to(HOUSE).with_suffix("").parts
        if parts[0] == "tests":
            continue
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


MODULES = _modules()


def _floor(module: str) -> int | None:
    for number, (_, rooms) in enumerate(FLOORS):
        for room in rooms:
            if module == room or (room.endswith(".") and (module + ".").startswith(room)):
                return number
    return None


@functools.cache
def _imports(module: str) -> list[tuple[str, int, bool]]:
    """What a module imports, by absolute name: the name, the line, and whether it happens when the module is imported."""
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ):
            lazy.update(ast.walk(node))
    found = []
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append((alias.name, node.lineno, node not in lazy))
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                around = ["entangle", *filter(None, package)]
                base = ".".join(around[: len(around) - node.level + 1] + ([node.module] if node.module else []))
            else:
                base = node.module or ""
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                is_module = whole.removeprefix("entangle.") in MODULES and whole.startswith("entangle.")
                found.append((whole if is_module else base, node.lineno, node not in lazy))
    return found


def _inner(name: str) -> str | None:
    """The name of one of our modules within the house; None for what is not ours."""
    if name == "entangle":
        return ""
    return name.removeprefix("entangle.") if name.startswith("entangle.") else None


def test_every_module_has_a_floor() -> None:
    assert [module for module in MODULES if _floor(module) is None] == []


def test_imports_point_down() -> None:
    wrong = []
    for module in MODULES:
        floor = _floor(module)
        assert floor is not None
        for name, line, _ in _imports(module):
            inner = _inner(name)
            if inner is None:
                continue
            below = _floor(inner) if inner in MODULES else None
            if below is None:
                wrong.append(f"{MODULES[module]}:{line}: {name} is no module of the house")
            elif below > floor:
                wrong.append(f"{MODULES[module]}:{line}: {name} is above it ({FLOORS[below][0]})")
    assert wrong == []


def test_nobody_imports_in_a_circle() -> None:
    """On one floor, modules may know each other, but not both ways: what is imported first must not need the other."""
    needs = {
        module: {inner for name, _, now in _imports(module) if now and (inner := _inner(name)) is not None and inner != module}
        for module in MODULES
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " → ".join([*above[above.index(module) :], module])
        if module not in done:
            for below in sorted(needs[module]):
                visit(below, (*above, module))
            done.add(module)

    for module in needs:
        visit(module, ())


def test_other_libraries_are_imported_where_they_are_used() -> None:
    wrong = []
    for module in MODULES:
        allowed = {*CORE_DEPENDENCIES, *(name for room, names in OPTIONAL.items() if (module + ".").startswith(room) for name in names)}
        if _floor(module) == 0:
            allowed = set()  # the ground stands on the standard library alone
        for name, line, now in _imports(module):
            top = name.partition(".")[0]
            if now and top not in ("entangle", "__future__") and top not in sys.stdlib_module_names and top not in allowed:
                wrong.append(f"{MODULES[module]}:{line}: {name}")
    assert wrong == []


def test_relative_imports_leave_no_room() -> None:
    """Absolute names in the house itself, so that the floors can be read off the import."""
    for module in MODULES:
        tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{module} line {node.lineno}"


def test_the_test_would_notice() -> None:
    """The table is read as it is meant: a room is a prefix, a door is not."""
    assert _floor("errors") == 0
    assert _floor("_shared.table") == _floor("_shared") == 2
    assert _floor("processes") is None
    assert _floor("") == _floor("examples.example") == len(FLOORS) - 1
    assert {"errors", "flow", "cookies", "task", "process", "_worker.worker"} <= set(MODULES)
    assert ("entangle.errors", True) in [(name, now) for name, _, now in _imports("task")]
