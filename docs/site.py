"""Hooks for mkdocs.

The pictures are in `images/`, not in `docs/`, since the README shows them, too: they are added to
the site. The list of all files is made from the files.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).resolve().parent))
from floors import needed

from entangle.tests.house import FLOORS, HOUSE, MODULES, place

_IMAGES = Path(__file__).resolve().parent.parent / "images"


def on_files(files: Files, config: Any) -> Files:
    """Add every picture to the site."""
    for path in sorted(_IMAGES.glob("*.*")):
        files.append(File.generated(config, f"images/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Change links to pictures to where the site has them, and insert the list of files where a
    page asks for it."""
    depth = page.file.src_uri.count("/")
    markdown = markdown.replace("](" + "../" * (depth + 1) + "images/", "](" + "../" * depth + "images/")
    # The list takes long to make: all modules are read for it.
    return markdown.replace("<!-- files -->", files()) if "<!-- files -->" in markdown else markdown


def files() -> str:
    """Every room with its files, and the first sentence of each docstring, as Markdown."""
    out, below = [], needed()
    for number, floor in enumerate(FLOORS):
        for room in floor:
            out.append(f"\n## {room[0].upper()}{room[1:]}\n")
            for module, path in MODULES.items():
                if place(module) == (number, room) and path.name not in ("__init__.py", "__main__.py"):
                    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
                    first = " ".join(said.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".:")
                    out.append(f"- `{path.relative_to(HOUSE)}`: {first}")
            out.append(
                f"\nImports from: {'; '.join(other for lower in FLOORS for other in lower if other in below[room]) or 'no other room'}."
            )
    return "\n".join(out)
