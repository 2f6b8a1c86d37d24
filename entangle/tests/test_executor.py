"""Executor: what `concurrent.futures` promises, and what Executor adds."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from entangle._shared.home import _homes
from entangle._warm.functions import _known, function_of
from entangle.errors import ArgumentError, EntangleError, ProcessTerminatedException, RemoteTraceback, UnpicklableError
from entangle.executor import BrokenExecutorError, Executor
from entangle.process import process

from . import executor_bodies as bodies
from .callers import ROOT
from .evidence import alive

POLL = 0.005


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(POLL)


@pytest.fixture(autouse=True)
def nothing_is_known_to_be_short() -> None:
    """Forget measured durations, as in a new program. A call known to be short is sent ahead to a
    busy worker, and can then not be cancelled; so the result would depend on earlier tests."""
    _known.clear()


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(2) as made:
        yield made


@process
def doubled(x: int) -> int:
    return 2 * x


@process
async def doubled_later(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


# --- calls ----------------------------------------------------------------------------------------


def test_a_call_gives_its_value(executor: Executor) -> None:
    assert executor.submit(bodies.add, 2, b=3).result() == 5
    assert executor.submit(bodies.given, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})


def test_it_is_an_executor_of_the_standard_library() -> None:
    assert issubclass(Executor, concurrent.futures.Executor)
    import entangle

    assert getattr(entangle, "Executor") is Executor  # noqa: B009 - the type checker does not see it


@pytest.mark.parametrize("value", [None, 0, "", False, [], float("inf"), "ü" * 100_000, b"x" * 1_000_000, ValueError("a value")])
def test_any_value_goes_there_and_back(executor: Executor, value: Any) -> None:
    found = executor.submit(bodies.given, value).result()[0][0]
    assert repr(found) == repr(value)


def test_lambdas_and_closures_have_the_values_of_now(executor: Executor) -> None:
    number = 1
    add = lambda x: x + number  # noqa: E731
    assert executor.submit(add, 1).result() == 2
    number = 10
    assert executor.submit(add, 1).result() == 11
    kept = [1]
    both = lambda: kept.append(2) or list(kept)  # type: ignore[func-returns-value]  # noqa: E731
    assert [executor.submit(both).result() for _ in range(3)] == [[1, 2]] * 3


def test_tasks_run_their_body(executor: Executor) -> None:
    tasks: list[Any] = [doubled, doubled_later]
    for task in tasks:
        assert executor.submit(task, 4).result() == 8
        assert list(executor.map(task, range(3))) == [0, 2, 4]


def test_methods_and_partials(executor: Executor) -> None:
    import functools

    assert executor.submit("a,b".split, ",").result() == ["a", "b"]
    assert executor.submit(functools.partial(bodies.add, 1), b=2).result() == 3


def test_many_calls_before_any_worker_is_there() -> None:
    with Executor(3) as executor:
        futures = [executor.submit(bodies.add, number, number) for number in range(2000)]
        assert [future.result() for future in futures] == [2 * number for number in range(2000)]
        assert len(executor.pids) <= 3


def test_calls_from_several_threads(executor: Executor) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.extend(executor.map(bodies.add, range(200), range(200)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([2 * number for number in range(200)] * 4)


def test_a_callback_may_submit(executor: Executor) -> None:
    done = threading.Event()
    found: list[Any] = []

    def more(future: Any) -> None:
        found.append(future.result())
        executor.submit(bodies.add, 5, 5).add_done_callback(last)

    def last(future: Any) -> None:
        found.append(future.result())
        done.set()

    executor.submit(bodies.add, 1).add_done_callback(more)
    assert done.wait(20)
    assert found == [1, 10]


def test_under_asyncio(executor: Executor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, bodies.add, number, 1) for number in range(20)))

    assert asyncio.run(main()) == list(range(1, 21))


def test_an_executor_within_a_worker(executor: Executor) -> None:
    assert executor.submit(bodies.nested, [1, 2, 3]).result() == [2, 4, 6]
    assert executor.submit(bodies.in_an_executor_within, [1, 2, 3]).result() == 9
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert executor.submit(bodies.default_workers).result() == share


def test_what_a_call_changes_is_put_back(executor: Executor) -> None:
    here = os.getcwd()
    with Executor(1) as one:
        one.submit(os.chdir, "/").result()
        assert one.submit(os.getcwd).result() == here
        one.submit(os.putenv, "ENTANGLE_TEST_WORD", "x").result()
        one.submit(os.umask, 0o777).result()
        assert one.submit(os.umask, 0o22).result() == _umask()


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


# --- map ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [None, 1, 7, 1000])
@pytest.mark.parametrize("buffersize", [None, 1, 13])
def test_map(executor: Executor, chunksize: int | None, buffersize: int | None) -> None:
    found = executor.map(bodies.add, range(100), range(100, 300), chunksize=chunksize, buffersize=buffersize)
    assert list(found) == [100 + 2 * number for number in range(100)]


def test_map_of_nothing(executor: Executor) -> None:
    assert list(executor.map(bodies.add, [])) == []
    assert list(executor.map(bodies.add)) == []


def test_buffersize_takes_no_more_items_than_it_says(executor: Executor) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    found = executor.map(bodies.add, items(), buffersize=4)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    assert len(taken) == 4 + 3


@pytest.mark.parametrize(
    ("options", "kind"), [({"chunksize": 0}, ValueError), ({"buffersize": 0}, ValueError), ({"buffersize": "2"}, TypeError)]
)
def test_map_refuses(executor: Executor, options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        executor.map(abs, [1], **options)


def test_map_times_out(executor: Executor, tmp_path: Path) -> None:
    path = str(tmp_path / "go")
    found = executor.map(bodies.wait_for, [__file__, path], timeout=0.2)
    assert next(found) is None
    with pytest.raises(concurrent.futures.TimeoutError):
        next(found)
    Path(path).touch()


def test_leaving_map_cancels_the_rest(tmp_path: Path) -> None:
    with Executor(1) as executor:
        made = executor.map(lambda name: Path(name).touch() or time.sleep(0.02), [str(tmp_path / f"{n}") for n in range(100)])  # type: ignore[func-returns-value]
        next(made)
        made.close()  # type: ignore[attr-defined]
    assert len(list(tmp_path.iterdir())) < 90


def test_map_keeps_no_value_alive(executor: Executor) -> None:
    for value in executor.map(bodies.made, [set] * 50):
        gone = weakref.ref(value)
        del value
        assert gone() is None


def test_an_error_in_map_comes_in_its_turn(executor: Executor) -> None:
    found = executor.map(divmod, [4, 4, 4, 4], [1, 2, 0, 4])
    assert [next(found), next(found)] == [(4, 0), (2, 0)]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert list(found) == []


def test_items_that_wait_for_each_other(executor: Executor, tmp_path: Path) -> None:
    """Short calls are sent together. One that then takes long must not delay those after it."""
    assert list(executor.map(bodies.meet, [str(tmp_path)] * 300, map(str, range(300)), [[]] * 300))
    names = [f"n{number}" for number in range(20)]
    others: list[list[str]] = [[]] * 20
    assert list(executor.map(bodies.meet, [str(tmp_path)] * 20, names, [names[1:], *others[1:]])) == names


@pytest.mark.parametrize("after", [False, True])
def test_a_call_that_is_taken_back_runs_once(executor: Executor, tmp_path: Path, after: bool) -> None:
    """Its worker loses its CPU just before it checks whether the call is taken back, or just
    after."""
    folder = str(tmp_path)
    paused = executor.submit(bodies.pause_later, folder, after).result()
    held = [executor.submit(bodies.waits_in_its_worker, folder) for _ in range(2)]
    wait_until(lambda: len(list(tmp_path.glob("in-*"))) == 2)
    function_of(bodies.note).seconds = 1e-4  # so that one message holds several calls
    calls = [executor.submit(bodies.note, folder, number) for number in range(40)]
    (tmp_path / f"go-{paused}").touch()
    wait_until((tmp_path / "paused").exists)
    for pid in executor.pids:
        (tmp_path / f"go-{pid}").touch()
    wait_until(lambda: sum(call.done() for call in calls) >= len(calls) - 1)
    (tmp_path / "resumed").touch()
    concurrent.futures.wait([*held, *calls], 20)
    executor.shutdown()
    notes = (tmp_path / "notes").read_text().split()
    assert sorted(map(int, notes)) == list(range(40))


def test_an_outcome_is_told_though_the_next_call_takes_long(tmp_path: Path) -> None:
    with Executor(1) as executor:
        list(executor.map(bodies.wait_for, [__file__] * 300))
        paths = [__file__] * 50 + [str(tmp_path / "go")] + [__file__] * 50
        futures = [executor.submit(bodies.wait_for, path) for path in paths]
        for future in futures[:50]:
            future.result(20)
        assert not futures[50].done()
        (tmp_path / "go").touch()


# --- futures as arguments -------------------------------------------------------------------------


def test_a_future_is_waited_for(executor: Executor) -> None:
    one = executor.submit(bodies.add, 1, 1)
    chain = one
    for _ in range(20):
        chain = executor.submit(bodies.add, chain, b=one)
    assert chain.result() == 42
    assert executor.submit(bodies.total, [one, one, executor.submit(bodies.add, 3)]).result() == 7
    found = executor.submit(bodies.given, {"a": (one, [one])}, key={one}).result()
    assert found == (({"a": (2, [2])},), {"key": {2}})


def test_a_future_that_waits_has_no_worker(tmp_path: Path) -> None:
    with Executor(1) as executor:
        first = executor.submit(bodies.wait_for, str(tmp_path / "go"))
        waiting = [executor.submit(bodies.given, first) for _ in range(5)]
        (tmp_path / "go").touch()
        assert all(future.result() == ((None,), {}) for future in waiting)


def test_a_value_goes_from_worker_to_worker(executor: Executor, tmp_path: Path) -> None:
    first = executor.submit(bodies.made_later, str(tmp_path / "go"), bodies.OnlyThere, os.getpid())
    second = executor.submit(bodies.kind_of, first)
    (tmp_path / "go").touch()
    assert second.result() == "OnlyThere"
    with pytest.raises(EntangleError, match="unpickled in the caller"):
        first.result()


def test_a_future_that_fails_fails_what_takes_it(executor: Executor) -> None:
    failed = executor.submit(bodies.fail, "on purpose")
    with pytest.raises(ValueError, match="on purpose"):
        executor.submit(bodies.add, 1, executor.submit(bodies.add, failed)).result()


@pytest.mark.parametrize("how", ["fails", "is cancelled", "is dropped", "breaks"])
def test_a_long_chain_ends_with_its_first_one(tmp_path: Path, how: str) -> None:
    executor = Executor(1)
    go = str(tmp_path / "go")
    busy = executor.submit(bodies.wait_for, go) if how in ("is cancelled", "is dropped") else None
    if busy is not None:
        wait_until(busy.running)
    first = executor.submit(bodies.wait_and_fail if how == "fails" else bodies.wait_for, go)
    chain: list[concurrent.futures.Future[Any]] = [first]
    for _ in range(1200):
        chain.append(executor.submit(bodies.add, chain[-1], 1))
    values = executor.map(bodies.add, [chain[-1]])
    if how == "is cancelled":
        assert first.cancel()
    elif how == "is dropped":
        executor.shutdown(wait=False, cancel_futures=True)
    elif how == "breaks":
        executor.kill_workers()
    (tmp_path / "go").touch()
    done, _ = concurrent.futures.wait(chain, 20)
    assert len(done) == 1201
    error = concurrent.futures.CancelledError if busy else BrokenExecutorError if how == "breaks" else ValueError
    for future in (chain[0], chain[-1]):
        with pytest.raises(error):
            future.result()
    with pytest.raises(error):
        next(values)
    executor.shutdown()


def interrupted_in(executor: Executor, step: str) -> None:
    """Send SIGINT while the executor gives a call to a worker, or starts a worker."""
    calls = executor._calls
    usual = getattr(calls, step)

    def interrupted(*args: Any) -> Any:
        setattr(calls, step, usual)
        signal.raise_signal(signal.SIGINT)
        return usual(*args)

    setattr(calls, step, interrupted)


def test_ctrl_c_while_values_are_taken(executor: Executor) -> None:
    """The interrupt comes at each step of the iteration, as a trace function sees the steps."""
    for step in range(0, 60, 3):
        values, steps = executor.map(bodies.add, range(2)), itertools.count()

        def trace(frame: Any, event: str, argument: Any, steps: Any = steps, step: int = step) -> Any:
            if frame.f_code.co_name == "__del__":
                return None  # Python would discard the error
            if next(steps) == step:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        with contextlib.suppress(KeyboardInterrupt):
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                list(values)
            finally:
                sys.settrace(before)
        assert list(executor.map(bodies.add, range(2), timeout=20)) == [0, 1]
    assert executor.submit(bodies.add, 1).result(20) == 1


@pytest.mark.parametrize("step", ["_stored", "_send", "_arrives"])
def test_ctrl_c_while_a_call_is_submitted_loses_nothing(step: str) -> None:
    executor = Executor(1)
    given = executor.submit(bodies.add, 1)
    assert given.result(20) == 1
    interrupted_in(executor, step)
    with pytest.raises(KeyboardInterrupt):
        executor.submit(bodies.add, given if step == "_arrives" else 1)
    assert executor.submit(bodies.add, 2).result(20) == 2
    executor.shutdown()


def test_a_future_that_is_cancelled_cancels_what_takes_it(tmp_path: Path) -> None:
    with Executor(1) as executor:
        executor.submit(bodies.wait_for, str(tmp_path / "go"))
        late = executor.submit(bodies.add, 1)
        after = executor.submit(bodies.add, late)
        assert late.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            after.result(20)
        (tmp_path / "go").touch()


def test_a_future_of_somebody_else_is_refused(executor: Executor) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        foreign = other.submit(int)
        with pytest.raises(ArgumentError, match="future of somebody else"):
            executor.submit(bodies.add, [foreign])
    with Executor(1) as second, pytest.raises(ArgumentError, match="same executor"):
        executor.submit(bodies.add, second.submit(int))

    async def of_asyncio() -> None:
        with pytest.raises(ArgumentError, match="future of asyncio"):
            executor.submit(bodies.add, asyncio.get_running_loop().create_future())

    asyncio.run(of_asyncio())


def test_futures_in_map(executor: Executor) -> None:
    ones = [executor.submit(bodies.add, number) for number in range(10)]
    assert list(executor.map(bodies.add, ones, range(10))) == [2 * number for number in range(10)]


# --- what cannot be pickled, and errors -----------------------------------------------------------


def test_an_error_has_the_traceback_of_the_worker(executor: Executor) -> None:
    with pytest.raises(ValueError, match="on purpose") as caught:
        executor.submit(bodies.fail, "on purpose").result()
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "executor_bodies.py" in str(caught.value.__cause__)
    assert "_worker" not in str(caught.value.__cause__)
    notes = "\n".join(getattr(caught.value, "__notes__", ()))
    assert "call: fail('on purpose')" in notes
    with pytest.raises(ValueError, match="refused") as caught:
        executor.submit(lambda user, password, **_: _refuse(), "me", "hunter2", api_key="k1").result()
    (call,) = [note for note in getattr(caught.value, "__notes__", ()) if note.startswith("call: ")]
    assert call.endswith("('me', ***, api_key=***)")
    with pytest.raises(bodies.TwoArguments) as other:
        executor.submit(bodies.fail_with_two).result()
    assert other.value.other == 2


def test_system_exit_is_an_error_like_any_other(executor: Executor) -> None:
    with pytest.raises(SystemExit):
        executor.submit(bodies.exit_by_name, 3).result()
    with pytest.raises(SystemExit):
        executor.submit(bodies.given, bodies.LeavesOnArrival()).result()
    assert executor.submit(bodies.add, 1).result() == 1


@pytest.mark.parametrize(
    ("function", "argument", "text"),
    [
        (bodies.given, bodies.Refuses(), "argument 1 of 'given'.*Refuses"),
        (bodies.given, [1, threading.Lock()], "lock"),
        (bodies.given, bodies.RefusesToArrive(), "refuses to arrive"),
        (bodies.made, bodies.Refuses, "value of 'made'.*Refuses"),
        (bodies.made, bodies.RefusesToArrive, "refuses to arrive"),
    ],
)
def test_what_cannot_travel_is_the_error_of_its_future(executor: Executor, function: Any, argument: Any, text: str) -> None:
    with pytest.raises(EntangleError, match=text):
        executor.submit(function, argument).result()
    with pytest.raises(EntangleError, match=text):
        list(executor.map(function, [argument]))
    assert executor.submit(bodies.add, 1).result() == 1


def test_a_function_that_cannot_travel(executor: Executor) -> None:
    lock = threading.Lock()
    where = r"'<lambda> \(test_executor.py:\d+\)' cannot travel .* 'lock' \(a _thread.lock\) .* or use a ThreadPoolExecutor"
    with pytest.raises(UnpicklableError, match=where):
        executor.submit(lambda: lock).result()

    def begin(first: int) -> object:
        return lock

    with pytest.raises(UnpicklableError, match=r"the initializer '.*begin' cannot travel.*Make it inside the function"):
        Executor(1, initializer=begin)
    with pytest.raises(UnpicklableError, match=r"argument 2 of initializer '.*add' .* Pass something that can"):
        Executor(1, initializer=bodies.add, initargs=(1, lock))


def test_tracebacks_show_the_users_code_alone(executor: Executor) -> None:
    def inverse(x: float) -> float:
        return 1 / x

    def shut() -> None:
        with Executor(1) as other:
            pass
        other.submit(len, "a")

    lock = threading.Lock()
    loose: Future[int] = Future()
    ways: list[Callable[[], object]] = [
        lambda: Executor(0),
        lambda: Executor(1, initializer=lambda: lock),
        lambda: executor.submit(len, lock).result(),
        lambda: executor.submit(len, [loose]),
        lambda: executor.map(len, [loose]),
        lambda: executor.map(len, [1], chunksize=0),
        lambda: list(executor.map(len, ["a", 1])),
        lambda: list(executor.map(inverse, [1, 0], chunksize=2)),
        shut,
    ]
    for way in ways:
        with pytest.raises(Exception) as caught:
            way()
        told = "".join(traceback.format_exception(type(caught.value), caught.value, caught.value.__traceback__))
        assert set(re.findall(r'File "(.*?)"', told)) == {__file__}, told


def test_a_value_that_leaves_on_arrival_in_the_caller(executor: Executor) -> None:
    with pytest.raises(SystemExit):
        executor.submit(bodies.made, bodies.LeavesOnArrival).result()
    assert executor.submit(bodies.add, 1).result() == 1


def test_deep_values(executor: Executor) -> None:
    deep = executor.submit(bodies.deep, 100_000)
    with pytest.raises((EntangleError, RecursionError)):
        deep.result()
    assert executor.submit(bodies.add, 1).result() == 1


# --- deaths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "argument", "how"),
    [
        (bodies.die, signal.SIGKILL, "signal SIGKILL"),
        (bodies.die, signal.SIGSEGV, "signal SIGSEGV"),
        (bodies.leave, 3, "exit code 3"),
        (bodies.leave, 0, "exit code 0"),
    ],
)
def test_a_death_breaks_the_executor_and_is_named(body: Any, argument: int, how: str) -> None:
    class Point:
        pass

    with Executor(2) as executor:
        future = executor.submit(body, argument, Point(), Path("a"), b"x" * 200_000, [{1: "a"}], password="hunter2")
        rest = [executor.submit(time.sleep, 60) for _ in range(3)]
        with pytest.raises(BrokenProcessPool, match=f"{body.__name__!r} ended by {how}"):
            future.result()
        assert isinstance(future.exception(), BrokenExecutorError)
        assert isinstance(future.exception(), ProcessTerminatedException)
        call = getattr(future.exception(), "__notes__", [""])[0]
        wanted = ", <Point>, <PosixPath>, <bytes of 200000>, [{1: 'a'}], password=***)"
        assert call.startswith(f"call: {body.__name__}(")
        assert call.endswith(wanted), call

        for other in rest:
            with pytest.raises(BrokenProcessPool, match=f"ended by {how} while it ran {body.__name__!r}"):
                other.result()
        with pytest.raises(BrokenProcessPool, match=how):
            executor.submit(bodies.add, 1)
        with pytest.raises(BrokenProcessPool, match=how):
            executor.map(bodies.add, [1])
        assert executor._broken


def test_arguments_that_kill_the_worker(tmp_path: Path) -> None:
    with Executor(1) as executor, pytest.raises(BrokenProcessPool, match="'given' ended by exit code 7"):
        executor.submit(bodies.given, bodies.DiesOnArrival()).result()
    with Executor(1) as executor, pytest.raises(BrokenProcessPool):
        list(executor.map(bodies.given, ["a" * 500_000, bodies.DiesOnArrival()]))


def test_what_was_done_before_a_death_is_done(tmp_path: Path) -> None:
    with Executor(1) as executor:
        list(executor.map(bodies.leave_if, [False] * 300))
        futures = [executor.submit(bodies.leave_if, number == 40) for number in range(80)]
        assert [future.result(20) for future in futures[:40]] == [False] * 40
        with pytest.raises(BrokenProcessPool, match="leave_if"):
            futures[40].result(20)


def test_a_worker_that_dies_idle_is_replaced(executor: Executor) -> None:
    first = executor.submit(bodies.pid).result()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not alive(first))
    assert executor.submit(bodies.pid).result(20) != first


def test_a_body_that_closes_all_descriptors(capfd: pytest.CaptureFixture[str]) -> None:
    with Executor(1) as executor:
        pids = {executor.submit(bodies.pid).result()}
        for size in (1, 1 << 20):
            assert len(executor.submit(bodies.closes_all, size).result(20)) == size
            pids.add(executor.submit(bodies.pid).result(20))
        with pytest.raises(EntangleError, match="closed the descriptors of its worker"):
            executor.submit(bodies.closes_all, 100_000).result(20)  # its value would have come in a message
        assert executor.submit(bodies.pid).result(20) not in pids
        assert len(pids) == 3
    assert capfd.readouterr().err == ""


def test_the_death_of_the_server(executor: Executor, tmp_path: Path) -> None:
    from entangle._run import forkserver

    first = executor.submit(bodies.pid).result()
    assert forkserver._server is not None
    forkserver._server.process.kill()
    wait_until(lambda: not alive(first))
    assert executor.submit(bodies.pid).result(20) != first
    future = executor.submit(bodies.begun_and_waits, str(tmp_path))
    wait_until(lambda: list(tmp_path.iterdir()))
    forkserver._server.process.kill()
    with pytest.raises(BrokenProcessPool, match="'begun_and_waits' ended by signal SIGKILL"):
        future.result(20)
    forkserver._server.process.wait()


# --- workers --------------------------------------------------------------------------------------


def _refuse() -> None:
    raise ValueError("refused")


def test_an_initializer_runs_in_each_worker() -> None:
    with Executor(2, initializer=bodies.put, initargs=("ready",)) as executor:
        assert list(executor.map(bodies.get_after, [0.02] * 6)) == [["ready"]] * 6


def test_what_an_initializer_sets_stays(tmp_path: Path) -> None:
    with Executor(1, initializer=os.chdir, initargs=(tmp_path,)) as executor:
        assert [executor.submit(os.getcwd).result() for _ in range(3)] == [str(tmp_path)] * 3


STATE = """
import functools, sys
from concurrent.futures import ProcessPoolExecutor
from entangle.executor import Executor

