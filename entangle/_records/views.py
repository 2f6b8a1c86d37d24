"""Views: runs and nodes as users hold them. They are rows, with the ways through the graph and the
drawings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from entangle._records import queries, reading
from entangle._records.database import opened
from entangle._records.rows import (
    Edge,
    Error,
    Input,
    NodeRow,
    PlaceShare,
    Retirement,
    RunGraph,
    RunRow,
    TaskRecord,
    Times,
    Value,
    value_of,
)
from entangle.errors import RecordsError

if TYPE_CHECKING:
    import networkx


class NodeRecord(NodeRow):
    """One node of a run. `entangle.records.Node` is the same class."""

    __slots__ = ()
    run: RunRecord

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Its arguments, in their order."""
        return self.run.inputs_of(self)

    @property
    def printed(self) -> str:
        """What its body printed in a worker process, in short; '' where that is nothing, or not
        known."""
        if self.run._key is None:
            return ""
        with opened(self.run._directory) as connection:
            return queries.printed(connection, self.run._key, self.number) or ""

    @property
    def children(self) -> list[RunRecord]:
        """The runs that were called in its body."""
        return [run for run in self.run.children if run.parent_node == self.number]


@dataclass(frozen=True, eq=False)
class RunRecord(RunGraph):
    """One run. `state` is done, failed, cancelled, killed (it ended abruptly) or running.
    `entangle.records.Run` is the same class.

    Nodes, edges and children are read when they are first asked for. Of a run that is still
    running, the graph is known, and nothing else of its nodes.
    """

    @cached_property
    def nodes(self) -> list[NodeRecord]:
        """Its nodes, by number."""
        return [NodeRecord(self, *told) for told in reading.nodes_of(self)]

    @property
    def failures(self) -> dict[int, Error]:
        """The errors of nodes that have not ended the run, by node."""
        return self._failures[0]

    @property
    def causes(self) -> dict[int, int]:
        """For each node that was skipped, the node whose failure is why."""
        return self._failures[1]

    @cached_property
    def _failures(self) -> tuple[dict[int, Error], dict[int, int]]:
        return reading.failures_of(self)

    @property
    def root(self) -> NodeRecord:
        """The node whose value is that of the run."""
        taken = {edge.source for edge in self.edges}
        return next(node for node in reversed(self.nodes) if node.number not in taken)

    @property
    def value(self) -> Value | None:
        """The value of the run, in short."""
        return self.root.value if self.nodes else None

    @cached_property
    def edges(self) -> list[Edge]:
        """Which node takes whose value."""
        return [Edge(row[4], row[1], row[3]) for rows in self._inputs for row in rows if row[4] is not None]

    @cached_property
    def _inputs(self) -> list[list[tuple[Any, ...]]]:
        return reading.inputs_of(self)

    def inputs_of(self, node: NodeRecord | int | str) -> tuple[Input, ...]:
        """The arguments of a node; the node as in `node`."""
        return tuple(
            Input(argument, source, value_of(*told) if source is None else None)
            for _, _, _, argument, source, *told in self._inputs[self.node(node).number]
        )

    def _sources(self, number: int) -> list[int]:
        return list(dict.fromkeys(row[4] for row in self._inputs[number] if row[4] is not None))

    @cached_property
    def _takers(self) -> list[list[int]]:
        takers: list[list[int]] = [[] for _ in range(self.node_count)]
        for edge in self.edges:
            if not takers[edge.source] or takers[edge.source][-1] != edge.target:
                takers[edge.source].append(edge.target)
        return takers

    @property
    def tasks(self) -> list[TaskRecord]:
        """The versions of tasks that took part, each once."""
        return list({id(node.task): node.task for node in self.nodes}.values())

    @property
    def parent(self) -> RunRecord | None:
        """The run in whose body it was called; None where there is none, or that run is not
        remembered."""
        if self.parent_id is None:
            return None
        try:
            return record_of(reading.run_of(self._directory, self.parent_id))
        except RecordsError:
            return None

    @cached_property
    def children(self) -> list[RunRecord]:
        """The runs that were called in the bodies of its nodes, oldest first."""
        return [record_of(row) for row in reading.children_of(self)]

    @cached_property
    def retirements(self) -> tuple[Retirement, ...]:
        """The warm workers of a session whose last run it was, if they ended for a reason: they
        leaked, a module had changed on disk, or something killed them."""
        if self._key is None:
            return ()
        with opened(self._directory) as connection:
            return tuple(Retirement(pid, at / 1e9, why) for pid, at, why in queries.retirements(connection, self._key))

    def node(self, which: NodeRecord | int | str) -> NodeRecord:
        """A node by its number, or by its name where only one node has it. Raises RecordsError."""
        if isinstance(which, NodeRecord):
            if which.run.id == self.id:
                return which
            raise RecordsError(f"node {which.number} ({which.name}) belongs to run {which.run.id}, not to run {self.id}")
        if isinstance(which, int):
            if 0 <= which < len(self.nodes):
                return self.nodes[which]
            raise RecordsError(f"run {self.id} has no node {which}; its nodes are 0 to {len(self.nodes) - 1}")
        found = [node for node in self.nodes if node.name == which]
        if len(found) == 1:
            return found[0]
        names = ", ".join(sorted({node.name for node in self.nodes})[:20])
        raise RecordsError(f"run {self.id} has {len(found) or 'no'} nodes called {which!r}" + ("" if found else f"; it has {names}"))

    def sources(self, node: NodeRecord | int | str) -> list[NodeRecord]:
        """The nodes whose values a node takes. The node is given as in `node`, here and below."""
        return [self.nodes[at] for at in self._sources(self.node(node).number)]

    def takers(self, node: NodeRecord | int | str) -> list[NodeRecord]:
        """The nodes that take the value of a node."""
        return [self.nodes[at] for at in self._takers[self.node(node).number]]

    def ancestors(self, node: NodeRecord | int | str) -> list[NodeRecord]:
        """All nodes whose values went into that of a node, also through others, by number."""
        return [self.nodes[at] for at in _reach(self.node(node).number, self._sources)]

    def descendants(self, node: NodeRecord | int | str) -> list[NodeRecord]:
        """All nodes that the value of a node went into, also through others, by number."""
        return [self.nodes[at] for at in _reach(self.node(node).number, self._takers.__getitem__)]

    def critical_path(self) -> list[NodeRecord]:
        """The chain of nodes, first to last, that the end of the run had to wait for. From the root
        backwards, it takes the source whose value came last. Nodes that did not run are not on
        it."""
        ran = [node for node in self.nodes if node.ended_ns]
        if not ran:
            return []
        at = max(ran, key=lambda node: node.ended_ns or 0)
        path = [at]
        while sources := [node for node in self.sources(at) if node.ended_ns]:
            at = max(sources, key=lambda node: node.ended_ns or 0)
            path.append(at)
        return path[::-1]

    @property
    def times(self) -> Times:
        """Where the time of all its nodes went, together."""
        total = Times()
        for node in self.nodes:
            total = total + node.times
        return total

    def places(self) -> list[PlaceShare]:
        """What each place has done of the run and of those that were called in its bodies, the one
        that took most time first.

        A run in the body of a node that ran elsewhere is part of that node.
        """
        found: dict[tuple[str, bool], list[NodeRecord]] = {}
        waiting = [self]
        while waiting:
            run = waiting.pop()
            for node in run.nodes:
                if node.started_ns is not None:
                    found.setdefault((node.place or run.host, node.place is None), []).append(node)
            waiting += [child for child in run.children if child.parent_node is None or run.nodes[child.parent_node].place is None]
        shares = [
            PlaceShare(
                name,
                here,
                len(nodes),
                sum(node.state == "done" for node in nodes),
                sum(node.state == "failed" for node in nodes),
                sum((node.attempts or 1) - 1 for node in nodes),
                sum(node.seconds or 0.0 for node in nodes),
                sum(node.times.queued for node in nodes),
            )
            for (name, here), nodes in found.items()
        ]
        return sorted(shares, key=lambda share: -share.running)

    def to_dict(self) -> dict[str, Any]:
        """All that is known of the run as plain data, fit for JSON.

        Keys are the names of its attributes, but for `nodes`, `done`, `failed` and `skipped` (how
        many), `parent` (an id), `tasks` (a list), `children` (ids), and `node_list`: a dict for
        each node, whose `task` is the index of its task in `tasks`.
        """
        from entangle._records.drawing import plain

        return plain.run_as_dict(self)

    def to_networkx(self) -> networkx.MultiDiGraph[int]:
        """A networkx graph: a node for each node, with `name`, `state`, `seconds` and `text`; an
        edge for each argument. Needs networkx (`pip install 'py-entangle[graph]'`)."""
        from entangle._records.drawing import networks

        return networks.to_networkx(self)

    def to_mermaid(self) -> str:
        """A Mermaid flowchart. Large graphs are drawn by task."""
        from entangle._records.drawing import diagrams

        return diagrams.to_mermaid(self)

    def to_dot(self) -> str:
        """A graph in the DOT language of Graphviz. Large graphs are drawn by task."""
        from entangle._records.drawing import diagrams

        return diagrams.to_dot(self)

    def to_svg(self) -> str:
        """A picture of the graph that needs no other program. Large graphs are drawn by task."""
        from entangle._records.drawing import picture

        return picture.to_svg(self)

    def to_trace(self) -> str:
        """A trace for chrome://tracing and ui.perfetto.dev (JSON): which worker ran what, and
        when."""
        from entangle._records.drawing import trace

        return trace.to_trace(self)

    def to_prov(self) -> str:
        """The provenance as W3C PROV-JSON: values are entities, nodes are activities, versions of
        tasks are plans, the user is an agent."""
        from entangle._records.drawing import provenance

        return provenance.to_prov(self)


def _reach(start: int, further: Callable[[int], list[int]]) -> list[int]:
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        for number in further(waiting.pop()):
            if number not in seen:
                seen.add(number)
                waiting.append(number)
    return sorted(seen)


def record_of(row: RunRow) -> RunRecord:
    """A run as users hold it."""
    return RunRecord(**vars(row))


def made(directory: str, digest: bytes) -> list[NodeRecord]:
    """The nodes that made a value of this hash, the latest first."""
    with opened(directory) as connection:
        found = [(row["id"], row["node"]) for row in queries.makers(connection, digest, 1000)]
    runs: dict[str, RunRecord] = {}
    for run_id, _ in found:
        if run_id not in runs:
            runs[run_id] = record_of(reading.run_of(directory, run_id))
    return [runs[run_id].nodes[number] for run_id, number in found]
