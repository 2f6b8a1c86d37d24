"""Records of runs in other places are sent over their agent's stream, to the run that started
them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle import records
from entangle._remote.caller.open_channels import close_all
from entangle.interpreter import interpreter
from entangle.process import process
from entangle.thread import thread

from . import bodies


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    close_all()
    yield tmp_path / "records"
    close_all()


there = interpreter(python=sys.executable)


def _tree(run: Any) -> Any:
    return run.name, sorted(_tree(child) for child in records.runs(nested=True) if child.parent_id == run.id)


@process
def doubled(n: int) -> int:
    return 2 * n


def divide(a: int, b: int) -> float:
    return a / b


def nesting(n: int) -> int:
    return int(process(bodies.add)(doubled(n), 1)())


def test_a_far_run_is_remembered_below_the_run_that_wanted_it() -> None:
    assert process(bodies.add)(there(process(bodies.num))(3), 4)() == 7
    (outer,) = records.runs()
    assert _tree(outer) == ("add", [("num", [])])
    (far,) = [run for run in records.runs(nested=True) if run.parent_id == outer.id]
    assert (far.state, [node.name for node in far.nodes]) == ("done", ["num"])
    assert far.nodes[0].pid != os.getpid()


def test_runs_that_a_far_body_calls_are_below_it() -> None:
    assert there(process(nesting))(5)() == 11
    assert there(nesting)(6)() == 13
    assert [_tree(run) for run in records.runs()] == [("nesting", [("nesting", [("add", [])])])] * 2


def test_many_at_once_and_from_workers() -> None:
    far = there(bodies.num)
    assert thread(bodies.gather)(*[far(n) for n in range(20)])()[0] == tuple(range(20))
    assert process(bodies.gather)(*[process(there(bodies.num))(n) for n in range(4)])()[0] == tuple(range(4))
    first, second = sorted(records.runs(), key=lambda run: run.started)
    assert _tree(first) == ("gather", [("num", [])] * 20)
    assert _tree(second) == ("gather", [("num", [])] * 4)


def test_a_far_failure_is_remembered_too() -> None:
    with pytest.raises(ZeroDivisionError):
        there(process(divide))(1, 0)()
    assert [(run.name, run.state) for run in records.runs(nested=True)] == [("divide", "failed")] * 2


def test_nothing_is_remembered_where_nothing_is_to_be(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD", "0")
    assert there(process(nesting))(5)() == 11
    assert not directory.exists()


def test_nothing_stays_there(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home" / "state"))
    assert there(process(nesting))(5)() == 11
    assert len(records.runs(nested=True)) == 3
    assert not (tmp_path / "home").exists()
    assert sorted(os.listdir(directory / "sheets")) == []
