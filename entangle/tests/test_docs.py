"""The documentation names files that exist, its links lead somewhere, and its lines are short."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import entangle
from entangle._shared.documentation import more
from entangle.tests.house import HOUSE, MODULES
from entangle.tests.shown_blocks import documentation

ROOT = HOUSE.parent
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "README", "SECURITY"))]

documentation()


def test_files_that_are_named_exist() -> None:
    """A name is a path in the package or in the checkout, or the end of such a path."""
    there = [str(path.relative_to(ROOT)) for folder in ("entangle", "docs", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    missing = []
    for page in PAGES:
        for name in re.findall(r"`([\w/.-]+\.py)`", page.read_text(encoding="utf-8")):
            if not any(f"/{path}".endswith(f"/{name}") for path in [*there, "setup.py"]):
                missing.append(f"{page.relative_to(ROOT)}: {name}")
    assert missing == []


def test_files_that_the_code_names_exist() -> None:
    """A rename easily forgets the comments and docstrings that name the file."""
    users = {"analysis.py", "queue.py", "work.py"}
    known_files = (*HOUSE.rglob("*.py*"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md"), *(ROOT / "docs").glob("*.py"))
    there = [f"/{path.relative_to(ROOT)}" for path in known_files]
    missing = []
    for module, path in MODULES.items():
        for name in re.findall(r"(?<![\w./*])[\w/]+\.(?:py|md)\b", path.read_text(encoding="utf-8")):
            if name not in users and not any(known.endswith(f"/{name}") for known in there):
                missing.append(f"{module}: {name}")
    assert missing == []


def test_pages_that_messages_name_exist() -> None:
    """`more("durable")` makes the line that names docs/durable.md."""
    named = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "more":
                (page,) = node.args
                assert isinstance(page, ast.Constant), f"{module}: the page is written as a literal, so that it can be looked for"
                named.append((module, more(str(page.value)).removeprefix("more: ")))
    assert {"cli.app", "_tasks.durable"} <= {module for module, _ in named}
    assert [pair for pair in named if not (ROOT / pair[1]).is_file()] == []


def test_files_that_make_names_exist() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    found = re.findall(r"\(addprefix (\S+?),(.+?)\)", text)
    assert found
    assert [name for before, names in found for name in names.split() if not (ROOT / f"{before}{name}").is_file()] == []


def test_folders_that_are_named_exist() -> None:
    missing = []
    for page in PAGES:
        for name in re.findall(r"`((?:entangle/)?_[\w/]+/|cli/|web/[\w/]*)`", page.read_text(encoding="utf-8")):
            if not (HOUSE / name.removeprefix("entangle/")).is_dir():
                missing.append(f"{page.relative_to(ROOT)}: {name}")
    assert missing == []


@pytest.mark.parametrize("page", [page for page in PAGES if "architecture" in str(page.relative_to(ROOT))], ids=lambda page: page.name)
def test_lines_are_short(page: Path) -> None:
    assert [line for line in page.read_text(encoding="utf-8").splitlines() if len(line) > 100] == []


def test_the_tables_of_benchmarks_are_those_of_the_results() -> None:
    """`python -m benchmarks --redraw` writes them; nothing is edited by hand. The README names the
    worst ratio, too."""
    told = subprocess.run([sys.executable, "-c", _TABLES], cwd=ROOT, capture_output=True, text=True, check=True)
    page, readme, worst, figures = json.loads(told.stdout)
    for name, table in (("docs/benchmarks.md", page), ("README.md", readme)):
        assert f"<!-- bench:begin -->\n{table}\n<!-- bench:end -->" in (ROOT / name).read_text(encoding="utf-8"), name
    assert readme.count("x** |") == 8
    assert f"**{worst}** |" in readme
    said = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert [figure for figure in figures if figure not in said] == []


_TABLES = """
import json
from benchmarks import report, results, rows
session = results.read()
worst = min(line["best_peer_over_ours"] for row in session["rows"] for line in row["lines"] if line["best_peer_over_ours"])
found = {(row["key"], line["label"]): line for row in session["rows"] for line in row["lines"]}
chain, budget, records, array = (
    found[key] for key in [("P3", "by a warm forkserver"), ("P11", "at most"), ("P13", "times P1"), ("P7", "")]
)
n = report.number
figures = [
    f"takes {n(chain['ours'])} µs a hop",
    f"took {n(chain['others'][chain['best_peer']])} µs",
    f"at most {n(budget['ours'])} runnable processes; nested pools had {n(budget['others']['a pool for each run'])}",
    f"take {n(records['ours'])} times as long",
    f"five tasks takes {n(array['ours'])} ms; the same lines in one process take {n(array['others']['one process'])} ms",
]
print(json.dumps([report.markdown(session), report.short(session), report.ratio(worst), figures]))
"""


def test_a_citation_names_this_version() -> None:
    assert f"\nversion: {entangle.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Only the form of links to other sites is checked."""
    text = re.sub(r"^( *)```.*?^\1```|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            fits = bool(re.fullmatch(r"https://[a-z0-9.-]+\.[a-z]{2,}(/[^\s<>]*)?", target))
        else:
            file = target.partition("#")[0].replace("../images/", "images/") if "images/" in target else target.partition("#")[0]
            fits = not file or (page.parent / file).exists() or (ROOT / file).exists() or (ROOT / "docs" / file).exists()
        if not fits:
            wrong.append(target)
    assert wrong == []


@pytest.mark.pages
@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ("Text that is plain.\n", []),
        ("It simply works.\n", ["'simply' says nothing: leave it out"]),
        ("```python\nsimply()\n```\n\n`simply` [x](simply.md) <!-- simply -->\n", []),
        (f"A list:\n\n- {'word ' * 46}\n", ["part it"]),
        (f"{'word ' * 40}\n\n{'word ' * 40}\n", []),
        (f"{'word ' * 40}; {'word ' * 40}\n", []),
    ],
)
def test_prose_is_read(page: str, wrong: list[str]) -> None:
    """Tests docs/prose.py, which `make docs` runs."""
    spec = importlib.util.spec_from_file_location("prose", ROOT / "docs" / "prose.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.own_style(page)
    assert len(found) == len(wrong)
    assert all(said.endswith(ends) for (_, said), ends in zip(found, wrong, strict=True))
