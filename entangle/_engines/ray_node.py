"""On a worker of Ray: run a node. What the caller is told of it is a second value."""

from __future__ import annotations

import functools
import os
import signal
import threading
from typing import Any

from entangle._engines.node_task import run_node


def run_on_ray(node: int, plan: bytes, payload: bytes, *inputs: Any) -> tuple[Any, Any]:
    """Run a node. Gives its value, or a `Failed`; and the worker, with what is told of the node."""
    if signal.getsignal(signal.SIGINT) != signal.default_int_handler and threading.current_thread() is threading.main_thread():
        # A head that was started in the background is deaf to interrupts, and so are its workers:
        # `ray.cancel` would not reach a body.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    value, told = run_node(node, plan, payload, inputs)
    return value, (_worker(), tuple(told))


@functools.cache
def _worker() -> str:
    import ray

    context = ray.get_runtime_context()
    return f"pid {os.getpid()} on node {context.get_node_id()[:8]} ({os.uname().nodename})"


def about_worker() -> str:
    """The version of entangle there."""
    return str(__import__("entangle").__version__)
