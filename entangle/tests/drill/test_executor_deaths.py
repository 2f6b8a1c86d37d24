"""Workers of executors are killed at random moments: no call hangs, is lost, or gets a wrong
value."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool

import pytest

from entangle.executor import Executor

from .. import executor_bodies as bodies

pytestmark = pytest.mark.drill


@pytest.mark.parametrize("seed", range(40))
def test_kills_at_any_moment(seed: int) -> None:
    chance = random.Random(seed)
    executor = Executor(chance.choice((1, 2, 3)), max_tasks_per_child=chance.choice((None, None, 5, 20)))

    def kill() -> None:
        time.sleep(chance.random() * 0.15)
        for pid in executor.pids[:1]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    killer = threading.Thread(target=kill)
    killer.start()
    futures: list[tuple[int, Future[int]]] = []
    try:
        for number in range(chance.choice((10, 100, 400))):
            which = chance.random()
            if which < 0.8 or not futures:
                futures.append((number, executor.submit(bodies.add, number)))
            elif which < 0.9:
                expected, before = futures[-1]
                futures.append((expected, executor.submit(bodies.add, before)))
            else:
                futures.append((number, executor.submit(bodies.length, bodies.Buffered.of(1, 70_000 + number), 70_000)))
    except BrokenProcessPool:
        pass
    end = chance.choice((executor.shutdown, executor.kill_workers, lambda: executor.shutdown(wait=False, cancel_futures=True)))
    end()
    assert not wait([future for _, future in futures], timeout=40).not_done
    for expected, future in futures:
        if not future.cancelled() and future.exception() is None:
            assert future.result() == expected
        elif not future.cancelled():
            assert isinstance(future.exception(), BrokenProcessPool)
    killer.join()
    executor.shutdown()
