"""The pages for newcomers from other libraries: both sides are run, and their values compared."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from .pairs import SIDES, compare, parts_of, run_side, unread_code
from .shown_blocks import documentation
from .ways import installed

documentation()
pytestmark = pytest.mark.pages

PAGES = {"multiprocessing": ("numpy",), "concurrent_futures": (), "dask": ("dask", "numpy"), "joblib": ("joblib", "numpy")}


@pytest.mark.parametrize("library", PAGES)
def test_both_sides_give_the_same(library: str, tmp_path: Path) -> None:
    for needed in PAGES[library]:
        installed(needed)
    page = f"coming_from_{library}.md"
    assert unread_code(page) == []
    assert compare(page, tmp_path) > 10


def _right_side(page: str, folder: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """Run the right side of a page. Return what its blocks have assigned, and the values of its
    rows."""
    assert unread_code(page) == []
    kept = run_side(page, SIDES[1], folder, guarded=False)
    kinds = [kind for kind, _ in parts_of(page)[SIDES[1]]]
    return [kept[at] for at, kind in enumerate(kinds) if kind == "block"], [kept[at] for at, kind in enumerate(kinds) if kind == "row"]


def test_prefect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The left side runs only where prefect is installed: it brings a server and a hundred
    packages."""
    page = "coming_from_prefect.md"
    blocks, rows = _right_side(page, tmp_path)
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
        assert compare(page, tmp_path) == len(blocks) + len(rows)


def test_ray(tmp_path: Path) -> None:
    """The left side runs only where ray is installed: `make test-engines` has it."""
    page = "coming_from_ray.md"
    installed("numpy")
    blocks, rows = _right_side(page, tmp_path)
    came_to = [next(iter(block.values()), None) for block in blocks]
    assert came_to == [10, [0, 1, 4, 9, 16], [1.0, 1.0, 1.0, 1.0], "no inverse", "done", "too late"]
    assert rows == [9, [x * x for x in range(10)], [4, 3], 285, 9, 9]
    if importlib.util.find_spec("ray") is not None:
        assert compare(page, tmp_path) == len(blocks) + len(rows)


def test_twingraph(tmp_path: Path) -> None:
    """The left side is not run: it needs servers."""
    blocks, rows = _right_side("coming_from_twingraph.md", tmp_path)
    assert [block["result"] for block in blocks] == [12, 2, ["plant", "measured"]]
    assert rows == []


def test_entangle_0_2(tmp_path: Path) -> None:
    """Code written for 0.2 still runs unchanged."""
    page = "coming_from_0_2.md"
    installed("numpy")
    assert unread_code(page) == []
    assert compare(page, tmp_path) == 10
