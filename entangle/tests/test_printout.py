"""What bodies print goes to the program's streams as usual, and is kept with their nodes."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from entangle import records
from entangle._shared import printout

from .callers import ROOT

PRINTING = """
    import os, subprocess, sys, threading
    from entangle.process import process

    @process
    def loud(n):
        print("out", n, end="")
        print("", "of", n)
        print("err", n, file=sys.stderr)
        return n

    @process
    def killed(n):
        print("before")
        print("half", end="")
        os.kill(os.getpid(), 9)

    @process
    def leaky(n):
        print("password=hunter2hunter2")
        return n

    @process
    def password(n):
        print("it is correct-horse", n)
        return "correct-horse"

    @process
    def login(password, user):
        print("in with", password)
        return len(password)

    @process
    def endless(n):
        for line in range(20_000):
            print("line", line)
        return n

    @process
    def quiet(*ns):
        return len(ns)

    @process
    def around(n):
        print("outside")
        return loud(n)()

    @process
    def forks(n):
        print("parent")
        child = os.fork()
        if not child:
            print("child")
            os._exit(0)
        os.waitpid(child, 0)
        sys.stdout.writelines(["by ", "lines\\n"])
        thread = threading.Thread(target=print, args=("thread",))
        thread.start(), thread.join()
        return n

    if __name__ == "__main__":
        call = {
            "loud": lambda: quiet(*(loud(n) for n in range(5))),
            "killed": lambda: killed(1), "leaky": lambda: leaky(1), "endless": lambda: quiet(endless(1)),
            "named": lambda: quiet(login("battery-staple", "me"), login(password(1), "me")),
            "around": lambda: around(7), "forks": lambda: forks(1),
        }[sys.argv[1]]()
        try:
            call()
        except Exception as error:
            sys.stderr.write(type(error).__name__ + "\\n")
"""


def printed(folder: Path, kind: str, way: str = "auto") -> tuple[str, str, dict[tuple[str, int], str]]:
    """A program that prints: its stdout and stderr, and the recorded output by run and node."""
    (folder / "printing.py").write_text(textwrap.dedent(PRINTING), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RECORD_DIR": str(folder / "records"), "ENTANGLE_START": way}
    done = subprocess.run(
        [sys.executable, "printing.py", kind], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    subprocess.run([sys.executable, "-m", "entangle", "runs"], env=environment, check=True, stdout=subprocess.DEVNULL, timeout=60)
    connection = sqlite3.connect(folder / "records" / "records.sqlite")
    try:
        rows = connection.execute("SELECT runs.name, node, text FROM prints JOIN runs ON runs.key = prints.run").fetchall()
    finally:
        connection.close()
    return done.stdout, done.stderr, {(name, node): text for name, node, text in rows}


def test_records_and_the_command_line_tell_what_was_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed(tmp_path, "leaky")
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    (run,) = records.runs()
    assert run.root.printed.startswith("password=")
    assert "hunter2" not in run.root.printed
    shown = subprocess.run(
        [sys.executable, "-m", "entangle", "show", "last", "--node", "0"],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "  printed:\n    password=" in shown.stdout
    assert "hunter2" not in shown.stdout


@pytest.mark.parametrize("way", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.drill)])
def test_what_a_body_prints_is_seen_and_remembered(tmp_path: Path, way: str) -> None:
    out, err, kept = printed(tmp_path, "loud", way)
    assert sorted(out.splitlines()) == [f"out {n} of {n}" for n in range(5)]
    assert sorted(err.splitlines()) == [f"err {n}" for n in range(5)]
    assert kept == {("quiet", n): f"out {n} of {n}\nerr {n}\n" for n in range(5)}


def test_the_lines_of_a_killed_body_are_remembered(tmp_path: Path) -> None:
    _, err, kept = printed(tmp_path, "killed")
    assert err.endswith("ProcessTerminatedException\n")
    assert kept == {("killed", 0): "before\n"}


def test_secrets_in_what_was_printed_are_masked(tmp_path: Path) -> None:
    out, _, kept = printed(tmp_path, "leaky")
    assert "hunter2hunter2" in out
    assert "hunter2" not in json.dumps(list(kept.values()))
    assert kept[("leaky", 0)].startswith("password=")


def test_what_a_task_prints_that_is_named_like_a_secret_is_not_kept_nor_a_secret_argument(tmp_path: Path) -> None:
    out, _, kept = printed(tmp_path, "named")
    assert "battery-staple" in out
    told = json.dumps(list(kept.values()))
    assert "battery-staple" not in told
    assert "it is" not in told
    assert "in with" in told


def test_of_a_body_that_prints_without_end_the_first_and_the_last_lines_are_kept(tmp_path: Path) -> None:
    out, _, kept = printed(tmp_path, "endless")
    assert len(out.splitlines()) == 20_000
    text = kept[("quiet", 0)]
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 19998\nline 19999\n")
    assert "\n[...]\n" in text
    assert len(text) < printout.FIRST + printout.LAST + 100


def test_what_a_nested_run_prints_belongs_to_that_run(tmp_path: Path) -> None:
    out, err, kept = printed(tmp_path, "around")
    assert (out, err) == ("outside\nout 7 of 7\n", "err 7\n")
    assert kept == {("around", 0): "outside\n", ("loud", 0): "out 7 of 7\nerr 7\n"}


def test_children_and_threads_of_a_body_print_for_it(tmp_path: Path) -> None:
    out, _, kept = printed(tmp_path, "forks")
    assert sorted(out.split()) == ["by", "child", "lines", "parent", "thread"]
    assert sorted(kept[("forks", 0)].split()) == ["by", "child", "lines", "parent", "thread"]


def test_a_run_that_is_not_remembered_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD", "0")
    with pytest.raises(sqlite3.OperationalError):
        printed(tmp_path, "loud")


class _Slotted:
    __slots__ = ("text",)

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)


def test_a_stream_that_takes_no_other_write_is_left_as_it_is(tmp_path: Path) -> None:
    stream = _Slotted()
    printout.Printout(str(tmp_path), lambda: 0).listen(stream)
    print("seen", file=stream)
    assert stream.text == "seen\n"
    assert printout.gather(str(tmp_path)) == {}


def test_no_room_for_what_is_kept_does_not_reach_the_body(tmp_path: Path) -> None:
    stream = io.StringIO()
    printout.Printout(str(tmp_path / "gone"), lambda: 0).listen(stream)
    print("seen", file=stream)
    assert stream.getvalue() == "seen\n"
    with pytest.raises(TypeError):
        stream.write(3)  # type: ignore[arg-type]


def test_a_file_that_is_damaged_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    stream = io.StringIO()
    kept = printout.Printout(str(tmp_path), lambda: 3)
    kept.listen(stream)
    print("whole", end="", file=stream)
    kept.close()
    with open(tmp_path / printout.NAME, "ab") as file:
        file.write(b"\xff" * 9)
    assert printout.gather(str(tmp_path)) == {3: "whole"}
    assert printout.gather(str(tmp_path), 4) == {}
