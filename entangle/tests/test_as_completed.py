"""`as_completed`: futures of several calls of one graph, in the order in which they finish."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from entangle import as_completed, gather
from entangle.errors import ArgumentError, OptionError, ProcessTerminatedException, RunTimeoutException
from entangle.process import process
from entangle.task import task
from entangle.thread import thread
from entangle.workflow import workflow

from .callers import ROOT
from .evidence import alive, note, notes, notes_of, pids_in, wait_until


@process
def square(x: int) -> int:
    return x * x


@process
def after(path: str, value: Any = None) -> Any:
    """Wait until the file has a line, then return the value."""
    wait_until(lambda: notes(path))
    return value


@process
def touch(path: str, value: Any = None) -> Any:
    Path(path).touch()
    return value


@process
def fail(x: int) -> int:
    raise ValueError(f"no {x}")


@process
def add(a: Any, b: Any) -> Any:
    return a + b


@process
def hang(path: str) -> None:
    note(path, os.getpid())
    time.sleep(60)


def gone(path: Path) -> None:
    """Wait until the process whose number is in the file is gone."""
    (pid,) = pids_in(path)
    wait_until(lambda: not alive(pid))


def test_futures_come_as_they_are_done(tmp_path: Path) -> None:
    flag = str(tmp_path / "flag")
    late, early = after(flag, "late"), square(2)
    order = []
    for future in as_completed([late, early]):
        assert future.done()
        order.append((future.call, future.result()))
        note(flag)
    assert order == [(early, 4), (late, "late")]


def test_a_failure_is_in_its_future_and_ends_no_other() -> None:
    bad = fail(3)
    skipped = add(bad, 1)
    calls: list[Any] = [square(1), bad, skipped, square(2), gather(square(3), bad)]
    futures = {future.call: future for future in as_completed(calls)}
    assert list(map(futures.get, calls)) == [futures[call] for call in calls]
    assert [futures[calls[at]].result() for at in (0, 3)] == [1, 4]
    for call in (bad, skipped, calls[4]):
        with pytest.raises(ValueError, match="no 3") as caught:
            futures[call].result()
        assert "call: fail(3)" in notes_of(caught.value)


def test_what_calls_share_runs_once(tmp_path: Path) -> None:
    @process
    def once() -> int:
        (tmp_path / str(time.monotonic_ns())).touch()
        return 2

    shared = once()
    calls = [add(shared, 1), shared, add(shared, shared)]
    assert {future.call: future.result() for future in as_completed(calls)} == {calls[0]: 3, shared: 2, calls[2]: 4}
    assert len(list(tmp_path.iterdir())) == 1


def test_the_same_call_twice_is_one_future() -> None:
    call = square(3)
    assert [future.result() for future in as_completed([call, call])] == [9]


def test_calls_of_every_kind() -> None:
    @workflow
    def flow(x: int) -> Any:
        return add(square(x), 1)

    @process
    async def later(x: int) -> int:
        return x

    calls: list[Any] = [thread(lambda: 1)(), task(lambda: 2)(), flow(3), later(4), square.map([1, 2]), process(fresh=True)(lambda: 5)()]
    got = {future.call: future.result() for future in as_completed(calls)}
    assert [got[call] for call in calls] == [1, 2, 10, 4, [1, 4], 5]
    assert [future.result() for future in as_completed([flow(1)])] == [2]


def test_none_at_all() -> None:
    assert list(as_completed([])) == []


def test_an_error_that_is_a_value_is_no_failure() -> None:
    (future,) = as_completed([process(lambda: ValueError("a value"))()])
    assert future.exception() is None
    assert isinstance(future.result(), ValueError)


def test_a_value_that_cannot_be_loaded_is_the_failure_of_its_call() -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            return _refuse, ()

    calls: list[Any] = [process(lambda: Stubborn())(), square(2)]
    futures = {future.call: future for future in as_completed(calls)}
    assert "unpickled" in str(futures[calls[0]].exception())
    assert futures[calls[1]].result() == 4


def _refuse() -> None:
    raise RuntimeError("not here")


def test_a_worker_that_dies_is_the_failure_of_its_call() -> None:
    calls: list[Any] = [process(lambda: os.kill(os.getpid(), 9))(), square(2)]
    futures = {future.call: future for future in as_completed(calls)}
    assert isinstance(futures[calls[0]].exception(), ProcessTerminatedException)
    assert futures[calls[1]].result() == 4


def test_leaving_early_stops_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    for future in as_completed([hang(str(path)), after(str(path), 3)]):
        assert future.result() == 3
        break
    gc.collect()
    gone(path)


def test_a_timeout_stops_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pytest.raises(RunTimeoutException, match="1 of 2 calls"):
        list(as_completed([hang(str(path)), square(2)], timeout=3))
    gone(path)


def test_nothing_runs_before_the_first_step(tmp_path: Path) -> None:
    path = tmp_path / "touched"
    iterator = as_completed([touch(str(path))])
    time.sleep(0.2)
    assert not path.exists()
    assert len(list(iterator)) == 1
    assert path.exists()


def test_inside_a_body(tmp_path: Path) -> None:
    @process
    def outer() -> list[int]:
        return sorted(future.result() for future in as_completed([square(x) for x in range(5)]))

    assert outer()() == [0, 1, 4, 9, 16]
    assert thread(outer.function)()() == [0, 1, 4, 9, 16]


def test_two_at_once() -> None:
    got: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: got.append(sorted(future.result() for future in as_completed([square(x) for x in range(50)]))))
        for _ in range(2)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert got == [[x * x for x in range(50)]] * 2


def test_many_calls_and_large_values() -> None:
    assert sorted(future.result() for future in as_completed(square(x) for x in range(3000))) == [x * x for x in range(3000)]
    large = process(lambda x: bytes([x]) * 1_000_000)
    assert sorted(future.result()[0] for future in as_completed([large(x) for x in range(30)])) == list(range(30))


def test_chains_are_told_at_every_link() -> None:
    chain = [square(1)]
    for _ in range(50):
        chain.append(add(chain[-1], 1))
    assert [future.result() for future in as_completed(reversed(chain))] == list(range(1, 52))


def test_ctrl_c_while_it_waits(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "from entangle import as_completed\n"
        "from entangle.process import process\n"
        "from entangle.tests.evidence import note\n"
        "@process\n"
        "def hang(path):\n"
        "    note(path, os.getpid())\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    for future in as_completed([hang(sys.argv[1])]):\n"
        "        pass\n"
    )
    path = tmp_path / "pid"
    environment = {**os.environ, "PYTHONPATH": ROOT}
    program = subprocess.Popen([sys.executable, str(script), str(path)], stderr=subprocess.PIPE, text=True, env=environment)
    wait_until(lambda: pids_in(path))
    program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=20)
    assert program.returncode == -signal.SIGINT
    assert said.count("KeyboardInterrupt") == 1, said
    gone(path)


@pytest.mark.parametrize(
    ("calls", "words"),
    [(square(1), "takes an iterable of calls"), (3, "takes an iterable of calls, not 3"), ([square(1), 4], "takes calls, not 4")],
)
def test_bad_calls_are_refused_at_once(calls: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        as_completed(calls)


@pytest.mark.parametrize("timeout", [0, -1, "3", float("nan")])
def test_a_bad_timeout_is_refused_at_once(timeout: Any) -> None:
    with pytest.raises(OptionError, match="as_completed: timeout="):
        as_completed([square(1)], timeout=timeout)
