"""@scheduler: the body runs only with a cookie, bound to the CPU that the cookie names."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from entangle._shared.home import home
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle._worker.worker import here
from entangle.cookies import available_cpus, bind, roam
from entangle.errors import OptionError, SchedulerImportError
from entangle.pools import cpus as pool_of
from entangle.pools import registered
from entangle.task import Decorator, Layer, Task, decorate, refuse_unknown

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = ("cpus", "impl")
_DEFAULT = "entangle.scheduler.DefaultScheduler"


class DefaultScheduler:
    """Hands out the cookies of a queue that the whole process tree shares.

    There is one cookie for each of the first `cpus` CPUs.
    """

    def register(self, f: Callable[..., Any], cpus: int = 12) -> Callable[..., Any]:
        """`f`, taking a cookie first, bound to its CPU meanwhile, giving the cookie back after."""
        check_cpus("scheduler", cpus)
        pool = pool_of(cpus)
        registered.add(pool)

        @functools.wraps(f)
        def scheduled(*args: Any, **kwargs: Any) -> Any:
            worker = here.worker
            if worker is not None and worker.site.directory and pool in worker.site.flow.pools:
                with worker.holding(pool):
                    return f(*args, **kwargs)
            place = home()
            place.open_pools({pool})
            queue, roaming = place.queue(pool), set[int]()
            held = queue.held_here()
            try:
                roaming = bind(queue.number(queue.wait_cell(lambda: False)))
                return f(*args, **kwargs)
            finally:
                roam(roaming)
                queue.give_back(but=held)

        return scheduled


class Scheduler(Layer):
    """The layer of @scheduler: cookies of the engine, or another scheduler around the function."""

    def __init__(self, cpus: int, impl: str) -> None:
        self.cpus = cpus
        self.impl = impl
        self.other: Any = None
        if impl != _DEFAULT:
            self.other = load_scheduler(impl)
        else:
            registered.add(pool_of(cpus))

    def terms(self) -> dict[str, Any]:
        """The pool of cookies that this function takes from."""
        return {} if self.other is not None else {"pools": (pool_of(self.cpus),)}

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """The function as the other scheduler wraps it, where there is one."""
        if self.other is None:
            return inner
        wrapped = self.other.register(inner, cpus=self.cpus)
        if not callable(wrapped):
            raise SchedulerImportError(f"{self.impl}.register must return a function that wraps the one it is given; it gave {wrapped!r}")
        registered: Callable[..., Any] = wrapped
        return registered


def load_scheduler(impl: str) -> Any:
    """An instance of the class with this dotted name. Raises SchedulerImportError."""
    module_name, _, class_name = impl.rpartition(".")
    if not module_name:
        raise SchedulerImportError(f"impl={impl!r}: write the scheduler's class with its module, as 'package.module.Class'")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SchedulerImportError(f"impl={impl!r}: cannot import {module_name} ({error}); is it installed, and on sys.path?") from error
    found = getattr(module, class_name, None)
    if found is None:
        raise SchedulerImportError(f"impl={impl!r}: module {module_name} has no {class_name}; name a class that it has")
    made = found() if isinstance(found, type) else found
    if not callable(getattr(made, "register", None)):
        raise SchedulerImportError(f"impl={impl!r}: {class_name} has no method `register`; write `def register(self, f, cpus=12)`")
    return made


def check_cpus(decorator: str, cpus: object) -> None:
    """Raise OptionError unless `cpus` is a whole number of at least 1."""
    if isinstance(cpus, bool) or not isinstance(cpus, int) or cpus < 1:
        raise OptionError(f"@{decorator}: cpus={value_in_short(cpus)}; it must be a whole number, at least 1")


@overload
def scheduler(function: Task[P, R], /) -> Task[P, R]: ...
@overload
def scheduler(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def scheduler(*, cpus: int = ..., impl: str = ...) -> Decorator: ...
@edge
def scheduler(function: Any = None, /, *, cpus: int | None = None, impl: str = _DEFAULT, **unknown: Any) -> Any:
    """Run the function only with a cookie, bound to its CPU; at most `cpus` run at once.

    The cookies stand for the CPUs that this process may use; the whole process tree of the run
    shares them. A function that waits for a nested run lends its cookie meanwhile. `cpus` is by
    default the number of those CPUs. `impl` is the dotted name of another scheduler's class,
    imported here: its `register(self, f, cpus=12)` gives a callable around `f`. Stands above or
    below @process, @thread and @workflow.

    Raises OptionError and SchedulerImportError here.

        @scheduler(cpus=4)
        @process
        def simulate(seed): ...
    """
    refuse_unknown("scheduler", _OPTIONS, unknown)
    if cpus is None:
        cpus = len(available_cpus())
    check_cpus("scheduler", cpus)
    if not isinstance(impl, str):
        raise OptionError(f"@scheduler: impl={value_in_short(impl)}; it must be the dotted name of a class, as 'package.module.Class'")
    layer = Scheduler(cpus, impl)

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        return decorate("scheduler", inner, layer)

    return wrap if function is None else wrap(function)


named_as_its_decorator(__name__)
