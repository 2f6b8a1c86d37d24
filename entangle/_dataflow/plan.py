"""What a dataflow is compiled to: rows for the engine, from what is pushed to the leaves.

A row for each node on each path to it: a node that stands under two parents has two. A row for each lambda, which takes the
value that was pushed into the node in whose parentheses it stands, and waits for that node. A row for the callback of a node
that a process runs: those below the node take that row too, so a callback comes before what it precedes in the graph.

In a stream a window is where one port ends and another begins: what it gathers is fed there, as a list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from entangle._dataflow.flow_graph import FunctionNode, GraphNode
from entangle._dataflow.outcome import PASSED
from entangle._dataflow.stages import CallbackStage, LambdaStage, NodeStage, Pusher
from entangle._dataflow.windows import Window
from entangle._run.rearmed import GATHER, SOURCE, Row
from entangle._shared.table import MOST_LIMITS
from entangle.errors import OptionError
from entangle.flow import FRESH, PROCESS, THREAD, Body

#: Groups for nodes that stand under several parents.
MOST_SHARED = 24


class Leaf(NamedTuple):
    """A result of a port: a value of a leaf, or what goes to the window that feeds port `port`."""

    window: Window | None
    port: int


class Plan:
    """The rows of a dataflow, by port; `leaves` are the results of each port in order.

    `push` is how a lambda pushes into what it has chosen. `windows` says whether they gather; `limit`, how many nodes may run at once.
    """

    def __init__(self, roots: tuple[Any, ...], push: Pusher, windows: bool = False, limit: int | None = None) -> None:
        #: The node of each stage, by the stage's number.
        self.nodes: list[Any] = []
        self.ports: list[list[Row]] = []
        self.leaves: list[list[Leaf]] = []
        #: Whether items may travel together.
        self.in_chunks = True
        #: How many nodes of a group may run at once, and the groups.
        self.limits: list[int] = []
        self._shared: dict[int, int] = {}
        self._push = push
        self._windows = windows
        self._limit = limit
        self._count(roots)
        waiting: list[tuple[Any, ...]] = [roots]
        while waiting:
            self._add_port(waiting.pop(0), waiting)

    @property
    def name(self) -> str:
        """The first node's name."""
        return next((str(row.body.name) for row in self.ports[0] if 0 in row.inputs), "")

    def _count(self, roots: tuple[Any, ...]) -> None:
        """Find the nodes that stand under several parents: they take one value after the other."""
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            node = stack.pop()
            if not isinstance(node, GraphNode):
                continue
            if id(node) in seen:
                if id(node) not in self._shared and isinstance(node, FunctionNode):
                    # Where there are very many, some share a group: they wait for each other too, which does no harm.
                    self._shared[id(node)] = len(self._shared) % MOST_SHARED
                    if len(self._shared) <= MOST_SHARED:
                        self.limits.append(1)
                continue
            seen.add(id(node))
            stack += node.children

    def _add_port(self, roots: tuple[Any, ...], waiting: list[tuple[Any, ...]]) -> None:
        rows: list[Row] = [Row(SOURCE, ())]
        leaves: list[Leaf] = []
        results: list[int] = []
        tells: list[int] = []
        number = len(self.ports)

        def add(body: Body, inputs: tuple[int, ...]) -> int:
            rows.append(Row(body, inputs))
            return len(rows) - 1

        def leaf(row: int, window: Window | None = None, port: int = 0) -> None:
            results.append(row)
            leaves.append(Leaf(window, port))

        limits: tuple[int, ...] = ()
        if self._limit is not None:
            limits = (self._group(self._limit),)
        # What is still to be added: a child, the rows of its parent's value, of what was pushed into that, of its callback;
        # the path to it, and the groups that bound how many run at once.
        stack: list[tuple[Any, int, int, tuple[int, ...], str, tuple[int, ...]]] = []
        stack += [(child, 0, 0, (), "", limits) for child in reversed(roots)]
        while stack:
            child, above, pushed, after, path, limits = stack.pop()
            name = getattr(child, "__name__", type(child).__name__)
            path = f"{path} → {name}" if path else name
            if isinstance(child, Window) and self._windows:
                waiting.append(child.children)
                leaf(above, child, number + len(waiting))
                continue
            below: tuple[int, ...] = ()
            if isinstance(child, FunctionNode):
                child_limits = limits
                if child.dataflow.maxworkers is not None:
                    child_limits = limits = (*limits, self._group(child.dataflow.maxworkers))
                if id(child) in self._shared:
                    child_limits = (*child_limits, self._shared[id(child)])
                row, below = self._add_node(add, child, (above, *after), path, child_limits)
                tells += below
            elif isinstance(child, Window):
                body = Body(_in_list, "window", THREAD)
                row = add(body, (above, *after))
            else:
                # One node at a time, where the lambda itself stands for one of a bounded number.
                stage = LambdaStage(child, self._number(child), path, self._push, 1 if limits else None)
                row = add(Body(stage, name, THREAD, limits=limits), (pushed, above, *after))
                self.in_chunks = False
                leaf(row)
                continue
            if child.children:
                stack += [(part, row, above, below, path, limits) for part in reversed(child.children)]
            else:
                leaf(row)
        if not leaves:  # a window with nothing in its parentheses: what it gathers is the value
            leaf(0)
        rows.append(Row(GATHER, tuple(dict.fromkeys((*results, *tells)))))
        self.ports.append(rows)
        self.leaves.append(leaves)
        self.results = getattr(self, "results", [])
        self.results.append([list(rows[-1].inputs).index(row) for row in results])

    def _group(self, most: int) -> int:
        """A new group of nodes of which so many may run at once."""
        if len(self.limits) == MOST_LIMITS:
            raise OptionError(f"maxworkers is given at more than {MOST_LIMITS - MOST_SHARED} places of one flow; give it to fewer nodes")
        self.limits.append(most)
        return len(self.limits) - 1

    def _number(self, node: Any) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _add_node(
        self, add: Callable[[Body, tuple[int, ...]], int], node: FunctionNode, inputs: tuple[int, ...], path: str, limits: tuple[int, ...]
    ) -> tuple[int, tuple[int, ...]]:
        """The row of a node, and that of its callback where it has one of its own."""
        task = node.task
        known, callback, carrier = task.body, node.dataflow.callback, node.carrier
        stays = carrier == THREAD
        stage = NodeStage(task, self._number(node), path, callback if stays else None)
        body = Body(
            stage,
            known.name,
            carrier,
            timeout=known.timeout,
            pool=known.pool,
            shared_memory=known.shared_memory,
            rescue=stage.rescue,
            limits=limits,
        )
        if carrier == FRESH or known.shared_memory or (stays and known.timeout is not None) or known.sleep or known.jitter:
            self.in_chunks = False
        row = add(body, inputs)
        if callback is None or stays:
            return row, ()
        return row, (add(Body(CallbackStage(task, callback), known.name, THREAD), (row, *inputs[1:])),)

    @property
    def uses_processes(self) -> bool:
        """Whether any node runs in a process."""
        return any(row.body.carrier in (PROCESS, FRESH) for rows in self.ports for row in rows)


def _in_list(chunk: Any, *_: Any) -> Any:
    """What a window is where one value is pushed: a list of that value."""
    label, clean, items = chunk
    return label, clean, [item if type(item) in PASSED else [item] for item in items]
