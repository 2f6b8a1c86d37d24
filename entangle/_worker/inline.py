"""Inline runs: every body runs in the thread that runs the graph, for tests and debuggers.

A breakpoint, a replaced attribute, coverage and a traceback then work as in a plain function.
While `on`, each run that begins puts its nodes into the lane of the calling thread. What a process
would change about a value or an error is done here: values are copied, errors keep their types.
"""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable, Iterator
from types import CoroutineType
from typing import Any

from entangle._shared.block import block
from entangle._shared.table import RECORD, Table
from entangle._shared.tracebacks import passes_on
from entangle._worker.worker import Worker
from entangle.errors import ProcessTerminatedException, ProcessTimeoutException, ThreadTimeoutException
from entangle.flow import IN_CALLER, THREAD, UNCHANGING, Body, Flow

#: Whether runs that begin are inline, in whichever thread of this process.
on = False
#: Whether deadlines count. A debugger that waits for its user sets it off.
timed = True


def inlined(flow: Flow) -> Flow:
    """The flow for the calling thread alone: no leaf is set apart for processes."""
    flow = copy.copy(flow)
    flow.inline, flow.leaves, flow.fans = True, 0, []
    if not UNCHANGING.issuperset(map(type, flow.constants)):
        flow.constants = list(flow.constants)
        for node in range(flow.count):
            if flow.body(node).carrier not in IN_CALLER:
                for taken in flow.inputs[flow.starts[node] : flow.starts[node + 1]]:
                    if taken < 0:
                        flow.constants[~taken] = _sent(flow.constants[~taken])
    return flow


def _sent(value: Any) -> Any:
    """What a process would be given for a value: a copy. A value that cannot be pickled, such as a
    mock, stays as it is."""
    if type(value) in UNCHANGING:
        return value
    try:
        return pickle.loads(pickle.dumps(value, 5))
    except Exception:
        return value


def took_longer(table: Table, timeout: float | None) -> bool:
    """Whether the bodies of a run would have taken longer than that side by side (seconds): those
    on the longest way to a sink. A node stands before those that take it."""
    flow = table.flow
    if timeout is None or not timed or flow is None or flow.rearmed:
        return False
    ends = [0] * flow.count
    for node in range(flow.count):
        started, ended, *_ = RECORD.unpack_from(table.records, node * RECORD.size)
        ends[node] = max((ends[taken] for taken in flow.sources(node)), default=0) + max(0, ended - started)
    return max(ends) >= timeout * 1e9


class InlineWorker(Worker):
    """The calling thread as the worker of an inline run."""

    def _value_of(self, node: int) -> Any:
        value = super()._value_of(node)
        flow = self.site.flow
        if flow.body(self.node()).carrier in IN_CALLER:
            return value
        # One that takes a value alone would run on in the same process, with the value in hand.
        if len(flow.takers(node)) + (node in flow.kept) == 1 and not (flow.rearmed and not flow.sources(node)):
            return value
        if not flow.rearmed:
            return _sent(value)
        label, clean, items = value
        return (label, clean, _sent(items)) if clean else value

    @passes_on
    def _run_special(self, node: int, body: Body) -> tuple[Any, int, int]:
        if body.timeout is not None and not self.site.flow.rearmed:  # there, each item has its own
            body = Body(*body)._replace(function=self.in_time(self.site.flow.name(node), body, body.function))
        return super()._run_special(node, body)

    def in_time(self, name: str, body: Body, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of a body, which fails if it has taken longer than the body's timeout.

        Nothing can stop it meanwhile: this thread is the only one.
        """

        @passes_on
        def run(*args: Any, **named: Any) -> Any:
            began = time.monotonic()
            try:
                value = function(*args, **named)
            except Exception:
                check(began)
                raise
            check(began)
            return value

        @passes_on
        def check(began: float) -> None:
            seconds = time.monotonic() - began
            if timed and body.timeout is not None and seconds >= body.timeout:
                kind = ThreadTimeoutException if body.carrier == THREAD else ProcessTimeoutException
                raise kind(
                    f"task {name!r} ran longer than its timeout of {body.timeout:g} s "
                    f"(it took {seconds:.2f} s: an inline run cannot stop it)"
                ) from None

        return run

    def _is_the_callers(self, error: BaseException) -> bool:
        """Whether the error is that of the test, and not of a body: Ctrl-C, the end of a debugger,
        `pytest.skip()`."""
        return super()._is_the_callers(error) or not isinstance(error, (Exception, SystemExit, GeneratorExit))

    def as_error(self, name: str, error: BaseException) -> Exception:
        """The error of a body, of the same type as in a process or a thread."""
        wrapped = super().as_error(name, error)
        if wrapped is not error and self.site.flow.body(self.node()).carrier not in IN_CALLER:
            ended = ProcessTerminatedException(*wrapped.args)
            ended.__cause__ = wrapped.__cause__
            return ended
        return wrapped


@passes_on
def awaited(coroutine: CoroutineType[Any, Any, Any]) -> Any:
    """The value of a coroutine, in an event loop of its own, also where one runs in this thread."""
    import asyncio

    with loop_aside():
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(coroutine)
        finally:
            try:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.run_until_complete(loop.shutdown_default_executor())
            finally:
                loop.close()


@block
def loop_aside() -> Iterator[None]:
    """Take the running event loop and its task out of sight during the block."""
    import asyncio

    outer = asyncio._get_running_loop()
    swap: Any = getattr(asyncio.tasks, "_swap_current_task", None)  # from Python 3.12 on
    task = swap(outer, None) if swap is not None and outer is not None else None
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(outer)
        if task is not None:
            swap(outer, task)
