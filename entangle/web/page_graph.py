"""Graphs for the page. In a large one, the nodes of a task are drawn as one, except for tasks that
the user has opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Up to this many nodes, a graph is drawn node by node.
WHOLE = 300
#: The most nodes that are drawn of an opened task. The others stay together.
OPENED = 500
#: The most tasks that are drawn apart. Those with the fewest nodes are drawn as one.
TASKS = 250

REST = "other tasks"


@dataclass
class GraphPart:
    """The graph of one run. `states` and `seconds` have an element for each node. So has `task_of`,
    whose elements are indexes into `tasks`.

    `inside` is the run and the node in whose body this run was called. `links` counts how often
    nodes of one task take values of nodes of another; `sinks` are the nodes whose values no other
    takes. If the caller knows these two, the edges need not be read. The same holds for `totals`,
    how many nodes of a task are in a state; `spent`, seconds by task; and `firsts`, the first node
    of each task.

    `names` are those that calls were given. `calls` are arguments in short, and `values` their
    values; `items` are the numbers of the stages of a stream. `edges` are in the order of
    arguments.
    """

    run: str
    tasks: Sequence[str]
    task_of: Sequence[int]
    states: Sequence[str]
    edges: Iterable[tuple[int, int]]
    seconds: Sequence[float | None] = ()
    values: Sequence[str | None] = ()
    calls: Sequence[str] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    items: Sequence[dict[str, Any]] = ()
    inside: tuple[str, int] | None = None
    links: Counter[tuple[int, int]] | None = None
    sinks: Sequence[int] | None = None
    totals: Mapping[tuple[int, str], int] | None = None
    spent: Mapping[int, float] | None = None
    firsts: Mapping[int, int] | None = None

    def condense(self) -> None:
        """Find `links` and `sinks` from the edges, unless they are known."""
        if self.links is None or self.sinks is None:
            self.links, self.sinks = condensed(self.task_of, self.edges)


def condensed(task_of: Sequence[int], edges: Iterable[tuple[int, int]]) -> tuple[Counter[tuple[int, int]], list[int]]:
    """How often nodes of one task take values of nodes of another, and the nodes whose values no
    other takes."""
    links: Counter[tuple[int, int]] = Counter()
    taken = bytearray(len(task_of))
    for source, target in edges:
        links[task_of[source], task_of[target]] += 1
        taken[source] = 1
    return links, [node for node, was in enumerate(taken) if not was]


def reached(start: int, links: Iterable[tuple[int, int]]) -> set[int]:
    """The nodes that can be reached from `start` along links, each of which leads from its first
    node to its second."""
    further: dict[int, list[int]] = {}
    for at, to in links:
        further.setdefault(at, []).append(to)
    seen, waiting = set[int](), [start]
    while waiting:
        for one in further.get(waiting.pop(), ()):
            if one not in seen:
                seen.add(one)
                waiting.append(one)
    return seen


@dataclass
class _Drawn:
    id: str
    task: str
    group: bool
    name: str = ""
    count: int = 0
    states: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    call: str | None = None
    value: str | None = None
    items: dict[str, Any] | None = None

    def plain(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "task": self.task,
            "group": self.group,
            "label": self.name or self.task,
            "count": self.count,
            "states": dict(self.states),
            "seconds": round(self.seconds, 9),
            **{name: told for name in ("call", "value", "items") if (told := getattr(self, name)) is not None},
        }


def short_call(text: str) -> str:
    """Arguments as the page shows them on a node."""
    text = " ".join(text.split())
    return text if len(text) <= _CALL else f"{text[: _CALL - 1]}…"


#: The most characters of the arguments on a node.
_CALL = 48


def name_of(root: str, run: str, node: int) -> str:
    """How the page names a node: by its number, after the id of its run if that is not `root`."""
    return str(node) if run == root else f"{run}:{node}"


def drawn(parts: Sequence[GraphPart], opened: Iterable[str] = ()) -> dict[str, Any]:
    """Nodes and edges for the page. The first part is the run that the page shows; the others are
    nested in it."""
    sizes: Counter[str] = Counter()
    for part in parts:
        for task, count in _sizes(part).items():
            sizes[part.tasks[task]] += count
    total = sum(sizes.values())
    apart = {name for name, _ in sizes.most_common(TASKS)}
    opened = {name for name in opened if name in apart and sizes[name] > 1}
    nodes: dict[str, _Drawn] = {}
    links: Counter[tuple[str, str, bool]] = Counter()
    places = _Places(parts[0].run, sizes, apart)
    if total <= WHOLE or opened:
        _draw_nodes(parts, opened, total <= WHOLE, places, nodes, links)
    else:
        _draw_tasks(parts, places, nodes, links)
    return {
        "total": total,
        "nodes": [one.plain() for one in nodes.values()],
        "edges": [
            {"source": source, "target": target, "count": count, **({"part": True} if inner else {})}
            for (source, target, inner), count in links.items()
        ],
    }


def _sizes(part: GraphPart) -> Counter[int]:
    if part.totals is None:
        return Counter(part.task_of)
    sizes: Counter[int] = Counter()
    for (task, _), count in part.totals.items():
        sizes[task] += count
    return sizes


@dataclass
class _Places:
    """Where a node is drawn: alone, if its task has no other; with those of its task; or with the
    tasks that are not drawn apart."""

    root: str
    sizes: Counter[str]
    apart: set[str]

    def of_task(self, part: GraphPart, task: int) -> tuple[str, str, bool]:
        """The id of the place, its name, and whether it is a group."""
        name = part.tasks[task]
        if name not in self.apart:
            return "rest", REST, True
        if self.sizes[name] == 1:
            node = part.firsts[task] if part.firsts is not None else list(part.task_of).index(task)
            return name_of(self.root, part.run, node), name, False
        return f"task:{name}", name, True


def _draw_tasks(parts: Sequence[GraphPart], places: _Places, nodes: dict[str, _Drawn], links: Counter[tuple[str, str, bool]]) -> None:
    """Draw the nodes of a task as one. Once edges are condensed, the time for this hardly depends
    on their number."""
    keys: dict[str, list[str]] = {}
    for part in parts:
        part.condense()
        mine = keys[part.run] = []
        for task in range(len(part.tasks)):
            key, name, group = places.of_task(part, task) if places.sizes[part.tasks[task]] else ("", "", True)
            mine.append(key)
            if key and key not in nodes:
                nodes[key] = _Drawn(key, name, group)
        totals = Counter(zip(part.task_of, part.states, strict=True)) if part.totals is None else part.totals
        for (task, state), count in totals.items():
            one = nodes[mine[task]]
            one.count += count
            one.states[state] += count
        for task, seconds in (part.spent or {}).items():
            nodes[mine[task]].seconds += seconds
        if part.seconds:
            for task, lasted in zip(part.task_of, part.seconds, strict=True):
                if lasted:
                    nodes[mine[task]].seconds += lasted
        for (source, target), count in (part.links or {}).items():
            links[mine[source], mine[target], False] += count
    around = {part.run: part for part in parts}
    for part in parts:
        outer = around.get(part.inside[0]) if part.inside is not None else None
        if part.inside is not None and outer is not None and part.inside[1] < len(outer.task_of):
            into = keys[outer.run][outer.task_of[part.inside[1]]]
            for sink in part.sinks or ():
                links[keys[part.run][part.task_of[sink]], into, True] += 1


def _draw_nodes(
    parts: Sequence[GraphPart],
    opened: set[str],
    whole: bool,
    places: _Places,
    nodes: dict[str, _Drawn],
    links: Counter[tuple[str, str, bool]],
) -> None:
    """Draw node by node: all nodes, or those of opened tasks."""
    keys: dict[str, list[str]] = {}
    left: Counter[str] = Counter()
    for part in parts:
        mine = keys[part.run] = []
        of_task = [places.of_task(part, task) if places.sizes[name] else ("", "", True) for task, name in enumerate(part.tasks)]
        seconds = part.seconds or [None] * len(part.task_of)
        for number, (task, state, lasted) in enumerate(zip(part.task_of, part.states, seconds, strict=True)):
            key, name, group = of_task[task]
            if whole or (name in opened and left[name] < OPENED):
                left[name] += 1
                key, name, group = name_of(places.root, part.run, number), part.tasks[task], False
            one = nodes.get(key)
            if one is None:
                one = nodes[key] = _Drawn(key, name, group)
                if not group:
                    one.name = part.names.get(number, "")
                    one.value = part.values[number] if part.values else None
                    one.call = part.calls[number] if part.calls else None
                    one.items = part.items[number] if part.items else None
            one.count += 1
            one.states[state] += 1
            one.seconds += lasted or 0.0
            mine.append(key)
    for part in parts:
        mine = keys[part.run]
        taken = set()
        for source, target in part.edges:
            links[mine[source], mine[target], False] += 1
            taken.add(source)
        if part.inside is not None and part.inside[1] < len(keys.get(part.inside[0], ())):
            into = keys[part.inside[0]][part.inside[1]]
            for sink, key in enumerate(mine):
                if sink not in taken:
                    links[key, into, True] += 1
