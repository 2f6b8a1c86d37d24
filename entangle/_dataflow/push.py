"""Pushing one value: a run with one set of rows, in the thread that pushes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from entangle._dataflow.flow_graph import FunctionNode, GraphNode, check_children
from entangle._dataflow.outcome import ENDED, Failure, leaves_of
from entangle._dataflow.plan import Plan
from entangle._dataflow.recovery import Recovery
from entangle._run.rearmed import RearmedRun, RearmedSupervisor, unroll
from entangle._shared.pickling import why_not
from entangle._shared.tracebacks import passes_on
from entangle.flow import THREAD


class Push:
    """One value pushed into a flow. It is the client of its run."""

    many = False

    def __init__(self, plan: Plan, value: Any, way: str | None = None, port: int = 0) -> None:
        self.plan = plan
        self.name = plan.name
        self._pushed = value
        self._port = port
        flow, ports = unroll([(plan.ports[port], 1)], plan.limits)
        if plan.ledger is not None:
            flow.ledger = plan.ledger.for_streams(flow.count)
        self._recovery = Recovery(flow)
        self._run = RearmedRun(flow, ports, self, way)
        self._chunks: list[Any] = []
        self._supervisor: RearmedSupervisor | None = None

    @passes_on
    def value(self) -> tuple[Any, ...]:
        """Run it in this thread. Gives the values of the leaves; raises the first error."""
        values, failures = leaves_of(self.outcomes())
        if failures:
            try:
                raise failures[0].error()
            finally:
                del failures
        return values

    def outcomes(self) -> list[Any]:
        """Run it in this thread. Gives the outcome of each leaf."""
        self._run.value()
        found = self._found()
        for outcome in found:
            if type(outcome) is Failure and outcome.node is None:
                outcome.node = self.plan.nodes[outcome.number]
        return found

    def _found(self) -> list[Any]:
        return [chunk[2][0] for chunk in self._results()]

    def chunks(self) -> list[Any]:
        """Run it in this thread. Gives the chunk of each leaf, which holds its one outcome."""
        self._run.value()
        return self._results()

    def _results(self) -> list[Any]:
        return [self._chunks[at] for at in self.plan.results[self._port]] if self._chunks else []

    def failure(self) -> BaseException | None:
        """The error of the first leaf that has failed."""
        failures = leaves_of(self._found())[1]
        return failures[0].error() if failures else None

    def cancel(self) -> None:
        """End it from another thread."""
        self._run.cancel()

    # The client of the run ------------------------------------------------------------------------

    def begin(self, supervisor: RearmedSupervisor) -> None:
        """Feed the value."""
        self._supervisor = supervisor
        value = self._pushed
        try:
            supervisor.feed(0, (0, True, [value]), (0, 1))
        except OSError:
            raise
        except Exception:
            raise why_not(value, f"the value that was pushed into {', '.join(_names(self.plan))}") from None

    def collect(self, port: int, label: Any, values: list[Any], spent: int, size: int) -> None:
        """The only item is done: the run is over."""
        self._chunks = values
        assert self._supervisor is not None
        self._run.history.fail(failure.number for failure in leaves_of(self._found())[1])
        self._supervisor.over()

    def freed(self, port: int) -> None:
        """Nothing to do: there is only one item."""

    def lost(self, node: int, slot: int, value: Any, error: Exception, directory: str) -> tuple[Any, float]:
        """How far a node had come whose worker has died."""
        return self._recovery.lost(node, slot, value, error, directory)

    def tick(self) -> float:
        """Nothing is ever due."""
        return 60.0

    def told(self) -> dict[str, Any]:
        """Nothing: it is one value."""
        return {}


def _names(plan: Plan) -> list[str]:
    return [repr(row.body.name) for row in plan.ports[0] if 0 in row.inputs]


def push_into(chosen: Sequence[Any], value: Any, limit: int | None) -> list[Any]:
    """Push a value into the nodes that a lambda has chosen. Gives the outcomes of their leaves.

    At most `limit` of the nodes run at once.
    """
    nodes: list[Any] = []
    waiting = list(chosen)
    while waiting:
        child = waiting.pop(0)
        if child is None:
            continue
        if isinstance(child, (list, tuple)):
            waiting[:0] = child
        elif not isinstance(child, GraphNode) and callable(child) and not hasattr(child, "layers"):
            waiting.insert(0, child(value))
        else:
            nodes += check_children("lambda", (child,))
    if not nodes:
        return [ENDED]
    chain = _chain(nodes)
    if chain is not None:
        return _run_chain(chain, value)
    plan = Plan(tuple(nodes), push_into, limit=limit)
    return Push(plan, value).outcomes()


def plan_of(node: FunctionNode[Any, Any]) -> Plan:
    """The compiled graph below a node; compiled once."""
    if node.compiled is None:
        object.__setattr__(node, "compiled", Plan((node,), push_into))
    plan: Plan = node.compiled
    return plan


def _chain(nodes: list[Any]) -> list[FunctionNode[Any, Any]] | None:
    """The nodes as a chain that this thread can run without the engine; None if they are none."""
    found: list[FunctionNode[Any, Any]] = []
    while nodes:
        (node, *others) = nodes
        if others or not isinstance(node, FunctionNode):
            return None
        body = node.task.body
        if node.carrier != THREAD or body.timed or body.pools or body.shared_memory:
            return None
        found.append(node)
        nodes = list(node.children)
    return found


def _run_chain(chain: list[FunctionNode[Any, Any]], value: Any) -> list[Any]:
    plan = plan_of(chain[0])
    outcome: Any = value
    for row, node in zip(plan.ports[0][1:], chain, strict=False):
        stage: Any = row.body.function
        outcome = stage.apply(outcome)
        if type(outcome) is Failure:
            outcome.node = node
            break
    return [outcome]