table, rows, model, count, changed = {}, [], None, 0, "before"

class Settings:
    pass

class Base:
    connection = None
    cache = {}

settings = Settings()

def begin(name):
    global model, made_there
    model = made_there = name.upper()
    table.update(key=name)
    rows.append(name)
    settings.name = name
    Base.connection = name
    globals()["by_name"] = name

def helper():
    rows.append(len(rows))
    return list(rows)

def look(x):
    global count
    count += 1
    Base.cache[x] = x
    return table["key"], model, made_there, settings.name, Base.connection, helper(), count, len(Base.cache), by_name, changed

@functools.lru_cache
def load():
    return object()

def same(_):
    return id(load())

def other(instance):
    return len(rows), count, type(instance).connection, isinstance(instance, Base)

def calls(executor):
    global changed
    for x in range(3):
        yield executor.submit(look, x).result()
    yield executor.submit(other, Base()).result()
    yield list(executor.map(other, [Base()] * 2, chunksize=2))
    yield len({executor.submit(same, x).result() for x in range(3)}), len({executor.submit(id, load).result() for x in range(2)}) > 0
    yield executor.submit(look, 3).result()

if __name__ == "__main__":
    for kind in ProcessPoolExecutor, Executor:
        with kind(1, initializer=begin, initargs=("ready",)) as executor:
            print(list(calls(executor)))
    with Executor(1, initializer=begin, initargs=("ready",)) as executor:
        executor.submit(look, 0).result()
        rows.append("ours")
        changed = "since"
        print(executor.submit(look, 0).result()[5:])
        print(executor.submit(other, Base()).result())
        del rows[:]
        print(executor.submit(look, 0).result()[5:])
