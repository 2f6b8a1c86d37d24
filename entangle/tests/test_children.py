"""What bodies start, in any way: bodies wait for it as any program does, it exits as usual, and it
does not outlive the run."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle.errors import ProcessTerminatedException
from entangle.process import ProcessTimeoutException, process
from entangle.scheduler import scheduler
from entangle.thread import thread
from entangle.workflow import workflow

from . import bodies
from .callers import Caller, gone
from .evidence import alive, note, notes, pids_in, wait_until

gather = process(bodies.gather)


def _two_children() -> None:
    for _ in range(2):
        if not os.fork():
            os._exit(0)


def _by_wait() -> int:
    _two_children()
    count = 0
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return count
        count += 1


def _by_waitid() -> int:
    _two_children()
    count = 0
    while True:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED)
        except ChildProcessError:
            return count
        count += 1


def _by_psutil() -> int:
    import psutil

    children = [subprocess.Popen(["sleep", "0.1"]) for _ in range(2)]
    ended, _ = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
    for child in children:
        child.wait()
    return len(ended)


def _by_signal() -> int:
    ended: list[int] = []

    def reap(*_: object) -> None:
        while True:
            try:
                pid = os.waitpid(-1, os.WNOHANG)[0]
            except ChildProcessError:
                return
            if not pid:
                return
            ended.append(pid)

    before = signal.signal(signal.SIGCHLD, reap)
    try:
        for _ in range(2):
            if not os.fork():
                os._exit(0)
        wait_until(lambda: len(ended) == 2)
        os.wait()
    except ChildProcessError:
        pass
    finally:
        signal.signal(signal.SIGCHLD, before)
    return len(ended)


def _ignoring() -> int:
    """POSIX: with SIGCHLD ignored, `wait` blocks until the last child has exited, and then fails
    with ECHILD."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        _two_children()
        with pytest.raises(ChildProcessError):
            os.wait()
    finally:
        signal.signal(signal.SIGCHLD, before)
    return 2


def _by_asyncio() -> int:
    async def both() -> int:
        children = [await asyncio.create_subprocess_exec("true") for _ in range(2)]
        return sum([await child.wait() == 0 for child in children])

    return asyncio.run(both())


def _of_multiprocessing() -> int:
    children = [multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.5,)) for _ in range(2)]
    for child in children:
        child.start()
    count = len(multiprocessing.active_children())
    for child in children:
        child.join()
    return count if all(child.exitcode == 0 for child in children) else -1


def _without_its_daemon() -> int:
    """A daemon is a child of init, and no process waits for it."""
    daemon = os.fork()
    if not daemon:
        if not os.fork():
            os.setsid()
            time.sleep(2)
        os._exit(0)
    return 1 + (_by_wait() - 2)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (_by_wait, 2),
        (_by_waitid, 2),
        (_by_psutil, 2),
        (_by_signal, 2),
        (_ignoring, 2),
        (_by_asyncio, 2),
        (_of_multiprocessing, 2),
        (_without_its_daemon, 2),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_body_waits_for_its_children_and_nobody_else(body: Any, wanted: int, start: str) -> None:
    assert process(body)()() == wanted


def test_a_body_waits_for_its_children_after_a_nested_run() -> None:
    @process
    def outer() -> Any:
        assert process(_by_wait)()() == 2
        return _by_wait()

    assert outer()() == 2


# --- how a child ends -----------------------------------------------------------------------------


