"""@on: the body runs through an executor of `concurrent.futures`.

More: docs/engines.md.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from typing import Any

from entangle._executors.executor_place import ExecutorPlace
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle._tasks.layer import Decorated, kept_here
from entangle._worker.away import AwayFunction
from entangle.errors import OptionError
from entangle.flow import AWAY
from entangle.limit import Limit
from entangle.task import Decorator, Layer, Task, decorate, refuse_unknown

__all__ = ["on"]


class On(Layer):
    """The layer of @on."""

    carrier = AWAY
    ships = True

    def __init__(self, place: ExecutorPlace) -> None:
        self.place = place

    def ship(self, rest: Decorated) -> Callable[..., Any]:
        """What runs here: it begins the call there.

        Limits are held here alone: where the executor is of this process tree, the body would wait
        for the place that its own call holds.
        """
        layers = tuple(layer for layer in rest.layers if not isinstance(layer, Limit))
        return AwayFunction(self.place, Task(rest.function, layers))

    def lift(self, rest: Decorated) -> dict[str, Any]:
        """`wait` and limits of the layers below hold here."""
        return kept_here(rest)


@edge
def on(executor: futures.Executor | Callable[[], futures.Executor], /, **unknown: Any) -> Decorator:
    """Run the function through an executor: of processes, of threads, of a cluster.

    `executor` is any `concurrent.futures.Executor`, such as `ProcessPoolExecutor`, loky's, or
    Dask's `client.get_executor()`; or a function that makes one. An executor that is given stays
    the caller's to shut down. One that a function makes is made with the first call, is shared by
    all tasks that name that function, and ends with the run, or with the session around it.

    A call that is under way costs no thread here: ten thousand are ten thousand futures. What the
    decorators above state is enforced here: `timeout` counts from when the executor says that the
    call runs; when it has passed, the future is cancelled. `retry` submits the call once more. A
    body that runs already cannot be stopped: it runs on there, and its value is dropped. What
    stands below travels with the function, and is enforced there.

    Dask's executor never says that a call runs: `timeout` counts from when it was submitted. It
    runs a call again when a worker is lost with it, so a task with neither `idempotent=True` nor
    `retry=` is refused there.

    The executor gets a function of this package and bytes, so closures and lambdas travel whatever
    its own pickler can do, and the package must be installed where it runs. Threads get the
    arguments as they are. A cold call takes as long as a cold call of the executor, and some
    milliseconds to import this package there; a warm one, some tenths of a millisecond more than
    the executor's own `submit`. If the caller dies, what its executor leaves behind is up to the
    executor: the processes of a ProcessPoolExecutor whose program is killed live on, those of
    entangle's own Executor do not.

    Raises OptionError here for what is no executor. Running a call raises what the function raises,
    UnpicklableError for what cannot travel, ProcessTerminatedException where the executor is broken
    or has lost the call, ProcessTimeoutException.

        with ProcessPoolExecutor() as pool:
            @process(timeout=60, retry=2)
            @on(pool)
            def simulate(n): ...
    """
    refuse_unknown("on", (), unknown)
    layer = On(_place(executor))

    @edge
    def wrap(inner: Any) -> Any:
        return decorate("on", inner, layer)

    return wrap


def _place(executor: Any) -> ExecutorPlace:
    """The place that is meant. Raises OptionError."""
    if isinstance(executor, Task):
        raise OptionError("@on needs an executor: write @on(executor) above the function")
    if callable(getattr(executor, "get_executor", None)):
        raise OptionError(f"@on: {value_in_short(executor)} is no executor; give its executor: @on(client.get_executor())")
    if not isinstance(executor, type) and isinstance(executor, futures.Executor):
        return ExecutorPlace(executor)
    if not callable(executor):
        told = "an executor of concurrent.futures, or a function that makes one"
        raise OptionError(f"@on: {value_in_short(executor)} is no executor; it must be {told}")
    import inspect

    try:
        inspect.signature(executor).bind()
    except ValueError:  # it has none that can be known
        pass
    except TypeError:
        name = getattr(executor, "__name__", type(executor).__name__)
        raise OptionError(
            f"@on: {name} takes arguments, so it makes no executor when it is called with none; write @on(executor) above {name}"
        ) from None
    return ExecutorPlace(None, executor)


named_as_its_decorator(__name__)
