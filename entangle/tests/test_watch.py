"""Watching live runs from outside: what each worker does, how far a run is, and which run is nested
in which."""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle._watch.live_runs import LiveRun, cookies, live_homes, live_runs, pid_of_home
from entangle._watch.outline import read_outline

from .callers import Caller, output_of
from .evidence import wait_until

#: A run that lasts until the file `go` exists: two chains, a nested run, and a node that waits for
#: a cookie.
LASTING = """
    import os, sys, time
    from entangle.process import process
    from entangle.scheduler import scheduler

    def wait():
        while not os.path.exists("go"):
            time.sleep(0.01)

    @process
    def quick(n):
        return n

    @process
    def waiting(n):
        wait()
        return n

    @process
    def inside(n):
        return waiting(quick(n))()

    @scheduler(cpus=1)
    @process
    def bound(n):
        wait()
        return n

    @process
    def total(*values):
        return sum(values)

    print(total(waiting(quick(1)), inside(2), bound(3))())
"""


@pytest.fixture
def lasting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    """A script whose run lasts until the file `go` exists."""
    caller = Caller(tmp_path, LASTING)
    monkeypatch.setenv("ENTANGLE_RUN_DIR", str(caller.runs))
    caller.start()
    try:
        yield caller
    finally:
        caller.stop()


def seen(count: int = 2) -> list[LiveRun]:
    """The live runs, once there are `count` of them, all have an outline, and everything that can
    run does."""

    def look() -> list[LiveRun] | None:
        runs = live_runs()
        if len(runs) == count and all(run.outline for run in runs) and sum(run.counts()[1] for run in runs) == count + 2:
            return runs
        for run in runs:
            run.close()
        return None

    found: list[LiveRun] = wait_until(look)
    return found


def test_a_run_is_seen_with_its_workers_and_what_each_does(lasting: Caller) -> None:
    outer, inner = seen()
    with outer, inner:
        assert outer.pid == lasting.process.pid
        assert outer.counts() == (1, 3, 1, 0)
        assert outer.seconds > 0
        tasks = {worker.task: worker for worker in outer.workers() if worker.node >= 0}
        assert set(tasks) == {"waiting", "inside", "bound"}
        assert tasks["bound"].cookie
        assert not tasks["waiting"].cookie
        assert tasks["inside"].waits_for == "run"
        assert all(worker.pid in lasting.family() and worker.kind == "process" for worker in tasks.values())


def test_names_and_edges_are_known_and_a_nested_run_hangs_on_its_node(lasting: Caller) -> None:
    outer, inner = seen()
    with outer, inner:
        assert outer.outline is not None
        assert inner.outline is not None
        names = [outer.name(node) for node in range(outer.table.nodes)]
        assert sorted(names) == ["bound", "inside", "quick", "total", "waiting"]
        sink = names.index("total")
        assert [names[taken] for taken in outer.outline.sources(sink)] == ["waiting", "inside", "bound"]
        assert inner.outer == outer.id
        assert outer.outer is None
        assert inner.parent == (outer.id, names.index("inside"))
        assert outer.outline.about["command"][0].endswith("script.py")


def test_free_cookies_are_counted_and_none_is_taken(lasting: Caller) -> None:
    for run in seen():
        run.close()
    (home,) = live_homes()
    assert pid_of_home(home) == lasting.process.pid
    assert cookies(home)["cpus=1"] == 0
    assert cookies(home) == cookies(home)


#: A run inside an executor's call. It lasts until the file `go` exists.
IN_A_CALL = """
    import os, time
    from entangle.executor import Executor
    from entangle.process import process

    @process
    def waiting(n):
        while not os.path.exists("go"):
            time.sleep(0.01)
        return n

    def call(n):
        return waiting(n)()

    with Executor(1) as executor:
        print(executor.submit(call, 3).result())
"""


def test_a_run_that_a_call_of_an_executor_began_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(tmp_path, IN_A_CALL)
    monkeypatch.setenv("ENTANGLE_RUN_DIR", str(caller.runs))
    caller.start()
    try:
        found: list[LiveRun] = wait_until(lambda: [run for run in live_runs() if run.outline])
        (run,) = found
        with run:
            assert run.pid in caller.family()
            assert run.outer is None
            assert [run.name(node) for node in range(run.table.nodes)] == ["waiting"]
        (tmp_path / "go").touch()
        assert caller.finish() == (0, "3\n", "")
        assert caller.files() == []
    finally:
        caller.stop()


def test_to_be_watched_changes_nothing(lasting: Caller) -> None:
    runs = seen()
    for run in runs:
        with pytest.raises(TypeError, match="read-only"):
            run.table.header[0] = 0
        run.close()
    (lasting.folder / "go").touch()
    assert lasting.finish() == (0, "6\n", "")
    assert lasting.files() == []
    assert live_runs() == []


def test_a_run_that_ends_while_it_is_watched_can_still_be_read(lasting: Caller) -> None:
    outer, inner = seen()
    with outer, inner:
        (lasting.folder / "go").touch()
        assert lasting.finish()[0] == 0
        assert not outer.alive
        assert outer.counts() == (5, 0, 0, 0)


def test_a_killed_process_no_longer_runs_anything(lasting: Caller) -> None:
    for run in seen():
        run.close()
    os.kill(lasting.process.pid, signal.SIGKILL)
    wait_until(lambda: live_homes() == [])
    assert live_runs() == []


def test_files_that_are_no_tables_or_outlines_are_passed_over(lasting: Caller) -> None:
    for run in seen():
        run.close()
    (home,) = live_homes()
    for name, content in (("r0000", b""), ("r0001", b"nothing of ours" * 100), ("r0002", None)):
        folder = Path(home) / name
        folder.mkdir()
        if content is not None:
            (folder / "table").write_bytes(content)
            (folder / "outline").write_bytes(content)
            assert read_outline(str(folder)) is None
    found = live_runs()
    assert len(found) == 2
    for run in found:
        run.close()


