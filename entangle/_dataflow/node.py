"""Nodes: a task of a dataflow with the nodes that stand in its parentheses. Building one runs nothing; calling one pushes a value."""

from __future__ import annotations

import types
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from entangle._dataflow.flow_graph import FunctionNode, as_dict, check_children
from entangle._shared.tracebacks import edge
from entangle._tasks.call import check_callback
from entangle.errors import ArgumentError
from entangle.task import Task

if TYPE_CHECKING:
    from entangle._dataflow.plan import Plan
    from entangle._dataflow.stream import OnError, Stream
    from entangle._run.future import RunFuture


class DataflowTask(Task[..., Any]):
    """A function that values are pushed into. Calling it with nodes (or lambdas that choose nodes) builds a `Node`."""

    @edge
    def __call__(self, *children: Any, **unknown: Any) -> Node:  # type: ignore[override]
        """A node with these in its parentheses. Raises ArgumentError for what is none of them."""
        if unknown:
            raise ArgumentError(f"{self.__name__}({', '.join(unknown)}=…): a node takes the nodes that its value goes to, by position")
        fits = self._fits or self._learn_parameters()
        if not fits(1, {}):
            raise ArgumentError(f"{self.__name__} cannot be a node of a dataflow: it must take one value")
        return Node(self, check_children(self.__name__, children))

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A task in a class is a method: what it is given comes after the instance."""
        return self if instance is None else DataflowTask(types.MethodType(self.function, instance), self.layers)


class Node(FunctionNode):
    """A task of a dataflow with what stands in its parentheses. Immutable. `node(value)` pushes a value in."""

    __slots__ = ()

    task: DataflowTask

    def __reduce__(self) -> Any:
        return Node, (self.task, self.children)

    @edge
    def __call__(self, *values: Any, start: str | None = None) -> tuple[Any, ...]:
        """Push one value in and wait until all is done: a tuple of the values of the leaves, left to right.

        `start` says how workers are started. Raises the error of the first node (left to right) that has failed, when the
        branches that do not depend on it are done.
        """
        from entangle._dataflow.push import Push

        return Push(self.plan, self._one(values), start).value()

    @edge
    def future(self, *values: Any, callback: Callable[[Any], object] | None = None) -> RunFuture[tuple[Any, ...]]:
        """A `concurrent.futures.Future` of what pushing this value gives; it starts at once. `callback` gets the future when it is done."""
        check_callback(callback)
        from entangle._dataflow.push import Push
        from entangle._run.future import RunFuture

        push = Push(self.plan, self._one(values))
        future: RunFuture[tuple[Any, ...]] = RunFuture(push.value, push.cancel)
        if callback is not None:
            future.add_done_callback(callback)
        future.start()
        return future

    @edge
    def push(self, *values: Any) -> Coroutine[Any, Any, tuple[Any, ...]]:
        """Push one value in without blocking the event loop, as `await flow.push(x)`; cancelling the waiting task stops it."""
        from entangle._dataflow.push import Push
        from entangle._run.future import RunFuture

        push = Push(self.plan, self._one(values))
        future: RunFuture[tuple[Any, ...]] = RunFuture(push.value, push.cancel)
        return future.wait_in_loop()

    @edge
    def stream(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        *,
        inflight: int | None = None,
        ordered: bool = True,
        on_error: OnError = "raise",
        start: str | None = None,
    ) -> Stream:
        """Push many values through, several at a time, and give the tuples of their leaves as they come.

        Takes any iterable, endless or asynchronous; `inflight`, the most values under way at a time (from the source to the
        consumer; None: as many as keep the workers busy); `ordered=False` for results as they are done; `on_error`, what
        becomes of a value with which a node fails: "raise" ends the stream, "skip" leaves the value out and logs it, a
        function of (node, value, error) is called and the value left out. The stream ends when the consumer stops.

            for (text,) in read(parse()).stream(paths): print(text)
        """
        from entangle._dataflow.stream import Stream

        return Stream(self, source, inflight, ordered, on_error, start)

    def graph(self) -> list[dict[str, Any]]:
        """The graph as nested dicts: each node's name with what stands in its parentheses; a list where two siblings have one name."""
        return [as_dict(self)]

    @property
    def plan(self) -> Plan:
        """What is compiled of this node, once."""
        from entangle._dataflow.push import plan_of

        return plan_of(self)

    def _one(self, values: tuple[Any, ...]) -> Any:
        if len(values) != 1:
            raise ArgumentError(f"{self.task.__name__}: one value is pushed into a flow at a time, not {len(values)}; a tuple is one value")
        return values[0]
