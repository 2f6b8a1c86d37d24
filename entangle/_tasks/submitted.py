"""Tasks given to an executor as plain functions: their body is what runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from entangle._shared.tracebacks import passes_on
from entangle._tasks.layer import Decorated
from entangle._tasks.resolving import resolving


class SubmittedTask:
    """The body of a task as a function that travels with the task's name."""

    def __init__(self, task: Decorated) -> None:
        self.task = task
        functools.update_wrapper(self, task.function, updated=())

    @passes_on
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return resolving(self.task.function)(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return SubmittedTask, (self.task,)


def body_of(function: Any) -> Callable[..., Any]:
    """What an executor calls for `function`: of a task or of a method of a task, the body."""
    from entangle.task import Method, Task

    if isinstance(function, Task):
        return SubmittedTask(function)
    if isinstance(function, Method):
        return functools.partial(SubmittedTask(function.__func__), function.__self__)
    made: Callable[..., Any] = function
    return made
