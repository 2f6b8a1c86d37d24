"""Why a call has no value in the depot: how it differs from the nearest one that is there."""

from __future__ import annotations

from typing import Any

from entangle._depot.opened import depot
from entangle._shared.identity import nearest_difference
from entangle._shared.tracebacks import edge
from entangle._tasks.call import Call
from entangle._tasks.hits import after_hits, arguments_of
from entangle.errors import OptionError


@edge
def why(call: Call[Any]) -> list[str]:
    """How a call that has no value differs from the nearest of its task that has one.

    Gives a line for each part of the key that is another, as "the function study.scale has
    changed"; an empty list where the value is there. Runs nothing, and takes as long as `entangle
    cache ls`.

    Raises OptionError for a call of a task without `cache=`, one whose values are kept elsewhere
    (below `@ssh` and other places), and one with a call among its arguments whose value is not
    known; CacheKeyError as the call itself does.

        print(entangle.cache.why(fit(data)))
    """
    remembering = getattr(call.task.body, "remembering", None) if isinstance(call, Call) else None
    if remembering is None:
        raise OptionError(f"why({call!r}): it must be a call of a task that has cache=, and runs on this machine")
    layer, inner = remembering

    def known(argument: Call[Any]) -> Any:
        there, value = after_hits(argument)
        if not there:
            raise OptionError(f"why({call!r}): its argument {argument!r} has no value yet, so its key is not known: ask for that one first")
        return value

    args, kwargs = arguments_of(call, known)
    identity = layer.identity_of(inner, args, kwargs)
    place = depot(layer.options.where)
    if place.about(identity.key) is not None:
        return []
    found = [about for file in place.entries() if (about := place.about(file.key)) is not None and about.task == call.task.__name__]
    nearest = nearest_difference(identity.parts, [about.parts for about in sorted(found, key=lambda about: about.made, reverse=True)])
    return nearest.words if nearest is not None else [f"no value of {call.task.__name__} is kept in {place.name}"]
