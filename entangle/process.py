"""@process: the body runs in a worker process.

More: docs/reference/options.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle._tasks.option_values import check_whether
from entangle._tasks.terms import On, Terms
from entangle.errors import ProcessRetryException, ProcessTerminatedException, ProcessTimeoutException
from entangle.flow import FRESH, PROCESS
from entangle.task import AnyTask, Decorator, InjectingDecorator, Task, decorate, refuse_unknown

__all__ = ["ProcessRetryException", "ProcessTerminatedException", "ProcessTimeoutException", "process"]

if TYPE_CHECKING:
    from entangle._tasks.cache_options import Cache

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = ("timeout", "wait", "retry", "sleep", "backoff", "jitter", "on", "cache", "idempotent", "fresh", "shared_memory")


class Process(Terms):
    """The layer of @process."""

    carrier = PROCESS

    def __init__(self, fresh: bool, **options: Any) -> None:
        check_whether("@process", fresh=fresh)
        super().__init__("process", **options)
        if fresh:
            self.carrier = FRESH
            self.stated = (*self.stated, "fresh=True")


@overload
def process(function: AnyTask, /) -> AnyTask: ...
@overload
def process(function: type[R], /) -> Task[..., R]: ...
@overload
def process(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def process(  # type: ignore[overload-overlap]
    *,
    timeout: float | None = None,
    wait: float | None = None,
    retry: int = 0,
    sleep: float = 0.0,
    backoff: float = 1.0,
    jitter: float = 0.0,
    on: On = None,
    cache: bool | Cache = False,
    idempotent: bool = False,
    fresh: bool = False,
    shared_memory: Literal[True],
) -> InjectingDecorator: ...
@overload
def process(
    *,
    timeout: float | None = None,
    wait: float | None = None,
    retry: int = 0,
    sleep: float = 0.0,
    backoff: float = 1.0,
    jitter: float = 0.0,
    on: On = None,
    cache: bool | Cache = False,
    idempotent: bool = False,
    fresh: bool = False,
    shared_memory: bool = False,
) -> Decorator: ...
@edge
def process(
    function: Any = None,
    /,
    *,
    timeout: float | None = None,
    wait: float | None = None,
    retry: int = 0,
    sleep: float = 0.0,
    backoff: float = 1.0,
    jitter: float = 0.0,
    on: On = None,
    cache: bool | Cache = False,
    idempotent: bool = False,
    fresh: bool = False,
    shared_memory: bool = False,
    **unknown: Any,
) -> Any:
    """Run the function in a worker process.

    - `timeout`: seconds that the body may run. Then its process is killed, and all that it has
      started.
    - `wait`: seconds from the start of the first argument until all arguments are there.
    - `retry`: the number of further attempts, `sleep` seconds apart. Each pause is `backoff` times
      the last, plus up to `jitter` seconds.
    - `on`: the exceptions after which it is tried again; a killed process is a
      ProcessTerminatedException.
    - `cache`: remember the value by the function's code and arguments, across processes and days.
      `entangle.Cache(…)` says what counts, for how long, and where it stays.
    - `idempotent`: the body may run again where nobody can know whether it has ended: where an
      engine loses a value. `retry` says so too.
    - `fresh`: run in a new process, which ends with the body.
    - `shared_memory`: give the function `smm`, with `SharedMemory(size)` and
      `ShareableList(items)`, and `sm`, which opens one by name.

    Raises OptionError here for bad options. Running a call raises what the function raises,
    ProcessTimeoutException, ProcessTerminatedException (the body's doing, or a killer's), and
    ProcessRetryException when every attempt has failed.

        @process(timeout=60, retry=2)
        def fetch(name): return load(name)
    """
    refuse_unknown("process", _OPTIONS, unknown)

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        layer = Process(
            fresh,
            timeout=timeout,
            wait=wait,
            retry=retry,
            sleep=sleep,
            backoff=backoff,
            jitter=jitter,
            on=on,
            cache=cache,
            idempotent=idempotent,
            shared_memory=shared_memory,
        )
        return decorate("process", inner, layer)

    return wrap if function is None else wrap(function)


named_as_its_decorator(__name__)
