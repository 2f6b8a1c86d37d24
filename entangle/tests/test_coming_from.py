"""What the pages for newcomers from other libraries show, they show rightly: both sides are run."""

from __future__ import annotations

from pathlib import Path

import pytest

from .pairs import DOCS, compare, unread_code
from .ways import installed

pytestmark = [
    pytest.mark.skipif(not DOCS.is_dir(), reason="only a checkout has the documentation"),
    pytest.mark.pages,
]

PAGES = {"multiprocessing": ("numpy",), "concurrent_futures": (), "dask": ("dask", "numpy"), "joblib": ("joblib", "numpy")}


@pytest.mark.parametrize("library", PAGES)
def test_both_sides_give_the_same(library: str, tmp_path: Path) -> None:
    for needed in PAGES[library]:
        installed(needed)
    page = f"coming_from_{library}.md"
    assert unread_code(page) == []
    assert compare(page, tmp_path) > 10
