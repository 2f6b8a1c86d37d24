"""Cookies: a function under `@scheduler` holds one while it runs on its CPU, and there are never
more cookies than configured."""

# Decorators are passed as values here, and are untyped.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entangle.errors import EntangleError, ProcessTerminatedException, SchedulerImportError
from entangle.interpreter import interpreter
from entangle.local import local
from entangle.process import process
from entangle.scheduler import DefaultScheduler, scheduler
from entangle.thread import thread
from entangle.workflow import workflow

from . import bodies
from .callers import output_of
from .evidence import most_at_once, note, notes, span

ALLOWED = sorted(os.sched_getaffinity(0))
IMPL = "entangle.scheduler.DefaultScheduler"

gather = process(bodies.gather)
add = process(bodies.add)


def affinity(*_: Any) -> list[int]:
    return sorted(os.sched_getaffinity(0))


class Tagging:
    """A user's scheduler: adds to each value that it was used, and with how many CPUs."""

    def register(self, f: Callable[..., Any], cpus: int = 12) -> Callable[..., Any]:
        """Wrap `f`."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return "tagged", cpus, f(*args, **kwargs)

        return wrapped


class Empty:
    """Not a scheduler: it has no `register`."""


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


# --- one CPU --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stack",
    [
        lambda f: scheduler(cpus=2)(process(f)),
        lambda f: process(scheduler(cpus=2)(f)),
        lambda f: scheduler(cpus=2)(thread(f)),
        lambda f: thread(scheduler(cpus=2)(f)),
        lambda f: scheduler(cpus=2)(workflow(f)),
        lambda f: workflow(scheduler(cpus=2)(f)),
        lambda f: scheduler(cpus=2)(f),
        lambda f: scheduler(f),
        lambda f: process(local(cpus=2)(f)),
        lambda f: local(cpus=2)(process(f)),
        lambda f: scheduler(cpus=2, impl=IMPL)(process(fresh=True)(f)),
    ],
    ids=[
        "above process",
        "below process",
        "above thread",
        "below thread",
        "above workflow",
        "below workflow",
        "alone",
        "bare",
        "local below process",
        "local above process",
        "above fresh",
    ],
)
def test_inside_is_one_cpu(stack: Any) -> None:
    cpus = stack(affinity)()()
    assert len(cpus) == 1
    assert set(cpus) <= set(ALLOWED)
    assert sorted(os.sched_getaffinity(0)) == ALLOWED  # the caller's own affinity is unchanged


def test_inside_is_one_cpu_however_it_starts(start: str) -> None:
    bound = scheduler(cpus=2)(process(affinity))
    values, _ = gather(bound(), bound(), bound())()
    assert all(len(cpus) == 1 for cpus in values)


def test_outside_are_all_cpus_again() -> None:
    """The next function in the same worker or thread may use all CPUs again."""
    bound, free = scheduler(cpus=1)(process(affinity)), process(affinity)
    call = free(bound(free(bound())))
    assert call() == ALLOWED
    bound_thread, free_thread = scheduler(cpus=1)(thread(affinity)), thread(affinity)
    assert free_thread(bound_thread(free_thread(bound_thread())))() == ALLOWED
    failing = scheduler(cpus=1)(thread(bodies.fail))
    with pytest.raises(ValueError):
        failing()()
    assert free_thread()() == ALLOWED


def test_a_process_that_may_use_one_cpu(tmp_path: Path) -> None:
    """There are no more cookies than CPUs in this process's affinity mask."""
    source = f"""
    import os
    os.sched_setaffinity(0, {{{ALLOWED[-1]}}})
    from entangle.process import process
    from entangle.scheduler import scheduler

    @scheduler(cpus=4)
    @process
    def affinity():
        return sorted(os.sched_getaffinity(0))

    @process
    def gather(*args):
        return list(args)

    print(gather(*(affinity() for _ in range(4)))())
    """
    assert output_of(tmp_path, source) == f"{[[ALLOWED[-1]]] * 4}\n"


def test_bodies_that_run_together_are_on_different_cpus(log: str) -> None:
    if len(ALLOWED) < 2:
        pytest.skip("one CPU only")

    @scheduler(cpus=2)
    @process
    def meet(path: str) -> int:
        bodies.meet(path, 2)
        return affinity()[0]

    first, second = gather(meet(log), meet(log))()[0]
    assert first != second


# --- never more than configured -------------------------------------------------------------------


