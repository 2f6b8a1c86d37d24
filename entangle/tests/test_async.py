"""Calls in asyncio: awaited, cancelled, several at once, and in the middle of a running loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from pathlib import Path
from typing import Any

import pytest

from entangle.errors import EntangleError
from entangle.process import ProcessTimeoutException, process
from entangle.thread import thread
from entangle.workflow import workflow

from . import bodies
from .callers import gone
from .evidence import alive, note, notes, notes_of, pids_in

one = process(bodies.one)
num = process(bodies.num)
add = process(bodies.add)
gather = process(bodies.gather)


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


async def until(condition: Any) -> None:
    """Wait in the event loop until the condition holds."""
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited in vain")


def test_await_gives_the_value(start: str) -> None:
    async def main() -> Any:
        return await add(num(1), thread(bodies.num)(2))

    assert asyncio.run(main()) == 3


def test_awaiting_twice_runs_twice(log: str) -> None:
    async def main() -> list[int]:
        call = process(bodies.noted)(log, 3)
        return [await call, await call]

    assert asyncio.run(main()) == [3, 3]
    assert len(notes(log)) == 2


def test_the_loop_goes_on_meanwhile(log: str) -> None:
    """The body waits for something that only the event loop can do."""

    @process
    def wait(path: str) -> int:
        from .evidence import wait_until

        wait_until(lambda: notes(path))
        return 3

    async def main() -> int:
        async def open_gate() -> None:
            await asyncio.sleep(0.01)
            note(log, "open")

        value, _ = await asyncio.gather(wait(log), open_gate())
        return int(value)

    assert asyncio.run(main()) == 3


def test_several_calls_at_once(log: str) -> None:
    meet = process(bodies.meet)

    async def main() -> list[int]:
        return list(await asyncio.gather(*(meet(log, 3) for _ in range(3))))

    assert len(set(asyncio.run(main()))) == 3


def test_an_error_arrives(start: str) -> None:
    async def main() -> None:
        await add(1, process(bodies.fail)())

    with pytest.raises(ValueError, match="no such thing") as caught:
        asyncio.run(main())
    assert "add(1, fail()) → fail" in notes_of(caught.value)


def test_cancelling_stops_the_run(log: str, start: str) -> None:
    async def main() -> list[int]:
        waiting = asyncio.ensure_future(_awaited(gather(process(bodies.linger)(log), process(bodies.linger_with_child)(log))))
        await until(lambda: len(notes(log)) == 4)
        pids = pids_in(log)
        assert any(map(alive, pids))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return pids

    gone(asyncio.run(main()))


async def _awaited(call: Any) -> Any:
    return await call


def test_a_limit_of_asyncio(log: str) -> None:
    async def main() -> None:
        await asyncio.wait_for(process(bodies.linger)(log), 1)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(main())
    gone(pids_in(log))


def test_cancelling_before_anything_has_started(log: str) -> None:
    async def main() -> None:
        waiting = asyncio.ensure_future(_awaited(process(bodies.noted)(log, 1)))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert notes(log) == []


def test_one_is_cancelled_and_another_goes_on(log: str, tmp_path: Path) -> None:
    other, gate = str(tmp_path / "other"), str(tmp_path / "gate")

    @process
    def wait(path: str, gate: str) -> int:
        from .evidence import wait_until

        note(path, os.getpid())
        wait_until(lambda: os.path.exists(gate))
        return 3

    async def main() -> int:
        first = asyncio.ensure_future(_awaited(process(bodies.linger)(log)))
        second = asyncio.ensure_future(_awaited(wait(other, gate)))
        await until(lambda: notes(log) and notes(other))
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        Path(gate).touch()
        return int(await second)

    assert asyncio.run(main()) == 3


def test_a_deadline_while_awaiting(log: str) -> None:
    async def main() -> None:
        await process(timeout=0.6)(bodies.linger)(log)

    with pytest.raises(ProcessTimeoutException):
        asyncio.run(main())


def test_calling_instead_of_awaiting_works_too() -> None:
    """It blocks the event loop, as any function would, and returns the value."""

    async def main() -> int:
        return int(add(num(1), 2)()) + int(await add(num(1), 2))

    assert asyncio.run(main()) == 6


def test_async_bodies_while_a_loop_runs() -> None:
    @process
    async def in_process(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    @thread
    async def in_thread(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    async def main() -> int:
        return int(await in_process(in_thread(in_process(1)))) + int(in_thread(in_process(1))())

    assert asyncio.run(main()) == 7


async def _later(x: int, y: int = 1) -> int:
    await asyncio.sleep(0)
    return x + y


@functools.wraps(_later)
def _wrapped(*args: int) -> Any:
    return _later(*args)


class _Later:
    async def __call__(self, x: int) -> int:
        return await _later(x)

    async def method(self, x: int) -> int:
        return await _later(x)

    @classmethod
    async def of_class(cls, x: int) -> int:
        return await _later(x)


KINDS: dict[str, Any] = {
    "plain": _later,
    "partial": functools.partial(_later, y=1),
    "wrapper": _wrapped,
    "object": _Later(),
    "method": _Later().method,
    "classmethod": _Later.of_class,
    "lambda": lambda x: _later(x),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decorator", [process, thread, workflow, process(cache=True), process(retry=1)])
def test_whatever_gives_a_coroutine_is_awaited(decorator: Any, kind: str) -> None:
    made = decorator(KINDS[kind])
    assert made(1)() == 2
    assert add(made(1), made(made(2)))() == 6


def test_whatever_gives_a_coroutine_is_awaited_in_a_worker(start: str) -> None:
    assert gather(*(process(kind)(1) for kind in KINDS.values()))()[0] == (2,) * len(KINDS)


def test_a_workflow_that_is_async_gives_the_value_of_its_call() -> None:
    @workflow
    async def flow(n: int) -> Any:
        await asyncio.sleep(0)
        return add(num(n), process(functools.partial(_later, 1))())

    assert flow(1)() == 3


@pytest.mark.parametrize("proc", [False, True])
def test_what_a_running_loop_cannot_wait_for_says_what_to_write(proc: bool) -> None:
    @workflow
    async def flow(n: int) -> int:
        return n

    async def main() -> int:
        if proc:
            assert flow(1)(proc=True).result() == 1
        else:
            with pytest.raises(EntangleError, match=r"flow is an async function.*write `await call`"):
                flow(1)()
        return int(await flow(2))

    assert asyncio.run(main()) == 2


def test_a_workflow_awaited() -> None:
    @workflow
    def flow(n: int) -> Any:
        return add(num(n), 1)

    async def main() -> int:
        return int(await flow(one()))

    assert asyncio.run(main()) == 2


def test_wrapping_a_future() -> None:
    async def main() -> int:
        return int(await asyncio.wrap_future(add(num(1), 2)(proc=True)))

    assert asyncio.run(main()) == 3


def test_many_awaits_one_after_the_other() -> None:
    async def main() -> int:
        total = 0
        for n in range(30):
            total += await add(n, 1)
        return total

    assert asyncio.run(main()) == sum(range(31))


def test_an_interrupted_loop_stops_its_runs(tmp_path: Path) -> None:
    import signal

    from .callers import Caller
    from .evidence import wait_until

    log = tmp_path / "log"
    caller = Caller(
        tmp_path,
        """
        import asyncio, os, sys, time
        from entangle.process import process

        @process
        def sleep(path):
            with open(path, "a") as file:
                file.write(f"{os.getpid()}\\n")
            time.sleep(100)

        async def main():
            await sleep(sys.argv[1])

        asyncio.run(main())
        """,
    ).start(str(log))
    try:
        wait_until(lambda: pids_in(log))
        os.kill(caller.process.pid, signal.SIGINT)
        caller.finish()
        gone(pids_in(log))
    finally:
        caller.stop()
    assert caller.files() == []
