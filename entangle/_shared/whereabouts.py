"""Where the nodes of a live run are whose bodies run elsewhere, and why they wait there.

The table has numbers alone, and a node that is away is in no slot. So the supervisor asks the away
worker now and then for its calls, and writes what it is told beside the table, if that has changed.
A worker process whose body waits for another place writes a file of its own.

::

    away          nodes: [[node, place, ticket, why, since], …], counts: [[place, why, nodes], …]
    away-<slot>   [node, place, ticket, why, since]
    away-stages   of a stream, a line for each body and place: [body, place]

The first two are there whole, and have at most what is away now. `why` is why the platform does not
run it yet, in its words; "" where it runs. `since` is when it was handed over, or began to run (ns,
CLOCK_MONOTONIC).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from entangle._shared.whole_files import read_whole, write_whole

#: The name of the file in the run's directory; with a slot, that of a worker. Where stages are.
NAME, STAGES = "away", "away-stages"
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

    def is_due(self) -> bool:
        """Whether it is time to look."""
        return time.monotonic() >= self._due

    def look(self, calls: Iterable[Away], directory: str) -> None:
        """Look at what is away. Without a directory nothing is written."""
        began = time.monotonic()
        nodes = [Whereabout(call.node, call.where, call.ticket, call.waits[:LONGEST], call.began) for call in calls if call.where]
        self.waiting = frozenset(one.node for one in nodes if one.why)
        counts = Counter((one.place, one.why) for one in nodes)
        self.counts = [Waiting(place, why, count) for (place, why), count in counts.most_common(MOST_REASONS)]
        told = {"nodes": nodes[:MOST], "counts": self.counts}
        if directory and told != self._told and (nodes or self._told is not None):
            write_whole(os.path.join(directory, NAME), told)
            self._told = told
        now = time.monotonic()
        self._due = now + max(EVERY, RARE * (now - began))


class _There(NamedTuple):
    """Where a body is for which a thread of the invoking process waits."""

    node: int
    where: str
    ticket: str
    waits: str
    began: int


class Waiter(Protocol):
    """What is read of a worker (`_worker/worker.py`)."""

    site: Any
    slot: int
    in_process: bool


def tell_of(worker: Waiter, node: int, place: str, ticket: str = "", why: str = "", since: int = 0) -> None:
    """Tell where a node is whose worker waits for another place. By the thread of the worker.

    A thread of the invoking process tells its supervisor, a worker process writes a file. Of a
    stream only the place of the stage is kept: its items come and go.
    """
    site = worker.site
    if site.flow.rearmed:
        body = site.flow.body_of[node]
        if (body, place) not in site.stage_places and len(site.stage_places) < MOST_REASONS:
            site.stage_places[body, place] = None
            if worker.in_process:
                _add_line(os.path.join(site.directory, STAGES), [body, place])
    elif worker.in_process:
        write_whole(os.path.join(site.directory, f"{NAME}-{worker.slot}"), [node, place, ticket, why[:LONGEST], since])
    else:
        site.away[node] = _There(node, place, ticket, why, since)


def stage_places(site: Any) -> dict[int, str]:
    """Where the bodies of a stream have run that ran elsewhere, by body. In the invoking
    process."""
    import json

    found = dict(site.stage_places)
    with contextlib.suppress(OSError, ValueError, TypeError), open(os.path.join(site.directory or "/", STAGES), encoding="utf-8") as lines:
        for line in lines:
            body, place = json.loads(line)
            found[int(body), str(place)] = None
    places: dict[int, list[str]] = {}
    for body, place in found:
        places.setdefault(body, []).append(place)
    return {body: ", ".join(sorted(at)) for body, at in places.items()}


def _add_line(path: str, told: Any) -> None:
    """One write to a file opened for appending: lines of several processes do not mix."""
    import json

    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, json.dumps(told).encode() + b"\n")
        finally:
            os.close(fd)


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
