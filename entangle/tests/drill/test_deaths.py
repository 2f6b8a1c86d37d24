"""Workers are killed three hundred times, at chosen and at random moments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from entangle.errors import ProcessTerminatedException
from entangle.tests.evidence import text_of
from entangle.tests.killing import Killer, graph_with_a_victim, kill_and_compare, kill_at_any_moment, victims

pytestmark = pytest.mark.drill

BLOCKS = range(10)


@pytest.fixture
def killer() -> Iterator[Killer]:
    """A process that kills this process's workers."""
    with Killer() as ready:
        yield ready


@pytest.mark.parametrize("block", BLOCKS)
def test_three_hundred_deaths_with_retry(killer: Killer, tmp_path: Path, block: int, start: str) -> None:
    for number in range(30 if start == "fork" else 5):
        kill_and_compare(killer, tmp_path / str(number), seed=10_000 + 100 * block + number)


@pytest.mark.parametrize("block", BLOCKS)
def test_three_hundred_deaths_without_retry(killer: Killer, tmp_path: Path, block: int) -> None:
    for number in range(30):
        folder = tmp_path / str(number)
        folder.mkdir()
        call, _ = graph_with_a_victim(folder, seed=20_000 + 100 * block + number, retry=0)
        killer.kill_when_noted(folder / "victim")
        with pytest.raises(ProcessTerminatedException) as caught:
            call()
        assert killer.killed() == victims(folder)
        assert "SIGKILL" in text_of(caught.value)


@pytest.mark.parametrize("block", BLOCKS)
def test_three_hundred_deaths_at_any_moment(killer: Killer, block: int) -> None:
    kill_at_any_moment(killer, range(30_000 + 100 * block, 30_030 + 100 * block), retry=3)


@pytest.mark.parametrize("block", BLOCKS)
def test_three_hundred_deaths_at_any_moment_without_retry(killer: Killer, block: int) -> None:
    kill_at_any_moment(killer, range(40_000 + 100 * block, 40_030 + 100 * block), retry=0)
