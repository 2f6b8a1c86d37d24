"""On a worker of Dask: run a node, and tell the caller of it through the scheduler."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from typing import Any

from entangle._engines.node_task import Failed, Told, run_node, text_of_lost
from entangle._engines.worker_news import WorkerNews
from entangle._shared.site import cpu
from entangle._shared.table import FAILED
from entangle._worker.failures import describe
from entangle.errors import ProcessTerminatedException


class _News(WorkerNews):
    """Tells by events of Dask."""

    def __init__(self, worker: Any) -> None:
        super().__init__(f"{worker.name} at {worker.address}" if worker.name != worker.address else worker.address)
        self._worker = worker

    def flush_soon(self, seconds: float) -> None:
        """Have `flush` called in so many seconds, by the worker's loop."""
        loop = self._worker.loop
        if seconds:
            loop.add_callback(loop.call_later, seconds, self.flush)
        else:
            loop.add_callback(self.flush)

    def send(self, to: str, run: str, items: list[tuple[Any, ...]]) -> None:
        """Log an event of a topic."""
        with contextlib.suppress(Exception):  # the worker is leaving
            self._worker.log_event(to, pickle.dumps(("heard", run, self.worker, items), 5))


_all_news: dict[int, _News] = {}


def _news() -> _News:
    from distributed import get_worker

    worker = get_worker()
    found = _all_news.get(id(worker))
    if found is None:
        found = _all_news[id(worker)] = _News(worker)
    return found


def run_on_dask(topic: str, run: str, node: int, at_once: bool, plan: bytes, payload: bytes, *inputs: Any) -> Any:
    """Run a node; gives its value, or a `Failed`. `at_once`: the caller waits for its end."""
    news = _news()
    value, told = run_node(node, plan, payload, inputs, lambda item, size: news.tell(topic, run, item, False, size))
    news.tell(topic, run, ("told", tuple(told)), at_once or told.state == FAILED)
    return value


def refuse_second_run(topic: str, run: str, node: int, name: str, lost: str) -> Any:
    """What Dask runs in place of a body that has begun, or ended, on a worker that is gone."""
    error = ProcessTerminatedException(text_of_lost(name, lost))
    now = time.time_ns()
    report = {**describe(error, name, 1, ""), "path": ""}
    report["text"] = ""
    told = Told(node, FAILED, now, now, os.getpid(), cpu(), 1, None, report, [], node)
    _news().tell(topic, run, ("told", tuple(told)), True)
    return Failed(node, report)
