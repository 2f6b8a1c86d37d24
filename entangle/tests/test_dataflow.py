"""Dataflows: nodes, the arguments that connect them, lambdas that choose, callbacks, and
failures."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entangle.dataflow import dataflow, process, thread, window
from entangle.errors import (
    ArgumentError,
    OptionError,
    ProcessRetryException,
    ProcessTerminatedException,
    ProcessTimeoutException,
    ThreadTerminatedException,
    ThreadTimeoutException,
    UnpicklableError,
)
from entangle.process import process as plain_process
from entangle.scheduler import scheduler
from entangle.thread import thread as plain_thread

from . import bodies
from .evidence import text_of

EXECUTORS = [thread, process]


class Told:
    """A callback that records its calls, in order, and the processes that made them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.pids: set[int] = set()
        self.lock = threading.Lock()  # a lock cannot be pickled, so this can never reach a worker

    def __call__(self, func: Any, result: Any) -> None:
        self.lines.append(f"{func.__name__} {result}")
        self.pids.add(os.getpid())


def nodes(executor: Any, callback: Callable[[Any, Any], object] | None = None) -> tuple[Any, ...]:
    """The nodes emit, printx, printy, printz and echo, run by threads or processes."""

    @dataflow(callback=callback)
    @executor
    def printx(x: str) -> str:
        return f"X: {x}"

    @dataflow(callback=callback)
    @executor
    def printy(y: str) -> str:
        return f"Y: {y}"

    @dataflow(callback=callback)
    @executor
    def printz(z: str) -> str:
        return f"Z: {z}"

    @dataflow(callback=callback)
    @executor
    def echo(e: str) -> str:
        return f"Echo! {e}"

    @dataflow(executor="thread", callback=callback, maxworkers=3)
    def emit(a: str, **kwargs: Any) -> str:
        return a + "!"

    return emit, printx, printy, printz, echo


@dataflow
@process
def double(x: Any) -> Any:
    return x * 2


@dataflow
@process
def add_one(x: Any) -> Any:
    return x + 1


@dataflow
def where(x: Any) -> Any:
    return os.getpid(), threading.current_thread().name


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_value_flows_to_the_leaves(executor: Any) -> None:
    emit, printx, printy, printz, echo = nodes(executor)
    flow = emit(printx(printz(echo())), printy(printz()), printy())
    assert flow("emit") == ("Echo! Z: X: emit!", "Z: Y: emit!", "Y: emit!")
    assert flow("HELLO") == ("Echo! Z: X: HELLO!", "Z: Y: HELLO!", "Y: HELLO!")


def test_building_runs_nothing() -> None:
    told = Told()
    emit, printx, *_ = nodes(thread, told)
    emit(printx())
    assert told.lines == []


@pytest.mark.parametrize("executor", EXECUTORS)
def test_callbacks_come_where_the_flow_was_called_and_before_what_follows(executor: Any) -> None:
    told = Told()
    emit, printx, printy, printz, echo = nodes(executor, told)
    emit(printx(printz(echo())), printy())("emit")
    assert sorted(told.lines) == ["echo Echo! Z: X: emit!", "emit emit!", "printx X: emit!", "printy Y: emit!", "printz Z: X: emit!"]
    order = [line.split()[0] for line in told.lines if not line.startswith("printy")]
    assert order == ["emit", "printx", "printz", "echo"]
    assert told.pids == {os.getpid()}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_lambda_gets_what_was_pushed_into_its_node(executor: Any) -> None:
    told = Told()
    emit, printx, printy, printz, _ = nodes(executor, told)
    flow = emit(lambda x: printx(printz()) if x == "emit" else printy())
    assert flow("emit") == ("Z: X: emit",)
    assert told.lines == ["emit emit!", "printx X: emit", "printz Z: X: emit"]
    told.lines.clear()
    assert flow("HELLO") == ("Y: HELLO",)
    assert told.lines == ["emit HELLO!", "printy Y: HELLO"]


