"""@dataflow: values are pushed through functions, from each to those in its parentheses.

::

    flow = emit(printx(printz(echo())), printy(printz()), printy())    # builds; nothing runs
    flow("emit")                               # pushes one value in, gives the values of the leaves
    for leaves in flow.stream(values): ...     # pushes many, several at a time

More: docs/dataflows.md.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from entangle._dataflow.flow_graph import Callback, Dataflow, GraphNode, check_children
from entangle._dataflow.node import DataflowTask, Leaves, Node
from entangle._dataflow.windows import Window
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle.errors import OptionError
from entangle.process import process
from entangle.sources import merge
from entangle.task import Task, decorate, refuse_unknown
from entangle.thread import thread

__all__ = ["Node", "dataflow", "merge", "process", "thread", "window"]

if TYPE_CHECKING:
    from entangle._dataflow.node import DataflowMethod
    from entangle._tasks.task_arguments import TakesOnly1, TakesOnly2

In = TypeVar("In")
Out = TypeVar("Out")
Executor = Literal["thread", "process"]

_OPTIONS = ("callback", "executor", "maxworkers")


class DataflowDecorator(Protocol):
    """What @dataflow(…) gives. In a class, the first parameter of a function is the instance."""

    @overload
    def __call__(self, function: type[Out], /) -> DataflowTask[Any, Out]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: TakesOnly1[In, Coroutine[Any, Any, Out]], /) -> DataflowTask[In, Out]: ...
    @overload
    def __call__(self, function: TakesOnly1[In, Out], /) -> DataflowTask[In, Out]: ...
    @overload
    def __call__(self, function: Callable[[In], Coroutine[Any, Any, Out]], /) -> DataflowTask[In, Out]: ...
    @overload
    def __call__(self, function: Callable[[In], Out], /) -> DataflowTask[In, Out]: ...
    @overload
    def __call__(self, function: TakesOnly2[Any, In, Out], /) -> DataflowMethod[In, Out]: ...
    @overload
    def __call__(self, function: Callable[[Any, In], Out], /) -> DataflowMethod[In, Out]: ...


@overload
def dataflow(function: type[Out], /) -> DataflowTask[Any, Out]: ...  # type: ignore[overload-overlap]
@overload
def dataflow(function: TakesOnly1[In, Coroutine[Any, Any, Out]], /) -> DataflowTask[In, Out]: ...
@overload
def dataflow(function: TakesOnly1[In, Out], /) -> DataflowTask[In, Out]: ...
@overload
def dataflow(function: Callable[[In], Coroutine[Any, Any, Out]], /) -> DataflowTask[In, Out]: ...
@overload
def dataflow(function: Callable[[In], Out], /) -> DataflowTask[In, Out]: ...
@overload
def dataflow(function: TakesOnly2[Any, In, Out], /) -> DataflowMethod[In, Out]: ...
@overload
def dataflow(function: Callable[[Any, In], Out], /) -> DataflowMethod[In, Out]: ...
@overload
def dataflow(*, callback: Callback | None = None, executor: Executor | None = None, maxworkers: int | None = None) -> DataflowDecorator: ...
@edge
def dataflow(
    function: Any = None,
    /,
    *,
    callback: Callback | None = None,
    executor: Executor | None = None,
    maxworkers: int | None = None,
    **unknown: Any,
) -> Any:
    """Make a function a node of dataflows: it takes the value of the node around it.

    The node around it is the one in whose parentheses it stands.

    `callback(func, value)` is called in the calling process when the node is done, before what
    stands in its parentheses runs. `executor` is "thread" or "process", where no decorator below
    says it; the default is "thread". `maxworkers` is how many nodes may run at once in a flow built
    on this one.

    Raises OptionError here for options that do not fit.

        @dataflow
        def emit(x): return x + "!"
    """
    refuse_unknown("dataflow", _OPTIONS, unknown)

    @edge
    def wrap(inner: Any) -> DataflowTask[Any, Any]:
        task: Task[..., Any] = decorate("dataflow", inner, Dataflow(callback, executor, maxworkers))
        return DataflowTask(task.function, task.layers)

    return wrap if function is None else wrap(function)


@overload
def window(child: GraphNode[list[In], Leaves], /, *, count: int | None = None, seconds: float | None = None) -> Window[In, Leaves]: ...
@overload
def window(
    *children: GraphNode[list[In], Any] | Callable[[list[In]], Any], count: int | None = None, seconds: float | None = None
) -> Window[In, tuple[Any, ...]]: ...
@edge
def window(*children: Any, count: int | None = None, seconds: float | None = None) -> Any:
    """A node that gathers the values of a stream into lists: of `count` values, or of `seconds`.

    What is left when the stream ends comes last. Takes nodes and lambdas, as any node does. With
    `flow(x)`, which pushes a single value, the list holds that value.

    Raises OptionError where neither or both are given.

        flow = parse(window(total(), count=100))
    """
    if (count is None) == (seconds is None):
        raise OptionError("window: give either count= (values) or seconds= (a time), not both")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise OptionError(f"window: count={value_in_short(count)}; it must be a whole number, 1 or above")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0):
        raise OptionError(f"window: seconds={value_in_short(seconds)}; it must be a number above 0")
    return Window(check_children("window", children), count, seconds)


named_as_its_decorator(__name__)
