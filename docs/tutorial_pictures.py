"""The pictures of runs in the tutorial, `docs/images/tutorial-*.svg`.

    python docs/tutorial_pictures.py [CHAPTER]     follows the chapters as the tests do

A chapter that shows `tutorial-many.svg` has a program `many.py`; the picture is what
`entangle show last --format svg` draws after it has run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from entangle.tests.shown_pages import follow

ROOT = Path(__file__).resolve().parent.parent


def draw(page: Path) -> None:
    """Follow one chapter, and draw the runs that it shows."""
    wanted = set(re.findall(r"\.\./images/tutorial-(.+?)\.svg", page.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "ENTANGLE_RECORD_DIR": f"{place}/records", "PYTHONPATH": str(ROOT)}
        for block, _ in follow(page, Path(place)):
            if (name := Path(block.title).stem) in wanted:
                target = ROOT / "docs" / "images" / f"tutorial-{name}.svg"
                command = [sys.executable, "-m", "entangle", "show", "last", "--format", "svg", "--output", str(target)]
                subprocess.run(command, env=environment, check=True)


def main() -> None:
    """Draw those of the chapters that are named, or of all."""
    pages = [Path(name).resolve() for name in sys.argv[1:]] or sorted((ROOT / "docs" / "tutorial").glob("*.md"))
    for page in pages:
        draw(page)


if __name__ == "__main__":
    main()
