"""What users hold: layers, calls, and how calls become a Flow. Tasks are in `entangle.task`.

A stream of a task is a dataflow of one node, and dataflows are on a floor above; so is what draws a
call. The hooks for them are declared here: `entangle/__init__.py` fills them in.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from entangle._tasks.layer import Decorated
    from entangle.flow import Flow

R_co = TypeVar("R_co", covariant=True)

#: What happens to an item with which a task fails: the stream ends, or the item is left out; a
#: function is told of it, with the task, the item and the error.
OnError = Literal["raise", "skip"] | Callable[[Any, Any, BaseException], object]


class Values(Protocol[R_co]):
    """What `task.stream(…)` gives: the values, by `for` or `async for`.

    It starts when the first value is asked for. `close()`, leaving a `with` block, or dropping it
    ends it before its source does: its workers, threads and files are gone then.
    """

    def __iter__(self) -> Iterator[R_co]:
        """The stream."""

    def __next__(self) -> R_co:
        """The next value."""

    def __aiter__(self) -> AsyncIterator[R_co]:
        """The stream."""

    async def __anext__(self) -> R_co:
        """The next value, without blocking the event loop."""

    @property
    def skipped(self) -> int:
        """How many items were left out because the task failed with them."""

    def close(self) -> None:
        """End the stream."""

    async def aclose(self) -> None:
        """End the stream, without blocking the event loop."""

    def __enter__(self) -> Values[R_co]:
        """The stream."""

    def __exit__(self, *_: object) -> None:
        """End the stream."""


class Streams(Protocol):
    """What makes the stream of a task. It builds on tasks."""

    def stream_of(
        self,
        task: Decorated,
        instance: Any,
        source: Iterable[Any] | AsyncIterable[Any],
        inflight: int | None,
        ordered: bool,
        on_error: OnError,
        start: str | None,
        /,
    ) -> Values[Any]:
        """The values of a task for the items of a source; of a method, with that instance."""


#: Gives the module that makes streams. It is imported when there is one to make.
streams: Callable[[], Streams]


class Drawings(Protocol):
    """What draws graphs for a notebook, as HTML."""

    def html_of(self, flow: Flow, /) -> str:
        """The graph of a call."""

    def html_of_nodes(self, names: list[str], links: list[tuple[int, int]], /) -> str:
        """The graph of a dataflow: nodes by name, and which gives its value to which."""


#: Gives the module that draws. It is imported when a notebook shows a call, or a dataflow.
drawings: Callable[[], Drawings]


class Keeps(Protocol):
    """What keeps the runs of a durable block."""

    def run_kept(self, run: Any, /) -> Any:
        """The run in the place of one that begins here."""

    def completions_kept(self, flow: Flow, /) -> tuple[Flow, list[int] | None, list[Any]]:
        """What is left of a flow whose kept nodes are told as they end: the flow; which node of the
        whole each of its nodes is, if not the same; and observers of its run."""

    def scope_here(self) -> Any:
        """Where the runs that begin here are kept; None if nowhere."""

    def warn_of_dataflow(self, node: str, /) -> None:
        """Say that what a dataflow does here is not kept, once."""


#: Gives what keeps runs, where a durable run is around.
keeping: Callable[[], Keeps | None] | None = None

#: In place of an instance, where the task is no method of one.
NO_INSTANCE = object()
