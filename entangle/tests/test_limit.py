"""`@limit`: calls of one name never exceed the stated number at once, or per second. This holds for
the whole process tree, whichever process dies, and no call waits for ever."""

# Decorators are passed around as values here, and have no types then.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import itertools
import math
import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entangle import pools, records
from entangle._watch.live_runs import cookies, live_homes, live_runs
from entangle.dataflow import dataflow
from entangle.docker import docker
from entangle.errors import EntangleError, OptionError, ProcessTerminatedException, RunCancelledError, RunTimeoutException
from entangle.interpreter import interpreter
from entangle.limit import limit
from entangle.local import local
from entangle.process import ProcessTimeoutException, process
from entangle.scheduler import scheduler
from entangle.ssh import ssh
from entangle.thread import ThreadTimeoutException, thread
from entangle.token_bucket import TokenBucket
from entangle.workflow import workflow

from . import bodies
from .callers import Caller, output_of
from .evidence import note, notes, place_among, wait_until
from .far_bodies import alone_there, die_once, waits_there
from .killing import Killer
from .places import far_pythons
from .services import given
from .services.hosts import Hosts
from .ways import installed

total = process(bodies.total)
together = process(bodies.gather)
meet = bodies.meet


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


@pytest.fixture(autouse=True)
def _no_limits_of_other_tests() -> None:
    """Forget the limits of earlier tests, which use some of the same names."""
    pools._stated.clear()


def alone(path: str, most: int = 1, seconds: float = 0.003) -> int:
    """Run in a block that at most `most` processes may enter."""
    with place_among(path, most):
        note(path, "begun", os.getpid())
        time.sleep(seconds)
    return 1


# --- at once --------------------------------------------------------------------------------------

STACKS = {
    "above process": lambda f: limit("few", at_once=2)(process(f)),
    "below process": lambda f: process(limit("few", at_once=2)(f)),
    "above thread": lambda f: limit("few", at_once=2)(thread(f)),
    "below thread": lambda f: thread(limit("few", at_once=2)(f)),
    "above workflow": lambda f: limit("few", at_once=2)(workflow(f)),
    "below workflow": lambda f: workflow(limit("few", at_once=2)(f)),
    "alone": limit("few", at_once=2),
    "fresh": lambda f: limit("few", at_once=2)(process(fresh=True)(f)),
    "under a scheduler": lambda f: scheduler(cpus=4)(limit("few", at_once=2)(process(f))),
    "over a scheduler": lambda f: process(limit("few", at_once=2)(scheduler(cpus=4)(f))),
    "over local": lambda f: limit("few", at_once=2)(local(process(f))),
    "with tokens": lambda f: limit("few", at_once=2, per_second=1000)(process(f)),
    "twice": lambda f: limit("few", at_once=2)(process(limit("few", at_once=2)(f))),
    "retried": lambda f: limit("few", at_once=2)(process(retry=2, timeout=50)(f)),
}


@pytest.mark.parametrize("stack", STACKS)
def test_never_more_at_once_than_said(stack: str, log: str) -> None:
    task = STACKS[stack](alone)
    assert total(*(task(log, 2) for _ in range(12)))() == 12
    assert len(notes(log)) == 12


def test_never_more_at_once_however_workers_start(start: str, log: str) -> None:
    task = limit("few", at_once=2)(process(alone))
    assert total(*(task(log, 2) for _ in range(12)))() == 12


def test_as_many_at_once_as_said(log: str) -> None:
    for kind in (process, thread):
        task = limit(f"few of {kind.__name__}", at_once=3)(kind(meet))
        together(*(task(log + kind.__name__, 3) for _ in range(3)))()


def test_functions_of_one_name_and_kinds_of_workers_share_it(log: str) -> None:
    @limit("one", at_once=1)
    @process
    def first(path: str) -> int:
        return alone(path)

    @thread
    @limit("one", at_once=1)
    def second(path: str) -> int:
        return alone(path)

    assert total(*(task(log) for task in (first, second) for _ in range(6)))() == 12
    assert len(notes(log)) == 12


def test_names_do_not_hinder_each_other(log: str) -> None:
    one, other = (limit(name, at_once=1)(process(meet)) for name in ("one", "other"))
    together(one(log, 2), other(log, 2))()


