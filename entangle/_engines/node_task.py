"""What a worker of another engine does for a node: a plan, a payload and inputs become a value.

A failure is no error of the engine's: what a failed node gives is a `Failed`, which the nodes that
depend on it pass on. So one failure means the same on every engine, and none runs a body again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pickle
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from entangle._engines import node_prints, node_records
from entangle._run import called_for
from entangle._run.run import Run
from entangle._shared import notes
from entangle._shared.block import block
from entangle._shared.pickling import dumps, why_not
from entangle._shared.site import cpu
from entangle._shared.table import DONE, FAILED, SKIPPED
from entangle._shared.tracebacks import passes_on
from entangle._shared.unpickling import failing_part, unpickling_error
from entangle._tasks.call import Call
from entangle._tasks.tree import compile_call
from entangle._worker import importing
from entangle._worker.called import call_in_short
from entangle._worker.failures import describe, name_of_type, pause, pickled_error, set_traceback, text_of
from entangle.errors import (
    EntangleError,
    MissingModuleError,
    ProcessRetryException,
    ProcessTerminatedException,
    RemoteTraceback,
    add_note,
    set_cause,
)
from entangle.flow import FRESH, UNCHANGING, Body, Shape, copy_containers, is_copied, rebuild
from entangle.pools import CPUS

#: Takes an item for the caller of the run, and how many bytes it may be.
Tell = Callable[[tuple[Any, ...], int], None]


class Failed:
    """In place of the value of a node that has failed, or that was skipped for that one's sake.

    `cause` is the node that has failed, `report` says why (`describe` in `_worker/failures.py`).
    """

    __slots__ = ("cause", "report")

    def __init__(self, cause: int, report: dict[str, Any]) -> None:
        self.cause = cause
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        return Failed, (self.cause, self.report)


class Told(NamedTuple):
    """What the caller is told of a node. Times are nanoseconds since 1970, by the clock there."""

    node: int
    state: int
    started: int
    ended: int
    pid: int
    cpu: int
    attempt: int
    #: The value as notes have it (`_shared/notes.py`), or None if it is not noted.
    noted: Any
    #: Of a failed node, why. Of a skipped one, nothing.
    report: dict[str, Any] | None
    #: Of attempts before the last: the error in a line, when it began, and when it ended.
    tries: list[tuple[str, int, int]]
    #: Of a skipped node, the one that has failed.
    cause: int


class NodePlan(NamedTuple):
    """What nodes of one body have in common.

    `layout` says for each flat input where it comes from: number x of the inputs, or, if it is
    below 0, constant ~x of the payload. `accepted`: the inputs whose failures are values. `copied`:
    those of which the body gets a copy, since others see them. `noting`: as in the table's header.
    """

    run: str
    name: str
    body: bytes
    shape: Shape
    layout: tuple[int, ...]
    accepted: frozenset[int]
    copied: frozenset[int]
    noting: int
    #: The process and the host of the caller.
    caller: tuple[str, int]
    #: Whether the caller is told when the body begins.
    announced: bool


class _Stopped(BaseException):
    """Raised in the thread of a body whose run is over."""


_HOST = os.uname().nodename
_guard = threading.Lock()
#: Runs that are over before their nodes are.
_over: OrderedDict[str, None] = OrderedDict()
#: Threads that run a body, and of which run; and runs of ours that they wait for.
_under_way: dict[int, tuple[str, Run | None]] = {}
#: How many runs are remembered to be over.
_MOST_OVER = 1000


def stop(run: str) -> None:
    """Begin no more node of this run here, and stop the bodies that run, as far as that is
    possible: a body that waits in C goes on until it comes back to Python."""
    with _guard:
        _over[run] = None
        while len(_over) > _MOST_OVER:
            _over.popitem(last=False)
        ours = [inner for which, inner in _under_way.values() if which == run and inner is not None]
        for thread, (which, inner) in _under_way.items():
            if which == run and inner is None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Stopped))
    for inner in ours:
        inner.cancel()


@block
def _stoppable(run: str, inner: Run | None = None) -> Iterator[None]:
    """Let `stop` end what happens in the block."""
    thread = threading.get_ident()
    with _guard:
        before = _under_way.get(thread)
        _under_way[thread] = run, inner
        over = run in _over
    try:
        if over:
            raise _Stopped
        yield
    finally:
        with _guard:
            if before is None:
                del _under_way[thread]
            else:
                _under_way[thread] = before
            # What has been sent meanwhile must not reach what this thread does next.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)


@functools.lru_cache(maxsize=256)
def _plan_of(pickled: bytes) -> NodePlan:
    plan: NodePlan = pickle.loads(pickled)
    return plan


@functools.lru_cache(maxsize=256)
def _body_of(pickled: bytes) -> Body:
    body: Body = pickle.loads(pickled)
    return body


@passes_on
def run_node(node: int, pickled_plan: bytes, payload: bytes, inputs: Sequence[Any], tell: Tell) -> tuple[Any, Told]:
    """Run a node. Gives its value, or a `Failed`, and what the caller is told of it.

    `payload` is a pickle of the node's constants, its own name and the path to it; both may be
    empty. What the caller hears meanwhile is given to `tell`.
    """
    plan = _plan_of(bytes(pickled_plan))
    pid, began = os.getpid(), time.time_ns()
    for at, value in enumerate(inputs):
        if type(value) is Failed and at not in plan.accepted:
            return value, Told(node, SKIPPED, began, began, pid, cpu(), 1, None, None, [], value.cause)
    if plan.announced:
        tell(("begun", node, began), 0)
    if (_HOST, pid) == plan.caller:
        return _run_body(node, plan, payload, inputs)  # its streams are those of the caller
    node_records.expect(plan.run, plan.noting)
    printing = node_prints.begin(lambda stream, data: tell(("printed", node, stream, data), len(data)))
    try:
        return _run_body(node, plan, payload, inputs)
    finally:
        node_prints.end(printing)
        if plan.noting and (kept := node_records.collected(plan.run)):
            tell(("records", kept), sum(map(len, kept)))


@passes_on
def _run_body(node: int, plan: NodePlan, payload: bytes, inputs: Sequence[Any]) -> tuple[Any, Told]:
    pid, began = os.getpid(), time.time_ns()
    tries: list[tuple[str, int, int]] = []
    given: tuple[list[Any], dict[str, Any]] = [], {}
    name, path, function = plan.name, "", None
    token = called_for.set((plan.run, node))
    try:
        with _stoppable(plan.run):
            body = _loaded(_body_of, plan.body, f"task {name!r}")
            function = getattr(getattr(body, "task", None), "function", None)
            while True:
                constants, own_name, path = _loaded(pickle.loads, payload, f"an argument of task {name!r}")
                name = own_name or name
                given = _arguments(plan, inputs, constants)
                began = time.time_ns()
                try:
                    value = _run_by_us(plan.run, body, *given) if _is_ours(body) else body.function(*given[0], **given[1])
                    break
                except _Stopped:
                    raise
                except BaseException as error:
                    _await_next(body, name, error, tries, began)
            ended = time.time_ns()
            _check_travels(value, name)
    except BaseException as error:
        ended = time.time_ns()
        call = call_in_short(name, *given, function)
        report = {**_report(error, name, len(tries) + 1, call), "path": path}
        return Failed(node, report), Told(node, FAILED, began, ended, pid, cpu(), len(tries) + 1, None, report, tries, node)
    finally:
        called_for.reset(token)
    return value, Told(node, DONE, began, ended, pid, cpu(), len(tries) + 1, _noted(value, plan.noting), None, tries, node)


importing.runs_bodies(_run_body)
importing.unpickles(_body_of.__wrapped__)


def _loaded(load: Callable[[bytes], Any], pickled: bytes, what: str) -> Any:
    """What a pickle holds; an error that names what is missing here, and what `what` it is."""
    try:
        return load(pickled)
    except ModuleNotFoundError as error:
        missing = MissingModuleError(
            f"{what} needs the module {error.name!r}, which host {os.uname().nodename} lacks; "
            f"install it where {sys.executable} finds it, on every worker",
            name=error.name,
        )
        raise missing from error
    except Exception as error:
        raise unpickling_error(error, f"{what} cannot be unpickled on the worker", failing_part(pickled)) from error


def _arguments(plan: NodePlan, inputs: Sequence[Any], constants: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The positional and keyword arguments of the body."""
    known: dict[int, Any] = {}
    flat = []
    for at in plan.layout:
        if at < 0:
            flat.append(constants[~at])
            continue
        if at not in known:
            value = inputs[at]
            known[at] = error_of(value.report) if type(value) is Failed else _own(value, at in plan.copied)
        flat.append(known[at])
    shape = plan.shape
    if shape.templates is not None:
        source = iter(flat)
        flat = [rebuild(template, source) for template in shape.templates]
    return flat[: shape.positional], dict(zip(shape.keywords, flat[shape.positional :], strict=True))


