"""Runs of a session are visible while they last: in `top`, the page, the records and the
progress."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from entangle import Executor, records, session
from entangle._run.progress import following
from entangle._watch.live_runs import live_runs
from entangle.process import process
from entangle.web import live

from .callers import Caller
from .evidence import wait_until

PROGRAM = """
    import os, time
    from entangle import session
    from entangle.process import process

    def wait(path):
        while not os.path.exists(path):
            time.sleep(0.005)

    @process
    def first(path):
        wait(path)
        return 1

    @process
    def second(path):
        wait(path)
        return 2

    @process
    def add(a, b):
        return a + b

    with session(workers=1) as opened:
        add(1, 1)()
        print(*opened.pids, flush=True)
        for turn, task in enumerate((first, second, first)):  # in one frame
            assert add(task(f"go-{turn}"), 1)() == turn % 2 + 2
            add(1, 1)()
            print("over", flush=True)
            wait(f"on-{turn}")
"""


def seen() -> dict[str, Any] | None:
    """What `top` shows of the one live run, once its worker is busy."""
    for run in live_runs():
        with run:
            busy = [(worker.pid, worker.kind, worker.name) for worker in run.workers() if worker.node >= 0]
            if run.outline and busy:
                names = [run.name(node) for node in range(run.table.nodes)]
                return {"id": run.id, "names": names, "counts": run.counts(), "busy": busy}
    return None


def test_runs_are_seen_though_they_began_without_a_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    caller = Caller(tmp_path, PROGRAM, ENTANGLE_RECORD_DIR=str(tmp_path / "records"))
    monkeypatch.setenv("ENTANGLE_RUN_DIR", str(caller.runs))
    caller.start()
    try:
        assert caller.process.stdout is not None
        worker = int(caller.process.stdout.readline())
        for turn, name in enumerate(("first", "second", "first")):
            run = wait_until(seen)
            assert (run["names"], run["counts"], run["busy"]) == ([name, "add"], (0, 1, 1, 0), [(worker, "process", name)])
            (card,) = live.cards()
            assert (card["id"], card["task"], card["counts"]) == (run["id"], "add", {"running": 1, "waiting": 1})
            assert [one.id for one in records.runs(state="running")] == [run["id"]]
            (tmp_path / f"go-{turn}").touch()
            assert caller.process.stdout.readline() == "over\n"
            assert live_runs() == []
            assert records.run(run["id"]).state == "done"
            (tmp_path / f"on-{turn}").touch()
    finally:
        caller.stop()


@process
def add(a: int, b: int) -> int:
    return a + b


def test_a_run_that_a_call_of_an_executor_begins_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor's call itself is not recorded as a run."""
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    with Executor(1) as executor:
        assert executor.submit(lambda: add(1, 2)()).result() == 3
        assert executor.submit(abs, -1).result() == 1
    assert [(run.name, run.state) for run in records.runs()] == [("add", "done")]


@pytest.mark.parametrize("many", [False, True])
def test_progress_is_shown(many: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(following, "SILENT", 0.0)
    monkeypatch.setattr(following, "EVERY", 0.0)
    naps = process(time.sleep)
    with session(workers=2):
        assert add(1, 1)() == 2
        (naps.map([0.02] * 8) if many else naps(0.1)).run(progress=True)
    shown = capfd.readouterr().err
    assert "sleep" in shown
    assert "done" in shown
