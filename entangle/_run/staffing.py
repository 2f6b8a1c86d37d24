"""How many workers to start and to retire: numbers in, numbers out.

Nothing here looks at a process, a table or a clock, so that every case can be read as a line of numbers, and is tested as one.
`supervisor.py` counts, asks and acts.

Workers are added for two reasons: there is a CPU for one more (the run has the right to it, or takes a cookie), or those who are
there wait for something, and leave CPUs that they have the right to. They are retired when they have found nothing to do.
"""

from __future__ import annotations

from typing import NamedTuple

from entangle.flow import FRESH, PROCESS


class Start(NamedTuple):
    """So many workers at once, and so many more as there are cookies for."""

    at_once: int = 0
    with_cookies: int = 0


class More(NamedTuple):
    """Workers of that lane: one where there is a cookie for it, `without` where there is none."""

    lane: int
    with_cookie: bool
    without: int


def first(ready: int, cap: int, right: int) -> int:
    """How many worker processes a run begins with, whose nodes are ready; there is at least one."""
    return max(1, min(ready, cap, right))


def for_ready(ready: int, idle: int, count: int, cap: int, right: int) -> Start:
    """How many worker processes to start for ready nodes, of which those that are idle take their part. The first may always be
    started, those within the right without a cookie."""
    if ready <= max(0, idle):
        return Start()
    least = 0 if count else 1
    most = max(least, min(ready, cap - count))
    at_once = max(least, min(most, right - count))
    return Start(at_once, most - at_once)


def for_fresh(ready: int, running: int, count: int, right: int) -> int:
    """How many processes to start for nodes that each want a process of their own; `count` are there, `running` of them with a node.
    One more than the right allows is on its way, so that none is waited for when another ends."""
    return max(0, min(ready + running, max(1, right) + 1) - count)


def enough(right: int) -> float:
    """What workers use who do not wait (CPUs); who use less leave a CPU that others could have."""
    return max(1, right) - 0.5


def at_look(ready: int, fresh: int, count: int, cap: int, right: int, waiting: bool) -> More:
    """How many worker processes to add at a look, for nodes that no idle worker takes: one with a cookie, or as many again where those
    who are there wait for something (`waiting`)."""
    wanted = ready + fresh
    lane = PROCESS if ready else FRESH
    without = max(0, min(count, wanted, cap - count)) if waiting else 0
    return More(lane, wanted > 0 and count < cap and count <= right, without)


def threads_for(ready: int, idle: int, count: int) -> int:
    """How many threads to start for ready nodes: as many again as there are."""
    return min(max(1, count), ready) if ready > max(0, idle) else 0


def to_retire(resting: int, idle: int, count: int, held_back: bool) -> int:
    """How many worker processes to retire that rest. `idle` of them have not been woken yet. Where nodes are held back until there is
    a CPU for them, one stays."""
    return max(0, min(resting, idle, count - held_back))


def cookies_kept(count: int, base: int, crowded: bool, committed: float) -> int:
    """How many cookies a run keeps that has nothing ready: one for each worker beyond the CPUs of the caller's place (`base`), and where
    there are more workers than CPUs, for what those compute (`committed`, in CPUs)."""
    used = min(count, -int(-committed // 1)) if crowded else count
    return max(0, used - base)
