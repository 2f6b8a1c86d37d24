"""How runs and bodies end: many at once, cancelled, or short of a resource that the system
limits."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entangle._tasks.tree import compile_call
from entangle._worker.joining import write_flow
from entangle.dataflow import dataflow
from entangle.errors import RunCancelledError
from entangle.process import ProcessTimeoutException, process
from entangle.scheduler import scheduler
from entangle.thread import thread

from . import bodies
from .callers import Caller
from .evidence import note, notes, wait_until

num = process(bodies.num)
gather = process(bodies.gather)


# --- many at once ---------------------------------------------------------------------------------


@pytest.fixture
def grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow bodies the time after SIGTERM that a busy machine may need."""
    for name in ("deadlines", "reaper", "supervisor"):
        monkeypatch.setattr(f"entangle._run.{name}.GRACE", 20.0)


@pytest.mark.usefixtures("grace")
@pytest.mark.parametrize("retry", [0, 1])
def test_all_who_are_late_are_told_before_any_is_killed(retry: int, tmp_path: Path) -> None:
    """While each body handles SIGTERM, it sees that the others have got it as well."""

    @process(timeout=2, retry=retry)
    def deaf(log: str) -> None:
        def told(*_: object) -> None:
            note(log, "told", os.getpid())
            while len([line for line in notes(log) if line[0] == "told"]) < 3:
                time.sleep(0.001)
            note(log, "together", os.getpid())
            os._exit(0)

        if any(line[0] == "together" for line in notes(log)):
            return  # at the second attempt
        signal.signal(signal.SIGTERM, told)
        note(log, "in", os.getpid())
        while len([line for line in notes(log) if line[0] == "in"]) < 3:
            time.sleep(0.001)
        while True:
            time.sleep(1)

    log = str(tmp_path / "log")
    with contextlib.nullcontext() if retry else pytest.raises(ProcessTimeoutException):
        gather(deaf(log), deaf(log), deaf(log))()
    assert len([line for line in notes(log) if line[0] == "together"]) >= 3


@pytest.mark.usefixtures("grace")
def test_a_run_goes_on_while_a_late_body_has_its_time(tmp_path: Path) -> None:
    """A body that ignores SIGTERM delays no other: others end, and their consumers run, before it
    is killed."""

    @process(timeout=1, retry=1)
    def deaf(log: str) -> int:
        def told(*_: object) -> None:
            note(log, "told")
            wait_until(lambda: ["others"] in notes(log), 10)
            note(log, "heard")
            os._exit(0)

        if notes(log):
            return 1
        signal.signal(signal.SIGTERM, told)
        note(log, "in")
        while True:
            time.sleep(1)

    @process
    def first(log: str) -> int:
        wait_until(lambda: ["told"] in notes(log))
        return 1

    @thread
    def then(log: str, _: int) -> int:
        note(log, "others")
        return 2

    log = str(tmp_path / "log")
    assert gather(deaf(log), then(log, first(log)))() == ((1, 2), {})
    assert ["heard"] in notes(log)


@pytest.mark.usefixtures("grace")
def test_threads_that_wait_for_runs_are_stopped_together(tmp_path: Path) -> None:
    """Each inner run takes its time to end. Meanwhile the others have been told to end."""
    log = str(tmp_path / "log")

    @process
    def slow(log: str) -> None:
        def told(*_: object) -> None:
            note(log, "told")
            while len([line for line in notes(log) if line[0] == "told"]) < 3:
                time.sleep(0.001)
            note(log, "together")
            os._exit(0)

        signal.signal(signal.SIGTERM, told)
        note(log, "in")
        while True:
            time.sleep(1)

    @thread
    def outer(log: str) -> Any:
        return slow(log)()

    @thread
    def bad(log: str) -> None:
        wait_until(lambda: notes(log).count(["in"]) == 3)
        raise KeyError("here the run ends")

    with pytest.raises(KeyError):
        gather(outer(log), outer(log), outer(log), bad(log))()
    wait_until(lambda: notes(log).count(["together"]) == 3)


