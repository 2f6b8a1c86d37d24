"""What is drawn of a run: a box for each node or, in a large run, for each task."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from entangle._records.rows import NodeRow, RunGraph

#: Up to this many nodes, each has a box of its own.
MOST = 150
#: How many failed nodes are named of a task in one box.
FAILURES = 3
#: The state of a box is the first of these that one of its nodes has.
_WORST = ("failed", "skipped", "stopped", "running", "unknown", "waiting", "done")


@dataclass(frozen=True)
class Box:
    """A box: its number, its name, the number of its nodes, what is written below the name, its
    state."""

    number: int
    name: str
    count: int
    below: str
    state: str
    #: Its task, state and error, in full.
    about: str = ""


@dataclass(frozen=True)
class Link:
    """An arrow between boxes, for `count` edges; `label` is the argument where there is one
    edge."""

    source: int
    target: int
    count: int
    label: str


@dataclass(frozen=True)
class Drawing:
    """The boxes and arrows of a run."""

    boxes: list[Box]
    links: list[Link]
    grouped: bool


def lasted(seconds: float | None) -> str:
    """A duration in the unit that fits."""
    if seconds is None:
        return ""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def drawing_of(run: RunGraph, most: int = MOST) -> Drawing:
    """What is drawn of a run: nodes up to `most` of them, else tasks."""
    if run.node_count <= most:
        return _one_by_one(run)
    return _by_task(run)


def _state(node: NodeRow) -> str:
    return "failed" if node.error is not None else node.state


def _about(run: RunGraph, node: NodeRow) -> str:
    about = f"{node.name}: {_state(node)}" if node.name == node.task.name else f"{node.name} ({node.task.name}): {_state(node)}"
    if node.error is not None:
        about += f", {node.error}"
    if node.cause is not None:
        about += f", since {run.nodes[node.cause].name} (node {node.cause}) failed"
    return about


def _one_by_one(run: RunGraph) -> Drawing:
    boxes = []
    for node in run.nodes:
        shown = node.value.text if node.value is not None else ""
        if node.error is not None:
            shown = str(node.error).partition("\n")[0]
        if len(shown) > 24:
            shown = shown[:23] + "…"
        below = " · ".join(part for part in (shown, lasted(node.seconds)) if part)
        boxes.append(Box(node.number, node.name, 1, below, _state(node), _about(run, node)))
    taken: dict[tuple[int, int], list[str]] = {}
    for edge in run.edges:
        taken.setdefault((edge.source, edge.target), []).append(edge.argument)
    links = [Link(source, target, len(labels), ", ".join(labels)) for (source, target), labels in taken.items()]
    return Drawing(boxes, links, grouped=False)


def _noteworthy(nodes: list[NodeRow]) -> list[str]:
    """Of many nodes in one box, those that one looks for: the slowest, and the first that
    failed."""
    said = []
    slowest = max(nodes, key=lambda node: node.seconds or 0.0)
    if len(nodes) > 1 and slowest.seconds:
        said.append(f"slowest {lasted(slowest.seconds)} (#{slowest.number})")
    failed = [node.number for node in nodes if node.error is not None]
    if failed:
        first = ", ".join(f"#{number}" for number in failed[:FAILURES])
        said.append(f"{len(failed):,} failed ({first}{', …' if len(failed) > FAILURES else ''})")
    return said


def _by_task(run: RunGraph) -> Drawing:
    groups: dict[int, list[NodeRow]] = {}
    for node in run.nodes:
        groups.setdefault(id(node.task), []).append(node)
    numbers = {key: number for number, key in enumerate(groups)}
    boxes = []
    for key, nodes in groups.items():
        seconds = sum(node.seconds or 0.0 for node in nodes)
        states = Counter(_state(node) for node in nodes)
        told = ", ".join(f"{count:,} {state}" for state, count in states.items())
        state = next((worst for worst in _WORST if states[worst]), "done")
        below = " · ".join([f"{len(nodes):,} calls", lasted(seconds), *_noteworthy(nodes)])
        boxes.append(Box(numbers[key], nodes[0].task.name, len(nodes), below, state, f"{nodes[0].task.name}: {told}"))
    counts = Counter((numbers[id(run.nodes[edge.source].task)], numbers[id(run.nodes[edge.target].task)]) for edge in run.edges)
    links = [Link(source, target, count, f"{count:,}") for (source, target), count in counts.items()]
    return Drawing(boxes, links, grouped=True)
