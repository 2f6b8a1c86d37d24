"""A worker answers calls: it unpickles a function and arguments, runs it, and sends the outcome.

::

    owner ── order: functions, calls ──▶ worker: for each call unpickle, run, pickle
    owner ◀── outcomes; files gone ── worker

An order has one call, or several short ones. Outcomes of short calls go in one message, two
milliseconds' worth at most; until then the owner can read them from the board. What calls have
changed in the process is put back after each order, when its outcomes are on their way.
"""

from __future__ import annotations

import contextlib
import contextvars
import marshal
import os
import pickle
import time
import types
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from entangle._shared import module_lookup
from entangle._shared.home import Home
from entangle._shared.masks import MASK, is_secret, masked
from entangle._shared.orders import OUTCOMES, Order, Orders
from entangle._shared.pickling import dumps, why_not
from entangle._shared.summaries import cut, value_in_short
from entangle._shared.tracebacks import passes_on
from entangle._shared.unpickling import failing_part, unpickling_error
from entangle._shared.value_files import ValueFiles, Wire, files_of, pickled
from entangle._worker import importing, inheritance, library_threads
from entangle._worker.board import BATCH, BEGUN, ERROR, HIGH, LARGE, LOW, NEWS, OUTCOME, REFUSED, ROOM, SKIPPED, TAIL, VALUE, Board
from entangle._worker.child import end_child
from entangle._worker.failures import describe
from entangle._worker.script_state import Brought, ScriptState, stays
from entangle.errors import EntangleError

#: Outcomes of short calls are kept for at most this long (ns).
_KEPT = 2_000_000


class Host(Protocol):
    """The warm worker around calls (`_run/warm_life.py`)."""

    def settled(self) -> str:
        """Put back what calls have changed. Why the worker must retire; "" if it need not."""

    def cut_off(self) -> bool:
        """Whether a call has closed what leads to the owner. Another file may be there now."""

    def take_as_state(self) -> None:
        """Take the state of now as the one to put back."""

    def lead_output(self, err: int, out: int) -> None:
        """Write stderr and stdout to these descriptors from now on."""


class _Known:
    """A function as it has come: `function` is it, where calls may share it."""

    __slots__ = ("brought", "function", "name", "shared", "wire")

    def __init__(self, name: str, wire: Wire, shared: bool) -> None:
        self.name = name
        self.wire = wire
        self.shared = shared
        self.function: Any = None
        self.brought: Brought | None = None


class _Answering:
    """This process as a worker of calls."""

    def __init__(self, known: dict[str, Any], fd: int) -> None:
        self.board = Board(fd)
        os.close(fd)
        self.files = ValueFiles(known["directory"], known["spill"])
        #: Functions by their numbers.
        self.functions: dict[int, _Known] = {}
        self.script = ScriptState()
        self.tail = 0
        self.sent = 0
        self.pid = os.getpid()


#: This process's; None before the first order.
_answering: _Answering | None = None
#: The values of futures that the arguments being unpickled are to take.
_taken: list[Any] = []


def taken(index: int) -> Any:
    """The value of a future, in the place where an argument had the future."""
    return _taken[index]


