"""A worker that its bodies have worn out is replaced between two runs, which do not notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entangle import records, session
from entangle._records.property_graph import vertices_of
from entangle.process import ProcessTerminatedException, process
from entangle.web import recorded as recorded_on_page

from .callers import output_of
from .evidence import alive, note, pids_in, wait_until

#: A worker that leaks is replaced after at most this many runs.
BOUND = 40

_kept: list[Any] = []


@pytest.fixture(autouse=True)
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))


def reasons() -> dict[int, str]:
    """Why workers ended, by pid, as recorded."""
    return {ended.pid: ended.reason for run in records.runs(None) for ended in run.retirements}


def thread() -> None:
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def descriptors() -> None:
    _kept.extend(os.dup(0) for _ in range(8))


def memory() -> None:
    _kept.append(b"x" * (20 << 20))


def zombies() -> None:
    for _ in range(2):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)


def shared_memory() -> None:
    from multiprocessing.shared_memory import SharedMemory

    for _ in range(4):
        _kept.append(SharedMemory(create=True, size=4096))
        _kept[-1].unlink()


@process
def leaks(what: Callable[[], None]) -> int:
    what()
    time.sleep(0.006)  # a worker checks itself at most this often
    return os.getpid()


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        (thread, "threads"),
        (descriptors, "open descriptors"),
        (memory, "bytes of memory"),
        (zombies, "child processes"),
        (shared_memory, "open descriptors"),
    ],
)
def test_a_worker_whose_bodies_leak_is_replaced(what: Callable[[], None], kind: str) -> None:
    with session(workers=1):
        first = leaks(what)()
        for _ in range(BOUND):
            if leaks(what)() != first:
                break
        else:
            pytest.fail(f"the same worker after {BOUND} runs")
        wait_until(lambda: not alive(first))
    found = reasons()
    assert found.keys() == {first}
    assert found[first].startswith(f"its {kind} go on growing")


@process
def as_a_library() -> int:
    """Keeps threads, descriptors and memory, as a library does."""
    if not _kept:
        for _ in range(8):
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        _kept.extend([b"x" * (100 << 20), *(os.dup(0) for _ in range(50))])
    time.sleep(0.006)
    return os.getpid()


def test_what_is_kept_once_retires_nobody() -> None:
    with session(workers=1) as opened:
        assert {as_a_library()() for _ in range(BOUND)} == set(opened.pids)


@process
def grows(size: int) -> int:
    _kept.append(b"x" * size)
    return os.getpid()


def test_a_worker_with_more_than_max_memory_retires() -> None:
    with session(workers=1, max_memory="150MB"):
        first = grows(1 << 20)()
        assert grows(1 << 20)() == first
        assert grows(200 << 20)() == first
        last = grows(1 << 20)()
        assert last != first
        assert grows(200 << 20)() == last  # the reason is recorded when the session ends
    said = [(ended.pid, ended.reason.partition(" bytes")[2]) for run in records.runs(None) for ended in run.retirements]
    assert said == [(last, " of memory, more than max_memory"), (first, " of memory, more than max_memory")]
    assert [bool(run.retirements) for run in records.runs(None)] == [True, False, True, False, False]


def test_workers_retire_while_runs_wait_for_them() -> None:
    with session(workers=2) as opened, ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda _: leaks(descriptors)(), range(60)))
        assert len(opened.pids) <= 2
    assert len(set(found)) > 2
    assert set(found) - set(opened.pids) >= reasons().keys()
    assert all(reason.startswith("its open descriptors go on growing") for reason in reasons().values())
    assert not any(map(alive, found))


def test_a_module_that_has_changed_on_disk_is_imported_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
        import importlib, os, pathlib, sys
        from entangle import session
        from entangle.process import process

        sys.dont_write_bytecode = True
        path = pathlib.Path(__file__).with_name("changing.py")
        path.write_text("def version():\\n    return 'the first'\\n")
        import changing

        @process
        def version():
            import changing
            return changing.version(), os.getpid()

        if __name__ == "__main__":
            with session(workers=1):
                print(version()()[0], version()()[0], len({version()()[1] for _ in range(5)}))
                path.write_text("def version():\\n    return 'the second one'\\n")
                print(version()()[0], process(changing.version)()())
                path.unlink()
                print(process(len)("gone")())
    """
    kept = str(tmp_path / "kept")
    assert output_of(tmp_path, source, ENTANGLE_RECORD_DIR=kept) == "the first the first 1\nthe second one the second one\n4\n"
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", kept)
    gone, changed = reasons().values()
    assert changed == "module 'changing' has changed on disk"
    assert gone.startswith("module 'changing' is gone from ")


@process(timeout=0.2)
def hangs(log: str) -> None:
    note(log, os.getpid())
    time.sleep(60)


@process
def pid() -> int:
    return os.getpid()


def test_a_worker_past_a_deadline_is_replaced(tmp_path: Path) -> None:
    with session(workers=1):
        with pytest.raises(TimeoutError):
            hangs(str(tmp_path / "log"))()
        (killed,) = pids_in(tmp_path / "log")
        assert pid()() != killed
        assert not alive(killed)
    assert reasons() == {killed: "a deadline had passed"}


