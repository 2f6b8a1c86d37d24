"""Bodies in several processes that need each other's keys: none waits for ever."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from entangle._depot import opened
from entangle._depot.circles import Wait, breaks_a_circle

_PROGRAM = """
import os, sys, time
from entangle.cache import Cache
from entangle.process import process

folder, mine, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
remembered = Cache(ignore=["deep", "count", "folder"], version=1)

@process(cache=remembered)
def node(number, deep, count, folder):
    with open(os.path.join(folder, f"began-{number}"), "a") as file:
        file.write("x")
    while not all(os.path.exists(os.path.join(folder, f"began-{n}")) for n in range(count)):
        time.sleep(0.01)
    if deep > count:
        return ["end"]
    return [number, *node((number + 1) % count, deep + 1, count, folder)()]

if __name__ == "__main__":
    print(node(mine, 0, count, folder)())
"""


@pytest.mark.parametrize("count", [2, 3])
def test_bodies_that_need_each_other_in_as_many_processes(tmp_path: Path, count: int) -> None:
    (tmp_path / "program.py").write_text(_PROGRAM)
    environment = {**os.environ, "ENTANGLE_DEPOT": str(tmp_path / "depot")}
    running = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), str(tmp_path), str(number), str(count)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    said = [process.communicate(timeout=100) for process in running]
    assert [(process.returncode, error) for process, (_, error) in zip(running, said, strict=True)] == [(0, "")] * count
    assert [out.startswith(f"[{number}, {(number + 1) % count}") for number, (out, _) in enumerate(said)] == [True] * count
    for folder in ("locks", "waits"):
        assert list((tmp_path / "depot" / folder).iterdir()) == []


def test_what_is_a_circle() -> None:
    one, two, three = Wait("b", ("a",)), Wait("c", ("b", "x")), Wait("a", ("c", "y"))
    circle = [one, two, three]
    for order in itertools.permutations(circle):
        assert [wait.wants for wait in circle if breaks_a_circle(wait, order)] == ["a"]
    assert not any(breaks_a_circle(wait, [one, two]) for wait in (one, two))
    # A call that waits for a circle from outside is not part of it.
    assert not breaks_a_circle(Wait("a", ("0",)), circle)


def test_what_the_killed_have_said_is_not_read(tmp_path: Path) -> None:
    place = opened.depot(str(tmp_path / "depot"))
    place._make()
    said = place.say_waiting(Wait("a", ("b",)))
    assert place.waits() == [Wait("a", ("b",))]
    (tmp_path / "depot" / "waits" / "killed").write_bytes(Wait("b", ("a",)).written())
    assert place.waits() == [Wait("a", ("b",))]
    said.give()
    assert place.waits() == []


def test_waits_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    place = opened.depot(f"memory:/{tmp_path}")
    said = place.say_waiting(Wait("a", ("b",)))
    assert place.waits() == [Wait("a", ("b",))]
    said.give()
    monkeypatch.setattr("entangle._depot.remote_depot._LASTS", -60.0)
    place.say_waiting(Wait("a", ("b",)))
    assert place.waits() == []