def _forked(child: Any) -> int:
    """The exit code of a child that runs this function, or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _registered(path: str) -> None:
    import atexit
    import weakref

    class Thing:
        pass

    thing = sys.thing = Thing()  # type: ignore[attr-defined]
    weakref.finalize(thing, note, path, "finalized")
    atexit.register(note, path, "second")
    atexit.register(note, path, "first")
    sys.exit(3)


def _printing() -> None:
    sys.stdout.write("half a line")
    sys.exit(4)


def _writing(path: str) -> None:
    file = open(path, "w")
    file.write("words")
    sys.exit(5)


def _with_thread(path: str) -> None:
    import threading

    def work() -> None:
        time.sleep(0.2)
        note(path, "thread")

    threading.Thread(target=work, daemon=False).start()
    sys.exit(6)


def _raising() -> None:
    raise LookupError("in the child")


def _interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["plain", "scheduler", "retry", "thread", "workflow", "dataflow"])
def test_a_forked_child_ends_as_a_program_does(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log, file = str(tmp_path / "log"), str(tmp_path / "file")
    children: list[tuple[Any, int]] = [
        (lambda: sys.exit(5), 5),
        (lambda: sys.exit(None), 0),
        (lambda: sys.exit(256 + 7), 7),
        (lambda: sys.exit("words of farewell"), 1),
        (lambda: os._exit(9), 9),
        (lambda: _registered(log), 3),
        (_printing, 4),
        (lambda: _writing(file), 5),
        (lambda: _with_thread(log), 6),
        (_raising, 1),
        (_interrupted, -signal.SIGINT),
    ]

    def body(number: int = 0) -> list[int]:
        sys.stdout.write("[")  # still in the buffer when the children are forked
        codes = [_forked(child) for child, _ in children]
        sys.stdout.write("]\n")
        return codes

    expected = [code for _, code in children]
    for _ in range(2):
        if kind == "plain":
            assert process(body)()() == expected
        elif kind == "scheduler":
            one_cpu = scheduler(cpus=1)
            assert gather(process(one_cpu(body))(1), process(one_cpu(body))(2))()[0] == (expected, expected)
        elif kind == "retry":
            assert process(retry=2)(body)()() == expected
        elif kind == "thread":
            assert thread(body)()() == expected
        elif kind == "workflow":
            assert workflow(body)()() == expected
        else:
            from entangle.dataflow import dataflow

            assert [codes for (codes,) in dataflow(process(body))().stream([1])] == [expected]
    rounds = 2 * (2 if kind == "scheduler" else 1)
    assert sorted(notes(log)) == sorted([["finalized"], ["first"], ["second"], ["thread"]] * rounds)
    assert Path(file).read_text() == "words"
    out, err = capfd.readouterr()
    assert out.count("[") == out.count("]") == out.count("half a line") == rounds
    assert err.count("words of farewell") == err.count("LookupError: in the child") == err.count("\nKeyboardInterrupt\n") == rounds
    assert "entangle/_run" not in err


def test_a_child_by_every_way_of_starting(start: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = str(tmp_path / "log")

    @process
    def body(log: str) -> list[int]:
        return [_forked(lambda: _registered(log)), _forked(_printing)]

    assert body(log)() == [3, 4]
    assert notes(log) == [["finalized"], ["first"], ["second"]]
    assert capfd.readouterr().out.count("half a line") == 1


def test_what_the_caller_has_registered_is_not_the_childs(tmp_path: Path) -> None:
    """The child removes none of the caller's temporary directories, does not run its `atexit`, and
    leaves its homes alone."""
    source = """
        import atexit, os, sys, tempfile
        from entangle.process import process
        from entangle.thread import thread

        def body():
            child = os.fork()
            if not child:
                sys.exit(5)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        @process
        def same(value):
            return value

        if __name__ == "__main__":
            atexit.register(print, "the end of the caller", flush=True)
            place = tempfile.TemporaryDirectory()
            for start in ("fork", "forkserver", "spawn"):
                print(process(body)()(start=start), os.path.isdir(place.name), flush=True)
            print(thread(body)()(), os.path.isdir(place.name), flush=True)
            print(same(1)(), flush=True)
            place.cleanup()
    """
    status, out, err = Caller(tmp_path, source).start().finish()
    assert (status, err) == (0, "")
    assert out.splitlines() == ["5 True"] * 4 + ["1", "the end of the caller"]


def test_a_child_keeps_its_hands_off_the_workers_cookie() -> None:
    """A child that returned from the body used to give back the cookie of its worker, so that two
    held it."""

    @process
    @scheduler(cpus=1)
    def body(log: str) -> None:
        child = os.fork()
        if not child:
            return
        assert os.waitpid(child, 0)[1] == 0
        note(log, "in")
        time.sleep(0.05)
        note(log, "out")

    import tempfile

    with tempfile.TemporaryDirectory() as place:
        log = os.path.join(place, "log")
        gather(*(body(log) for _ in range(5)))()
        assert notes(log) == [["in"], ["out"]] * 5


# --- processes that outlive a body ----------------------------------------------------------------


def _tracked(log: str) -> Any:
    """Create shared memory, and leave it to a resource tracker of this process. Note the
    tracker."""
    tracker: Any = resource_tracker._resource_tracker
    tracker._fd = tracker._pid = None  # this process inherited that of the caller
    tracker.ensure_running()
    note(log, tracker._pid)
    return shared_memory.SharedMemory(create=True, size=1, name=f"segment-{tracker._pid}")


def _leaving(log: str) -> None:
    os.kept = _tracked(log)  # type: ignore[attr-defined]


def _killed_with(log: str) -> None:
    _leaving(log)
    os.kill(os.getpid(), signal.SIGKILL)


def test_trackers_unlink_before_the_group_of_a_worker_is_killed(tmp_path: Path, start: str) -> None:
    log = str(tmp_path / "log")
    process(_leaving)(log)()
    with pytest.raises(ProcessTerminatedException):
        process(_killed_with)(log)()
    with entangle.session():
        process(_leaving)(log)()
    with entangle.Executor(1) as executor:
        executor.submit(_leaving, log).result()
        executor.kill_workers()
    trackers = pids_in(log)
    assert len(trackers) == 4
    wait_until(lambda: not any(map(alive, trackers)))
    assert [pid for pid in trackers if os.path.exists(f"/dev/shm/segment-{pid}")] == []


def _daemons(log: str) -> None:
    """Start daemons of each kind: with an environment or without, by fork alone and by a program.

    The forked ones hold the pipe of a resource tracker open. The tracker must still unlink its
    shared memory."""
    segment = _tracked(log)
    clean = {"PATH": os.environ["PATH"]}
    subprocess.run(["setsid", "-f", "bash", "-c", f"echo $$ >> {log}; exec sleep 100"], env=clean, check=True)
    subprocess.run(["setsid", "-f", "bash", "-c", f"echo $$ >> {log}; exec sleep 100"], check=True)
    if not os.fork():
        os.setsid()
        if not os.fork():
            note(log, os.getpid())
            time.sleep(100)
        os._exit(0)
    sleeps = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(100,))
    sleeps.start()
    note(log, sleeps.pid)
    wait_until(lambda: len(notes(log)) == 5)
    note(log + ".all")
    time.sleep(100)
    del segment


def _no_daemon_left(log: str) -> None:
    pids = pids_in(log)
    assert len(pids) == 5
    try:
        gone(pids)
        assert not os.path.exists(f"/dev/shm/segment-{pids[0]}")
    finally:
        for pid in pids:
            if alive(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_daemons_of_every_kind_go_at_a_deadline(tmp_path: Path, start: str) -> None:
    log = str(tmp_path / "log")
    with pytest.raises(ProcessTimeoutException):
        process(timeout=2)(_daemons)(log)()
    _no_daemon_left(log)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_daemons_of_every_kind_go_with_a_killed_caller(tmp_path: Path, number: int) -> None:
    source = """
        import sys
        from entangle.process import process
        from entangle.tests.test_children import _daemons

        if __name__ == "__main__":
            process(_daemons)(sys.argv[1])()
    """
    log = str(tmp_path / "log")
    caller = Caller(tmp_path, source).start(log)
    wait_until(lambda: os.path.exists(log + ".all"))
    caller.process.send_signal(number)
    caller.finish()
    _no_daemon_left(log)


@pytest.mark.skipif(os.getuid() != 0, reason="a namespace of processes needs root")
def test_a_caller_that_is_the_first_process_of_a_container(tmp_path: Path) -> None:
    """In a container with such a first process, nothing reaps orphans."""
    source = """
        import os
        from entangle.process import process
        from entangle.tests.evidence import wait_until
        from entangle.tests.test_children import _by_wait

        def zombies():
            left = 0
            for name in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{name}/stat") as file:
                        left += file.read().rpartition(")")[2].split()[0] == "Z"
                except OSError:  # it has just gone
                    pass
            return left

        def few_are_left():
            assert process(_by_wait)()() == 2
            return zombies() <= 1  # that of this run may be on its way

        if __name__ == "__main__":
            assert os.getpid() == 1
            for _ in range(3):
                assert process(_by_wait)()() == 2
            wait_until(few_are_left)
    """
    caller = Caller(tmp_path, source)
    run = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, str(caller.script)],
        env=caller.environment,
        capture_output=True,
        text=True,
    )
    if "unshare" in run.stderr:
        pytest.skip(f"no namespaces here: {run.stderr}")
    assert run.returncode == 0, run.stderr
