"""What mkdocs has to know of a repository: the pictures lie beside `docs/`, so that the README shows the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_IMAGES = Path(__file__).resolve().parent.parent / "images"


def on_files(files: Files, config: Any) -> Files:
    """Add every picture to the site."""
    for path in sorted(_IMAGES.glob("*.*")):
        files.append(File.generated(config, f"images/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to pictures at the place where the site has them."""
    return markdown.replace("](../images/", "](images/")
