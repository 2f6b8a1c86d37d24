"""Values that are calls or coroutines are resolved: run where they were made."""

from __future__ import annotations

from collections.abc import Callable
from types import CoroutineType
from typing import Any

from entangle._shared.tracebacks import passes_on
from entangle._tasks.call import CALLS
from entangle._worker import inline
from entangle.errors import EntangleError


def resolving(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; where it returns a call or a coroutine, that is run, and its value returned.

    Checks the value, not the function: a partial, a wrapper or an object with an `async` `__call__`
    returns coroutines as well.
    """

    @passes_on
    def body(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        kind = type(value)
        if kind in CALLS or kind is CoroutineType:
            return resolved(value)
        return value

    return body


@passes_on
def resolved(value: Any) -> Any:
    """The value itself; of a call or a coroutine, what comes of it."""
    while True:
        if type(value) in CALLS:
            value = value()
        elif type(value) is CoroutineType:
            value = _awaited(value)
        else:
            return value


@passes_on
def _awaited(coroutine: CoroutineType[Any, Any, Any]) -> Any:
    import asyncio

    if inline.on:
        return inline.awaited(coroutine)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    coroutine.close()  # avoids the warning that it was never awaited
    raise EntangleError(
        f"{coroutine.__qualname__} is an async function, and an event loop is already running in the thread that would run it; "
        "inside a loop, write `await call` instead of `call()`"
    )
