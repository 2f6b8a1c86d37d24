"""The reference: a page for each public module, with each public name, and each option in a table.

A table is right by itself: its types and defaults are those of the signature, and what it says is
refused is tried.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import queue
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle.dataflow import dataflow
from entangle.errors import EntangleError, OptionError
from entangle.service import Service
from entangle.tests.house import HOUSE, MODULES
from entangle.tests.shown_blocks import documentation
from entangle.thread import thread

PAGES = documentation() / "reference"

#: Parts of the engine whose names have no underscore, and programs. Users import none of them.
INNER = {"", "cookies", "flow", "pools", "token_bucket", "cli", "examples", "web"}
PUBLIC = {"entangle", "logging"} | {name for name in MODULES if not re.search(r"^_|\.", name)} - INNER

#: What people are given and do not make; their constructors have no table.
GIVEN = {"BuiltImage", "Call", "Decorated", "Layer", "Method", "Node", "Service", "Session", "Source", "Stream", "Submission", "Task"}
GIVEN |= {"PlaceShare", "RunRecord", "Times", "Value"}

#: Aliases in signatures, as the tables write them.
ALIASES = {
    "On": "type[BaseException] | tuple[type[BaseException], …] | None",
    "OnError": '"raise" | "skip" | Callable[[node, item, error], object]',
    "Start | None": '"auto" | "fork" | "forkserver" | "spawn" | None',
    "Gpus": "str | int | Sequence[str] | None",
    "Volumes": "Mapping[str, str] | Sequence[str]",
    "Callback | None": "Callable[[node, value], object] | None",
    "Executor | None": '"thread" | "process" | None',
    "Literal['wait', 'raise']": '"wait" | "raise"',
    "Literal['disk'] | None": '"disk" | None',
}


def module_of(page: str) -> Any:
    return importlib.import_module("entangle" if page == "entangle" else f"entangle.{page}")


def shown(page: str) -> list[str]:
    """The full names that a page shows."""
    return re.findall(r"^::: (\S+)$", (PAGES / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE)


def named(path: str) -> Any:
    """What has this full name. A function may hide the module of its name."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
            for part in parts[length:]:
                found = getattr(found, part)
        except (ImportError, AttributeError):
            continue
        return found
    raise AssertionError(f"there is no {path}")


# Pages --------------------------------------------------------------------------------------------


def test_each_public_module_has_a_page() -> None:
    listed = (PAGES.parent / "reference.md").read_text(encoding="utf-8")
    site = (HOUSE.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert {"aws", "entangle", "process", "sources"} <= PUBLIC
    for page in PUBLIC:
        assert (PAGES / f"{page}.md").is_file(), f"docs/reference/{page}.md is missing"
        assert f"(reference/{page}.md)" in listed
        assert f" reference/{page}.md\n" in site


@pytest.mark.parametrize("page", sorted(PUBLIC))
def test_a_page_shows_every_public_name(page: str) -> None:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    module = module_of(page)
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, found in vars(module).items() if getattr(found, "__module__", "") == module.__name__ and name[0] != "_"]
    assert names or page == "logging"
    whole = module.__name__ in shown(page)
    missing = [name for name in names if not whole and not re.search(rf"\b{name}\b", text)]
    assert missing == []


# Tables -------------------------------------------------------------------------------------------


class Table:
    """A table of options: of what, its rows, and the call to which a refused option is added."""

    def __init__(self, page: str, name: str, text: str) -> None:
        self.page, self.name = page, name
        refused = re.search(r"^<!-- refused by: (.+) -->$", text, re.MULTILINE)
        self.call = refused and refused[1]
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert lines[0] == "| option | type | default | unit | refused, for example |"
        self.rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]

    def __repr__(self) -> str:
        return f"{self.page}-{self.name}"


def tables() -> list[Table]:
    found = []
    for page in sorted(PUBLIC):
        text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
        for part in re.finditer(r"^Options of `([\w.]+)`:\n\n((?:(?:<!--|\|).*\n)+)", text, re.MULTILINE):
            found.append(Table(page, part[1], part[2]))
    return found


TABLES = tables()


def options_of(function: Any) -> dict[str, inspect.Parameter]:
    """The options of a function: parameters that are given by name, or can be left out."""
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if (parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty)
        and name not in ("below", "unknown")
        # The function that is decorated: options are given by name.
        and parameter.kind is not parameter.POSITIONAL_ONLY
    }


def in_table(table: Table) -> Any:
    """What a table is of."""
    owner, _, name = table.name.rpartition(".")
    module = module_of(table.page)
    return getattr(getattr(module, owner), name) if owner else getattr(module, name)


def test_everything_with_options_has_a_table() -> None:
    missing = []
    for page in sorted(PUBLIC):
        for path in shown(page):
            found, name = named(path), path.rpartition(".")[2]
            if inspect.ismodule(found) or name in GIVEN or (inspect.isclass(found) and issubclass(found, BaseException)):
                continue
            if options_of(found) and not any(table.page == page and table.name == name for table in TABLES):
                missing.append(path)
    assert missing == []


@pytest.mark.parametrize("table", TABLES, ids=repr)
def test_a_table_says_what_the_signature_says(table: Table) -> None:
    options = options_of(in_table(table))
    assert [row[0] for row in table.rows] == [f"`{name}`" for name in options]
    for _, kind, default, _, _ in table.rows:
        assert kind.startswith("`")
        assert default or table.name == "queue"
    for (_, kind, default, _, _), parameter in zip(table.rows, options.values(), strict=True):
        annotation = str(parameter.annotation)
        assert kind == in_words(ALIASES.get(annotation, annotation))
        if default == "required":
            assert parameter.default is parameter.empty or refuses_to_be_without(table, parameter.name)
        elif default:
            value = parameter.default
            assert default == f"`{value.__name__ if inspect.isclass(value) else _written(value)}`"