class Chunk:
    """A function for several tuples of arguments; gives the list of the values."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.__wrapped__ = function
        self.__qualname__ = name

    @passes_on
    def __call__(self, items: list[tuple[Any, ...]]) -> list[Any]:
        function = self.__wrapped__
        return [function(*args) for args in items]


def answer(orders: Orders, order: Order, host: Host, outdated: str) -> bool:
    """Answer an order: run its calls, and send their outcomes. Gives whether the worker retires.

    If it is `outdated`, it runs nothing more, and says why.
    """
    global _answering
    if outdated:
        for fd in order.fds:
            os.close(fd)
        _tell(orders, host, [], outdated)
        return True
    begin, travelled, functions, calls = marshal.loads(order.body)
    if travelled:
        module_lookup.arrive(travelled)
    if begin:
        with importing.joining():  # a worker of calls joins no run; from now on its bodies may begin some
            pass
        _answering = _Answering(begin, order.fds[0])
        refused = _begin(_answering, begin, order.fds[1:], host)
        if refused is not None:
            _keep(orders, host, _answering, 0, 0, REFUSED, refused)
            _send(orders, host, _answering)
            return False
    state = _answering
    assert state is not None
    for number, name, wire, shared in functions:
        state.functions[number] = _Known(name, wire, shared)
    try:
        _answer_calls(orders, host, state, calls)
    except _CutOff:
        return True
    retires = host.settled() if calls else ""
    if retires:
        _tell(orders, host, state.files.gone(), retires)
    return bool(retires)


def _answer_calls(orders: Orders, host: Host, state: _Answering, calls: list[Any]) -> None:
    """Run calls, and send their outcomes. Raises _CutOff if one has closed what leads to the
    owner."""
    words, clock = state.board.words, time.monotonic_ns
    state.sent = clock()
    for number, which, wire, values in calls:
        # First: the owner takes back only what lies beyond. It looks some milliseconds after it has
        # said so, in which this process may not have had a CPU.
        words[BEGUN] = number
        if words[LOW] <= number < words[HIGH]:
            _hold(state, wire, values)
            _keep(orders, host, state, number, 0, SKIPPED, b"")
            continue
        began = clock()
        kind, body = _outcome(state, which, wire, values)
        ended = clock()
        _keep(orders, host, state, number, ended - began, kind, body)
        if ended - state.sent > _KEPT:
            _send(orders, host, state)
    _send(orders, host, state)


def _begin(answering: _Answering, known: dict[str, Any], streams: Sequence[int], host: Host) -> bytes | None:
    """Take on the caller's state, and run the initializer. Gives the report of its error, if it
    fails."""
    state = pickle.loads(known["state"])
    inheritance.take_on(state, "before")
    os.environ["ENTANGLE_JOBSERVER"] = known["jobserver"]
    library_threads.keep_to(known["threads"])  # before the caller's modules import any
    Home.adopt(known["home"], known["home_spill"], answering.files.runs_of(os.getpid()))
    inheritance.take_on(state, "after")
    if streams:
        host.lead_output(streams[0], streams[1] if len(streams) > 1 else -1)
    host.take_as_state()
    if known["initializer"] is None:
        return None
    name = "initializer"
    try:
        function, args = _initializer(known["initializer"])
        name = getattr(function, "__qualname__", name)
        brought = answering.script.receive(function, {})
        if brought is not None:
            answering.script.enter(brought)
        _run(function, args, {})
        if brought is not None:
            answering.script.leave(brought)
    except BaseException as error:
        return pickle.dumps(describe(error, name, 1, ""), 5)
    host.take_as_state()
    return None


def _initializer(pickled_call: bytes) -> Any:
    return pickle.loads(pickled_call)


importing.unpickles(_initializer)


@passes_on
def _run(function: Callable[..., Any], args: Sequence[Any], named: dict[str, Any]) -> Any:
    """Run a body. A child that it has forked, and that returns from it, ends here."""
    pid = os.getpid()
    try:
        value = contextvars.copy_context().run(function, *args, **named)
    except BaseException as error:
        if os.getpid() != pid:
            end_child(error)
        raise
    if os.getpid() != pid:
        end_child(None)
    return value


importing.runs_bodies(_run)


def _outcome(state: _Answering, which: int, wire: Wire, values: tuple[Wire, ...]) -> tuple[int, bytes]:
    """Run one call. Gives the kind of its outcome and its bytes."""
    files = state.files
    large = type(wire) is not bytes or bool(values)
    if large:
        _hold(state, wire, values)
    known = state.functions[which]
    name, call = known.name, ""
    try:
        function, args, named = _loaded(state, known, wire, values)
        try:
            value = _run(function, args, named)
        except BaseException as error:
            call = call_in_short(name, args, named, function)
            return ERROR, pickle.dumps(describe(error, name, 1, call), 5)
        finally:
            del function, args, named
            if known.brought is not None:
                state.script.leave(known.brought)
        kind = type(value)
        if kind is int or kind is float or kind is str or kind is bool or value is None:
            body, buffers = pickle.dumps(value, 5), list[memoryview]()
        else:
            body, buffers = _pickled(name, value)
            del value
        stored = files.put(body, buffers)
        return (VALUE, stored) if isinstance(stored, bytes) else (LARGE, marshal.dumps(stored))
    except BaseException as error:
        return ERROR, pickle.dumps(describe(error, name, 1, call), 5)


@passes_on
def _loaded(state: _Answering, known: _Known, wire: Wire, values: tuple[Wire, ...]) -> tuple[Any, Any, dict[str, Any]]:
    """The function and the arguments of a call."""
    files, script = state.files, state.script
    function = known.function
    loading = wire
    try:
        if function is None or (known.brought is not None and not script.enter(known.brought)):
            loading, known.function = known.wire, None
            saved = script.before_loading()
            function = files.load(known.wire)
            known.brought = script.receive(function, saved)
            if known.brought is not None:
                script.enter(known.brought)
            if known.shared or (known.brought is not None and stays(function)):
                known.function = function
            loading = wire
        saved = script.before_loading()
        for value in values:
            _taken.append(files.load(value))
        args, named = files.load(wire)
        if saved:
            script.loaded(saved)
    except Exception as problem:
        raise _cannot_load(files, known.name, loading, problem) from problem
    finally:
        _taken.clear()
    return function, args, named


importing.unpickles(_loaded)


def _cannot_load(files: ValueFiles, name: str, wire: Wire, problem: Exception) -> Exception:
    part = None
    try:
        part = failing_part(*files.read(wire))
    except Exception:  # an unreadable pickle has no parts
        part = None
    return unpickling_error(problem, f"a call of {name!r} cannot be unpickled in a worker", part)


@passes_on
def _pickled(name: str, value: Any) -> tuple[bytes, list[memoryview]]:
    try:
        return pickled(dumps, value)
    except Exception as problem:
        raise why_not(value, f"the value of {name!r}") from problem


def call_in_short(name: str, args: Sequence[Any], named: dict[str, Any], function: Any = None) -> str:
    """A call as errors show it. Arguments with the name of a secret are masked: the names of those
    without a keyword are the parameters of `function`, if it is given."""
    try:
        code = getattr(function, "__code__", None)
        names = code.co_varnames[: code.co_argcount] if isinstance(code, types.CodeType) else ()
        parts = [_in_short(key, value) for key, value in zip((*names, *[""] * 8), args[:8], strict=False)] + (
            ["…"] if len(args) > 8 else []
        )
        parts += [f"{key}={_in_short(key, value)}" for key, value in list(named.items())[:8]]
        return masked(cut(f"{name}({', '.join(parts)})", 300))
    except Exception:
        return f"{name}(…)"


def _in_short(name: str, value: Any) -> str:
    return MASK if name and is_secret(name) else value_in_short(value)


def _hold(state: _Answering, wire: Wire, values: tuple[Wire, ...]) -> None:
    """Note the files of arguments. The owner is told when they are not mapped any more."""
    for each in (wire, *values):
        state.files.held.update(files_of(each))


class _CutOff(Exception):
    """A call has closed what leads to the owner, which finds on the board what is there."""


# Outcomes out -----------------------------------------------------------------------------------


def _keep(orders: Orders, host: Host, state: _Answering, number: int, took: int, kind: int, body: bytes) -> None:
    """Put an outcome on the board, to be sent with others."""
    size = OUTCOME.size + len(body)
    if size > ROOM and host.cut_off():
        error = EntangleError(f"a call has closed the descriptors of its worker, which cannot send its outcome of {len(body):,} bytes")
        kind, body = ERROR, pickle.dumps(describe(error, "", 1, ""), 5)
        size = OUTCOME.size + len(body)
    if state.tail + size > ROOM:
        _send(orders, host, state)
    if size > ROOM:
        _say(orders, host, OUTCOME.pack(number, took / 1e9, kind, len(body)) + body)
        return
    outcomes, at = state.board.outcomes, state.tail
    OUTCOME.pack_into(outcomes, at, number, took / 1e9, kind, len(body))
    outcomes[at + OUTCOME.size : at + size] = body
    state.tail = state.board.words[TAIL] = at + size


def _send(orders: Orders, host: Host, state: _Answering) -> None:
    """Send the outcomes on the board, and what the owner must know of files."""
    files, words = state.files, state.board.words
    news = b""
    if files.held and (gone := files.gone()):
        news = _news(gone, "")
    if state.tail or news:
        _say(orders, host, bytes(state.board.outcomes[: state.tail]) + news)
    words[TAIL] = state.tail = 0
    words[BATCH] += 1
    state.sent = time.monotonic_ns()


def _say(orders: Orders, host: Host, outcomes: bytes) -> None:
    """Send outcomes.

    Raises _CutOff if that would go elsewhere, OSError if the owner is gone.
    """
    if host.cut_off():
        raise _CutOff
    orders.send(OUTCOMES, outcomes)


def _tell(orders: Orders, host: Host, gone: list[str], retires: str) -> None:
    with contextlib.suppress(OSError, _CutOff):  # the owner may be gone
        _say(orders, host, _news(gone, retires))


def _news(gone: list[str], retires: str) -> bytes:
    told = marshal.dumps((gone, retires))
    return OUTCOME.pack(0, 0.0, NEWS, len(told)) + told
