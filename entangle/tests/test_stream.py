"""Streams: many values through one flow, in order, with back-pressure, for all kinds of sources,
consumers and nodes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
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
    UnpicklableError,
)
from entangle.sources import every, merge

from .callers import ROOT
from .killing import begun_workers
from .ways import needed


@dataflow
@thread
def near(x: Any) -> Any:
    return x


@dataflow
@process
def add_one(x: Any) -> Any:
    return x + 1


@dataflow
@process
def double(x: Any) -> Any:
    return x * 2


@dataflow
@process
def total(x: Any) -> Any:
    return sum(x)


def endless() -> Iterator[int]:
    n = 0
    while True:
        yield n
        n += 1


def notes_of(error: BaseException) -> list[str]:
    """The notes of an error."""
    return list(getattr(error, "__notes__", []))


def noted(path: str | Path) -> list[str]:
    """The words that bodies wrote to a file."""
    return Path(path).read_text().split() if os.path.exists(path) else []


@pytest.mark.parametrize("many", [0, 1, 3, 1000])
@pytest.mark.parametrize("flow", [near(near()), add_one(double()), near(add_one(double())), add_one(near(double()), double())], ids=str)
def test_every_value_once_and_in_order(flow: Any, many: int) -> None:
    assert list(flow.stream(range(many))) == [flow_of(flow, n) for n in range(many)]


def flow_of(flow: Any, n: int) -> tuple[Any, ...]:
    """The values that a flow returns for a number, computed here."""
    value = {"near": n, "add_one": n + 1 if not isinstance(n, tuple) else n, "double": n * 2}[flow.__name__]
    return tuple(leaf for child in flow.children for leaf in flow_of(child, value)) if flow.children else (value,)


@pytest.mark.parametrize("start", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.drill)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_way_to_start(start: str) -> None:
    assert list(add_one(double()).stream(range(50), start=start)) == [((n + 1) * 2,) for n in range(50)]


def test_a_flow_can_be_streamed_again_and_twice_at_once() -> None:
    flow = add_one(double())
    for _ in range(2):
        pairs = zip(flow.stream(range(100)), flow.stream(range(100, 200)), strict=True)
        assert [(a, b) for ((a,), (b,)) in pairs] == [((n + 1) * 2, (n + 101) * 2) for n in range(100)]


def test_as_they_are_done() -> None:
    @dataflow
    @process
    def naps(x: float) -> float:
        time.sleep(x)
        return x

    assert [y for (y,) in naps().stream([0.6, 0.0, 0.0], ordered=False)] == [0.0, 0.0, 0.6]
    assert [y for (y,) in naps().stream([0.3, 0.0, 0.0])] == [0.3, 0.0, 0.0]


def test_lambdas_and_callbacks() -> None:
    told: list[Any] = []

    def callback(func: Any, value: Any) -> None:
        told.append((func.__name__, value))

    told_of = dataflow(callback=callback)(double)
    flow = add_one(lambda x: told_of() if x % 2 else None)
    assert list(flow.stream(range(6))) == [(), (2,), (), (6,), (), (10,)]
    assert sorted(told) == [("double", 2), ("double", 6), ("double", 10)]
    told.clear()
    assert list(told_of(near()).stream(range(300))) == [(2 * n,) for n in range(300)]
    assert sorted(told) == [("double", 2 * n) for n in range(300)]


def test_many_that_wait_at_a_time() -> None:
    @dataflow
    @process
    def naps(x: int) -> tuple[int, float]:
        begin = time.monotonic()
        time.sleep(0.5)
        return x, begin

    got = [y for (y,) in naps().stream(range(40), inflight=40)]
    assert [n for n, _ in got] == list(range(40))
    # If two CPUs ran one nap each, the 40 naps would begin over ten seconds.
    begins = [begin for _, begin in got]
    assert max(begins) - min(begins) < 5


def test_arrays_go_through_untouched() -> None:
    np = needed("numpy")

    @dataflow
    @process
    def scale(x: Any) -> Any:
        x *= 2
        return x

    arrays = [np.full(200_000, n) for n in range(12)]
    got = list(scale(scale()).stream(arrays, inflight=4))
    assert len(got) == 12
    for n, (array,) in enumerate(got):
        assert array.shape == (200_000,)
        assert (array == 4 * n).all()


# Back-pressure ------------------------------------------------------------------------------------


@pytest.mark.parametrize("inflight", [1, 7, 100])
@pytest.mark.parametrize("node", [near, add_one], ids=["thread", "process"])
def test_at_most_inflight_values_are_alive(node: Any, inflight: int) -> None:
    pulled = 0

    def source() -> Iterator[int]:
        nonlocal pulled
        for n in range(600):
            pulled += 1
            yield n

    most = 0
    for n, _ in enumerate(node(node()).stream(source(), inflight=inflight)):
        most = max(most, pulled - n)
    assert most <= inflight


def test_a_slow_sink_holds_an_endless_source() -> None:
    alive = 0
    for n, _ in enumerate(add_one(double()).stream(count_pulls(seen := [0]), inflight=32)):
        if n % 10 == 0:
            time.sleep(0.02)
        alive = max(alive, seen[0] - n)
        if n == 300:
            break
    assert alive <= 32


def count_pulls(seen: list[int]) -> Iterator[int]:
    for n in endless():
        seen[0] += 1
        yield n


def test_a_slow_source_does_not_hold_its_values_back() -> None:
    """Each value is delivered before the source makes the next one, however fast the nodes are."""
    came = threading.Event()

    def source() -> Iterator[int]:
        yield from range(300)  # a fast start, so that values travel in batches
        for n in range(300, 310):
            came.clear()
            yield n
            assert came.wait(20), "the value is held back until another comes"

    for (y,) in near(add_one()).stream(source()):
        if y > 300:
            came.set()


# The end ------------------------------------------------------------------------------------------


def gone(stream: Any) -> bool:
    """Whether the workers and threads of a stream have ended."""
    return not any(thread.is_alive() for thread in stream._threads) and stream._pump.run.supervisor is None


def test_a_consumer_that_stops_stops_everything() -> None:
    for n, _ in enumerate(near(add_one(double())).stream(endless())):
        if n == 10:
            begin = time.monotonic()
            break
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("entangle-stream", "entangle-source"))]
    assert time.monotonic() - begin < 10  # the drill checks the limit of one second


def test_closing_twice_and_iterating_afterwards() -> None:
    with add_one().stream(endless()) as stream:
        assert next(stream) == (1,)
    stream.close()
    assert gone(stream)
    assert list(stream) == []
    never_begun = add_one().stream(endless())
    never_begun.close()
    assert list(never_begun) == []


def test_a_stream_that_was_never_begun_costs_nothing() -> None:
    asked = []

    def source() -> Iterator[int]:
        asked.append(True)
        yield 0

    add_one().stream(source())
    assert not asked


def test_a_generator_is_closed_with_its_stream() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from endless()
        finally:
            closed.set()

    with add_one().stream(source(), inflight=4) as stream:
        next(stream)
    assert closed.wait(20)


def test_an_error_of_the_source_comes_after_what_it_gave() -> None:
    def source() -> Iterator[int]:
        yield from range(20)
        raise LookupError("no more")

    stream = near(add_one()).stream(source())
    got = []
    with pytest.raises(LookupError, match="no more"):  # noqa: PT012 - it is the loop that raises, in its turn
        for (y,) in stream:
            got.append(y)
    assert got == list(range(1, 21))
    assert gone(stream)


def test_control_c_ends_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import itertools, time\n"
        "from entangle.dataflow import dataflow, process\n"
        "@dataflow\n@process\ndef node(x):\n    return x\n"
        "if __name__ == '__main__':\n"
        "    for n, y in enumerate(node(node()).stream(itertools.count())):\n"
        "        if n == 3:\n            print('begun', flush=True)\n"
    )
    runs = tmp_path / "runs"
    runs.mkdir()
    environment = {**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(runs)}
    done = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.stdout is not None
    assert done.stdout.readline() == "begun\n"
    done.send_signal(signal.SIGINT)
    _, err = done.communicate(timeout=30)
    assert "KeyboardInterrupt" in err
    assert list(runs.glob("entangle-*/*")) == []


def test_a_program_that_ends_with_an_open_stream(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import itertools\n"
        "from entangle.dataflow import dataflow, process\n"
        "@dataflow\n@process\ndef node(x):\n    return x\n"
        "if __name__ == '__main__':\n"
        "    stream = node(node()).stream(itertools.count())\n"
        "    print(next(stream))\n"
    )
    runs = tmp_path / "runs"
    runs.mkdir()
    environment = {**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(runs)}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, timeout=50)
    assert (done.stdout, done.stderr, done.returncode) == ("(0,)\n", "", 0)
    assert list(runs.glob("entangle-*/*")) == []


# Failures of one value ----------------------------------------------------------------------------


@dataflow
@process
def picky(x: int) -> int:
    if x % 10 == 3:
        raise ValueError(f"not {x}")
    return x


@pytest.mark.parametrize("flow", [near(picky(double())), picky(near())], ids=str)
def test_skipped(flow: Any, caplog: pytest.LogCaptureFixture) -> None:
    stream = flow.stream(range(100), on_error="skip")
    got = [y for (y,) in stream]
    factor = 2 if flow.__name__ == "near" else 1
    assert got == [n * factor for n in range(100) if n % 10 != 3]
    assert stream.skipped == 10
    assert sum("'picky' failed with ValueError" in line for line in caplog.messages) == 10


def test_told() -> None:
    failed = []
    flow = near(picky(double()), picky())
    got = list(flow.stream(range(20), on_error=lambda node, value, error: failed.append((node.__name__, value, str(error)))))
    assert got == [(n * 2, n) for n in range(20) if n % 10 != 3]
    assert failed == [("picky", 3, "not 3")] * 2 + [("picky", 13, "not 13")] * 2


def test_raised_in_its_turn() -> None:
    got = []
    stream = near(picky()).stream(range(100))
    with pytest.raises(ValueError, match="not 3") as caught:  # noqa: PT012 - as above
        for (y,) in stream:
            got.append(y)
    assert got == [0, 1, 2]
    assert any("near → picky" in note for note in notes_of(caught.value))
    assert gone(stream)


def test_an_exception_in_on_error_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def bad(*_: Any) -> None:
        raise RuntimeError("in on_error")

    assert len(list(picky().stream(range(10), on_error=bad))) == 9
    assert "in on_error" in caplog.text


@dataflow
@process
def lethal(x: tuple[str, int]) -> int:
    path, n = x
    with open(path, "a") as file:
        file.write(f"{n} ")
    if n % 50 == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def test_a_death_fails_the_value_that_ran_and_no_other_runs_twice(tmp_path: Path) -> None:
    """Even if values travel in batches."""
    path = str(tmp_path / "ran")
    failed: list[Any] = []
    flow = lethal(add_one())
    got = [y for (y,) in flow.stream([(path, n) for n in range(300)], on_error=lambda _, v, e: failed.append((v[1], type(e))))]
    assert got == [n + 1 for n in range(300) if n % 50 != 7]
    assert failed == [(n, ProcessTerminatedException) for n in range(300) if n % 50 == 7]
    assert sorted(map(int, noted(path))) == list(range(300))


def test_retry_tries_the_value_that_failed_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "ran")

    @dataflow
    @process(retry=2)
    def flaky(n: int) -> int:
        with open(path, "a") as file:
            file.write(f"{n} ")
        if n % 40 == 5 and noted(path).count(str(n)) < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if n % 40 == 6 and noted(path).count(str(n)) < 2:
            raise OSError(n)
        if n == 111:
            raise LookupError(n)
        return n

    failed: list[Any] = []
    got = [y for (y,) in flaky(add_one()).stream(range(200), on_error=lambda _, v, e: failed.append((v, type(e), type(e.__cause__))))]
    assert got == [n + 1 for n in range(200) if n != 111]
    assert failed == [(111, ProcessRetryException, LookupError)]
    ran = noted(path)
    again = [n for n in range(200) if n % 40 in (5, 6)]
    assert {n: ran.count(str(n)) for n in range(200)} == {n: 2 if n in again else 3 if n == 111 else 1 for n in range(200)}


class OneInAHundredError(Exception):
    """Raised for one value in a hundred."""


def test_exact_while_workers_are_killed() -> None:
    """A short version; the drill streams a hundred thousand values."""

    @dataflow
    @process(retry=50, on=ProcessTerminatedException)
    def parse(x: int) -> int:
        if x % 100 == 42:
            raise OneInAHundredError(x)
        return x + 1

    @dataflow
    @process(retry=50, on=ProcessTerminatedException)
    def score(x: int) -> int:
        time.sleep(0.0002)
        return x * 2

    failed: list[Any] = []
    stream = near(parse(score())).stream(range(3000), on_error=lambda _, v, e: failed.append((v, type(e))))
    got = []
    killed = 0
    for (y,) in stream:
        got.append(y)
        if len(got) % 150 == 0:  # counted and not timed, so that it is the same on every machine
            for pid in begun_workers(stream)[:1]:
                # It was killed already, which is not noticed yet.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
    assert got == [(n + 1) * 2 for n in range(3000) if n % 100 != 42]
    assert failed == [(n, OneInAHundredError) for n in range(42, 3000, 100)]
    assert killed > 5


def test_a_deadline_for_each_value() -> None:
    @dataflow
    @process(timeout=1)
    def naps(x: int) -> int:
        time.sleep(60 if x == 30 else 0.001)
        return x

    failed: list[Any] = []
    got = [y for (y,) in naps().stream(range(60), on_error=lambda _, v, e: failed.append((v, type(e))))]
    assert got == [n for n in range(60) if n != 30]
    assert failed == [(30, ProcessTimeoutException)]


def test_what_cannot_travel_fails_alone() -> None:
    @dataflow
    @process
    def locks(x: Any) -> Any:
        return threading.Lock() if x % 10 == 4 else x

    failed: list[Any] = []
    got = [y for (y,) in locks(add_one()).stream(range(100), on_error=lambda _, v, e: failed.append((v, type(e))))]
    assert got == [n + 1 for n in range(100) if n % 10 != 4]
    assert failed == [(n, UnpicklableError) for n in range(4, 100, 10)]

    values = [1, threading.Lock(), 2]
    failed.clear()
    assert list(add_one().stream(values, on_error=lambda _, v, e: failed.append(type(e)))) == [(2,), (3,)]
    assert failed == [UnpicklableError]


# Windows ------------------------------------------------------------------------------------------


def test_a_window_of_so_many() -> None:
    assert list(add_one(window(total(), count=4)).stream(range(10))) == [(10,), (26,), (19,)]
    assert list(near(window(count=3)).stream(range(7))) == [([0, 1, 2],), ([3, 4, 5],), ([6],)]
    assert list(near(window(count=3)).stream([])) == []


def test_windows_beside_leaves_and_below_windows() -> None:
    assert sorted(near(add_one(), window(total(), count=2)).stream(range(4)), key=str) == [(1,), (1,), (2,), (3,), (4,), (5,)]
    flow = near(window(total(window(count=2)), count=2))
    assert list(flow.stream(range(10))) == [([1, 5],), ([9, 13],), ([17],)]


def test_a_window_leaves_out_what_failed() -> None:
    assert list(picky(window(count=3)).stream(range(7), on_error="skip")) == [([0, 1, 2],), ([4, 5, 6],)]


def test_a_window_of_seconds() -> None:
    """A window is delivered when its time is up, even if no further value comes."""
    come = threading.Event()

    def source() -> Iterator[int]:
        yield from (1, 2, 3)
        assert come.wait(20)
        yield 4

    got = []
    for (values,) in near(window(seconds=0.2)).stream(source()):
        got.append(values)
        if [value for values in got for value in values] == [1, 2, 3]:
            come.set()
    assert [value for values in got for value in values] == [1, 2, 3, 4]
    assert got[-1] == [4]


def test_a_window_for_one_value() -> None:
    assert near(window(total(), count=5))(3) == (3,)


# Asynchronous -------------------------------------------------------------------------------------


async def ticking(many: int) -> AsyncIterator[int]:
    for n in range(many):
        if n % 50 == 0:
            await asyncio.sleep(0)
        yield n


def test_async_for_over_anything() -> None:
    async def main() -> None:
        for source in (range(200), ticking(200)):
            assert [y async for (y,) in near(add_one()).stream(source)] == list(range(1, 201))

    asyncio.run(main())


def test_an_async_source_in_a_plain_for() -> None:
    assert [y for (y,) in add_one().stream(ticking(100))] == list(range(1, 101))


def test_async_ends() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise LookupError("async")

    async def forever() -> AsyncIterator[int]:
        n = 0
        while True:
            yield n
            n += 1

    async def main() -> None:
        with pytest.raises(LookupError):
            async for _ in add_one().stream(broken()):
                pass
        stream = add_one().stream(forever(), inflight=8)
        async for (y,) in stream:
            if y == 20:
                break
        await stream.aclose()
        assert gone(stream)

    asyncio.run(main())


def test_the_loop_goes_on_meanwhile() -> None:
    @dataflow
    @process
    def naps(x: int) -> int:
        time.sleep(0.2)
        return x

    async def main() -> int:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.005)
                turns += 1

        task = asyncio.create_task(turn())
        assert [y async for (y,) in naps().stream(range(3))] == [0, 1, 2]
        task.cancel()
        return turns

    assert asyncio.run(main()) > 5


# Bad input ----------------------------------------------------------------------------------------


def test_bad_input() -> None:
    anything: Any = add_one()
    with pytest.raises(ArgumentError, match="iterable"):
        anything.stream(3)
    wrong: list[Any] = [0, -1, 1.5, True]
    for inflight in wrong:
        with pytest.raises(OptionError, match="inflight"):
            add_one().stream([], inflight=inflight)
    with pytest.raises(OptionError, match="on_error"):
        anything.stream([], on_error="ignore")
    with pytest.raises(OptionError, match="is no way to start workers"):
        add_one().stream([], start="thread")


def test_a_source_whose_own_wait_was_cancelled_has_failed() -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError("of the source's own")

    flow: Any = dataflow(thread(abs))()
    stream = flow.stream(source())
    assert next(stream) == (1,)
    with pytest.raises(asyncio.CancelledError):
        next(stream)

    async def consume() -> None:
        values = flow.stream(source())
        assert await anext(values) == (1,)
        with pytest.raises(asyncio.CancelledError):
            await anext(values)

    asyncio.run(consume())


def test_several_tasks_of_a_loop_share_a_stream() -> None:
    async def consume() -> list[Any]:
        flow: Any = dataflow(thread(abs))()
        stream = flow.stream(range(200))
        found: list[Any] = []

        async def some() -> None:
            async for value in stream:
                found.append(value)
                await asyncio.sleep(0)

        await asyncio.gather(some(), some(), some())
        return found

    assert sorted(asyncio.run(consume())) == [(n,) for n in range(200)]


def test_streams_of_one_source_end_each_for_itself() -> None:
    ticks = every(0.01)
    flow: Any = dataflow(thread(abs))()
    first, second, third = flow.stream(ticks), flow.stream(ticks), flow.stream(merge(ticks))
    for stream in (first, second, third):
        next(stream)
    first.close()
    assert len(list(itertools.islice(second, 5))) == 5
    third.close()
    assert len(list(itertools.islice(second, 5))) == 5
    ticks.stop()
    assert len(list(second)) < 1000