@pytest.mark.parametrize("cpus", [1, 2])
def test_never_more_at_once_than_cpus(cpus: int, log: str, start: str) -> None:
    spanned = scheduler(cpus=cpus)(process(bodies.spanned))
    gather(*(spanned(log) for _ in range(8)))()
    assert len(notes(log)) == 8
    assert most_at_once(log) <= cpus


def test_never_more_than_there_are(log: str) -> None:
    spanned = scheduler(cpus=12)(process(bodies.spanned))
    gather(*(spanned(log) for _ in range(3 * len(ALLOWED))))()
    assert most_at_once(log) <= len(ALLOWED)


def test_processes_and_threads_together(log: str) -> None:
    in_process, in_thread = scheduler(cpus=1)(process(bodies.spanned)), scheduler(cpus=1)(thread(bodies.spanned))
    gather(*(kind(log) for kind in (in_process, in_thread) for _ in range(5)))()
    assert len(notes(log)) == 10
    assert most_at_once(log) == 1


def test_different_functions_together(log: str) -> None:
    """Functions share the cookies of one number of CPUs."""

    @scheduler(cpus=1)
    @process
    def first(path: str) -> None:
        bodies.spanned(path)

    @process
    @scheduler(cpus=1)
    def second(path: str) -> None:
        bodies.spanned(path)

    gather(*(f(log) for f in (first, second) for _ in range(4)))()
    assert most_at_once(log) == 1


def test_the_whole_tree_of_a_run(log: str) -> None:
    spanned = scheduler(cpus=1)(process(bodies.spanned))

    @process
    def nested(path: str, depth: int) -> Any:
        if depth == 0:
            return spanned(path)
        return gather(spanned(path), nested(path, depth - 1))()

    gather(*(nested(log, 2) for _ in range(3)))()
    assert len(notes(log)) == 9
    assert most_at_once(log) == 1


def test_a_body_with_a_cookie_waits_and_lends_it(log: str) -> None:
    """One cookie, three levels that all need it: waiting levels lend it, and only running ones hold
    it."""

    @scheduler(cpus=1)
    @process
    def level(path: str, depth: int) -> int:
        with span(path):
            pass
        below = gather(level(path, depth - 1), level(path, depth - 1))()[0] if depth else ()
        with span(path):
            return 1 + int(sum(below))

    assert level(log, 3)() == 15
    assert most_at_once(log) == 1


@pytest.mark.parametrize("how", ["process", "thread", "workflow"])
def test_lending_never_deadlocks(how: str) -> None:
    kinds: dict[str, Any] = {"process": process, "thread": thread, "workflow": workflow}
    kind = kinds[how]

    @scheduler(cpus=1)
    @kind
    def leaf(n: int) -> int:
        return n

    @scheduler(cpus=1)
    @kind
    def gives(n: int) -> Any:
        return add(leaf(n), leaf(n))

    @scheduler(cpus=1)
    @kind
    def calls(n: int) -> Any:
        return add(gives(n), gives(n))()

    assert calls(1)() == 4


def test_a_body_that_lent_its_cookie_is_bound_again() -> None:
    one = process(bodies.one)

    @scheduler(cpus=1)
    @process
    def around() -> tuple[list[int], list[int], int]:
        before = affinity()
        free = process(affinity)()()
        one()()
        return before, affinity(), len(free)

    before, after, free = around()()
    assert len(before) == len(after) == 1
    assert free == len(ALLOWED)  # a run in between may use all CPUs


def test_cookies_come_back_from_the_dead(log: str, start: str) -> None:
    die = scheduler(cpus=1)(process(bodies.die))
    for _ in range(3):
        with pytest.raises(ProcessTerminatedException):
            die(3)()
    assert scheduler(cpus=1)(process(retry=3)(bodies.die_until))(log, 3)() == "done"
    spanned = scheduler(cpus=1)(process(bodies.spanned))
    gather(*(spanned(log + "2") for _ in range(3)))()
    assert most_at_once(log + "2") == 1


def test_cookies_come_back_after_failures() -> None:
    fail = scheduler(cpus=1)(process(bodies.fail))
    one = scheduler(cpus=1)(process(bodies.one))
    for _ in range(3):
        with pytest.raises(ValueError):
            gather(fail(), one(), one())()
    assert gather(one(), one())()[0] == (1, 1)


