"""When nodes may be sent to another engine: at once, but for those that something holds.

What holds a node: a limit, of which the caller has the cookies, as for any other place; `wait=`, as
long as it may still run down; `run(workers=n)`. Such a node is *held* until all that it takes has
ended, and it has its cookies. A node that takes the value of a held one is sent after that one: the
engine then sees to the rest.
"""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Iterable, Sequence

from entangle._shared import home as homes
from entangle._shared.site import Site
from entangle._shared.table import FAILED, SKIPPED
from entangle._worker.holding import Cookie, take_one_of_each
from entangle.flow import Body, Flow
from entangle.pools import CPUS, Pool, agree, compare
from entangle.token_bucket import TokenBucket


def limits_of(body: Body) -> tuple[Pool, ...]:
    """The pools of a body of which the caller holds the cookies."""
    return tuple(pool for pool in body.pools if pool.kind != CPUS)


class Departures:
    """The nodes of one run that are still here. `most`: how many may be away at once, or None."""

    def __init__(self, flow: Flow, nodes: Iterable[int], most: int | None) -> None:
        self._flow, self._most = flow, most
        self._limits = [limits_of(body) for body in flow.bodies]
        self._holds = [bool(limits or body.wait is not None) for limits, body in zip(self._limits, flow.bodies, strict=True)]
        #: The nodes that were not sent yet.
        self.left = set(nodes)
        #: Whether anything is held at all.
        self.any = most is not None or any(self._holds[flow.body_of[node]] for node in self.left)
        self._sent: set[int] = set()
        self._lines: dict[tuple[Pool, ...], collections.deque[int]] = {}
        self._cookies: dict[int, tuple[Cookie, ...]] = {}
        self._away = 0
        #: How many of a node's sources it waits for, and of its takers are still here.
        self._missing: dict[int, int] = {}
        self._takers: dict[int, int] = {}
        if self.any:
            for node in self.left:
                sources = flow.sources(node)
                self._missing[node] = len(sources)
                for source in sources:
                    self._takers[source] = self._takers.get(source, 0) + 1

    def open_pools(self) -> str:
        """Make the pools of the limits, where processes of this tree find them. Gives the home.

        Raises OptionError where another process has other figures for a limit.
        """
        if not any(self._limits):
            return ""
        home = homes.home()
        bodies = [(body.name, limits) for body, limits in zip(self._flow.bodies, self._limits, strict=True)]
        for name, (task, stated) in compare(bodies).items():
            agree(home.path, name, task, stated, replace=home.pid == os.getpid())
        for pools in self._limits:
            for pool in pools:
                homes.make_pool(pool, home.path, home.cpus, home.spill)
        return home.path

    def holds(self, node: int) -> bool:
        """Whether this node waits here until all that it takes has ended."""
        return self._most is not None or self._holds[self._flow.body_of[node]]

    def begin(self) -> list[int]:
        """The nodes that can be sent at once."""
        if not self.any:
            found, self.left = sorted(self.left), set()
            return found
        return self._lined_up([node for node in sorted(self.left) if not self._missing[node]])

    def _lined_up(self, nodes: Sequence[int]) -> list[int]:
        """Of nodes that wait for no other, those that nothing holds, and what then follows."""
        free: list[int] = []
        waiting = collections.deque(nodes)
        while waiting:
            node = waiting.popleft()
            if self.holds(node):
                self._lines.setdefault(self._limits[self._flow.body_of[node]], collections.deque()).append(node)
            else:
                free.append(node)
                waiting += self._departed(node)
        return free

    def _departed(self, node: int) -> list[int]:
        """Note that a node is sent. Gives those that have waited for that alone."""
        self.left.discard(node)
        self._sent.add(node)
        return self._freed(node, held=False)

    def _freed(self, source: int, held: bool) -> list[int]:
        found: list[int] = []
        for taker in self._flow.takers(source):
            if taker in self._missing and self.holds(taker) is held:
                self._missing[taker] -= 1
                if not self._missing[taker]:
                    found.append(taker)
        return found

    def ended(self, node: int) -> list[int]:
        """A node has ended: gives back its cookies. Gives the nodes that may be sent now."""
        if not self.any or node not in self._sent:
            return []
        self._sent.discard(node)
        if node in self._cookies:
            self._away -= 1
            for cookie in self._cookies.pop(node):
                cookie.give()
        return self._lined_up(self._freed(node, held=True))

    def admitted(self, site: Site) -> list[int]:
        """The held nodes that have their cookies now, and what follows from them."""
        found: list[int] = []
        states = site.table.states
        for pools, line in list(self._lines.items()):
            sources = [site.queue(pool) for pool in pools]
            while line:
                node = line[0]
                lost = [source for source in self._flow.sources(node) if states[source] in (FAILED, SKIPPED)]
                if not set(lost) <= set(self._flow.accepts.get(node, ())):
                    pass  # it will be skipped: that takes nothing
                elif self._most is not None and self._away >= self._most:
                    break
                else:
                    cookies = take_one_of_each(pools, sources)
                    if cookies is None:
                        break
                    self._cookies[node] = cookies
                    self._away += 1
                line.popleft()
                found.append(node)
                found += self._lined_up(self._departed(node))
            if not line:
                del self._lines[pools]
        return found

    def give_up(self, node: int) -> list[int]:
        """Something else is sent in the place of a held node. Gives what then follows."""
        for line in self._lines.values():
            with contextlib.suppress(ValueError):
                line.remove(node)
        return self._lined_up(self._departed(node))

    def patience(self, site: Site, most: float) -> float:
        """Seconds for which the caller may sleep: less where a token comes before."""
        for pools in self._lines:
            for pool in pools:
                source = site.queue(pool)
                if isinstance(source, TokenBucket):
                    most = min(most, source.left())
        return most

    def kept(self, nodes: Sequence[int]) -> set[int]:
        """Of nodes that are sent, those whose values nodes take that are still here."""
        return {node for node in nodes if self._takers.get(node, 0)}

    def not_needed(self, nodes: Sequence[int]) -> list[int]:
        """The nodes whose takers have all been sent with these."""
        found: list[int] = []
        if self.any:
            for node in nodes:
                for source in self._flow.sources(node):
                    self._takers[source] -= 1
                    if not self._takers[source]:
                        found.append(source)
        return found

    def close(self) -> None:
        """Give back all cookies."""
        while self._cookies:
            for cookie in self._cookies.popitem()[1]:
                cookie.give()
