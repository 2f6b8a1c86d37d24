"""How many workers to start and to retire: numbers in, numbers out.

Nothing here looks at a process, a table or a clock. So every case can be read as a line of numbers,
and is tested as one. `supervisor.py` counts, asks and acts.

Workers are added for two reasons. Either there is a CPU for one more: the run has the right to it,
or takes a cookie. Or the workers wait for something, and leave CPUs unused that the run has a right
to. Workers are retired when they have nothing to do.
"""

from __future__ import annotations

from typing import NamedTuple

from entangle.flow import FRESH, PROCESS


class Start(NamedTuple):
    """Workers to start: how many at once, and up to how many more, each with a cookie."""

    at_once: int = 0
    with_cookies: int = 0


class More(NamedTuple):
    """Workers to add in a lane: one if there is a cookie for it, else `without` of them."""

    lane: int
    with_cookie: bool
    without: int


def first(ready: int, cap: int, right: int) -> int:
    """How many worker processes a run begins with: at least one."""
    return max(1, min(ready, cap, right))


def for_ready(ready: int, idle: int, count: int, cap: int, right: int) -> Start:
    """How many worker processes to start for ready nodes that idle workers do not take. The first
    needs no right, others within the right need no cookie."""
    if ready <= max(0, idle):
        return Start()
    least = 0 if count else 1
    most = max(least, min(ready, cap - count))
    at_once = max(least, min(most, right - count))
    return Start(at_once, most - at_once)


def for_fresh(ready: int, running: int, count: int, right: int) -> int:
    """How many processes to start for nodes that each need a process of their own. `count` are
    there, and `running` of them have a node. One more than the right is started ahead, so that it
    is there when another ends."""
    return max(0, min(ready + running, max(1, right) + 1) - count)


def enough(right: int) -> float:
    """The CPUs that workers use if they do not wait. If they use less, there is a CPU to spare."""
    return max(1, right) - 0.5


def at_look(ready: int, fresh: int, count: int, cap: int, right: int, waiting: bool) -> More:
    """How many workers to add at a look, for nodes that no idle worker takes. One if there is a
    cookie; as many again if the workers wait for something (`waiting`)."""
    wanted = ready + fresh
    lane = PROCESS if ready else FRESH
    without = max(0, min(count, wanted, cap - count)) if waiting else 0
    return More(lane, wanted > 0 and count < cap and count <= right, without)


def threads_for(ready: int, idle: int, count: int) -> int:
    """How many threads to start for ready nodes: as many again as there are."""
    return min(max(1, count), ready) if ready > max(0, idle) else 0


def to_retire(resting: int, idle: int, count: int, held_back: bool) -> int:
    """How many resting worker processes to retire. `idle` of them have not been woken yet. One
    stays while nodes are held back for want of a CPU."""
    return max(0, min(resting, idle, count - held_back))


def cookies_kept(count: int, base: int, crowded: bool, committed: float) -> int:
    """How many cookies a run keeps that has nothing ready: one for each worker beyond the caller's
    place (`base`). A crowded run has more workers than CPUs, and keeps cookies for what they
    compute (`committed`, in CPUs)."""
    used = min(count, -int(-committed // 1)) if crowded else count
    return max(0, used - base)
