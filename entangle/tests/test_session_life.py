"""The life of a session: many runs, idle workers, threads, forks, and every way in which its owner
may end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle import session
from entangle.errors import ProcessTerminatedException
from entangle.executor import Executor
from entangle.limit import limit
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.thread import thread
from entangle.workflow import workflow

from . import bodies
from .callers import Caller
from .evidence import alive, most_at_once, notes, span, wait_until


@process
def pid() -> int:
    return os.getpid()


@process
def add(a: int, b: int) -> int:
    return a + b


@process
def sleeps(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def held(pid: int | str) -> tuple[int, int, int]:
    """How many memory maps, descriptors and threads a process has."""
    with open(f"/proc/{pid}/maps") as maps:
        return len(maps.readlines()), len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def memory_of(pid: int | str) -> int:
    """The private memory of a process (KiB)."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return sum(int(line.split()[1]) for line in rollup if line.startswith(("Private_Dirty", "Private_Clean")))


def runs_are_flat(count: int) -> None:
    with session(workers=1) as opened:
        for number in range(100):
            assert add(number, 1)() == number + 1
        (worker,) = opened.pids
        gc.collect()
        wait_until(lambda: sleeps(0)() == worker)
        before, memory = [held("self"), held(worker)], [memory_of("self"), memory_of(worker)]
        for number in range(count):
            assert add(number, 1)() == number + 1
        gc.collect()
        assert opened.pids == [worker]
        after, grown = [held("self"), held(worker)], [memory_of("self"), memory_of(worker)]
    for (maps, fds, threads), (maps_then, fds_then, threads_then) in zip(after, before, strict=True):
        assert maps <= maps_then + 16  # a library may be loaded late, such as sqlite
        assert fds <= fds_then + 6  # one more frame
        assert threads <= threads_then
    assert all(now < then + 2048 for now, then in zip(grown, memory, strict=True)), (memory, grown)


def test_many_runs_are_flat() -> None:
    runs_are_flat(300)


@pytest.mark.drill
def test_ten_thousand_runs_are_flat() -> None:
    runs_are_flat(10_000)


@pytest.mark.drill
@pytest.mark.parametrize("size", [10, 100_000])
def test_ten_thousand_calls_of_an_executor_are_flat(size: int) -> None:
    with Executor(1) as executor:
        for _ in range(200):
            assert len(executor.submit(bytes, size).result()) == size
        (worker,) = executor.pids
        gc.collect()
        before, memory = [held("self"), held(worker)], [memory_of("self"), memory_of(worker)]
        for _ in range(10_000):
            assert len(executor.submit(bytes, size).result()) == size
        gc.collect()
        assert executor.pids == [worker]
        after, grown = [held("self"), held(worker)], [memory_of("self"), memory_of(worker)]
    assert all(now <= then + 4 for found, known in zip(after, before, strict=True) for now, then in zip(found, known, strict=True))
    assert all(now < then + 2048 for now, then in zip(grown, memory, strict=True)), (memory, grown)


def large_values_are_flat(count: int) -> None:
    """Each value has a file of its own."""
    with session(workers=1) as opened:
        large = process(bytes)
        for _ in range(5):
            large(3 << 20)()
        (worker,) = opened.pids
        before = [held("self"), held(worker)]
        for _ in range(count):
            assert len(large(3 << 20)()) == 3 << 20
        assert opened.pids == [worker]
        after = [held("self"), held(worker)]
    assert all(now[1] <= then[1] + 12 for now, then in zip(after, before, strict=True)), (before, after)


def test_runs_with_large_values_are_flat() -> None:
    large_values_are_flat(50)


def cpu_of(pid: int) -> int:
    return time.clock_gettime_ns((~pid << 3) | 2)


def test_idle_workers_of_a_session_and_an_executor_use_no_cpu_and_little_memory() -> None:
    with session(workers=1) as opened, Executor(1) as executor:
        pid()()
        (worker,) = opened.pids
        wait_until(lambda: pid()() == worker)
        idle = [worker, executor.submit(os.getpid).result()]
        time.sleep(0.3)
        before, began = sum(map(cpu_of, idle)) + time.process_time_ns(), time.monotonic_ns()
        time.sleep(1)
        used = sum(map(cpu_of, idle)) + time.process_time_ns() - before
        assert used < 0.005 * (time.monotonic_ns() - began)
        assert all(memory_of(one) < 40 << 10 for one in idle)


