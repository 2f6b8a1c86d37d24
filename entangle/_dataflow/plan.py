"""Compiles a dataflow to rows for the engine, from the pushed value to the leaves.

- A row for each node on each path to it: a node with two parents has two rows.
- A row for each lambda. It takes the value that was pushed into its parent, and waits for the
  parent.
- A row for the callback of a node that a process runs. The children of the node take that row too,
  so the callback comes before them.

In a stream, a window ends one port and begins another: the lists that it gathers are fed there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from entangle._dataflow.flow_graph import FunctionNode, GraphNode
from entangle._dataflow.outcome import PASSED
from entangle._dataflow.stages import CallbackStage, LambdaStage, NodeStage, Pusher
from entangle._dataflow.windows import Window
from entangle._run.rearmed import GATHER, SOURCE, Row
from entangle._shared.table import MOST_LIMITS
from entangle.errors import OptionError
from entangle.flow import FRESH, IN_CALLER, THREAD, Body
from entangle.pools import TOKENS

if TYPE_CHECKING:
    from entangle._depot.ledger import LedgerOfFlow

#: The most groups for nodes with several parents.
MOST_SHARED = 24


class Leaf(NamedTuple):
    """A result of a port: the value of a leaf, or a value for the window that feeds port `port`."""

    window: Window[Any, Any] | None
    port: int


class Plan:
    """The rows of a dataflow, by port; `leaves` are the results of each port, in order.

    Lambdas use `push` for the nodes that they have chosen. `windows` says whether windows gather;
    `limit`, how many nodes may run at once.
    """

    def __init__(self, roots: tuple[Any, ...], push: Pusher, windows: bool = False, limit: int | None = None) -> None:
        #: The node of each stage, by the stage's number.
        self.nodes: list[Any] = []
        self.ports: list[list[Row]] = []
        self.leaves: list[list[Leaf]] = []
        #: Whether several items may be in one chunk.
        self.in_chunks = True
        #: For each group, how many of its nodes may run at once.
        self.limits: list[int] = []
        #: What workers write down of the items, in a durable run.
        self.ledger: LedgerOfFlow | None = None
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

    @property
    def feeds(self) -> dict[int, tuple[int, int]]:
        """For each port below a window: the port and the row whose values the window gathers."""
        return {
            leaf.port: (number, self.ports[number][-1].inputs[self.results[number][at]])
            for number, leaves in enumerate(self.leaves)
            for at, leaf in enumerate(leaves)
            if leaf.window is not None
        }

    def _count(self, roots: tuple[Any, ...]) -> None:
        """Find the nodes with several parents: they run for one value at a time."""
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            node = stack.pop()
            if not isinstance(node, GraphNode):
                continue
            if id(node) in seen:
                if id(node) not in self._shared and isinstance(node, FunctionNode):
                    # Beyond MOST_SHARED, nodes share a group: they then wait for each other, which
                    # is safe.
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
        callbacks: list[int] = []
        number = len(self.ports)

        def add(body: Body, inputs: tuple[int, ...]) -> int:
            rows.append(Row(body, inputs))
            return len(rows) - 1

        def leaf(row: int, window: Window[Any, Any] | None = None, port: int = 0) -> None:
            results.append(row)
            leaves.append(Leaf(window, port))

        limits: tuple[int, ...] = ()
        if self._limit is not None:
            limits = (self._group(self._limit),)
        # To be added: a child; the rows of its parent, of the value pushed into its parent, and of
        # the parent's callback; the path to the child; and the groups that limit it.
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
                callbacks += below
            elif isinstance(child, Window):
                body = Body(_in_list, "window", THREAD)
                row = add(body, (above, *after))
            else:
                # In a limited group the lambda counts as one, so its nodes run one at a time.
                stage = LambdaStage(child, self._number(child), path, self._push, 1 if limits else None)
                row = add(Body(stage, name, THREAD, limits=limits), (pushed, above, *after))
                self.in_chunks = False
                leaf(row)
                continue
            if child.children:
                stack += [(part, row, above, below, path, limits) for part in reversed(child.children)]
            else:
                leaf(row)
        if not leaves:  # a window without children: its list is the value
            leaf(0)
        rows.append(Row(GATHER, tuple(dict.fromkeys((*results, *callbacks)))))
        self.ports.append(rows)
        self.leaves.append(leaves)
        self.results = getattr(self, "results", [])
        self.results.append([list(rows[-1].inputs).index(row) for row in results])

    def _group(self, most: int) -> int:
        """A new group of nodes, of which `most` may run at once."""
        if len(self.limits) == MOST_LIMITS:
            raise OptionError(f"maxworkers is given to more than {MOST_LIMITS - MOST_SHARED} nodes of one flow; give it to fewer")
        self.limits.append(most)
        return len(self.limits) - 1

    def _number(self, node: Any) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _add_node(
        self,
        add: Callable[[Body, tuple[int, ...]], int],
        node: FunctionNode[Any, Any],
        inputs: tuple[int, ...],
        path: str,
        limits: tuple[int, ...],
    ) -> tuple[int, tuple[int, ...]]:
        """Add the row of a node. Returns it, and the row of its callback if that has its own."""
        task = node.task
        known, callback, carrier = task.body, node.dataflow.callback, node.carrier
        stays = carrier == THREAD
        stage = NodeStage(task, self._number(node), path, callback if stays else None)
        body = Body(
            stage,
            known.name,
            carrier,
            timeout=known.timeout,
            pools=known.pools,
            shared_memory=known.shared_memory,
            rescue=stage.rescue,
            limits=limits,
            gpus=known.gpus,
            share=known.share,
        )
        if (
            carrier == FRESH
            or known.shared_memory
            or (stays and known.timeout is not None)
            or known.sleep
            or known.jitter
            or any(pool.kind == TOKENS for pool in known.pools)
        ):
            self.in_chunks = False
        row = add(body, inputs)
        if callback is None or stays:
            return row, ()
        return row, (add(Body(CallbackStage(task, callback), known.name, THREAD), (row, *inputs[1:])),)

    @property
    def uses_processes(self) -> bool:
        """Whether any node runs in a process."""
        return any(row.body.carrier not in IN_CALLER for rows in self.ports for row in rows)


def _in_list(chunk: Any, *_: Any) -> Any:
    """The body of a window where a single value is pushed: a list of that value."""
    label, clean, items = chunk
    return label, clean, [item if type(item) in PASSED else [item] for item in items]
