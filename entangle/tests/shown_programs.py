"""Programs of pages that need a service: the tests of that service run them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .shown_blocks import Block, documentation, matches, read


def programs_of(page: str) -> dict[str, Block]:
    """The programs of a page (a path below docs/) by title, each with the output that the page
    shows."""
    found = {block.title: block for block in read(documentation() / page).blocks if block.language == "python"}
    assert None not in found, f"{page}: a program without a title"
    assert all(block.printed is not None for block in found.values()), f"{page}: a program without what it prints"
    return {str(title): block for title, block in found.items()}


def run_shown(page: str, title: str, folder: Path, replaced: Mapping[str, str] | None = None, **environment: str) -> None:
    """Run one program, and compare its output. `replaced` maps strings of the page, such as names
    of machines, to real ones. `environment` is added to the variables of this process."""
    block = programs_of(page)[title]
    code, printed = block.code, block.printed or ""
    for shown, real in (replaced or {}).items():
        assert shown in code + printed, f"{page} does not show {shown!r}"
        code, printed = code.replace(shown, real), printed.replace(shown, real)
    (folder / title).write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, title],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert matches(printed, done.stdout), f"{page} says\n{printed}\nand it prints\n{done.stdout}"
