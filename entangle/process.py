"""@process: the body runs in a worker process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from entangle._shared.frames import edge
from entangle._tasks.door import named_as_its_decorator
from entangle._tasks.terms import On, Terms, check_whether
from entangle.errors import ProcessRetryException, ProcessTerminatedException, ProcessTimeoutException
from entangle.flow import FRESH, PROCESS
from entangle.task import Decorator, Task, decorate, refuse_unknown

__all__ = ["ProcessRetryException", "ProcessTerminatedException", "ProcessTimeoutException", "process"]

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = ("timeout", "wait", "retry", "sleep", "backoff", "jitter", "on", "cache", "fresh", "shared_memory")


class Process(Terms):
    """The layer of @process."""

    carrier = PROCESS

    def __init__(self, fresh: bool, **options: Any) -> None:
        check_whether("process", fresh=fresh)
        super().__init__("process", **options)
        if fresh:
            self.carrier = FRESH
            self.stated = (*self.stated, "fresh=True")


@overload
def process(function: Task[P, R], /) -> Task[P, R]: ...
@overload
def process(function: Callable[P, R], /) -> Task[P, R]: ...
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
    cache: bool = False,
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
    cache: bool = False,
    fresh: bool = False,
    shared_memory: bool = False,
    **unknown: Any,
) -> Any:
    """Run the function in a worker process.

    `timeout`: the body may run so many seconds; then its process and all that it has started are killed.
    `wait`: its arguments may take so many seconds to arrive, from the start of the first of them.
    `retry`: so many further attempts, `sleep` seconds apart, the pause times `backoff` each time plus up to `jitter`
    seconds; `on` says for which exceptions (a killed process counts as ProcessTerminatedException).
    `cache`: the value is remembered by the function's code and arguments. `fresh`: a process of its own, gone after it.
    `shared_memory`: the function is given `smm`, which has `SharedMemory(size)` and `ShareableList(items)`, and `sm`, which
    opens one by name.

    Raises OptionError here for bad options; calling a call raises ProcessTimeoutException, ProcessTerminatedException (the
    body's or a killer's doing), ProcessRetryException when every attempt has failed, and what the function raises.

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
            shared_memory=shared_memory,
        )
        return decorate("process", inner, layer)

    return wrap if function is None else wrap(function)


named_as_its_decorator(__name__)
