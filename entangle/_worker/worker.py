"""The worker loop. Every worker of a run goes through it, and nobody tells it what to do.

The path of one call::

    call()                           the invoking process
      │ compile the tree into a Flow
      │ make the run directory, the table, the store
      ├── start worker ──────┐
      │                      ▼
      │ supervise:     ┌─▶ take     own range of leaves, ready list, another's range
      │  deadlines     │   gather   values in hand, else from the store
      │  deaths        │   run      the layers, then the function
      │  more workers  │   deliver  ── one consumer, and this is its last argument: go on with it,
      │  while others  │   │           value in hand, no lock, no pickle
      │  wait          │   └────────── else: value into the store; under the lock one pending input
      │                │               fewer for each consumer; go on with one that became ready,
      │                └────────────── leave the others on the ready list
      ▼
    value of the root, from the store

A worker that finds nothing sleeps on a pipe, until a byte says that a node has become ready.

`Taking`, `Delivery`, `Holding` and `Fanning` are the parts of `Worker`, each in a file: what a
worker takes, what it delivers, what it holds for bodies with terms, and how it runs many small
leaves in a row. Each builds on the one before.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from typing import Any

from entangle._shared.site import Site
from entangle._shared.table import BEGUN, BUSY, GONE, LANE, NOBODY, NODE, RUNS, SINCE, STATE
from entangle._shared.tracebacks import passes_on
from entangle._worker import child, delivery, library_threads
from entangle._worker.child import end_child
from entangle._worker.fans import Fanning
from entangle._worker.holding import PutOff
from entangle._worker.inheritance import in_context_of
from entangle.flow import LEAST_FAN, THREAD, Body


class Worker(Fanning):
    """One worker of a run: a process, a thread of the invoking process, or the calling thread."""

    @passes_on
    def work(self) -> None:
        """Run nodes until there is nothing left to run."""
        site, flow, table = self.site, self.site.flow, self.site.table
        slots, base = table.slots, self.base
        bodies, body_of, starts, inputs = flow.bodies, flow.body_of, flow.starts, flow.inputs
        constants, shapes, shape_of, special = flow.constants, flow.shapes, flow.shape_of, self.special
        clock, value_of = time.monotonic_ns, self._value_of
        deliver = self._keep_and_deliver if self.keeps_ended else self._deliver
        if self.lane == THREAD and site.context is not None:
            bodies = [Body(*body)._replace(function=in_context_of(site.context, body.function)) for body in bodies]
        if site.shares.alone and self.in_process:
            bodies, body_of, special = _with_all_cpus(site, special)
        fans, run_stretch = self.fans, self._run_stretch
        plain = [shape.templates is None and not shape.keywords for shape in shapes]
        slots[base + LANE] = self.lane
        slots[base + STATE] = BUSY
        args: Any = ()
        named: dict[str, Any] = {}
        value: Any = None
        node = self._take()
        while node >= 0:
            which = body_of[node]
            first, last = starts[node], starts[node + 1]
            try:
                if fans and (until := self._fan_of(node)):
                    args = None
                    node = run_stretch(node, until, bodies[which])
                    if node < 0:
                        node = self._take()
                    continue
                if special[which]:
                    value, started, ended = self._run_special(node, bodies[which])
                else:
                    if first == last:
                        args = ()
                    elif plain[shape_of[node]] and last - first >= LEAST_FAN and site.directory:
                        args = self._values_of(inputs[first:last])
                    elif plain[shape_of[node]]:
                        args = [constants[~x] if x < 0 else value_of(x) for x in inputs[first:last]]
                    else:
                        args = None
                    if args is None:
                        args, named = flow.arguments(node, value_of)
                        self.kept_node, self.kept = NOBODY, None
                        started = slots[base + SINCE] = clock()
                        slots[base + BEGUN] = RUNS
                        value = bodies[which].function(*args, **named)
                    else:
                        self.kept_node, self.kept = NOBODY, None
                        started = slots[base + SINCE] = clock()
                        slots[base + BEGUN] = RUNS
                        value = bodies[which].function(*args)
                    ended = clock()
            except PutOff:
                node = self._take()
                continue
            except BaseException as error:
                if self.forked:
                    end_child(error)
                if fans:
                    node = slots[base + NODE]  # of a stretch, the one that has failed
                given = args if args is None or first == last or plain[shape_of[node]] else [*args, *named.values()]
                args = value = None
                if self._is_the_callers(error):
                    raise
                self._fail(node, error, given)
                given = None
                if self.in_process and not self.stays:
                    break
                node = self._take()
                continue
            if self.forked:
                end_child(None)
            args = None
            node = deliver(node, value, started, ended)
            if node < 0:
                if self.in_process and not self.stays:
                    break  # its process was for that body alone
                value = None
                node = self._take()
        slots[base + STATE] = GONE
        if self.books is not None:
            self.books.close()


def _with_all_cpus(site: Site, special: list[bool]) -> tuple[list[Body], array[int], list[bool]]:
    """Bodies, which of them each node has, and which are special: nodes that run alone have one of
    their own, in which libraries may use all CPUs of the run."""
    bodies, body_of, special = list(site.flow.bodies), site.flow.body_of[:], list(special)
    for node in site.shares.alone:
        body = bodies[body_of[node]]
        special.append(special[body_of[node]])
        body_of[node] = len(bodies)
        bodies.append(Body(*body)._replace(function=library_threads.alone(site.shares, body.function, node in site.flow.sinks)))
    return bodies, body_of, special


class _Here(threading.local):
    """The worker that this thread is, if it is one.

    The class attribute is the worker that this process is: threads that bodies start see it.
    """

    worker: Worker | None = None


here = _Here()


def _begin_child() -> None:
    delivery.pid = os.getpid()
    worker = here.worker
    if worker is not None:
        worker.forked = True
        worker.cookies, worker.lent, worker.waiting = [], (), 0  # its parent's
        worker.serving = None
        if worker.books is not None:
            worker.books.forked()
        if worker.lane == THREAD:
            child.begin()


os.register_at_fork(after_in_child=_begin_child)


def become(worker: Worker) -> None:
    """Make this process, or this thread, that worker from now on."""
    here.worker = worker
    worker.forked = False


def run_as(worker: Worker) -> None:
    """Work as that worker, in this thread."""
    before = here.worker
    become(worker)
    try:
        worker.work()
    finally:
        here.worker = before
