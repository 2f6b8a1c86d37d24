"""The records of runs, as users see them."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import entangle
from entangle import records
from entangle._records import database as record_file
from entangle._records import recorder, retention
from entangle._records.directory import segments_of
from entangle.errors import OptionError, ProcessTerminatedException, RecordsError, RunCancelledError
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.task import task
from entangle.thread import thread
from entangle.workflow import workflow

from .bodies import add, one
from .callers import Caller, output_of
from .evidence import wait_until
from .ways import needed


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the test's own for its records."""
    place = tmp_path / "records"
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(place))
    return place


def texts(run: records.Run) -> list[str]:
    """The values of a run's nodes, as strings."""
    return [node.value.text if node.value else "?" for node in run.nodes]


def test_items_of_a_map_are_remembered_one_by_one(directory: Path) -> None:
    """Their values are columns of a segment, and all items of the list share one label."""

    def given(x: Any) -> Any:
        return x

    with entangle.session(workers=2):
        for xs in (range(200), [0.5, -1.0, float("inf")] * 30, [None, True, "a text", 7] * 20):
            process(given).map(xs)()
            run, taken = records.run(), list(xs)
            assert texts(run)[:-1] == list(map(repr, taken))
            assert [run.inputs_of(node)[0].value.text for node in range(len(taken))] == list(map(repr, taken))  # type: ignore[union-attr]
            assert all(node.attempts == 1 and node.pid and node.started and node.seconds is not None for node in run.nodes[:-1])
            last = run.inputs_of(len(taken))[-1]
            assert (last.argument, last.source) == (f"values[{len(taken) - 1}]", len(taken) - 1)


def test_numbers_of_items_are_masked_like_other_values(directory: Path) -> None:
    base = 0x5EC2E7_5EC2E7 << 8

    def get_token(x: int) -> int:
        return base + x

    def login(password: int) -> int:
        return password - base

    tokens: Any = process(get_token).map(range(30))
    assert entangle.gather(*[process(login)(token) for token in tokens.args])() == list(range(30))
    assert process(login).map([base + x for x in range(30)])() == list(range(30))
    assert tokens() == [base + x for x in range(30)]
    for path in Path(segments_of(str(directory))).iterdir():
        assert (base >> 16).to_bytes(5, "little") not in path.read_bytes()
    for run in records.runs():
        for node in run.nodes:
            shown = [input.value.text for input in run.inputs_of(node.number) if input.value]
            assert not any(str(base)[:8] in text for text in [node.value.text if node.value else "", *shown] if node.task.name != "gather")


def twice(x: Any) -> Any:
    return x + x


def inner_sum(x: int) -> Any:
    return process(add)(process(twice)(x), 1)


# --- what a run leaves ----------------------------------------------------------------------------


def test_a_run_is_remembered_with_its_graph_and_its_values(directory: Path, start: str) -> None:
    task = process(add)
    assert task(task(1, 2), process(one)())() == 4
    (run,) = records.runs()
    assert (run.name, run.state, run.node_count, run.done_count) == ("add", "done", 3, 3)
    assert run.value is not None
    assert run.value.text == "4"
    assert [(one.argument, one.source is not None) for one in run.root.inputs] == [("a", True), ("b", True)]
    assert sorted(texts(run)) == ["1", "3", "4"]
    assert records.run(run.id[:6]).id == run.id
    assert run.root.ended_ns is not None
    assert run.started_ns < run.root.ended_ns <= (run.ended_ns or 0)
    assert all(node.pid and node.cpu is not None and node.seconds is not None for node in run.nodes)


def test_values_that_went_from_hand_to_hand_are_remembered_too(directory: Path, start: str) -> None:
    call: Any = process(one)()
    for _ in range(50):
        call = process(add)(call, 1)
    assert call() == 51
    assert texts(records.run()) == [str(n) for n in range(1, 52)]


def test_a_run_in_threads_and_one_in_the_caller_itself_are_remembered(directory: Path) -> None:
    assert thread(add)(thread(one)(), 2)() == 3
    assert task(add)(3, 4)() == 7
    latest, first = records.runs()
    assert texts(first) == ["1", "3"]
    assert texts(latest) == ["7"]


def test_a_nested_run_knows_the_node_that_called_it(directory: Path, start: str) -> None:
    assert process(inner_sum)(2)() == 5
    (run,) = records.runs()
    (child,) = run.children
    assert (child.parent_id, child.parent_node, child.name, child.state) == (run.id, 0, "add", "done")
    assert child.parent is not None
    assert child.parent.id == run.id
    assert run.root.children[0].id == child.id
    assert {one.id for one in records.runs(nested=True)} == {run.id, child.id}


def test_a_workflow_that_calls_a_graph_is_the_parent_of_its_run(directory: Path) -> None:
    assert workflow(inner_sum)(3)() == 7
    (run,) = records.runs()
    assert [child.name for child in run.children] == ["add"]


def test_the_same_call_in_two_places_is_one_node_taken_twice(directory: Path) -> None:
    shared = process(one)()
    assert process(add)(shared, shared)() == 2
    run = records.run()
    assert run.node_count == 2
    assert [(edge.source, edge.target, edge.argument) for edge in run.edges] == [(0, 1, "a"), (0, 1, "b")]


def test_arguments_inside_lists_and_dicts_have_names_of_their_own(directory: Path) -> None:
    assert process(len)([process(one)(), 2])() == 2  # a builtin has no parameter names
    assert process(twice)(x=[process(one)()])() == [1, 1]
    latest, first = records.runs()
    assert [taken.argument for taken in latest.root.inputs] == ["x[0]"]
    assert len(first.root.inputs) == 2