def test_methods_and_coroutines(log: str) -> None:
    class Client:
        @limit("few", at_once=2)
        @process
        def get(self, path: str) -> int:
            return alone(path, 2)

    @limit("few", at_once=2)
    @process
    async def fetch(path: str) -> int:
        with place_among(path, 2):
            await asyncio.sleep(0.003)
        return 1

    client = Client()
    assert total(*(client.get(log) for _ in range(6)), *(fetch(log) for _ in range(6)))() == 12


def test_the_whole_tree_of_a_run_keeps_it(start: str, log: str) -> None:
    leaf = limit("one", at_once=1)(process(alone))

    @process
    def nested(path: str, depth: int) -> int:
        if not depth:
            return int(leaf(path)())
        return int(total(leaf(path), nested(path, depth - 1))())

    assert total(*(nested(log, 2) for _ in range(3)))() == 9
    assert len(notes(log)) == 9


def test_a_limit_that_only_bodies_know_is_kept_by_all_of_them(start: str, log: str) -> None:
    """No process keeps the queue open all the time. Each process that opens it finds all places."""

    @process
    def knows(path: str) -> int:
        task = limit("of bodies", at_once=1)(process(alone))
        return int(total(*(task(path) for _ in range(3)))())

    for _ in range(2):
        assert total(*(knows(log) for _ in range(3)))() == 9
    assert len(notes(log)) == 18


def test_a_function_that_waits_lends_its_place(log: str) -> None:
    """One place, and four levels that all need it."""

    @limit("one", at_once=1)
    @process
    def level(path: str, depth: int) -> int:
        alone(path)
        below = total(level(path, depth - 1), level(path, depth - 1))() if depth else 0
        return alone(path) + below

    assert level(log, 3)() == 15
    assert len(notes(log)) == 30


@pytest.mark.parametrize("how", ["process", "thread", "workflow"])
def test_lending_never_deadlocks(how: str) -> None:
    kinds: dict[str, Any] = {"process": process, "thread": thread, "workflow": workflow}
    kind = kinds[how]
    limited = limit("one", at_once=1, per_second=10_000)

    @limited
    @limit("other", at_once=1)
    @kind
    def leaf(n: int) -> int:
        return n

    @limited
    @scheduler(cpus=1)
    @kind
    def gives(n: int) -> Any:
        return total(leaf(n), leaf(n))

    @limit("other", at_once=1)
    @kind
    @limited
    def calls(n: int) -> Any:
        future = gives(n).future()
        return total(gives(n), gives(n))() + future.result()

    @limited
    @kind
    async def awaits(n: int) -> Any:
        return await total(calls(n), calls(n))

    assert awaits(1)() == 12


def test_runs_of_several_threads_keep_it_together(log: str) -> None:
    in_process, in_thread = (limit("few", at_once=2)(kind(alone)) for kind in (process, thread))
    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(total(*(task(log, 2) for _ in range(4))).__call__) for task in (in_process, in_thread) * 2]
        assert [run.result() for run in runs] == [4] * 4
    assert len(notes(log)) == 16


def test_on_one_cpu(tmp_path: Path) -> None:
    source = """
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        from entangle.limit import limit
        from entangle.process import process
        from entangle.tests import bodies

        gather = process(bodies.gather)
        meet = limit("few", at_once=3)(process(bodies.meet))
        print(len(gather(*(meet("log", 3) for _ in range(3)))()[0]))
    """
    assert output_of(tmp_path, source) == "3\n"


