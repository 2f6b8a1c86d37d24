"""A worker is killed, or the caller interrupted, at each moment of the engine's code in turn, until
a run has no further moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entangle.dataflow import dataflow, process
from entangle.errors import ProcessTerminatedException

from ..moments import SHAPES, Interrupting, Killing, meets


def flow() -> Any:
    """Two process nodes, one after the other."""

    @dataflow
    @process(retry=3, on=ProcessTerminatedException)
    def more(x: int) -> int:
        time.sleep(0.002)
        return x + 1

    @dataflow
    @process(retry=3, on=ProcessTerminatedException)
    def twice(x: int) -> int:
        return x * 2

    return more(twice())


pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]


@pytest.fixture(autouse=True)
def _pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool with one cookie is made once for a process, so make it before counting. There is one
    device."""
    monkeypatch.setenv("ENTANGLE_GPUS", "0")
    assert SHAPES["pool"].call(str(tmp_path / "first"))(start="fork") == 15


def all_moments(name: str, log: Path, of: Callable[[int], Killing | Interrupting]) -> int:
    """Run it once for each moment. Return how many there were. Which worker does what differs
    between runs, so stop only when several moments in a row did not occur."""
    number, missed, came = 1, 0, 0
    while missed < 5:
        hit = meets(SHAPES[name], log, of(number))
        missed, came, number = 0 if hit else missed + 1, came + hit, number + 1
    return came


@pytest.mark.parametrize(("name", "victim"), [(name, victim) for name, shape in SHAPES.items() for victim in shape.victims])
def test_a_worker_killed_at_every_moment(name: str, victim: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    came = all_moments(name, tmp_path / "log", lambda number: Killing(number, *victim))
    with capsys.disabled():
        print(f"\n{name}, worker {victim[1]} at depth {victim[0]}: killed at {came} moments")
    assert came


@pytest.mark.parametrize("name", SHAPES)
def test_ctrl_c_at_every_moment(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    came = all_moments(name, tmp_path / "log", Interrupting)
    with capsys.disabled():
        print(f"\n{name}: interrupted at {came} moments")
    assert came > 100


def test_a_stream_whose_worker_is_killed_at_every_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The values of a stream come in order, each once, with `retry`, and the run ends."""
    number, missed, came = 1, 0, 0
    while missed < 5:
        moment = Killing(number, 0, 1)
        with moment:
            got = list(flow().stream(range(12), start="fork"))
        assert got == [((n + 1) * 2,) for n in range(12)], number
        missed, came, number = 0 if moment.hit else missed + 1, came + moment.hit, number + 1
    with capsys.disabled():
        print(f"\nstream: killed at {came} moments")
    assert came
