"""No more bodies compute at once than there are CPUs, and bodies that wait cost no CPU, whichever
way they come to compute or to wait."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entangle._run import worker_process, worker_threads
from entangle.cookies import available_cpus, budget_of
from entangle.process import process
from entangle.thread import thread

ITEMS = 8
CPUS = budget_of(available_cpus())

#: When a body computed: its start and end, in seconds of the monotonic clock.
Span = tuple[float, float]


@process
def gather(*values: Any) -> tuple[Any, ...]:
    return values


def burn(clock: Callable[[], float] = time.process_time, seconds: float = 0.15) -> Span:
    """Compute for so much CPU time."""
    began, used = time.monotonic(), clock()
    while clock() - used < seconds:
        pass
    return began, time.monotonic()


def at_once(spans: Iterable[Span]) -> int:
    """The largest number of bodies that computed at once."""
    known = list(spans)
    assert len(known) >= ITEMS
    return max(sum(began <= moment < ended for began, ended in known) for moment, _ in known)


@process
def download(number: int) -> int:
    time.sleep(0.3)
    return number


@process
def crunch(number: int) -> Span:
    return burn()


@thread
def download_in_thread(number: int) -> int:
    time.sleep(0.3)
    return number


@thread
def crunch_in_thread(number: int) -> Span:
    return burn(time.thread_time)


@process(fresh=True)
def crunch_alone(number: int) -> Span:
    return burn()


@process
def crunch_nested(number: int) -> Span:
    return crunch(download(number))()


@process
def crunch_after_nested(number: int) -> Span:
    download(number)()
    return burn()


@thread
def crunch_nested_in_thread(number: int) -> Span:
    return crunch(download(number))()


_BURN = "import time\nused = time.process_time()\nwhile time.process_time() - used < 0.15: pass"


@process
def crunch_by_program(number: int) -> Span:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", _BURN], check=True)
    return began, time.monotonic()


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_what_computes_after_what_waits_has_no_more_workers_than_cpus(start: Any) -> None:
    assert at_once(gather(*[crunch(download(n)) for n in range(ITEMS)])(start=start)) <= CPUS + 1


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (download_in_thread, crunch),
        (download_in_thread, crunch_in_thread),
        (download, crunch_in_thread),
        (download, crunch_alone),
    ],
    ids=["a thread, a process", "a thread, a thread", "a process, a thread", "a process, one of its own"],
)
def test_whoever_waits_and_whoever_computes(first: Any, then: Any) -> None:
    assert at_once(gather(*[then(first(n)) for n in range(ITEMS)])()) <= CPUS + 1


@pytest.mark.parametrize("task", [crunch_nested, crunch_after_nested, crunch_nested_in_thread], ids=["in it", "after it", "in threads"])
def test_a_body_that_waits_for_a_nested_run(task: Any) -> None:
    assert at_once(gather(*[task(n) for n in range(ITEMS)])()) <= CPUS + 1


def test_a_program_that_a_body_starts_computes_for_it() -> None:
    assert at_once(gather(*[crunch_by_program(n) for n in range(ITEMS)])()) <= CPUS + 1


def test_runs_that_are_under_way_at_once() -> None:
    futures = [crunch(download(n)).future() for n in range(ITEMS)]
    for future in futures:
        future.start()
    assert at_once(future.result() for future in futures) <= CPUS + 1


def test_runs_that_are_awaited_at_once() -> None:
    async def main() -> list[Span]:
        return list(await asyncio.gather(*[crunch(download(n)) for n in range(ITEMS)]))

    assert at_once(asyncio.run(main())) <= CPUS + 1


def test_a_task_that_waits_and_computes_by_turns_is_known_by_its_first_calls() -> None:
    @process
    def by_turns(number: int) -> Span:
        time.sleep(0.1)
        return burn(seconds=0.1)

    gather(*[by_turns(n) for n in range(ITEMS)])()
    # Each uses about half a CPU, so twice as many as CPUs may run, and all of them may compute at
    # one moment.
    assert at_once(gather(*[by_turns(n) for n in range(2 * ITEMS)])()) <= 2 * CPUS + 1


def test_threads_that_wait_for_the_interpreter_do_not_seem_to_wait() -> None:
    """Other threads of the caller compute as well, so each body holds the interpreter's lock for
    little of the time."""

    @thread
    def compute(number: int) -> Span:
        return burn(time.thread_time, 0.05)

    over = threading.Event()

    def occupy() -> None:
        while not over.is_set():
            pass

    others = [threading.Thread(target=occupy) for _ in range(3)]
    for other in others:
        other.start()
    try:
        spans = gather(*[compute(download_in_thread(n)) for n in range(ITEMS)])()
    finally:
        over.set()
        for other in others:
            other.join()
    assert at_once(spans) <= CPUS + 1


class Threads:
    """Three threads with clocks that the test sets, and the measurements of them: two threads that
    compute by turns, and one that sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.process = 0
        self.ran = {1: 0, 2: 0, 3: 0}
        self.waited = {1: 0, 2: 0, 3: 0}
        self.queued: set[int] = set()
        clocks = SimpleNamespace(monotonic_ns=lambda: self.now, process_time_ns=lambda: self.process)
        self.turns = SimpleNamespace(measure=lambda wanted: None, threads=2.0, stirring=2)
        monkeypatch.setattr(worker_threads, "time", clocks)
        monkeypatch.setattr(worker_threads, "contention", lambda: self.turns)
        monkeypatch.setattr(worker_threads, "time_of_thread", lambda thread: self.ran[thread])
        monkeypatch.setattr(worker_threads, "demand_of_thread", lambda thread: (self.ran[thread] + self.waited[thread], self.now))
        monkeypatch.setattr(worker_threads, "is_runnable", lambda name: int(name.rpartition("/")[2]) in self.queued)
        self._measured = worker_threads.WorkerThreads()
        #: The shares that each measurement reported, by thread.
        self.told: dict[int, list[float]] = {1: [], 2: [], 3: []}
        self._look(dict.fromkeys(self.told))

    def run(self, milliseconds: float, *, computes: int = 0, wakes: int = 0, holds_without_cpu: int = 0) -> None:
        """Let time pass, then measure."""
        span = int(milliseconds * 1e6)
        self.now += span
        if computes:
            self.ran[computes] += span
            self.process += span
        if wakes:
            self.ran[wakes] += 20_000
            self.process += 20_000
        self.queued = {holds_without_cpu}
        self._look(dict.fromkeys(self.told, 1.0))

    def _look(self, taken: dict[int, float | None]) -> None:
        shares, _ = self._measured.look([worker_threads.WorkerThread(slot, slot) for slot in taken], taken)
        for slot, share in shares.items():
            self.told[slot].append(share)


