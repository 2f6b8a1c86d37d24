"""Nodes, as users hold them: calling one pushes a value into the graph below it."""

from __future__ import annotations

import types
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from entangle import _tasks
from entangle._dataflow.flow_graph import FunctionNode, GraphNode, In_contra, Leaves_co, as_dict, check_children
from entangle._shared.tracebacks import edge
from entangle._tasks.call import check_callback
from entangle._tasks.unknown_options import knows_its_options, of_a_push, of_a_stream
from entangle.errors import ArgumentError
from entangle.task import Task

if TYPE_CHECKING:
    from entangle._dataflow.plan import Plan
    from entangle._dataflow.stream import Stream
    from entangle._run.future import RunFuture
    from entangle._tasks import OnError
    from entangle._tasks.call import Start

#: What a function of a dataflow gives, and the values of leaves.
Out_co = TypeVar("Out_co", covariant=True)
Leaves = TypeVar("Leaves", bound=tuple[Any, ...])
W = TypeVar("W")
X = TypeVar("X")
Y = TypeVar("Y")
Z = TypeVar("Z")


class Chooser(Protocol[In_contra]):
    """A lambda that chooses nodes: it gets what was pushed into the node around it, as they do."""

    def __call__(self, value: In_contra, /) -> GraphNode[In_contra, Any] | list[Any] | None: ...


class DataflowTask(Task[..., Any], Generic[In_contra, Out_co]):
    """A function that values are pushed into. Calling it builds a `Node`; nothing runs.

    Takes nodes, windows, and lambdas that choose nodes.
    """

    @overload  # type: ignore[override]
    def __call__(self) -> Node[In_contra, tuple[Out_co]]: ...
    @overload
    def __call__(self, a: GraphNode[Out_co, Leaves], /) -> Node[In_contra, Leaves]: ...
    @overload
    def __call__(self, a: GraphNode[Out_co, tuple[W]], b: GraphNode[Out_co, tuple[X]], /) -> Node[In_contra, tuple[W, X]]: ...
    @overload
    def __call__(self, a: GraphNode[Out_co, tuple[W]], b: GraphNode[Out_co, tuple[X, Y]], /) -> Node[In_contra, tuple[W, X, Y]]: ...
    @overload
    def __call__(self, a: GraphNode[Out_co, tuple[W, X]], b: GraphNode[Out_co, tuple[Y]], /) -> Node[In_contra, tuple[W, X, Y]]: ...
    @overload
    def __call__(self, a: GraphNode[Out_co, tuple[W]], b: GraphNode[Out_co, tuple[X, Y, Z]], /) -> Node[In_contra, tuple[W, X, Y, Z]]: ...
    @overload
    def __call__(self, a: GraphNode[Out_co, tuple[W, X, Y]], b: GraphNode[Out_co, tuple[Z]], /) -> Node[In_contra, tuple[W, X, Y, Z]]: ...
    @overload
    def __call__(self, a: GraphNode[Out_co, tuple[W, X]], b: GraphNode[Out_co, tuple[Y, Z]], /) -> Node[In_contra, tuple[W, X, Y, Z]]: ...
    @overload
    def __call__(
        self, a: GraphNode[Out_co, tuple[W]], b: GraphNode[Out_co, tuple[X]], c: GraphNode[Out_co, tuple[Y]], /
    ) -> Node[In_contra, tuple[W, X, Y]]: ...
    @overload
    def __call__(
        self, a: GraphNode[Out_co, tuple[W]], b: GraphNode[Out_co, tuple[X]], c: GraphNode[Out_co, tuple[Y, Z]], /
    ) -> Node[In_contra, tuple[W, X, Y, Z]]: ...
    @overload
    def __call__(
        self, a: GraphNode[Out_co, tuple[W]], b: GraphNode[Out_co, tuple[X, Y]], c: GraphNode[Out_co, tuple[Z]], /
    ) -> Node[In_contra, tuple[W, X, Y, Z]]: ...
    @overload
    def __call__(
        self, a: GraphNode[Out_co, tuple[W, X]], b: GraphNode[Out_co, tuple[Y]], c: GraphNode[Out_co, tuple[Z]], /
    ) -> Node[In_contra, tuple[W, X, Y, Z]]: ...
    @overload
    def __call__(
        self,
        a: GraphNode[Out_co, tuple[W]],
        b: GraphNode[Out_co, tuple[X]],
        c: GraphNode[Out_co, tuple[Y]],
        d: GraphNode[Out_co, tuple[Z]],
        /,
    ) -> Node[In_contra, tuple[W, X, Y, Z]]: ...
    @overload
    def __call__(
        self, *children: GraphNode[Out_co, Any] | Chooser[In_contra] | Sequence[GraphNode[Out_co, Any] | Chooser[In_contra]]
    ) -> Node[In_contra, tuple[Any, ...]]: ...
    @edge
    def __call__(self, *children: Any, **unknown: Any) -> Any:
        """A node with these children. Raises ArgumentError if one of them cannot be a child."""
        if unknown:
            raise ArgumentError(f"{self.__name__}({', '.join(unknown)}=…): a node takes no keywords; give the nodes below it by position")
        fits = self._fits or self._learn_parameters()
        if not fits(1, {}):
            raise ArgumentError(f"{self.__name__} cannot be a node of a dataflow: it must take one value")
        return Node(self, check_children(self.__name__, children))

    @edge
    def map(self, *_: Any, **__: Any) -> Any:
        """Raises ArgumentError: values are pushed into a graph, many of them by `stream`."""
        name = self.__name__
        raise ArgumentError(f"{name} is a node of a dataflow, into which values are pushed: for y in {name}().stream(values)")

    starmap = map

    def _written_here(self, name: str) -> str | None:
        """What is written here for a method that tasks have in other libraries."""
        form = super()._written_here(name)  # type: ignore[misc]
        called = self.__name__
        return form and f"{called}(…) builds a node: `node(x)` pushes a value into it, `node.stream(xs)` many, `node.future(x)` waits later"

    # An attribute that holds a task is one as it stands; for methods, see DataflowMethod.
    def __get__(  # type: ignore[override]
        self, instance: Any, owner: Any = None
    ) -> DataflowTask[In_contra, Out_co]:
        """A task in a class is a method: its value comes after the instance."""
        return self if instance is None else DataflowTask(types.MethodType(self.function, instance), self.layers)


