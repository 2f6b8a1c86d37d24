"""The record of a stream: its stages, with their items, in a limited amount of memory."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from entangle import records
from entangle._records.load import MOST, halved
from entangle._run.history import MOST_BINS, MOST_STRETCHES, History
from entangle._run.rearmed import GATHER, SOURCE, Row
from entangle.flow import Body
from entangle.process import process

from .callers import ROOT
from .evidence import wait_until

STREAMS = """
    import logging, sys, time
    from entangle.dataflow import dataflow, process, thread

    logging.disable()

    @dataflow
    @process
    def load(n):
        return n

    @dataflow
    @process
    def parse(n):
        if n % 10 == 3:
            raise ValueError(f"no {n}")
        return n

    @dataflow
    @thread
    def save(n):
        return n

    @dataflow
    @process
    def total(ns):
        return sum(ns)

    flow = load(parse(save(), save()))
    if sys.argv[1] == "skip":
        print(sum(a + b for a, b in flow.stream(range(50), on_error="skip")))
    elif sys.argv[1] == "raise":
        try:
            for _ in flow.stream(range(50)):
                pass
        except ValueError as error:
            print(error)
    elif sys.argv[1] == "push":
        print(flow(7))
    elif sys.argv[1].startswith("left"):
        if sys.argv[1] == "left late":  # the feeder has ended before the run is cancelled
            from entangle._run.run import Run
            cancel = Run.cancel
            Run.cancel = lambda run: (time.sleep(0.5), cancel(run))[1]
        for value in flow.stream(iter(int, 1)):
            print(value)
            break
