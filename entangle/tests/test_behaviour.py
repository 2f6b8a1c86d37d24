"""What every run guarantees, in every way to run it: fork, forkserver, spawn, and with a second
thread in the caller.

Tests marked `near` concern this machine alone. Those marked `everywhere` also run in the places
whose purpose is to differ (another version of Python, a container). The rest also run on another
host; and, as drills, by spawn and in another Python of the same version.

No test here depends on how long something takes. Functions are written at module level, as
closures, as lambdas and as methods, since each of these is transferred in another way."""

# Decorators are passed around as values here, and have no types then.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import concurrent.futures
import os
import random
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest

from entangle.errors import ArgumentError, EntangleError, UnpicklableError
from entangle.process import ProcessRetryException, ProcessTerminatedException, ProcessTimeoutException
from entangle.thread import thread
from entangle.workflow import workflow

from . import bodies
from .evidence import alive, most_at_once, note, notes, notes_of, pids_in, text_of, wait_until
from .ways import Way, needed

VALUES: list[Any] = [
    None,
    False,
    True,
    0,
    0.0,
    -1,
    10**30,
    1 + 2j,
    "",
    "naïve ✓",
    b"",
    [],
    (),
    {},
    set(),
    frozenset({1}),
    [None, False, 0],
    {"a": {"b": [1, (2, {3})]}},
    range(3),
    bodies.Point(1, [2]),
    bytearray(b"xyz"),
    int,
    len,
    bodies.inc,
]


# --- values and arguments -------------------------------------------------------------------------


@pytest.mark.everywhere
def test_a_nested_expression_gives_its_value(way: Way) -> None:
    add, num, one, subtract, five, two = map(way.process, (bodies.add, bodies.num, bodies.one, bodies.subtract, bodies.five, bodies.two))
    expression = add(add(num(6), two() if False else one()), subtract(five(), two()))
    assert expression() == 10


def test_the_same_written_as_statements(way: Way) -> None:
    add, num, one = map(way.process, (bodies.add, bodies.num, bodies.one))
    _six = num(6)
    _one = one()
    seven = add(_six, _one)
    assert add(seven, 3)() == 10


def test_bodies_run_in_another_process(way: Way) -> None:
    assert way.process(bodies.pid)()() != os.getpid()


