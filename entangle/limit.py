"""@limit: at most so many such bodies at once, or so many a second, in the whole process tree.

More: docs/how_to/limits.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle._tasks.option_values import is_number
from entangle.cookies import MOST_COOKIES
from entangle.errors import OptionError
from entangle.pools import PLACES, TOKENS, Pool, figures_of, state
from entangle.task import Decorator, Layer, Task, decorate, refuse_unknown

__all__ = ["limit"]

_OPTIONS = ("at_once", "per_second", "burst")


class Limit(Layer):
    """The layer of @limit: the pools of which the function needs a place, a token, or both."""

    def __init__(self, name: str, pools: tuple[Pool, ...]) -> None:
        self.name = name
        self.pools = pools

    def terms(self) -> dict[str, Any]:
        """The pools of this limit."""
        return {"pools": self.pools}

    def accept(self, function: Callable[..., Any]) -> None:
        """Refuse other figures than those of another function under the same limit."""
        state(self.name, _name_of(function), self.pools)


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', None) or '?'}.{name}"


@overload
def limit(name: str, /, *, at_once: int, per_second: float | None = None, burst: int | None = None) -> Decorator: ...
@overload
def limit(name: str, /, *, per_second: float, at_once: int | None = None, burst: int | None = None) -> Decorator: ...
@edge
def limit(
    name: str, /, *, at_once: int | None = None, per_second: float | None = None, burst: int | None = None, **unknown: Any
) -> Decorator:
    """Let at most `at_once` functions of a limit run at once, or `per_second` begin each second.

    A limit has a name, and counts for the whole tree of processes that the first run has started:
    nested runs, runs of several threads, functions that run in other places. For a function in
    another place, the caller holds the limit. Give `at_once` (a whole number), `per_second` (a
    number above 0, may be a fraction), or both. After a pause up to `burst` functions may begin one
    right after the other (1 unless said). Each attempt of a function with `retry` counts; the pause
    before it does not.

    A function that waits for a nested run lends its place meanwhile, so a limit of 1 never
    deadlocks. Several limits on one function, and @scheduler, are taken together or not at all.
    Functions that wait take no CPU and no process. Stands above or below @process, @thread,
    @workflow, @dataflow and decorators of other places.

    Raises OptionError here for a bad option, and for two functions that give one name other
    figures; if these meet only when they run, their run raises it.

        @limit("db", at_once=5)
        @process
        def query(n): ...
    """
    refuse_unknown("limit", _OPTIONS, unknown)
    if callable(name) and not isinstance(name, str):
        raise OptionError('@limit needs a name and a figure: write @limit("db", at_once=5) above the function')
    if not isinstance(name, str) or not name.strip():
        raise OptionError(
            f"@limit: its name is {value_in_short(name)}; it must be a string that is not empty, as in @limit('db', at_once=5)"
        )
    if at_once is None and per_second is None:
        raise OptionError(f"@limit({name!r}) limits nothing; give it at_once=, per_second=, or both")
    whole = {"at_once": at_once, "burst": burst}
    for option, value in whole.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_COOKIES):
            raise OptionError(f"@limit({name!r}): {option}={value_in_short(value)}; it must be a whole number, 1 to {MOST_COOKIES}")
    if per_second is not None and not (is_number(per_second) and per_second > 0):
        raise OptionError(f"@limit({name!r}): per_second={value_in_short(per_second)}; it must be a number above 0")
    if burst is not None and per_second is None:
        raise OptionError(f"@limit({name!r}): burst={burst} says how many of per_second= may begin together; give per_second= as well")
    places = () if at_once is None else (Pool(PLACES, name, at_once),)
    tokens = () if per_second is None else (Pool(TOKENS, name, burst or 1, float(per_second)),)
    layer = Limit(name, (*places, *tokens))

    @edge
    def wrap(inner: Any) -> Any:
        if isinstance(inner, Task):
            for below in inner.layers:
                if isinstance(below, Limit) and below.name == name and below.pools != layer.pools:
                    raise OptionError(
                        f"@limit({name!r}): {inner.__name__} says {figures_of(layer.pools)} here and {figures_of(below.pools)} below; "
                        "leave one out, or give it another name"
                    )
        return decorate("limit", inner, layer)

    return wrap


named_as_its_decorator(__name__)
