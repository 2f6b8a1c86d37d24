"""@scheduler: the body runs only with a cookie, bound to its CPU, or in a process for its GPUs.

More: docs/faq.md.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from entangle._shared.devices import MOST_DEVICES
from entangle._shared.home import home
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle._worker.worker import here
from entangle.cookies import available_cpus, bind, roam
from entangle.errors import OptionError, SchedulerImportError
from entangle.pools import cpus as pool_of
from entangle.pools import registered
from entangle.task import AnyTask, Decorator, Layer, Task, decorate, refuse_unknown

__all__ = ["DefaultScheduler", "scheduler"]

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = ("cpus", "impl", "gpus", "share")
_DEFAULT = "entangle.scheduler.DefaultScheduler"
#: How many functions may share a GPU.
_MOST_SHARES = 256


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
            queue, roaming = place.pools[pool], set[int]()
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

    def __init__(self, cpus: int | None, impl: str, gpus: int = 0, share: int = 1) -> None:
        self.cpus = cpus
        self.impl = impl
        self.gpus = gpus
        self.share = share
        self.other: Any = None
        if impl != _DEFAULT:
            self.other = load_scheduler(impl)
        elif cpus is not None:
            registered.add(pool_of(cpus))

    def terms(self) -> dict[str, Any]:
        """The pools that this function takes cookies from, and what it needs of GPUs."""
        terms: dict[str, Any] = {}
        if self.other is None and self.cpus is not None:
            terms["pools"] = (pool_of(self.cpus),)
        if self.gpus:
            terms.update(gpus=self.gpus, share=self.share)
        return terms

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


def _check_gpus(gpus: object, share: object) -> None:
    """Raise OptionError unless both are whole numbers that can be served."""
    for name, value, most in (("gpus", gpus, MOST_DEVICES), ("share", share, _MOST_SHARES)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise OptionError(f"@scheduler: {name}={value_in_short(value)}; it must be a whole number from 1 to {most}")


def _refuse_two_claims(layer: Scheduler, inner: Any) -> None:
    """Raise OptionError if a task that needs GPUs is to need others as well."""
    for below in inner.layers if isinstance(inner, Task) and layer.gpus else ():
        if below.ships:
            return  # the layers below it count in another place
        if isinstance(below, Scheduler) and below.gpus and (below.gpus, below.share) != (layer.gpus, layer.share):
            told = [f"gpus={one.gpus}, share={one.share}" for one in (layer, below)]
            raise OptionError(f"@scheduler: {inner.__name__} says {told[0]} here and {told[1]} below; leave one out")


@overload
def scheduler(function: AnyTask, /) -> AnyTask: ...
@overload
def scheduler(function: type[R], /) -> Task[..., R]: ...
@overload
def scheduler(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def scheduler(*, cpus: int = ..., impl: str = ...) -> Decorator: ...
@overload
def scheduler(*, gpus: int, share: int = ..., cpus: int = ...) -> Decorator: ...
@edge
def scheduler(
    function: Any = None,
    /,
    *,
    cpus: int | None = None,
    impl: str = _DEFAULT,
    gpus: int | None = None,
    share: int | None = None,
    **unknown: Any,
) -> Any:
    """Run the function only with a cookie: for a CPU, to which it is bound, or for GPUs.

    The cookies stand for the CPUs that this process may use; the whole process tree of the run
    shares them. At most `cpus` such functions run at once, by default as many as there are CPUs. A
    function that waits for a nested run lends its cookies meanwhile. Stands above or below
    @process, @thread and @workflow.

    With `gpus`, the function needs that many GPUs, and runs in a process that sees these alone:
    CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES are set before it loads
    anything. `share=4` lets four such functions use a GPU at a time. The process serves these GPUs
    for life: the next call finds what was compiled and loaded there. With `gpus` and no `cpus`, it
    needs no cookie for a CPU.

    `impl` is the dotted name of another scheduler's class, imported here: its
    `register(self, f, cpus=12)` gives a callable around `f`.

    Raises OptionError and SchedulerImportError here; DeviceError, when the run begins, where there
    are fewer GPUs.

        @scheduler(cpus=4)
        @process
        def simulate(seed): ...

        @scheduler(gpus=1)
        @process
        def train(fold): ...
    """
    refuse_unknown("scheduler", _OPTIONS, unknown)
    if gpus is not None:
        _check_gpus(gpus, 1 if share is None else share)
        if impl != _DEFAULT:
            raise OptionError(
                f"@scheduler: gpus={gpus} with impl={value_in_short(impl)}; another scheduler hands out no GPUs: leave one out"
            )
    elif share is not None:
        raise OptionError(f"@scheduler: share={value_in_short(share)} says how many functions share a GPU; write gpus=1 with it")
    if cpus is None and gpus is None:
        cpus = len(available_cpus())
    if cpus is not None:
        check_cpus("scheduler", cpus)
    if not isinstance(impl, str):
        raise OptionError(f"@scheduler: impl={value_in_short(impl)}; it must be the dotted name of a class, as 'package.module.Class'")
    layer = Scheduler(cpus, impl, gpus or 0, share or 1)

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        _refuse_two_claims(layer, inner)
        return decorate("scheduler", inner, layer)

    return wrap if function is None else wrap(function)


named_as_its_decorator(__name__)
