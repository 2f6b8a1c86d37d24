"""Which engine the runs of this thread go to: `entangle.engine` and ENTANGLE_ENGINE."""

from __future__ import annotations

import contextvars
import os
import threading
from types import TracebackType
from typing import Any, Protocol

from entangle._engines.engine_run import Engine, EngineRun
from entangle._run import Observer, called_for
from entangle._run.completions import Tell
from entangle._run.progress import observer_for
from entangle._shared.summaries import value_in_short
from entangle._tasks import OnError
from entangle._tasks.layer import Decorated
from entangle._worker import inline
from entangle._worker.worker import here
from entangle.errors import OptionError
from entangle.flow import HERE, Flow

FORMS = 'write engine("dask://host:8786"), engine("ray://host:10001") or engine("ray")'


class Opened(Engine, Protocol):
    """An engine as this file handles it."""

    def open(self) -> None:
        """Connect."""

    def connected(self) -> bool:
        """Whether the connection that `open` has made still is there."""

    def close(self) -> None:
        """Disconnect."""


_guard = threading.RLock()
#: The engines that are connected, and how many blocks use each.
_open: dict[str, tuple[Opened, int]] = {}
#: The process that has connected them.
_pid = os.getpid()
#: The engine of the innermost block of this thread.
_chosen: contextvars.ContextVar[EngineBlock | None] = contextvars.ContextVar("entangle.engine", default=None)


class EngineBlock:
    """The runs in a `with` block go to another engine. Made by `entangle.engine`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._engine: Opened | None = None
        self._tokens: list[contextvars.Token[EngineBlock | None]] = []
        self._pid = os.getpid()

    def __enter__(self) -> EngineBlock:
        self._engine = _connected(self._address)
        self._pid = os.getpid()
        self._tokens.append(_chosen.set(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _chosen.reset(self._tokens.pop())
        _release(self._address)

    async def __aenter__(self) -> EngineBlock:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.__exit__(kind, error, at)

    @property
    def engine(self) -> Opened | None:
        """The engine, where it can be used: not in a forked child of the process that has it."""
        if self._engine is None or self._pid != os.getpid():
            return None
        if not self._engine.connected():
            self._engine = _living(self._address)
        return self._engine

    def __repr__(self) -> str:
        return f"<engine {self._address}>"


def engine(address: str) -> EngineBlock:
    """Make a block, as `entangle.engine` says."""
    _kind_of(address)
    return EngineBlock(address)


def _kind_of(address: object) -> str:
    if not isinstance(address, str):
        raise OptionError(f"engine({value_in_short(address)}): an engine is named by a string; {FORMS}")
    kind, separator, rest = address.partition("://")
    if kind in ("dask", "dask+tls", "tcp", "tls") and rest:  # dask itself says tcp and tls
        return "dask"
    if kind == "ray" and bool(rest) == bool(separator):
        return "ray"
    raise OptionError(f"engine({address!r}): there is no such engine; {FORMS}")


def _made(address: str) -> Opened:
    _, _, rest = address.partition("://")
    if _kind_of(address) == "ray":
        from entangle._engines.ray_graph import RayEngine

        return RayEngine(address if rest else "auto")
    from entangle._engines.dask_graph import DaskEngine

    return DaskEngine(f"{'tls' if address.startswith(('dask+tls', 'tls')) else 'tcp'}://{rest}")


def _connected(address: str) -> Opened:
    """The engine at an address, with one more user."""
    with _guard:
        found = _living(address)
        _open[address] = found, _open[address][1] + 1
        return found


def _living(address: str) -> Opened:
    """The engine at an address, for those who use it already.

    Where the connection is lost, what runs on it ends with an error, and the next run gets another
    one: a program may go on for days.
    """
    global _pid
    with _guard:
        if _pid != os.getpid():
            _open.clear()  # a fork's copies of its parent's
            _pid = os.getpid()
        found, users = _open.get(address, (None, 0))
        if found is not None and not found.connected():
            found.close()
            found = None
        if found is None:
            found = _made(address)
            found.open()
        _open[address] = found, users
        return found


def _release(address: str) -> None:
    with _guard:
        found, users = _open.get(address, (None, 0))
        if found is None:
            return
        if users > 1:
            _open[address] = found, users - 1
            return
        del _open[address]
    found.close()


def current() -> Opened | None:
    """The engine for a run that begins now in this thread; None for ours."""
    if called_for.get() is not None or inline.on or (here.worker is not None and here.worker.in_process):
        return None
    block = _chosen.get()
    if block is not None:
        return block.engine
    address = os.environ.get("ENTANGLE_ENGINE")
    if not address:
        return None
    with _guard:
        known = address in _open and _pid == os.getpid()
        return _living(address) if known else _connected(address)


class RunsElsewhere:
    """Runs on the engine that is chosen (`_run.Elsewhere`)."""

    def run_of(
        self, flow: Flow, way: str | None, observer: Observer | None, timeout: float | None, workers: int | None
    ) -> EngineRun | None:
        """The run of a flow on the engine of this thread; None if there is none."""
        if flow.count == 1 and flow.bodies[flow.body_of[0]].carrier == HERE:
            return None  # the calling thread runs its body; what that returns is a run of its own
        chosen = current()
        return EngineRun(chosen, flow, way, observer, timeout, workers) if chosen is not None else None

    def completions_of(self, flow: Flow, tell: Tell) -> EngineRun | None:
        """The run of a flow whose kept nodes are told as they end; None if there is no engine."""
        chosen = current()
        return EngineRun(chosen, flow, None, observer_for(None), None, None, tell) if chosen is not None else None

    def stream_of(
        self, task: Decorated, instance: tuple[Any, ...], source: Any, inflight: int | None, ordered: bool, on_error: OnError
    ) -> Any:
        """The stream of a task on the engine of this thread; None if there is none."""
        chosen = current()
        if chosen is None:
            return None
        from entangle._engines.items import StreamOnEngine

        return StreamOnEngine(chosen, task, instance, source, inflight, ordered, on_error)

    def title(self) -> str:
        """The engine of this thread, as errors name it; empty if there is none."""
        chosen = current()
        return chosen.title if chosen is not None else ""


elsewhere = RunsElsewhere()
