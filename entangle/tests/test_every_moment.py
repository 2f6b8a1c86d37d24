"""A worker is killed, or the caller interrupted, at one moment after another of the engine's own
code.

These tests take a sample of the moments; `drill/` takes all.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .moments import SHAPES, Interrupting, Killing, meets, rooms_of_moments


@pytest.fixture(autouse=True)
def _pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create the pool of one cookie, which a process keeps, before anything is counted. There is
    one device."""
    monkeypatch.setenv("ENTANGLE_GPUS", "0")
    assert SHAPES["pool"].call(str(tmp_path / "first"))(start="fork") == 15


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("leaves", 41),
        ("pool", 83),
        ("nested pool", 263),
        ("limits", 131),
        ("nested limits", 421),
        ("devices", 41),
        ("chain on a device", 41),
        ("nested devices", 347),
        ("retry", 61),
        ("mixed", 59),
        ("failing", 131),
        ("fan", 37),
        ("failing fan", 131),
    ],
)
def test_a_worker_killed_between_two_writes(name: str, step: int, tmp_path: Path) -> None:
    shape = SHAPES[name]
    for depth, serial in shape.victims:
        number = 1
        # The first worker may have done all the work before another one gets that far.
        again = 0 if (depth, serial) == (0, 1) else 20
        while (met := meets(shape, tmp_path / "log", Killing(number, depth, serial))) or (number == 1 and again):
            again -= not met
            number += step if met else 0
        assert number > (5 * step if (depth, serial) == (0, 1) else 1), f"worker {serial} at depth {depth} was killed too seldom"


def test_moments_are_those_of_the_whole_engine() -> None:
    """Else code that moves to another directory would be left out unnoticed."""
    # `progress` and `identity` are subdirectories, loaded only where they are used.
    assert rooms_of_moments() - {"progress", "identity"} == {"_shared", "_worker", "_run", "entangle"}


@pytest.mark.parametrize(("name", "step"), [("tree", 73), ("pool", 91), ("limits", 131), ("devices", 127), ("mixed", 83)])
def test_ctrl_c_between_two_instructions(name: str, step: int, tmp_path: Path) -> None:
    number = 1
    while meets(SHAPES[name], tmp_path / "log", Interrupting(number)):
        number += step
    assert number > 5 * step, "Ctrl-C came too seldom"