def test_nothing_runs_before_the_call_is_called(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    noted = way.process(bodies.noted)
    call = noted(log, noted(log, 1))
    assert notes(log) == []
    assert call() == 1
    assert len(notes(log)) == 2


def test_every_call_runs_everything_again(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    noted = way.process(bodies.noted)
    call = noted(log, noted(log, 5))
    assert [call(), call(), call()] == [5, 5, 5]
    assert len(notes(log)) == 6


@pytest.mark.near
def test_a_call_takes_more_arguments_when_it_is_called(way: Way) -> None:
    describe = way.process(bodies.describe)
    call = describe(1)
    assert call(2, k=4, z=5) == "a=1 b=2 rest=() k=4 more=[('z', 5)]"
    assert call() == "a=1 b=20 rest=() k=3 more=[]"  # calling it has not changed the call
    one = way.process(bodies.one)
    assert call(one(), 3, k=one()) == "a=1 b=1 rest=(3,) k=1 more=[]"


@pytest.mark.near
def test_keywords_and_defaults(way: Way) -> None:
    describe, one = way.process(bodies.describe), way.process(bodies.one)
    assert describe(b=one(), a=one())() == "a=1 b=1 rest=() k=3 more=[]"
    assert describe(one(), 2, 3, one(), k=one(), z=one())() == "a=1 b=2 rest=(3, 1) k=1 more=[('z', 1)]"


@pytest.mark.everywhere
def test_the_same_call_twice_is_one_node(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    stamp = way.process(bodies.noted)(log, 7)
    pair = way.process(bodies.pair)
    assert pair(stamp, pair(stamp, stamp))() == (7, (7, 7))
    assert len(notes(log)) == 1


def test_equal_calls_are_not_the_same_call(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    noted, pair = way.process(bodies.noted), way.process(bodies.pair)
    assert pair(noted(log, 7), noted(log, 7))() == (7, 7)
    assert len(notes(log)) == 2


def test_calls_inside_containers(way: Way) -> None:
    same, one, num = map(way.process, (bodies.same, bodies.one, bodies.num))
    assert same([one(), num(2), 3])() == [1, 2, 3]
    assert same((one(), num(2), 3))() == (1, 2, 3)
    assert same({"a": one(), "b": num(2), "c": 3})() == {"a": 1, "b": 2, "c": 3}
    assert same({one(), num(2), 3})() == {1, 2, 3}
    assert same([{"deep": ({"er": [num(4)]}, one())}])() == [{"deep": ({"er": [4]}, 1)}]
    assert same(bodies.Point(one(), [num(2)]))() == bodies.Point(1, [2])
    values, keywords = way.process(bodies.gather)([one()], k={"x": num(9)})()
    assert (values, keywords) == (([1],), {"k": {"x": 9}})


def test_calls_inside_containers_of_other_types(way: Way) -> None:
    same, one, num = map(way.process, (bodies.same, bodies.one, bodies.num))
    filled = defaultdict(list, {"a": one(), "b": [num(2)]})
    made = same(filled)()
    assert (type(made), made) == (defaultdict, {"a": 1, "b": [2]})
    assert made["c"] == []
    ordered = same(OrderedDict(b=num(2), a=one()))()
    assert (type(ordered), list(ordered.items())) == (OrderedDict, [("b", 2), ("a", 1)])
    counted = same(Counter({"a": num(3), one(): 5}))()
    assert (type(counted), counted) == (Counter, {"a": 3, 1: 5})
    stack = same(bodies.Stack([one(), num(2)]))()
    assert (type(stack), stack) == (bodies.Stack, [1, 2])
    assert set(filled) == {"a", "b"}


def test_a_container_keeps_its_calls_for_the_next_run(way: Way) -> None:
    one = way.process(bodies.one)
    parts = [one(), 2]
    call = way.process(bodies.same)(parts)
    assert call() == [1, 2]
    assert len(parts) == 2
    assert parts[0] != 1
    assert call() == [1, 2]


@pytest.mark.everywhere
def test_any_value_is_a_value(way: Way) -> None:
    """A value may be an argument, a result, and passed between two tasks."""
    same = way.process(bodies.same)
    assert same(same([same(value) for value in VALUES]))() == VALUES
    for value in VALUES[:9]:
        result = same(value)()
        assert result == value
        assert type(result) is type(value)


def test_an_exception_object_is_a_value(way: Way) -> None:
    same = way.process(bodies.same)
    result = same(same(ValueError("only a value")))()
    assert isinstance(result, ValueError)
    assert result.args == ("only a value",)
    stop = same(StopIteration(3))()
    assert isinstance(stop, StopIteration)


@pytest.mark.everywhere
def test_a_huge_value(way: Way) -> None:
    same, join = way.process(bodies.same), way.process(bodies.add)
    block = os.urandom(3_000_000)
    assert same(same(block))() == block
    assert join(same(block), same(block))() == block + block


@pytest.mark.near
def test_many_values_of_middle_size(way: Way) -> None:
    """More than fits into the area in which small values are stored at first."""
    same, gather = way.process(bodies.same), way.process(bodies.gather)
    parts = [bytes([i]) * 40_000 for i in range(60)]
    values, _ = gather(*(same(same(part)) for part in parts))()
    assert values == tuple(parts)


@pytest.mark.near
def test_numpy_arrays(way: Way) -> None:
    numpy = needed("numpy")
    same, add = way.process(bodies.same), way.process(bodies.add)
    array = numpy.arange(200_000, dtype="float64")
    result = add(same(array), same(array))()
    assert (result == 2 * array).all()
    result[0] = 9  # it can be written to
    assert array[0] == 0


def test_a_body_that_changes_its_argument_changes_nobody_elses(way: Way) -> None:
    @way.process
    def append(values: list[int]) -> list[int]:
        values.append(4)
        return values

    shared = way.process(bodies.same)([1, 2, 3])
    pair = way.process(bodies.pair)
    assert pair(append(shared), append(shared))() == ([1, 2, 3, 4], [1, 2, 3, 4])
    mine = [1, 2, 3]
    assert append(mine)() == [1, 2, 3, 4]
    assert mine == [1, 2, 3]


@pytest.mark.near
def test_wrong_arguments_are_told_at_once(way: Way) -> None:
    add, one = way.process(bodies.add), way.process(bodies.one)
    with pytest.raises(TypeError, match="add"):
        add(1, 2, 3)
    with pytest.raises(TypeError, match=r"add.*colour|colour.*add"):
        add(1, 2, colour=3)
    with pytest.raises(TypeError, match="one"):
        one(1)
    with pytest.raises(TypeError):
        add(1, a=2)
    with pytest.raises(TypeError, match=r"add.*b"):
        add(1)
    with pytest.raises(TypeError, match="one"):
        one()(5)  # arguments added when the call is called must fit too


# --- kinds of functions ---------------------------------------------------------------------------


@pytest.mark.everywhere
def test_closures_and_lambdas(way: Way) -> None:
    factor = 3

    @way.process
    def times(x: int) -> int:
        return x * factor

    double = way.process(lambda x: 2 * x)
    assert times(double(times(5)))() == 90


@pytest.mark.everywhere
def test_a_closure_over_a_task(way: Way) -> None:
    double = way.process(lambda x: 2 * x)

    @way.process
    def quadruple(x: int) -> Any:
        return double(double(x))()

    assert quadruple(3)() == 12


def test_functions_as_arguments(way: Way) -> None:
    @way.process
    def apply(f: Any, *args: Any) -> Any:
        return f(*args)

    factor = 5
    assert apply(bodies.inc, 3)() == 4
    assert apply(lambda x: x * factor, 3)() == 15


@pytest.mark.everywhere
def test_methods(way: Way) -> None:
    account = bodies.Account(100)
    assert way.there(account.after)(20)() == 120
    assert way.there(bodies.Account.after)(account, 20)() == 120
    assert way.there(bodies.Account.interest)(5)() == 15
    assert way.there(account.interest)(5)() == 15
    assert way.there(bodies.Account.double)(way.there(account.double)(5))() == 20


def test_a_method_of_a_local_class(way: Way) -> None:
    class Counter:
        def __init__(self, start: int) -> None:
            self.start = start

        @way.process
        def plus(self, n: int) -> int:
            return self.start + n

    counter = Counter(3)
    assert counter.plus(counter.plus(1))() == 7


@pytest.mark.everywhere
def test_a_decorated_function_of_a_module(way: Way) -> None:
    task = way.there(bodies.decorated)
    assert task(task(2))() == 200


@pytest.mark.everywhere
def test_async_bodies(way: Way) -> None:
    @way.process
    async def later(x: int) -> int:
        import asyncio

        first, second = await asyncio.gather(asyncio.sleep(0, x), asyncio.sleep(0.001, 1))
        return first + second

    assert later(later(1))() == 3


def test_a_builtin_function(way: Way) -> None:
    assert way.process(max)([3, way.process(bodies.five)(), 4])() == 5


# --- graphs ---------------------------------------------------------------------------------------


@pytest.mark.near
def test_a_long_chain(way: Way) -> None:
    inc = way.process(bodies.inc)
    call = inc(0)
    for _ in range(299):
        call = inc(call)
    assert call() == 300


@pytest.mark.near
def test_a_wide_fan(way: Way) -> None:
    num, total = way.process(bodies.num), way.process(bodies.total)
    assert total(*(num(i) for i in range(500)))() == 124_750


def test_a_tree(way: Way) -> None:
    num, add = way.process(bodies.num), way.process(bodies.add)
    level = [num(i) for i in range(64)]
    while len(level) > 1:
        level = [add(a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
    assert level[0]() == 2016


def test_a_diamond(way: Way) -> None:
    num, inc, add = way.process(bodies.num), way.process(bodies.inc), way.process(bodies.add)
    top = num(1)
    for _ in range(20):
        top = add(inc(top), top)
    expected = 1
    for _ in range(20):
        expected = expected + 1 + expected
    assert top() == expected


@pytest.mark.near
@pytest.mark.parametrize("seed", range(3))
def test_a_random_graph_gives_what_plain_functions_give(way: Way, seed: int) -> None:
    chance = random.Random(seed)
    add, subtract, num, total = map(way.process, (bodies.add, bodies.subtract, bodies.num, bodies.total))
    calls = [num(i) for i in range(10)]
    values = list(range(10))
    for _ in range(120):
        i, j = chance.randrange(len(calls)), chance.randrange(len(calls))
        kind = chance.choice("asc")
        if kind == "a":
            calls.append(add(calls[i], calls[j]))
            values.append(values[i] + values[j])
        elif kind == "s":
            calls.append(subtract(calls[i], j))
            values.append(values[i] - j)
        else:
            some = [chance.randrange(len(calls)) for _ in range(chance.randrange(5))]
            calls.append(total(*(calls[k] for k in some), 1))
            values.append(sum(values[k] for k in some) + 1)
    assert total(*calls)() == sum(values)


def test_threads_and_processes_in_one_graph(way: Way) -> None:
    pair, pid = way.process(bodies.pair), way.process(bodies.pid)

    @thread
    def here(x: Any) -> tuple[Any, int]:
        return x, os.getpid()

    (there, me), (also_there, also_me) = pair(here(pid()), here(pid()))()
    assert me == also_me == os.getpid()
    assert os.getpid() not in (there, also_there)
    again, still_me = here(pair(here(1), pid()))()
    assert still_me == os.getpid()
    assert again[0] == (1, os.getpid())


def test_waiting_bodies_hold_nobody_up(way: Way, tmp_path: Path) -> None:
    """Each body waits until all others have begun: with too few workers, none would ever finish."""
    log = str(tmp_path / "log")
    meet, gather = way.process(bodies.meet), way.process(bodies.gather)
    number = 16 if way.start != "spawn" else 8
    pids, _ = gather(*(meet(log, number) for _ in range(number)))()
    assert len(set(pids)) == number


@pytest.mark.near
def test_workers_are_shared_by_the_calls_of_a_run(way: Way) -> None:
    pid_and, pid, gather = way.process(bodies.pid_and), way.process(bodies.pid), way.process(bodies.gather)
    chain = pid()
    for _ in range(10):
        chain = pid_and(chain)
    pids, _ = gather(*(pid() for _ in range(100)), chain)()
    assert len(set(pids)) < 50


@pytest.mark.near
def test_a_worker_is_gone_after_its_run(way: Way) -> None:
    """Except that of a session, which waits for the next run."""
    pid = way.process(bodies.pid)()()
    if way.session:
        assert way.process(bodies.pid)()() == pid
    else:
        wait_until(lambda: not alive(pid), 1.0)


# --- the surroundings of a body -------------------------------------------------------------------


@pytest.mark.near
def test_bodies_see_the_callers_surroundings_as_they_are_now(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @way.process
    def surroundings() -> tuple[str | None, str | None, str, bool, list[str]]:
        return os.environ.get("COLOUR"), os.environ.get("HOME_OF_NOBODY"), os.getcwd(), "/no/such/folder" in sys.path, sys.argv

    monkeypatch.setenv("COLOUR", "blue")
    monkeypatch.setenv("HOME_OF_NOBODY", "x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("/no/such/folder")
    assert surroundings()() == ("blue", "x", str(tmp_path.resolve()), True, sys.argv)
    monkeypatch.setenv("COLOUR", "green")
    monkeypatch.delenv("HOME_OF_NOBODY")
    assert surroundings()()[:2] == ("green", None)


@pytest.mark.everywhere
def test_modules_beside_the_caller_can_be_imported(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"beside_{way.name.replace('-', '_')}"
    source = "class Found:\n    def __init__(self, n):\n        self.n = n\ndef double(f):\n    return Found(2 * f.n)\n"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = __import__(name)
    double = way.process(module.double)
    result = double(double(module.Found(3)))()
    assert result.n == 12
    assert isinstance(result, module.Found)


def test_what_a_body_does_to_its_process_does_not_show_in_the_caller(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAINTED", raising=False)
    seen: list[int] = []

    @way.process
    def paint() -> list[int]:
        os.environ["PAINTED"] = "yes"
        os.chdir("/")
        seen.append(1)
        return seen

    before = os.getcwd()
    assert paint()() == [1]
    assert seen == []
    assert "PAINTED" not in os.environ
    assert os.getcwd() == before


def test_random_numbers_differ_between_workers(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @way.process
    def draw(path: str, number: int) -> float:
        bodies.meet(path, number)  # so that each draws in a worker of its own
        return random.random()

    values, _ = way.process(bodies.gather)(*(draw(log, 4) for _ in range(4)))()
    assert len(set(values)) == 4


def test_a_body_runs_in_the_main_thread_of_its_worker(way: Way) -> None:
    """So it may set signal handlers, as programs do."""

    @way.process
    def main() -> bool:
        import signal

        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        return threading.current_thread() is threading.main_thread()

    assert main()() is True


def test_bodies_may_use_multiprocessing_and_subprocesses(way: Way) -> None:
    @way.process
    def programs() -> tuple[bytes, int]:
        import multiprocessing

        said = subprocess.run(["echo", "hello"], stdout=subprocess.PIPE, check=True).stdout
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=lambda: queue.put(42))
        child.start()
        answer = queue.get()
        child.join()
        return said, answer

    assert programs()() == (b"hello\n", 42)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_the_callers_get_the_bodys_own_error(way: Way) -> None:
    with pytest.raises(ValueError) as caught:
        way.process(bodies.fail)()()
    assert type(caught.value) is ValueError
    assert str(caught.value) == "no such thing"
    with pytest.raises(bodies.Refused) as refused:
        way.process(bodies.refuse)("entry", 403)()
    assert (refused.value.what, refused.value.code) == ("entry", 403)


@pytest.mark.everywhere
def test_an_error_brings_its_remote_traceback(way: Way) -> None:
    with pytest.raises(ValueError) as caught:
        way.process(bodies.fail)()()
    cause = str(caught.value.__cause__)
    assert "Traceback (most recent call last)" in cause
    assert "bodies.py" in cause
    assert "in fail" in cause
    assert "ValueError: no such thing" in cause


@pytest.mark.everywhere
def test_an_error_tells_the_call_path_and_where_it_ran(way: Way) -> None:
    add, num = way.process(bodies.add), way.process(bodies.num)
    subtract, fail = way.process(bodies.subtract), way.process(bodies.fail)
    with pytest.raises(ValueError) as caught:
        add(num(1), subtract(num(2), fail()))()
    told = notes_of(caught.value)
    assert "add(num(…), subtract(…)) → subtract(num(…), fail()) → fail" in told
    for word in ("host", "pid", "cpu", "attempt"):
        assert word in told.lower(), told


def test_what_the_error_of_an_error_was(way: Way) -> None:
    @way.process
    def wrap() -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise RuntimeError("outer") from error

    with pytest.raises(RuntimeError, match="outer") as caught:
        wrap()()
    assert "KeyError: 'inner'" in text_of(caught.value)


def test_the_first_failure_ends_the_run(way: Way, tmp_path: Path) -> None:
    """What runs is stopped, and what waits never starts."""
    log, after = str(tmp_path / "log"), str(tmp_path / "after")
    gather, noted = way.process(bodies.gather), way.process(bodies.noted)
    lingering = way.process(bodies.linger)(log)
    failing = way.process(bodies.fail_once_there)(log)
    with pytest.raises(ValueError, match="no such thing"):
        gather(noted(after, lingering), noted(after, failing))()
    assert notes(after) == []
    if way.here:
        wait_until(lambda: not any(map(alive, pids_in(log))), 1.0)


def test_a_failure_in_an_argument_that_is_used_twice(way: Way) -> None:
    failing = way.process(bodies.fail)()
    pair = way.process(bodies.pair)
    with pytest.raises(ValueError, match="no such thing"):
        pair(pair(failing, 1), failing)()


def test_after_a_failure_the_call_can_be_called_again(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    call = way.process(bodies.same)(way.process(bodies.fail_until)(log, 2))
    with pytest.raises(ValueError, match="attempt 1"):
        call()
    assert call() == "done"


def test_an_error_of_a_local_class(way: Way) -> None:
    """If the class can be pickled, the error arrives as itself; otherwise the error names it. The
    run never hangs."""

    class Mine(Exception):
        pass

    @way.process
    def fail() -> None:
        raise Mine("of my own")

    with pytest.raises((Mine, UnpicklableError)) as caught:
        fail()()
    assert "Mine" in text_of(caught.value)
    assert "of my own" in text_of(caught.value)


@pytest.mark.everywhere
def test_an_error_that_cannot_be_pickled(way: Way) -> None:
    """It arrives with its own class, without the parts that cannot be pickled."""
    with pytest.raises(bodies.HoldsALock, match="held") as caught:
        way.process(bodies.raise_lock)()()
    assert "lock" not in vars(caught.value)
    told = text_of(caught.value)
    assert "raise_lock" in told
    assert "attribute 'lock' (a lock)" in told


@pytest.mark.everywhere
def test_an_error_that_refuses_attributes(way: Way) -> None:
    """The engine sets no attribute on the error, yet the error tells where it came from."""
    one, fail = way.process(bodies.one), way.process(bodies.raise_frozen)
    for call in (fail(3), way.process(bodies.pair)(one(), fail(3))):
        with pytest.raises(bodies.Frozen) as caught:
            call()
        assert (caught.value.a, caught.value.args) == (3, (3,))
        assert "raise_frozen" in text_of(caught.value)
    with pytest.raises(ProcessRetryException, match="Frozen"):
        way.process(retry=1)(bodies.raise_frozen)(3)()


@pytest.mark.everywhere
def test_an_error_whose_class_takes_other_arguments(way: Way) -> None:
    with pytest.raises(bodies.NeedsTwo) as caught:
        way.process(bodies.raise_needs_two)()()
    assert (caught.value.args, caught.value.code) == (("no (7)",), 7)


@pytest.mark.everywhere
def test_a_value_that_cannot_be_pickled(way: Way) -> None:
    with pytest.raises(UnpicklableError) as caught:
        way.process(bodies.a_lock)()()
    assert "a_lock" in str(caught.value)
    assert "lock" in str(caught.value).replace("a_lock", "")


def test_an_argument_that_cannot_be_pickled(way: Way) -> None:
    """By fork, also in a session, it is not pickled, and works. Where it must be pickled, the error
    names the task and the argument."""
    lock = threading.Lock()

    @way.process
    def use(number: int, guard: Any) -> int:
        with guard["lock"]:
            return number

    call = use(3, guard={"lock": lock})
    if way.start == "fork" or way.session:
        assert call() == 3
    else:
        with pytest.raises(TypeError) as caught:
            call()
        assert isinstance(caught.value, EntangleError)
        for word in ("'use'", "lock"):
            assert word in str(caught.value)
        assert "guard" in str(caught.value) or "argument 2" in str(caught.value)


@pytest.mark.everywhere
def test_a_body_that_ends_its_process(way: Way) -> None:
    with pytest.raises(ProcessTerminatedException) as caught:
        way.process(bodies.same)(way.process(bodies.die)(3))()
    told = text_of(caught.value)
    assert "3" in str(caught.value)
    assert "same(die(…)) → die" in told
    assert "these were my last words" in told


def test_a_body_that_exits(way: Way) -> None:
    for code in (0, 1, "goodbye", None):
        with pytest.raises(ProcessTerminatedException, match="SystemExit"):
            way.process(bodies.exit_with)(code)()
    with pytest.raises(ProcessTerminatedException, match="KeyboardInterrupt"):
        way.process(bodies.interrupt)()()


# --- options --------------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_retry(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    call = way.process(bodies.same)(way.process(retry=2)(bodies.fail_until)(log, 3))
    assert call() == "done"
    assert len(notes(log)) == 3


@pytest.mark.everywhere
def test_retry_used_up(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with pytest.raises(ProcessRetryException) as caught:
        way.process(retry=2)(bodies.fail_until)(log, 9)()
    assert len(notes(log)) == 3
    assert isinstance(caught.value.__cause__, ValueError)
    assert str(caught.value.__cause__) == "attempt 3"
    told = text_of(caught.value)
    assert "attempt 1" in told
    assert "attempt 2" in told


def test_retry_survives_the_death_of_the_worker(way: Way, tmp_path: Path) -> None:
    """The arguments are kept for the second attempt, and not computed again."""
    log, made = str(tmp_path / "log"), str(tmp_path / "made")
    argument = way.process(bodies.noted)(made, list(range(1000)))
    assert way.process(retry=3)(bodies.die_until)(log, 3, argument)() == list(range(1000))
    assert len(notes(log)) == 3
    assert len(notes(made)) == 1


def test_without_retry_a_body_never_runs_twice(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with pytest.raises(ProcessTerminatedException, match="SIGKILL"):
        way.process(bodies.die_until)(log, 2)()
    assert len(notes(log)) == 1


@pytest.mark.everywhere
def test_a_deadline_kills_the_body_and_what_it_started(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with pytest.raises(ProcessTimeoutException) as caught:
        way.process(timeout=1)(bodies.linger_with_child)(log)()
    assert "linger_with_child" in text_of(caught.value)
    if way.here:
        pids = pids_in(log)
        wait_until(lambda: not any(map(alive, pids)), 1.0)


def test_arguments_that_do_not_arrive(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    pair = way.process(wait=0.5)(bodies.pair)
    with pytest.raises(ProcessTimeoutException, match="linger"):
        pair(way.process(bodies.one)(), way.process(bodies.linger)(log))()
    if way.here:
        wait_until(lambda: not any(map(alive, pids_in(log))), 1.0)


def test_a_process_of_its_own(way: Way) -> None:
    pid, pid_and, gather = way.process(fresh=True)(bodies.pid), way.process(fresh=True)(bodies.pid_and), way.process(bodies.gather)
    pids, _ = gather(pid(), pid(), pid_and(pid_and(pid())))()
    assert len(set(pids)) == 3


def test_each_of_a_chain_has_a_process_of_its_own(way: Way) -> None:
    after = way.process(fresh=True)(bodies.pids_up_to)
    assert len(set(after(after(after([])))())) == 3


def test_a_cached_value(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    noted = way.process(cache=True)(bodies.noted)
    assert [noted(log, 1)(), noted(log, 1)(), noted(log, 2)()] == [1, 1, 2]
    assert len(notes(log)) == 2
    assert way.process(bodies.add)(noted(log, 1), noted(log, 2))() == 3
    assert len(notes(log)) == 2


@pytest.mark.near
def test_shared_memory(way: Way) -> None:
    @way.process(shared_memory=True)
    def create(smm: Any = None, sm: Any = None) -> tuple[str, int]:
        segment = smm.SharedMemory(1000)
        segment.buf[:5] = b"hello"
        return segment.name, segment.size

    @way.process(shared_memory=True)
    def read(named: tuple[str, int], smm: Any = None, sm: Any = None) -> bytes:
        name, _ = named
        segment = sm(name)
        return bytes(segment.buf[:5])

    assert read(create())() == b"hello"


@pytest.mark.near
def test_a_list_in_shared_memory(way: Way) -> None:
    @way.process(shared_memory=True)
    def create(smm: Any = None, sm: Any = None) -> Any:
        made = smm.ShareableList([1, 2.5, True, "müde", b"a\0", None, -3])
        assert list(made) == [1, 2.5, True, "müde", b"a\0", None, -3]
        return made

    @way.process(shared_memory=True)
    def change(numbers: Any, smm: Any = None, sm: Any = None) -> str:
        numbers[0] += 41
        numbers[3] = "wach"
        numbers[-1] = None
        return str(numbers.shm.name)

    @way.process(shared_memory=True)
    def read(numbers: Any, name: str, smm: Any = None, sm: Any = None) -> list[Any]:
        assert list(sm.ShareableList(name=name)) == list(numbers)
        return [*numbers, len(numbers), numbers.index("wach"), numbers.count(None), 2.5 in numbers]

    made = create()
    assert read(made, change(made))() == [42, 2.5, True, "wach", b"a\0", None, None, 7, 3, 2, True]


@pytest.mark.near
def test_a_segment_travels_as_itself(way: Way) -> None:
    @way.process(shared_memory=True)
    def create(smm: Any = None, sm: Any = None) -> Any:
        segment = smm.SharedMemory(10)
        segment.buf[:5] = b"hello"
        return segment

    @way.process
    def read(segment: Any) -> bytes:
        return bytes(segment.buf[:5])

    assert read(create())() == b"hello"


@pytest.mark.near
def test_what_a_list_in_shared_memory_cannot_hold(way: Way) -> None:
    @way.process(shared_memory=True)
    def attempts(smm: Any = None, sm: Any = None) -> list[str]:
        made = smm.ShareableList(["short", 1])

        def said(action: Any) -> str:
            try:
                action()
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            return "nothing"

        return [
            said(lambda: made.__setitem__(0, "no longer short")),
            said(lambda: made.__setitem__(0, "8 bytes.")),
            said(lambda: made.__setitem__(1, [2])),
            said(lambda: made.__setitem__(1, 1 << 63)),
            said(lambda: made[2]),
            said(lambda: made.index(7)),
            said(lambda: smm.ShareableList([{}])),
            said(lambda: list(smm.ShareableList([]))),
        ]

    told = attempts()()
    assert told[0] == "ValueError: item 0 of this ShareableList has room for 8 bytes, and str needs 15"
    assert told[1] == "nothing"
    assert told[2] == "TypeError: a ShareableList holds int, float, bool, str, bytes and None, not list"
    assert told[3].startswith("OverflowError")
    assert told[4] == "IndexError: item 2 is out of range: this ShareableList has 2 items"
    assert told[5].startswith("ValueError")
    assert told[6].startswith("TypeError")
    assert told[7] == "nothing"


# --- nested runs ----------------------------------------------------------------------------------


def test_a_body_that_gives_a_call(way: Way) -> None:
    add, num = way.process(bodies.add), way.process(bodies.num)

    @way.process
    def decide(n: int) -> Any:
        return add(num(n), num(1)) if n else 0

    assert add(decide(4), decide(0))() == 5


@pytest.mark.everywhere
def test_a_body_that_calls_a_call(way: Way) -> None:
    add, num = way.process(bodies.add), way.process(bodies.num)

    @way.process
    def run(n: int) -> int:
        call = add(num(n), num(2))
        return int(call()) + int(call())

    assert run(run(1))() == 16


def test_runs_three_deep(way: Way) -> None:
    add, num = way.process(bodies.add), way.process(bodies.num)

    @way.process
    def inner(n: int) -> Any:
        return add(num(n), 1)()

    @way.process
    def middle(n: int) -> Any:
        return add(inner(n), inner(n))()

    @way.process
    def outer(n: int) -> Any:
        return add(middle(n), middle(n))()

    assert outer(4)() == 20


@pytest.mark.everywhere
def test_a_workflow(way: Way) -> None:
    add, num = way.process(bodies.add), way.process(bodies.num)

    @workflow
    def first() -> Any:
        return add(num(1), num(2))

    @workflow
    def second(value: Any) -> Any:
        return add(value(), num(3))

    assert first()() == 3
    assert second(first)() == 6
    assert add(first(), second(first))() == 9


@pytest.mark.everywhere
def test_an_error_deep_in_nested_runs(way: Way) -> None:
    fail = way.process(bodies.fail)

    @way.process
    def inner() -> Any:
        return fail()()

    @way.process
    def outer() -> Any:
        return inner()

    with pytest.raises(ValueError, match="no such thing") as caught:
        outer()()
    told = text_of(caught.value)
    for name in ("outer", "inner", "fail"):
        assert name in told
    assert "in fail" in told


def test_a_deadline_reaches_nested_runs(way: Way, tmp_path: Path) -> None:
    linger = way.process(bodies.linger)

    # A busy machine may need longer to begin the nested body: then try again with more time.
    for seconds in (0.5, 2, 8, 32) if way.here else (2, 8, 32):
        log = str(tmp_path / f"log-{seconds}")

        @way.process(timeout=seconds)
        def outer(path: str) -> Any:
            note(path, "outer", os.getpid())
            return linger(path)()

        with pytest.raises(ProcessTimeoutException, match="outer"):
            outer(log)()
        if os.path.exists(log) and len(pids_in(log)) == 2:
            break
    pids = pids_in(log)
    assert len(pids) == 2
    if way.here:
        wait_until(lambda: not any(map(alive, pids)))


@pytest.mark.near
def test_nested_runs_share_the_cookies_of_a_scheduler(way: Way, tmp_path: Path) -> None:
    from entangle.scheduler import scheduler

    log = str(tmp_path / "log")
    spanned = way.there(scheduler(cpus=1)(way.process(bodies.spanned)))

    @way.process
    def four(path: str) -> Any:
        return way.process(bodies.gather)(*(spanned(path) for _ in range(2)))()[0]

    way.process(bodies.gather)(four(log), four(log))()
    assert len(notes(log)) == 4
    assert most_at_once(log) == 1


# --- other ways to call ---------------------------------------------------------------------------


@pytest.mark.everywhere
def test_a_future(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    heard: list[Any] = []
    call = way.process(bodies.add)(way.process(bodies.noted)(log, 1), 2)
    future = call.future(callback=lambda f: heard.append((f, f.result())))
    assert concurrent.futures.Future in type(future).__mro__
    assert not future.done()
    assert notes(log) == []
    future.entangle()
    assert future.result(timeout=30) == 3
    assert heard == [(future, 3)]
    assert len(notes(log)) == 1


def test_a_future_of_a_run_that_was_started_otherwise(way: Way, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    heard: list[int] = []
    call = way.process(bodies.noted)(log, 5)
    future = call.future(callback=lambda f: heard.append(f.result()))
    call(proc=True)
    future.entangle()
    assert future.result(timeout=30) == 5
    assert heard == [5]
    assert len(notes(log)) == 1


def test_start_and_come_back_at_once(way: Way, tmp_path: Path) -> None:
    gate, log = str(tmp_path / "gate"), str(tmp_path / "log")

    @way.process
    def behind_the_gate(gate: str, log: str) -> int:
        note(log, "in")
        wait_until(lambda: notes(gate))
        return 3

    future = behind_the_gate(gate, log)(proc=True)
    assert not future.done()
    note(gate, "open")
    assert future.result(timeout=30) == 3


def test_a_future_with_an_error(way: Way) -> None:
    future = way.process(bodies.fail)()(proc=True)
    with pytest.raises(ValueError, match="no such thing"):
        future.result(timeout=30)
    assert isinstance(future.exception(), ValueError)


@pytest.mark.everywhere
def test_await(way: Way) -> None:
    import asyncio

    add, num = way.process(bodies.add), way.process(bodies.num)

    async def several() -> list[int]:
        return list(await asyncio.gather(add(num(1), 1), add(num(2), 1)))

    assert asyncio.run(several()) == [2, 3]


@pytest.mark.everywhere
def test_several_runs_at_once(way: Way, tmp_path: Path) -> None:
    """Two runs that wait for each other run at the same time."""
    log = str(tmp_path / "log")
    meet = way.process(bodies.meet)
    first, second = meet(log, 2)(proc=True), meet(log, 2)(proc=True)
    assert first.result(timeout=30) != second.result(timeout=30)


def test_a_call_in_a_thread_of_the_caller(way: Way) -> None:
    if way.start == "fork":
        pytest.skip("fork with other threads about is what `auto` avoids, and what Python warns of")
    add, num = way.process(bodies.add), way.process(bodies.num)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: add(num(n), num(1))(), range(8)))
    assert results == list(range(1, 9))


@pytest.mark.near
def test_the_choice_of_a_start_for_one_call(way: Way) -> None:
    call = way.process(bodies.add)(1, way.process(bodies.one)())
    for how in ("auto", "forkserver", "spawn"):
        assert call(start=how) == 2
    with pytest.raises(EntangleError, match="frok") as caught:
        call(start="frok")
    assert isinstance(caught.value, ArgumentError | TypeError)


@pytest.mark.near
def test_progress_of_a_run_without_a_terminal(way: Way, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from entangle._run.progress import following

    monkeypatch.setattr(following, "SILENT", 0.0)
    assert way.process(bodies.burn)(0.2)(progress=True) > 0
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("1 done, 0 running, 0 waiting in ")


@pytest.mark.near
def test_graph_is_the_same_everywhere(way: Way) -> None:
    add, num, one = way.process(bodies.add), way.process(bodies.num), way.process(bodies.one)
    assert add(num(6), one()).graph(wait=True) == {"add": [{"num": {"6": []}}, {"one": []}]}
