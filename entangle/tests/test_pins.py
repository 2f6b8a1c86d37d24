"""Pins: the depot keeps what an unfinished run needs, until that run is over."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle._depot import opened, pins
from entangle._depot.entry import About
from entangle._depot.pins import Owner

KEYS = [f"{number:02x}" * 32 for number in range(8)]


@pytest.fixture(params=["directory", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A depot with values of 100 kB under KEYS."""
    if request.param == "memory":
        fsspec = pytest.importorskip("fsspec")
        place = opened.depot(f"memory:/{tmp_path}")
    else:
        place = opened.depot(str(tmp_path / "depot"))
    for key in KEYS:
        place.put(key, About("made", time.time(), 1.0, {}), os.urandom(100_000), [])
    yield place
    if request.param == "memory":
        with contextlib.suppress(FileNotFoundError):
            fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    (tmp_path / "ledger").mkdir()
    return Owner("nightly", str(tmp_path / "ledger"))


def keys_of(place: Any) -> list[str]:
    return sorted(file.key for file in place.entries())


def test_what_is_pinned_is_not_evicted(place: Any, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    place.pin(owner, KEYS[:2])
    place.pin(owner, KEYS[1:3])
    assert place.pinned() == {key: ["nightly"] for key in KEYS[:3]}
    monkeypatch.setenv("ENTANGLE_DEPOT_AGE", "0.0001")
    assert len(place.trim()) == 5
    assert keys_of(place) == KEYS[:3]
    place.unpin(owner)
    assert place.pinned() == {}
    assert len(place.trim()) == 3


def test_nor_where_the_depot_is_full(place: Any, owner: Owner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    place.pin(owner, KEYS[:3])
    monkeypatch.setenv("ENTANGLE_DEPOT_SIZE", "200k")
    place.trim()
    assert keys_of(place) == KEYS[:3]
    assert ["pinned by nightly" in record.message for record in caplog.records] == [True]


def test_a_pin_ends_with_what_it_is_for(place: Any, owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").touch()
    place.pin(owner, KEYS[:2])
    place.pin(Owner("replay 7", str(tmp_path / "other")), KEYS[1:3])
    assert place.pinned() == {KEYS[0]: ["nightly"], KEYS[1]: ["nightly", "replay 7"], KEYS[2]: ["replay 7"]}
    shutil.rmtree(owner.path)
    assert place.pinned() == {key: ["replay 7"] for key in KEYS[1:3]}
    monkeypatch.setenv("ENTANGLE_DEPOT_AGE", "0.0001")
    place.trim()
    assert keys_of(place) == KEYS[1:3]
    (tmp_path / "ledger").mkdir()
    # An owner that has ended does not come back.
    assert place.pinned() == {key: ["replay 7"] for key in KEYS[1:3]}


def test_of_another_machine_it_ends_after_a_month(place: Any, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as there:
        there.setattr("socket.gethostname", lambda: "another")
        place.pin(owner, KEYS[:2])
    shutil.rmtree(owner.path)  # this machine cannot see it anyway
    assert sorted(place.pinned()) == KEYS[:2]
    monkeypatch.setattr(pins, "ELSEWHERE", 0.0)
    assert place.pinned() == {}


def test_a_key_may_be_pinned_before_it_has_a_value(place: Any, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    place.pin(owner, ["ff" * 32])
    monkeypatch.setenv("ENTANGLE_DEPOT_AGE", "0.0001")
    place.put("ff" * 32, About("made", time.time(), 1.0, {}), b"value", [])
    place.trim()
    assert keys_of(place) == ["ff" * 32]


def test_damaged_pins_are_no_pins(tmp_path: Path, owner: Owner) -> None:
    place = opened.depot(str(tmp_path / "depot"))
    place.pin(owner, KEYS[:1])
    (file,) = (tmp_path / "depot" / "pins").iterdir()
    with file.open("a") as torn:
        torn.write(KEYS[1][:20])  # as a killed process leaves it
    place.pin(owner, KEYS[2:3])
    assert {KEYS[0], KEYS[2]} <= set(place.pinned())
    (tmp_path / "depot" / "pins" / "nobodys").write_text("{]")
    place.trim()
    assert [path.name for path in (tmp_path / "depot" / "pins").iterdir()] == [file.name]


def test_a_full_disk_is_told_and_what_was_pinned_stays(tmp_path: Path, owner: Owner) -> None:
    place = opened.depot(str(tmp_path / "depot"))
    place.pin(owner, KEYS[:1])
    program = (
        "import resource, signal, sys\n"
        "from entangle._depot.opened import depot\nfrom entangle._depot.pins import Owner\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    depot(sys.argv[1]).pin(Owner(*sys.argv[2:]), [f'{n:064x}' for n in range(100)])\n"
        "except OSError as error:\n    print('told', error.errno)\n"
    )
    said = subprocess.run([sys.executable, "-c", program, str(tmp_path / "depot"), *owner], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("told")
    assert sorted(place.pinned()) == KEYS[:1]


_PINNER = """
import os, sys
from entangle._depot.opened import depot
from entangle._depot.pins import Owner
place, owner = depot(sys.argv[1]), Owner(sys.argv[2], sys.argv[3])
for number in range(int(sys.argv[4])):
    key = f"{number:03x}" + sys.argv[5] * 61
    place.pin(owner, [key])
    place.find(key)
    sys.stdout.write(key + "\\n")
    sys.stdout.flush()
"""


def _pinner(depot: Path, owner: Owner, count: int, letter: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _PINNER, str(depot), *owner, str(count), letter]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_several_processes_pin_for_one_owner_while_one_trims(tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_DEPOT_AGE", "0.0001")
    place = opened.depot(str(tmp_path / "depot"))
    running = [_pinner(tmp_path / "depot", owner, 300, letter) for letter in "abc"]
    while any(process.poll() is None for process in running):
        place.trim()
    told = [key for process in running for key in process.communicate()[0].split()]
    assert len(told) == 900
    assert sorted(place.pinned()) == sorted(told)


def test_what_is_there_after_it_was_pinned_stays(tmp_path: Path, owner: Owner) -> None:
    """Another process evicts everything that is not pinned, over and over."""
    depot = tmp_path / "depot"
    place = opened.depot(str(depot))
    evict = (
        "import os, sys\nfrom entangle._depot.opened import depot\nplace = depot(sys.argv[1])\n"
        "while not os.path.exists(sys.argv[2]):\n    place.trim()\n"
    )
    environment = {**os.environ, "ENTANGLE_DEPOT_AGE": "0.0001"}
    other = subprocess.Popen([sys.executable, "-c", evict, str(depot), str(tmp_path / "done")], env=environment)
    kept = []
    for number in range(600):
        key = f"{number:064x}"
        place.put(key, About("made", time.time(), 1.0, {}), b"value", [])
        place.pin(owner, [key])
        if place.find(key) is not None:
            kept.append(key)
    (tmp_path / "done").touch()
    assert other.wait() == 0
    assert kept
    assert [key for key in kept if place.find(key) is None] == []


def test_a_pinner_that_is_killed_stops_nobody(tmp_path: Path, owner: Owner) -> None:
    for _ in range(5):
        process = _pinner(tmp_path / "depot", owner, 100_000, "a")
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    place = opened.depot(str(tmp_path / "depot"))
    place.pin(owner, KEYS[:1])
    assert KEYS[0] in place.pinned()
    assert all(len(key) == 64 for key in place.pinned())
    place.trim()


# --- in a terminal --------------------------------------------------------------------------------


def _entangle(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "entangle", "cache", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_the_command_line_shows_pins_and_keeps_them(tmp_path: Path, owner: Owner) -> None:
    depot = tmp_path / "depot"
    place = opened.depot(str(depot))
    for key in KEYS:
        place.put(key, About("made", time.time(), 1.0, {}), b"value", [])
    place.pin(owner, KEYS[:2])
    where = ("--where", depot)
    listed = json.loads(_entangle("ls", *where, "--json").stdout)
    assert {value["key"]: value["pinned"] for value in listed} == {key: ["nightly"] * (key in KEYS[:2]) for key in KEYS}
    assert "nightly" in _entangle("ls", *where).stdout
    named = _entangle("rm", KEYS[0], *where)
    assert (named.returncode, "nightly" in named.stderr, "--force" in named.stderr) == (1, True, True)
    everything = _entangle("rm", "--all", *where)
    assert (everything.returncode, "6 values removed" in everything.stderr) == (1, True)
    assert keys_of(place) == KEYS[:2]
    forced = _entangle("rm", "--all", "--force", *where)
    assert (forced.returncode, keys_of(place)) == (0, [])
