"""Tasks, layers and calls: what a decorator makes of a function, and what a call is before it
runs."""

from __future__ import annotations

import concurrent.futures
import copy
import gc
import inspect
import json
import math
import os
import pickle
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy
import pytest

from entangle.errors import ArgumentError, CycleError, EntangleError, OptionError
from entangle.interpreter import interpreter
from entangle.limit import limit
from entangle.local import local
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.task import Layer, Task, task
from entangle.thread import thread
from entangle.workflow import workflow

from . import bodies
from .evidence import note, notes, notes_of, wait_until

DECORATORS: dict[str, Any] = {
    "task": task,
    "process": process,
    "thread": thread,
    "workflow": workflow,
    "scheduler": scheduler,
    "local": local,
}
#: An option of each of them, with a valid value.
OPTIONS: dict[str, dict[str, Any]] = {
    "process": {"timeout": 60},
    "thread": {"timeout": 60},
    "scheduler": {"cpus": 2},
    "local": {"cpus": 2},
}


def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


@process
def module_level(n: int) -> int:
    """A task that can be imported."""
    return n + 1


# --- decorators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECORATORS)
def test_bare_with_parentheses_and_with_options(name: str) -> None:
    decorator = DECORATORS[name]
    assert decorator(add)(1)() == 3
    assert decorator()(add)(1)() == 3
    if name in OPTIONS:
        assert decorator(**OPTIONS[name])(add)(1)() == 3


@pytest.mark.parametrize("name", DECORATORS)
def test_a_task_looks_like_its_function(name: str) -> None:
    variants: list[Any] = [DECORATORS[name](add), DECORATORS[name]()(add), process(DECORATORS[name](add))]
    for made in variants:
        assert made.__name__ == "add"
        assert made.__qualname__ == "add"
        assert made.__doc__ == "Add two numbers."
        assert made.__module__ == add.__module__
        assert inspect.signature(made) == inspect.signature(add)
        assert callable(made)
        assert made.__wrapped__(1, 5) == 6  # the plain function can still be called


@pytest.mark.parametrize("name", DECORATORS)
def test_an_option_that_there_is_not(name: str) -> None:
    with pytest.raises(TypeError, match="colour") as caught:
        DECORATORS[name](colour=3)(add)
    assert isinstance(caught.value, OptionError)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", DECORATORS)
@pytest.mark.parametrize("what", [3, None, "add", [add]])
def test_a_function_that_is_no_function(name: str, what: Any) -> None:
    decorator = DECORATORS[name]
    if what is None:  # the same as `decorator()`, whose result takes functions only
        decorator, what = decorator(), 3
    with pytest.raises(TypeError) as caught:
        decorator(what)
    assert isinstance(caught.value, EntangleError)


def test_decorators_stack_in_any_order() -> None:
    def three() -> int:
        return 3

    for made in (
        process(local(three)),
        local(process(three)),
        scheduler(cpus=1)(process(three)),
        process(scheduler(cpus=1)(three)),
        scheduler(cpus=1)(workflow(three)),
        workflow(scheduler(cpus=1)(three)),
        scheduler(cpus=2)(thread(local(three))),
        limit("three", at_once=1)(process(three)),
        process(limit("three", at_once=1)(three)),
        process(timeout=60)(local(cpus=1)(three)),
        task(process(task(three))),
    ):
        assert made()() == 3


def test_decorating_leaves_the_function_as_it_was() -> None:
    before = dict(vars(add))
    process(add)
    thread(timeout=1)(add)
    assert add(1) == 3
    assert vars(add) == before