def test_what_is_printed_comes_in_the_order_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    def triggered(func: Any, result: Any) -> None:
        print(f"triggered: {func.__name__} {result}")

    @dataflow(callback=triggered)
    @thread
    def printx(x: str) -> str:
        print("printx:", x)
        return f"X: {x}"

    @dataflow(callback=triggered)
    @thread
    def printz(z: str) -> str:
        print("printz:", z)
        return f"Z: {z}"

    @dataflow(executor="thread")
    def emit(a: str) -> str:
        return a + "!"

    emit(lambda x: printx(printz()))("emit")
    assert capsys.readouterr().out.splitlines() == [
        "printx: emit",
        "triggered: printx X: emit",
        "printz: X: emit",
        "triggered: printz Z: X: emit",
    ]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_lambda_may_give_several_or_none_or_another(executor: Any) -> None:
    emit, printx, printy, printz, echo = nodes(executor)
    assert emit(lambda x: [printx(), printy(lambda y: [printz(), echo()]), None])("emit") == ("X: emit", "Z: emit", "Echo! emit")
    assert emit(lambda x: None)("emit") == ()
    assert emit(printx(), lambda x: None, printy())("emit") == ("X: emit!", "Y: emit!")
    assert emit(lambda x: lambda y: printz())("emit") == ("Z: emit",)
    assert emit(printx(lambda x: printy()))("emit") == ("Y: emit!",)  # printy gets the input of printx
    assert emit([printx(), [printy()]])("emit") == ("X: emit!", "Y: emit!")


def test_a_node_under_two_parents_gets_both_values_one_after_the_other() -> None:
    running, most, seen = 0, 0, []
    lock = threading.Lock()

    @dataflow
    def shared(x: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
            seen.append(x)
        return x.lower()

    emit, printx, printy, *_ = nodes(thread)
    both = shared()
    assert emit(printx(both), printy(both), both)("a") == ("x: a!", "y: a!", "a!")
    assert most == 1
    assert sorted(seen) == ["X: a!", "Y: a!", "a!"]


def test_very_many_shared_nodes_and_bounds() -> None:
    shared = [where() for _ in range(100)]
    assert len(add_one(double(*shared), double(*shared))(1)) == 200
    bounded = [dataflow(maxworkers=2)(lambda x: x)() for _ in range(70)]
    with pytest.raises(OptionError, match="maxworkers is given to more than"):
        add_one(*bounded)(1)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_siblings_run_at_the_same_time(kind: Any, tmp_path: Path) -> None:
    @dataflow(executor=kind)
    def meets(path: str) -> int:
        return bodies.meet(path, 20)

    @dataflow
    def root(path: str) -> str:
        return path

    pids = root(*[meets() for _ in range(20)])(str(tmp_path / "log"))
    assert len(set(pids)) == (20 if kind == "process" else 1)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_maxworkers_bounds_what_runs_at_once(kind: Any) -> None:
    @dataflow(executor=kind)
    def slow(x: float) -> tuple[float, float]:
        begin = time.monotonic()
        time.sleep(x)
        return begin, time.monotonic()

    @dataflow(maxworkers=3)
    def root(x: float) -> float:
        return x

    spans = root(*[slow() for _ in range(12)])(0.02)
    events = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    running = most = 0
    for _, step in events:
        running += step
        most = max(most, running)
    assert 1 <= most <= 3


def test_maxworkers_of_an_inner_node_bounds_what_is_built_on_it() -> None:
    running: dict[str, int] = {"inner": 0, "most": 0}
    lock = threading.Lock()

    @dataflow
    def leaf(x: Any) -> Any:
        with lock:
            running["inner"] += 1
            running["most"] = max(running["most"], running["inner"])
        time.sleep(0.01)
        with lock:
            running["inner"] -= 1
        return x

    @dataflow(maxworkers=1)
    def inner(x: Any) -> Any:
        return x

    @dataflow(maxworkers=8)
    def root(x: Any) -> Any:
        return x

    assert root(inner(*[leaf() for _ in range(6)]), add_one())(1) == (1,) * 6 + (2,)
    assert running["most"] == 1


def test_threads_and_processes_in_one_graph() -> None:
    @dataflow
    @process
    def far(x: Any) -> Any:
        return os.getpid()

    @dataflow
    @thread
    def near(x: Any) -> Any:
        return x, os.getpid()

    @dataflow
    def root(x: Any) -> Any:
        return x

    (away, here), there = root(far(near()), far())(1)
    assert here == os.getpid()
    assert away != here != there


def test_the_executor_is_thread_unless_something_says_otherwise() -> None:
    ((pid, name),) = where()(1)
    assert pid == os.getpid()
    assert name != "MainThread"
    ((pid, _),) = dataflow(executor="process")(where.function)()(1)
    assert pid != os.getpid()


@pytest.mark.parametrize("way", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.drill)])
def test_every_way_to_start(way: str) -> None:
    assert double(add_one(), double())(5, start=way) == (11, 20)


