"""The README and the tutorial, followed as by a reader: every program runs, and prints what is
shown."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from .house import HOUSE
from .shown_blocks import documentation, read, run_page
from .ways import installed, missing

ROOT = HOUSE.parent
CHAPTERS = sorted((documentation() / "tutorial").glob("*.md"))
PAGES = [ROOT / "README.md", *CHAPTERS]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "path", [PAGES[0], *(pytest.param(path, marks=pytest.mark.pages) for path in CHAPTERS)], ids=lambda path: path.name
)
def test_what_is_shown_is_what_is_printed(path: Path, tmp_path: Path) -> None:
    page = read(path)
    if any(block.language == "console" for block in page.blocks):
        installed("typer")
    if any("three_hosts" in block.code for block in page.blocks) and not shutil.which("sshd", path="/usr/sbin:/usr/bin"):
        missing("an ssh server: apt install openssh-server")
    outcome = run_page(page, tmp_path)
    assert not outcome.wrong, "\n\n".join(outcome.wrong)
    assert outcome.compared >= 2


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_program_shows_what_it_prints(path: Path) -> None:
    blocks = read(path).blocks
    commands = "".join(block.code for block in blocks if block.language == "console")
    bare = [block for block in blocks if block.language == "python" and not (block.title and (block.printed or block.title in commands))]
    assert [block.line for block in bare if block.not_run is None] == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_chapters_have_a_picture_of_a_run(path: Path) -> None:
    pictures = re.findall(r"\]\(\.\./images/tutorial-(.+?)\.svg\)", path.read_text(encoding="utf-8"))
    assert pictures
    assert set(pictures) <= {Path(block.title).stem for block in read(path).blocks if block.title}
    for name in pictures:
        assert (ROOT / "docs" / "images" / f"tutorial-{name}.svg").read_text(encoding="utf-8").startswith("<svg")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250
