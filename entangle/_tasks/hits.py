"""Values that the depot has are taken before a run begins: a hit costs no worker.

The tree of calls is walked from the leaves. A call of a task with `cache=` whose arguments are all
known is looked up. Where it is a hit, its value takes its place in the calls that take it, and all
below it falls away. Where the whole call is a hit, there is no run at all.

What is not known here is looked up by the worker that runs it. So whatever goes wrong here goes
wrong again there, and is told with the path of the call.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from entangle._depot.opened import depot
from entangle._depot.remembering import look
from entangle._run.run import Run
from entangle._tasks.call import Call, Gathered, MappedCalls
from entangle._tasks.tree import holds_calls, plan_of
from entangle.flow import rebuild

#: Larger values are not put in place of a call, but fetched by the worker that wants them (bytes).
_LARGE = 256 * 1024
#: Larger graphs are not looked up ahead, nor is a task after this many misses in a row.
_MOST_CALLS, _MOST_MISSES = 20_000, 64


class _Known(NamedTuple):
    """A call whose value is known; and the call that gives it, for values that stay where they
    are."""

    value: Any
    instead: Call[Any] | None


class RunAfterHits:
    """A run of what is left of a call after hits.

    The run of the whole call is made at once, as any is: it knows its caller, and the options that
    hold there. Its values are looked up when it begins, in whichever thread.
    """

    def __init__(self, call: Call[Any], whole: Any, run_of: Callable[[Call[Any]], Any]) -> None:
        self._call = call
        self._whole = whole
        self._run_of = run_of
        self._guard = threading.Lock()
        self._run: Any = None
        self._cancelled = False

    def value(self) -> Any:
        """The value of the call. Raises what the run raises."""
        taken: list[tuple[str, str, float]] = []
        known, found = after_hits(self._call, taken)
        if known and not self._cancelled:
            return found
        with self._guard:
            self._run = self._whole
            if not known and found is not self._call:
                self._run = self._run_of(found)
                self._run.stand_for(self._whole)
                self._run.taken = taken
            if self._cancelled:
                self._run.cancel()
        return self._run.value()

    def cancel(self) -> None:
        """Cancel the run, also one that has not begun."""
        with self._guard:
            self._cancelled = True
            if self._run is not None:
                self._run.cancel()


def run_after_hits(call: Call[Any], run_of: Callable[[Call[Any]], Any]) -> Any:
    """The next run of a call, with values that are kept in the place of calls."""
    whole = run_of(call)
    if not isinstance(whole, Run) or not any(getattr(body, "remembering", None) for body in whole.flow.bodies):
        return whole
    return RunAfterHits(call, whole, run_of)


def after_hits(root: Call[Any], taken: list[tuple[str, str, float]] | None = None) -> tuple[bool, Any]:
    """Whether the value of a call is known, and that; else what is left of the call. Adds the hits
    that are left out of it to `taken`: task, key, when the value was made."""
    walk = _Walk(taken if taken is not None else [])
    try:
        found = walk.of(root)
    except _Endless:
        return False, root  # said when it is compiled
    return (True, found.value) if isinstance(found, _Known) else (False, found)


def each_after_hits(roots: Sequence[Call[Any]]) -> list[tuple[bool, Any]]:
    """Of several calls: whether the value of each is known, and that; else what is left of it. What
    they share is shared by what is left."""
    walk = _Walk([])
    try:
        found = [walk.of(root) for root in roots]
    except _Endless:
        return [(False, root) for root in roots]
    return [(True, one.value) if isinstance(one, _Known) else (False, one) for one in found]


class _Endless(Exception):
    """A call is its own argument, or there are too many."""


class _Walk:
    def __init__(self, taken: list[tuple[str, str, float]]) -> None:
        self._taken = taken
        self._done: dict[Call[Any], Call[Any] | _Known] = {}
        self._misses: dict[Any, int] = {}

    def of(self, root: Call[Any]) -> Call[Any] | _Known:
        done = self._done
        above: set[Call[Any]] = set()
        stack = [root]
        while stack:
            call = stack[-1]
            if call in done:
                stack.pop()
                continue
            flat, shape = _planned(call)
            missing = [part for part in flat if type(part) is Call and part not in done]
            if missing:
                above.add(call)
                if not above.isdisjoint(missing) or len(done) + len(stack) + len(missing) > _MOST_CALLS:
                    raise _Endless
                stack += reversed(missing)
                continue
            above.discard(call)
            done[call] = self._seen(call, flat, shape)
            stack.pop()
        return done[root]

    def _seen(self, call: Call[Any], flat: Sequence[Any], shape: tuple[int, tuple[str, ...], Any]) -> Call[Any] | _Known:
        """A call all of whose arguments have been seen."""
        found = [self._done[part] if type(part) is Call else part for part in flat]
        known = all(type(part) is not Call or isinstance(there, _Known) for part, there in zip(flat, found, strict=True))
        known = known and not any(type(part) is MappedCalls for part in flat)
        left = call
        if any(there is not part for part, there in zip(flat, found, strict=True)):
            if any(type(part) is MappedCalls for part in flat):
                flat, shape = _planned(call, together=False)
                found = [self._done.get(part, part) if type(part) is Call else part for part in flat]
            placed = [_in_place(part, there) for part, there in zip(flat, found, strict=True)]
            if any(there is not part for part, there in zip(flat, placed, strict=True)):
                left = _with_arguments(call, *_arguments(placed, shape))
        if not known:
            return left
        values = [there.value if isinstance(there, _Known) else there for there in found]
        if type(call) is Gathered:
            return _Known(list(_arguments(values, shape)[0]), left)
        remembering = getattr(call.task.body, "remembering", None)
        if remembering is None or self._misses.get(call.task, 0) >= _MOST_MISSES:
            return left
        hit = self._hit(remembering, *_arguments(values, shape))
        self._misses[call.task] = 0 if hit is not None else self._misses.get(call.task, 0) + 1
        if hit is None:
            return left
        value, size, key, made = hit
        instead = left if size > _LARGE or holds_calls(value) else None
        if instead is None:
            self._taken.append((call.task.__name__, key, made))
        return _Known(value, instead)

    def _hit(self, remembering: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[Any, int, str, float] | None:
        """The value that the depot has, its size, its key, and when it was made."""
        layer, inner = remembering
        with contextlib.suppress(Exception):
            place = depot(layer.options.where)
            key = layer.identity_of(inner, args, kwargs).key
            found = look(place, key, layer.options.expire)
            return None if found is None else (found.value, found.size, key, found.about.made)
        return None


def _planned(call: Call[Any], together: bool = True) -> tuple[Sequence[Any], tuple[int, tuple[str, ...], Any]]:
    """The inputs of a call, and their shape; the calls of a `map` one by one where they are
    remembered."""
    flat, shape, _ = plan_of(call, together=together)
    if any(type(part) is MappedCalls and getattr(part.task.body, "remembering", None) is not None for part in flat):
        flat, shape, _ = plan_of(call, together=False)
    return flat, shape


def arguments_of(call: Call[Any], known: Callable[[Call[Any]], Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call, with what `known` gives in the place of each call among them."""
    flat, shape = _planned(call, together=False)
    return _arguments([known(part) if isinstance(part, Call) else part for part in flat], shape)


def _in_place(part: Any, there: Any) -> Any:
    """What takes the place of an input: the value of a hit, what is left of a call, or itself."""
    if isinstance(there, _Known):
        return there.value if there.instead is None else there.instead
    return there if type(part) is Call else part


def _arguments(flat: Sequence[Any], shape: tuple[int, tuple[str, ...], Any]) -> tuple[list[Any], dict[str, Any]]:
    positional, keywords, templates = shape
    values = list(flat)
    if templates is not None:
        source = iter(flat)
        values = [rebuild(template, source) for template in templates]
    return values[:positional], dict(zip(keywords, values[positional:], strict=True))


def _with_arguments(call: Call[Any], args: list[Any], kwargs: dict[str, Any]) -> Call[Any]:
    if type(call) is Gathered:
        return Gathered(call.task, tuple(args), call.name, call.accepts, call.chunk)
    return Call(call.task, tuple(args), kwargs, call.name)


Call._after_hits = staticmethod(run_after_hits)
Call._each_after_hits = staticmethod(each_after_hits)
