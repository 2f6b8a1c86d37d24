"""Large graphs and many runs: deep graphs, runs in a row, and runs from several threads at once."""

import contextlib
import gc
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from entangle.errors import CycleError
from entangle.process import ProcessTerminatedException, ProcessTimeoutException, process
from entangle.thread import thread

from . import bodies
from .callers import output_of
from .evidence import alive, note, notes, text_of, wait_until
from .ways import second_thread

one = process(bodies.one)
num = process(bodies.num)
add = process(bodies.add)
inc = process(bodies.inc)
same = process(bodies.same)
gather = process(bodies.gather)
total = process(bodies.total)


def test_ten_thousand_levels(start: str) -> None:
    call = inc(0)
    for _ in range(9_999):
        call = inc(call)
    assert call() == 10_000
    repr(call)
    del call  # freeing a deep graph is recursive as well
    gc.collect()


def test_ten_thousand_levels_above_a_failure() -> None:
    call: Any = process(bodies.fail)()
    for _ in range(10_000):
        call = inc(call)
    with pytest.raises(ValueError, match="no such thing") as caught:
        call()
    assert "fail" in text_of(caught.value)


def test_runs_leave_nothing() -> None:
    """After forty runs there are as many files, descriptors, threads and memory maps as after ten.
    (A drill makes 2,000 runs.)"""

    def runs(number: int) -> None:
        for n in range(number):
            assert add(num(n), num(1))() == n + 1

    def held() -> tuple[int, int, int]:
        gc.collect()
        with open("/proc/self/maps") as maps:
            mine = sum("entangle" in line for line in maps)
        return len(os.listdir("/proc/self/fd")), threading.active_count(), mine

    runs(10)
    before = held()
    runs(30)
    wait_until(lambda: held()[1] <= before[1], 1.0)
    assert held() <= before


def test_failing_runs_leave_nothing() -> None:
    failing = add(num(1), process(bodies.fail)())
    dying = add(num(1), process(bodies.die)(3))

    def runs(number: int) -> None:
        for _ in range(number):
            with pytest.raises(ValueError):
                failing()
            with pytest.raises(ProcessTerminatedException):
                dying()

    runs(5)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    runs(10)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("how", ["auto", "forkserver", pytest.param("spawn", marks=pytest.mark.drill)])