"""


def test_the_state_of_a_script_stays_in_its_worker(tmp_path: Path) -> None:
    """As in a process that runs the script itself. But what the script has changed since then is
    sent with the call."""
    (tmp_path / "script.py").write_text(STATE)
    environment = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    theirs, ours, changed, again, back = done.stdout.splitlines()
    assert ours == theirs
    assert changed == "(['ours', 1], 2, 1, 'ready', 'since')"
    assert again == "(2, 2, 'ready', True)"
    assert back == "([0], 3, 1, 'ready', 'since')"


def test_an_initializer_that_fails_breaks_the_executor(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "concurrent.futures"), Executor(2, initializer=bodies.fail, initargs=("at first",)) as executor:
        with pytest.raises(BrokenProcessPool, match="initializer 'fail' failed") as caught:
            executor.submit(bodies.add, 1).result()
        assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(BrokenProcessPool):
            executor.submit(bodies.add, 1)
    assert "ValueError: at first" in caplog.text


def test_an_initializer_that_dies_breaks_the_executor() -> None:
    with Executor(1, initializer=bodies.leave, initargs=(4,)) as executor, pytest.raises(BrokenProcessPool, match="exit code 4"):
        executor.submit(bodies.add, 1).result(20)


def test_workers_are_replaced_after_so_many_calls() -> None:
    with Executor(1, max_tasks_per_child=3) as executor:
        pids = [executor.submit(bodies.pid).result() for _ in range(7)]
        assert len(set(pids[:3])) == len(set(pids[3:6])) == 1
        assert len(set(pids)) == 3
    with Executor(2, max_tasks_per_child=2) as executor:
        found = list(executor.map(lambda _: os.getpid(), range(40)))
        assert max(found.count(one) for one in found) <= 2


def test_calls_while_workers_retire() -> None:
    executor = Executor(3, max_tasks_per_child=1)
    futures = [executor.submit(bodies.add, number, number) for number in range(12)]
    executor.shutdown()
    assert [future.result() for future in futures] == [2 * number for number in range(12)]


def test_workers_start_when_they_are_needed() -> None:
    with Executor(4) as executor:
        assert executor.pids == []
        for _ in range(3):
            executor.submit(bodies.add, 1).result()
        assert len(executor.pids) == 1


@pytest.mark.parametrize("end", ["open", "shut", "collected"])
def test_a_worker_of_a_leaking_body_retires(end: str) -> None:
    """No call is lost when a worker retires, however many wait, and even if the executor is shut
    down or collected."""
    executor = Executor(1)
    futures = [executor.submit(bodies.leak_descriptors, 8) for _ in range(40)]
    thread = executor._calls.thread
    if end == "shut":
        executor.shutdown(wait=False)
    elif end == "collected":
        del executor
        gc.collect()
    pids = [future.result(20) for future in futures]
    if end == "open":
        pids += [executor.submit(bodies.leak_descriptors, 8).result(20) for _ in range(20)]
        executor.shutdown()
    assert len(set(pids)) > 1
    assert thread is not None
    thread.join(20)
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_contexts_that_are_accepted(method: str) -> None:
    import multiprocessing

    with Executor(1, mp_context=multiprocessing.get_context(method)) as executor:
        assert executor.submit(bodies.add, 1).result() == 1


def test_options_that_make_no_sense() -> None:
    import multiprocessing

    with pytest.raises(ValueError, match="clean server"):
        Executor(mp_context=multiprocessing.get_context("fork"))
    with pytest.raises(TypeError, match="context"):
        Executor(mp_context="spawn")
    for wrong in ({"max_workers": 0}, {"max_workers": -1}, {"max_tasks_per_child": 0}):
        with pytest.raises(ValueError, match="must be"):
            Executor(**wrong)  # type: ignore[arg-type]
    for odd in ({"max_workers": "2"}, {"max_tasks_per_child": 1.5}, {"initializer": 3}):
        with pytest.raises(TypeError):
            Executor(**odd)
    with pytest.raises(UnpicklableError, match="initializer"):
        Executor(initializer=bodies.put, initargs=(threading.Lock(),))


# --- the end --------------------------------------------------------------------------------------


def test_shutdown_waits_for_what_was_submitted() -> None:
    executor = Executor(2)
    futures = [executor.submit(time.sleep, 0.02) for _ in range(8)]
    pids = executor.pids
    executor.shutdown()
    assert all(future.done() for future in futures)
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(bodies.add, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(bodies.add, [1])
    executor.shutdown()


def test_shutdown_without_waiting(tmp_path: Path) -> None:
    executor = Executor(1)
    futures = [executor.submit(bodies.wait_for, str(tmp_path / "go")) for _ in range(3)]
    thread = executor._calls.thread
    executor.shutdown(wait=False)
    assert not futures[0].done()
    (tmp_path / "go").touch()
    assert [future.result(20) for future in futures] == [None] * 3
    assert thread is not None
    thread.join(20)


def test_shutdown_cancels_what_no_worker_has(tmp_path: Path) -> None:
    executor = Executor(1)
    futures = [executor.submit(bodies.wait_for, str(tmp_path / "go")) for _ in range(5)]
    later = executor.submit(bodies.given, futures[-1])
    wait_until(futures[0].running)
    executor.shutdown(wait=False, cancel_futures=True)
    assert [future.cancelled() for future in futures] == [False, True, True, True, True]
    wait_until(later.cancelled)
    (tmp_path / "go").touch()
    executor.shutdown()
    assert futures[0].result() is None


@pytest.mark.parametrize("end", ["terminate_workers", "kill_workers"])
def test_workers_are_ended(end: str) -> None:
    executor = Executor(2)
    futures = [executor.submit(time.sleep, 60) for _ in range(4)]
    wait_until(futures[1].running)
    pids = executor.pids
    getattr(executor, end)()
    for future in futures[:2]:
        with pytest.raises(BrokenProcessPool):
            future.result(20)
    assert all(future.cancelled() for future in futures[2:])
    wait_until(lambda: not any(alive(pid) for pid in pids))
    with pytest.raises(RuntimeError):
        executor.submit(bodies.add, 1)
    executor.shutdown()


@pytest.mark.parametrize("end", ["is ended", "dies"])
def test_the_runs_of_a_worker_that_is_killed_go_with_it(end: str, tmp_path: Path) -> None:
    """Otherwise their shared memory would stay until the program ends."""
    executor = Executor(2)
    future = executor.submit(bodies.run_begun_and_waits, str(tmp_path))
    wait_until(lambda: list(tmp_path.iterdir()))
    home = Path(next(iter(_homes.values())).path)
    runs = list(home.glob("x*/w*/r*"))
    assert len(runs) == 1
    if end == "is ended":
        executor.kill_workers()
    else:
        os.kill(int(runs[0].parent.name[1:]), signal.SIGKILL)
    with pytest.raises(BrokenProcessPool):
        future.result(20)
    wait_until(lambda: not list(home.glob("x*/w*/r*")))
    executor.shutdown()


def test_an_executor_that_nobody_has_ends() -> None:
    executor = Executor(2)
    values = executor.map(bodies.add, range(10))
    future = executor.submit(bodies.add, 1)
    pids, thread = executor.pids, executor._calls.thread
    del executor
    gc.collect()
    assert list(values) == list(range(10))
    assert future.result() == 1
    assert thread is not None
    thread.join(20)
    assert not any(alive(pid) for pid in pids)


def test_a_body_may_shut_nothing_down_but_a_callback_may() -> None:
    executor = Executor(1)
    done = threading.Event()

    def end(_: Any) -> None:
        executor.shutdown(wait=True)
        done.set()

    executor.submit(bodies.add, 1).add_done_callback(end)
    assert done.wait(20)
    executor.shutdown()


def test_ctrl_c_in_a_with_block_ends_the_workers() -> None:
    executor = Executor(1)
    futures = [executor.submit(time.sleep, 60) for _ in range(3)]
    wait_until(futures[0].running)
    with pytest.raises(KeyboardInterrupt), executor:
        raise KeyboardInterrupt
    assert futures[0].exception() is not None
    assert futures[2].cancelled()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_in_a_forked_child(executor: Executor) -> None:
    executor.submit(bodies.add, 1).result()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with pytest.raises(RuntimeError, match="forked this one"):
                executor.submit(bodies.add, 1)
            executor.shutdown()
            with Executor(1) as own:
                assert own.submit(bodies.add, 1, 2).result(20) == 3
            code = 0
        finally:
            from entangle._run import forkserver
            from entangle._shared import home

            forkserver.stop()
            home.leave()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert executor.submit(bodies.add, 1).result() == 1


# --- large values ---------------------------------------------------------------------------------


def _mapped(executor: Executor) -> list[str]:
    files = executor._calls.files
    return os.listdir(files.directory) if files is not None and os.path.exists(files.directory) else []


@pytest.mark.parametrize("body", [bodies.repeated, bodies.untouched])
def test_large_values_are_mapped_and_their_files_used_again(executor: Executor, body: Any) -> None:
    size = 1 << 20
    for number in range(40):
        value = executor.submit(body, bodies.Buffered.of(number, size)).result()
        assert value.ends() == (size, number, number)
        value.data[0] = 255  # the caller may write to it
    assert len(_mapped(executor)) <= 8


def test_a_value_that_is_still_there_keeps_its_file(executor: Executor) -> None:
    size = 1 << 17
    kept = []
    for number in range(30):
        body = (bodies.repeated, bodies.untouched, bodies.touched)[number % 3]
        kept.append(executor.submit(body, bodies.Buffered.of(number, size)).result())
    list(executor.map(bodies.repeated, [bodies.Buffered.of(0, size)] * 30))
    assert [value.ends() for value in kept] == [(size, 99 if number % 3 == 2 else number, number) for number in range(30)]
    again = [executor.submit(bodies.untouched, value).result().ends() for value in kept]
    assert again == [value.ends() for value in kept]


def test_a_body_keeps_an_array_that_it_was_given() -> None:
    size = 1 << 17
    with Executor(1) as executor:
        executor.submit(bodies.put, bodies.Buffered.of(7, size)).result()
        for number in range(10):
            executor.submit(bodies.repeated, bodies.Buffered.of(number, size)).result()
        assert executor.submit(bodies.first_known).result() == 7


def test_large_values_go_from_worker_to_worker(executor: Executor) -> None:
    chain = executor.submit(bodies.repeated, bodies.Buffered.of(3, 1 << 20))
    for number in range(12):
        chain = executor.submit((bodies.repeated, bodies.untouched)[number % 2], chain)
    assert chain.result().ends() == (1 << 20, 3, 3)


def test_values_that_nobody_has_asked_for_outlive_the_executor() -> None:
    with Executor(1) as executor:
        values = executor.map(bodies.repeated, [bodies.Buffered.of(number, 1 << 17) for number in range(5)])
        first = executor.submit(bodies.repeated, bodies.Buffered.of(8, 1 << 17))
        second = executor.submit(bodies.untouched, first)
    assert [value.ends()[1] for value in values] == list(range(5))
    assert first.result().ends() == second.result().ends() == (1 << 17, 8, 8)


def test_a_closure_with_a_large_value_travels_once(executor: Executor) -> None:
    large = bytearray(1 << 20)
    large[5] = 9
    assert list(executor.map(lambda _: large[5], range(50))) == [9] * 50
    assert len(_mapped(executor)) <= 2


def test_the_files_of_a_dead_worker_go(executor: Executor) -> None:
    executor.submit(bodies.put, bodies.Buffered.of(1, 1 << 20)).result()
    first = executor.pids[0]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: first not in executor.pids)
    executor.submit(bodies.repeated, bodies.Buffered.of(1, 1 << 20)).result()
    wait_until(lambda: len(_mapped(executor)) <= 3)