def test_runs_from_several_threads_keep_to_it_together(log: str) -> None:
    spanned = scheduler(cpus=1)(process(bodies.spanned))
    threads = [threading.Thread(target=lambda: gather(spanned(log), spanned(log))()) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(notes(log)) == 6
    assert most_at_once(log) == 1


# --- users' schedulers ----------------------------------------------------------------------------


@pytest.mark.parametrize("under", [process, thread, workflow])
def test_a_scheduler_of_ones_own(under: Any) -> None:
    @scheduler(cpus=3, impl=f"{__name__}.Tagging")
    @under
    def value(n: int) -> int:
        return n

    assert value(5)() == ("tagged", 3, 5)


def test_a_scheduler_of_ones_own_below() -> None:
    @process
    @scheduler(impl=f"{__name__}.Tagging", cpus=4)
    def value(n: int) -> int:
        return n

    assert gather(value(5), 1)()[0] == (("tagged", 4, 5), 1)


class Knowing:
    """A user's scheduler that inspects the function: returns its names, docstring and signature."""

    def register(self, f: Callable[..., Any], cpus: int = 12) -> Callable[..., Any]:
        """Wrap `f`."""
        import inspect

        known = f.__name__, f.__qualname__, f.__module__, f.__doc__, str(inspect.signature(f)), inspect.unwrap(f).__name__
        return lambda *args, **kwargs: (known, f(*args, **kwargs))


@process
@scheduler(cpus=1, impl=f"{__name__}.Knowing")
def simulate(n: int, times: int = 2) -> int:
    """Do it."""
    return n * times


@pytest.mark.parametrize("above", [process, thread, workflow, interpreter, lambda f: f])
def test_a_scheduler_of_ones_own_sees_the_function_that_was_written(above: Any, start: str) -> None:
    known = ("simulate", "simulate", __name__, "Do it.", "(n: 'int', times: 'int' = 2) -> 'int'", "simulate")
    assert above(simulate)(4)() == (known, 8)


def test_the_default_scheduler_by_name_and_by_hand() -> None:
    assert scheduler(cpus=1, impl=IMPL)(process(bodies.one))()() == 1
    wrapped = DefaultScheduler().register(affinity, cpus=1)
    assert len(wrapped()) == 1
    assert sorted(os.sched_getaffinity(0)) == ALLOWED
    assert DefaultScheduler().register(bodies.add)(1, b=2) == 3


@pytest.mark.parametrize("impl", ["no.such.package.Scheduler", "entangle.scheduler.NoSuchScheduler", "Nothing", "", "os.path", 3])
def test_a_scheduler_that_cannot_be_imported(impl: Any) -> None:
    with pytest.raises((SchedulerImportError, TypeError)) as caught:
        scheduler(cpus=1, impl=impl)(bodies.one)
    assert isinstance(caught.value, EntangleError)
    assert str(impl) in str(caught.value)
    if isinstance(impl, str) and impl.startswith(("no.", "entangle.")):
        assert isinstance(caught.value, ImportError)


def test_a_class_that_is_no_scheduler() -> None:
    with pytest.raises(SchedulerImportError, match="register"):
        scheduler(cpus=1, impl=f"{__name__}.Empty")(bodies.one)


def test_first_runs_of_several_threads_open_the_queues_together(tmp_path: Path) -> None:
    source = """
        import sys, threading
        from entangle.scheduler import scheduler
        from entangle.thread import thread

        sys.setswitchinterval(1e-6)
        found = []

        def run(n):
            found.append(scheduler(cpus=1 + n)(thread(abs))(-n)())

        threads = [threading.Thread(target=run, args=(n,)) for n in range(30)]
        for each in threads: each.start()
        for each in threads: each.join()
        print(len(found), sum(found))
    """
    for _ in range(5):
        assert output_of(tmp_path, source) == f"30 {29 * 30 // 2}\n"


def test_the_documented_example(capfd: pytest.CaptureFixture[str]) -> None:
    config: dict[str, Any] = {"cpus": 2, "impl": IMPL}

    @scheduler(**config)
    @process
    def two() -> int:
        return 2

    @scheduler(**config)
    @process
    def three() -> int:
        return 3

    @scheduler(**config)
    @process
    def plus(a: Any, b: Any) -> int:
        v = int(a) + int(b)
        print("ADD: *" + str(v) + "*")
        return v

    @scheduler(**config)
    @workflow
    def workflow2() -> Any:
        return plus(three(), two())

    assert workflow2()() == 5
    assert "ADD: *5*" in capfd.readouterr().out


def test_programs_that_a_body_starts_are_bound_as_well(log: str) -> None:
    @scheduler(cpus=1)
    @process
    def program() -> str:
        code = "import os; print(sorted(os.sched_getaffinity(0)))"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert len(program()().split(",")) == 1
    note(log, "x")