"""


def stream(monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str) -> records.Run:
    """Run a stream in a program, and return its record."""
    script = folder / "streams.py"
    environment = {**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RECORD_DIR": str(folder / "records")}
    script.write_text(textwrap.dedent(STREAMS), encoding="utf-8")
    subprocess.run([sys.executable, str(script), kind], check=True, env=environment, timeout=60, cwd=folder)
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", environment["ENTANGLE_RECORD_DIR"])
    (run,) = records.runs()
    return run


@pytest.mark.parametrize("kind", ["skip", "push"])
def test_a_stream_that_ended_well_is_remembered_by_its_stages_all_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    run = stream(monkeypatch, tmp_path, kind)
    assert (run.state, run.name) == ("done", "load")
    assert [(node.name, node.state) for node in run.nodes] == [("load", "done"), ("parse", "done"), ("save", "done"), ("save", "done")]
    assert {(edge.source, edge.target) for edge in run.edges} == {(0, 1), (1, 2), (1, 3)}
    assert all(node.pid and (node.seconds or 0) > 0 for node in run.nodes)
    assert "def parse(n):" in run.nodes[1].task.source


def test_the_stage_that_ended_a_stream_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = stream(monkeypatch, tmp_path, "raise")
    assert run.state == "failed"
    assert run.error is not None
    assert run.error.node == 1
    assert run.nodes[1].state == "failed"


@pytest.mark.parametrize("kind", ["left", "left late"])
def test_a_stream_that_its_consumer_left_was_cancelled_and_its_stages_have_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    run = stream(monkeypatch, tmp_path, kind)
    assert run.state == "cancelled"
    assert run.nodes[0].state == "done"


def named(name: str, number: int) -> Body:
    return Body(SimpleNamespace(number=number), name)  # type: ignore[arg-type]


def history() -> History:
    """Three stages in a row, and one below a window that gathers from the second."""
    a, b, c, d = (named(name, number) for number, name in enumerate("abcd"))
    first = (Row(SOURCE, ()), Row(a, (0,)), Row(b, (1,)), Row(c, (2,)), Row(GATHER, (3,)))
    second = (Row(SOURCE, ()), Row(d, (0,)), Row(GATHER, (1,)))
    return History([first, second], {1: (0, 2)})


def record(started: int, ended: int, slot: int = 1) -> tuple[int, ...]:
    return started, ended, 0, 0, 0, 100 + slot, 0, slot


def test_a_stage_below_a_window_takes_from_the_row_that_feeds_it() -> None:
    assert [stage.inputs for stage in history().stages] == [(), (0,), (1,), (1,)]
    assert list(history().flow().inputs) == [0, 1, 1]


def test_items_that_failed_are_neither_done_there_nor_below() -> None:
    told = history()
    told.add(0, [record(0, 10), record(10, 20), record(20, 30)], 5)
    told.add(1, [record(30, 40)], 1)
    told.fail([1, 1, 99])
    assert [(one["done"], one["failed"], one["skipped"]) for one in told.told()["stages"]] == [(5, 0, 0), (3, 2, 0), (3, 0, 2), (1, 0, 0)]


def test_a_history_without_end_takes_bounded_room_and_loses_nothing() -> None:
    told = history()
    second, count = 1_000_000_000, 20_000
    for at in range(count):
        began = at * second // 4
        told.add(0, [record(began + part * 1_000_000, began + (part + 1) * 1_000_000 - 1, at % 3 + 1) for part in range(3)], 2)
    found = told.told()
    assert len(found["bins"]) <= MOST_BINS
    assert len(found["stretches"]) <= MOST_STRETCHES
    assert [sum(items) for items in zip(*found["bins"], strict=True)] == [2 * count] * 3 + [0]
    assert sum(one[6] for one in found["stretches"]) == 6 * count
    assert max(one[4] for one in found["stretches"]) == told.ended[2]


def test_a_stretch_has_the_stage_that_took_most_of_it() -> None:
    told = history()
    told.gap *= 4
    told.add(0, [record(0, 1_000), record(1_000, 90_000), record(90_000, 91_000)], 1)
    assert [(one[5], one[6]) for one in told.told()["stretches"]] == [(1, 3)]


LASTING = """
    import time
    from entangle._records import load
    from entangle.process import process

    load.RARE = 0  # on a machine that is busy, one sample may take long

    @process
    def busy(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        return bytes(30_000_000) and seconds

    print(busy(0.8)())
"""


def test_the_load_of_a_run_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lasting.py").write_text(textwrap.dedent(LASTING), encoding="utf-8")
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    subprocess.run([sys.executable, "lasting.py"], check=True, env={**os.environ, "PYTHONPATH": ROOT}, timeout=60, cwd=tmp_path)
    (run,) = records.runs()
    with sqlite3.connect(tmp_path / "records" / "records.sqlite") as connection:
        (load,) = connection.execute("SELECT load FROM runs").fetchone()
    connection.close()
    samples = json.loads(load)
    assert len(samples) >= 2
    assert all(0 < seconds < run.seconds for seconds, _, _, _ in samples)
    assert max(cpus for _, cpus, _, _ in samples) > 0.1
    assert any(memory > 1_000_000 and workers >= 1 for _, _, memory, workers in samples)


def test_half_as_many_samples_of_a_load_tell_the_same() -> None:
    assert halved([(1.0, 1.0, 5, 1), (2.0, 3.0, 4, 2), (3.0, 1.0, 9, 1)]) == [(2.0, 2.0, 5, 2), (3.0, 1.0, 9, 1)]
    assert len(halved([(float(at), 1.0, at, 1) for at in range(MOST + 1)])) == MOST // 2 + 1


RETRIED = """
    import os
    from entangle.process import process

    @process(retry=2, sleep=0.3)
    def flaky():
        with open("tries", "a") as file:
            file.write("x")
        if os.path.getsize("tries") < 3:
            raise OSError("not yet")
        return 1

    print(flaky()())
"""


def test_a_pause_between_attempts_is_no_time_in_which_a_node_waited_for_a_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "retried.py").write_text(textwrap.dedent(RETRIED), encoding="utf-8")
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    subprocess.run([sys.executable, "retried.py"], check=True, env={**os.environ, "PYTHONPATH": ROOT}, timeout=60, cwd=tmp_path)
    (run,) = records.runs()
    (node,) = run.nodes
    assert node.attempts == 3
    assert node.times.pauses >= 0.6
    assert node.times.tried > 0
    assert node.ready is not None
    assert node.started is not None
    spent = node.times.worker + node.times.cookie + node.times.tried + node.times.pauses
    assert spent == pytest.approx(node.started - node.ready, abs=1e-3)


LOST = """
    import os, sys, time
    from entangle.process import process

    @process(timeout=0.3, retry=1)
    def late():
        time.sleep(60)

    @process
    def killed():
        os.kill(os.getpid(), 9)

    try:
        {"late": late, "killed": killed}[sys.argv[1]]()()
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize(("kind", "attempts", "least"), [("late", 2, 0.3), ("killed", 1, 0.0)])
def test_when_and_where_a_lost_body_ran_is_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, attempts: int, least: float
) -> None:
    (tmp_path / "lost.py").write_text(textwrap.dedent(LOST), encoding="utf-8")
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    subprocess.run([sys.executable, "lost.py", kind], check=True, env={**os.environ, "PYTHONPATH": ROOT}, timeout=60, cwd=tmp_path)
    (run,) = records.runs()
    (node,) = run.nodes
    assert (node.state, node.attempts) == ("failed", attempts)
    assert node.pid
    assert node.seconds is not None
    assert node.seconds >= least
    assert run.ended is not None
    assert node.ended is not None
    assert node.ended <= run.ended


def test_of_a_stream_that_is_over_nothing_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop takes the values long after the run has computed them."""
    from entangle.web import recorded

    monkeypatch.setenv("ENTANGLE_RECORD", "1")
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    double = process(lambda x: 2 * x)
    with double.stream(range(20), inflight=64) as stream:
        assert next(stream) == 0
        wait_until(lambda: any(run.state == "done" for run in records.runs()))
        assert list(stream) == list(range(2, 40, 2))
    (run,) = records.runs()
    told = recorded.info(run.id)["stream"]
    assert (told["pulled"], told["taken"]) == (20, 20)