def test_reapers_of_runs_by_fork_leave_no_stacks() -> None:
    """With `start="fork"` given explicitly, the threads that reap workers once stayed, each with
    its stack."""

    def stacks() -> int:
        gc.collect()
        with open("/proc/self/maps") as maps:
            return len(maps.readlines())

    for n in range(10):
        assert num(n)(start="fork") == n
    before = stacks()
    for n in range(60):
        assert num(n)(start="fork") == n
    assert stacks() < before + 40


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_worker_that_is_ended_while_it_is_born_says_nothing(name: str, start: str, tmp_path: Path) -> None:
    """The signal arrives in the first moment of each worker. Neither the caller's handlers nor
    Python report it on stderr."""
    source = """
        import os, signal, sys
        from entangle.errors import EntangleError
        from entangle.process import process

        @process
        def same(value):
            return value

        if __name__ == "__main__":
            name, start = sys.argv[1:]
            number = getattr(signal, name)
            if start == "fork":
                os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), number))
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            for theirs in (True, False):
                if theirs and name == "SIGTERM":
                    signal.signal(number, lambda *_: print("the caller's handler", file=sys.stderr))
                try:
                    print(same(1)(start=start))
                except EntangleError as error:
                    print(error)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
    """
    # A new interpreter imports this first.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        f"if 'spawned' in str(sys.orig_argv): os.kill(os.getpid(), signal.{name if start == 'spawn' else 'SIGUSR1'})\n"
    )
    status, out, err = Caller(tmp_path, source).start(name, start).finish()
    assert (status, err) == (0, "")
    told = "1" if name == "SIGINT" else "a worker process ended by signal SIGTERM before it could run a task"
    assert [line for line in out.splitlines() if line.startswith(told)] == out.splitlines()
    assert len(out.splitlines()) == 2


# --- nothing begins after the end -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["retry", "cookie", "dataflow", "deadline"])
def test_no_body_of_a_thread_begins_after_the_run(how: str, tmp_path: Path) -> None:
    began: list[str] = []
    waits, over = threading.Event(), threading.Event()
    threads = set(threading.enumerate())

    def failing(value: int = 0) -> int:
        began.append(how)
        waits.set()
        raise ValueError(value)

    def late() -> int:
        began.append(how)
        waits.set()
        over.wait(20)
        raise ValueError

    def bad(*_: object) -> None:
        assert waits.wait(20)
        raise KeyError("here the run ends")

    def holding() -> None:
        waits.set()
        over.wait(20)

    both = thread(bodies.pair)
    again: Any = {"retry": 3, "sleep": 0.2}
    if how == "retry":
        with pytest.raises(KeyError):
            both(thread(**again)(failing)(), thread(bad)())()
    elif how == "deadline":
        with pytest.raises(Exception, match="timeout"):
            both(thread(timeout=0.2)(late)(), 1)()
        over.set()
    elif how == "cookie":
        one_cpu = scheduler(cpus=1)
        with pytest.raises(KeyError):
            gather(thread(one_cpu(holding))(), thread(one_cpu(holding))(), thread(bad)())()
        began.append(how)  # the body that holds the cookie
        over.set()
    else:
        stream = dataflow(thread(**again)(failing))().stream([1])
        iterator = iter(stream)
        waiting = threading.Thread(target=lambda: next(iterator, None))
        waiting.start()
        assert waits.wait(20)
        stream.close()
        waiting.join()
    # Threads cannot be killed. Those that slept until another attempt, or waited for a cookie,
    # exit.
    wait_until(lambda: not set(threading.enumerate()) - threads)
    assert began == [how]


# --- cancelled ------------------------------------------------------------------------------------


def _wait(log: str) -> int:
    note(log, "in")
    time.sleep(30)
    return 1


@pytest.mark.parametrize("kind", [process, thread])
def test_cancel_says_what_it_did(kind: Any, tmp_path: Path, start: str) -> None:
    log = str(tmp_path / "log")
    future = process(bodies.inc)(process(_wait)(log)).future()
    future.start()
    wait_until(lambda: notes(log))
    assert future.cancel() is True
    with pytest.raises(RunCancelledError):
        future.result(timeout=20)
    assert future.cancel() is True  # as before
    never = num(1).future()
    assert never.cancel() is True
    with pytest.raises(CancelledError):
        never.result()
    done = num(1).future()
    assert done.result() == 1
    assert done.cancel() is False
    assert done.result() == 1


def test_a_cancel_in_the_last_moment_is_kept(tmp_path: Path) -> None:
    """The body returns a value while another thread cancels. If `cancel` returned True, there is no
    value."""
    inside = threading.Event()
    cancelled = threading.Event()

    @thread
    def body() -> int:
        inside.set()
        assert cancelled.wait(20)
        return 1

    future = body().future()
    future.start()
    assert inside.wait(20)
    gave = future.cancel()
    cancelled.set()
    assert gave is True
    with pytest.raises(RunCancelledError):
        future.result(timeout=20)


