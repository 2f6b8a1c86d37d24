"""@thread: the body runs in a worker thread of the invoking process.

More: docs/reference/options.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle._tasks.terms import On, Terms
from entangle.errors import ThreadTerminatedException, ThreadTimeoutException
from entangle.flow import THREAD
from entangle.task import AnyTask, Decorator, InjectingDecorator, Task, decorate, refuse_unknown

__all__ = ["ThreadTerminatedException", "ThreadTimeoutException", "thread"]

if TYPE_CHECKING:
    from entangle._tasks.cache_options import Cache

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = ("timeout", "wait", "retry", "sleep", "backoff", "jitter", "on", "cache", "idempotent", "shared_memory")


class Thread(Terms):
    """The layer of @thread."""

    carrier = THREAD


@overload
def thread(function: AnyTask, /) -> AnyTask: ...
@overload
def thread(function: type[R], /) -> Task[..., R]: ...
@overload
def thread(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def thread(  # type: ignore[overload-overlap]
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
    shared_memory: Literal[True],
) -> InjectingDecorator: ...
@overload
def thread(
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
    shared_memory: bool = False,
) -> Decorator: ...
@edge
def thread(
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
    shared_memory: bool = False,
    **unknown: Any,
) -> Any:
    """Run the function in a worker thread of the calling process: for what waits, not computes.

    The options are those of @process, without `fresh`. A thread cannot be killed: after `timeout`
    seconds the caller gets ThreadTimeoutException, the body runs on, and its value is dropped.
    Programs that the body has started are not killed either: only a worker process takes them with
    it.

    Raises OptionError here for bad options. Running a call raises what the function raises,
    ThreadTimeoutException, and ThreadTerminatedException where the body tries to end the
    interpreter.

        @thread(timeout=5)
        def page(url): return urlopen(url).read()
    """
    refuse_unknown("thread", _OPTIONS, unknown)

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        layer = Thread(
            "thread",
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
        return decorate("thread", inner, layer)

    return wrap if function is None else wrap(function)


named_as_its_decorator(__name__)
