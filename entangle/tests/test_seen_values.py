"""Hits and misses of `cache=` in the records, `entangle show`, the page and the progress."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from entangle import gather, records
from entangle._records import database
from entangle._run.progress.wording import View, last_line, summary
from entangle._tasks.cache_options import Cache
from entangle.cli import main
from entangle.process import process
from entangle.thread import thread
from entangle.web import recorded


@process
def total(*values: Any) -> int:
    return sum(map(len, values))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    monkeypatch.setenv("ENTANGLE_DEPOT", str(tmp_path / "depot"))
    return tmp_path / "records"


def large(n: int) -> bytes:
    return bytes(1 << 20) + bytes([n])


def small(n: int) -> str:
    return "x" * n


@pytest.mark.parametrize("carrier", [process, thread])
def test_a_record_says_which_values_a_depot_had_and_when_they_were_made(directory: Path, carrier: Any) -> None:
    load, make = carrier(cache=True)(large), carrier(cache=True)(small)
    before = time.time()
    assert total(load(1), make(2))() == (1 << 20) + 3
    first = records.run()
    assert [node.hit for node in first.nodes] == [False, False, None]
    assert [node.made for node in first.nodes] == [None, None, None]
    assert first.taken == ()
    after = time.time()
    assert total(load(1), make(2), make(3))() == (1 << 20) + 6
    second = records.run()
    assert {node.name: node.hit for node in second.nodes} == {"large": True, "small": False, "total": None}
    (found,) = (node for node in second.nodes if node.hit)
    assert found.made is not None
    assert before <= found.made <= after
    assert found.depot_key == first.nodes[0].depot_key
    (taken,) = second.taken
    assert (taken.task, taken.key, second.taken_count) == ("small", first.nodes[1].depot_key, 1)
    assert before <= taken.made <= after
    told = second.to_dict()
    assert told["taken_count"] == 1
    assert sorted(str(node["hit"]) for node in told["node_list"]) == ["False", "None", "True"]


def test_show_and_the_page_say_it(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load, make = process(cache=True)(large), process(cache=True)(small)
    for _ in range(2):
        assert total(load(1), make(2))() == (1 << 20) + 3
    assert main(["show"]) == 0
    shown = capsys.readouterr().out
    assert "1 more from the depot" in shown
    assert "small x1 from the depot, made " in shown
    (hit,) = (node for node in records.run().nodes if node.hit)
    assert f"#{hit.number}  from the depot, made " in shown
    assert main(["show", "--node", str(hit.number)]) == 0
    assert f"  from the depot, made {time.strftime('%H:')}"[:24] in capsys.readouterr().out
    assert main(["show", "--node", str(hit.number), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["hit"], told["depot_key"], told["made"]) == (True, hit.depot_key, hit.made)
    with database.opened(str(directory)) as connection:
        row = recorded.find(connection, hit.run.id)
        assert recorded._summary(row)["taken"] == 1


def test_of_many_calls_the_first_thousand_are_listed_and_all_are_counted(directory: Path) -> None:
    make = process(cache=True)(small)
    gather(*map(make, range(1100)))()
    assert total(*map(make, range(1100)), "y")() == sum(range(1100)) + 1
    run = records.run()
    assert (len(run.taken), run.taken_count) == (1000, 1100)


def test_a_value_that_is_too_old_is_a_miss(directory: Path) -> None:
    make = process(cache=Cache(expire=1e-9))(small)
    for _ in range(2):
        total(make(2))()
    assert [node.hit for node in records.run().nodes] == [False, None]


def test_records_of_before_are_read(directory: Path) -> None:
    assert total("a")() == 1
    records.runs()
    path = directory / database.NAME
    with sqlite3.connect(path) as connection:
        for table, column in (("runs", "taken"), ("runs", "taken_count"), ("nodes", "made"), ("nodes", "depot_key")):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute(f"PRAGMA user_version = {database.VERSION - 1}")
    connection.close()
    run = records.run()
    assert (run.taken, run.taken_count, [node.hit for node in run.nodes]) == ((), 0, [None])
    assert os.path.exists(path)


def test_progress_counts_them() -> None:
    view = View("id", "total", [], 2.0, taken=1200)
    assert "1,200 from the depot" in summary(view)
    view.end = "done"
    assert last_line(view) == "0 done, 0 running, 0 waiting in 0:02 · 1,200 from the depot"
