"""`cache=True`: a value is taken from the depot where it is there, and kept in it where it is not.

It is found by the function's code, what that uses, and the arguments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from entangle._depot.opened import depot
from entangle._depot.remembering import remembered
from entangle._shared.identity import identify
from entangle._shared.tracebacks import passes_on
from entangle._tasks.layer import Layer
from entangle._worker.worker import here
from entangle.errors import RunCancelledError


class Cache(Layer):
    """Looks a value up before the function runs, and keeps it after."""

    @passes_on
    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The remembered value, else the function's.

        Raises CacheKeyError where the function or an argument has no fixed form to be the key, and
        DepotError where the depot cannot be trusted.
        """
        name = getattr(inner, "__name__", "?")
        key, parts = identify(name, inner, args, kwargs)
        worker = here.worker

        @passes_on
        def check() -> None:
            if worker is not None and worker.stopped:
                raise RunCancelledError("the run was cancelled while this call waited for another that computes the same")

        return remembered(
            depot(),
            key,
            name,
            parts,
            passes_on(lambda: inner(*args, **kwargs)),
            waiting=worker.lending if worker is not None else contextlib.nullcontext,
            check=check,
        )