def refuses_to_be_without(table: Table, option: str) -> bool:
    """Whether an option with a default cannot be left out."""
    assert table.call
    function, _, given = table.call.partition("(")
    left = [word for word in given.removesuffix(")").split(", ") if word != "…" and not word.startswith(f"{option}=")]
    with pytest.raises(OptionError) as caught:
        eval(f"{function}({', '.join(left)})", {**vars(module_of(table.page)), **known()})(lambda: None)
    return option in str(caught.value)


def in_words(annotation: str) -> str:
    """An annotation for a table, where a "|" would part two cells."""
    *kinds, last = [f"`{kind}`" for kind in annotation.split(" | ")]
    return f"{', '.join(kinds)} or {last}" if kinds else last


def _written(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


@pytest.mark.parametrize("table", TABLES, ids=repr)
def test_what_a_table_calls_refused_is_refused(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the error that stands there; and the error names the option."""
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    refused = [row[4] for row in table.rows if row[4]]
    assert bool(refused) == bool(table.call)
    for said in refused:
        example = re.fullmatch(r"`(\w+)=(.+)`: `(\w+)`", said)
        assert example, said
        option, value, error = example.groups()
        with pytest.raises((EntangleError, TypeError, ValueError)) as caught:
            tried(table, option, value)
        assert type(caught.value).__name__ == error, said
        assert option.rstrip("s") in str(caught.value) or value.strip("'\"") in str(caught.value), str(caught.value)


def tried(table: Table, option: str, value: str) -> None:
    """Do what the page says that it is done by, with this option added or changed."""
    assert table.call
    call = ast.parse(re.sub(r",? ?…", "", table.call), mode="eval")
    assert isinstance(call.body, ast.Call)
    changed = ast.keyword(option, ast.parse(value, mode="eval").body)
    call.body.keywords = [*(word for word in call.body.keywords if word.arg != option), changed]
    made = eval(compile(ast.fix_missing_locations(call), table.page, "eval"), {**vars(module_of(table.page)), **known()})
    if table.page in DECORATORS or table.name in ("dataflow", "task"):
        made(lambda n=1: n)
    elif isinstance(made, Iterator):
        list(made)


DECORATORS = {"aws", "containers", "docker", "http", "interpreter", "limit", "local", "process", "scheduler", "service", "slurm", "ssh"}
DECORATORS |= {"thread", "workflow"}


class Cluster(Service):
    """A service that is described, and never used."""


def known() -> dict[str, Any]:
    """The names that the pages use."""

    @thread
    def square(n: int) -> int:
        return n * n

    @dataflow
    def flow(n: int) -> int:
        return n

    return {"square": square, "call": square(2), "flow": flow(), "q": queue.Queue(), "cluster": Cluster()}


# Variables ----------------------------------------------------------------------------------------

#: Variables between parts of entangle, of the test kit, and of the example programs.
NOT_FOR_USERS = {"CODE", "HOSTS", "HOSTS_PYTHON", "IMAGE", "LEASE", "PARTITION", "QUEUE", "ROLE", "WATCH", "WORKER"}

_PROGRAM = """
import sys
from entangle.interpreter import interpreter
from entangle.process import process

@process(cache="DEPOT" in {variable!r})
def here(): return 1

@interpreter(python=sys.executable)
@process
def there(): return 1

if __name__ == "__main__":
    print((there if {variable!r} in ("ENTANGLE_SILENCE", "ENTANGLE_WIRE_LIMIT") else here)()())
"""


def variables() -> list[list[str]]:
    """The table of environment variables: name, what it does, value, default, a wrong value."""
    text = (PAGES / "options.md").read_text(encoding="utf-8").partition("## Environment variables")[2]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]


def test_every_variable_is_in_the_table() -> None:
    used = {
        name for path in MODULES.values() for name in re.findall(r"\bENTANGLE_([A-Z]+(?:_[A-Z]+)*)\b", path.read_text(encoding="utf-8"))
    }
    assert {"RECORD", "START"} <= used
    told = {row[0].strip("`").removeprefix("ENTANGLE_") for row in variables()}
    assert told - {"TMPDIR"} == used - NOT_FOR_USERS
    assert all(len(row) == 5 and all(row[:4]) for row in variables())


@pytest.mark.parametrize("row", [row for row in variables() if row[4]], ids=lambda row: row[0].strip("`"))
def test_a_wrong_value_of_a_variable_is_told(row: list[str], tmp_path: Path) -> None:
    """By an error, or a warning beside a run that goes on; both name the variable or the value."""
    found = re.fullmatch(r"`(.+)`: (?:`(\w+)`|a warning( when old runs are looked for)?)", row[4])
    assert found, row[4]
    value, error, later = found.groups()
    variable = row[0].strip("`")
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM.format(variable=variable), encoding="utf-8")
    environment = {**os.environ, "ENTANGLE_RECORD_DIR": str(tmp_path / "records"), variable: value}
    command = [sys.executable, str(program)]
    if later:
        command = [sys.executable, "-c", "from entangle import records; records.runs()"]
        subprocess.run([sys.executable, str(program)], env=environment, check=True, capture_output=True, timeout=100)
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert (ran.returncode != 0) == (error is not None), ran.stderr
    last = ran.stderr.strip()
    assert variable in last or value in last
    assert error is None or f"entangle.errors.{error}: " in last
    assert error is not None or last.count("\n") < 2
