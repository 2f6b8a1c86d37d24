"""Runs, nodes and values as those see them who look: frozen, read from the file when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from entangle._records import reading as graphs
from entangle._records.database import opened
from entangle._shared.pickling import loads_kept
from entangle.errors import RecordsError

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True)
class Value:
    """A value, in short: its type, its size in bytes, the SHA-256 of its pickle (hex; None where it was large, never pickled or
    secret), and a text of at most some hundred characters."""

    type: str
    size: int | None
    hash: str | None
    text: str
    _whole: bytes | None = field(default=None, repr=False)

    @property
    def kept(self) -> bool:
        """Whether the value itself was kept (ENTANGLE_RECORD=values)."""
        return self._whole is not None

    def load(self) -> Any:
        """The value itself, where it was kept. Making it again runs what its pickle says: only for records that you trust.
        Raises RecordsError where it was not kept."""
        if self._whole is None:
            raise RecordsError("this value was not kept; runs that are made with ENTANGLE_RECORD=values keep theirs, up to 1 MiB each")
        return loads_kept(self._whole)


@dataclass(frozen=True)
class Task:
    """One version of a task: the SHA-256 of its code and layers, the code itself, and what its author says of it."""

    name: str
    qualified: str
    module: str
    version: str
    source: str
    file: str
    line: int
    layers: tuple[str, ...]
    terms: dict[str, Any]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Error:
    """What ended a run: the type of the error, its text, the traceback as the worker saw it, its notes, and the node."""

    type: str
    message: str
    traceback: str
    notes: tuple[str, ...]
    node: int | None


@dataclass(frozen=True)
class Input:
    """An argument of a node, or a part of one (`items[0]`): the value of node `source`, or a constant."""

    argument: str
    source: int | None
    value: Value | None


@dataclass(frozen=True)
class Times:
    """Where the time of a node went, in seconds: for its arguments to arrive, for a worker, for a cookie, in its body, and in moving
    large values from and to the store."""

    arguments: float = 0.0
    worker: float = 0.0
    cookie: float = 0.0
    running: float = 0.0
    moving: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(
            self.arguments + other.arguments,
            self.worker + other.worker,
            self.cookie + other.cookie,
            self.running + other.running,
            self.moving + other.moving,
        )


class Node:
    """One node of a run."""

    __slots__ = ("_row", "number", "run", "task")

    def __init__(self, run: Run, number: int, task: Task, row: tuple[Any, ...]) -> None:
        self.run = run
        self.number = number
        self.task = task
        #: What the file says of it; a run may have a hundred thousand nodes, and few are looked at closely.
        self._row = row

    def __repr__(self) -> str:
        return f"<node {self.number} of run {self.run.id}: {self.name}, {self.state}>"

    @property
    def state(self) -> str:
        """done, failed, stopped (its run ended while it ran), waiting (it never began), unknown (its run was killed, or goes on)."""
        return str(self._row[0])

    @property
    def attempts(self) -> int | None:
        """How often its body was tried."""
        return _number(self._row[1])

    @property
    def ready_ns(self) -> int | None:
        """When its last argument had arrived, in nanoseconds since 1970; None where it never had."""
        return _number(self._row[2])

    @property
    def started_ns(self) -> int | None:
        """When its body began, in nanoseconds since 1970; None where it never did."""
        return _number(self._row[3])

    @property
    def ended_ns(self) -> int | None:
        """When its body ended, in nanoseconds since 1970; None where it never did."""
        return _number(self._row[4])

    @property
    def pid(self) -> int | None:
        """The process that ran it."""
        return _number(self._row[5])

    @property
    def cpu(self) -> int | None:
        """The CPU on which its body ended."""
        return _number(self._row[6])

    @property
    def worker(self) -> int | None:
        """The number of the worker that ran it, among those of the run."""
        return _number(self._row[7])

    @property
    def peak_memory(self) -> int | None:
        """Bytes: the peak of its process until then; known of bodies that took a millisecond or more."""
        return _number(self._row[8])

    @property
    def value(self) -> Value | None:
        """Its value, in short."""
        return graphs.value_of(*self._row[11:])

    @property
    def name(self) -> str:
        """The name of its task."""
        return self.task.name

    @property
    def ready(self) -> float | None:
        """When its last argument had arrived, in seconds since 1970; None where it never had."""
        return self.ready_ns / 1e9 if self.ready_ns is not None else None

    @property
    def started(self) -> float | None:
        """When its body began, in seconds since 1970; None where it never did."""
        return self.started_ns / 1e9 if self.started_ns is not None else None

    @property
    def ended(self) -> float | None:
        """When its body ended, in seconds since 1970; None where it never did."""
        return self.ended_ns / 1e9 if self.ended_ns is not None else None

    @property
    def seconds(self) -> float | None:
        """How long its body ran."""
        return (self.ended_ns - self.started_ns) / 1e9 if self.ended_ns is not None and self.started_ns is not None else None

    @property
    def times(self) -> Times:
        """Where its time went."""
        if self.ready_ns is None:
            return Times()
        arguments = max(0, self.ready_ns - self.run.started_ns)
        if self.started_ns is None:
            return Times(arguments / 1e9)
        cookie, moved = self._row[9] or 0, self._row[10] or 0
        queue = max(0, self.started_ns - self.ready_ns - cookie)
        return Times(arguments / 1e9, queue / 1e9, cookie / 1e9, self.seconds or 0.0, moved / 1e9)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Its arguments, in their order."""
        return self.run.inputs_of(self)

    @property
    def error(self) -> Error | None:
        """The error with which it ended the run."""
        error = self.run.error
        return error if error is not None and error.node == self.number else None

    @property
    def tries(self) -> tuple[str, ...]:
        """Why attempts failed that were followed by others."""
        return tuple(one["error"] for one in self.run._tries if one["node"] == self.number)

    @property
    def children(self) -> list[Run]:
        """The runs that were called in its body."""
        return [run for run in self.run.children if run.parent_node == self.number]


