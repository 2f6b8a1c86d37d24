"""One call of an executor: what is sent, and who gets the outcome, be it a future or a `map`."""

from __future__ import annotations

import contextlib
import io
import pickle
import queue
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FuturesTimeoutError
from typing import Any, Protocol

from entangle._shared.tracebacks import hide, passes_on
from entangle._shared.value_files import ValueFiles, Wire
from entangle._warm.functions import Function
from entangle._warm.holdings import Sealed
from entangle._worker import called

#: The value of a future that nobody has unpickled yet.
UNOPENED: Any = object()


class Opener(Protocol):
    """Unpickles values: the executor."""

    def open(self, sealed: Sealed) -> Any:
        """Unpickle a value."""


class CallFuture(Future[Any]):
    """The future of a call. Its value, as it travelled, can go on to another call."""

    def __init__(self, calls: Opener) -> None:
        super().__init__()
        self.calls = calls
        #: The value as it came.
        self.sealed: Sealed | None = None
        #: Whether another call takes it. Its value is then unpickled only if somebody asks.
        self.wanted = False
        self._opening = threading.Lock()

    @passes_on
    def result(self, timeout: float | None = None) -> Any:
        """The value. Raises the error of the call, TimeoutError after so many seconds, and
        CancelledError."""
        try:
            value = super().result(timeout)
            if value is UNOPENED:
                self._open()
                value = super().result()
            return value
        except BaseException as error:
            hide(error)
            raise

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error of the call; None if it has a value."""
        error = super().exception(timeout)
        if error is None and self._result is UNOPENED:
            self._open()
            error = super().exception()
        return error

    def _get_snapshot(self) -> Any:  # Python 3.14: what asyncio takes
        if self.done() and not self.cancelled() and self._result is UNOPENED:
            self._open()
        return super()._get_snapshot()  # type: ignore[misc]

    def _open(self) -> None:
        with self._opening:
            if self._result is UNOPENED and self._exception is None:
                assert self.sealed is not None
                try:
                    self._result = self.calls.open(self.sealed)
                except Exception as problem:  # no other: Ctrl-C is not the call's
                    self._exception, self._result = problem, None


class Job:
    """One call that is to be made: what is sent, and who gets the outcome."""

    __slots__ = ("body", "buffers", "function", "future", "index", "mapping", "missing", "takes", "under_way", "wires")

    def __init__(self, function: Function, body: bytes, buffers: list[memoryview]) -> None:
        self.function = function
        self.body = body
        self.buffers = buffers
        self.future: CallFuture | None = None
        self.mapping: Mapping | None = None
        self.index = 0
        #: Futures whose values its arguments take, and how many have no value yet.
        self.takes: list[CallFuture] = []
        self.missing = 0
        self.under_way = False
        #: The arguments and the values that they take, once they were stored.
        self.wires: tuple[Wire, tuple[Sealed, ...], Sealed | None] | None = None

    def in_short(self, files: ValueFiles | None) -> str:
        """The call as errors show it. No code of its arguments is run."""
        try:
            assert self.wires is not None
            assert files is not None
            body, buffers = files.read(self.wires[0])
            args, named = _Described(io.BytesIO(body), buffers=buffers).load()
        except Exception:
            return f"{self.function.name}(…)"
        return called.call_in_short(self.function.name, args, named)

    def begin(self) -> bool:
        """Whether it is still wanted. From now on it cannot be cancelled."""
        if not self.under_way:
            if self.mapping is not None:
                self.under_way = not self.mapping.left
            elif self.future is not None:
                self.under_way = self.future.set_running_or_notify_cancel()
        return self.under_way


class _Described(pickle.Unpickler):
    """Makes plain values again, and for others an object of a class of that name."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_class" and module == "entangle._shared.pickled_classes":
            return _class  # one that travels by value
        kind = name.rpartition(".")[2]
        return _other(f"{module.partition('.')[0]} object" if kind.startswith("_") else kind)


def _class(name: object, qualname: str, *rest: object) -> type:
    return _other(qualname.rpartition(".")[2])


def _other(name: str) -> type:
    return type(name, (_Other,), {"__module__": ""})


class _Other:
    """Stands for a value that is not made again; takes whatever its pickle says of it."""

    def __new__(cls, *args: Any, **named: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *args: Any, **named: Any) -> None: ...
    def __setstate__(self, state: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...
    def append(self, item: Any) -> None: ...
    def __call__(self, *args: Any, **named: Any) -> Any:
        return self


class Mapping:
    """The calls of one `map`: their outcomes, until they are taken in order.

    Ctrl-C may come while they are taken. It would leave a `threading.Condition` locked, and the
    collector waiting for it; a queue in C stays whole.
    """

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[list[tuple[int, bool, Any]]] = queue.SimpleQueue()
        self.outcomes: dict[int, tuple[bool, Any]] = {}
        #: Whether nobody waits for the rest any more.
        self.left = False

    def put(self, found: list[tuple[int, bool, Any]]) -> None:
        """Take outcomes: the index of each, whether it is a value, and the value or the error."""
        if not self.left:
            self._news.put(found)

    def take(self, index: int, until: float | None) -> tuple[bool, Any]:
        """The outcome of a call. Raises TimeoutError after that moment."""
        while index not in self.outcomes:
            try:
                found = self._news.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise FuturesTimeoutError from None
            for at, good, what in found:
                self.outcomes[at] = (good, what)
        return self.outcomes.pop(index)

    def leave(self) -> None:
        """Drop the rest."""
        self.left = True
        self.outcomes.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                self._news.get_nowait()


#: A call that is over: whether it has a value, and the value as it came, or the error.
Settled = tuple[Job, bool, Any]
