"""README and tutorial are followed as a reader follows them: every program runs, and prints what is
shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .house import HOUSE
from .shown_pages import blocks_of, fits, follow
from .ways import installed

ROOT = HOUSE.parent
CHAPTERS = sorted((ROOT / "docs" / "tutorial").glob("*.md"))
PAGES = [ROOT / "README.md", *CHAPTERS]

pytestmark = pytest.mark.skipif(not CHAPTERS, reason="only a checkout has the documentation")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_shown_is_what_is_printed(page: Path, tmp_path: Path) -> None:
    if "entangle show" in page.read_text(encoding="utf-8"):
        installed("typer")
    ran = 0
    for block, printed in follow(page, tmp_path):
        assert block.printed is not None
        assert fits(printed, block.printed), f"{page.name}, line {block.line} prints:\n{printed}"
        ran += 1
    assert ran >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_program_is_run(page: Path) -> None:
    """A program without a title, or without what it prints, would not be."""
    assert [block.line for block in blocks_of(page) if block.language == "python" and not (block.title and block.printed)] == []


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.name)
def test_chapters_have_a_picture_of_a_run(page: Path) -> None:
    pictures = re.findall(r"\]\(\.\./images/tutorial-(.+?)\.svg\)", page.read_text(encoding="utf-8"))
    assert pictures
    titles = {Path(block.title).stem for block in blocks_of(page) if block.printed}
    assert set(pictures) <= titles
    for name in pictures:
        assert (ROOT / "docs" / "images" / f"tutorial-{name}.svg").read_text(encoding="utf-8").startswith("<svg")


def test_dots_stand_for_anything_and_nothing_else_does() -> None:
    assert fits("a 12 b\n", "a … b\n")
    assert fits("a\nx\ny\nb\n", "a\n…\nb\n")
    assert not fits("a\nb\n", "a … b\n")
    assert not fits("a.b\n", "a,b\n")
    assert not fits("a\nb\n", "a\n")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250
