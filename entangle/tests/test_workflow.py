"""`@workflow`: a body that runs where the call is run, and returns a call."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow

from . import bodies
from .evidence import notes

one = process(bodies.one)
two = process(bodies.two)
add = process(bodies.add)


@workflow
def workflow1() -> Any:
    return add(one(), two())


@workflow
def workflow2(value: Any) -> Any:
    return add(value(), two())


def test_the_value_is_that_of_the_call_it_gives() -> None:
    assert workflow1()() == 3


def test_a_workflow_is_passed_as_an_object() -> None:
    assert workflow2(workflow1)() == 5


def test_a_workflow_may_give_a_plain_value() -> None:
    @workflow
    def nothing() -> None:
        return None

    @workflow
    def numbers(*args: int) -> list[int]:
        return sorted(args)

    assert nothing()() is None
    assert numbers(two(), one())() == [1, 2]


def test_the_body_runs_where_the_call_is_run() -> None:
    where: list[Any] = []

    @workflow
    def here() -> Any:
        where.append((os.getpid(), threading.get_ident()))
        return one()

    assert here()() == 1
    assert where == [(os.getpid(), threading.get_ident())]


def test_arguments_that_are_calls_run_in_parallel_first(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    meet = process(bodies.meet)

    @workflow
    def train(*models: int) -> Any:
        return len(set(models))

    assert train(meet(log, 3), meet(log, 3), meet(log, 3))() == 3


def test_conditions_decide_at_run_time() -> None:
    @workflow
    def choose(n: int) -> Any:
        if n > 1:
            return add(choose(n - 1), one())
        return one()

    assert choose(two())() == 2
    assert choose(5)() == 5


def test_a_workflow_in_an_expression_and_twice(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @workflow
    def noting() -> Any:
        return process(bodies.noted)(log, 4)

    call = noting()
    assert add(call, call)() == 8
    assert len(notes(log)) == 1
    assert add(noting(), thread(bodies.num)(noting()))() == 8
    assert len(notes(log)) == 3


def test_a_workflow_that_gives_a_workflow() -> None:
    @workflow
    def outer() -> Any:
        return workflow2(workflow1)

    assert outer()() == 5


def test_an_error_in_a_workflow() -> None:
    @workflow
    def broken() -> Any:
        raise LookupError("no such workflow")

    with pytest.raises(LookupError, match="no such workflow"):
        add(broken(), 1)()
    with pytest.raises(LookupError, match="no such workflow"):
        broken()()


def test_a_list_of_calls_is_a_list_of_calls() -> None:
    """A list of calls is a value. Whether its calls are run is left open."""

    @workflow
    def both() -> Any:
        return [one(), two()]

    values = both()()
    assert [value() if callable(value) else value for value in values] == [1, 2]


def test_calling_twice_runs_the_body_twice() -> None:
    ran: list[int] = []

    @workflow
    def counting() -> Any:
        ran.append(1)
        return one()

    call = counting()
    assert (call(), call()) == (1, 1)
    assert len(ran) == 2
