"""Where the nodes of a live run are whose bodies run elsewhere, and why they wait there.

The table has numbers alone, and a node that is away is in no slot. So the supervisor asks the away
worker now and then for its calls, and writes what it is told beside the table, if that has changed.
A worker process whose body waits for another place writes a file of its own.

::

    away          nodes: [[node, place, ticket, why, since], …], counts: [[place, why, nodes], …]
    away-<slot>   [node, place, ticket, why, since]

Each file is there whole, and has at most what is away now. `why` is why the platform does not run
it yet, in its words; "" where it runs. `since` is when it was handed over, or began to run (ns,
CLOCK_MONOTONIC).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from entangle._shared.whole_files import read_whole, write_whole

#: The name of the file in the run's directory; with a slot, that of a worker.
NAME = "away"
#: The pause between two looks (seconds); and as many times what a look takes.
EVERY, RARE = 0.5, 50
#: The most nodes that are told one by one; and the most pairs of a place and a reason.
MOST, MOST_REASONS = 20_000, 200
#: The most characters of a reason.
LONGEST = 300


class Whereabout(NamedTuple):
    """Where a node is that is away: what `away` has of it."""

    node: int
    place: str
    ticket: str
    why: str
    since: int


class Waiting(NamedTuple):
    """How many nodes of a run are at a place for the same reason; `why` is "" where they run."""

    place: str
    why: str
    nodes: int


class Away(Protocol):
    """What is read of a call that is away (`_worker/away.py`)."""

    node: int
    where: str
    ticket: str
    waits: str
    began: int


class Whereabouts:
    """Tells where the calls of one run are, in the process that supervises it."""

    def __init__(self) -> None:
        self.counts: list[Waiting] = []
        #: The nodes that their places do not run yet.
        self.waiting: frozenset[int] = frozenset()
        self._told: Any = None
        self._due = 0.0

    def look(self, calls: Mapping[int, Away], directory: str) -> None:
        """Look at the calls that are away, by node, if it is time. Without a directory nothing is
        written."""
        began = time.monotonic()
        if began < self._due:
            return
        nodes = [
            Whereabout(call.node, call.where, call.ticket, call.waits[:LONGEST], call.began) for call in list(calls.values()) if call.where
        ]
        self.waiting = frozenset(one.node for one in nodes if one.why)
        counts = Counter((one.place, one.why) for one in nodes)
        self.counts = [Waiting(place, why, count) for (place, why), count in counts.most_common(MOST_REASONS)]
        told = {"nodes": nodes[:MOST], "counts": self.counts}
        if directory and told != self._told and (nodes or self._told is not None):
            write_whole(os.path.join(directory, NAME), told)
            self._told = told
        now = time.monotonic()
        self._due = now + max(EVERY, RARE * (now - began))


def tell_of(directory: str, slot: int, one: Whereabout) -> None:
    """Tell where a node is whose worker waits for another place. In the worker's process."""
    write_whole(os.path.join(directory, f"{NAME}-{slot}"), one)


def read(directory: str) -> tuple[dict[int, Whereabout], list[Waiting]]:
    """What the supervisor of a run has told last: where each node is, and how many are where."""
    told = read_whole(os.path.join(directory, NAME))
    nodes: dict[int, Whereabout] = {}
    counts: list[Waiting] = []
    if isinstance(told, dict):
        with contextlib.suppress(LookupError, TypeError):  # another version's, or damaged
            nodes = {one.node: one for one in map(_checked, told["nodes"])}
            counts = [Waiting(str(place), str(why), int(count)) for place, why, count in told["counts"]]
    return nodes, counts


def read_of(directory: str, slot: int) -> Whereabout | None:
    """What a worker has told last: of the node that it is at, or of one before."""
    with contextlib.suppress(TypeError):
        return _checked(read_whole(os.path.join(directory, f"{NAME}-{slot}")))
    return None


def _checked(told: Any) -> Whereabout:
    """Raises TypeError for anything that was not told."""
    try:
        node, place, ticket, why, since = told
        return Whereabout(int(node), str(place), str(ticket), str(why), int(since))
    except ValueError as error:
        raise TypeError(str(error)) from None