def test_a_flow_inside_of_a_task() -> None:
    @plain_process
    def outer(x: int) -> Any:
        return double(add_one(double()))(x)

    assert outer(3)() == (14,)


def test_a_flow_inside_of_a_node() -> None:
    @dataflow
    @process
    def outer(x: int) -> Any:
        return double(add_one())(x)

    assert outer(double())(3) == ((7, 7),)


def test_a_scheduler_above_and_below() -> None:
    @scheduler(cpus=1)
    @dataflow
    @process
    def above(x: Any) -> Any:
        return len(os.sched_getaffinity(0))

    @dataflow
    @scheduler(cpus=1)
    @process
    def below(x: Any) -> Any:
        return x, len(os.sched_getaffinity(0))

    assert above(below())(0) == ((1, 1),)


def test_methods_and_callable_objects() -> None:
    class Shop:
        def __init__(self, rate: int) -> None:
            self.rate = rate

        @dataflow
        def price(self, x: int) -> int:
            return x * self.rate

    assert Shop(3).price(double())(2) == (12,)


def test_values_that_are_falsy_or_large() -> None:
    values: list[Any] = [None, 0, "", [], False]
    for value in values:
        assert where_it_was(same())(value) == (value,)
    big = bytes(10_000_000)
    assert where_it_was(same())(big) == (big,)


@dataflow
@process
def same(x: Any) -> Any:
    return x


@dataflow
@process
def where_it_was(x: Any) -> Any:
    return x


def test_async_functions() -> None:
    @dataflow
    async def slowly(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    assert slowly(slowly())(1) == (3,)


def test_a_deep_chain_and_a_wide_fan() -> None:
    flow = add_one()
    for _ in range(800):
        flow = add_one(flow)
    assert flow(0) == (801,)
    assert add_one(*[double() for _ in range(500)])(1) == (4,) * 500


def test_futures_and_await() -> None:
    flow = double(add_one())
    done: list[Any] = []
    future = flow.future(4, callback=lambda f: done.append(f.result()))
    assert future.result() == (9,)
    assert future.entangle() == (9,)
    assert done == [(9,)]

    async def main() -> Any:
        return await asyncio.gather(*(flow.push(n) for n in range(3)))

    assert asyncio.run(main()) == [(1,), (3,), (5,)]


def test_cancelling_who_waits_stops_what_runs() -> None:
    @dataflow
    @process
    def sleeps(x: float) -> float:
        time.sleep(x)
        return x

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(sleeps().push(60), 0.5)

    begin = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - begin < 30


def test_several_at_once() -> None:
    flow = double(add_one(), lambda x: add_one())
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(flow, range(4))) == [(2 * n + 1, n + 1) for n in range(4)]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_callback_may_push_into_a_flow_that_has_one(executor: Any) -> None:
    heard: list[Any] = []
    inner = dataflow(callback=lambda _, value: heard.append(("inner", value)))(executor(bodies.same))()
    outer = dataflow(callback=lambda _, value: heard.append(("outer", value, inner(value + 1))))(executor(bodies.same))()
    assert outer(1) == (1,)
    assert heard == [("inner", 2), ("outer", 1, (2,))]

    def again(_: Any, value: int) -> None:
        heard.append(value)
        if value < 13:
            flow(value + 1)

    flow = dataflow(callback=again)(executor(bodies.same))()
    assert flow(11) == (11,)
    assert heard[2:] == [11, 12, 13]


