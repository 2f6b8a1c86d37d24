"""The house: its floors, and what each of its modules imports.

`test_floors.py` checks the imports against the floors. `docs/floors.py` draws them.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import entangle

HOUSE = Path(entangle.__file__).resolve().parent

#: The floors from the ground up, and the rooms of each. Rooms of one floor stand side by side:
#: neither imports the other. A name that ends in a dot is a whole package.
FLOORS: list[dict[str, tuple[str, ...]]] = [
    {"the ground": ("errors",)},
    {"what can be run, and with what": ("flow", "cookies", "pools", "token_bucket")},
    {"what all processes of a run share": ("_shared.",)},
    {"values that stay": ("_depot.", "_depot")},
    {"what happens in a worker": ("_worker.",), "looking on from outside": ("_watch.",)},
    {"what happens in the caller": ("_run.",)},
    {"workers that outlive runs": ("_warm.",)},
    {"what users hold": ("_tasks.", "task")},
    {"both sides of a byte stream": ("_remote", "_remote.wire.")},
    {"both sides of a mailbox": ("_services", "_services.envelope", "_services.mailbox")},
    {"the far side": ("_remote.agent.",), "how a far Python is started": ("_remote.transport.",)},
    {"the far side of services": ("_services.far.",)},
    {
        "the near side": ("_remote.caller.",),
        "dataflows": ("_dataflow.",),
        "executors as places": ("_executors.",),
        "whole graphs on other engines": ("_engines.",),
    },
    {"the near side of services": ("_services.caller.",)},
    {"a cloud": ("_aws.",)},
    {"doors": ("process", "thread", "workflow", "scheduler", "limit", "local", "http", "cache", "logging.")},
    {
        "doors to other places, and of dataflows": (
            "interpreter",
            "ssh",
            "docker",
            "slurm",
            "aws",
            "containers",
            "_images.",
            "images",
            "service",
            "on",
            "place",
            "dataflow",
            "sources",
        )
    },
    {"tests of users": ("_testing.", "pytest_plugin", "testing")},
    {"in place of what people have": ("_dask.", "dask", "executor", "_joblib.", "joblib")},
    {"records of runs": ("_records.", "records")},
    {"people": ("", "__main__", "cli.", "web.", "examples.")},
]


def _modules() -> dict[str, Path]:
    """Every module of the package by its name within it; '' is the package itself. Stubs count,
    tests do not."""
    found = {}
    for path in sorted([*HOUSE.rglob("*.py"), *HOUSE.rglob("*.pyi")]):
        parts = path.relative_to(HOUSE).with_suffix("").parts
        if parts[0] == "tests":
            continue
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


MODULES = _modules()


def place(module: str) -> tuple[int, str] | None:
    """The floor and the room of a module; None if it has none."""
    for number, floor in enumerate(FLOORS):
        for room, members in floor.items():
            for member in members:
                if module == member or (member.endswith(".") and (module + ".").startswith(member)):
                    return number, room
    return None


@functools.cache
def imports(module: str) -> list[tuple[str, int, bool]]:
    """What a module imports, at any depth: the absolute name, the line, and whether importing the
    module executes the import.

    A literal name passed to `import_module` counts as well.
    """
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
        elif isinstance(node, ast.Call) and node.args and _called(node) == "import_module":
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.append((name.value, node.lineno, node not in lazy))
    return found


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""


def inner(name: str) -> str | None:
    """The name of a module within the package; None for modules of others."""
    if name == "entangle":
        return ""
    return name.removeprefix("entangle.") if name.startswith("entangle.") else None


def arrows() -> dict[str, set[str]]:
    """Each module, and the modules of the package that it imports: when it is imported, later, or
    only for the type checker.

    The package itself is left out: every import of a module imports it first.
    """
    return {module: {found for name, _, _ in imports(module) if (found := inner(name)) and found != module} for module in MODULES}


def circles(graph: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """The strongly connected components of a graph that have more than one node (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        path.append(node)
        for below in graph.get(node, ()):
            if below not in index:
                visit(below)
                low[node] = min(low[node], low[below])
            elif below in path:
                low[node] = min(low[node], index[below])
        if low[node] == index[node]:
            circle = set(path[path.index(node) :])
            del path[path.index(node) :]
            if len(circle) > 1:
                found.append(circle)

    for node in graph:
        if node not in index:
            visit(node)
    return found
