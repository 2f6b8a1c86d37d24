"""A stream of a task: a dataflow of one node, whose values come as they are, not as tuples."""

from __future__ import annotations

import types
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any

from entangle import _run, _tasks
from entangle._dataflow.flow_graph import Dataflow
from entangle._dataflow.kept_item import KeptItem
from entangle._dataflow.node import DataflowTask, Node
from entangle._dataflow.stream import Stream
from entangle._shared.tracebacks import edge, passes_on
from entangle._tasks import NO_INSTANCE, OnError
from entangle._tasks.call import CALLS
from entangle.errors import ArgumentError, DurableError
from entangle.task import Task


class Items(Dataflow):
    """The layer of a task in its stream. An item that is a call is run where its value is used."""

    def __init__(self) -> None:
        super().__init__(None, None, None)

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """`inner`, with the value of a call in its place."""
        name = getattr(inner, "__name__", "item")

        @passes_on
        def body(item: Any, **filled: Any) -> Any:
            if type(item) is KeptItem:
                return item.run(name, inner, filled)
            return inner(item() if type(item) in CALLS else item, **filled)

        return body


class StreamedTask(DataflowTask[Any, Any]):
    """A task as the only node of its stream. It travels as the task does, by name if it has one."""

    of: tuple[Task[..., Any], Any]

    def __init__(self, task: Task[..., Any], instance: Any = NO_INSTANCE) -> None:
        bound = task.function if instance is NO_INSTANCE else types.MethodType(task.function, instance)
        super().__init__(bound, (Items(), *task.layers))
        self.__dict__["of"] = (task,) if instance is NO_INSTANCE else (task, instance)

    def __reduce__(self) -> Any:
        return StreamedTask, self.of

    def for_others(self) -> Any:
        """For our own picklers: the same, since the task has its own way to travel."""
        return StreamedTask, self.of


@edge
def stream_of(
    task: Any,
    instance: Any,
    source: Iterable[Any] | AsyncIterable[Any],
    inflight: int | None,
    ordered: bool,
    on_error: OnError,
    start: str | None,
    /,
) -> Stream[Any]:
    """The values of a task for the items of a source; of a method, with that instance.

    Raises ArgumentError where the task does not take one item, or the source is no iterable.
    """
    if type(source) in CALLS:
        raise ArgumentError(f"{task.__name__}.stream takes an iterable, and {source!r} has not run: call it, or take {task.__name__}.map")
    streamed = StreamedTask(task, instance)
    fits = streamed._fits or streamed._learn_parameters()
    if not fits(1, {}):
        raise ArgumentError(f"{task.__name__}.stream gives the task one item at a time, and it does not take one argument")
    keeps = _tasks.keeping() if _tasks.keeping is not None else None
    if keeps is not None:
        if _run.elsewhere is not None and _run.elsewhere() is not None:
            raise DurableError("a durable run: streams on another engine are not kept; leave the block, or the engine")
        from entangle._dataflow.kept_stream import KeptStream

        kept = KeptStream(keeps.scope_here(), task, instance)
        return Stream(Node(streamed, ()), source, inflight, ordered, on_error, start, plain=task, kept=kept)
    if start is None and _run.elsewhere is not None and (elsewhere := _run.elsewhere()) is not None:
        values: Stream[Any] | None = elsewhere.stream_of(
            task, () if instance is NO_INSTANCE else (instance,), source, inflight, ordered, on_error
        )
        if values is not None:
            return values
    return Stream(Node(streamed, ()), source, inflight, ordered, on_error, start, plain=task)
