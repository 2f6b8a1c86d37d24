"""Which items of a long list are shown: those that one looks for, and then the first ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from entangle.records import Node, Run


class Item(NamedTuple):
    """What decides whether an item is shown: its state (with the failures that it hides, "failed"),
    and how long it took, in seconds."""

    state: str
    seconds: float


def chosen(items: Sequence[Item], most: int) -> list[int]:
    """The indices of at most `most` items, in order. Of a longer list, the slowest, some that
    failed and some that were skipped are among them; the first ones fill up what is left."""
    if len(items) <= most:
        return list(range(len(items)))
    slowest = sorted((at for at, item in enumerate(items) if item.seconds), key=lambda at: -items[at].seconds)
    shown = set(slowest[: most // 4])
    for state, share in (("failed", most // 3), ("skipped", most // 6)):
        shown.update([at for at, item in enumerate(items) if item.state == state][:share])
    for at in range(len(items)):
        if len(shown) >= most:
            break
        shown.add(at)
    return sorted(shown)


class Branches:
    """The branches of a tree, of which a node may have more than are shown.

    An item is a source with what led to it alone: the one that is slow, or has failed, may be
    further down. `states` are those of a run that is not over.
    """

    def __init__(self, run: Run, states: dict[int, str]) -> None:
        self._run = run
        self._states = states
        self._lineages: dict[int, list[Node]] = {}

    def state(self, node: Node) -> str:
        """The state of a node now."""
        return self._states.get(node.number, node.state)

    def chosen(self, numbers: Sequence[int], most: int) -> list[int]:
        """As `chosen`, for the numbers of nodes."""
        if len(numbers) <= most:
            return list(range(len(numbers)))
        lineages = [self._lineage(number) for number in numbers]
        # What several items have in common tells none of them from the others.
        shared = Counter(node.number for number in set(numbers) for node in self._lineage(number))
        own = [[node for node in lineage if shared[node.number] == 1] for lineage in lineages]
        return chosen([self._item(number, nodes) for number, nodes in zip(numbers, own, strict=True)], most)

    def _item(self, number: int, lineage: list[Node]) -> Item:
        states = [self.state(node) for node in lineage]
        state = self.state(self._run.nodes[number])
        if state != "skipped" and "failed" in states:
            state = "failed"
        # What runs now is what one waits for.
        return Item(state, float("inf") if "running" in states else sum(node.seconds or 0.0 for node in lineage))

    def _lineage(self, number: int) -> list[Node]:
        if number not in self._lineages:
            self._lineages[number] = [self._run.nodes[number], *self._run.ancestors(number)]
        return self._lineages[number]

    def left_out(self, numbers: Sequence[int], last: bool) -> str:
        """The line for items that are not shown: how many, and how many of them failed or were
        skipped."""
        states = Counter(self.state(self._run.nodes[number]) for number in numbers)
        said = f"{len(numbers):,} more" + "".join(f", {states[state]:,} {state}" for state in ("failed", "skipped") if states[state])
        return f"… and {said}" if last else f"… {said} …"