def test_a_worker_ends_when_idle_and_the_next_run_has_another() -> None:
    with session(workers=1, idle=0.05):
        first = pid()()
        wait_until(lambda: not alive(first))
        assert pid()() != first


def races_with_the_idle_limit(turns: int) -> None:
    with session(workers=1, idle=0.02):
        for turn in range(turns):
            assert add(turn, 1)() == turn + 1
            time.sleep(0.018 + 0.0005 * (turn % 12))


def test_runs_at_the_moment_of_the_idle_limit() -> None:
    races_with_the_idle_limit(36)


@pytest.mark.drill
def test_many_runs_at_the_moment_of_the_idle_limit() -> None:
    races_with_the_idle_limit(3000)


def test_eight_threads_share_two_workers(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @process
    def spanned(number: int) -> int:
        with span(log):
            time.sleep(0.005)
        return number

    with session(workers=2) as opened, ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda number: spanned(number)(), range(64))) == list(range(64))
        assert len(opened.pids) <= 2
    assert len(notes(log)) == 64
    assert most_at_once(log) <= 2


def test_a_session_closed_during_a_run_of_another_thread() -> None:
    with ThreadPoolExecutor(1) as threads:
        for _ in range(5):
            with session(workers=1):
                pid()()
                slow = threads.submit(lambda: add(sleeps(0.05), 1)())
                time.sleep(0.02)
            assert slow.result(20) > 1


def test_a_session_that_one_thread_opens_and_another_closes() -> None:
    opened = session(workers=1)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(opened.__enter__).result()
        warm = pid()()
        assert other.submit(pid().__call__).result() == warm
        other.submit(opened.__exit__, None, None, None).result()
    assert not alive(warm)


def test_async_sessions_and_bodies() -> None:
    @process
    async def later(value: int) -> int:
        await asyncio.sleep(0.001)
        return value

    async def both() -> list[int]:
        async with session(workers=2):
            return list(await asyncio.gather(later(1), later(2)))

    assert asyncio.run(both()) == [1, 2]


def test_a_forked_child_is_in_no_session() -> None:
    with session(workers=1) as opened:
        warm = pid()()
        child = os.fork()
        if not child:
            code = 1
            try:
                code = 0 if pid()() != warm and not opened.pids else 2
                with session(workers=1):
                    code = code or (0 if len({pid()() for _ in range(3)}) == 1 else 3)
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert pid()() == warm


def test_a_session_that_is_collected_ends_its_workers() -> None:
    opened = session(workers=1)
    opened.__enter__()
    warm = pid()()
    assert alive(warm)
    opened.__exit__(None, None, None)
    del opened
    gc.collect()
    assert not alive(warm)


def test_layers_in_a_session(tmp_path: Path) -> None:
    """Deadlines, retries, cookies, limits, workflows, threads and nested runs."""
    with session(workers=2) as opened:
        with pytest.raises(TimeoutError):
            process(timeout=0.2)(time.sleep)(60)()
        with pytest.raises(ProcessTerminatedException):
            process(os._exit)(3)()
        counted = scheduler(cpus=1)(add)
        assert counted(counted(1, 2), counted(3, 4))() == 10
        assert limit("in a session", at_once=1)(add)(1, 2)() == 3
        assert add(thread(bodies.num)(1), 2)() == 3

        @process
        def nested() -> int:
            value: int = add(1, add(2, 3))()
            return value

        assert nested()() == 6

        @workflow
        def flow(count: int) -> Any:
            return add(count, count)

        assert flow(3)() == 6
        assert list(process(bodies.inc).map(range(20)).run(workers=1)) == list(range(1, 21))
        values = entangle.gather(process(bodies.inverse)(0), add(1, 1), return_exceptions=True)()
        assert isinstance(values[0], ZeroDivisionError)
        assert values[1] == 2
        assert sorted(future.result() for future in entangle.as_completed([add(1, 1), add(2, 2)])) == [2, 4]
        for start in ("fork", "forkserver", "spawn"):
            assert add(1, 2)(start=start) == 3
        warm = set(opened.pids)
        assert pid()(start="fork") not in warm
        assert pid()(start="spawn") not in warm


