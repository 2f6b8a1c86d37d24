"""Nodes: a task of a dataflow with the nodes that stand in its parentheses. Building one runs nothing; calling one pushes a value."""

from __future__ import annotations

import types
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from entangle._shared.frames import edge, passes_on
from entangle._shared.summaries import value_in_short
from entangle._tasks.call import check_callback
from entangle.errors import ArgumentError, OptionError
from entangle.flow import PROCESS, THREAD
from entangle.task import Call, Layer, Task

if TYPE_CHECKING:
    from entangle._dataflow.plan import Plan
    from entangle._dataflow.stream import OnError, Stream
    from entangle._run.future import RunFuture

_CARRIERS = {"thread": THREAD, "process": PROCESS}

#: Called in the invoking process with a node's function and a value of it.
Callback = Callable[[Any, Any], object]


class Dataflow(Layer):
    """The layer of @dataflow: which way values flow, and who is told of them."""

    def __init__(self, callback: Callback | None, executor: str | None, maxworkers: int | None) -> None:
        if callback is not None and not callable(callback):
            raise OptionError(f"@dataflow: callback={value_in_short(callback)}; it is a function of a node's function and its value")
        if executor is not None and executor not in _CARRIERS:
            raise OptionError(f"@dataflow: executor={value_in_short(executor)}; choose 'thread' or 'process'")
        if maxworkers is not None and (isinstance(maxworkers, bool) or not isinstance(maxworkers, int) or maxworkers < 1):
            raise OptionError(f"@dataflow: maxworkers={value_in_short(maxworkers)}; it is a whole number, 1 or above, or None for no limit")
        self.callback = callback
        self.executor = executor
        self.maxworkers = maxworkers

    def __reduce__(self) -> Any:
        # A worker process runs the function and nothing else of this layer; a callback need not be able to travel.
        return Dataflow, (None, self.executor, self.maxworkers)

    def terms(self) -> dict[str, Any]:
        """Who carries the function, where that was said."""
        return {} if self.executor is None else {"carrier": _CARRIERS[self.executor]}


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
        return Node(self, _checked(self.__name__, children))

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A task in a class is a method: what it is given comes after the instance."""
        return self if instance is None else DataflowTask(types.MethodType(self.function, instance), self.layers)

    @property
    def dataflow(self) -> Dataflow:
        """The layer of @dataflow, the outermost if there are several."""
        return next(layer for layer in self.layers if isinstance(layer, Dataflow))

    @property
    def carrier(self) -> int:
        """Who runs the function."""
        carrier = self.body.carrier
        return carrier if carrier in (PROCESS, THREAD) or self.body.carrier == 2 else THREAD


def _checked(name: str, children: Iterable[Any]) -> tuple[Any, ...]:
    """Nodes, windows and lambdas, each checked; lists of them are taken apart."""
    found: list[Any] = []
    for child in children:
        if isinstance(child, (list, tuple)):
            found += _checked(name, child)
        elif isinstance(child, (Node, Window)):
            found.append(child)
        elif isinstance(child, Task):
            raise ArgumentError(f"{child.__name__} in {name}(…) is a task and no node of it: write {child.__name__}()")
        elif isinstance(child, Call):
            raise ArgumentError(
                f"{child.task.__name__}(…) in {name}(…) is a call of a workflow; decorate {child.task.__name__} with @dataflow as well"
            )
        elif callable(child):
            found.append(child)
        else:
            raise ArgumentError(f"{name}(…) takes nodes and lambdas that choose nodes, not {type(child).__name__}: {value_in_short(child)}")
    return tuple(found)


class _Built:
    """What can stand in the parentheses of a node. It cannot be changed, so there are no cycles."""

    __slots__ = ("__weakref__", "children")

    children: tuple[Any, ...]

    @edge
    @passes_on
    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a node cannot be changed ({name!r}); build another one")

    __name__: str


class Window(_Built):
    """Gathers values and passes lists of them on: `count` values, or those of `seconds`; what is left when a stream ends comes last."""

    __slots__ = ("count", "seconds")

    count: int | None
    seconds: float | None
    __name__ = "window"

    def __init__(self, children: tuple[Any, ...], count: int | None, seconds: float | None) -> None:
        for name, value in (("children", children), ("count", count), ("seconds", seconds)):
            object.__setattr__(self, name, value)


class Node(_Built):
    """A task of a dataflow with what stands in its parentheses. Immutable. `node(value)` pushes a value in."""

    __slots__ = ("_plan", "task")

    task: DataflowTask
    _plan: Plan | None

    def __init__(self, task: DataflowTask, children: tuple[Any, ...]) -> None:
        for name, value in (("task", task), ("children", children), ("_plan", None)):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> Any:
        return Node, (self.task, self.children)

    @property
    def __name__(self) -> str:  # type: ignore[override]
        name: str = self.task.__name__
        return name

    def __repr__(self) -> str:
        return f"<node {self.task.__name__}({', '.join(_name(child) for child in self.children)})>"

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
        return [_as_dict(self)]

    @property
    def plan(self) -> Plan:
        """What is compiled of this node, once."""
        if self._plan is None:
            from entangle._dataflow.plan import Plan

            object.__setattr__(self, "_plan", Plan((self,)))
        assert self._plan is not None
        return self._plan

    def _one(self, values: tuple[Any, ...]) -> Any:
        if len(values) != 1:
            raise ArgumentError(f"{self.task.__name__}: one value is pushed into a flow at a time, not {len(values)}; a tuple is one value")
        return values[0]


def _name(child: Any) -> str:
    return str(getattr(child, "__name__", type(child).__name__))


def _as_dict(root: Any) -> dict[str, Any]:
    """The graph of a node, built from the leaves up, since nesting may be deep."""
    built: dict[int, dict[str, Any]] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        children = node.children if isinstance(node, _Built) else ()
        missing = [child for child in children if id(child) not in built]
        if missing:
            stack += reversed(missing)
            continue
        stack.pop()
        parts = [built[id(child)] for child in children]
        merged = {name: below for part in parts for name, below in part.items()}
        built[id(node)] = {_name(node): [] if not parts else merged if len(merged) == len(parts) else parts}
    return built[id(root)]
