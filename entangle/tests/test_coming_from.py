"""What the pages for newcomers from other libraries show, they show rightly: both sides are run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from .pairs import DOCS, SIDES, compare, parts_of, run_side, unread_code
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


def test_prefect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own side runs where it is installed: it brings a server and a hundred packages."""
    page = "coming_from_prefect.md"
    assert unread_code(page) == []
    kept = run_side(page, SIDES[1], tmp_path, guarded=False)
    blocks = [kept[number] for number, (kind, _) in enumerate(parts_of(page)[SIDES[1]]) if kind == "block"]
    rows = [kept[number] for number, (kind, _) in enumerate(parts_of(page)[SIDES[1]]) if kind == "row"]
    came_to = [block.get("result") or block.get("told") or block.get("values") for block in blocks]
    assert [value for value in came_to if value is not None] == [30, [1, 4], 9, ["0.5", "division by zero"], [6, 6]]
    assert rows == [9, [1, 4, 9], 5, 5]
    if importlib.util.find_spec("prefect") is not None:
        for name, value in {
            "HOME": str(tmp_path / "prefect"),
            "SERVER_ANALYTICS_ENABLED": "false",
            "LOGGING_LEVEL": "CRITICAL",
            "SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        }.items():
            monkeypatch.setenv(f"PREFECT_{name}", value)
        assert compare(page, tmp_path) == len(kept)