# --- waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [process, thread, process(fresh=True)], ids=["process", "thread", "fresh"])
@pytest.mark.parametrize("figures", [{"at_once": 1}, {"at_once": 50, "per_second": 5}, {"per_second": 5}], ids=str)
def test_what_waits_for_a_limit_hinders_nothing_else(kind: Any, figures: dict[str, Any], log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four workers: one runs the body, and one waits for its place or token. No other may wait: the
    body ends only when the free tasks have run."""
    monkeypatch.setenv("ENTANGLE_MAX_WORKERS", "4")

    @limit("slow", **figures)
    @kind
    def slow(path: str) -> int:
        wait_until(lambda: len(notes(path)) == 30)
        return 1

    @process
    def free(path: str) -> int:
        note(path, "free")
        return 1

    many = 4 if "per_second" in figures else 100
    assert total(*(slow(log) for _ in range(many)), *(free(log) for _ in range(30)))() == many + 30


def test_many_that_wait_are_not_many_processes(log: str) -> None:
    """A thousand nodes with a limit of five."""

    @limit("five", at_once=5)
    @process
    def work(path: str) -> int:
        with place_among(path, 5):
            time.sleep(0.001)
        note(path, os.getpid(), len(os.listdir("/proc/self/task")))
        return os.getppid()

    most = 0
    done = threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, len(multiprocessing.active_children()), _children())

    looking = threading.Thread(target=look)
    before = _children()
    looking.start()
    try:
        together(*(work(log) for _ in range(1000)))()
    finally:
        done.set()
        looking.join()
    assert len(notes(log)) == 1000
    assert most - before <= 16, f"{most - before} processes for five places"


def _children() -> int:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return len(file.read().split())


def test_waiting_for_a_place_is_noted(log: str) -> None:
    """Both for the worker that sleeps until a place is free, and for nodes in the waiting list."""

    @limit("one", at_once=1)
    @process
    def first(path: str) -> int:
        wait_until(lambda: len(notes(path)) == 8)
        time.sleep(0.1)
        return 1

    @process
    def free(path: str) -> int:
        note(path, "free")
        return 1

    together(*(first(log) for _ in range(8)), *(free(log) for _ in range(8)))()
    run = records.run()
    waits = sorted(node.times.cookie for node in run.nodes if node.name == "first")
    assert waits[-1] >= 0.7  # it waited for seven others
    assert waits[0] < waits[-1] / 2
    assert len([wait for wait in waits if wait >= 0.1]) >= 2
    assert all(node.times.cookie == 0 for node in run.nodes if node.name == "free")
    (task,) = {node.task.version: node.task for node in run.nodes if node.name == "first"}.values()
    assert task.terms == {"pools": ["limit 'one': at_once=1"]}


def test_a_run_that_waits_is_seen_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
        from entangle.limit import limit
        from entangle.process import process
        from entangle.tests import bodies

        gather = process(bodies.gather)
        stay = limit("a database, say", at_once=1)(process(bodies.linger))
        others = [limit(f"host {number}", at_once=2)(process(bodies.one)) for number in range(10)]
        gather(stay("log"), stay("log"), *(other() for other in others))()
    """
    caller = Caller(tmp_path, source)
    monkeypatch.setenv("ENTANGLE_RUN_DIR", str(caller.runs))
    caller.start()

    def looked() -> bool:
        runs = live_runs()
        try:
            seen = [worker.pool for run in runs for worker in run.workers() if worker.waits_for == "cookie"]
        finally:
            for run in runs:
                run.close()
        return seen == ["limit 'a database, say': at_once=1"]

    try:
        wait_until(looked)
        (home,) = live_homes()
        free = cookies(home)
        assert (free["limit 'a database, say'"], free["limit 'host 3'"]) == (0, 2)
    finally:
        caller.stop()


def test_a_run_past_its_timeout_says_what_waited_for_a_limit() -> None:
    @limit("rare", per_second=0.01)
    @process
    def ask(n: int) -> int:
        return n

    with pytest.raises(RunTimeoutException, match=r"nothing ran; ask\(\d\) waited for limit 'rare': per_second=0.01"):
        total(ask(1), ask(2), ask(3)).run(timeout=1)


# --- several limits -------------------------------------------------------------------------------


def test_several_limits_in_any_order_never_deadlock(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_MAX_WORKERS", "6")
    names = {"a": 1, "b": 2, "c": 3}

    def make(chosen: tuple[str, ...], kind: Any) -> Any:
        def body(path: str) -> int:
            if not chosen:
                return 1
            with place_among(f"{path}.{chosen[0]}", names[chosen[0]]):
                time.sleep(0.002)
                for name in chosen[1:]:
                    with place_among(f"{path}.{name}", names[name]):
                        time.sleep(0.001)
            return 1

        task = kind(body)
        for name in chosen:
            task = limit(name, at_once=names[name])(task)
        return scheduler(cpus=2)(task) if len(chosen) == 2 else task

    tasks = [make(chosen, kind) for size in range(4) for chosen in itertools.permutations(names, size) for kind in (process, thread)]

    @process
    def nested(path: str, seed: int) -> int:
        chosen = random.Random(seed).sample(tasks, 12)
        return int(total(*(task(path) for task in chosen))())

    pools._stated.clear()  # so that many functions may have one name
    for name, most in names.items():
        pools.state(name, "all", (pools.Pool(pools.PLACES, name, most),))
    calls = [task(log) for task in tasks for _ in range(4)]
    random.Random(1).shuffle(calls)
    assert total(*calls, *(nested(log, seed) for seed in range(4)))() == len(calls) + 48
    assert [path for path in Path(log).parent.iterdir() if path.suffix != "" and "excess" in path.read_text()] == []


def test_a_hundred_names(log: str) -> None:
    tasks = [limit(f"host {number}", at_once=1)(process(alone)) for number in range(100)]
    assert total(*(task(f"{log}{number}") for number, task in enumerate(tasks) for _ in range(2)))() == 200


def test_with_devices(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_GPUS", "0,1")
    task = limit("one", at_once=1)(scheduler(gpus=1, share=2)(process(alone)))
    other = limit("one", at_once=1)(process(alone))
    assert total(*(kind(log) for kind in (task, other) for _ in range(6)))() == 12
    meets = limit("two", at_once=2)(scheduler(gpus=1)(process(meet)))
    together(meets(log + "2", 2), meets(log + "2", 2))()


# --- per second -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [process, thread, workflow], ids=["process", "thread", "workflow"])
def test_no_more_begin_in_a_second_than_said(kind: Any, log: str) -> None:
    @limit("api", per_second=40)
    @kind
    def ask(path: str) -> int:
        note(path, time.monotonic())
        return 1

    began = time.monotonic()
    assert total(*(ask(log) for _ in range(21)))() == 21
    times = sorted(float(line[0]) for line in notes(log))
    assert times[-1] - began >= 20 / 40


def test_tokens_are_those_of_the_whole_tree(start: str, log: str) -> None:
    @limit("api", per_second=40)
    @process
    def ask(path: str) -> int:
        note(path, time.monotonic())
        return 1

    @process
    def nested(path: str) -> int:
        return int(total(*(ask(path) for _ in range(4)))())

    began = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(total(nested(log), nested(log), ask(log)).__call__) for _ in range(2)]
        assert [run.result() for run in runs] == [9, 9]
    assert max(float(line[0]) for line in notes(log)) - began >= 17 / 40


def test_one_run_after_the_other_shares_tokens() -> None:
    task = limit("api", per_second=20)(process(bodies.one))
    began = time.monotonic()
    for _ in range(6):
        task()()
    assert time.monotonic() - began >= 5 / 20


def test_a_burst_begins_together() -> None:
    """One after the other, they would exceed the time limit of tests."""
    task = limit("rare", per_second=0.001, burst=3)(process(bodies.one))
    assert total(task(), task(), task())() == 3


def test_after_a_burst_the_rate_counts(log: str) -> None:
    @limit("api", per_second=50, burst=5)
    @process
    def ask(path: str) -> int:
        note(path, time.monotonic())
        return 1

    began = time.monotonic()
    total(*(ask(log) for _ in range(25)))()
    assert max(float(line[0]) for line in notes(log)) - began >= 20 / 50


def test_each_attempt_takes_a_token(log: str) -> None:
    task = limit("api", per_second=20)(process(retry=4)(bodies.fail_until))
    began = time.monotonic()
    assert task(log, 5)() == "done"
    assert max(float(line[0]) for line in notes(log)) - began >= 4 / 20


@pytest.mark.parametrize(("rate", "burst"), [(400.0, 1), (400.0, 7), (1e9, 1), (1e-9, 2), (5e-324, 3)])
def test_a_bucket(rate: float, burst: int, tmp_path: Path) -> None:
    path = str(tmp_path / "bucket")
    TokenBucket.create(path)
    with pytest.raises(FileExistsError):
        TokenBucket.create(path)
    bucket, same = TokenBucket(path, rate, burst), TokenBucket(path, rate, burst)
    number = burst + 20 if rate > 1 else burst
    began = time.monotonic()
    taken: list[int] = []

    def take(some: TokenBucket, count: int) -> None:
        taken.extend(some.wait_cell(lambda: False) for _ in range(count))

    threads = [threading.Thread(target=take, args=(some, count)) for some, count in ((bucket, number // 2), (same, number - number // 2))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert taken == [0] * number
    assert time.monotonic() - began >= (number - burst) / rate - 1e-6
    if rate < 1:
        assert bucket.take_cell() == -1
        assert bucket.wait_cell(lambda: True) == -1
        bucket.give_cell(0)
        assert (same.take_cell(), bucket.take_cell()) == (0, -1)
    bucket.close()
    same.close()
    same.close()


# --- holders that die -----------------------------------------------------------------------------


def all_places(name: str, count: int, log: str) -> None:
    """Check that a limit has all of its places: `count` bodies can wait for each other."""
    pools._stated.clear()
    task = limit(name, at_once=count)(process(meet))
    together(*(task(log, count) for _ in range(count)))()


def test_places_come_back_from_holders_that_die(start: str, log: str) -> None:
    die: Any = limit("few", at_once=2)(process(bodies.die))
    for _ in range(3):
        with pytest.raises(ProcessTerminatedException):
            total(die(3), die(3))()
    assert limit("few", at_once=2)(process(retry=3)(bodies.die_until))(log, 3)() == "done"
    all_places("few", 2, log + "2")


def test_places_come_back_whoever_is_killed_and_when(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @limit("other", at_once=3)
    @limit("few", at_once=2)
    @process(retry=5)
    def work(path: str) -> int:
        return alone(path, 2)

    @process(retry=5)
    def nested(path: str) -> int:
        return int(total(*(work(path) for _ in range(6)))())

    summed, hits = process(retry=5)(bodies.total), 0
    with Killer() as killer:
        # So that the killer process has started, too.
        with subprocess.Popen(["sleep", "60"]) as first:
            note(tmp_path / "first", first.pid)
            killer.kill_when_noted(tmp_path / "first")
            assert killer.killed() == [first.pid]
        # On a busy machine the killer may be too late for many of the runs.
        for seed in range(40):
            killer.kill_any_child(seed)
            assert summed(*(work(log) for _ in range(20)), nested(log), nested(log))() == 32
            hits += len(killer.killed())
            if hits > 4:
                break
    assert hits > 4
    assert [line for line in notes(log) if line[0] == "excess"] == []
    all_places("few", 2, log + "2")
    all_places("other", 3, log + "3")


def test_a_body_past_its_timeout_gives_its_place_back(log: str) -> None:
    stay = limit("one", at_once=1)(process(timeout=0.1)(bodies.linger))
    for _ in range(3):
        with pytest.raises(ProcessTimeoutException):
            stay(log)()
    all_places("one", 1, log + "2")


def test_a_thread_that_was_abandoned_holds_no_place(log: str) -> None:
    """It cannot be killed, and continues to run. When it ends, it does not give back a place that
    another call holds."""
    go, stayed = threading.Event(), list[threading.Thread]()

    @limit("one", at_once=1)
    @thread(timeout=0.1)
    def stay() -> None:
        stayed.append(threading.current_thread())
        go.wait(50)

    @limit("one", at_once=1)
    @thread
    def next_one(path: str, ending: bool) -> int:
        with place_among(path, 1):
            if ending:
                go.set()
                wait_until(lambda: not stayed[0].is_alive())
        return 1

    with pytest.raises(ThreadTimeoutException):
        stay()()
    assert next_one(log, False)() == 1
    assert together(*(next_one(log, number == 0) for number in range(2)), process(bodies.one)())()[0] == (1, 1, 1)
    all_places("one", 1, log + "2")


def test_a_thread_that_a_cancelled_run_leaves_behind_holds_no_place(log: str) -> None:
    go = threading.Event()

    @limit("one", at_once=1)
    @thread
    def stay(path: str) -> None:
        note(path, "there")
        go.wait(100)

    future = together(stay(log), process(bodies.one)()).future()
    future.start()
    wait_until(lambda: notes(log))
    future.cancel()
    with pytest.raises(RunCancelledError):
        future.result(20)
    try:
        all_places("one", 1, log + "2")
    finally:
        go.set()


def test_a_failed_body_gives_its_place_back(log: str) -> None:
    fail: Any = limit("few", at_once=2)(process(bodies.fail))
    for _ in range(3):
        with pytest.raises(ValueError):
            total(fail(), fail(), fail())()
    all_places("few", 2, log)


@pytest.mark.parametrize("kind", [process, thread], ids=["process", "thread"])
def test_a_pause_between_attempts_gives_the_place_back(kind: Any, log: str) -> None:
    @limit("one", at_once=1)
    @kind(retry=1, sleep=2)
    def tries(path: str) -> int:
        note(path, "tries")
        if len(notes(path)) == 1:
            raise ValueError
        return 1

    @limit("one", at_once=1)
    @process
    def meanwhile(path: str, _: int) -> int:
        note(path, "meanwhile")
        return 1

    @process
    def later(path: str) -> int:
        wait_until(lambda: notes(path))
        return 1

    assert total(tries(log), meanwhile(log, later(log)))() == 2
    assert [line[0] for line in notes(log)] == ["tries", "meanwhile", "tries"]


@pytest.mark.parametrize("kind", [process, thread], ids=["process", "thread"])
def test_a_run_that_waits_for_a_place_can_be_cancelled(kind: Any, log: str) -> None:
    hold = limit("one", at_once=1)(process(bodies.linger))(log).future()
    holding = threading.Thread(target=lambda: hold.exception())
    hold.start()
    wait_until(lambda: notes(log))
    waiting = total(*(limit("one", at_once=1)(kind(alone))(log) for _ in range(5))).future()
    waiting.start()
    waiting.cancel()
    with pytest.raises(RunCancelledError):
        waiting.result(20)
    assert [line for line in notes(log) if line[0] == "begun"] == []
    hold.cancel()
    holding.start()
    holding.join()
    all_places("one", 1, log + "2")


@pytest.mark.parametrize("waits", [False, True], ids=["holds", "waits"])
def test_ctrl_c_in_a_body_of_the_calling_thread_or_while_it_waits(waits: bool, tmp_path: Path) -> None:
    source = """
        import time
        from entangle.limit import limit
        from entangle.process import process
        from entangle.tests import bodies
        from entangle.tests.evidence import notes, wait_until

        one = limit("one", at_once=1)
        hold = one(process(bodies.linger))
        after = one(process(bodies.two))

        @one
        def here(seconds):
            print("begun", flush=True)
            time.sleep(seconds)
            return seconds

        if __name__ == "__main__":
            future = hold("log").future()
            try:
                if WAITS:
                    future.start()
                    wait_until(lambda: notes("log"))
                    print("waits", flush=True)
                here(100)()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            future.cancel()
            print(after()(), here(0)(), flush=True)
    """.replace("WAITS", repr(waits))
    caller = Caller(tmp_path, source).start()
    try:
        assert caller.process.stdout is not None
        assert caller.process.stdout.readline() == ("waits\n" if waits else "begun\n")
        # So that it waits by then. If it does not yet, the result is the same.
        time.sleep(0.3)
        os.kill(caller.process.pid, signal.SIGINT)
        status, out, err = caller.finish()
        assert (status, out) == (0, "interrupted\nbegun\n2 0\n"), err
        assert [path for path in caller.files() if not path.endswith("log")] == []
    finally:
        caller.stop()


# --- other places ---------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False], ids=["same version", "other version"])
@pytest.mark.parametrize("stack", ["above", "below"])
def test_the_caller_holds_the_limit_of_a_function_in_another_python(same: bool, stack: str, log: str) -> None:
    where, few = interpreter(python=far_pythons(same)), limit("few", at_once=2, per_second=1000)
    task = few(where(alone_there)) if stack == "above" else where(few(process(alone_there)))
    assert total(*(task(log, 2) for _ in range(6)), *(few(process(alone))(log, 2) for _ in range(6)))() == 12


@pytest.fixture(scope="session")
def hosts() -> Hosts:
    """Real ssh servers on this machine."""
    return given.shared_hosts()


@pytest.mark.parametrize("stack", ["above", "below"])
def test_the_caller_holds_the_limit_of_a_function_on_another_host(stack: str, hosts: Hosts, log: str) -> None:
    few = limit("few", at_once=2)
    tasks = []
    for name in hosts.hosts:
        where = ssh(**hosts.options(name))
        tasks.append(few(where(alone_there)) if stack == "above" else where(few(alone_there)))
    assert total(*(task(log, 2) for task in tasks for _ in range(5)))() == 5 * len(tasks)


@pytest.mark.parametrize("stack", ["above", "below"])
def test_a_function_in_another_place_may_need_there_what_it_has_here(stack: str, log: str) -> None:
    where, one = interpreter(python=far_pythons(True)), limit("few", at_once=1)
    task = one(where(waits_there)) if stack == "above" else where(one(waits_there))
    assert total(task(log), task(log))() == 18


def test_the_caller_holds_the_limit_of_a_function_in_a_container() -> None:
    installed("docker")
    few = limit("few", at_once=2, per_second=1000)
    task = docker(image=given.image())(few(alone_there))
    assert total(*(task("/tmp/limits", 2) for _ in range(6)))() == 6


def test_a_pause_after_a_lost_connection_gives_the_place_back(log: str) -> None:
    one = limit("one", at_once=1)
    tries = interpreter(python=far_pythons(True))(one(thread(retry=1, sleep=2)(die_once)))

    @one
    @process
    def meanwhile(path: str, _: int) -> int:
        note(path, "meanwhile")
        return 1

    @process
    def later(path: str) -> int:
        wait_until(lambda: notes(path))
        return 1

    assert total(tries(log), meanwhile(log, later(log)))() == 2
    assert [line[0] for line in notes(log)] == ["tries", "meanwhile", "tries"]


# --- dataflows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_a_node_of_a_dataflow(executor: Any, log: str) -> None:
    @dataflow(executor=executor)
    @limit("few", at_once=2)
    def node(n: int) -> int:
        with place_among(log, 2):
            time.sleep(0.002)
        return n + 1

    @dataflow(executor=executor)
    def plain(n: int) -> int:
        return n

    flow = plain(node(), node(), node(), node())
    assert list(flow.stream(range(20))) == [(n + 1,) * 4 for n in range(20)]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(flow, range(3))) == [(n + 1,) * 4 for n in range(3)]


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_each_item_of_a_stream_takes_a_token(executor: Any, log: str) -> None:
    @dataflow(executor=executor)
    @limit("api", per_second=50)
    def node(n: int) -> int:
        note(log, time.monotonic())
        return n

    began = time.monotonic()
    assert list(node().stream(range(21))) == [(n,) for n in range(21)]
    assert len(notes(log)) == 21
    assert max(float(line[0]) for line in notes(log)) - began >= 20 / 50


# --- bad options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("db", {"at_once": 0}, r"@limit\('db'\): at_once=0; it must be a whole number, 1 to 4096"),
        ("db", {"at_once": -1}, "at_once=-1"),
        ("db", {"at_once": 4097}, "at_once=4097"),
        ("db", {"at_once": True}, "at_once=True"),
        ("db", {"at_once": "5"}, "at_once='5'"),
        ("db", {"at_once": 5.0}, r"at_once=5\.0"),
        ("db", {"per_second": 0}, r"@limit\('db'\): per_second=0; it must be a number above 0"),
        ("db", {"per_second": -0.5}, r"per_second=-0\.5"),
        ("db", {"per_second": math.nan}, "per_second=nan"),
        ("db", {"per_second": math.inf}, "per_second=inf"),
        ("db", {"per_second": True}, "per_second=True"),
        ("db", {"per_second": "10"}, "per_second='10'"),
        ("db", {"per_second": 10**400}, "per_second=<int of"),
        ("db", {}, r"@limit\('db'\) limits nothing; give it at_once=, per_second=, or both"),
        ("db", {"at_once": 2, "burst": 3}, "burst=3 says how many of per_second="),
        ("db", {"per_second": 2, "burst": 0}, "burst=0"),
        ("db", {"per_second": 2, "burst": 1.5}, r"burst=1\.5"),
        ("db", {"at_one": 5}, "has no option 'at_one'; did you mean 'at_once'"),
        ("", {"at_once": 1}, "its name is ''; it must be a string that is not empty"),
        ("  ", {"at_once": 1}, "its name is '  '"),
        (5, {"at_once": 1}, "its name is 5"),
        (None, {"at_once": 1}, "its name is None"),
        (b"db", {"at_once": 1}, "its name is <bytes of 2>"),
        (bodies.one, {}, r"@limit needs a name and a figure: write @limit\(\"db\", at_once=5\)"),
    ],
)
def test_options_that_cannot_be(name: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told) as caught:
        limit(name, **options)
    assert isinstance(caught.value, EntangleError)


def test_what_it_decorates() -> None:
    for wrong in (5, "db", None):
        with pytest.raises(OptionError, match="@limit decorates a function"):
            limit("db", at_once=1)(wrong)  # type: ignore[call-overload]


def test_names_of_any_letters_and_length(log: str) -> None:
    names = ["../../etc", "a/b", "é\n\0\ud800", "x" * 5000, "5", "-", "limit", "0" * 24]
    tasks = [limit(name, at_once=1, per_second=1000)(process(alone)) for name in names]
    assert total(*(task(f"{log}{number}") for number, task in enumerate(tasks) for _ in range(2)))() == 2 * len(names)


def test_two_functions_that_disagree_are_told_when_they_are_decorated() -> None:
    @limit("db", at_once=5)
    @process
    def query(n: int) -> int:
        return n

    told = (
        r"@limit\('db'\): .*test_limit\..*\.insert says at_once=6, but .*test_limit\..*\.query says at_once=5; "
        "a limit has the same figures wherever its name is used"
    )

    def insert(n: int) -> int:
        return n

    with pytest.raises(OptionError, match=told):
        limit("db", at_once=6)(process(insert))
    with pytest.raises(OptionError, match=r"insert says at_once=5, per_second=2\.5, burst=2, but .*query says at_once=5;"):
        limit("db", at_once=5, per_second=2.5, burst=2)(insert)
    with pytest.raises(OptionError, match="insert says per_second=2, but"):
        limit("db", per_second=2)(insert)
    assert limit("db", at_once=5)(process(insert))(3)() == 3


def test_one_function_with_two_figures_is_told() -> None:
    with pytest.raises(OptionError, match=r"one says at_once=6 here and at_once=5 below; leave one out"):
        limit("db", at_once=6)(process(limit("db", at_once=5)(bodies.one)))


def make(most: int, name: str = "made") -> Any:
    @limit(name, at_once=most)
    @process
    def work(path: str) -> int:
        return alone(path, most)

    return work


def test_what_is_decorated_again_is_told_when_it_runs(log: str) -> None:
    """In a factory, a loop or a notebook cell, the second function may replace the first, or exist
    beside it."""
    five, six = make(5), make(6)
    told = r"@limit\('made'\): work says at_once={}, but .* says at_once={}"
    with pytest.raises(OptionError, match=told.format("[56]", "[56]")):
        total(five(log), six(log))()
    with pytest.raises(OptionError, match=told.format(5, 6)):
        five(log)()
    assert six(log)() == 1


def test_a_function_that_is_decorated_again_has_its_new_limit(log: str) -> None:
    assert total(*(make(3)(log) for _ in range(6)))() == 6
    one = make(1)
    assert total(*(one(log + "1") for _ in range(6)))() == 6
    all_places("made", 4, log + "4")


def test_what_only_bodies_know_is_told_there(start: str, log: str) -> None:
    @process
    def outer(path: str) -> int:
        pools._stated.clear()
        return int(make(3, f"inner {start}")(path)())

    assert outer(log)() == 1
    inner = make(2, f"inner {start}")

    @process
    def other(path: str) -> int:
        pools._stated.clear()
        return int(make(4, f"inner {start}")(path)())

    assert inner(log)() == 1
    with pytest.raises(OptionError, match=r"work says at_once=4, but work says at_once=2"):
        other(log)()
