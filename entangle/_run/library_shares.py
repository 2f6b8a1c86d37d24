"""How many threads the numerical libraries of one worker of a run may use.

The CPUs of the budget are divided among the runs that this process has under way, and then among
the processes of a run that may compute at once. A run in a body divides what the body's worker has.
So the threads of all workers of a process tree are about as many as its CPUs.

The share is known when a run begins, and stays. It is counted from the flow: workers come and go,
and a library keeps the threads that it has when a body begins. Only the nodes that run alone have
all CPUs of the run: those that prepare or gather what the others work on.
"""

from __future__ import annotations

import itertools
import os

from entangle._shared.site import Shares
from entangle._worker import library_threads
from entangle._worker.worker import Worker
from entangle.flow import HERE, IN_CALLER, Body, Flow
from entangle.pools import CPUS

#: The runs with worker processes that this process has under way.
_under_way: set[str] = set()

os.register_at_fork(after_in_child=_under_way.clear)


def begin(run: str, flow: Flow, lanes: list[int], budget: int, workers: int, caller: Worker | None) -> Shares:
    """Count a run that begins, and give how many threads the libraries of its workers may use.

    `budget` is how many CPUs the process tree may keep busy. The run has at most so many `workers`.
    `caller` is the worker in whose body it is called.
    """
    _under_way.add(run)
    count = len(_under_way)
    if caller is not None and caller.lane == HERE and caller.site.run_id in _under_way:
        count -= 1  # nothing else of that run is left to do
    whole = max(1, (library_threads.share or budget) // count)
    each = max(1, whole // at_once(flow, lanes, min(whole, workers)))
    return Shares(each, whole, alone(flow, lanes) if each < whole and not flow.rearmed else ())


def end(run: str) -> None:
    """A run is over."""
    _under_way.discard(run)


def at_once(flow: Flow, lanes: list[int], most: int) -> int:
    """At most how many bodies of a flow processes can run at the same time; never above `most`.

    Each node without inputs can, and each consumer of a node beyond the first. That is exact for
    trees and for diamonds, and too many where several nodes take the same values.
    """
    forks = len(flow.consumers) - (flow.count - len(flow.sinks))
    wide = flow.leaves + forks
    if wide < most:
        wide = flow.pending.count(0) + forks
    wide = max(1, min(most, wide))
    if wide == 1 or not any(lane in IN_CALLER for lane in lanes):
        return wide
    of_processes = (1 for body in flow.body_of if lanes[body] not in IN_CALLER)
    return max(1, sum(itertools.islice(of_processes, wide)))


def alone(flow: Flow, lanes: list[int]) -> tuple[int, ...]:
    """The nodes of processes that no other node can run beside: from the only first one up to the
    first with several consumers, and from the last one with several inputs to the only sink."""
    found = []
    if len(flow.sinks) == 1:
        node = flow.sinks[0]
        found.append(node)
        while flow.pending[node] == 1 and len(flow.takers(below := flow.sources(node)[0])) == 1:
            found.append(node := below)
    if flow.leaves <= 1 and flow.pending.count(0) == 1:
        node = flow.pending.index(0)
        found.append(node)
        while len(above := flow.takers(node)) == 1 and flow.pending[above[0]] == 1:
            found.append(node := above[0])
    return tuple(node for node in found if lanes[flow.body_of[node]] not in IN_CALLER and not _bound(flow.body(node)))


def _bound(body: Body) -> bool:
    """Whether the body runs on one CPU alone."""
    return any(pool.kind == CPUS for pool in body.pools)
