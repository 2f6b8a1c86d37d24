"""The tree of errors: which errors each `except` catches."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest

import entangle
from entangle import errors
from entangle._shared.documentation import more
from entangle.dataflow import dataflow
from entangle.errors import EntangleError
from entangle.interpreter import interpreter
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.thread import thread
from entangle.workflow import workflow

from .evidence import notes_of

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EntangleError)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("OptionError", TypeError),
        ("ArgumentError", TypeError),
        ("CycleError", ValueError),
        ("UnpicklableError", TypeError),
        ("SchedulerImportError", ImportError),
        ("StoreFullError", OSError),
        ("ProcessTimeoutException", TimeoutError),
        ("ThreadTimeoutException", TimeoutError),
    ],
)
def test_errors_are_also_what_python_calls_them(name: str, kind: type[BaseException]) -> None:
    assert issubclass(getattr(errors, name), kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_travels_and_says_whose_fault_it_is(kind: type[EntangleError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what was wrong")))
    assert type(error) is kind
    assert "what was wrong" in str(error)
    assert kind.__doc__
    assert kind.__name__ in (errors.__doc__ or "") or kind is EntangleError


def test_the_doors_give_the_same_classes() -> None:
    from entangle import process, thread

    for name in ("ProcessTimeoutException", "ProcessTerminatedException", "ProcessRetryException"):
        assert getattr(process, name) is getattr(errors, name)
    for name in ("ThreadTimeoutException", "ThreadTerminatedException"):
        assert getattr(thread, name) is getattr(errors, name)


@dataclass(frozen=True)
class Frozen(Exception):
    """A user's error that refuses attributes."""

    a: int


def fail(a: int) -> NoReturn:
    raise Frozen(a)


@pytest.mark.parametrize(
    "decorator",
    [
        process,
        thread,
        workflow,
        process(fresh=True),
        thread(timeout=60),
        lambda function: scheduler(cpus=1)(thread(function)),
        lambda function: process(scheduler(cpus=1, impl="entangle.scheduler.DefaultScheduler")(function)),
        lambda function: workflow(lambda a: process(function)(a)),
        lambda function: process(lambda a: thread(function)(a)()),
        lambda function: scheduler(cpus=1)(process(lambda a: process(function)(a)())),
        interpreter,
    ],
)
def test_a_frozen_error_arrives(decorator: Any) -> None:
    """Nothing that it passes through assigns an attribute to it."""
    call = decorator(fail)(3)

    async def wait() -> None:
        await call

    for run in (call, lambda: call(proc=True).result(), lambda: asyncio.run(wait())):
        with pytest.raises(Frozen) as caught:
            run()
        assert caught.value == Frozen(3)
        assert "fail" in "".join(traceback.format_exception(caught.value))


def test_a_frozen_error_passes_through_blocks() -> None:
    async def raise_it() -> None:
        fail(3)

    blocks: list[Any] = [entangle.tags(kind="test"), entangle.progress()]
    for block in blocks:
        with pytest.raises(Frozen), block:
            fail(3)
    with pytest.raises(Frozen):
        thread(raise_it)()()


def test_a_frozen_error_of_a_dataflow() -> None:
    for executor in ("thread", "process"):
        flow: Any = dataflow(executor=executor)(fail)()
        with pytest.raises(Frozen):
            flow(3)


@process
def gives_a_lock() -> Any:
    return threading.Lock()


# A lock cannot be pickled for another process, and this process must not be forked here.
@thread(cache=True)
def of_a_lock(lock: Any) -> bool:
    return lock is not None


@process
def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("call", "page"),
    [
        (lambda: gives_a_lock()(), "how_to/errors"),
        (lambda: of_a_lock(threading.Lock())(), "caching"),
        (lambda: dies()(), "how_to/errors"),
    ],
    ids=["unpicklable", "no key", "killed"],
)
def test_errors_name_the_page_that_explains_them(call: Callable[[], Any], page: str) -> None:
    """Once, and not in the message, which others quote. For MayHaveRunError see test_durable.py."""
    with pytest.raises(EntangleError) as caught:
        call()
    assert notes_of(caught.value).count(more(page)) == 1
    assert "docs/" not in str(caught.value)
