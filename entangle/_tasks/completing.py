"""`as_completed`: the futures of several calls, in the order in which they are done."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from entangle import _run, _tasks
from entangle._run.completions import CompletionsRun
from entangle._run.future import RunFuture
from entangle._shared.tracebacks import hide
from entangle._tasks.call import Call, Gathered, in_short
from entangle._tasks.option_values import check_seconds
from entangle._tasks.tree import compile_calls
from entangle._tasks.unknown_options import refuse_options
from entangle._worker.worker import here
from entangle.errors import ArgumentError, RunTimeoutException

V = TypeVar("V")


class CompletedCall(Future[V]):
    """The future of one call of several: done, with its value or its error."""

    def __init__(self, call: Call[V]) -> None:
        super().__init__()
        #: The call.
        self.call = call


def completed(calls: Iterable[Call[Any]], timeout: float | None, unknown: dict[str, Any]) -> Iterator[CompletedCall[Any]]:
    """Check the arguments of `as_completed`; gives the iterator."""
    refuse_options("as_completed", ("timeout",), unknown)
    if isinstance(calls, Call) or not hasattr(type(calls), "__iter__"):
        hint = f"; {_of_many(calls)}" if isinstance(calls, Call) else ""
        raise ArgumentError(f"as_completed takes an iterable of calls, not {in_short(calls)}{hint}")
    known = list(calls)
    for call in known:
        if not isinstance(call, Call):
            raise ArgumentError(f"as_completed takes calls, not {in_short(call)}; build one by calling a task")
    check_seconds("as_completed", timeout=timeout)
    return _completed(list(dict.fromkeys(known)), timeout)


def _of_many(call: Call[Any]) -> str:
    """What is written in place of one call, which may stand for many."""
    if isinstance(call, Gathered):
        names = {item.task.__name__ for item in call.args}
    elif getattr(call.task.function, "of_entangle", False):  # the `map` of a call's value
        names = {call.args[0].__name__}
    else:
        return f"write as_completed([{in_short(call)}])"
    if len(names) != 1:
        return "write as_completed([a, b]) for gather(a, b)"
    (name,) = names
    return f"write [{name}(x) for x in xs], or {name}.stream(xs, ordered=False)"


def _completed(calls: list[Call[Any]], timeout: float | None) -> Iterator[CompletedCall[Any]]:
    try:
        yield from _run_all(calls, timeout)
    except BaseException as error:
        hide(error)
        raise


def _run_all(calls: list[Call[Any]], timeout: float | None) -> Iterator[CompletedCall[Any]]:
    if not calls:
        return
    until = time.monotonic() + timeout if timeout is not None else None
    elsewhere = _run.elsewhere() if _run.elsewhere is not None else None
    kept = _tasks.keeping() if _tasks.keeping is not None else None
    left_of = {call: call for call in calls}
    if Call._each_after_hits is not None and elsewhere is None and kept is None:
        for call, (known, found) in zip(calls, Call._each_after_hits(calls), strict=True):
            if known:
                del left_of[call]
                hit = CompletedCall(call)
                hit.set_result(found)
                yield hit
            else:
                left_of[call] = found
    if not left_of:
        return
    flow, nodes = compile_calls(list(left_of.values()))
    call_of = dict(zip(nodes, left_of, strict=True))
    ended: queue.SimpleQueue[CompletedCall[Any] | None] = queue.SimpleQueue()

    def tell(node: int, value: Any, error: BaseException | None) -> None:
        future = CompletedCall(call_of[node])
        if error is not None:
            hide(error)
            future.set_exception(error)
        else:
            future.set_result(value)
        ended.put(future)

    if kept is not None:
        flow, same, observers = kept.completions_kept(flow)
        call_of = {node: call_of[number] for node, number in enumerate(same) if number in call_of} if same is not None else call_of
    else:
        observers = []
    run = (elsewhere.completions_of(flow, tell) if elsewhere is not None else None) or CompletionsRun(flow, tell)
    run.observers += observers
    whole: RunFuture[Any] = RunFuture(run.value, run.cancel)
    whole.add_done_callback(lambda _: ended.put(None))
    worker = here.worker
    left = len(left_of)
    try:
        whole.start()
        while left:
            with worker.lending() if worker is not None else contextlib.nullcontext():
                try:
                    future = ended.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
                except queue.Empty:
                    raise RunTimeoutException(f"{left} of {len(calls)} calls were not done after the timeout of {timeout:g} s") from None
            if future is None:
                whole.result()  # raises what has ended the run
                raise AssertionError("the run has ended, and some of its calls have not")
            left -= 1
            yield future
    finally:
        if left:
            whole.cancel()
        whole.exception()
