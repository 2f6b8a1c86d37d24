"""Options of the decorators, and environment variables."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from entangle.dataflow import dataflow
from entangle.errors import ArgumentError, EntangleError, OptionError
from entangle.http import request
from entangle.interpreter import interpreter
from entangle.limit import limit
from entangle.local import local
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.task import task
from entangle.thread import thread
from entangle.workflow import workflow

from . import bodies
from .evidence import alive, most_at_once, notes, wait_until
from .ways import needed

pid = process(bodies.pid)
gather = process(bodies.gather)


@pytest.mark.parametrize(
    ("decorator", "written", "meant"),
    [
        (process, "timout", "timeout"),
        (process, "retries", "retry"),
        (process, "sharedmemory", "shared_memory"),
        (thread, "time_out", "timeout"),
        (scheduler, "cpu", "cpus"),
        (local, "cpu", "cpus"),
        (request, "ulr", "url"),
    ],
)
def test_an_unknown_option_names_the_nearest_known(decorator: Any, written: str, meant: str) -> None:
    with pytest.raises(OptionError) as caught:
        decorator(**{written: 1})(bodies.one)
    assert written in str(caught.value)
    assert meant in str(caught.value)


def test_a_workflow_has_no_options() -> None:
    with pytest.raises(OptionError, match="timeout"):
        workflow(timeout=3)(bodies.one)  # type: ignore[call-overload, unused-ignore]


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": "3"},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"wait": -1},
        {"wait": [3]},
        {"retry": -1},
        {"retry": 1.5},
        {"retry": "2"},
        {"sleep": -1},
        {"backoff": "x"},
        {"jitter": -1},
        {"on": "ValueError"},
        {"on": (ValueError, 3)},
        {"timeout": 10**400},
        {"sleep": -(10**400)},
        {"fresh": "no"},
        {"cache": "no"},
        {"shared_memory": "no"},
        {"idempotent": "no"},
    ],
    ids=str,
)
def test_a_value_that_an_option_cannot_take(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        process(**options)(bodies.one)


@pytest.mark.parametrize(("options", "may"), [({}, False), ({"retry": 1}, True), ({"idempotent": True}, True)], ids=str)
def test_a_body_may_run_again_where_its_options_say_so(options: dict[str, Any], may: bool) -> None:
    assert process(**options)(bodies.one).body.repeatable is may
    assert thread(**options)(bodies.one).body.repeatable is may


@pytest.mark.parametrize("options", [{"cpus": 0}, {"cpus": -1}, {"cpus": "2"}, {"cpus": 1.5}], ids=str)
@pytest.mark.parametrize("decorator", [scheduler, local])
def test_a_number_of_cpus_that_there_cannot_be(decorator: Any, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="cpus"):
        decorator(**options)(bodies.one)


@pytest.mark.parametrize("options", [{"fresh": False}, {"cache": None}, {"fresh": 1}, {"timeout": None, "retry": 0, "sleep": 0}], ids=str)
def test_falsy_values_are_what_they_say(options: dict[str, Any]) -> None:
    assert process(**options)(bodies.num)(0)() == 0


def test_options_are_by_name() -> None:
    with pytest.raises(TypeError):
        process(3)(bodies.one)  # type: ignore[call-overload, unused-ignore]


@pytest.mark.parametrize(
    ("upper", "lower", "lost"),
    [
        (workflow, process(timeout=3), "timeout=3"),
        (thread, process(retry=2, fresh=True), "retry=2, fresh=True"),
        (process, thread(wait=1.5), "wait=1.5"),
        (process(timeout=5), process(timeout=3), "timeout=3"),
    ],
)
def test_options_that_a_layer_above_would_make_void(upper: Any, lower: Any, lost: str) -> None:
    with pytest.raises(OptionError, match="would be ignored") as caught:
        upper(scheduler(cpus=1)(lower(bodies.one)))
    assert f"({lost})" in str(caught.value)


def test_layers_above_that_leave_the_options_below_alone() -> None:
    below = process(timeout=3)(bodies.one)
    for upper in (
        scheduler(cpus=1),
        limit("one", at_once=1),
        local,
        task,
        task(attributes={"a": 1}),
        dataflow,
        dataflow(executor="thread"),
    ):
        assert upper(below).body.timeout == 3
    # The layers below `interpreter` apply where it runs them.
    assert process(interpreter(python=sys.executable)(below)).body.timeout is None


# --- cache ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decorator", [process, thread])
def test_cache(decorator: Any, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    noted = decorator(cache=True)(bodies.noted)
    assert [noted(log, [1])() for _ in range(3)] == [[1]] * 3
    assert len(notes(log)) == 1
    assert noted(log, [2])() == [2]
    assert noted(log, value=[2])() == [2]
    assert 2 <= len(notes(log)) <= 3
    assert gather(noted(log, [1]), noted(log, [2]))() == (([1], [2]), {})
    assert len(notes(log)) <= 3


def test_cache_of_falsy_values(tmp_path: Path) -> None:
    values: list[Any] = [None, 0, "", False, []]
    for number, value in enumerate(values):
        log = str(tmp_path / str(number))
        noted = process(cache=True)(bodies.noted)
        assert noted(log, value)() == value
        assert noted(log, value)() == value
        assert len(notes(log)) == 1


def test_a_failure_is_not_cached(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    call = process(cache=True)(bodies.fail_until)(log, 2)
    with pytest.raises(ValueError):
        call()
    assert call() == "done"
    assert call() == "done"
    assert len(notes(log)) == 2


def test_a_cached_value_is_not_the_callers_to_change(tmp_path: Path) -> None:
    made = process(cache=True)(bodies.noted)(str(tmp_path / "log"), [1, 2])
    value = made()
    value.append(3)
    assert made() == [1, 2]


def test_cache_knows_functions_by_their_code(tmp_path: Path) -> None:
    def make(factor: int) -> Any:
        @process(cache=True)
        def times(x: int) -> int:
            return x * factor

        return times

    assert (make(2)(10)(), make(3)(10)()) == (20, 30)

    @process(cache=True)
    def first(x: int) -> int:
        return x + 1

    @process(cache=True)
    def second(x: int) -> int:
        return x + 2

    assert (first(1)(), second(1)()) == (2, 3)


def test_cache_with_arguments_that_are_calls(tmp_path: Path) -> None:
    log, made = str(tmp_path / "log"), str(tmp_path / "made")
    cached = process(cache=True)(bodies.noted)
    noted = process(bodies.noted)
    for _ in range(2):
        assert cached(log, noted(made, 5))() == 5
    assert len(notes(log)) == 1
    # The argument's task is not cached, so it runs each time to find its value.
    assert len(notes(made)) == 2


# --- fresh ----------------------------------------------------------------------------------------


def test_fresh_processes_are_alone_and_go_after_their_body(start: str) -> None:
    @process(fresh=True)
    def count() -> tuple[int, int]:
        os.environ["COUNTED"] = str(int(os.environ.get("COUNTED", "0")) + 1)
        return int(os.environ["COUNTED"]), os.getpid()

    @process
    def after(*found: tuple[int, int]) -> tuple[set[int], set[int], list[int]]:
        pids = [number for _, number in found]
        wait_until(lambda: not any(map(alive, pids)), 10)
        return {n for n, _ in found}, set(pids), [os.getpid()]

    counts, pids, [me] = after(*(count() for _ in range(6)))()
    assert counts == {1}
    assert len(pids) == 6
    assert me not in pids


def test_fresh_with_an_error_and_with_retry(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    assert process(fresh=True, retry=3)(bodies.die_until)(log, 3)() == "done"
    assert len({line[1] for line in notes(log)}) == 3
    with pytest.raises(ValueError, match="no such thing"):
        process(fresh=True)(bodies.fail)()()


# --- shared memory --------------------------------------------------------------------------------


def test_shared_memory_wants_both_parameters() -> None:
    for function in (lambda: 1, lambda smm: 1, lambda sm=None: 1):
        with pytest.raises(TypeError, match="smm") as caught:
            process(shared_memory=True)(function)  # type: ignore[arg-type, unused-ignore]
        assert isinstance(caught.value, EntangleError)


@pytest.mark.parametrize("decorator", [process, thread])
def test_shared_memory_may_come_before_other_parameters(decorator: Any) -> None:
    def first(smm: Any, sm: Any, a: int, b: int = 2) -> Any:
        return callable(smm.SharedMemory), callable(sm), a, b

    def between(a: int, smm: Any, b: int = 2, sm: Any = None) -> Any:
        return callable(smm.SharedMemory), callable(sm), a, b

    def many(a: int, smm: Any, sm: Any, *b: int) -> Any:
        return callable(smm.SharedMemory), callable(sm), a, *b

    def by_place(smm: Any, sm: Any, a: int, /, b: int = 2) -> Any:
        return callable(smm.SharedMemory), callable(sm), a, b

    def named(*, smm: Any, sm: Any, a: int = 1, b: int = 2) -> Any:
        return callable(smm.SharedMemory), callable(sm), a, b

    made = {function.__name__: decorator(shared_memory=True)(function) for function in (first, between, many, by_place, named)}
    for name in ("first", "between", "many", "by_place"):
        assert made[name](1, 2)() == (True, True, 1, 2)
        assert made[name](1)() == (True, True, 1, 2)[: 3 if name == "many" else 4]
        assert dataflow(made[name])()(5)[0][:3] == (True, True, 5)
    for name in ("first", "between", "named"):
        assert made[name](a=1)() == (True, True, 1, 2)
        assert made[name](b=4, a=3)() == (True, True, 3, 4)
    assert made["first"](1, b=4)() == made["between"](1, b=4)() == made["by_place"](1, b=4)() == (True, True, 1, 4)
    assert made["many"](1, 2, 3)() == (True, True, 1, 2, 3)
    with pytest.raises(ArgumentError):
        made["first"](1, 2, 3)


def test_shared_memory_of_the_documentation(start: str) -> None:
    numpy = needed("numpy")

    @process(shared_memory=True)
    def dopow(names: Any, smm: Any = None, sm: Any = None) -> tuple[float, int]:
        (namea, nameb, shape, kind) = names
        a = numpy.frombuffer(sm(namea).buf, dtype=kind)[: shape[0]]
        b = numpy.frombuffer(sm(nameb).buf, dtype=kind)[: shape[0]]
        return float((a**b).sum()), len(a)

    @process(shared_memory=True)
    def createvectors(size: int, smm: Any = None, sm: Any = None) -> Any:
        a = numpy.full(size, 2, dtype="float32")
        shma, shmb = smm.SharedMemory(a.nbytes), smm.SharedMemory(a.nbytes)
        numpy.frombuffer(shma.buf, dtype="float32")[:size] = a
        numpy.frombuffer(shmb.buf, dtype="float32")[:size] = 3
        return shma.name, shmb.name, a.shape, a.dtype

    assert dopow(createvectors(1000))() == (8000.0, 1000)


def test_segments_go_with_their_run() -> None:
    @process(shared_memory=True)
    def create(smm: Any = None, sm: Any = None) -> str:
        segment = smm.SharedMemory(5000)
        segment.buf[:3] = b"abc"
        return str(segment.name)

    @process(shared_memory=True)
    def find(name: str, smm: Any = None, sm: Any = None) -> bool:
        try:
            return bytes(sm(name).buf[:3]) == b"abc"
        except FileNotFoundError:
            return False

    name = create()()
    assert find(name)() is False  # the segment was removed at the end of its run
    assert find(create())() is True


def test_segments_are_shared_both_ways() -> None:
    @process(shared_memory=True)
    def create(smm: Any = None, sm: Any = None) -> str:
        return str(smm.SharedMemory(100).name)

    @process(shared_memory=True)
    def write(name: str, at: int, smm: Any = None, sm: Any = None) -> str:
        sm(name).buf[at] = at + 1
        return name

    @process(shared_memory=True)
    def read(name: str, *_: Any, smm: Any = None, sm: Any = None) -> bytes:
        return bytes(sm(name).buf[:4])

    name = create()
    assert read(name, *(write(name, i) for i in range(4)))() == b"\1\2\3\4"


# --- the environment ------------------------------------------------------------------------------


def test_a_cap_on_elastic_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_MAX_WORKERS", "3")
    log = str(tmp_path / "log")
    spanned = process(bodies.spanned)
    pids, _ = gather(*(spanned(log, 0.02) for _ in range(12)))()
    assert len(set(pids)) > 1
    assert most_at_once(log) <= 3


def test_an_unknown_way_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EntangleError, match="frok"):
        pid()(start="frok")  # type: ignore[call-overload]
    monkeypatch.setenv("ENTANGLE_START", "sapwn")
    with pytest.raises(EntangleError, match="sapwn"):
        pid()()


def test_auto_forks_when_it_is_safe_and_does_not_when_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from .ways import second_thread

    @process
    def parent() -> int:
        return os.getppid()

    assert parent()() == os.getpid()
    with second_thread():
        assert parent()() != os.getpid()
        assert parent()(start="fork") == os.getpid()
    assert parent()(start="forkserver") != os.getpid()
    assert parent()(start="spawn") == os.getpid()


def test_busy_bodies_get_no_more_workers_than_cpus() -> None:
    burn = process(bodies.burn)
    pids, _ = gather(*(burn(0.01) for _ in range(80)))()
    assert len(set(pids)) <= len(os.sched_getaffinity(0))