def test_a_lambda_or_a_callback_that_exits_is_one_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    def choose(x: int) -> Any:
        if x == 1:
            sys.exit(3)
        return leaf

    def told(_: Any, x: int) -> None:
        sys.exit(4)

    leaf = dataflow(thread(bodies.same))()
    flow = dataflow(callback=told)(thread(bodies.same))(choose)
    assert list(flow.stream(range(3), on_error="skip")) == [(0,), (2,)]
    with pytest.raises(ThreadTerminatedException, match=r"'choose' ended by raising SystemExit\(3\)"):
        flow(1)
    assert "the callback of 'same' has raised" in caplog.text


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_attempt_gets_the_value_that_was_pushed(executor: Any) -> None:
    @dataflow
    @executor(retry=2)
    def grow(values: list[int]) -> list[int]:
        values.append(99)
        raise ValueError(f"with {len(values)}")

    with pytest.raises(ProcessRetryException) as caught:
        grow()([1])
    assert "with 2" in text_of(caught.value)
    assert "with 3" not in text_of(caught.value)


@pytest.mark.parametrize("ask", ["stream", "future", "push"])
def test_a_body_that_holds_the_only_cookie_waits_for_a_flow(ask: str) -> None:
    flow = dataflow(scheduler(cpus=1)(process(bodies.inc)))()

    @scheduler(cpus=1)
    @plain_process
    def body() -> list[Any]:
        if ask == "stream":
            return list(flow.stream([1, 2]))
        if ask == "future":
            return [flow.future(1).result(), flow.future(2).result()]

        async def wait() -> list[Any]:
            return [await flow.push(1), await flow.push(2)]

        return asyncio.run(wait())

    assert body()() == [(2,), (3,)]


def test_the_graph() -> None:
    emit, printx, printy, printz, echo = nodes(thread)
    flow = emit(printx(printz(echo())), printy(printz()), printy())
    assert flow.graph() == [{"emit": [{"printx": {"printz": {"echo": []}}}, {"printy": {"printz": []}}, {"printy": []}]}]
    assert emit(printx(), printy()).graph() == [{"emit": {"printx": [], "printy": []}}]
    assert emit(window(printx(), count=2), lambda x: None).graph() == [{"emit": {"window": {"printx": []}, "<lambda>": []}}]


# Failures -----------------------------------------------------------------------------------------


def notes_of(error: BaseException) -> list[str]:
    """The notes on an error."""
    return list(getattr(error, "__notes__", []))


