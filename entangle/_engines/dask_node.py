"""On a worker of Dask: run a node, and tell the caller of it through the scheduler."""

from __future__ import annotations

import os
import pickle
import threading
import time
from typing import Any

from entangle._engines.node_task import Failed, Told, run_node, text_of_lost
from entangle._shared.site import cpu
from entangle._shared.table import FAILED
from entangle._worker.failures import describe
from entangle.errors import ProcessTerminatedException

#: Seconds for which a worker collects what it tells: at first, and at most where much follows.
_COLLECTED, _LONGEST = 0.005, 0.05


class _Telling:
    """What one worker tells callers of nodes, in few messages."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._name = f"{worker.name} at {worker.address}" if worker.name != worker.address else worker.address
        self._guard = threading.Lock()
        self._waiting: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
        self._planned = False
        self._pause, self._flushed = _COLLECTED, 0.0

    def tell(self, topic: str, run: str, told: Told, at_once: bool) -> None:
        """Tell the caller of a run of a node."""
        loop = self._worker.loop
        with self._guard:
            self._waiting.setdefault((topic, run), []).append(tuple(told))
            planned, self._planned = self._planned, True
        if at_once:
            loop.add_callback(self._flush)
        elif not planned:
            loop.add_callback(loop.call_later, self._pause, self._flush)

    def _flush(self) -> None:
        with self._guard:
            waiting, self._waiting, self._planned = self._waiting, {}, False
            now = time.monotonic()
            self._pause = min(_LONGEST, 2 * self._pause) if now - self._flushed < 1 else _COLLECTED
            self._flushed = now
        for (topic, run), told in waiting.items():
            self._worker.log_event(topic, pickle.dumps(("told", run, self._name, told), 5))


_tellings: dict[int, _Telling] = {}


def _telling() -> _Telling:
    from distributed import get_worker

    worker = get_worker()
    found = _tellings.get(id(worker))
    if found is None:
        found = _tellings[id(worker)] = _Telling(worker)
    return found


def run_on_dask(topic: str, run: str, node: int, wanted: bool, plan: bytes, payload: bytes, *inputs: Any) -> Any:
    """Run a node; gives its value, or a `Failed`."""
    value, told = run_node(node, plan, payload, inputs)
    _telling().tell(topic, run, told, wanted or told.state == FAILED)
    return value


def refuse_second_run(topic: str, run: str, node: int, name: str, lost: str) -> Any:
    """What Dask runs in place of a body that has begun, or ended, on a worker that is gone."""
    error = ProcessTerminatedException(text_of_lost(name, lost))
    now = time.time_ns()
    report = {**describe(error, name, 1, ""), "path": ""}
    report["text"] = ""
    _telling().tell(topic, run, Told(node, FAILED, now, now, os.getpid(), cpu(), 1, None, report, [], node), True)
    return Failed(node, report)
