"""Context managers of ours that let a user's error pass through unchanged."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, ParamSpec

P = ParamSpec("P")


class _Block(AbstractContextManager[None]):
    def __init__(self, steps: Any) -> None:
        self._steps = steps

    def __enter__(self) -> None:
        next(self._steps)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            next(self._steps, None)
            return
        try:
            self._steps.throw(error)
        except BaseException as raised:
            # Python turns a StopIteration that leaves a generator into a RuntimeError.
            if raised is not error and not (isinstance(error, StopIteration) and raised.__cause__ is error):
                raise
            error.with_traceback(at)


def block(steps: Callable[P, Iterator[None]]) -> Callable[P, AbstractContextManager[None]]:
    """As `contextlib.contextmanager`, for blocks that let every error through.

    `contextmanager` assigns to the error's `__traceback__`. An error that refuses attributes, as a
    frozen dataclass does, would be lost.
    """

    @functools.wraps(steps)
    def made(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[None]:
        return _Block(steps(*args, **kwargs))

    return made
