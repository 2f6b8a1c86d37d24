"""Tests of whole graphs on any engine. The classes of test_dask_graph.py and test_ray_graph.py run
them, each on its own engine."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle import gather
from entangle.dataflow import dataflow
from entangle.dataflow import process as stage
from entangle.errors import (
    EntangleError,
    OptionError,
    ProcessRetryException,
    ProcessTerminatedException,
    ProcessTimeoutException,
    RunCancelledError,
    RunTimeoutException,
    UnpicklableError,
)
from entangle.limit import limit
from entangle.process import process
from entangle.scheduler import scheduler

from ..evidence import alive, notes, notes_of, wait_until
from . import graph_bodies as bodies
from .graph_bodies import (
    Scale,
    add,
    fail,
    fail_odd,
    grow,
    in_thread,
    late,
    leave,
    nested,
    never,
    noted,
    pid,
    same,
    soon,
    spin,
    square,
    squares,
    total,
)


def a_script_task() -> Any:
    """A task that other processes cannot import: it is pickled by value, with what it uses."""
    offset = 40

    @process
    def shifted(x: int) -> int:
        return x + offset

    return shifted


class WholeGraphs:
    """The tests for one engine. The fixture `engine` returns a block that uses it."""

    # Values ---------------------------------------------------------------------------------------

    def test_values_of_every_kind_of_call(self, engine: Any) -> None:
        with engine:
            assert add(add(1, 2), add(3, b=square(2)))() == 10
            assert total(square.map(range(40)))() == sum(x * x for x in range(40))
            assert add.starmap([(1, 2), (3, 4)])() == [3, 7]
            assert gather(square(2), in_thread(3), soon(1))() == [4, -3, 2]
            assert squares(5)() == 30
            assert Scale(3).of(square(2))() == 12
            assert a_script_task()(2)() == 42
            assert same({"a": [square(1), (square(2),)], "b": {3: square(3)}})() == {"a": [1, (4,)], "b": {3: 9}}
            shared = square(3)
            assert add(shared, shared)() == 18
            assert square(3).run(timeout=60) == 9
            assert square(4)(proc=True).result() == 16
            future = square(5).future()
            assert future.entangle() == 25
            assert asyncio.run(_awaited(square(6))) == 36
            assert square.map([])() == []
        assert square(7)() == 49  # outside the block, our own engine

    def test_values_that_are_falsy_or_odd(self, engine: Any) -> None:
        values: list[Any] = [None, 0, 0.0, "", b"", [], {}, (), set(), False, ValueError("a value"), float("inf")]
        with engine:
            found = gather(*[same(same(value)) for value in values])()
        assert [type(value) for value in found] == [type(value) for value in values]
        assert found[:10] == values[:10]
        assert str(found[10]) == "a value"

    def test_a_body_that_changes_its_argument_changes_no_others(self, engine: Any) -> None:
        with engine:
            start = same([0])
            assert gather(grow(start), grow(start), same(start))() == [[0, 1], [0, 1], [0]]

    def test_bodies_run_elsewhere_and_their_own_runs_there(self, engine: Any) -> None:
        import os

        with engine:
            values = nested(6)()
        assert values[0] == 55
        assert values[1] != os.getpid()

    def test_a_large_argument_travels_once(self, engine: Any) -> None:
        data = Counted(b"x" * 2_000_000)
        with engine:
            assert gather(*[bodies.length(data, i) for i in range(20)])() == [2_000_000] * 20
        assert Counted.pickled <= 3  # once to measure its size, and then to send it

    def test_results_one_by_one_as_they_are_done(self, engine: Any) -> None:
        calls = [square(2), fail(1), square(3)]
        with engine:
            found = {future.call: future.exception() or future.result() for future in entangle.as_completed(calls)}
        assert found[calls[0]] == 4
        assert isinstance(found[calls[1]], ValueError)
        assert found[calls[2]] == 9

    def test_streams_of_tasks(self, engine: Any) -> None:
        left_out: list[Any] = []
        with engine:
            assert list(square.stream(range(20))) == [x * x for x in range(20)]
            assert sorted(square.stream(range(20), ordered=False, inflight=3)) == [x * x for x in range(20)]
            assert list(Scale(2).of.stream(iter([1, 2]))) == [2, 4]
            endless = square.stream(itertools.count(), inflight=2)
            assert [next(endless), next(endless)] == [0, 1]
            endless.close()
            odd = fail_odd.stream(range(4), on_error=lambda task, item, error: left_out.append((task, item, str(error))))
            assert (list(odd), odd.skipped) == ([0, 2], 2)
            with pytest.raises(ValueError, match="1 is odd"):
                list(fail_odd.stream(range(4)))
            assert asyncio.run(_all_of(square.stream([3]))) == [9]
        assert left_out == [(fail_odd, 1, "1 is odd"), (fail_odd, 3, "3 is odd")]

    # Errors ---------------------------------------------------------------------------------------

    def test_an_error_says_which_call_failed_where(self, engine: Any) -> None:
        with engine, pytest.raises(ValueError, match="no 7") as caught:
            total([square(2), fail(add(3, 4))])()
        said = notes_of(caught.value)
        assert "call path: total([square(…), fail(…)]) → fail" in said
        assert "fail(7" in said
        assert "worker: " in said
        assert "graph_bodies.py" in str(caught.value.__cause__)

    def test_failures_that_are_values(self, engine: Any) -> None:
        with engine:
            four, failed, skipped = gather(square(2), fail(7), square(fail(8)), return_exceptions=True)()
            assert four == 4
            assert str(failed) == "no 7"
            assert str(skipped) == "no 8"
            inner = same(gather(square(2), fail(7), return_exceptions=True))
            told = same(same(inner))()
            assert told[0] == 4
            assert isinstance(told[1], ValueError)
            with pytest.raises(ValueError, match="no 7"):
                total([fail(7), square(2)])()

    def test_attempts(self, engine: Any, tmp_path: Path) -> None:
        with engine:
            assert bodies.third_time(str(tmp_path / "one"))() == 3
            with pytest.raises(ProcessRetryException) as caught:
                never(str(tmp_path / "two"))()
        assert isinstance(caught.value.__cause__, KeyError)
        assert "attempt 1: KeyError: 'gone'" in notes_of(caught.value)
        assert len(notes(tmp_path / "two")) == 2

    def test_a_deadline_kills_the_body(self, engine: Any, tmp_path: Path) -> None:
        path = tmp_path / "late"
        with engine, pytest.raises(ProcessTimeoutException, match="late"):
            late(str(path))()
        ((number,),) = notes(path)
        wait_until(lambda: not alive(int(number)))

    def test_a_body_that_ends_the_interpreter(self, engine: Any) -> None:
        with engine, pytest.raises(ProcessTerminatedException, match=r"SystemExit\(3\)"):
            leave(3)()

    def test_what_cannot_travel_is_named(self, engine: Any) -> None:
        lock = threading.Lock()

        @process
        def uses_lock() -> bool:
            return lock.locked()

        @process
        def makes_lock() -> Any:
            return threading.Lock()

        with engine:
            with pytest.raises(UnpicklableError, match="argument 1 of task 'same'"):
                add(1, same(lock))()
            with pytest.raises(UnpicklableError, match="its variable 'lock'"):
                uses_lock()()
            with pytest.raises(UnpicklableError, match="the value of task 'makes_lock'"):
                same(makes_lock())()

    def test_what_cannot_hold_there_is_refused(self, engine: Any) -> None:
        limited = limit("asked", per_second=5)(bodies.third_time)
        with engine:
            with pytest.raises(OptionError, match=r"retry=2 and limit 'asked': per_second=5 cannot both"):
                limited("never")()
            with pytest.raises(OptionError, match="start='fork'"):
                square(2).run(start="fork")
            assert scheduler(cpus=1)(square)(3)() == 9  # on each worker's machine

    def test_a_limit_holds_for_all_workers(self, engine: Any) -> None:
        query = limit("over the cluster", at_once=1)(bodies.when)
        with engine:
            with pytest.raises(ValueError, match="no 1"):
                limit("over the cluster", at_once=1)(fail)(1)()
            spans = gather(*[query(square(x)) for x in range(4)], query(query(0)), square(2))()
            assert spans.pop() == 4
            _one_by_one(spans)
            _one_by_one(gather(*[bodies.when(x) for x in range(4)]).run(workers=1))

    def test_tokens_of_a_limit(self, engine: Any) -> None:
        asked = limit("asked each", per_second=10)(bodies.when)
        with engine:
            begun = sorted(began for began, _ in gather(*[asked(x) for x in range(4)])())
        assert begun[-1] - begun[0] > 0.25

    def test_arguments_that_come_too_late(self, engine: Any) -> None:
        impatient = process(wait=0.3)(add.function)
        patient = process(wait=300)(add.function)
        with engine:
            assert patient(square(2), square(3))() == 13
            with pytest.raises(ProcessTimeoutException, match=r"waited 0.3 s for its arguments, and late_value\(9\) had not arrived"):
                add(impatient(square(2), bodies.late_value(9)), 1)()
            four, late = gather(square(2), add(impatient(square(2), bodies.late_value(2)), 1), return_exceptions=True)()
            assert four == 4
            assert isinstance(late, ProcessTimeoutException)

    def test_dataflows_are_refused(self, engine: Any) -> None:
        @dataflow
        @stage
        def node(x: int) -> int:
            return x

        with engine, pytest.raises(EntangleError, match="stream of values"):
            node()(1)

    def test_prints_come_with_the_worker_and_the_call_path(self, engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
        with engine:
            assert total([bodies.loud(1), bodies.loud(square(2)), bodies.loud_inside(3)])() == 8
        said, warned = capfd.readouterr()
        for line in ("begins 1", "begins 4", "half of a line of 1", "half of a line of 4"):
            assert re.search(rf"^\[\S.* total\(.*\) → loud\] {line}$", said, re.MULTILINE), said
        assert re.search(r"^\[\S.* → loud_inside\] within 3$", said, re.MULTILINE), said
        assert re.search(r"^\[\S.* → loud\] warns 1$", warned, re.MULTILINE), warned

    def test_prints_of_a_body_that_runs_on(self, engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
        said: list[str] = []
        with engine:
            running = bodies.loud_for_long()(proc=True)

            def is_said() -> bool:
                said.append(capfd.readouterr().out)
                return "this comes at once" in "".join(said)

            wait_until(is_said)
            running.cancel()
            with pytest.raises(RunCancelledError):
                running.result()

    # Ends -----------------------------------------------------------------------------------------

    def test_a_failure_ends_the_others(self, engine: Any, tmp_path: Path) -> None:
        path = tmp_path / "spins"
        with engine:
            with pytest.raises(ValueError, match="no 1"):
                gather(spin(str(path)), fail(square(1)))()
            _stops(path)

    def test_the_timeout_of_a_run(self, engine: Any, tmp_path: Path) -> None:
        path = tmp_path / "spins"
        with engine:
            with pytest.raises(RunTimeoutException, match="0 of 1 tasks"):
                spin(str(path)).run(timeout=1)
            _stops(path)

    def test_cancelling(self, engine: Any, tmp_path: Path) -> None:
        path = tmp_path / "spins"
        with engine:
            future = spin(str(path))(proc=True)
            wait_until(lambda: notes(path))
            assert future.cancel()
            with pytest.raises(RunCancelledError):
                future.result()
            _stops(path)

    def test_other_work_goes_on_after_a_cancelled_run(self, engine: Any) -> None:
        with engine:
            with contextlib.suppress(ValueError):
                gather(*[fail(x) for x in range(20)])()
            assert total(square.map(range(10)))() == 285

    # Blocks ---------------------------------------------------------------------------------------

    def test_blocks_within_blocks_and_threads_beside_them(self, engine: Any) -> None:
        import os

        found: list[int] = []
        with engine:
            with engine:
                assert pid()() != os.getpid()
            thread = threading.Thread(target=lambda: found.append(in_thread(pid())()))
            thread.start()
            thread.join()
            there = pid()()
        assert found != [-there]  # a thread without a block uses entangle's own engine
        assert pid()() not in (there, os.getpid())

    def test_a_run_is_recorded(self, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from entangle import records

        monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
        with engine:
            total([square(2), square(3)]).named("of squares")()
            with pytest.raises(ValueError, match="no 5"):
                same(fail(5))()
        good, bad = sorted(records.runs(), key=lambda run: run.started_ns)
        assert (good.name, good.state, good.done_count) == ("of squares", "done", 3)
        assert [(node.task.name, node.value and node.value.text) for node in good.nodes] == [
            ("square", "4"),
            ("square", "9"),
            ("total", "13"),
        ]
        for node in good.nodes:
            assert node.place  # the worker
            assert good.started_ns <= (node.started_ns or 0) <= (node.ended_ns or 0) <= time.time_ns()
        assert (bad.state, bad.error and bad.error.type) == ("failed", "ValueError")

    def test_runs_within_bodies_prints_and_attempts_are_recorded(
        self, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from entangle import records

        monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
        with engine:
            gather(nested(4), bodies.nested_deep(3), bodies.loud(2), bodies.third_time(str(tmp_path / "tries")))()
            with pytest.raises(ValueError, match="no 6"):
                bodies.nested_failure(6)()
        whole, failed = sorted(records.runs(), key=lambda run: run.started_ns)
        within = {(child.parent_node, child.name, child.state, child.done_count) for child in whole.children}
        assert within == {(0, "total", "done", 5), (1, "nested_deep", "done", 1)}
        (deep,) = [child for child in whole.children if child.name == "nested_deep"]
        assert [(child.name, child.done_count) for child in deep.children] == [("nested", 1)]
        assert [(child.name, child.state) for child in failed.children] == [("fail", "failed")]
        assert "begins 2" in whole.nodes[2].printed
        assert (whole.nodes[3].attempts, len(whole.nodes[3].tries)) == (3, 2)


async def _all_of(stream: Any) -> list[Any]:
    return [value async for value in stream]


async def _awaited(call: Any) -> Any:
    return await call


def _one_by_one(spans: list[tuple[float, float]]) -> None:
    """Check that no two of these spans overlap."""
    spans.sort()
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans)), spans


def _stops(path: Path) -> None:
    """Wait until the body that writes this file has stopped writing."""

    def still() -> bool:
        before = len(notes(path))
        time.sleep(0.2)
        return len(notes(path)) == before

    wait_until(still)


class Counted:
    """Data that counts how often it is pickled in this process."""

    pickled = 0

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.nbytes = len(data)

    def __len__(self) -> int:
        return len(self.data)

    def __reduce__(self) -> Any:
        Counted.pickled += 1
        return Counted, (self.data,)


__all__ = ["WholeGraphs", "noted"]
