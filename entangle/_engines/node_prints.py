"""What bodies print on a worker of another engine: whole lines, each told to the caller of its run.

`sys.stdout` and `sys.stderr` of the worker are replaced when its first node begins. What anybody
else prints there goes where it went before.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from entangle._remote.agent.prints import Prints

#: Takes what a node has printed: the stream (1 or 2), and whole lines.
Printed = Callable[[int, bytes], None]


class _Streams:
    """The two streams of this process, and the nodes that run here, by number."""

    def __init__(self) -> None:
        self._nodes: dict[int, Printed] = {}
        #: The numbers of nodes, by the threads that run them.
        self._threads: dict[int, int] = {}
        self._numbers = itertools.count(1)
        self._before: tuple[Any, Any] = sys.stdout, sys.stderr
        self._prints = Prints(self, 1), Prints(self, 2)
        sys.stdout, sys.stderr = self._prints

    def print(self, stream: int, call: int, data: bytes) -> None:
        """Pass on lines. Called by `Prints`."""
        told = self._nodes.get(call)
        if told is not None:
            told(stream, data)
            return
        out = self._before[stream - 1]
        with contextlib.suppress(Exception):  # it may be closed, or None
            out.write(data.decode("utf-8", "replace"))
            out.flush()

    def under_way(self) -> bool:
        """Whether a node runs here."""
        return bool(self._nodes)

    def only_call(self) -> int:
        """The number of the node that this thread runs; else of the one that runs here, if there is
        exactly one; else 0. `Prints` is not told of each node: most print nothing."""
        number = self._threads.get(threading.get_ident(), 0)
        if number:
            return number
        nodes = list(self._nodes)
        return nodes[0] if len(nodes) == 1 else 0

    def begin(self, told: Printed) -> int:
        """Hand what this thread prints to `told`. Gives a number for `end`."""
        number = next(self._numbers)
        self._nodes[number] = told
        self._threads[threading.get_ident()] = number
        return number

    def end(self, number: int) -> None:
        """The node of this thread is over."""
        for prints in self._prints:
            if prints.unfinished:
                prints.finish(number)
        self._threads.pop(threading.get_ident(), None)
        self._nodes.pop(number, None)

    def leave(self) -> None:
        """In a forked child: what it prints goes where it went before. It can tell nobody."""
        for name, prints, before in zip(("stdout", "stderr"), self._prints, self._before, strict=True):
            prints.unlock()
            if getattr(sys, name) is prints:
                setattr(sys, name, before)
        self._nodes.clear()
        self._threads.clear()


_streams: _Streams | None = None
_guard = threading.Lock()


def _those_of_process() -> _Streams:
    global _streams
    with _guard:
        if _streams is None:
            _streams = _Streams()
        return _streams


def begin(told: Printed) -> int:
    """Hand what this thread prints to `told`, until `end` is called with the number given."""
    return (_streams or _those_of_process()).begin(told)


def end(number: int) -> None:
    """The node of this thread is over: what it has printed is told."""
    if _streams is not None:
        _streams.end(number)


def _after_fork() -> None:
    global _streams, _guard
    _guard = threading.Lock()
    if _streams is not None:
        _streams.leave()
        _streams = None


os.register_at_fork(after_in_child=_after_fork)