def test_a_pushed_value_can_be_cancelled(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    future = dataflow(process(_wait))().future(log)
    future.start()
    wait_until(lambda: notes(log))
    assert future.cancel() is True
    with pytest.raises(RunCancelledError):
        future.result(timeout=20)


# --- short of a resource --------------------------------------------------------------------------

_MANY = """
    import asyncio, resource, sys
    from entangle.process import process
    from entangle.thread import thread

    @process
    def same(number):
        return number

    @thread
    def around(number):
        return same(number)()

    if __name__ == "__main__":
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        how, task = sys.argv[1], around if sys.argv[1] == "thread" else same
        calls = [task(number) for number in range(40 if how != "thread" else 8)]
        if how == "await":
            async def all_of_them():
                return await asyncio.gather(*calls)
            values = asyncio.run(all_of_them())
        else:
            futures = [call(proc=True) for call in calls]
            values = [future.result() for future in futures]
        print(values == list(range(len(calls))))
"""


@pytest.mark.parametrize("how", ["futures", "await", "thread"])
def test_many_runs_at_once_share_the_descriptors(how: str, tmp_path: Path) -> None:
    status, out, err = Caller(tmp_path, _MANY).start(how).finish()
    assert (status, out.strip(), err) == (0, "True", "")


_SHORT = """
    import os, resource, sys, threading
    from entangle.process import process
    from entangle.thread import thread
    from entangle.errors import LimitError

    @process
    def same(value):
        return value

    @thread
    def in_thread(value):
        return value

    def descriptors():
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, used + 2))

    def sizes():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    def memory():
        for _ in range(8):  # they take the stacks of threads that have ended, which the C library keeps
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), used + (1 << 20)))

    if __name__ == "__main__":
        what, start, task = sys.argv[1], sys.argv[2], in_thread if sys.argv[2] == "thread" else same
        options = {} if start == "thread" else {"start": start}
        assert task(0)(**options) == 0
        globals()[what]()
        try:
            print(task(1)(**options))
        except LimitError as error:
            print(error)
"""


@pytest.mark.parametrize(
    ("what", "starts", "words"),
    [
        ("descriptors", ["fork", "forkserver", "spawn", "thread"], ["descriptor", "ulimit -n"]),
        ("sizes", ["fork", "forkserver"], ["0 bytes", "ulimit -f"]),
        ("memory", ["thread"], ["ulimit -v"]),
    ],
)
def test_one_error_says_what_is_short(what: str, starts: list[str], words: list[str], tmp_path: Path) -> None:
    told = []
    for start in starts:
        status, out, err = Caller(tmp_path, _SHORT).start(what, start).finish()
        assert status == 0, err
        told.append(out.strip())
        assert out.strip() == "1" or (all(word in out for word in words) and "Errno" not in out), out
    assert set(told) != {"1"}, "nothing was short"


def test_files_may_have_a_most_size(tmp_path: Path) -> None:
    """The limit is smaller than a segment of the store. Values that fit are stored all the same;
    for the others the error names the limit."""
    source = """
        import resource
        from entangle.errors import EntangleError
        from entangle.process import process

        @process
        def zeros(size):
            return bytes(size)

        @process
        def both(*values):
            return sum(map(len, values))

        if __name__ == "__main__":
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
            for start in ("fork", "forkserver"):
                for size in (10, 50_000, 150_000, 300_000):
                    try:
                        print(both(zeros(size), zeros(size))(start=start))
                    except EntangleError as error:
                        print(error)
    """
    status, out, err = Caller(tmp_path, source).start().finish()
    assert (status, err) == (0, "")
    sizes, told = ["20", "100000", "300000"], [line for line in out.splitlines() if "ulimit -f" in line]
    assert [line for line in out.splitlines() if line not in told] == sizes * 2
    assert len(told) == 2
    assert all("300,0" in line and "200,000 bytes" in line and "Errno" not in line for line in told)


@pytest.mark.parametrize("length", [2_100, 3_700])
def test_long_paths_of_runs(length: int, tmp_path: Path) -> None:
    """Also paths whose characters take six bytes each in JSON."""
    runs = tmp_path
    while len(os.fsencode(runs)) < length - 200:
        runs = runs / ("ä" * 60 + "x" * 60)
    runs = runs / ("y" * (length - len(os.fsencode(runs))))
    runs.mkdir(parents=True)
    source = """
        import os
        from entangle.process import process

        @process
        def same(value):
            return value

        @process
        def outer(value):
            return same(value)()

        if __name__ == "__main__":
            for start in ("fork", "forkserver", "spawn"):
                assert outer(bytes(100_000))(start=start) == bytes(100_000)
            print(os.listdir(os.environ["ENTANGLE_RUN_DIR"]))
    """
    folder = tmp_path / "caller"
    folder.mkdir()
    status, _, err = Caller(folder, source, ENTANGLE_RUN_DIR=str(runs)).start().finish()
    assert (status, err) == (0, "")


def test_a_path_that_is_too_long_for_the_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RUN_DIR", "/tmp/" + "x" * 5_000)
    with pytest.raises(Exception, match="ENTANGLE_RUN_DIR"):
        num(1)()


def test_a_directory_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    """A spare worker may still be rehearsing when its process has removed its home. A home created
    again would have no owner, and stay."""
    gone = str(tmp_path / "home" / "run")
    flow = compile_call(num(1))
    site: Any = SimpleNamespace(
        flow=flow,
        flow_path="",
        described=b"",
        frame=None,
        stores=False,
        directory=gone,
        spill=gone,
        home=str(tmp_path / "home"),
        shares=None,
        claims=[],
        visible=None,
    )
    with pytest.raises(FileNotFoundError):
        write_flow(site)
    assert list(tmp_path.iterdir()) == []