def test_a_task_is_immutable() -> None:
    made = process(add)
    again = thread(made)
    assert again is not made
    for attribute in ("layers", "function", "anything_else", "__name__"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(made, attribute, ())


def test_a_task_and_a_call_print_as_what_they_are() -> None:
    made = process(add)
    assert "add" in repr(made)
    call = made(made(1), b=[7])
    assert "add" in repr(call)
    assert len(repr(call)) < 2000
    big = made(1, b=list(range(100_000)))  # type: ignore[arg-type, unused-ignore]
    assert len(repr(big)) < 2000


def test_a_bare_task_runs_where_it_is_called() -> None:
    where: list[tuple[int, threading.Thread]] = []

    @task
    def here() -> int:
        where.append((os.getpid(), threading.current_thread()))
        return 3

    assert here()() == 3
    assert where == [(os.getpid(), threading.current_thread())]


def test_a_bare_task_among_processes() -> None:
    @task
    def here(a: int, b: int) -> tuple[int, int]:
        return a + b, os.getpid()

    assert here(process(bodies.one)(), process(bodies.two)())() == (3, os.getpid())
    value, pid = process(bodies.same)(here(1, process(bodies.one)()))()
    assert (value, pid) == (2, os.getpid())


class Twice(Layer):
    """Runs the rest twice, and returns both values."""

    def run(self, inner: Any, args: Any, kwargs: Any) -> Any:
        return inner(*args, **kwargs), inner(*args, **kwargs)


def twice(function: Any) -> Any:
    """A user's decorator."""
    return task(function, Twice())


@process
@twice
def own_layer(n: int) -> int:
    return n * os.getpid()


@pytest.mark.parametrize("how", ["fork", "forkserver", "spawn"])
def test_a_new_layer_takes_ten_lines(how: str) -> None:
    made = twice(add)
    assert made(1)() == (3, 3)
    assert made(1, process(bodies.five)())() == (6, 6)
    assert made.__name__ == "add"
    first, second = own_layer(1)(start=how)
    assert first == second != os.getpid()
    # A layer that does not say where to run runs with the layer below.
    first, second = twice(process(bodies.pid))()(start=how)
    assert first == second != os.getpid()


class Looking(Layer):
    """Notes which function it is put around, and which function it runs."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """Note the function."""
        self.seen.append(inner)
        return super().around(inner)

    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note it again."""
        self.seen.append(inner)
        return inner(*args, **kwargs)


class Quiet(Layer):
    """Does nothing."""

    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run it unchanged."""
        return inner(*args, **kwargs)


def with_memory(a: int, b: int = 2, *, smm: Any = None, sm: Any = None) -> int:
    """Add two numbers, with shared memory."""
    return a + b


with_memory.priority = 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("function", "below"),
    [
        (add, lambda f: task(f)),
        (add, lambda f: task(task(f, Quiet()), Quiet())),
        (add, process),
        (add, thread),
        (add, workflow),
        (add, local(cpus=1)),
        (add, process(cache=True)),
        (add, interpreter),
        (with_memory, process(shared_memory=True)),
    ],
)
def test_a_layer_sees_the_function_that_was_written(function: Any, below: Any) -> None:
    """Its name, module, docstring and parameters, not those of entangle's wrappers."""
    looking = Looking()
    made = task(below(function), looking)
    _ = made.body
    made.body.function(1) if below is not interpreter else None
    for seen in looking.seen:
        assert (seen.__name__, seen.__qualname__, seen.__module__, seen.__doc__) == (
            function.__name__,
            function.__qualname__,
            function.__module__,
            function.__doc__,
        )
        assert inspect.signature(seen) == inspect.signature(function)
        assert inspect.unwrap(seen) is function
        assert getattr(seen, "priority", None) == getattr(function, "priority", None)
    assert looking.seen


def test_a_layer_around_what_has_no_name_sees_that_of_the_task() -> None:
    import functools

    looking = Looking()
    made = task(functools.partial(add, 1), looking)
    assert made(2)() == 3
    assert {seen.__name__ for seen in looking.seen} == {"partial"}


def test_layers_are_an_onion() -> None:
    order: list[str] = []

    class Say(Layer):
        def __init__(self, word: str) -> None:
            self.word = word

        def run(self, inner: Any, args: Any, kwargs: Any) -> Any:
            order.append(f"into {self.word}")
            try:
                return inner(*args, **kwargs)
            finally:
                order.append(f"out of {self.word}")

    def say(word: str) -> Callable[[Callable[..., Any]], Task[..., int]]:
        return lambda function: task(function, Say(word))

    @say("outer")
    @say("inner")
    def body(n: int) -> int:
        order.append("body")
        return n

    assert body(3)() == 3
    assert order == ["into outer", "into inner", "body", "out of inner", "out of outer"]


# --- calls ----------------------------------------------------------------------------------------


def test_a_call_is_itself_and_nobody_else() -> None:
    made = process(add)
    first, second = made(1), made(1)
    assert first == first
    assert first != second
    assert len({first, second, first}) == 2
    assert hash(first) == hash(first)


@pytest.mark.parametrize(
    "use",
    [
        lambda call: 1 if call else 2,
        lambda call: not call,
        lambda call: call or 3,
        lambda call: any([call]),
        lambda call: list(call),
        lambda call: [*call],
        lambda call: max(call),
        lambda call: 3 in call,
        lambda call: len(call),
        lambda call: dict(call),
    ],
)
@pytest.mark.parametrize(
    "decorator", [process, thread, workflow, task, scheduler(cpus=1), limit("one", at_once=1), lambda f: interpreter(process(f))]
)
def test_a_call_that_somebody_forgot_to_run(use: Callable[[Any], Any], decorator: Any) -> None:
    with pytest.raises(TypeError, match=r"<call add\(0\)> has not run.*`call\(\)`"):
        use(decorator(add)(0))


@pytest.mark.parametrize(
    "use",
    [
        lambda call: call + 1,
        lambda call: 1 + call,
        lambda call: "text " + call,
        lambda call: [0] * call,
        lambda call: call - call,
        lambda call: 2 / call,
        lambda call: call**2,
        lambda call: divmod(7, call),
        lambda call: call % 3,
        lambda call: {1} | call,
        lambda call: -call,
        lambda call: abs(call),
        lambda call: round(call, 2),
        lambda call: call < 3,
        lambda call: call > 3,
        lambda call: sorted([call, call]),
        lambda call: int(call),
        lambda call: float(call),
        lambda call: complex(call),
        lambda call: sum([call]),
        lambda call: range(call),
        lambda call: "text"[call],
        lambda call: call[0],
        lambda call: call["key"],
        lambda call: call.__setitem__(0, 1),
        lambda call: f"{call:.2f}",
        lambda call: math.sqrt(call),
        lambda call: numpy.float64(2) * call,
        lambda call: numpy.arange(3) + call,
    ],
)
def test_an_operator_on_a_call_says_that_it_has_not_run(use: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"<call add\(0\)> has not run.*`call\(\)`"):
        use(process(add)(0))


def test_an_attribute_of_the_value_is_no_attribute_of_the_call() -> None:
    call: Any = process(add)(0)
    with pytest.raises(AttributeError, match=r"<call add\(0\)> has not run and has no 'mean'; run it first") as caught:
        call.mean()
    assert (caught.value.name, caught.value.obj) == ("mean", call)
    assert not hasattr(call, "keys")
    assert not hasattr(call, "__array__")
    assert (f"{call}", str(call), f"{call!r}", "%s" % call) == (repr(call),) * 4  # noqa: UP031
    assert copy.copy(call).args == pickle.loads(cloudpickle.dumps(call)).args == (0,)
    assert (call == call, call != call, call == 1, hash(call) == hash(call)) == (True, False, False, True)
    assert numpy.array([call, call], dtype=object).tolist() == [call, call]


def test_a_call_is_found_in_collections_that_hold_it() -> None:
    one, other = task(add)(1), task(add)(1)
    assert one in [other, one]
    assert one in {one: 1}
    assert other not in [one]


def test_a_call_is_immutable() -> None:
    call = process(add)(1)
    for attribute in ("args", "kwargs", "task", "anything_else"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(call, attribute, ())


def test_a_call_that_nobody_holds_goes() -> None:
    call = process(add)(process(add)(1), 2)
    reference = weakref.ref(call)
    assert call() == 5
    del call
    gc.collect()
    assert reference() is None


def test_too_few_too_many_unknown() -> None:
    made: Any = process(add)
    wrong: list[tuple[tuple[int, ...], dict[str, int]]] = [((), {}), ((1, 2, 3), {}), ((1,), {"c": 3}), ((1, 2), {"b": 3})]
    for args, kwargs in wrong:
        with pytest.raises(TypeError, match="add") as caught:
            made(*args, **kwargs)
        assert isinstance(caught.value, ArgumentError)


def test_a_mistake_in_a_call_of_a_call() -> None:
    call = process(add)(1)
    with pytest.raises(TypeError, match="add"):
        call(2, 3)
    with pytest.raises(TypeError, match="add"):
        call(colour=3)
    assert call(5) == 6


def test_a_function_may_have_parameters_with_our_names() -> None:
    """`proc`, `progress` and `start` are options of a call, unless the function has a parameter of
    that name."""

    def show(*, proc: Any = None, progress: Any = None, start: Any = None) -> list[Any]:
        return [proc, progress, start]

    made: Any = process(show)
    in_thread: Any = thread(show)
    assert made()(proc=True, progress=2, start="x") == [True, 2, "x"]
    assert made(proc=True)() == [True, None, None]
    assert in_thread()(proc=True) == [True, None, None]


def test_arguments_that_only_look_like_calls() -> None:
    class Odd:
        def __call__(self) -> int:
            return 7

        def __eq__(self, other: object) -> Any:
            raise RuntimeError("do not compare me")

        __hash__ = None  # type: ignore[assignment]

    assert thread(lambda odd: odd())(Odd())() == 7


def test_a_task_as_an_argument() -> None:
    made = process(add)

    @process
    def use(given: Any) -> Any:
        return given(4)

    assert use(made)() == 6  # the body returned a call, so it was run


def test_calls_survive_copying_and_pickling() -> None:
    call = module_level(module_level(1))
    assert copy.copy(call)() == 3
    assert pickle.loads(pickle.dumps(call))() == 3
    assert pickle.loads(pickle.dumps(module_level))(5)() == 6


def test_a_call_given_to_a_body_inside_an_object_is_the_bodys_to_call() -> None:
    """Calls are found in lists, tuples, dicts and sets only. A call inside another object is left
    to the body."""

    class Box:
        def __init__(self, call: Any) -> None:
            self.call = call

    @process
    def open_it(box: Any) -> Any:
        return box.call() + 1

    assert open_it(Box(module_level(1)))() == 3


def test_two_roots_share_a_call() -> None:
    shared = module_level(1)
    assert process(add)(shared, 1)() == 3
    assert process(add)(shared, 2)() == 4
    assert shared() == 2


class Plain(Layer):
    """A layer of a user's own."""

    def run(self, inner: Any, args: Any, kwargs: Any) -> Any:
        return inner(*args, **kwargs)


AROUND: dict[str, Any] = {
    **DECORATORS,
    "cache": process(cache=True),
    "shared_memory": process(shared_memory=True),
    "own": lambda function: task(function, Plain()),
    "retry": process(retry=1),
    "interpreter": interpreter,
}


@pytest.mark.parametrize("name", AROUND)
def test_no_parameter_name_is_taken(name: str) -> None:
    """A user's parameter may have the same name as one of entangle's wrappers."""

    def named(
        self: int,
        layer: int,
        inner: int,
        function: int,
        args: int,
        kwargs: int,
        f: int,
        task: int,
        instance: int,
        smm: Any = 1,
        sm: Any = 1,
    ) -> tuple[int, ...]:
        return self, layer, inner, function, args, kwargs, f, task, instance

    given = {"self": 1, "layer": 2, "inner": 3, "function": 4, "args": 5, "kwargs": 6, "f": 7, "task": 8, "instance": 9}
    made = AROUND[name](named)
    assert made(**given)() == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    collected = AROUND[name](lambda **given: sum(given[name] for name in given if name not in ("smm", "sm")))
    assert collected()(**given) == 45


# --- futures --------------------------------------------------------------------------------------


def test_a_future_is_of_the_next_run(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    call = process(bodies.noted)(log, 3)
    assert call() == 3
    first = call.future()
    assert not first.done()
    assert call() == 3
    assert first.result(timeout=10) == 3
    second = call.future()
    assert second is not first
    assert not second.done()
    second.entangle()
    assert second.result(timeout=10) == 3
    second.entangle()  # it is done, so nothing runs again
    assert len(notes(log)) == 3


@pytest.mark.parametrize("ask", ["result", "exception", "entangle"])
def test_who_asks_a_future_need_not_start_it(ask: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    futures = [process(bodies.noted)(log, n).future() for n in range(3)]
    assert not notes(log)
    assert [getattr(future, ask)() for future in futures] == ([None] * 3 if ask == "exception" else [0, 1, 2])
    assert [future.result(timeout=10) for future in futures] == [0, 1, 2]
    assert len(notes(log)) == 3


def test_a_future_that_is_asked_with_a_timeout_goes_on(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    future = process(wait_until)(gate.exists, 30).future()
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(timeout=0.05)
    gate.touch()
    assert future.result(timeout=30) is True


@pytest.mark.parametrize("ended", ["done", "cancelled"])
def test_a_call_after_its_future_runs_again(ended: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    call = process(bodies.noted)(log, 3)
    first, second = call.future(), None
    first.entangle() if ended == "done" else first.cancel()
    before = len(notes(log))
    assert call() == 3
    assert len(notes(log)) == before + 1
    second = call.future()
    second.entangle() if ended == "done" else second.cancel()
    assert call(proc=True).result(timeout=30) == 3
    assert len(notes(log)) == 2 * before + 2


@pytest.mark.parametrize("proc", [False, True])
def test_the_next_run_may_have_arguments_of_its_own(proc: bool) -> None:
    call = process(add)(1)
    future = call.future()
    assert (call(10, proc=True).result(timeout=30) if proc else call(10)) == 11
    assert future.result(timeout=30) == 11
    assert call() == 3


def test_the_documented_way_with_a_future(tmp_path: Path) -> None:
    heard: list[int] = []

    def callback(result: Any) -> None:
        heard.append(result.result())

    log = str(tmp_path / "log")
    flow = process(add)(process(bodies.noted)(log, 1), 4)
    future = flow.future(callback=callback)
    assert "Future" in repr(future)
    flow(proc=True)
    future.entangle()
    assert future.result(timeout=10) == 5
    assert heard == [5]
    assert len(notes(log)) == 1


def test_several_callbacks_and_one_that_fails(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []

    def bad(_: Any) -> None:
        raise RuntimeError("in a callback")

    future = process(add)(1).future(callback=bad)
    future.add_done_callback(heard.append)
    future.entangle()
    assert future.result(timeout=10) == 3
    wait_until(lambda: heard == [future])
    # Reported, and the other callbacks ran.
    assert "in a callback" in capfd.readouterr().err + caplog.text


@pytest.mark.parametrize("callback", [3, "print", [print]])
def test_a_callback_that_cannot_be_called(callback: Any) -> None:
    """The error comes at once: when the future is done, nobody is left to receive it."""
    from entangle.dataflow import dataflow

    with pytest.raises(OptionError, match="callback="):
        process(add)(1).future(callback=callback)
    with pytest.raises(OptionError, match="callback="):
        dataflow(bodies.num)().future(1, callback=callback)


def test_a_future_of_a_failing_run() -> None:
    heard: list[Any] = []
    future = process(bodies.fail)().future(callback=lambda f: heard.append(f.exception()))
    try:
        future.entangle()
    except ValueError:
        pass
    with pytest.raises(ValueError, match="no such thing"):
        future.result(timeout=10)
    assert [type(error) for error in heard] == [ValueError]


def test_futures_work_with_the_standard_library(tmp_path: Path) -> None:
    made = process(add)
    futures = [made(n)(proc=True) for n in range(3)]
    done, waiting = concurrent.futures.wait(futures, timeout=30)
    assert not waiting
    assert sorted(future.result() for future in done) == [2, 3, 4]


def test_cancel_a_future(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    future = process(bodies.noted)(log, 1).future()
    assert future.cancel()
    assert future.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(timeout=10)
    assert notes(log) == []


def test_a_run_in_the_background_that_nobody_asks_about(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    process(bodies.noted)(log, 1)(proc=True)
    wait_until(lambda: notes(log))


# --- graphs ---------------------------------------------------------------------------------------

GRAPH = """{
    "add": [
        {
            "add": {
                "num": {
                    "6": []
                },
                "one": []
            }
        },
        {
            "subtract": {
                "five": [],
                "add": {
                    "subtract": {
                        "num": {
                            "8": []
                        },
                        "two": []
                    },
                    "one": []
                }
            }
        }
    ]
}"""


def tasks(*functions: Any) -> list[Any]:
    """These functions as tasks under @process."""
    return [process(function) for function in functions]


def expression() -> Any:
    """The expression of the documentation's graph."""
    add, num, one, two, five, subtract = tasks(bodies.add, bodies.num, bodies.one, bodies.two, bodies.five, bodies.subtract)
    return add(
        add(num(6), two() if False else one()),
        subtract(five(), add(subtract(num(8), two()), one())),
    )


def test_the_graph_of_the_documentation_to_the_letter() -> None:
    flow = expression()
    assert flow() == 5
    assert json.dumps(flow.graph(wait=True), indent=4) == GRAPH


def test_a_future_of_a_graph() -> None:
    heard: list[Any] = []
    future = expression().graph(wait=False)
    future.add_done_callback(lambda f: heard.append(f.result()))
    future.entangle()
    wait_until(lambda: heard)
    assert json.dumps(heard[0], indent=4) == GRAPH
    assert json.dumps(future.result(timeout=10), indent=4) == GRAPH


def test_siblings_with_one_name_are_a_list() -> None:
    add, one, two, num = tasks(bodies.add, bodies.one, bodies.two, bodies.num)
    assert add(one(), one()).graph(wait=True) == {"add": [{"one": []}, {"one": []}]}
    inner = add(add(one(), one()), two()).graph(wait=True)
    assert inner == {"add": [{"add": [{"one": []}, {"one": []}]}, {"two": []}]}
    numbers = add(add(num(1), num(2)), two()).graph(wait=True)
    assert numbers == {"add": [{"add": [{"num": {"1": []}}, {"num": {"2": []}}]}, {"two": []}]}
    assert one().graph(wait=True) == {"one": []}


def test_the_graph_of_a_cycle_is_an_error() -> None:
    parts: list[Any] = [module_level(0)]
    call = process(bodies.same)(parts)
    around = process(add)(call, module_level(0))
    parts.append(around)
    for asked in (call, around, process(add)(module_level(0), call)):
        with pytest.raises(CycleError, match="is, through its own arguments, an argument of itself"):
            asked.graph()


def test_a_graph_says_what_is_written_not_what_is_returned() -> None:
    gather, one = process(bodies.gather), process(bodies.one)
    graph = gather([one(), 2], k=one()).graph(wait=True)
    assert list(graph) == ["gather"]
    assert json.dumps(graph).count('"one"') == 2


# --- errors ---------------------------------------------------------------------------------------


def test_errors_in_threads_and_inline_bring_their_call_path() -> None:
    @task
    def outer(x: Any) -> Any:
        return x

    ways: tuple[Any, ...] = (thread, task, workflow)
    for how in ways:

        @how  # type: ignore[untyped-decorator]
        def broken() -> None:
            raise KeyError("nothing")

        with pytest.raises(KeyError, match="nothing") as caught:
            outer(process(bodies.same)(broken()))()
        assert "outer(same(…)) → same(broken()) → broken" in notes_of(caught.value)


def test_one_error_object_can_be_raised_by_many_runs() -> None:
    error = ValueError("the same every time")

    @thread
    def raise_it() -> None:
        raise error

    for _ in range(3):
        with pytest.raises(ValueError, match="the same every time"):
            raise_it()()
    assert len(getattr(error, "__notes__", [])) < 30


def test_a_note_is_left_in_order(tmp_path: Path) -> None:
    """A test of the tests' own tool: lines of several processes do not mix."""
    log = str(tmp_path / "log")

    @process
    def many(n: int) -> None:
        for i in range(50):
            note(log, n, i, "x" * 100)

    process(bodies.gather)(*(many(n) for n in range(4)))()
    assert sorted((line[0], int(line[1])) for line in notes(log)) == sorted((str(n), i) for n in range(4) for i in range(50))
