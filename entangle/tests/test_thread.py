"""`@thread`: bodies in threads of the calling process, which share its memory."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from entangle.errors import ThreadTerminatedException, UnpicklableError
from entangle.process import process
from entangle.task import task
from entangle.thread import thread

from . import bodies
from .callers import output_of
from .evidence import notes, wait_until

gather = thread(bodies.gather)


def test_threads_share_the_memory_of_the_caller() -> None:
    seen: list[int] = []
    append = thread(seen.append)
    gather(*(append(i) for i in range(10)))()
    assert sorted(seen) == list(range(10))


def test_a_value_between_threads_is_the_same_object() -> None:
    thing = object()
    same = thread(bodies.same)
    assert same(same(thing))() is thing


def test_values_that_cannot_be_pickled_stay_in_threads() -> None:
    lock = threading.Lock()
    same = thread(bodies.same)
    assert same(same({"lock": lock}))()["lock"] is lock
    generator = thread(lambda: (i for i in range(3)))()()
    assert list(generator) == [0, 1, 2]


def test_what_only_threads_use_does_not_travel(start: str) -> None:
    """In a run with processes, however they start, a thread's function and arguments are not
    pickled."""
    lock = threading.Lock()
    seen: list[Any] = []

    @thread
    def count(value: int, *held: Any, **named: Any) -> int:
        with lock:
            seen.append((held, named))
            return value + 1

    @task
    def last(first: int, second: int, kept: Any) -> tuple[int, int, bool]:
        return first, second, kept is lock

    added = process(bodies.add)
    keyed: Any = defaultdict(lambda: lock, kept=count(1, lock))
    call = last(count(added(count(1, lock), count(2)), named=keyed), added(10, count(20)), lock)
    assert call() == (6, 31, True)
    assert ((lock,), {}) in seen
    named = next(named["named"] for _, named in seen if named)
    assert (named["kept"], named["another"]) == (2, lock)


def test_forked_workers_go_on_where_no_more_can_be_started(tmp_path: Path) -> None:
    """The caller has a second thread, so more workers could only come from the forkserver, and the
    values of these bodies cannot be pickled for it. In a program of its own, because pytest-xdist
    has a thread, too."""
    source = """
    import threading
    from entangle.process import process
    from entangle.tests import bodies
    from entangle.tests.evidence import notes, wait_until
    from entangle.thread import thread

    lock = threading.Lock()

    @process
    def sleeps(number):
        with lock:
            bodies.spanned("log", 0.2)
        return number

    stays = thread(lambda: wait_until(lambda: len(notes("log")) == 12))
    values, _ = thread(bodies.gather)(stays(), *(sleeps(number) for number in range(12)))()
    print(values == (True, *range(12)))
    """
    assert output_of(tmp_path, source) == "True\n"


@pytest.mark.parametrize("how", ["forkserver", "spawn"])
def test_what_a_process_uses_as_well_is_named_where_it_cannot_travel(how: Any) -> None:
    lock = threading.Lock()
    with pytest.raises(UnpicklableError, match="argument 2 of task 'gather'"):
        process(bodies.gather)(thread(lambda held: held is lock)(lock), lock)(start=how)


def test_errors_of_threads_and_retries_beside_processes(start: str) -> None:
    lock = threading.Lock()

    class OwnError(Exception):
        pass

    tries: list[int] = []

    @thread(retry=2, on=OwnError)
    def second_time(value: int) -> int:
        with lock:
            tries.append(value)
        if len(tries) < 2:
            raise OwnError(value)
        return value

    assert process(bodies.add)(second_time(process(bodies.one)()), 1)() == 2
    assert tries == [1, 1]

    @thread
    def fails(value: int) -> int:
        with lock:
            raise OwnError(value)

    with pytest.raises(OwnError):
        process(bodies.add)(fails(process(bodies.one)()), 1)()


def test_threads_run_at_the_same_time() -> None:
    barrier = threading.Barrier(8, timeout=30)
    wait = thread(barrier.wait)
    values, _ = gather(*(wait() for _ in range(8)))()
    assert sorted(values) == list(range(8))


def test_a_body_is_not_in_the_callers_thread() -> None:
    name = thread(threading.get_ident)
    assert name()() != threading.get_ident()


def test_async_bodies() -> None:
    @thread
    async def later(x: int) -> int:
        import asyncio

        await asyncio.sleep(0)
        return x + 1

    assert later(later(1))() == 3


def test_errors_are_the_very_objects() -> None:
    error = KeyError("this one")

    @thread
    def fail() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        gather(fail(), 1)()
    assert caught.value is error


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit("x")], ids=lambda e: type(e).__name__)
def test_a_body_that_tries_to_end_the_interpreter(error: BaseException) -> None:
    @thread
    def leave() -> None:
        raise error

    with pytest.raises(ThreadTerminatedException, match=type(error).__name__):
        gather(leave(), 1)()


def test_a_failure_ends_the_run(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    noted = thread(bodies.noted)
    with pytest.raises(ValueError, match="no such thing"):
        noted(log, thread(bodies.fail)())()
    assert notes(log) == []


def test_no_worker_process_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD", "0")  # a record would start git
    seen: list[set[str]] = []

    def children() -> set[str]:
        return {pid for pid in os.listdir("/proc") if pid.isdigit() and _parent(pid) == os.getpid() and not _server(pid)}

    @thread
    def look() -> None:
        seen.append(children())

    before = children()
    look()()
    assert seen[0] <= before


def _parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _server(pid: str) -> bool:
    try:
        return b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_threads_end_with_their_run() -> None:
    before = threading.active_count()
    one = thread(bodies.one)
    gather(*(one() for _ in range(20)))()
    wait_until(lambda: threading.active_count() <= before, 1.0)


def test_large_values_from_processes_to_threads() -> None:
    make = process(lambda n: b"x" * n)
    length = thread(len)
    assert length(make(1_000_000))() == 1_000_000
    assert process(len)(thread(lambda: b"y" * 500_000)())() == 500_000


def test_context_variables_are_the_callers() -> None:
    """As with asyncio.to_thread, bodies in threads see the caller's context variables."""
    import contextvars

    colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")

    @thread
    def see() -> str:
        return colour.get()

    colour.set("blue")
    assert see()() in ("blue", "none")
    assert colour.get() == "blue"