if TYPE_CHECKING:

    class DataflowMethod(DataflowTask[Any, Any], Generic[In_contra, Out_co]):
        """A function in a class: of an instance it is a task of a dataflow."""

        def __get__(  # type: ignore[override]
            self, instance: Any, owner: Any = None
        ) -> DataflowTask[In_contra, Out_co]: ...


class Node(FunctionNode[In_contra, Leaves_co]):
    """A task of a dataflow with its children. Immutable. `node(value)` pushes a value in."""

    __slots__ = ()

    task: DataflowTask[Any, Any]

    def __reduce__(self) -> Any:
        return Node, (self.task, self.children)

    @overload
    def __call__(self, value: In_contra, /) -> Leaves_co: ...
    @overload
    def __call__(self, value: In_contra, /, *, start: Start | None) -> Leaves_co: ...
    @knows_its_options("a push into {}", of_a_push)
    def __call__(self, *values: Any, start: str | None = None) -> Any:
        """Push one value in and wait. Gives a tuple of the values of the leaves, left to right.

        `start` says how workers are started. If nodes fail, raises the error of the first (left to
        right), when all branches that do not depend on it are done.
        """
        from entangle._dataflow.push import Push

        self._warn_where_kept()
        return Push(self.plan, self._one(values), start).value()

    @overload
    def future(self, value: In_contra, /) -> RunFuture[Leaves_co]: ...
    @overload
    def future(self, value: In_contra, /, *, callback: Callable[[RunFuture[Leaves_co]], object] | None) -> RunFuture[Leaves_co]: ...
    @knows_its_options("{}.future", of_a_push)
    def future(self, *values: Any, callback: Callable[[Any], object] | None = None) -> RunFuture[Any]:
        """Push one value in without waiting. Gives a `concurrent.futures.Future` of the leaves.

        It starts at once. `callback` gets the future when it is done.
        """
        check_callback(callback)
        from entangle._dataflow.push import Push
        from entangle._run.future import RunFuture

        self._warn_where_kept()
        push = Push(self.plan, self._one(values))
        future: RunFuture[Any] = RunFuture(push.value, push.cancel)
        if callback is not None:
            future.add_done_callback(callback)
        future.start()
        return future

    @edge
    def push(self, *values: In_contra) -> Coroutine[Any, Any, Leaves_co]:
        """Push one value in without blocking the event loop, as `await flow.push(x)`.

        Cancelling the waiting task stops it.
        """
        from entangle._dataflow.push import Push
        from entangle._run.future import RunFuture

        self._warn_where_kept()
        push = Push(self.plan, self._one(values))
        future: RunFuture[Any] = RunFuture(push.value, push.cancel)
        return future.wait_in_loop()

    @knows_its_options("{}.stream", of_a_stream)
    def stream(
        self,
        source: Iterable[In_contra] | AsyncIterable[In_contra],
        *,
        inflight: int | None = None,
        ordered: bool = True,
        on_error: OnError = "raise",
        start: Start | None = None,
    ) -> Stream[Leaves_co]:
        """Push many values through, several at a time. Gives tuples of their leaves as they come.

        `source` is any iterable; it may be endless or asynchronous. `inflight` is the most values
        under way at a time, from the source to the consumer; None: as many as keep the workers
        busy. `ordered=False` gives results as they are done. `on_error` says what happens to a
        value with which a node fails: "raise" ends the stream; "skip" leaves the value out and
        logs it; a function of (node, value, error) is called, and the value left out. The stream
        ends when the consumer stops.

            for (text,) in read(parse()).stream(paths): print(text)
        """
        from entangle._dataflow.stream import Stream

        self._warn_where_kept()
        return Stream(self, source, inflight, ordered, on_error, start)

    def graph(self) -> list[dict[str, Any]]:
        """The graph as nested dicts: the name of each node with its children.

        Children of which two have one name are a list.
        """
        return [as_dict(self)]

    @property
    def plan(self) -> Plan:
        """The compiled graph below this node; compiled once."""
        from entangle._dataflow.push import plan_of

        return plan_of(self)

    def _warn_where_kept(self) -> None:
        keeps = _tasks.keeping() if _tasks.keeping is not None else None
        if keeps is not None:
            keeps.warn_of_dataflow(self.__name__)

    def _one(self, values: tuple[Any, ...]) -> Any:
        if len(values) != 1:
            raise ArgumentError(f"{self.task.__name__}: one value is pushed into a flow at a time, not {len(values)}; a tuple is one value")
        return values[0]
