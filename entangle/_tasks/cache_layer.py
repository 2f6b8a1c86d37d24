"""`cache=`: a value is taken from the depot where it is there, and kept in it where it is not.

It is found by the function's code, what that uses, and the arguments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entangle._depot.opened import depot
from entangle._depot.remembering import remembered
from entangle._shared.identity import Identity, identify
from entangle._shared.tracebacks import passes_on
from entangle._tasks import hits as hits  # looks ahead, from now on
from entangle._tasks.cache_options import Cache
from entangle._tasks.layer import Layer
from entangle._worker.worker import here
from entangle.errors import RunCancelledError


class Remembering(Layer):
    """Looks a value up before the function runs, and keeps it after."""

    #: Layers that earlier versions have pickled have no options.
    options = Cache()
    #: The parameters that other layers fill in: no part of the key.
    filled_in: tuple[str, ...] = ()

    def __init__(self, options: Cache, filled_in: tuple[str, ...] = ()) -> None:
        self.options = options
        self.filled_in = filled_in

    @passes_on
    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The remembered value, else the function's.

        Raises CacheKeyError where the function or an argument has no fixed form to be the key, and
        DepotError where the depot cannot be trusted.
        """
        options = self.options
        identity = self.identity_of(inner, args, kwargs)
        worker = here.worker

        @passes_on
        def check() -> None:
            if worker is not None and worker.stopped:
                raise RunCancelledError("the run was cancelled while this call waited for another that computes the same")

        return remembered(
            depot(options.where),
            identity.key,
            getattr(inner, "__name__", "?"),
            identity.parts,
            passes_on(lambda: inner(*args, **kwargs)),
            expire=options.expire,
            waiting=worker.lending if worker is not None else contextlib.nullcontext,
            check=check,
            seen=lambda about: (
                worker.note_looked_up(identity.key, about.made if about is not None else None) if worker is not None else None
            ),
        )

    def identity_of(self, inner: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Identity:
        """What a call is known by; `inner` is what lies below this layer. Raises CacheKeyError."""
        options = self.options
        given = {name: value for name, value in kwargs.items() if name not in self.filled_in}
        return identify(
            getattr(inner, "__name__", "?"),
            inner,
            tuple(args),
            given,
            version=options.version,
            ignore=options.ignore,
            packages=options.packages,
        )
