"""Fans: many leaves with one body and one consumer. A worker runs them a few at a time, in a
stretch."""

from __future__ import annotations

import enum
import os
import pickle
import signal
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle._run.run import Run
from entangle._shared.table import (
    BEGUN,
    BUSY,
    DONE,
    HIGH,
    LOW,
    NODE,
    OVER,
    OWNER,
    READY,
    RUNNING,
    RUNS,
    SINCE,
    SLOT,
    STATE,
    STRETCH_HIGH,
    STRETCH_LOW,
    UNCLAIMED,
    WAITING,
    Table,
)
from entangle._tasks.tree import compile_call
from entangle._worker.fans import Fanning
from entangle.errors import ProcessTerminatedException, UnpicklableError
from entangle.flow import LEAST_FAN, PROCESS
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.thread import thread

from .evidence import note, notes, notes_of, wait_until

gather: Any = entangle.gather


@process
def square(x: int) -> int:
    return x * x


@process
def total(*values: Any) -> int:
    return sum(sum(value) if isinstance(value, list) else value for value in values)


def test_where_fans_are() -> None:
    cube, keyed = process(lambda x: x**3), process(lambda x=0: x)
    shared = square(1)
    few = [square(x) for x in range(LEAST_FAN - 1)]
    assert compile_call(square.map(range(100))).fans == [(0, 100)]
    assert compile_call(total(*[square(x) for x in range(30)], 5, *[cube(x) for x in range(20)])).fans == [(0, 30), (30, 50)]
    mixed = [square, cube, *[square] * LEAST_FAN, *[cube, square] * 9, *[cube] * 70, *[square] * 40]
    at = 2 + LEAST_FAN + 18
    assert compile_call(total(*[body(x) for x, body in enumerate(mixed)])).fans == [(2, 2 + LEAST_FAN), (at, at + 70), (at + 70, at + 110)]
    assert compile_call(total(*[square(x) for x in range(30)], *[cube(x) for x in range(20)])).fans == [(0, 30), (30, 50)]
    assert compile_call(total(*few)).fans == []
    assert compile_call(gather(*[keyed(x=x) for x in range(50)])).fans == []
    assert compile_call(total(shared, *[square(x) for x in range(1, 30)], total(shared))).fans == []
    assert compile_call(gather(*[thread(square.function)(x) for x in range(50)])).fans == []
    lists: Any = square.map(range(20)), square.map(range(20))
    assert compile_call(total(*lists)).fans == [(0, 40)]


def test_many_fans_and_where_one_ends() -> None:
    groups = [total(*[square(x) for x in range(20)]) for _ in range(50)]
    flow = compile_call(total(*groups))
    assert flow.fans == [(at, at + 20) for at in range(0, 1000, 20)]
    assert total(*groups)() == 50 * sum(x * x for x in range(20))
    # Nested the other way round, the fans are still in order.
    mixed = compile_call(gather(total(*[square(x) for x in range(20)], total(*[square(x) for x in range(30)]))))
    assert mixed.fans == sorted(mixed.fans)