def test_a_worker_that_is_killed_is_replaced_and_that_is_recorded(tmp_path: Path) -> None:
    with session(workers=2) as opened:
        with pytest.raises(ZeroDivisionError):
            add(hangs_on(str(tmp_path / "log")), fails(str(tmp_path / "log")))()
        (stopped,) = pids_in(tmp_path / "log")
        idle = pid()()
        wait_until(lambda: [worker.left() for worker in opened._pool._here] == [True])  # type: ignore[union-attr]
        os.kill(idle, signal.SIGKILL)
        wait_until(lambda: not alive(idle))
        assert pid()() != idle
        with pytest.raises(ProcessTerminatedException):
            exits(3)()
        last = pid()()
        os.kill(last, signal.SIGKILL)
        wait_until(lambda: not alive(last))
    found = reasons()
    assert found.pop(stopped) == "its run ended while it ran a body"
    assert found.pop(idle) == "SIGKILL killed it while it had nothing to do"
    assert found.pop(last).startswith("SIGKILL killed it")
    assert list(found.values()) == ["it ended with exit status 3"]


def test_the_reason_is_seen_wherever_a_run_is_shown(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with session(workers=1):
        pid()()
        with pytest.raises(ProcessTerminatedException):
            exits(3)()
        pid()()
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    run = records.run(records.runs(name="exits")[0].id)
    (ended,) = run.retirements
    assert run.started < ended.at < run.started + 60
    said = "it ended with exit status 3"
    assert run.to_dict()["retirements"] == [{"pid": ended.pid, "at": ended.at, "reason": said}]
    assert [event["args"]["reason"] for event in json.loads(run.to_trace())["traceEvents"] if event["name"] == "the worker ends"] == [said]
    assert f"pid {ended.pid}: {said}" in run.to_prov()
    assert f"pid {ended.pid}: {said}" in {vertex.properties.get("retirements") for vertex in vertices_of(run)}
    assert recorded_on_page.info(run.id)["retirements"] == [{"pid": ended.pid, "reason": said}]
    assert f"worker {ended.pid} ended after this run: {said}" in entangle_show(run.id)
    records.forget(run.id)
    assert not reasons()


def test_nothing_is_kept_of_a_run_that_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with session(workers=1):
        first = pid()()
        monkeypatch.setenv("ENTANGLE_RECORD", "0")
        with pytest.raises(ProcessTerminatedException):
            exits(3)()
        assert pid()() != first
    assert os.listdir(tmp_path / "records" / "sheets") == [f"{records.run().id}.run"]
    assert reasons() == {}


def test_a_reason_whose_run_is_gone_is_removed(tmp_path: Path) -> None:
    with session(workers=1):
        first = pid()()
        run = records.run()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not alive(first))
        records.forget(run.id)
    folder = tmp_path / "records" / "sheets"
    (folder / "0123456789abcdef-12.retired").write_text("{")  # as if it was being written
    assert len(os.listdir(folder)) == 2
    assert records.runs() == []
    assert os.listdir(folder) == ["0123456789abcdef-12.retired"]
    os.utime(folder / "0123456789abcdef-12.retired", (0, 0))
    assert records.runs() == []
    assert os.listdir(folder) == []


@process
def add(a: int, b: int) -> int:
    return a + b


@process
def hangs_on(log: str) -> int:
    note(log, os.getpid())
    time.sleep(60)
    return 1


@process
def fails(log: str) -> int:
    wait_until(lambda: pids_in(log))
    return 1 // 0


def entangle_show(run_id: str) -> str:
    return subprocess.run([sys.executable, "-m", "entangle", "show", run_id], capture_output=True, text=True, check=True).stdout


@process
def leaves_running(apart: bool) -> int:
    return subprocess.Popen(["sleep", "60"], start_new_session=apart).pid


def test_a_process_that_a_body_leaves_ends_with_its_run() -> None:
    with session(workers=1):
        first = pid()()
        left = leaves_running(apart=False)()
        wait_until(lambda: not alive(left), 2.0)
        assert pid()() != first
    assert reasons() == {first: "a body has left processes running"}


def test_a_daemon_lives_on_as_without_a_session() -> None:
    with session(workers=1):
        left = leaves_running(apart=True)()
        pid()()
    assert alive(left)
    os.kill(left, signal.SIGKILL)


@process
def starts_and_waits() -> int:
    subprocess.run(["true"], check=True)
    return os.getpid()


def test_a_process_that_a_body_has_waited_for_retires_nobody() -> None:
    with session(workers=1) as opened:
        assert {starts_and_waits()() for _ in range(10)} == set(opened.pids)


@process
def exits(code: int) -> None:
    os._exit(code)


@process
def raises_exit() -> None:
    sys.exit(3)


@process
def forks(log: str) -> int:
    if os.fork() == 0:
        note(log, "child", os.getpid())
        return 0
    os.wait()
    return os.getpid()


def test_bodies_that_exit_or_fork(tmp_path: Path) -> None:
    with session(workers=1):
        for _ in range(2):
            with pytest.raises(ProcessTerminatedException, match="exit code 7"):
                exits(7)()
            with pytest.raises(BaseException, match="3"):
                raises_exit()()
            parent = forks(str(tmp_path / "log"))()
            assert parent == pid()()
        assert len(pids_in(tmp_path / "log")) == 2


@process
def dies(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def test_a_worker_that_crashes_is_replaced_within_the_run(tmp_path: Path) -> None:
    with session(workers=1):
        with pytest.raises(ProcessTerminatedException, match="SIGSEGV"):
            dies(signal.SIGSEGV)()
        assert process(retry=3)(crashes_twice)(str(tmp_path / "log"))() == 3


def crashes_twice(log: str) -> int:
    note(log, os.getpid())
    if len(pids_in(log)) < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(set(pids_in(log)))