def test_attributes_tags_code_and_layers_are_remembered(directory: Path) -> None:
    body = process(timeout=30)(task(attributes={"owner": "wing", "limits": [1, 2]})(twice))
    with entangle.tags(project="x"), entangle.tags(revision=2):
        assert body(4)() == 8
    assert body(5)() == 10
    (run,) = records.runs(tags={"project": "x"})
    assert run.tags == {"project": "x", "revision": 2}
    version = run.root.task
    assert version.attributes == {"owner": "wing", "limits": [1, 2]}
    assert version.layers == ("process",)
    assert version.terms == {"timeout": 30}
    assert version.source == "def twice(x: Any) -> Any:\n    return x + x\n"
    assert records.run().root.task.version == version.version
    with sqlite3.connect(directory / "records.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (1,)
    connection.close()


def test_tags_go_along_with_a_run_that_another_thread_executes(directory: Path) -> None:
    with entangle.tags(project="later"):
        future = process(one)()(proc=True)
    assert future.result() == 1
    assert records.run().tags == {"project": "later"}


def test_attributes_that_no_record_can_hold_are_refused_when_the_task_is_made() -> None:
    with pytest.raises(OptionError, match=r"attributes\['owner'\]"):
        task(attributes={"owner": object()})
    with pytest.raises(OptionError, match="dict"):
        task(attributes="x")  # type: ignore[call-overload]


def test_where_the_code_comes_from_and_where_it_ran(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "project"
    repository.mkdir()
    git = ["git", "-C", str(repository), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (repository / "code.py").write_text("from entangle.process import process\n\n@process\ndef f():\n    return 1\n\nprint(f()())\n")
    subprocess.run([*git, "init", "-q", "-b", "trunk"], check=True)
    subprocess.run([*git, "add", "code.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    for dirty in (False, True):
        subprocess.run([sys.executable, repository / "code.py"], check=True, capture_output=True, cwd="/")
        run = records.run()
        assert run.git is not None
        assert (run.git.commit, run.git.branch, run.git.root) == (head, "trunk", str(repository))
        assert run.git.dirty is dirty
        assert (run.root.task.line, run.root.task.file) == (3, str(repository / "code.py"))
        assert run.packages["entangle"]
        assert (run.host, run.python) == (os.uname().nodename, ".".join(map(str, sys.version_info[:3])))
        with open(repository / "code.py", "a", encoding="utf-8") as file:
            file.write("# changed\n")


# --- how runs end ---------------------------------------------------------------------------------


def fails(x: int) -> int:
    raise ValueError(f"no such thing as {x}")


def kills_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_error_is_remembered_with_its_node_and_the_traceback_of_the_worker(directory: Path, start: str) -> None:
    with pytest.raises(ValueError, match="no such thing"):
        process(add)(process(fails)(7), process(one)())()
    run = records.run()
    assert run.state == "failed"
    assert run.error is not None
    assert (run.error.type, run.error.message) == ("ValueError", "no such thing as 7")
    assert "in fails" in run.error.traceback
    assert run.error.node is not None
    node = run.node(run.error.node)
    assert (node.name, node.state, node.error) == ("fails", "failed", run.error)
    assert run.root.state == "waiting"


def test_a_call_is_remembered_by_the_name_that_it_was_given(directory: Path, start: Any) -> None:
    total = process(add)(process(one)().named("left"), process(one)().named("right")).named("both")
    assert total(start=start) == 2
    run = records.run()
    assert (run.name, run.task) == ("both", "add")
    assert [one.id for one in records.runs(name="add")] == [one.id for one in records.runs(name="both")] == [run.id]
    assert [(node.name, node.task.name) for node in run.nodes] == [("left", "one"), ("right", "one"), ("both", "add")]
    assert run.node("right").number == 1
    assert [task.name for task in run.tasks] == ["one", "add"]
    assert [node["name"] for node in run.to_dict()["node_list"]] == ["left", "right", "both"]


def test_a_lone_surrogate_loses_no_record(directory: Path) -> None:
    name: Any = os.fsdecode(b"of \xff")  # as the name of a file may be
    with entangle.tags(of=name):
        process(one)().named(name)()
    run = records.run()
    assert (run.name, run.root.name, run.tags) == ("of \\udcff", "of \\udcff", {"of": "of \\udcff"})
    with pytest.raises(ValueError):
        process(fails)(name)()
    error = records.run().error
    assert error is not None
    assert "\\udcff" in error.message


def test_a_name_may_be_anything_and_is_kept_in_short(directory: Path) -> None:
    names = ["x" * 1_000_000, "two\nlines \x1b[31m", "\ud800", "a.b[0] = {…}"]
    for name in names:
        assert process(one)().named(name)() == 1
    kept = [run.root.name for run in records.runs()][::-1]
    assert kept[0] == "x" * 299 + "…"
    assert kept[1:2] + kept[3:] == [names[1], names[3]]
    assert kept[2].strip("\\") in ("\ud800", "ud800")
    for run in records.runs():
        assert run.name == run.root.name
        for form in (run.to_svg, run.to_dot, run.to_mermaid, run.to_trace, run.to_prov):
            assert len(form()) < 30_000


def test_a_name_that_is_a_secret_is_masked_and_one_of_a_live_run_is_known(directory: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def waits() -> None:
        begun.touch()
        signal.pause()

    key = "AKIA" + "IOSFODNN7EXAMPLE"
    future = process(waits)().named(f"upload {key}")(proc=True)
    wait_until(begun.exists, 20, "the body to begin")
    (going,) = records.runs(state="running")
    assert going.root.name == "upload ***"
    assert [one.id for one in records.runs(name="waits", state="running")] == [going.id]
    future.cancel()
    with pytest.raises(RunCancelledError):
        future.result()
    assert records.run().root.name == "upload ***"
    assert key.encode() not in b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def fails_at(x: int, *_: Any) -> int:
    if x % 10 == 3:
        raise ValueError(f"no {x}")
    return x


@pytest.mark.parametrize("executor", [process, thread])
def test_a_run_that_goes_on_keeps_why_nodes_failed_and_were_skipped(directory: Path, start: Any, executor: Any) -> None:
    body, after = executor(fails_at), executor(add)
    calls = [after(after(body(n).named(f"item {n}"), 1), 1) for n in range(24)]
    values = entangle.gather(*calls, return_exceptions=True)(start=start)
    assert [n for n, value in enumerate(values) if isinstance(value, ValueError)] == [3, 13, 23]
    run = records.run()
    assert (run.state, run.error, run.node_count, run.done_count) == ("done", None, 73, 64)
    assert (run.failed_count, run.skipped_count) == (3, 6)
    failed = [node for node in run.nodes if node.state == "failed"]
    assert [node.name for node in failed] == ["item 3", "item 13", "item 23"]
    for node, n in zip(failed, (3, 13, 23), strict=True):
        assert node.error is not None
        assert (node.error.type, node.error.message, node.error.node) == ("ValueError", f"no {n}", node.number)
        assert "in fails_at" in node.error.traceback
        assert f"call: fails_at({n})" in node.error.notes
        (path,) = [note for note in node.error.notes if note.startswith("call path: ")]
        assert path.endswith(f" → add(add(…), 1) → add(item {n}, 1) → item {n}")
        assert node.value is None
    skipped = [node for node in run.nodes if node.state == "skipped"]
    assert [run.nodes[node.cause or 0].name for node in skipped] == [f"item {n}" for n in (3, 3, 13, 13, 23, 23)]
    assert all((node.started, node.value, node.error) == (None, None, None) for node in skipped)
    assert all(node.cause is None for node in run.nodes if node.state != "skipped")


def test_what_failed_after_attempts_died_or_came_late_is_kept_in_a_run_that_goes_on(directory: Path, start: Any) -> None:
    calls = [
        process(retry=1, sleep=0)(fails_at)(3),
        process(kills_itself)(),
        process(timeout=0.2)(signal.pause)(),
        thread(retry=1)(fails_at)(3),
    ]
    values = entangle.gather(*calls, return_exceptions=True)(start=start)
    run = records.run()
    assert (run.state, run.failed_count) == ("done", 4)
    errors = {node.name: node.error for node in run.nodes if node.error is not None}
    kinds = [type(value).__name__ for value in values]
    assert kinds == ["ProcessRetryException", "ProcessTerminatedException", "ProcessTimeoutException", "ProcessRetryException"]
    told = [node.error for node in run.nodes if node.state == "failed"]
    assert len(told) == 4
    assert sorted(error.type.rpartition(".")[2] for error in told if error is not None) == sorted(kinds)
    assert sorted(error.message for error in told if error is not None) == sorted(map(str, values))
    retried = [node for node in run.nodes if node.name == "fails_at"]
    assert all(node.attempts == 2 and len(node.tries) == 1 for node in retried)
    assert any(note.startswith("call: kills_itself()") for note in (errors["kills_itself"] or fail()).notes)


KEY = "AKIA" + "IOSFODNN7EXAMPLE"


class Odd(Exception):
    """An error that has no string."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def raises_what_is_hard_to_keep(kind: str) -> None:
    if kind == "no text":
        raise Odd
    if kind == "exits":
        sys.exit("leaving")
    if kind == "empty":
        raise ValueError
    raise ValueError(KEY + "y" * (20_000 - 11) if kind == "cut" else KEY + "z" * 5_000_000)


@pytest.mark.parametrize("executor", [process, thread])
def test_errors_that_are_hard_to_keep_are_kept_in_short_and_without_secrets(directory: Path, executor: Any) -> None:
    kinds = ["no text", "exits", "empty", "cut", "huge"]
    values = entangle.gather(*[executor(raises_what_is_hard_to_keep)(kind) for kind in kinds], return_exceptions=True)()
    assert [isinstance(value, Exception) for value in values] == [True] * 5
    run = records.run()
    errors = {node.inputs[0].value.text.strip("'"): node.error for node in run.nodes if node.error and node.inputs[0].value}
    assert sorted(errors) == sorted(kinds)
    assert errors["no text"].message == "<its text raises RuntimeError>"
    assert "SystemExit" in errors["exits"].message
    assert (errors["empty"].type, errors["empty"].message) == ("ValueError", "")
    assert all(len(error.message) <= 10_000 and len(error.traceback) <= 10_000 for error in run.failures.values())
    kept = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    assert b"7EXAMPLE" not in kept
    assert len(kept) < 1_000_000


def test_failures_that_are_damaged_spoil_nothing_else(directory: Path) -> None:
    entangle.gather(process(add)(process(fails_at)(3), 1), process(fails_at)(13), return_exceptions=True)()
    assert records.run().failed_count == 2
    with sqlite3.connect(directory / "records.sqlite") as connection:
        connection.execute("UPDATE failures SET notes = '{', message = 3, traceback = NULL WHERE type IS NOT NULL")
        connection.execute("UPDATE failures SET cause = 10000 WHERE cause IS NOT NULL")
    connection.close()
    run = records.run()
    assert [error.notes for error in run.failures.values()] == [(), ()]
    assert run.causes == {}
    for form in (run.to_dict, run.to_svg, run.to_dot, run.to_mermaid, run.to_trace, run.to_prov):
        assert form()


def fail() -> Any:
    pytest.fail("there is none")


def test_ten_of_a_thousand_that_fail_are_all_kept_and_secrets_in_them_are_not(directory: Path) -> None:
    def login(n: int, password: str) -> int:
        if n % 100 == 7:
            raise ValueError(f"no {n} with {password}")
        return n

    secret = "correct-horse-battery"
    calls = [process(login)(n, password=secret) for n in range(1000)]
    values = entangle.gather(*calls, return_exceptions=True)()
    assert sum(isinstance(value, ValueError) for value in values) == 10
    run = records.run()
    assert (run.failed_count, run.skipped_count) == (10, 0)
    assert sorted(error.message for error in run.failures.values()) == sorted(f"no {n} with ***" for n in range(7, 1000, 100))
    assert secret.encode() not in b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_a_worker_that_was_killed_and_attempts_that_failed_are_remembered(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ProcessTerminatedException):
        process(kills_itself)()()
    assert records.run().error.type.endswith("ProcessTerminatedException")  # type: ignore[union-attr]
    assert records.run().root.state == "failed"
    mark = tmp_path / "mark"

    def succeeds_at_last() -> str:
        with open(mark, "a", encoding="ascii") as file:
            file.write("x")
        if mark.stat().st_size < 3:
            raise OSError("not yet")
        return "at last"

    assert process(retry=3)(succeeds_at_last)()() == "at last"
    node = records.run().root
    assert node.attempts == 3
    assert len(node.tries) == 2
    assert "not yet" in node.tries[0]


def test_a_run_that_was_cancelled_is_remembered_as_that(directory: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def waits() -> None:
        begun.touch()
        signal.pause()

    future = process(waits)()(proc=True)
    wait_until(begun.exists, 20, "the body to begin")
    (going,) = records.runs(state="running")
    assert (going.name, going.root.state, going.ended) == ("waits", "unknown", None)
    future.cancel()
    with pytest.raises(RunCancelledError):
        future.result()
    run = records.run()
    assert (run.id, run.state, run.root.state) == (going.id, "cancelled", "stopped")


def test_a_run_whose_process_was_killed_is_found_out_at_the_next_look(directory: Path, tmp_path: Path) -> None:
    script = """
        import signal
        from entangle.process import process

        @process
        def waits(x):
            print("waiting", flush=True)
            signal.pause()

        waits(1)()
    """
    caller = Caller(tmp_path, script).start()
    try:
        assert caller.process.stdout is not None
        assert caller.process.stdout.readline() == "waiting\n"
        assert [run.state for run in records.runs()] == ["running"]
        caller.process.kill()
        caller.process.wait()
        wait_until(lambda: [run.state for run in records.runs()] == ["killed"], 10, "the run to be marked")
    finally:
        caller.stop()
    run = records.run()
    assert (run.name, run.ended, run.root.state, run.root.inputs[0].argument) == ("waits", None, "unknown", "x")
    output_of(tmp_path, "from entangle.cli import main; main(['clean'])")


@pytest.mark.parametrize("length", [0, 1, 100, 5000, 9000])
def test_a_sheet_that_was_cut_off_anywhere_spoils_nothing(directory: Path, length: int) -> None:
    call: Any = process(one)()
    for _ in range(20):
        call = process(add)(call, 1)
    assert call() == 21
    (segment,) = (directory / "sheets").iterdir()
    whole = segment.read_bytes()
    segment.write_bytes(whole[:length])
    assert [run.state for run in records.runs()] in ([], ["killed"], ["done"])
    assert call() == 21
    assert records.run().state == "done"


# --- the directory of the records -----------------------------------------------------------------


def test_nothing_is_written_where_recording_is_off(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD", "0")
    assert process(inner_sum)(1)() == 3
    assert not directory.exists()
    assert records.runs() == []
    with pytest.raises(RecordsError, match="no run is remembered"):
        records.run()
    assert not directory.exists(), "looking makes nothing"


def test_a_project_keeps_its_own_records_where_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENTANGLE_RECORD_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    inside = tmp_path / "project" / "deep" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert records.place() == str(tmp_path / "state" / "entangle")
    assert process(one)()() == 1
    assert len(records.runs()) == 1
    (tmp_path / "project" / ".entangle").mkdir()
    assert records.place() == str(tmp_path / "project" / ".entangle")
    assert process(one)()() == 1
    assert len(records.runs()) == 1
    assert (tmp_path / "project" / ".entangle" / "sheets").stat().st_mode & 0o077 == 0


def test_a_place_that_cannot_be_written_to_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a directory")
    script = "from entangle.process import process\n\ndef f(): return 5\n\nprint(process(f)()(), process(f)()())\n"
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "file" / "records"))
    caller = Caller(tmp_path, script).start()
    status, out, err = caller.finish()
    assert (status, out) == (0, "5 5\n")
    assert err.count("runs are not recorded") == 1


def test_what_a_killed_process_has_not_brought_home_whole_is_cleared_away(directory: Path) -> None:
    assert process(one)()() == 1
    sheets = directory / "sheets"
    for name in ("0123456789abcdef.part", "fedcba9876543210.part", "mine.part"):
        (sheets / name).write_bytes(b"{")
    long_ago = os.stat(directory).st_mtime - 7200
    for name in ("0123456789abcdef.part", "mine.part"):
        os.utime(sheets / name, (long_ago, long_ago))
    assert len(records.runs()) == 1
    assert sorted(path.name for path in sheets.iterdir()) == ["fedcba9876543210.part", "mine.part"]


def test_a_record_that_could_not_begin_leaves_nothing_that_is_none(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_descriptor() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("entangle._records.surroundings.place", no_descriptor)
        assert process(one)()() == 1
    assert list((directory / "sheets").iterdir()) == []
    caplog.clear()
    assert process(add)(1, 2)() == 3
    assert [run.name for run in records.runs()] == ["add"]
    assert caplog.text == ""


def test_a_full_disk_loses_a_record_and_no_run(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    assert process(one)()() == 1
    monkeypatch.undo()
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(directory))
    assert records.runs() == []
    assert list((directory / "sheets").iterdir()) == []


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, None, "", False, -1.5, "text", [], [1, 2], {"a": (1,)}, 10**30, b"bytes", "x" * 1000], ids=repr)
def test_what_made_a_value_is_found_by_its_hash(directory: Path, value: Any) -> None:
    assert process(twice)(process(list)(["x"]))() == ["x", "x"]

    def give() -> Any:
        return value

    assert process(give)()() == value
    found = records.made(records.hash_of(value))
    assert [node.name for node in found] == ["give"]
    assert found[0].value is not None
    assert found[0].value.type == ("None" if value is None else type(value).__name__)


def test_no_hash_is_refused_as_that(directory: Path) -> None:
    with pytest.raises(RecordsError, match="SHA-256"):
        records.made("12")


def test_large_values_are_told_of_and_not_read(directory: Path) -> None:
    numpy = needed("numpy")

    def large() -> Any:
        return numpy.zeros(1_000_000)

    array = process(large)()
    assert process(add)(process(len)(array), process(len)(array))() == 2_000_000
    value = records.run().nodes[0].value
    assert value is not None
    assert (value.type, value.size, value.hash) == ("numpy.ndarray", 8_000_000, None)
    assert value.text == "<ndarray float64 (1000000,)>"
    assert records.run().nodes[0].times.moving > 0


def test_whole_values_are_kept_where_that_is_wanted(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert process(twice)([1, 2])() == [1, 2, 1, 2]
    value = records.run().value
    assert value is not None
    assert not value.kept
    with pytest.raises(RecordsError, match="ENTANGLE_RECORD=values"):
        value.load()
    monkeypatch.setenv("ENTANGLE_RECORD", "values")
    assert process(twice)([1, 2])() == [1, 2, 1, 2]
    value = records.run().value
    assert value is not None
    assert value.load() == [1, 2, 1, 2]


class Loud:
    """Nothing may call its `__repr__`."""

    def __repr__(self) -> str:
        raise AssertionError("a record runs no code of the values that it describes")


def test_describing_a_value_runs_none_of_its_code(directory: Path) -> None:
    def loud() -> Any:
        return [Loud(), {"a": Loud()}]

    assert len(process(loud)()()) == 2
    value = records.run().value
    assert value is not None
    assert value.text == "[<Loud>, {'a': <Loud>}]"


# --- many processes and many runs -----------------------------------------------------------------

_MANY = """
    import sys, time
    from entangle.process import process

    @process
    def add(a, b):
        return a + b

    until = time.monotonic() + float(sys.argv[1])
    count = 0
    while count < 3 or time.monotonic() < until:
        assert add(add(1, 2), count)() == count + 3
        count += 1
        if count % 5 == 0:
            from entangle import records
            records.runs(limit=3)
    print(count)
"""


def _at_once(folder: Path, processes: int, seconds: float) -> int:
    callers = []
    try:
        for number in range(processes):
            place = folder / str(number)
            place.mkdir()
            callers.append(Caller(place, _MANY, ENTANGLE_MAX_WORKERS="1").start(str(seconds)))
        total = 0
        for caller in callers:
            status, out, err = caller.finish(seconds * 5 + 60)
            assert (status, err) == (0, "")
            total += int(out)
    finally:
        for caller in callers:
            caller.stop()
    return total


def test_processes_that_record_and_look_at_once_lose_no_run(directory: Path, tmp_path: Path) -> None:
    total = _at_once(tmp_path, 8, 1.0)
    runs = records.runs(limit=None)
    assert len(runs) == total
    assert {run.state for run in runs} == {"done"}


@pytest.mark.drill
def test_fifty_processes_record_at_once_for_a_minute(directory: Path, tmp_path: Path) -> None:
    total = _at_once(tmp_path, 50, 60.0)
    runs = records.runs(limit=None)
    assert len(runs) == total
    assert {run.state for run in runs} == {"done"}


def test_ingesting_that_is_killed_in_the_middle_is_done_again(directory: Path, tmp_path: Path) -> None:
    call: Any = process(one)()
    for _ in range(2000):
        call = process(add)(call, 1)
    assert call() == 2001
    segments = list((directory / "sheets").iterdir())
    kept = [(segment, segment.read_bytes()) for segment in segments]
    script = """
        import os, signal, sys, sqlite3
        from entangle._records import ingest
        from entangle._records.database import opened
        rows = ingest._node_rows

        def cut(*args):
            for number, row in enumerate(rows(*args)):
                if number == 1000:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield row

        ingest._node_rows = cut
        ingest.ingest(os.environ["ENTANGLE_RECORD_DIR"])
    """
    caller = Caller(tmp_path, script).start()
    assert caller.finish()[0] == -signal.SIGKILL
    (run,) = records.runs()
    assert len(run.nodes) == 2001
    assert list((directory / "sheets").iterdir()) == []
    # As if the process was killed after ingesting, before it removed the segment.
    for path, body in kept:
        path.write_bytes(body)
    assert len(records.runs()) == 1
    assert list((directory / "sheets").iterdir()) == []
    with sqlite3.connect(directory / "records.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_an_older_file_is_brought_to_the_present_and_a_newer_one_is_refused(directory: Path) -> None:
    assert process(one)()() == 1
    assert len(records.runs()) == 1
    further = (*record_file.MIGRATIONS, "ALTER TABLE runs ADD COLUMN mood TEXT;\nCREATE TABLE moods (name TEXT);\n")
    with record_file.opened(str(directory), further) as connection:
        assert connection.execute("SELECT mood FROM runs").fetchall() == [(None,)]
    with pytest.raises(RecordsError, match="newer entangle"):
        records.runs()


def test_runs_that_an_earlier_version_has_kept_are_read_as_they_were(directory: Path) -> None:
    assert process(add)(process(one)(), 1)() == 2
    old = records.run()
    shutil.rmtree(directory)
    with record_file.opened(str(directory), record_file.MIGRATIONS[:1]) as connection:
        task = (1, "x", "x", "add", None, None, None, None, None, "[]", "{}", "{}")
        connection.execute(f"INSERT INTO tasks VALUES ({', '.join('?' * len(task))})", task)
        run = {"id": "0123456789abcdef", "name": "add", "state": "failed", "started": old.started_ns, "node_count": 2, "pid": 1}
        run |= {"packages": "{}", "tags": "{}", "error_type": "ValueError", "error": "no", "notes": "[]", "error_node": 0}
        connection.execute(f"INSERT INTO runs ({', '.join(run)}) VALUES ({', '.join('?' * len(run))})", tuple(run.values()))
        for node, state in ((0, "failed"), (1, "waiting")):
            connection.execute("INSERT INTO nodes (run, node, task, state) VALUES (1, ?, 1, ?)", (node, state))
    (run_there,) = records.runs()
    assert (run_there.state, run_there.failed_count, run_there.skipped_count) == ("failed", None, None)
    assert [(node.name, node.state, node.items, node.cause) for node in run_there.nodes] == [
        ("add", "failed", None, None),
        ("add", "waiting", None, None),
    ]
    assert run_there.nodes[0].error == run_there.error
    assert process(one)()() == 1
    assert [run.name for run in records.runs()] == ["one", "add"]


def test_what_is_no_file_of_records_is_refused_as_that(directory: Path) -> None:
    assert process(one)()() == 1
    (directory / "records.sqlite").write_text("this is no database, and long enough to be looked at " * 50)
    with pytest.raises(RecordsError, match=r"records\.sqlite cannot be used"):
        records.runs()


def damage(directory: Path) -> None:
    """Overwrite the file except its first page, which has the database's header."""
    path = directory / "records.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))


def test_a_file_that_is_damaged_further_on_is_told_of_with_what_to_do(directory: Path) -> None:
    assert process(one)()() == 1
    run = records.run()
    damage(directory)
    looks: list[Callable[[], Any]] = [records.runs, records.run, records.retain, lambda: run.nodes, lambda: records.made("00" * 32)]
    for look in looks:
        with pytest.raises(RecordsError, match=r"records\.sqlite cannot be used: .* move it away"):
            look()
    assert process(one)()() == 1
    (directory / "records.sqlite").rename(directory / "away")
    assert len(records.runs()) == 1


def test_a_file_where_the_place_of_records_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "file"))
    for look in (records.runs, records.run):
        with pytest.raises(RecordsError, match=r"Not a directory; ENTANGLE_RECORD_DIR names another place"):
            look()


@pytest.mark.parametrize("spoil", ["all", "place", "bodies", "began", "labels", "columns"])
def test_a_sheet_that_is_no_record_of_a_run_hides_no_other(directory: Path, spoil: str, caplog: pytest.LogCaptureFixture) -> None:
    assert process(one)()() == process(one)()() == 1
    first, _ = sorted((directory / "sheets").iterdir())
    head, _, rest = first.read_bytes().partition(b"\n")
    told = json.loads(head)
    if spoil == "all":
        told = {"form": 1, "id": "zz", "columns": [0, 0, 0, 0]}
    elif spoil == "columns":
        told["columns"] = [1, 0, 0, 0]
    else:
        told[spoil] = 3 if spoil != "began" else {}
    first.write_bytes(json.dumps(told).encode() + b"\n" + rest)
    for _ in range(2):
        assert [run.state for run in records.runs()] == ["done"]
    assert records.run().state == "done"
    said = [one.getMessage() for one in caplog.records]
    assert [str(first) in one and "remove it" in one for one in said] == [True]


def _sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(b"{")
        file.truncate(1 << 42)


#: What may lie among the segments under a segment's name, and the warning for it.
NO_SEGMENTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a FIFO": (os.mkfifo, "it is no file"),
    "a directory": (Path.mkdir, "it is no file"),
    "a link": (lambda path: path.symlink_to("/dev/zero"), "cannot be read"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "cannot be read"),
    "nothing": (Path.touch, "it is empty"),
    "zeros": (lambda path: path.write_bytes(bytes(100_000)), "does not begin as one"),
    "deep JSON": (lambda path: path.write_bytes(b"[" * 300_000 + b"\n"), "does not begin as one"),
    "a deep value": (lambda path: path.write_bytes(b'{"form": ' + b"[" * 300_000 + b"]" * 300_000 + b"}\n"), "RecursionError"),
    "four terabytes": (_sparse, "more than half of the memory"),
    "half a line": (lambda path: path.write_bytes(b'{"form": 1, "id"'), "cut off"),
    "no text": (lambda path: path.write_bytes(b'{"\xff": 1}\n'), "UnicodeDecodeError"),
    "a number that is too long": (lambda path: path.write_bytes(b'{"form": ' + b"9" * 9999 + b"}\n"), "is no record of a run"),
    "columns before their beginning": (lambda path: path.write_bytes(b'{"form": 1, "columns": [-5, 0, 0, 0]}\n'), "cut off"),
    "a newer form": (
        lambda path: path.write_bytes(b'{"form": 3, "columns": []}\n'),
        "of form 3, and this version of entangle reads form 2",
    ),
}


@pytest.mark.parametrize("what", NO_SEGMENTS)
def test_what_lies_among_the_sheets_hides_no_run_and_is_said_once(directory: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    assert process(one)()() == process(one)()() == 1
    make, why = NO_SEGMENTS[what]
    path = directory / "sheets" / "x.run"
    make(path)
    for _ in range(2):
        assert [run.state for run in records.runs()] == ["done", "done"]
    assert len(records.run().nodes) == 1
    assert process(one)()() == 1
    assert len(records.runs()) == 3
    (said,) = (one.getMessage() for one in caplog.records)
    assert str(path) in said
    assert why in said
    assert os.path.lexists(path)


@pytest.mark.parametrize("cut", [1, 40, -1, -30])
def test_a_sheet_that_is_cut_off_or_flipped_hides_no_other(directory: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    assert process(one)()() == process(one)()() == 1
    first, second = sorted((directory / "sheets").iterdir())
    body = first.read_bytes()
    first.write_bytes(body[:cut])
    flipped = bytearray(second.read_bytes())
    flipped[30::97] = bytes(byte ^ 0xFF for byte in flipped[30::97])
    second.write_bytes(flipped)
    assert process(one)()() == 1
    # A segment without its tail comes from a process that was killed.
    assert sorted(run.state for run in records.runs()) == (["done"] if cut > 0 else ["done", "killed"])
    said = [one.getMessage() for one in caplog.records]
    assert [str(second) in one for one in said].count(True) == 1
    assert len(said) == (2 if cut > 0 else 1)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("tags", "{{{"),
        ("tags", b"\xff\xfe"),
        ("packages", "[" * 100_000),
        ("started", "soon"),
        ("ended", 1e300),
        ("name", b"\xff"),
        ("node_count", None),
    ],
)
def test_a_row_that_is_damaged_hides_no_other(directory: Path, column: str, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert process(one)()() == process(one)()() == 1
    kept, spoiled = records.runs()
    connection = sqlite3.connect(directory / "records.sqlite")
    if value is None:
        value = "many"
    connection.execute(f"UPDATE runs SET {column} = ? WHERE id = ?", (value, spoiled.id))
    connection.commit()
    connection.close()
    for _ in range(2):
        assert [run.id for run in records.runs()] == [kept.id]
    assert records.run(kept.id).nodes[0].value is not None
    (said,) = (one.getMessage() for one in caplog.records)
    assert f"run {spoiled.id} in {directory / 'records.sqlite'} is damaged" in said
    records.forget(spoiled.id)
    assert [run.id for run in records.runs()] == [kept.id]


def test_texts_and_tasks_that_are_damaged_spoil_nothing_else(directory: Path) -> None:
    assert process(add)(process(one)(), 2)() == 3
    (run,) = records.runs()
    connection = sqlite3.connect(directory / "records.sqlite")
    connection.execute("UPDATE nodes SET text = CAST(x'ff41' AS TEXT)")
    connection.execute("UPDATE tasks SET layers = '[', terms = '3', attributes = CAST(x'ff' AS TEXT) WHERE name = 'one'")
    connection.execute("UPDATE nodes SET task = 99 WHERE task = (SELECT key FROM tasks WHERE name = 'add')")
    connection.commit()
    connection.close()
    run = records.run(run.id)
    assert sorted((node.name, node.value.text if node.value else "") for node in run.nodes) == [("?", "\ufffdA"), ("one", "\ufffdA")]
    assert run.to_mermaid()


#: What may be in the file's place, and the error for it.
NO_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a FIFO": (os.mkfifo, r"records\.sqlite is no file; move it away"),
    "a directory": (Path.mkdir, r"records\.sqlite is no file; move it away"),
    "a link to nothing": (lambda path: path.symlink_to("nothing/at/all"), r"records\.sqlite"),
    "no database": (lambda path: path.write_bytes(b"nothing of the kind" * 1000), r"records\.sqlite cannot be used: .* move it away"),
    "a database cut off": (lambda path: path.write_bytes(Path(f"{path}.old").read_bytes()[:6000]), "move it away"),
    "a database of flipped bytes": (lambda path: path.write_bytes(flipped(Path(f"{path}.old").read_bytes(), 200)), "move it away"),
    "a database flipped further on": (lambda path: path.write_bytes(flipped(Path(f"{path}.old").read_bytes(), 5000)), "move it away"),
}


def flipped(data: bytes, first: int) -> bytes:
    """The bytes with every 97th inverted."""
    found = bytearray(data)
    found[first::97] = bytes(byte ^ 0xFF for byte in found[first::97])
    return bytes(found)


@pytest.mark.parametrize("what", NO_FILES)
def test_a_file_of_records_that_is_none_is_told_of_with_how_to_go_on(directory: Path, what: str) -> None:
    assert process(one)()() == 1
    assert len(records.runs()) == 1
    path = directory / "records.sqlite"
    path.rename(f"{path}.old")
    for end in ("-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)
    make, said = NO_FILES[what]
    make(path)
    assert process(one)()() == 1
    for look in (records.runs, records.run):
        with pytest.raises(RecordsError, match=said):
            look()
    # As the error says: nothing was removed. Runs since then are recorded in a new file, unless the
    # damaged file took them; that depends on where the inverted bytes are.
    path.rename(directory / "away")
    assert len(records.runs()) in ((1,) if what != "a database flipped further on" else (0, 1))


def test_a_file_that_another_process_has_locked_is_read_all_the_same(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_file, "_patience", 0.05)
    assert process(one)()() == 1
    (before,) = records.runs()
    connection = sqlite3.connect(directory / "records.sqlite", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    assert process(one)()() == 1
    for _ in range(2):
        assert [run.id for run in records.runs()] == [before.id]
    (said,) = (one.getMessage() for one in caplog.records)
    assert "runs that have ended lately are left out" in said
    assert "locked; another process uses it: try again" in said
    connection.execute("ROLLBACK")
    connection.close()
    assert len(records.runs()) == 2


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that every user of the machine can read."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("what", ["a segment", "the segments", "the file", "the place, for writing"])
def test_what_this_user_may_not_read_is_said_and_hides_no_other(tmp_path: Path, open_to_all: Path, what: str) -> None:
    """As a user other than root. If the tests run as root, a process drops that first."""
    source = f"""
        import logging, os, sys
        from entangle import records
        from entangle.process import process

        place = os.path.join({str(open_to_all)!r}, "place")
        os.environ["ENTANGLE_RECORD_DIR"] = place
        process(int)("1")()
        assert len(records.runs()) == 1
        process(int)("2")()
        process(int)("3")()
        segments = os.path.join(place, "sheets")
        chosen = os.path.join(segments, sorted(os.listdir(segments))[0])
        if os.getuid() == 0:
            for directory, _, files in os.walk(place):
                for path in (directory, *(os.path.join(directory, name) for name in files)):
                    os.chown(path, 12345, -1)
            os.seteuid(12345)
        what = {what!r}
        if what == "a segment":
            os.chmod(chosen, 0)
        elif what == "the segments":
            os.chmod(segments, 0)
        elif what == "the file":
            os.chmod(os.path.join(place, "records.sqlite"), 0)
        else:
            os.chmod(place, 0o500)
            os.chmod(segments, 0o500)
        try:
            print(len(records.runs()))
        except records.RecordsError as error:
            print(error)
        os.seteuid(os.getuid())
        for path in (place, segments):
            os.chmod(path, 0o700)
    """
    caller = Caller(tmp_path, source).start()
    status, out, said = caller.finish()
    assert status == 0, said
    found = {
        "a segment": ("2", "cannot be read, and is left out: Permission denied"),
        "the segments": ("1", "sheets cannot be read, so runs that have just ended are left out: Permission denied"),
        "the file": ("records.sqlite", ""),
        "the place, for writing": ("records.sqlite cannot be used", ""),
    }[what]
    assert found[0] in out
    assert found[1] in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("days", "size"), [("inf", "inf"), ("1e300", "1e300"), ("", "")])
def test_records_are_kept_for_ever_where_that_is_wanted(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, days: str, size: str
) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DAYS", days)
    monkeypatch.setenv("ENTANGLE_RECORD_BYTES", size)
    assert process(one)()() == 1
    assert len(records.runs()) == 1
    assert records.retain() == 0
    assert records.retain(days=float("inf")) == 0
    assert caplog.records == []


@pytest.mark.parametrize("variable", ["ENTANGLE_RECORD_DAYS", "ENTANGLE_RECORD_BYTES"])
@pytest.mark.parametrize("value", ["nan", "-1", "a week"])
def test_a_limit_that_is_none_is_told_of_and_removes_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    for number in (1, 2):
        assert process(one)()() == 1
        assert len(records.runs()) == number
        assert [f"{variable} is '{value}'; it must be a number from 0 on, or inf" in one.getMessage() for one in caplog.records] == [
            True
        ] * number
    with pytest.raises(RecordsError, match=variable):
        records.retain()


def test_old_runs_go_and_the_oldest_where_there_is_too_much(directory: Path) -> None:
    for number in range(12):
        with entangle.tags(number=number):
            assert process(inner_sum)(1)() == 3
    runs = records.runs()
    with record_file.opened(str(directory)) as connection:
        connection.execute("UPDATE runs SET started = started - 10 * 86400 * 1000000000 WHERE id = ?", (runs[-1].id,))
    assert records.retain(days=7) == 1
    assert len(records.runs()) == 11
    records.forget(runs[0].id)
    assert [run.tags["number"] for run in records.runs()] == list(range(10, 0, -1))
    with record_file.opened(str(directory)) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (21,), "with what was called in it"
    assert records.retain(size=0) == 21
    with record_file.opened(str(directory)) as connection:
        for table in ("runs", "nodes", "inputs", "tasks"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    assert records.retain() == 0


def test_a_caller_that_waits_removes_old_runs_in_part(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(12):
        assert process(inner_sum)(1)() == 3
    assert len(records.runs()) == 12
    monkeypatch.setenv("ENTANGLE_RECORD_BYTES", "0")
    monkeypatch.setattr(retention, "_RUNS", 1)
    mark = directory / "retained"

    def left() -> int:
        with record_file.opened(str(directory)) as connection:
            return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])

    before = left()
    ticks = itertools.count()
    # A batch reads the clock three times.
    clock = SimpleNamespace(time=time.time, sleep=time.sleep, monotonic=lambda: next(ticks))
    monkeypatch.setattr(retention, "time", clock)
    mark.unlink(missing_ok=True)
    retention.retain_now_and_then(str(directory), 10)
    assert 0 < left() < before
    soon = time.time() - mark.stat().st_mtime
    assert retention.EVERY - 60 <= soon < retention.EVERY, "it goes on in a minute"
    monkeypatch.undo()
    monkeypatch.setenv("ENTANGLE_RECORD_BYTES", "0")
    # It locks the file.
    with record_file.opened(str(directory)) as other, record_file.transaction(other):
        mark.unlink()
        retention.retain_now_and_then(str(directory), 0.01)
    assert left() > 0
    assert time.time() - mark.stat().st_mtime > retention.EVERY / 2
    mark.unlink()
    retention.retain_now_and_then(str(directory), 60.0)
    assert left() == 0
    assert time.time() - mark.stat().st_mtime < retention.EVERY / 2, "it is done"


def test_runs_of_another_machine_come_home(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert process(inner_sum)(2)() == 5
    ids = [path.stem for path in (directory / "sheets").iterdir()]
    segments = records.take_home(ids)
    assert len(segments) == 2
    assert records.runs() == []
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "home"))
    assert process(one)()() == 1
    around = records.run()
    for _ in range(2):
        assert sorted(records.absorb(segments, parent=(around.id, 0))) == sorted(ids)
    (far,) = records.run().children
    assert (far.name, far.state, [child.name for child in far.children]) == ("inner_sum", "done", ["add"])
    with pytest.raises(RecordsError, match="no record"):
        records.absorb([b"nonsense\n"])


# --- reading --------------------------------------------------------------------------------------


def test_ancestors_descendants_and_the_critical_path(directory: Path) -> None:
    left, right = process(add)(1, 2), process(add)(3, 4)
    assert process(add)(process(twice)(left), right)() == 13
    run = records.run()
    names = {node.value.text: node for node in run.nodes if node.value}
    assert [node.value.text for node in run.ancestors(run.root) if node.value] == ["3", "7", "6"]
    assert run.descendants(names["3"]) == [names["6"], names["13"]]
    assert run.sources(run.root) == [names["6"], names["7"]]
    assert run.takers(names["7"]) == [run.root]
    path = run.critical_path()
    assert path[-1] is run.root
    assert path[0].value is not None
    assert path[0].value.text in ("3", "7")
    assert run.node("twice") is names["6"]
    with pytest.raises(RecordsError, match="3 nodes called 'add'"):
        run.node("add")
    with pytest.raises(RecordsError, match="no nodes called 'subtract'"):
        run.node("subtract")
    with pytest.raises(RecordsError, match="0 to 3"):
        run.node(9)


def test_a_node_is_named_everywhere_in_the_same_ways(directory: Path) -> None:
    assert process(add)(process(one)(), process(twice)(1))() == 3
    assert process(one)()() == 1
    other, run = records.runs()
    left = run.node("one")
    assert [run.sources(which) for which in ("add", run.root, run.root.number)] == [[left, run.node("twice")]] * 3
    assert run.ancestors("add") == run.ancestors(run.root) == run.sources("add")
    assert run.takers("one") == run.descendants("one") == run.descendants(left.number) == [run.root]
    assert run.inputs_of("twice") == run.inputs_of(run.node("twice")) == run.node("twice").inputs
    for ask in (run.node, run.inputs_of, run.sources, run.takers, run.ancestors, run.descendants):
        for which, said in (
            (99, "0 to 2"),
            (-1, "0 to 2"),
            ("two", "no nodes called 'two'; it has add, one, twice"),
            (other.root, "not to run"),
        ):
            with pytest.raises(RecordsError, match=said):
                ask(which)


def test_a_run_by_a_part_of_its_id(directory: Path) -> None:
    for _ in range(40):
        assert task(one)()() == 1
    with pytest.raises(RecordsError, match="several runs"):
        records.run(next(a.id[0] for a in records.runs() for b in records.runs() if a.id != b.id and a.id[0] == b.id[0]))
    with pytest.raises(RecordsError, match="no run 'nonsense'"):
        records.run("nonsense")
    latest = records.runs(limit=3)
    assert len(latest) == 3
    assert latest == sorted(latest, key=lambda run: -run.started_ns)
    assert records.runs(name="two") == []


def _held(x: int) -> int:
    return sum(range(200_000 + x))


def test_the_time_of_a_node_is_parted(directory: Path) -> None:
    body = scheduler(cpus=1)(process(_held))
    assert process(add)(body(1), body(2))() > 0
    run = records.run()
    first, second = sorted(run.nodes[:2], key=lambda node: node.started_ns or 0)
    assert first.ended_ns is not None
    assert second.started_ns is not None
    assert second.started_ns >= first.ended_ns
    assert second.times.cookie + second.times.worker > 0
    assert run.root.times.arguments > 0
    assert run.times.running >= (first.seconds or 0) + (second.seconds or 0)


def test_all_is_plain_data(directory: Path) -> None:
    with pytest.raises(ValueError, match="no such"):
        process(add)(process(fails)(1), process(one)())()
    told = records.run().to_dict()
    again = json.loads(json.dumps(told))
    assert again["error"]["type"] == "ValueError"
    assert {node["state"] for node in again["node_list"]} <= {"done", "failed", "stopped", "waiting"}


def test_the_recorder_leaves_nothing_in_the_process_that_runs(directory: Path) -> None:
    script = """
        import os, sys, threading
        from entangle.process import process

        @process
        def add(a, b):
            return a + b

        before = len(os.listdir("/proc/self/fd"))
        for n in range(30):
            assert add(add(1, 2), n)() == n + 3
        # The reaper is the engine's, and no obstacle to a fork.
        assert {thread.name for thread in threading.enumerate()} <= {"MainThread", "entangle-reaper"}
        assert "sqlite3" not in sys.modules, "a process that runs opens no database"
        held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
        assert not [name for name in held if "records" in name], held
    """
    folder = directory.parent / "script"
    folder.mkdir()
    output_of(folder, script)
    assert len(records.runs()) == 30


def test_the_first_runs_of_a_program_are_remembered_also_when_they_begin_at_once(directory: Path, tmp_path: Path) -> None:
    script = """
        import os, threading
        from entangle.thread import thread

        @thread
        def one():
            return 1

        together = threading.Barrier(12)

        def runs():
            together.wait()
            assert one()() == 1

        threads = [threading.Thread(target=runs) for _ in range(12)]
        for begun in threads:
            begun.start()
        for begun in threads:
            begun.join()
        held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
        assert not [name for name in held if name.endswith(".run")], held
    """
    output_of(tmp_path, script)
    assert [run.state for run in records.runs()] == ["done"] * 12


def test_a_body_that_changes_directory_and_environment_is_recorded_all_the_same(directory: Path, tmp_path: Path, start: str) -> None:
    def elsewhere(x: int) -> Any:
        os.chdir("/")
        os.environ["ENTANGLE_RECORD_DIR"] = "/nonexistent"
        os.environ["ENTANGLE_RECORD"] = "0"
        return process(add)(x, 1)

    assert process(elsewhere)(1)() == 2
    assert [child.name for child in records.run().children] == ["add"]


def test_a_worker_that_dies_takes_its_notes_along_and_nothing_else(directory: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def dies_once(x: int) -> int:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    assert process(add)(process(retry=1)(dies_once)(process(one)()), 1)() == 2
    run = records.run()
    assert (run.state, run.done_count) == ("done", 3)
    assert run.value is not None
    assert run.value.text == "2"


def test_a_stream_is_remembered_without_its_values(directory: Path) -> None:
    from entangle import dataflow

    double = dataflow.dataflow(executor="process")(twice)
    half = dataflow.dataflow(executor="process")(inner_sum)
    values = [value for (value,) in double(half()).stream(range(20))]
    assert values == [2 * (2 * n) + 1 for n in range(20)]
    (run,) = records.runs()
    assert run.state == "done"
    assert [(node.name, node.state, node.items, node.value) for node in run.nodes] == [
        ("twice", "done", 20, None),
        ("inner_sum", "done", 20, None),
    ]
    assert len(run.children) == len(run.nodes[1].children) == 20


def test_a_stage_of_a_stream_is_remembered_with_its_place() -> None:
    from entangle import dataflow
    from entangle.interpreter import interpreter

    executors: tuple[Any, ...] = ("process", "thread")
    first, second = (dataflow.dataflow(executor=executor)(interpreter(twice)) for executor in executors)
    flow = dataflow.dataflow(executor="thread")(twice)(first(second()))
    assert [value for (value,) in flow.stream(range(3))] == [0, 8, 16]
    streamed = records.run("last")
    assert flow(1) == (8,)
    for run in (streamed, records.run("last")):
        assert [(node.place, node.items) for node in run.nodes] == [
            (at, run.nodes[0].items) for at in (None, sys.executable, sys.executable)
        ]


def test_a_stream_that_is_stopped_keeps_the_error_of_an_item_that_it_has_skipped() -> None:
    from entangle import dataflow

    def no(x: int) -> int:
        if x == 2:
            raise ValueError(f"no {x}")
        return x

    flow = dataflow.dataflow(executor="thread")(twice)(dataflow.dataflow(executor="thread")(no)())
    stream = flow.stream(itertools.count(), on_error="skip")
    for value in stream:
        if value == (6,):
            break
    stream.close()
    run = records.run("last")
    assert run.state == "cancelled"
    failed = next(node for node in run.nodes if node.items_failed)
    assert failed.error is not None
    assert (failed.error.type, failed.error.message, failed.state) == ("ValueError", "no 2", "done")


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_a_dataflow_that_fails_is_remembered_as_failed(executor: Any) -> None:
    from entangle import dataflow

    def no(x: int) -> int:
        raise ValueError(f"no {x}")

    bad = dataflow.dataflow(executor=executor)(no)
    flow = dataflow.dataflow(executor=executor)(twice)(bad())
    with pytest.raises(ValueError, match="no 2"):
        flow(1)
    pushed = records.run("last")
    with pytest.raises(ValueError, match="no 2"):
        list(flow.stream([1, 2]))
    streamed = records.run("last")
    assert streamed.id != pushed.id
    for run in (pushed, streamed):
        assert (run.name, run.state) == ("twice", "failed")
        assert run.error is not None
        assert (run.error.type, run.error.message) == ("ValueError", "no 2")
    assert list(flow.stream([])) == []
    assert [(node.state, node.items) for node in records.run("last").nodes] == [("done", 0), ("done", 0)]
    assert list(flow.stream([1, 2], on_error="skip")) == []
    skipped = records.run("last")
    assert (skipped.state, [node.state for node in skipped.nodes]) == ("done", ["done", "failed"])
    assert [(node.items, node.items_failed, node.items_skipped) for node in skipped.nodes] == [(2, 0, 0), (0, 2, 0)]
    assert skipped.nodes[1].error is not None
    assert (skipped.nodes[1].error.type, skipped.nodes[1].error.message) == ("ValueError", "no 2")
    assert any(note.startswith("call path: twice → no") for note in skipped.nodes[1].error.notes)


@pytest.mark.parametrize("address", ["ws://localhost:abc/g", "ws://localhost:99999/g", "ws://[::1/g"])
def test_what_is_no_address_of_a_server_costs_no_record(address: str, tmp_path: Path) -> None:
    source = f"""
        import os
        os.environ["ENTANGLE_GRAPH"] = {address!r}
        from entangle import records
        from entangle.process import process

        print(process(abs)(-1)())
        print(len(records.runs()))
    """
    caller = Caller(tmp_path, source, ENTANGLE_RECORD_DIR=str(tmp_path / "records")).start()
    try:
        status, out, err = caller.finish()
    finally:
        caller.stop()
    assert (status, out) == (0, "1\n1\n"), err
    assert "is not the address of a Gremlin server" in err
    assert "Traceback" not in err
    with pytest.raises(OptionError, match="not the address"):
        workflow(graph=address)


def test_a_run_does_not_wait_for_what_a_larger_one_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its end a run ingests small segments; a large one is left to the next reader."""
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    monkeypatch.setattr(recorder, "PACE", 20_000)
    process(len)([process(one)() for _ in range(5000)])()
    process(one)()()
    monkeypatch.setattr(recorder, "SHARE", 20.0)
    process(one)()()
    left = os.listdir(segments_of(str(tmp_path)))
    assert len(left) == 1, left
    assert sorted(run.node_count for run in records.runs()) == [1, 1, 5001]
    assert os.listdir(segments_of(str(tmp_path))) == []