@pytest.mark.parametrize("start", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.drill)])
def test_each_leaf_runs_once_and_has_its_record(start: Any, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    spans: list[tuple[int, int]] = []

    class Watch:
        def started(self, run: Any) -> None: ...
        def looked(self, run: Any) -> None: ...
        def ended(self, run: Any) -> None:
            spans.extend(run.table.record(leaf)[:2] for leaf in range(run.flow.leaves))

    @process
    def noted(x: int) -> int:
        note(log, str(x))
        return x

    assert Run(compile_call(noted.map(range(500))), start, Watch()).value() == list(range(500))
    assert Counter(name for (name,) in notes(log)) == Counter(map(str, range(500)))
    assert len(spans) == 500
    assert all(0 < began <= ended for began, ended in spans)


def test_values_of_every_size() -> None:
    same = process(lambda x: x)
    values: list[Any] = [None, 0, "", [], b"x" * 300_000, {"a": 1}, list(range(20_000))] * 5
    assert same.map(values)() == values


class Level(enum.IntEnum):
    HIGH = 3


def test_values_keep_their_types() -> None:
    """Numbers are passed in records of 64 bits. A value that only resembles a number must not
    become one."""
    same = process(lambda x: x)
    edges = [(1 << 63) - 1, -1 << 63, 1 << 63, (-1 << 63) - 1, 1 << 200]
    values: list[Any] = [*edges, True, False, None, 0, 0.0, -0.0, float("inf"), float("nan"), 5e-324, 1j, "1", b"1", Level.HIGH]
    for wanted in (values * 2, edges * 8, [True, False] * 10, [0.5, -0.0] * 10, [None] * 20):
        assert [(type(got), repr(got)) for got in same.map(wanted)()] == [(type(value), repr(value)) for value in wanted]
    assert [repr(same(value)()) for value in values] == list(map(repr, values))


def test_bodies_of_every_kind() -> None:
    async def twice(x: int) -> int:
        return 2 * x

    def stops(x: int) -> int:
        if x == 7:
            raise StopIteration(x)
        return x

    assert process(twice).map(range(40))() == list(range(0, 80, 2))
    nothing: Any = process(lambda: 1)
    assert nothing.starmap([()] * 20)() == [1] * 20
    three: Any = process(lambda x, y, z: (x, y, z))
    assert three.starmap(zip(range(40), "ab" * 20, [None] * 40, strict=True))()[39] == (39, "b", None)
    assert three.map(range(50), range(50, 0, -1), ["x"] * 60)()[::49] == [(0, 50, "x"), (49, 1, "x")]
    with pytest.raises(StopIteration) as caught:
        process(stops).map(range(40))()
    assert "call: stops(7)" in notes_of(caught.value)


def test_the_calls_of_a_map_are_the_same_wherever_it_is_used(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @process
    def noted(x: int) -> int:
        note(log, str(x))
        return x

    mapped: Any = noted.map(range(30))
    everywhere = gather(mapped, total(mapped), mapped.named("again"), gather(mapped, return_exceptions=True), mapped.args[7])
    assert everywhere() == [list(range(30)), 435, list(range(30)), [list(range(30))], 7]
    assert Counter(name for (name,) in notes(log)) == Counter(map(str, range(30)))
    assert pickle.loads(pickle.dumps(square.map(range(30))))() == [x * x for x in range(30)]
    assert total(square.map(range(30)), thread(square.function).map(range(30)))() == 2 * sum(x * x for x in range(30))


def test_a_leaf_fails_amid_others(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @process
    def fails(x: int) -> int:
        note(log, str(x))
        return 1 // (x - 77)

    with pytest.raises(ZeroDivisionError) as caught:
        fails.map(range(200)).run(workers=1)
    assert "call: fails(77)" in notes_of(caught.value)
    got = gather(*[fails(x) for x in range(200)], return_exceptions=True)()
    assert [x for x, value in enumerate(got) if isinstance(value, ZeroDivisionError)] == [77]
    assert "call: fails(77)" in notes_of(got[77])
    assert max(Counter(name for (name,) in notes(log)).values()) == 2  # once in each of the runs


def test_a_value_that_cannot_be_sent_is_named() -> None:
    opens = process(lambda x: open(os.devnull) if x == 60 else x)
    with pytest.raises(UnpicklableError) as caught:
        opens.map(range(100))()
    assert "call: <lambda>(60)" in notes_of(caught.value)


def test_of_a_killed_worker_one_leaf_is_lost(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @process
    def dies(x: int) -> int:
        note(log, str(x))
        if x % 50 == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    got = gather(*[dies(x) for x in range(200)], return_exceptions=True)()
    assert [x for x, value in enumerate(got) if isinstance(value, ProcessTerminatedException)] == [40, 90, 140, 190]
    assert [value for x, value in enumerate(got) if x % 50 != 40] == [x for x in range(200) if x % 50 != 40]
    assert Counter(name for (name,) in notes(log)) == Counter(map(str, range(200)))


@pytest.mark.parametrize("number", [1, 3])
def test_a_worker_dies_before_it_tells_what_it_has_done(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is lost, and nothing runs twice. The first stretch is a single leaf."""
    log, told = str(tmp_path / "log"), str(tmp_path / "told")
    publish = Fanning._publish_stretch

    def dies(self: Fanning, *args: Any, **kwargs: Any) -> int:
        note(told, "")
        if len(notes(told)) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return publish(self, *args, **kwargs)

    monkeypatch.setattr(Fanning, "_publish_stretch", dies)

    @process
    def noted(x: int) -> int:
        note(log, str(x))
        return x

    assert noted.map(range(100)).run(start="fork", timeout=60) == list(range(100))
    assert Counter(name for (name,) in notes(log)) == Counter(map(str, range(100)))


def test_leaves_do_not_wait_for_one_that_takes_long(tmp_path: Path) -> None:
    """The fortieth waits for the last: if its worker kept the leaves of its stretch, none would
    ever end."""
    last = tmp_path / "last"

    @process
    def waits(x: int) -> int:
        if x % 60 == 40:
            wait_until(last.exists)
        if x == 119:
            last.touch()
        return x

    assert waits.map(range(120))() == list(range(120))


def test_a_child_that_a_body_forks_ends_there(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @process
    def forks(x: int) -> int:
        if x == 50 and not os.fork():
            return -1
        note(log, str(x))
        return x

    assert forks.map(range(100))() == list(range(100))
    assert len(notes(log)) == 100


def test_bodies_with_terms_keep_them(tmp_path: Path) -> None:
    @process(retry=1)
    def second(x: int) -> int:
        path = tmp_path / str(x)
        if x == 30 and not path.exists():
            path.touch()
            raise ValueError(x)
        return x

    assert second.map(range(60))() == list(range(60))
    bound = scheduler(cpus=1)(process(lambda x: len(os.sched_getaffinity(0))))
    assert bound.map(range(40))() == [1] * 40


def test_nested_runs_in_a_fan() -> None:
    nested: Any = process(lambda x: total(square(x), square(x)))
    assert nested.map(range(20))() == [2 * x * x for x in range(20)]


# The table ----------------------------------------------------------------------------------------


@pytest.fixture
def stretch(tmp_path: Path) -> Any:
    """Thirty leaves of one consumer. Slot 1 has claimed 0 to 9 as a stretch: 0 to 3 are done, and 4
    runs. The range of slot 1 ends with 14."""
    flow = compile_call(square.map(range(30)))
    table = Table.create(flow, 3, [PROCESS] * len(flow.bodies), str(tmp_path / "table"))
    slots = table.slots
    slots[UNCLAIMED * SLOT + LOW] = 15
    slots[SLOT + STATE], slots[SLOT + NODE] = BUSY, 4
    slots[SLOT + LOW], slots[SLOT + HIGH] = 10, 15
    slots[SLOT + STRETCH_LOW], slots[SLOT + STRETCH_HIGH] = 0, 10
    for leaf in range(4):
        table.states[leaf] = DONE
    table.states[4] = RUNNING
    yield table
    table.close()


def test_a_recount_leaves_an_open_stretch_to_its_worker(stretch: Table) -> None:
    stretch.header[OWNER] = 2
    with stretch.locked(UNCLAIMED):
        assert stretch.pop(PROCESS) == -1
        assert stretch.pending[30] == 30  # the consumer has been told of none


@pytest.mark.parametrize("ended", [0, 1, 4, 9, 10])
def test_a_stretch_is_settled_from_what_its_worker_has_written(stretch: Table, ended: int) -> None:
    """When the worker dies, it has written only when it began, the values, and when the leaves
    ended."""
    stretch.states[0:5] = bytes((RUNNING, WAITING, WAITING, WAITING, WAITING))
    stretch.slots[SLOT + NODE], stretch.slots[SLOT + BEGUN], stretch.slots[SLOT + SINCE] = 0, RUNS, 100
    stretch.started[0] = 100
    for leaf in range(ended):
        stretch.ended[leaf] = 101 + leaf
    with stretch.locked(UNCLAIMED):
        for _ in range(2):  # a second time changes nothing
            stretch.settle_stretch(1, over=True)
    running = [RUNNING] if ended < 10 else []
    assert list(stretch.states[:10]) == [*[DONE] * ended, *running, *[WAITING] * (9 - ended)]
    assert list(stretch.started[:ended]) == list(range(100, 100 + ended))
    assert stretch.slots[SLOT + NODE] == min(ended, 9)
    assert ended == 10 or stretch.slots[SLOT + SINCE] == 100 + ended


def test_a_worker_that_goes_on_says_itself_where_it_is(stretch: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may write its next node while the supervisor settles its stretch. If that write were lost,
    the leaf that it runs would be taken back, and run twice."""
    flow = stretch.flow
    assert flow is not None
    stretch.slots[SLOT + BEGUN], stretch.started[0] = RUNS, 100
    stretch.ended[0:4] = array("q", [101, 102, 103, 104])
    end_leaves = Table.end_leaves

    def goes_on(table: Table, low: int, high: int) -> None:
        stretch.ended[4], stretch.slots[SLOT + NODE] = 105, 5
        end_leaves(table, low, high)

    monkeypatch.setattr(Table, "end_leaves", goes_on)
    with stretch.locked(UNCLAIMED):
        stretch.settle_stretch(1)
        assert stretch.slots[SLOT + NODE] == 5
        stretch.slots[SLOT + NODE] = 4  # a write that is just arriving
        assert stretch.take_back(1, flow, stretch.lanes) == 0
    assert stretch.slots[SLOT + STRETCH_HIGH] == 10


def test_the_rest_of_a_stretch_is_taken_back(stretch: Table) -> None:
    flow = stretch.flow
    assert flow is not None
    with stretch.locked(UNCLAIMED):
        assert stretch.take_back(1, flow, stretch.lanes) == 5
        assert stretch.pop(PROCESS) == -1
        assert stretch.take_back(1, flow, stretch.lanes) == 0
    assert stretch.slots[SLOT + STRETCH_HIGH] == 5
    assert (stretch.slots[SLOT + LOW], stretch.slots[SLOT + HIGH]) == (5, 15)


def test_leaves_that_are_given_back_have_left_the_stretch(stretch: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker may take them from the range of a worker that dies just then, so they must not
    also become ready."""

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Table, "_queue_range", dies)
    with stretch.locked(UNCLAIMED), pytest.raises(KeyboardInterrupt):
        stretch.return_leaves(1, 5, 10, PROCESS)
    assert (stretch.slots[SLOT + LOW], stretch.slots[SLOT + STRETCH_HIGH]) == (5, 5)


def test_nothing_runs_in_a_stretch_that_is_over(stretch: Table) -> None:
    stretch.slots[SLOT + BEGUN], stretch.started[0], stretch.states[4] = OVER, 100, WAITING
    stretch.ended[0:4] = array("q", [101, 102, 103, 104])
    with stretch.locked(UNCLAIMED):
        stretch.settle_stretch(1, over=True)
    assert (stretch.slots[SLOT + NODE], stretch.states[3], stretch.states[4]) == (3, DONE, WAITING)


def test_leaves_of_a_worker_whose_range_is_elsewhere_become_ready(stretch: Table) -> None:
    flow = stretch.flow
    assert flow is not None
    stretch.slots[SLOT + LOW], stretch.slots[SLOT + HIGH] = 20, 25
    with stretch.locked(UNCLAIMED):
        assert stretch.take_back(1, flow, stretch.lanes) == 5
        assert [stretch.pop(PROCESS) for _ in range(6)] == [5, 6, 7, 8, 9, -1]
    assert [stretch.states[leaf] for leaf in (4, 5, 10)] == [RUNNING, READY, WAITING]


def test_nothing_is_taken_back_from_a_worker_that_has_gone_on(stretch: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = stretch.flow
    assert flow is not None

    def goes_on(_: float) -> None:
        stretch.slots[SLOT + NODE] = 5

    monkeypatch.setattr(time, "sleep", goes_on)
    with stretch.locked(UNCLAIMED):
        assert stretch.take_back(1, flow, stretch.lanes) == 0
        assert stretch.pop(PROCESS) == -1
    assert stretch.slots[SLOT + STRETCH_HIGH] == 10


def test_many_small_leaves_with_jumps_in_what_they_take() -> None:
    """However well a stretch was sized, each leaf runs once."""

    @process
    def jumps(x: int) -> int:
        if x % 97 == 0:
            time.sleep(0.02)
        return x

    assert jumps.map(range(600))() == list(range(600))