def test_a_process_computes_where_any_of_its_threads_does() -> None:
    program = (
        "import sys, threading; print(flush=True)\n"
        "threading.Thread(target=exec, args=('while True: pass',), daemon=True).start()\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as computes:
        assert computes.stdout is not None
        computes.stdout.readline()
        until = time.monotonic() + 30
        # Its first thread wakes now and then to request the interpreter's lock.
        while worker_process.is_runnable(str(computes.pid)) or not worker_process.has_runnable(computes.pid):
            assert time.monotonic() < until
        computes.kill()
    assert not worker_process.has_runnable(computes.pid)


def test_a_thread_has_its_turns_before_it_is_said_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(monkeypatch)
    for _ in range(4):
        threads.run(3, computes=1)
        threads.run(3, computes=1, wakes=2)
        threads.run(3, computes=2)
        threads.run(3, computes=2, wakes=1)
    assert min(threads.told[1] + threads.told[2]) > 0.9
    assert len(threads.told[3]) >= 2
    assert max(threads.told[3]) == 0.0


def test_a_thread_that_holds_the_interpreter_and_has_no_cpu_is_seen_to_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(monkeypatch)
    for _ in range(4):  # while it waits for a CPU, nothing is counted
        threads.run(4, holds_without_cpu=1)
        threads.run(4, holds_without_cpu=1, wakes=2)
    # It has got a CPU at last, and has released the interpreter's lock to the thread that measures.
    threads.waited[1] += 32_000_000
    threads.run(4, computes=1, wakes=2)
    threads.run(4, computes=2)
    assert min(threads.told[1] + threads.told[2]) > 0.9
    assert len(threads.told[3]) >= 2
    assert max(threads.told[3]) == 0.0


def test_a_thread_has_its_turns_among_those_of_the_caller_where_others_keep_the_cpus_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process gets half a CPU, and threads of the caller take most of that."""
    threads = Threads(monkeypatch)
    threads.turns.threads, threads.turns.stirring = 5.0, 5
    for _ in range(8):
        threads.process += 2_000_000
        threads.run(4, wakes=1)
    assert threads.told[1] == []


def test_a_thread_that_polls_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(monkeypatch)
    threads.turns.threads = 1.0
    for _ in range(4):
        threads.run(4, wakes=1)
    assert len(threads.told[1]) >= 2
    assert max(threads.told[1]) < 0.05


@pytest.mark.parametrize("carrier", [process, thread], ids=["processes", "threads"])
def test_bodies_that_only_wait_all_wait_at_once(carrier: Any) -> None:
    def wait(number: int) -> Span:
        began = time.monotonic()
        time.sleep(2.0)
        return began, time.monotonic()

    task = carrier(wait)
    spans = gather(*[task(n) for n in range(40)])()
    assert at_once(spans) > 4 * CPUS


def spin_until(path: str) -> bool:
    """Compute until the file exists."""
    while not os.path.exists(path):
        pass
    return True


@process
def spin(path: str) -> bool:
    return spin_until(path)


@process
def write(path: str, number: int = 0) -> bool:
    with open(path, "w"):
        pass
    return True


@process
def write_nested(path: str, number: int) -> bool:
    download(number)()
    return write(path)()


@process
def spin_nested(path: str) -> bool:
    return spin(path)()


@pytest.mark.parametrize("spins", [spin, spin_nested], ids=["bodies", "nested runs"])
@pytest.mark.parametrize("answer", [write, write_nested], ids=["a body", "a nested run"])
def test_those_that_compute_until_another_body_has_run_do_not_keep_it_out(tmp_path: Path, answer: Any, spins: Any) -> None:
    path = str(tmp_path / "file")
    assert all(gather(answer(path, download(1)), *[spins(path) for _ in range(CPUS)])())


def test_a_run_that_computes_until_another_run_is_over_does_not_keep_it_out(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    futures = [write(path, download(1)).future(), *[spin(path).future() for _ in range(CPUS)]]
    for future in futures:
        future.start()
    assert all(future.result() for future in futures)


def test_bodies_of_one_run_that_wait_for_each_other_all_get_their_turn() -> None:
    """A body that polls for something seems to compute. It must not keep out the bodies that it
    waits for."""

    @process
    def ask(path: str) -> str:
        while True:
            try:
                with open(path) as file:
                    if text := file.read():
                        return text
            except FileNotFoundError:
                time.sleep(0.002)

    @process
    def answer(path: str, text: str) -> str:
        with open(path, "w") as file:
            file.write(text)
        return text

    with tempfile.TemporaryDirectory() as place:
        paths = [f"{place}/{n}" for n in range(2 * CPUS)]
        values = gather(*[ask(path) for path in paths], *[answer(path, path) for path in paths])()
    assert list(values) == paths * 2
