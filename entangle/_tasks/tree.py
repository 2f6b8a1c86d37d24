"""From a tree of calls to a Flow, and to the nested dicts of `call.graph()`."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from entangle._tasks.call import Call
from entangle.errors import CycleError
from entangle.flow import COPY, PROCESS, Body, Flow, Like, Shape, Template, is_copied

if TYPE_CHECKING:
    from entangle.task import Task

_CONTAINERS = (list, tuple, dict, set, frozenset)
_PLAIN = frozenset((int, str, float, bool, type(None), bytes, complex))


def _flatten(value: Any, flat: list[Any], around: tuple[int, ...]) -> Template:
    """Put the calls and constants that an argument is made of into `flat`; gives the template that makes it again."""
    kind = type(value)
    if kind is Call or kind in _PLAIN:
        flat.append(value)
        return None
    if not isinstance(value, _CONTAINERS) or not _holds_call(value, around):
        flat.append(value)
        return COPY if is_copied(value) else None
    around = (*around, id(value))
    items = [part for pair in value.items() for part in pair] if isinstance(value, dict) else value
    made_by = kind if kind in _CONTAINERS or isinstance(value, (tuple, frozenset)) else Like(value)
    return (made_by, tuple(_flatten(item, flat, around) for item in items))


def _holds_call(value: Any, around: tuple[int, ...] = ()) -> bool:
    """Whether there is a call somewhere in a container. Raises CycleError where a container is its own part."""
    kind = type(value)
    if kind is Call:
        return True
    if not isinstance(value, _CONTAINERS):
        return False
    if not value:
        return False
    if id(value) in around:
        raise CycleError(f"an argument holds itself: a {kind.__name__} is, through its own parts, a part of itself")
    inside = (*around, id(value))
    if isinstance(value, dict):
        return any(_holds_call(key, inside) or _holds_call(item, inside) for key, item in value.items())
    return any(type(item) not in _PLAIN and _holds_call(item, inside) for item in value)


def _plan(call: Call[Any]) -> tuple[Sequence[Any], tuple[int, tuple[str, ...], tuple[Template, ...] | None]]:
    """The flat inputs of a call, and the shape in which they become its arguments."""
    args, kwargs = call.args, call.kwargs
    for argument in args:
        kind = type(argument)
        if kind is not Call and kind not in _PLAIN:
            break
    else:
        if not kwargs:
            return args, (len(args), (), None)
    flat: list[Any] = []
    templates = tuple(_flatten(argument, flat, ()) for argument in (*args, *kwargs.values()))
    simple = all(template is None for template in templates)
    return flat, (len(args), tuple(kwargs), None if simple else templates)


def compile_call(root: Call[Any]) -> Flow:
    """The flow of a call tree, leaves first in the order in which they are written. The same call twice is one node.

    Raises CycleError where there is a cycle.
    """
    # A call's number: -1 while its arguments are being visited, then k for the k-th leaf, -2 - k for the k-th other node,
    # whose numbers begin when the leaves have been counted.
    numbers: dict[Call[Any], int] = {}
    leaves: list[tuple[int, int, Sequence[Any]]] = []  # body, shape, flat inputs
    others: list[tuple[int, int, Sequence[Any]]] = []
    bodies: list[Body] = []
    body_numbers: dict[Task[..., Any], int] = {}
    shapes: dict[Any, int] = {}
    stack: list[Any] = [root]
    while stack:
        call = stack.pop()
        if type(call) is tuple:  # all that it takes has been visited
            call, body, shape, flat = call
            numbers[call] = -2 - len(others)
            others.append((body, shape, flat))
            continue
        number = numbers.get(call)
        if number is not None:
            if number == -1:
                raise _cycle(call)
            continue
        task = call.task
        found = body_numbers.get(task)
        if found is None:
            found = body_numbers[task] = len(bodies)
            bodies.append(task.body)
        flat, plan = _plan(call)
        shape = shapes.setdefault(plan, len(shapes))
        children = [part for part in flat if type(part) is Call]
        if children:
            numbers[call] = -1
            stack.append((call, found, shape, flat))
            if len(children) > 1:
                children.reverse()
            stack += children
        elif bodies[found].carrier == PROCESS:
            numbers[call] = len(leaves)
            leaves.append((found, shape, flat))
        else:
            numbers[call] = -2 - len(others)
            others.append((found, shape, flat))
    first = len(leaves) - 2
    starts, inputs, constants = [0], array("q"), list[Any]()
    for _, _, flat in leaves:
        if flat:
            at = len(constants)
            constants += flat
            inputs.extend(range(~at, ~len(constants), -1))
        starts.append(len(inputs))
    for _, _, flat in others:
        for part in flat:
            if type(part) is Call:
                number = numbers[part]
                inputs.append(number if number >= 0 else first - number)
            else:
                inputs.append(~len(constants))
                constants.append(part)
        starts.append(len(inputs))
    return Flow(
        bodies,
        [Shape(*shape) for shape in shapes],
        array("i", [node[0] for node in (*leaves, *others)]),
        array("i", [node[1] for node in (*leaves, *others)]),
        array("q", starts),
        inputs,
        constants,
        len(leaves),
    )


def _cycle(call: Call[Any]) -> CycleError:
    return CycleError(
        f"{call.task.__name__!r} is, through its own arguments, an argument of itself; "
        "a list or dict that it was given has been changed afterwards"
    )


def as_dict(root: Call[Any]) -> dict[str, Any]:
    """The graph below a call as nested dicts, built from the leaves up, since nesting may be deep.

    Raises CycleError where there is a cycle.
    """
    built: dict[Call[Any], list[dict[str, Any]]] = {}
    waiting: set[Call[Any]] = set()  # for what they take: those above the one in hand
    stack = [root]
    while stack:
        call = stack[-1]
        if call in built:
            stack.pop()
            continue
        flat, (count, keywords, templates) = _plan(call)
        missing = [part for part in flat if type(part) is Call and part not in built]
        if missing:
            waiting.add(call)
            for part in missing:
                if part in waiting:
                    raise _cycle(part)
            stack += reversed(missing)
            continue
        names = [""] * len(flat)
        if templates is None and keywords:
            names = [*[""] * count, *(f"{keyword}=" for keyword in keywords)]
        level: list[dict[str, Any]] = []
        for name, part in zip(names, flat, strict=True):
            if type(part) is Call:
                level.append({part.task.__name__: _level(built[part])})
            else:
                level.append({name + _text(part): []})
        built[call] = level
        waiting.discard(call)
        stack.pop()
    return {root.task.__name__: built[root]}


def _level(children: list[dict[str, Any]]) -> Any:
    """Siblings as one dict, or as a list where two have one name."""
    merged: dict[str, Any] = {}
    for child in children:
        merged.update(child)
    if not children:
        return []
    return merged if len(merged) == len(children) else children


def _text(value: object) -> str:
    text = value if isinstance(value, str) else repr(value) if type(value) in _PLAIN else f"<{type(value).__name__}>"
    if isinstance(value, _CONTAINERS) and len(value) < 20:
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