def _own(value: Any, copied: bool) -> Any:
    """A value for a body that may change it. What engines hand out is shared, or cannot be written
    to: an array that has come from elsewhere. Large arrays are shared all the same."""
    if not is_copied(value):
        return value
    if not copied and type(value).__module__ == "numpy":
        copied = not value.flags.writeable
    return copy_containers(value) if copied else value


def _is_ours(body: Body) -> bool:
    """Whether a body has terms that only a worker process of ours can keep."""
    return body.timeout is not None or body.carrier == FRESH or body.shared_memory or any(pool.kind == CPUS for pool in body.pools)


@passes_on
def _run_by_us(run: str, body: Any, args: list[Any], named: dict[str, Any]) -> Any:
    """Run a body as a run of ours on this machine, which keeps its terms, its attempts included."""
    inner = Run(compile_call(Call(body.task, tuple(args), named)))
    with _stoppable(run, inner):
        return inner.value()


def _await_next(body: Body, name: str, error: BaseException, tries: list[tuple[str, int, int]], began: int) -> None:
    """Wait for the next attempt, if there is to be one; else raise the error of the body."""
    told = error if isinstance(error, Exception) else _ended(name, error)
    if _is_ours(body) or len(tries) >= body.retry or not (isinstance(told, body.on) or isinstance(error, body.on)):
        if told is error:
            raise error  # not `from None`: its cause is what it was raised from, or its traceback
        raise told from error
    text = f"{name_of_type(error).rpartition('.')[2]}: {text_of(error)}"[:1500]
    tries.append((text, began, time.time_ns()))
    time.sleep(pause(body, len(tries)))