def fails(executor: Any, error: Exception) -> Any:
    """A node that raises this error."""

    @dataflow
    @executor
    def fail(x: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_error_is_raised_when_the_other_branches_are_done(executor: Any) -> None:
    told = Told()
    emit, printx, printy, printz, _ = nodes(executor, told)
    flow = emit(fails(executor, LookupError("lost"))(printx()), printy(printz()))
    with pytest.raises(LookupError, match="lost") as caught:
        flow("a")
    assert "printz Z: Y: a!" in told.lines
    assert not any(line.startswith("printx") for line in told.lines)
    assert any("emit → fail" in note for note in notes_of(caught.value))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_error_behind_a_lambda(executor: Any) -> None:
    emit, printx, *_ = nodes(executor)
    with pytest.raises(LookupError):
        emit(lambda x: [printx(), fails(executor, LookupError())()])("a")

    def broken(x: Any) -> Any:
        raise ZeroDivisionError("in the lambda")

    with pytest.raises(ZeroDivisionError):
        emit(broken)("a")
    with pytest.raises(ArgumentError, match="write printx"):
        emit(lambda x: printx)("a")


def test_an_exception_in_a_callback_is_reported_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def bad(func: Any, result: Any) -> None:
        raise RuntimeError("callback")

    emit, printx, *_ = nodes(process, bad)
    assert emit(printx())("a") == ("X: a!",)
    assert "callback" in caplog.text


def test_a_killed_process_fails_its_branch_alone() -> None:
    @dataflow
    @process
    def dies(x: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    told = Told()
    emit, printx, *_ = nodes(process, told)
    with pytest.raises(ProcessTerminatedException, match="SIGKILL") as caught:
        emit(dies(), printx())("a")
    assert any("emit → dies" in note for note in notes_of(caught.value))
    assert "printx X: a!" in told.lines


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_deadline(executor: Any, tmp_path: Any) -> None:
    @dataflow
    @executor(timeout=0.2)
    def hangs(x: str) -> None:
        while not os.path.exists(x):
            time.sleep(0.01)

    told = Told()
    emit, printx, *_ = nodes(executor, told)
    kind = ProcessTimeoutException if executor is process else ThreadTimeoutException
    over = tmp_path / "over!"
    with pytest.raises(kind, match="hangs"):
        emit(hangs(), printx())(str(over)[:-1])
    over.touch()  # a thread cannot be killed, so it must be released
    assert any(line.startswith("printx") for line in told.lines)


@pytest.mark.parametrize("executor", [plain_thread, plain_process])
def test_retry(executor: Any, tmp_path: Any) -> None:
    @dataflow
    @executor(retry=2)
    def flaky(x: str) -> int:
        with open(x, "a") as file:
            file.write(".")
        with open(x) as file:
            count = len(file.read())
        if count < 3:
            raise OSError(f"attempt {count}")
        return count

    assert flaky()(str(tmp_path / "a")) == (3,)
    with pytest.raises(ProcessRetryException, match="3 times") as caught:
        fails(executor(retry=2), LookupError("x"))()(1)
    assert isinstance(caught.value.__cause__, LookupError)


def test_retry_after_a_kill(tmp_path: Any) -> None:
    @dataflow
    @process(retry=3)
    def dies_twice(x: str) -> int:
        with open(x, "a") as file:
            file.write(".")
        with open(x) as file:
            count = len(file.read())
        if count < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    assert dies_twice()(str(tmp_path / "n")) == (3,)


def test_without_retry_nothing_runs_twice(tmp_path: Any) -> None:
    @dataflow
    @process
    def dies(x: str) -> None:
        with open(x, "a") as file:
            file.write(".")
        os._exit(3)

    with pytest.raises(ProcessTerminatedException, match="exit code 3"):
        dies()(str(tmp_path / "n"))
    assert (tmp_path / "n").read_text() == "."


def test_what_cannot_travel_is_named() -> None:
    with pytest.raises(UnpicklableError, match="'double'"):
        double()(threading.Lock())

    @dataflow
    @process
    def gives_a_lock(x: Any) -> Any:
        return threading.Lock()

    told = Told()
    emit, printx, *_ = nodes(process, told)
    with pytest.raises(UnpicklableError, match="gives_a_lock"):
        emit(gives_a_lock(printx()), printx())("a")
    assert told.lines.count("printx X: a!") == 1


# Bad input ----------------------------------------------------------------------------------------


def test_bad_options() -> None:
    with pytest.raises(OptionError, match="did you mean 'maxworkers'"):
        dataflow(max_workers=3)  # type: ignore[call-overload]
    for options in ({"executor": "fibre"}, {"maxworkers": 0}, {"callback": 3}):
        with pytest.raises(OptionError, match=next(iter(options))):
            dataflow(**options)(lambda x: x)
    with pytest.raises(OptionError):
        dataflow(3)  # type: ignore[call-overload]
    for bad in ({}, {"count": 0}, {"seconds": 0}, {"count": 1, "seconds": 1}):
        with pytest.raises(OptionError):
            window(**bad)


def test_bad_nodes() -> None:
    @plain_process
    def call(x: int) -> int:
        return x

    with pytest.raises(ArgumentError, match=r"write double\(\)"):
        add_one(double)
    with pytest.raises(ArgumentError, match="@dataflow as well"):
        add_one(call(1))
    with pytest.raises(ArgumentError, match="takes nodes"):
        add_one(3)
    with pytest.raises(ArgumentError, match="by position"):
        add_one(x=double())
    with pytest.raises(ArgumentError, match="one value"):
        dataflow(lambda: 1)()  # type: ignore[misc, arg-type]
    with pytest.raises(ArgumentError, match="one value"):
        add_one()()
    with pytest.raises(AttributeError):
        add_one().task = double


def test_a_task_keeps_its_name() -> None:
    assert double.__name__ == "double"
    assert double(add_one()).__name__ == "double"
    assert repr(double(add_one())) == "<node double(add_one)>"