def test_what_only_looks_like_a_run_is_neither_waited_for_nor_read(lasting: Caller) -> None:
    """A FIFO, a link to one, a link to itself, a device, a file of a terabyte, and a header whose
    numbers exceed the file."""
    for run in seen():
        run.close()
    (home,) = map(Path, live_homes())
    (real,) = (path for path in home.iterdir() if path.name.startswith("r") and (path / "table").exists())
    head = (real / "table").read_bytes()[:24]
    many = struct.pack("<qqq", struct.unpack("<qqq", head)[0], 1 << 40, 1 << 40)

    def folder(name: str) -> Path:
        (home / name).mkdir()
        return home / name

    os.mkfifo(folder("ra0") / "table")
    (folder("ra1") / "table").symlink_to(real / "table")
    (folder("ra2") / "table").symlink_to("/dev/zero")
    with open(folder("ra3") / "table", "wb") as file:
        file.write(many)
        file.truncate(1 << 40)
    (folder("ra4") / "table").mkdir()
    (home / "ra5").symlink_to(real)
    (real / "ra6").symlink_to(real)
    os.mkfifo(home / "ra7")
    os.mkfifo(home.parent / "p1-0123456789ab")
    (home.parent / "p2-0123456789ab").symlink_to(home)
    (home / "cookies-3").symlink_to("budget")
    (home / "cookies-4").write_bytes(b"+" * 4)
    outlines = [
        b"[" * 100_000 + b"\n",
        b'{"form": 1, "nodes": 1e300}\n',
        b'{"form": 1, "names": 3, "parent": []}\n',
        b"\xff\n",
        b"9" * 5000,
    ]
    outlines.append((real / "outline").read_bytes()[:-8])
    for number, content in enumerate(outlines):
        (folder(f"rb{number}") / "outline").write_bytes(content)
        assert read_outline(str(home / f"rb{number}")) is None
    os.mkfifo(folder("rc0") / "outline")
    assert read_outline(str(home / "rc0")) is None
    assert live_homes() == [str(home)]
    assert set(cookies(str(home))) == {"budget", "cpus=1"}
    found = live_runs()
    assert len(found) == 2
    for run in found:
        run.close()


def test_a_directory_that_is_a_link_is_not_looked_into(lasting: Caller) -> None:
    for run in seen():
        run.close()
    base = lasting.runs / f"entangle-{os.getuid()}"
    assert len(live_homes()) == 1
    base.rename(lasting.runs / "elsewhere")
    base.symlink_to("elsewhere")
    assert live_homes() == []
    base.unlink()
    (lasting.runs / "elsewhere").rename(base)


def test_a_run_of_threads_alone_is_seen_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process takes part in it, so it writes no files until it has lasted a while."""
    caller = Caller(tmp_path, LASTING.replace("process", "thread"))
    monkeypatch.setenv("ENTANGLE_RUN_DIR", str(caller.runs))
    caller.start()
    try:
        outer, inner = seen()
        with outer, inner:
            assert outer.pid == inner.pid == caller.process.pid
            assert outer.counts() == (1, 3, 1, 0)
            tasks = {worker.task: worker for worker in outer.workers() if worker.node >= 0}
            assert set(tasks) == {"waiting", "inside", "bound"}
            assert {worker.kind for worker in tasks.values()} == {"thread"}
            assert inner.outer == outer.id
            (caller.folder / "go").touch()
            assert caller.finish() == (0, "6\n", "")
            assert outer.counts() == (5, 0, 0, 0)
        assert caller.files() == []
    finally:
        caller.stop()


def test_our_own_runs_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing any descriptor of a table would release the lock that another thread of the process
    holds on it."""
    from entangle._shared.home import home

    path = home().path
    assert os.path.isdir(path)
    assert path not in live_homes()


@pytest.mark.parametrize(("lasting", "written"), [(60.0, "False"), (0.0, "True")])
def test_only_a_run_that_lasts_writes_an_outline(lasting: float, written: str, tmp_path: Path) -> None:
    source = f"""
        import os, time
        from entangle._run import observers, run
        from entangle.process import process

        class Look:
            def started(self, run): pass
            def looked(self, run): pass
            def ended(self, run): print(os.path.exists(os.path.join(run.supervisor.site.directory, "outline")))

        run.LASTING = {lasting}  # a machine may be slow
        observers.append(Look())
        process(time.sleep)(0.3)()
    """
    assert output_of(tmp_path, source) == f"{written}\n"


#: Two bodies elsewhere, which last until the file `go` exists. One node is away; a worker process
#: waits for the other.
ELSEWHERE = """
    import os, time
    from entangle.interpreter import interpreter
    from entangle.process import process

    def waiting(n, folder):
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.01)
        return n

    @process
    def total(*values):
        return sum(values)

    folder = os.getcwd()
    print(total(interpreter(waiting)(1, folder), process(interpreter(waiting))(2, folder))())
"""


def test_nodes_elsewhere_are_seen_there_while_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(tmp_path, ELSEWHERE)
    monkeypatch.setenv("ENTANGLE_RUN_DIR", str(caller.runs))
    caller.start()

    def look() -> list[Any]:
        found = []
        for run in live_runs():
            with run:
                nodes, counts = run.whereabouts()
                if len(nodes) == 2 and run.outer is None:
                    found.append(([one.place for one in nodes.values()], [tuple(one) for one in counts]))
        return found

    try:
        assert wait_until(look, 60) == [([sys.executable] * 2, [(sys.executable, "", 2)])]
    finally:
        caller.stop()