def test_runs_from_several_threads_at_once(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_START", how)
    results: dict[int, list[int]] = {}

    def run(me: int) -> None:
        rounds = 10 if how != "spawn" else 2
        results[me] = [add(num(me), add(num(n), thread(bodies.num)(n)))() for n in range(rounds)]

    threads = [threading.Thread(target=run, args=(me,)) for me in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert results == {me: [me + 2 * n for n in range(len(results[me]))] for me in range(6)}


def test_a_run_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """A worker dies with the thread that forked it, so that thread must live until the run ends."""
    gate, log = tmp_path / "gate", str(tmp_path / "log")
    futures: list[Any] = []

    @process
    def wait(path: str, gate: str) -> int:
        note(path, "in", os.getpid())
        wait_until(lambda: os.path.exists(gate))
        return 3

    starter = threading.Thread(target=lambda: futures.append(add(wait(log, str(gate)), 1)(proc=True)))
    starter.start()
    starter.join()
    wait_until(lambda: notes(log))
    gate.touch()
    assert futures[0].result(timeout=30) == 4


def test_a_thread_that_fails_in_one_run_does_not_end_another(tmp_path: Path) -> None:
    log, gate = str(tmp_path / "log"), str(tmp_path / "gate")

    @process
    def wait(path: str, gate: str) -> int:
        note(path, "in")
        wait_until(lambda: os.path.exists(gate))
        return 3

    with second_thread():
        good = add(wait(log, gate), 1)(proc=True)
        wait_until(lambda: notes(log))
        with pytest.raises(ProcessTerminatedException):
            add(process(bodies.die)(3), 1)()
        with pytest.raises(ProcessTimeoutException):
            process(timeout=0.5)(bodies.linger)(log)()
        Path(gate).touch()
        assert good.result(timeout=30) == 4


def test_short_runs_do_not_disturb_a_long_one(tmp_path: Path, start: str) -> None:
    """Many short runs start and end beside a long one, and some of them fail."""
    log, gate = str(tmp_path / "log"), str(tmp_path / "gate")
    long = add(_wait_for_gate(log, gate), 1)(proc=True)
    wait_until(lambda: notes(log))
    fail = process(bodies.fail)

    def run() -> None:
        for n in range(10 if start != "spawn" else 2):
            assert total(*(num(n) for _ in range(4)))() == 4 * n
            with pytest.raises(ValueError, match="no such thing"):
                gather(fail(), *(one() for _ in range(6)))()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    Path(gate).touch()
    assert long.result(timeout=30) == 4
    assert len(notes(log)) == 1


@process
def _wait_for_gate(log: str, gate: str) -> int:
    note(log, "in", os.getpid())
    wait_until(lambda: os.path.exists(gate), 50)
    return 3


def _server() -> int:
    """The pid of this process's forkserver."""
    for child in psutil.Process().children():
        # A worker of an earlier run may be gone, or not yet reaped.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "entangle._run.forkserver" in " ".join(child.cmdline()):
                return child.pid
    raise AssertionError("there is no server")


def test_a_run_that_is_over_before_its_last_worker_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forkserver is stopped while the supervisor asks it for another worker. When it continues,
    the run may be over and nobody reads its answer.

    The server must not end because of that: the workers of other runs would die with it.
    """
    monkeypatch.setenv("ENTANGLE_START", "forkserver")
    log, gate = str(tmp_path / "log"), str(tmp_path / "gate")
    assert one()() == 1
    server = _server()
    long = add(_wait_for_gate(log, gate), 1)(proc=True)
    wait_until(lambda: notes(log))

    @process
    def stop(server: int) -> int:
        import time

        os.kill(server, signal.SIGSTOP)
        time.sleep(0.3)  # while this body sleeps, the supervisor asks for another worker
        return 1

    awake = subprocess.Popen(["sh", "-c", f"while sleep 0.5; do kill -CONT {server}; done"])
    try:
        for _ in range(3):
            assert total(stop(server), one(), one(), one())() == 4
        assert add(one(), 1)() == 2
    finally:
        awake.kill()
        awake.wait()
        os.kill(server, signal.SIGCONT)
        Path(gate).touch()
    assert long.result(timeout=30) == 4
    assert _server() == server
    assert alive(server)


def test_a_cycle_of_calls() -> None:
    parts: list[Any] = [1]
    call = same(parts)
    parts.append(call)
    with pytest.raises(CycleError, match="same"):
        call()
    with pytest.raises(CycleError):
        add(one(), call)()


def test_a_run_forks_beside_what_the_one_before_has_left(tmp_path: Path) -> None:
    """Workers that still end, and large values that are still being removed, do not prevent
    forking. The run is in a program of its own, because the test process may have threads."""
    program = """
        import os
        from entangle.process import process

        @process
        def large():
            return bytes(20 << 20)

        @process
        def length(value):
            return len(value)

        parent = process(os.getppid)
        if __name__ == "__main__":
            for _ in range(10):
                print(length(large())() == 20 << 20, parent()() == os.getpid())
    """
    assert output_of(tmp_path, program) == "True True\n" * 10


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_a_body_prints_is_there_before_its_value(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller is busy with the first line while the worker prints the second one and returns its
    value. The worker is slow to end."""
    monkeypatch.setenv("ENTANGLE_START", "fork")
    wrote: list[tuple[threading.Thread, str]] = []

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            wrote.append((threading.current_thread(), text))
            note(tmp_path / "first")
            wait_until((tmp_path / "leaving").exists)
            return len(text)

    class Lingering(io.StringIO):
        """Flushed once before the value is sent, and again before the worker ends."""

        flushed = 0

        def flush(self) -> None:
            self.flushed += 1
            if self.flushed == 2:
                note(tmp_path / "leaving")
                time.sleep(0.5)

    @process
    def talk() -> int:
        stream = getattr(sys, name)
        print("first", file=stream)
        wait_until((tmp_path / "first").exists)
        print("second", file=stream)
        setattr(sys, name, Lingering())
        return 1

    with monkeypatch.context() as patch:
        patch.setattr(sys, name, Slow())
        assert talk()() == 1
    # The caller's thread wrote them, not the thread that waits for workers to end.
    assert wrote == [(threading.current_thread(), "first\n"), (threading.current_thread(), "second\n")]


def test_runs_in_a_row_while_workers_still_talk(capfd: pytest.CaptureFixture[str]) -> None:
    """A child that is forked while the reaper forwards output could inherit a locked stream, and
    wait for that lock for ever."""

    @process
    def talk(n: int) -> int:
        def on_and_on() -> None:
            while True:
                os.write(2, b"still here\n" * 20)

        threading.Thread(target=on_and_on, daemon=True).start()
        print("hello")
        return n

    assert [talk(n)() for n in range(60)] == list(range(60))
    assert capfd.readouterr().out.count("hello") == 60