class Edge(NamedTuple):
    """The value of node `source` is the argument `argument` (or the part of one) of node `target`."""

    source: int
    target: int
    argument: str


@dataclass(frozen=True, eq=False)
class Run:
    """One run. `state` is done, failed, cancelled, killed (it ended abruptly) or running.

    Nodes, edges and children are read when they are first asked for. Of a run that goes on, the graph is known, and of its
    nodes nothing yet.
    """

    id: str
    name: str
    state: str
    #: Nanoseconds since 1970; `ended_ns` is None where the end is not known.
    started_ns: int = field(repr=False)
    ended_ns: int | None = field(repr=False)
    node_count: int
    done_count: int | None
    workers: int | None
    host: str
    pid: int
    user: str
    cwd: str
    program: str
    python: str
    platform: str
    entangle: str
    way: str
    git: Git | None
    packages: dict[str, str]
    tags: dict[str, Any]
    parent_id: str | None
    parent_node: int | None
    error: Error | None
    graph: str | None
    _shelf: str = field(repr=False)
    _key: int | None = field(repr=False)
    _tries: list[dict[str, Any]] = field(repr=False, default_factory=list)
    _sheet: Any = field(repr=False, default=None)

    @property
    def started(self) -> float:
        """When it began, in seconds since 1970."""
        return self.started_ns / 1e9

    @property
    def ended(self) -> float | None:
        """When it ended, in seconds since 1970; None where that is not known."""
        return self.ended_ns / 1e9 if self.ended_ns is not None else None

    @property
    def seconds(self) -> float | None:
        """How long it took; None where its end is not known."""
        return (self.ended_ns - self.started_ns) / 1e9 if self.ended_ns is not None else None

    @cached_property
    def nodes(self) -> list[Node]:
        """Its nodes, by number."""
        return graphs.nodes_of(self)

    @property
    def root(self) -> Node:
        """The node whose value is that of the run."""
        taken = {edge.source for edge in self.edges}
        return next(node for node in reversed(self.nodes) if node.number not in taken)

    @property
    def value(self) -> Value | None:
        """The value of the run, in short."""
        return self.root.value if self.nodes else None

    @cached_property
    def edges(self) -> list[Edge]:
        """Who takes whose value."""
        return [Edge(row[4], row[1], row[3]) for rows in self._inputs for row in rows if row[4] is not None]

    @cached_property
    def _inputs(self) -> list[list[tuple[Any, ...]]]:
        return graphs.inputs_of(self)

    def inputs_of(self, node: Node | int | str) -> tuple[Input, ...]:
        """The arguments of a node; the node as in `node`."""
        return tuple(
            Input(argument, source, graphs.value_of(*told) if source is None else None)
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
    def tasks(self) -> list[Task]:
        """The versions of tasks that took part, each once."""
        return list({id(node.task): node.task for node in self.nodes}.values())

    @property
    def parent(self) -> Run | None:
        """The run in whose body it was called; None where there is none, or it is not remembered."""
        if self.parent_id is None:
            return None
        try:
            return graphs.run_of(self._shelf, self.parent_id)
        except RecordsError:
            return None

    @cached_property
    def children(self) -> list[Run]:
        """The runs that were called in the bodies of its nodes, oldest first."""
        return graphs.children_of(self)

    def node(self, which: Node | int | str) -> Node:
        """A node by its number, or by its name where one alone has it. Raises RecordsError."""
        if isinstance(which, Node):
            if which.run.id == self.id:
                return which
            raise RecordsError(f"node {which.number} ({which.name}) is one of run {which.run.id}, and not of run {self.id}")
        if isinstance(which, int):
            if 0 <= which < len(self.nodes):
                return self.nodes[which]
            raise RecordsError(f"run {self.id} has nodes 0 to {len(self.nodes) - 1}, and none with the number {which}")
        found = [node for node in self.nodes if node.name == which]
        if len(found) == 1:
            return found[0]
        names = ", ".join(sorted({node.name for node in self.nodes})[:20])
        raise RecordsError(f"run {self.id} has {len(found) or 'no'} nodes called {which!r}" + ("" if found else f"; it has {names}"))

    def sources(self, node: Node | int | str) -> list[Node]:
        """The nodes whose values a node takes; the node as in `node`, here and in the following."""
        return [self.nodes[at] for at in self._sources(self.node(node).number)]

    def takers(self, node: Node | int | str) -> list[Node]:
        """The nodes that take the value of a node."""
        return [self.nodes[at] for at in self._takers[self.node(node).number]]

    def ancestors(self, node: Node | int | str) -> list[Node]:
        """All nodes that a node's value was made of, by number."""
        return [self.nodes[at] for at in _reach(self.node(node).number, self._sources)]

    def descendants(self, node: Node | int | str) -> list[Node]:
        """All nodes that a node's value has gone into, by number."""
        return [self.nodes[at] for at in _reach(self.node(node).number, self._takers.__getitem__)]

    def critical_path(self) -> list[Node]:
        """The chain of nodes, first to last, that the end of the run had to wait for: from the root backwards, each time the source
        whose value came last. Nodes that did not run are not on it."""
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

    def to_dict(self) -> dict[str, Any]:
        """All that is known of the run as plain data, fit for JSON."""
        from entangle._records.drawing import plain

        return plain.run_as_dict(self)

    def to_networkx(self) -> networkx.MultiDiGraph[int]:
        """A networkx graph: a node for each node, with `name`, `state`, `seconds` and `text`; an edge for each argument.
        Needs networkx (`pip install 'py-entangle[graph]'`)."""
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
        """A trace for chrome://tracing and ui.perfetto.dev (JSON): who ran what when."""
        from entangle._records.drawing import trace

        return trace.to_trace(self)

    def to_prov(self) -> str:
        """The provenance as W3C PROV-JSON: entities are values, activities are nodes, agents are versions of tasks."""
        from entangle._records.drawing import provenance

        return provenance.to_prov(self)


@dataclass(frozen=True)
class Git:
    """The commit that the code came from; `dirty` is None where git did not tell in time."""

    root: str
    commit: str | None
    branch: str | None
    dirty: bool | None


def _number(value: Any) -> int | None:
    return value if value is None else int(value)


def _reach(start: int, further: Callable[[int], list[int]]) -> list[int]:
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        for number in further(waiting.pop()):
            if number not in seen:
                seen.add(number)
                waiting.append(number)
    return sorted(seen)


def made(shelf: str, digest: bytes) -> list[Node]:
    """The nodes that made a value of this hash, the latest first."""
    with opened(shelf) as connection:
        found = connection.execute(
            "SELECT runs.id, nodes.node FROM nodes JOIN runs ON runs.key = nodes.run WHERE nodes.hash = ? "
            "ORDER BY nodes.ended DESC LIMIT 1000",
            (digest,),
        ).fetchall()
    runs: dict[str, Run] = {}
    for run_id, _ in found:
        if run_id not in runs:
            runs[run_id] = graphs.run_of(shelf, run_id)
    return [runs[run_id].nodes[number] for run_id, number in found]
