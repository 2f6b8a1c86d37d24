"""What people use every day, in every way to run a graph.

The ways: fork, forkserver, spawn, a second thread in the caller, another Python of this version and
of another one, another host, a container.
"""

# Decorators are passed around as values here, and have no types then.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle.errors import EntangleError, ProcessRetryException, RunTimeoutException
from entangle.limit import limit
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.workflow import workflow

from . import bodies
from .evidence import most_at_once, notes_of
from .ways import Way

gather: Any = entangle.gather

pytestmark = pytest.mark.everywhere


def shown(values: list[Any]) -> list[Any]:
    return [type(value).__name__ if isinstance(value, BaseException) else value for value in values]


def test_gather_and_map(way: Way) -> None:
    inc, add, total = way.process(bodies.inc), way.process(bodies.add), way.process(sum)
    assert gather(inc(1), add(2, 3))() == [2, 5]
    assert inc.map(range(20))() == list(range(1, 21))
    assert add.map([1, 2], [10, 20])() == [11, 22]
    assert add.starmap([(1, 2), (3, 4)])() == [3, 7]
    assert total(inc.map(inc.map(range(4))))() == 14
    assert inc.map([], chunksize=3)() == []


def test_map_of_methods_and_async_functions(way: Way) -> None:
    class Scale:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        @way.process
        def times(self, x: int) -> int:
            return self.factor * x

    @way.process
    async def later(x: int) -> int:
        return x + 1

    assert Scale(3).times.map([1, 2])() == [3, 6]
    assert later.map([1, 2])() == [2, 3]


def test_map_of_workflows(way: Way) -> None:
    inc = way.process(bodies.inc)

    @workflow
    def twice(x: int) -> Any:
        return inc(inc(x))

    assert twice.map([1, 2, 3])() == [3, 4, 5]


def test_failures_are_values(way: Way) -> None:
    inc, divide = way.process(bodies.inc), way.process(bodies.inverse)
    got = gather(divide(4), divide(0), inc(inc(divide(0))), inc(1), return_exceptions=True)()
    assert shown(got) == [0.25, "ZeroDivisionError", "ZeroDivisionError", 2]
    assert "call: inverse(0)" in notes_of(got[1])
    assert "→ inc(inc(…)) → inc(inverse(…)) → inverse" in notes_of(got[2])


def test_failures_are_arguments(way: Way) -> None:
    divide = way.process(bodies.inverse)
    kinds = way.process(lambda values: [isinstance(value, ZeroDivisionError) for value in values])
    assert kinds(gather(divide(1), divide(0), return_exceptions=True))() == [False, True]


def test_deaths_deadlines_and_used_up_attempts_are_values(way: Way) -> None:
    inc = way.process(bodies.inc)
    leave, slow, again = (
        way.process(lambda: os._exit(3)),
        way.process(timeout=0.5)(lambda: time.sleep(60)),
        way.process(retry=1)(bodies.inverse),
    )
    got = gather(leave(), slow(), again(0), inc(1), return_exceptions=True)()
    assert [isinstance(value, EntangleError) for value in got] == [True, True, True, False]
    assert isinstance(got[1], TimeoutError)
    assert isinstance(got[2], ProcessRetryException)
    assert got[3] == 2


def test_futures_as_they_are_done(way: Way) -> None:
    inc, divide = way.process(bodies.inc), way.process(bodies.inverse)
    shared = inc(1)
    calls = [inc(shared), shared, divide(0), inc(divide(0))]
    futures = {future.call: future for future in entangle.as_completed(calls)}
    assert [futures[call].result() for call in calls[:2]] == [3, 2]
    assert [type(futures[call].exception()) for call in calls[2:]] == [ZeroDivisionError] * 2


def test_a_run_past_its_timeout_is_stopped(way: Way) -> None:
    slow = way.process(time.sleep)
    seconds = 2 if way.here else 4
    with pytest.raises(RunTimeoutException, match=rf"timeout of {seconds} s: .*sleep\(60\)"):
        slow.map([60, 60]).run(timeout=seconds)


def test_as_many_workers_as_are_wanted(way: Way) -> None:
    inc = way.process(bodies.inc)
    assert inc.map(range(10)).run(workers=1) == list(range(1, 11))


def test_names_are_in_errors(way: Way) -> None:
    divide = way.process(bodies.inverse)
    with pytest.raises(ZeroDivisionError) as caught:
        gather(divide(1), divide(0).named("fold 3"))()
    assert "call path: gather(inverse(…), fold 3) → fold 3" in notes_of(caught.value)


def test_named_limits(way: Way, tmp_path: Path) -> None:
    if not way.here:
        spanned = limit("everyday elsewhere", at_once=1)(way.process(bodies.inc))
        assert spanned.map(range(4))() == [1, 2, 3, 4]
        return
    log = str(tmp_path / "log")
    spanned = limit("everyday", at_once=2)(way.process(lambda log: bodies.spanned(log, 0.05)))
    gather(*[spanned(log) for _ in range(8)])()
    assert most_at_once(log) <= 2


def test_a_stream_of_values(way: Way) -> None:
    inc = way.process(bodies.inc)
    assert list(inc.stream(range(10))) == list(range(1, 11))
    endless = iter(inc.stream(iter(int, 1), inflight=4))
    assert [next(endless) for _ in range(5)] == [1] * 5
    endless.close()


def test_a_gpu_each(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another place the body starts the run there, since that place has GPUs of its own."""

    def devices() -> list[tuple[int, str]]:
        os.environ["ENTANGLE_GPUS"] = "0,1"
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        seen: Any = scheduler(gpus=1)(process(lambda x: (x, os.environ["CUDA_VISIBLE_DEVICES"])))
        found: list[tuple[int, str]] = seen.map(range(6))()
        return found

    for name in ("ENTANGLE_GPUS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "0,1")  # monkeypatch restores it afterwards
    got = devices() if way.here else way.process(devices)()()
    assert [x for x, _ in got] == list(range(6))
    assert {device for _, device in got} <= {"0", "1"}


def test_a_call_that_has_not_run_is_no_value(way: Way) -> None:
    call = way.process(bodies.inc)(1)
    for use in (bool, len, list, lambda call: call + 1, lambda call: call[0], lambda call: 1 in call):
        with pytest.raises(TypeError, match="has not run"):
            use(call)
    assert call == call
    assert call != way.process(bodies.inc)(1)
    assert "inc(1)" in repr(call)
