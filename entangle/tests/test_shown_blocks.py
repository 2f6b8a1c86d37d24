"""Every code block of the pages is run, and it must print what the page shows as its output.

All blocks of a page that are not whole programs run in one process. `make docs` runs all pages,
`make test` the ones that newcomers read first. For docs/tutorial and README.md see
test_tutorial.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .callers import ROOT
from .pairs import SIDES
from .shown_blocks import Page, commands, documentation, matches, read, run_page, shown_lines

DOCS = documentation()

PAGES = [read(path) for path in sorted(DOCS.rglob("*.md")) if "tutorial" not in path.parts]

#: At most this many blocks are not run. Whoever adds one has to raise the number.
NOT_RUN = 24

#: Languages of blocks that are not run: they are not Python, or would change this machine.
OTHERS = {"", "sh", "toml", "yaml", "ini", "json", "text", "mermaid", "groovy", "dockerfile", "markdown", "sql"}


def _of_two_sides(page: Page) -> bool:
    return any(block.title in SIDES for block in page.blocks)


RUN = [page for page in PAGES if not _of_two_sides(page) and any(block.language in ("python", "console") for block in page.blocks)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name, marks=[] if page.path.name == "index.md" else pytest.mark.pages) for page in RUN]
)
def test_blocks_of(page: Page, tmp_path: Path) -> None:
    outcome = run_page(page, tmp_path)
    assert not outcome.wrong, "\n\n".join(outcome.wrong)
    print(f"{page.name}: {len(outcome.run)} run, {outcome.compared} compared")


def test_every_block_is_run_or_says_why() -> None:
    unknown = [
        f"{page.name}:{block.line}: {block.language}"
        for page in PAGES
        for block in page.blocks
        if block.language not in {"python", "console", *OTHERS}
    ]
    assert unknown == []
    left = [f"{page.name}:{block.line}: {block.not_run}" for page in PAGES for block in page.blocks if block.not_run is not None]
    print(*left, sep="\n")
    assert len(left) <= NOT_RUN
    assert not [line for line in left if len(line.partition(": ")[2]) < 10], "a reason says what is missing"
    for page in PAGES:
        if page.run_by:
            tests = (Path(ROOT) / page.run_by).read_text(encoding="utf-8")
            assert page.path.relative_to(DOCS).as_posix() in tests, f"{page.run_by} does not know {page.name}"


# --- the reader -----------------------------------------------------------------------------------


def _page(folder: Path, text: str) -> Page:
    path = folder / "page.md"
    path.write_text(text.replace("'''", "```"), encoding="utf-8")
    return read(path)


def _wrong(folder: Path, text: str) -> list[str]:
    return run_page(_page(folder, text), folder).wrong


GOOD = """
Text.

<!-- before:
hidden = 3
-->
'''python
def add(a, b):
    return a + b  # 99


for n in (1, 2):
    print(add(n, n))
'''

'''text
2
4
'''

'''python
print(add(hidden, 4))  # 7, of course
'''

<!-- not run: needs a moon -->
'''python
raise SystemExit("no")
'''

'''python title="alone.py"
import sys
print(sys.argv[1:])
'''

'''console
$ python alone.py 1 2
['1', '2']
$ python alone.py \\
    3
['…']
'''
"""


def test_a_right_page(tmp_path: Path) -> None:
    outcome = run_page(_page(tmp_path, GOOD), tmp_path)
    assert outcome.wrong == []
    assert outcome.compared == 4


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("2\n4\n", "2\n5\n", "the page says"),
        ("# 7, of", "# 8, of", "the comment says"),
        ("hidden = 3", "hiding = 3", "NameError: name 'hidden'"),
        ("['1', '2']", "['1']", "and prints"),
        ("return a + b", "raise ValueError(a)", "ValueError"),
        ("<!-- not run: needs a moon -->", "", "exit status 1"),
        ("print(add(hidden, 4))", "if hidden == 4:\n    print(add(hidden, 4))", "was not reached"),
    ],
)
def test_a_wrong_page(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    assert says in "\n".join(_wrong(tmp_path, GOOD.replace(old, new)))


def test_errors_have_the_lines_of_the_page(tmp_path: Path) -> None:
    (said,) = _wrong(tmp_path, "# Title\n\n'''python\nx = 1\n1 / 0\n'''\n")
    assert "line 5, in <module>" in said


def test_a_program_may_show_its_error(tmp_path: Path) -> None:
    shown = """'''python title="e.py"
1 / 0
'''

'''text
Traceback (most recent call last):
…
ZeroDivisionError: division by zero
'''
"""
    assert _wrong(tmp_path, shown) == []
    assert _wrong(tmp_path, shown.replace("division by zero", "multiplication")) != []
    assert _wrong(tmp_path, shown.replace("1 / 0", "1 / 1")) != []


def test_output_is_compared() -> None:
    assert matches("a\nb\n", "a  \nb\n")
    assert matches("a … c\n", "a b c\n")
    assert matches("a\n…\nd\n", "a\nb\nc\nd\n")
    assert matches("a\n…\nd\n", "a\nd\n")
    assert not matches("a … c\n", "a\n c\n")
    assert not matches("a\n", "a\nb\n")
    assert not matches("", "a\n")
    assert matches("", "")


def test_lines_that_show_what_they_print() -> None:
    assert shown_lines("print(1)  # 1\nx = 3  # 3\nif x:\n    print(x)  # 3\ndef f():\n    print(2)  # 2\n") == {1: "1", 4: "3"}
    assert commands("$ a \\\n  b\nout\n$ c\n") == [("a  b", "out\n"), ("c", "")]