PROGRAM = """
import contextlib, os, signal, sys, threading, time
from entangle import session
from entangle.process import process

@process
def pid():
    return os.getpid()

@process
def slow():
    open("slow", "w").close()
    time.sleep(60)

def begin():
    print(*{pid()() for _ in range(3)}, os.getpid(), flush=True)

if __name__ == "__main__":
    how = sys.argv[1]
    with contextlib.nullcontext() if "ENTANGLE_SESSION" in os.environ else session(workers=1):
        begin()
        if how == "exit":
            sys.exit(3)
        elif how == "end":
            os._exit(0)
        elif how == "error":
            raise KeyError("on purpose")
        elif how in ("run", "thread"):
            if how == "thread":
                threading.Thread(target=slow(), daemon=True).start()
                while not os.path.exists("slow"):
                    time.sleep(0.001)
                sys.exit()
            slow()()
        time.sleep(60)
"""


def _is_gone(pid: int) -> bool:
    return not alive(pid)


@pytest.mark.parametrize(
    ("how", "number"),
    [
        ("exit", 0),
        ("end", 0),
        pytest.param("error", 0, marks=pytest.mark.drill),
        ("thread", 0),
        pytest.param("idle", signal.SIGTERM, marks=pytest.mark.drill),
        pytest.param("idle", signal.SIGINT, marks=pytest.mark.drill),
        ("idle", signal.SIGKILL),
        ("run", signal.SIGTERM),
        ("run", signal.SIGINT),
        pytest.param("run", signal.SIGKILL, marks=pytest.mark.drill),
    ],
)
def test_nothing_is_left_however_its_owner_ends(tmp_path: Path, how: str, number: int) -> None:
    """For a session that a block opened, and for one of the whole program."""
    for folder in ("opened", "whole"):
        (tmp_path / folder).mkdir()
    whole = Caller(tmp_path / "whole", PROGRAM, ENTANGLE_SESSION="1").start(how)
    for caller in (Caller(tmp_path / "opened", PROGRAM).start(how), whole):
        assert caller.process.stdout is not None
        *warm, owner = map(int, caller.process.stdout.readline().split())
        assert warm
        assert owner == caller.process.pid
        if how == "run":
            wait_until((caller.folder / "slow").exists)
        if number:
            caller.process.send_signal(number)
        caller.process.communicate(timeout=20)
        for pid in warm:
            wait_until(partial(_is_gone, pid), 2.0)
        # A process that was killed at once cannot remove its home; the user's next process does
        # that.
        if how != "end" and number != signal.SIGKILL and (how, number) != ("idle", signal.SIGTERM):
            assert [path for path in caller.runs.rglob("*") if path.is_file()] == []


WHOLE = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow

@process
def pid():
    return os.getpid()

@process
def nested(depth):
    return [os.getpid(), *(nested(depth - 1)() if depth else [])]

@workflow
def flow():
    return pid()

if __name__ == "__main__":
    warm = pid()()
    with ThreadPoolExecutor(4) as threads:
        several = set(threads.map(lambda _: pid()(), range(40)))
    print(warm in several, len(several) < 10, flow()() in several)
    print(len(nested(2)()), nested(0)()[0] in several, thread(id)(1)() == id(1), flush=True)
    child = os.fork()
    if not child:
        code = 1
        try:
            own = {pid()() for _ in range(5)}
            code = 2 if own & several else 0 if len(own) == 1 else 3
        finally:
            print(*own, flush=True)
            os._exit(code)
    print(os.waitpid(child, 0)[1], pid()() in several)
    print(*several)
"""


def test_a_whole_program_in_a_session(tmp_path: Path) -> None:
    """The threads of the program and runs within bodies use it. A forked child gets a session of
    its own."""
    caller = Caller(tmp_path, WHOLE, ENTANGLE_SESSION="1").start()
    out, err = caller.process.communicate(timeout=30)
    assert err == ""
    *said, child, in_child, pids = out.splitlines()
    assert (said, in_child) == (["True True True", "3 True True"], "0 True")
    wait_until(lambda: not any(alive(int(one)) for one in (child, *pids.split())), 2.0)
    assert [path for path in caller.runs.rglob("*") if path.is_file()] == []


def test_records_are_those_of_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from entangle import records

    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))

    @process
    def says(number: int) -> int:
        print("number", number)
        return number

    @process
    def fails(one: int, other: int) -> int:
        raise ValueError(one + other)

    def told() -> list[tuple[str, str, str, bool]]:
        with pytest.raises(ValueError, match="3"):
            fails(says(1), says(2))()
        run = records.run()
        return [(node.name, node.state, str(node.value), bool(node.pid) and node.seconds is not None) for node in run.nodes]

    cold = told()
    with session(workers=1):
        assert [told() for _ in range(3)] == [cold] * 3
