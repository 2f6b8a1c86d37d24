"""Draws the pictures of runs in the tutorial, `docs/images/tutorial-*.svg`.

    python docs/tutorial_pictures.py [CHAPTER]     runs the programs of the chapters

A chapter that shows `tutorial-many.svg` has a program `many.py`. The picture is what
`entangle show last --format svg` draws after that program has run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from entangle.tests.shown_blocks import read

ROOT = Path(__file__).resolve().parent.parent


def draw(page: Path) -> None:
    """Run the programs of one chapter, and draw the runs that it shows."""
    wanted = set(re.findall(r"\.\./images/tutorial-(.+?)\.svg", page.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ENTANGLE_RECORD_DIR": f"{folder}/records", "PYTHONPATH": str(ROOT)}
        titled = [block for block in read(page).blocks if block.title]
        for block in titled:
            Path(folder, str(block.title)).write_text(block.code, encoding="utf-8")
        for block in titled:
            name = Path(str(block.title)).stem
            if name not in wanted or block.not_run:
                continue
            subprocess.run([sys.executable, str(block.title)], cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
            target = ROOT / "docs" / "images" / f"tutorial-{name}.svg"
            command = [sys.executable, "-m", "entangle", "show", "last", "--format", "svg", "--output", str(target)]
            subprocess.run(command, env=environment, check=True)


def main() -> None:
    """Draw the pictures of the chapters that are named, or of all."""
    pages = [Path(name).resolve() for name in sys.argv[1:]] or sorted((ROOT / "docs" / "tutorial").glob("*.md"))
    for page in pages:
        draw(page)


if __name__ == "__main__":
    main()