def _ended(name: str, error: BaseException) -> ProcessTerminatedException:
    """The error of a body that has raised what would end the interpreter."""
    code = f"({error.code!r})" if isinstance(error, SystemExit) else ""
    return ProcessTerminatedException(f"task {name!r} ended by raising {type(error).__name__}{code}")


def _check_travels(value: Any, name: str) -> None:
    """Raise UnpicklableError for a value that no other worker could get: whether one wants it,
    nobody knows yet."""
    kind = type(value)
    if kind in UNCHANGING or (kind.__module__ == "numpy" and kind.__name__ == "ndarray" and not value.dtype.hasobject):
        return
    try:
        dumps(value, lambda _: None)
    except Exception:
        raise why_not(value, f"the value of task {name!r}", instead="leave it out") from None


def _noted(value: Any, noting: int) -> Any:
    """A value as notes have it: plain, or in short."""
    if not noting or notes.plain(value):
        return value
    try:
        return notes.describe(value)
    except Exception:  # a note must not fail the node
        return (notes.named(type(value)),)


def _report(error: BaseException, name: str, attempt: int, call: str) -> dict[str, Any]:
    """Why a node has failed."""
    cause = error.__cause__
    report = describe(error, name, attempt, call)
    if isinstance(cause, RemoteTraceback):
        report["text"] = cause.text  # raised in a worker process: its traceback says more
    elif isinstance(error, ProcessRetryException) and cause is not None:
        report["last"] = pickled_error(cause, name)
    return report


def error_of(report: dict[str, Any]) -> BaseException:
    """The error of a failed node, with the traceback of there as its cause, and notes."""
    error: BaseException
    try:
        error = pickle.loads(report["error"])
    except Exception as problem:
        error = EntangleError(f"a task failed with {report['type']}: {report['message']}; that error cannot be unpickled here ({problem})")
    if "last" in report:
        with contextlib.suppress(Exception):
            set_cause(error, pickle.loads(report["last"]))
    if report["text"]:
        set_traceback(error, report["text"])
    for note in (report["path"], report["call"] and f"call: {report['call']}", report["where"]):
        if note:
            add_note(error, note)
    return error


def text_of_lost(name: str, worker: str) -> str:
    """The text of the error of a task whose worker is gone."""
    return (
        f"task {name!r}: the worker {worker and worker + ' '}is gone, on which its body had begun or its value lay. It is not run again, "
        "since its body might then run twice; say retry= or idempotent=True if it may"
    )
