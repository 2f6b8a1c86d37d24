"""@on: bodies that run through an executor, and nodes that are away and use no thread here."""

# Decorators are passed as values here, and are untyped.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle import records
from entangle._worker import away_worker, inline
from entangle._worker.away import AwayCall
from entangle.dataflow import dataflow
from entangle.errors import (
    EntangleError,
    OptionError,
    ProcessRetryException,
    ProcessTerminatedException,
    ProcessTimeoutException,
    RunTimeoutException,
    UnpicklableError,
)
from entangle.executor import Executor as Warm
from entangle.limit import limit
from entangle.on import On, on
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.task import Layer, task
from entangle.thread import thread

from . import bodies
from .evidence import alive, most_at_once, notes_of, pids_in, wait_until, when


class ByHand(Executor):
    """An executor that runs nothing until it is told to, like a slow service."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Any, Any]] = []
        self.taken = 0
        self.most_threads = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, fn, args))
        self.taken += 1
        self.most_threads = max(self.most_threads, threading.active_count())
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """There is nothing to shut down."""

    def run_all(self) -> None:
        """Run everything in the queue that is not cancelled."""
        waiting, self.waiting = self.waiting, []
        for future, fn, args in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(fn(*args))

    @property
    def left(self) -> list[Future[Any]]:
        return [future for future, _, _ in self.waiting]


@pytest.fixture
def pool() -> Iterator[Warm]:
    """An executor of processes."""
    with Warm(2) as made:
        yield made


def made() -> Executor:
    """Make an executor."""
    return Warm(2)


def double(x: Any) -> Any:
    return 2 * x


def kill_once(path: str) -> str:
    if not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def test_calls_under_way_cost_no_thread_and_begin_together() -> None:
    hand = ByHand()
    threads = set(threading.enumerate())
    with when(lambda: len(hand.waiting) == 3000, hand.run_all):
        assert sum(on(hand)(double).map(range(3000))()) == 2999 * 3000
    assert hand.most_threads <= 8
    wait_until(lambda: not set(threading.enumerate()) - threads)


def test_values_go_between_bodies_here_and_there(pool: Warm) -> None:
    there, here = on(pool)(bodies.add), process(bodies.add)
    assert here(there(1, here(2, 3)), there(there(4, 5), 6))() == 21
    with ThreadPoolExecutor(2) as threads:
        lock = threading.Lock()  # cannot be pickled; threads need no pickle
        assert on(threads)(bodies.same)(lock)() is lock
        assert here(on(threads)(bodies.add)(1, 2), there(3, 4))() == 10


def test_an_error_has_its_type_its_traceback_and_our_path(pool: Warm) -> None:
    def refuse(x: int) -> None:
        raise KeyError(f"no {x}")

    with pytest.raises(KeyError, match="no 3") as raised:
        process(bodies.add)(1, on(pool)(refuse)(3))()
    told = notes_of(raised.value)
    assert "call path: add(1, refuse(…)) → refuse" in told
    assert "call: refuse(3)" in told
    assert f"host {os.uname().nodename}, pid" in told
    assert "in refuse" in str(raised.value.__cause__)


def test_failures_that_are_values(pool: Warm) -> None:
    def odd(x: int) -> int:
        if x % 2:
            raise ValueError(x)
        return x

    there = on(pool)(odd)
    found = entangle.gather(there(0), there(1), process(bodies.add)(there(3), 1), there(2), return_exceptions=True)()
    assert [repr(value) for value in found] == ["0", "ValueError(1)", "ValueError(3)", "2"]
    futures = {future.call.args[0]: future for future in entangle.as_completed([there(0), there(1)])}
    assert (futures[0].result(), type(futures[1].exception())) == (0, ValueError)


def test_a_failure_ends_the_run_and_cancels_what_is_away(tmp_path: Path) -> None:
    hand, gate = ByHand(), tmp_path / "gate"
    away = on(hand)(double)

    @process
    def fails(x: int) -> int:
        wait_until(gate.exists, 40, "the calls to be under way")
        raise LookupError("while two are away")

    @process
    def after(x: int) -> int:
        return x

    with when(lambda: len(hand.waiting) == 2, gate.touch), pytest.raises(LookupError, match="while two are away"):
        process(bodies.gather)(away(1), away(2), away(fails(after(3))))()
    assert [future.cancelled() for future in hand.left] == [True, True]


def test_a_body_past_its_timeout_is_given_up(pool: Warm, tmp_path: Path) -> None:
    late = process(timeout=0.2)(on(pool)(bodies.spanned))
    with pytest.raises(ProcessTimeoutException, match=r"ran longer than its timeout of 0\.2 s .* runs on there"):
        late(str(tmp_path / "log"), 1.0)()


def test_the_time_in_a_queue_does_not_count_as_the_body_s(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        assert process(timeout=1)(on(threads)(time.sleep)).map([0.3] * 4)() == [None] * 4


def test_a_run_past_its_timeout_cancels_what_is_away() -> None:
    hand = ByHand()
    with pytest.raises(RunTimeoutException, match="double\\(1\\), double\\(2\\) ran"):
        entangle.gather(on(hand)(double)(1), on(hand)(double)(2)).run(timeout=1)
    assert [future.cancelled() for future in hand.left] == [True, True]


def test_a_run_past_its_timeout_whose_thread_waits_for_a_body_elsewhere() -> None:
    class Waits(Layer):
        def run(self, inner: Any, args: Any, kwargs: Any) -> Any:
            return inner(*args, **kwargs)

    hand = ByHand()
    with pytest.raises(RunTimeoutException, match="double\\(1\\) ran"):
        task(on(hand)(double), Waits())(1).run(timeout=0.3)
    assert [future.cancelled() for future in hand.left] == [True]


def test_a_run_that_is_cancelled_cancels_what_is_away() -> None:
    hand = ByHand()

    async def begin_and_cancel() -> None:
        async def wait() -> None:
            await on(hand)(double)(1)

        waiting = asyncio.create_task(wait())
        while not hand.waiting:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(begin_and_cancel())
    assert hand.left[0].cancelled()


def test_attempts(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        tries: list[int] = []

        def third(x: int) -> int:
            tries.append(x)
            if len(tries) < 3:
                raise OSError(f"attempt {len(tries)}")
            return x

        assert process(retry=2, sleep=0.01)(on(threads)(third))(5)() == 5
        assert tries == [5, 5, 5]
        with pytest.raises(ProcessRetryException, match="failed 2 times; the last time with ZeroDivisionError") as raised:
            process(retry=1)(on(threads)(lambda: 1 / 0))()()
        assert isinstance(raised.value.__cause__, ZeroDivisionError)
        with pytest.raises(ZeroDivisionError):
            process(retry=3, on=OSError)(on(threads)(lambda: 1 / 0))()()


def test_limits_are_held_while_a_call_is_away(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with ThreadPoolExecutor(8) as threads:
        there, here = (limit("away", at_once=2)(where(bodies.spanned)) for where in (on(threads), process))
        entangle.gather(*(there(log, 0.1, x) for x in range(6)), *(here(log, 0.1, x) for x in range(3)))()
        assert most_at_once(log) == 2
        log = str(tmp_path / "below")
        on(threads)(limit("below", at_once=1)(bodies.spanned)).starmap([(log, 0.05, x) for x in range(4)])()
        assert most_at_once(log) == 1
        log = str(tmp_path / "cpus")
        scheduler(cpus=1)(on(threads)(bodies.spanned)).starmap([(log, 0.05, x) for x in range(3)])()
        assert most_at_once(log) == 1
        began = time.monotonic()
        assert limit("tokens", per_second=20)(on(threads)(double)).map(range(5))() == [0, 2, 4, 6, 8]
        assert time.monotonic() - began >= 0.19


def test_a_pause_between_attempts_holds_no_place(tmp_path: Path) -> None:
    tries: list[str] = []
    with ThreadPoolExecutor(2) as threads:

        @process(retry=1, sleep=0.3)
        @limit("paused", at_once=1)
        @on(threads)
        def tried(name: str) -> str:
            tries.append(name)
            if name == "first" and len(tries) == 1:
                raise OSError
            return name

        assert entangle.gather(tried("first"), tried("second"))() == ["first", "second"]
    assert tries == ["first", "second", "first"]


def test_arguments_of_all_that_is_ready_are_not_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(away_worker, "HELD", 3 << 20)
    hand, most, over = ByHand(), 0, threading.Event()

    def run_some() -> None:
        nonlocal most
        while not over.wait(0.002):
            most = max(most, len(hand.waiting))
            hand.run_all()

    there = on(hand)(bodies.length_and)
    large, small, huge = (thread(bytes)(size) for size in (1 << 20, 1, 5 << 20))
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run_some)
        try:
            held = limit("held", at_once=2)(there)
            retried = process(retry=1)(on(hand)(bodies.length_and))
            assert entangle.gather(
                *(there(large, x) for x in range(30)), there(huge, 0), *(held(large, x) for x in range(3)), retried(huge, 1)
            )() == [*((1 << 20, x) for x in range(30)), (5 << 20, 0), *((1 << 20, x) for x in range(3)), (5 << 20, 1)]
        finally:
            over.set()
            running.result()
    assert most <= 3
    with when(lambda: len(hand.waiting) == 200, hand.run_all):  # small arguments go all at once
        assert entangle.gather(*(there(small, x) for x in range(200)))() == [(1, x) for x in range(200)]


def test_a_place_that_lets_arguments_go_is_given_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(away_worker, "HELD", 1 << 20)

    class Sends:
        """Sends arguments on at once, so they are not held here. Answers when it has 20 calls."""

        calls: list[AwayCall] = []  # noqa: RUF012

        def begin(self, calls: Any) -> None:
            for call in calls:
                call.handle = len(call.take()[0][0])
                call.let_go()
            self.calls += calls
            if len(self.calls) == 20:
                for call in self.calls:
                    call.done(call.handle)

        def has_begun(self, call: Any) -> bool:
            return True

        def cancel(self, call: Any) -> bool:
            return True

    sends = Sends()
    large = thread(bytes)(1 << 20)
    assert entangle.gather(*(task(len, On(sends))(large) for _ in range(20)))() == [1 << 20] * 20  # type: ignore[arg-type]


class Full(ThreadPoolExecutor):
    """An executor with a full queue: `submit` blocks until there is room."""

    def __init__(self, room: threading.Event) -> None:
        super().__init__(1)
        self.room, self.asked, self.taken = room, threading.Event(), 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.asked.set()
        assert self.room.wait(60)
        self.taken += 1
        return super().submit(fn, *args, **kwargs)


def test_a_full_queue_and_a_slow_function_hold_up_nobody_else(tmp_path: Path) -> None:
    room, hand = threading.Event(), ByHand()

    def slow() -> Executor:
        assert room.wait(60)
        return ThreadPoolExecutor(1)

    def others_first() -> None:
        wait_until(lambda: len(hand.waiting) == 3)
        hand.run_all()

    def goes_on(*values: int) -> list[int]:
        room.set()
        return list(values)

    with Full(room) as full:
        before = on(full)(double)
        with when(full.asked.is_set, others_first):
            # There is room only once the other calls have returned.
            ended = thread(goes_on)(*(on(hand)(double)(x) for x in range(3)))
            assert entangle.gather(before(1), on(slow)(double)(2), before(3), ended)() == [2, 4, 6, [0, 2, 4]]
        room.clear()
        full.asked.clear()
        with pytest.raises(RunTimeoutException):
            entangle.gather(before(1), before(2), on(slow)(double)(3)).run(timeout=0.3)
        taken = full.taken
        room.set()
        assert before(5)() == 10
        # The two calls blocked in `submit` were taken and cancelled; those behind them never were.
        assert full.taken == taken + 2


def test_a_function_that_has_made_an_executor_too_late(tmp_path: Path) -> None:
    gate, made_late = threading.Event(), []

    def slow() -> Executor:
        assert gate.wait(60)
        made_late.append(ThreadPoolExecutor(1))
        return made_late[0]

    with pytest.raises(RunTimeoutException):
        on(slow)(double)(1).run(timeout=0.2)
    gate.set()
    wait_until(lambda: bool(made_late) and made_late[0]._shutdown)


def test_a_killed_process_of_an_executor(tmp_path: Path) -> None:
    path = str(tmp_path / "killed")
    with Warm(1) as broken, pytest.raises(ProcessTerminatedException, match="the Executor of task 'kill_once' has lost the call: Broken"):
        on(broken)(kill_once)(path)()
    os.unlink(path)
    # If a function makes the executor, the next attempt gets a new one.
    assert process(retry=1)(on(made)(kill_once))(path)() == "survived"


def test_an_executor_that_is_made_lives_as_long_as_its_runs(pool: Warm) -> None:
    there = on(made)(bodies.pid)
    first, other = entangle.gather(there(), on(made)(bodies.pid)())()
    wait_until(lambda: not {pid for pid in (first, other) if os.path.exists(f"/proc/{pid}")} or first not in pool.pids, 10, "its end")
    with entangle.session():
        pids = {there()() for _ in range(4)}
        assert len(pids) <= 2


def test_an_executor_that_is_made_ends_with_a_run_that_is_cut_off(tmp_path: Path) -> None:
    path = str(tmp_path / "pids")
    with pytest.raises(ValueError, match="no such thing"):
        entangle.gather(on(made)(bodies.linger)(path), process(bodies.fail_once_there)(path))()
    (pid,) = pids_in(path)
    wait_until(lambda: not alive(pid))


def test_what_cannot_travel_is_named(pool: Warm) -> None:
    with pytest.raises(UnpicklableError, match="argument 1 of task 'same'"):
        on(pool)(bodies.same)(threading.Lock())()
    with pytest.raises(UnpicklableError, match="the value of task 'a_lock'"):
        on(pool)(bodies.a_lock)()()


def test_an_executor_that_is_shut_down() -> None:
    with ThreadPoolExecutor(1) as threads:
        there = on(threads)(double)
    with pytest.raises(EntangleError, match="its ThreadPoolExecutor is shut down"):
        there(1)()


def test_an_executor_in_another_process(pool: Warm) -> None:
    there = on(pool)(double)
    with pytest.raises(EntangleError, match="the Executor that @on was given lives in the process that made it"):
        process(lambda: there(1)())()()
    elsewhere = on(made)(double)
    assert process(lambda: elsewhere(1)())()() == 2


def test_layers_below_run_there_and_layers_of_the_user_s_wait_here(pool: Warm) -> None:
    with pytest.raises(ProcessRetryException):
        on(pool)(process(retry=1)(bodies.fail))("x")()

    class Loud(Layer):
        def run(self, inner: Any, args: Any, kwargs: Any) -> Any:
            return inner(*args, **kwargs), threading.current_thread().name

    value, name = task(on(pool)(double), Loud())(4)()
    assert value == 8
    assert name == "MainThread"  # this thread has nothing else to do
    assert process(bodies.same)(task(on(pool)(double), Loud())(4))()[0] == 8


def test_records_know_the_executor_and_the_time_in_its_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    with ThreadPoolExecutor(1) as threads:
        entangle.gather(on(threads)(time.sleep).map([0.2, 0.2]), on(threads)(bodies.fail)(), return_exceptions=True)()
    nodes = [node for node in records.run("last").nodes if node.task.name in ("sleep", "fail")]
    assert [node.place for node in nodes] == ["ThreadPoolExecutor"] * 3
    assert max(node.times.queued for node in nodes) > 0.15


def test_in_dataflows_and_streams(pool: Warm) -> None:
    there = on(pool)(double)
    assert list(there.stream(range(20), inflight=4)) == [2 * x for x in range(20)]
    flow = dataflow(there)(dataflow(process(bodies.inc))())
    assert flow(3) == (7,)


def test_inline(pool: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "on", True)
    assert on(pool)(bodies.pid)()() == os.getpid()


def test_what_is_no_executor_is_refused_at_decoration(pool: Warm) -> None:
    for wrong, told in (
        (3, "3 is no executor"),
        (None, "None is no executor"),
        (double, "double takes arguments.*write @on\\(executor\\) above double"),
        (process(double), "@on needs an executor"),
        (type("Client", (), {"get_executor": lambda self: None})(), "give its executor"),
    ):
        with pytest.raises(OptionError, match=told):
            on(wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="@process\\(fresh=True\\) above @on"):
        process(fresh=True)(on(pool)(double))
    with pytest.raises(OptionError, match="@thread\\(shared_memory=True\\) above @on"):
        thread(shared_memory=True)(on(pool)(lambda smm, sm: 1))
    with pytest.raises(OptionError, match="put @scheduler\\(gpus=1\\) below @on"):
        scheduler(gpus=1)(on(pool)(double))
    with pytest.raises(OptionError, match="timout"):
        on(pool, timout=3)
    with pytest.raises(EntangleError, match="makes no executor: it returned 3"):
        on(lambda: 3)(double)(1)()  # type: ignore[arg-type, return-value]


class Gives(Executor):
    """An executor whose `submit` returns the given value."""

    def __init__(self, given: Any) -> None:
        self.given = given

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self.given


def test_an_executor_that_is_none_is_named_and_the_next_call_gets_its_own_error() -> None:
    wrong = on(Gives(None))(bodies.one)
    for _ in range(2):
        with pytest.raises(EntangleError, match=r"the Gives of task 'one' gave None, and no future; .* add_done_callback and result\n"):
            wrong()()
    ended: Future[Any] = Future()
    ended.set_result("a junk value")
    with pytest.raises(EntangleError, match=r"the Gives of task 'one' answered 'a junk value', which is no outcome; .* function returns\n"):
        on(Gives(ended))(bodies.one)()()


def test_an_executor_that_refuses_a_call() -> None:
    class Refuses(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            raise ZeroDivisionError("no room")

    with pytest.raises(ProcessTerminatedException, match="the Refuses of task 'one' has not taken the call: ZeroDivisionError: no room"):
        on(Refuses())(bodies.one)()()
