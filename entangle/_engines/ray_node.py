"""On a worker of Ray: run a node, and tell the caller of it through its inbox."""

from __future__ import annotations

import contextlib
import functools
import marshal
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from entangle._engines.node_task import run_node
from entangle._engines.ray_inbox import NAMESPACE
from entangle._engines.worker_news import WorkerNews
from entangle._shared.table import FAILED

#: How the error of a worker begins that has another version of entangle, or none.
UNFIT = "this worker has another entangle: "


def function_for(inbox: str, version: str) -> Callable[..., Any]:
    """The function of Ray for nodes. It travels by value, and looks first whether what it calls
    there is what was sent for: of another version, nothing could be relied upon."""
    unfit = UNFIT

    def run_on_ray(*args: Any) -> Any:
        try:
            found = __import__("entangle").__version__
        except (ImportError, AttributeError):
            found = ""
        if found != version:
            import os
            import sys

            raise RuntimeError(f"{unfit}{found}|{sys.executable}|{os.uname().nodename}")
        from entangle._engines.ray_node import run_on_ray

        return run_on_ray(inbox, *args) if args else None

    return run_on_ray


def packed(run: str, node: int, at_once: bool, plan: bytes, payload: bytes) -> bytes:
    """What `run_on_ray` takes, as one argument: Ray spends as long on each as on its own work. An
    empty plan is the first of the inputs instead."""
    return marshal.dumps((run, node, at_once, plan, payload))


def run_on_ray(inbox: str, given: bytes, *inputs: Any) -> Any:
    """Run a node. Gives its value, or a `Failed`."""
    run, node, at_once, plan, payload = marshal.loads(given)
    if not plan:
        plan, inputs = inputs[0], inputs[1:]
    if signal.getsignal(signal.SIGINT) != signal.default_int_handler and threading.current_thread() is threading.main_thread():
        # A head that was started in the background is deaf to interrupts, and so are its workers:
        # `ray.cancel` would not reach a body.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    news = _news()
    value, told = run_node(node, plan, payload, inputs, lambda item, size: news.tell(inbox, run, item, False, size))
    news.tell(inbox, run, ("told", tuple(told)), at_once or told.state == FAILED)
    return value


class _News(WorkerNews):
    """Tells by a thread of its own, but for what is told at once."""

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self._due = 0.0
        self._some = threading.Event()
        threading.Thread(target=self._flush_when_due, name="entangle-news", daemon=True).start()

    def flush_soon(self, seconds: float) -> None:
        """Have `flush` called in so many seconds; now where that is 0."""
        if not seconds:
            self.flush()
            return
        self._due = time.monotonic() + seconds
        self._some.set()

    def _flush_when_due(self) -> None:
        while True:
            self._some.wait()
            self._some.clear()
            time.sleep(max(0.0, self._due - time.monotonic()))
            self.flush()

    def send(self, to: str, run: str, items: list[tuple[Any, ...]]) -> None:
        """Lay items into an inbox."""
        with contextlib.suppress(Exception):  # the caller is gone, or its block is over
            _inbox(to).put.remote((run, self.worker, items))


@functools.lru_cache(maxsize=8)
def _inbox(name: str) -> Any:
    import ray

    return ray.get_actor(name, namespace=NAMESPACE)


@functools.cache
def _news() -> _News:
    import ray

    context = ray.get_runtime_context()
    return _News(f"pid {os.getpid()} on node {context.get_node_id()[:8]} ({os.uname().nodename})")