def test_a_value_that_one_task_takes_twice_stays_for_the_others() -> None:
    @thread
    def stamp() -> int:
        return 7

    @thread
    def pair(a: Any, b: Any) -> tuple[Any, Any]:
        return a, b

    seven = stamp()
    assert pair(pair(seven, seven), pair(seven, pair(seven, seven)))() == ((7, 7), (7, (7, 7)))


def test_a_thread_that_has_retired_makes_room_for_another() -> None:
    """The second thread starts after the first one, idle for long, has ended. After both, a body
    runs in the calling thread."""
    release = threading.Event()

    @thread
    def quick() -> int:
        return 1

    @thread
    def slow(*_: int) -> int:
        release.wait(0.3)
        return 2

    @task
    def last(*values: int) -> int:
        return sum(values)

    for _ in range(5):
        assert last(slow(quick(), quick()), slow(slow(quick())), quick())() == 5


def test_threads_that_begin_slowly_where_others_have_retired(tmp_path: Path) -> None:
    """A thread that has not begun yet is not mistaken for the retired thread whose slot it has."""
    source = """
        import sys, threading, time
        from entangle.process import process
        from entangle.thread import thread

        def slowly(*_):
            sys.settrace(None)
            time.sleep(0.05)

        @thread
        def wait(number, *after):
            time.sleep(0.2)
            return number

        @process
        def pause(*after):
            time.sleep(0.4)

        @process
        def total(*numbers):
            return sum(numbers)

        threading.settrace(slowly)
        middle = pause(*[wait(n) for n in range(8)])
        print(total(*[wait(n, middle) for n in range(8)])())
    """
    assert output_of(tmp_path, source) == "28\n"
