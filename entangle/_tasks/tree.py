"""Compiles a tree of calls to a Flow, and to the nested dicts of `call.graph()`."""

from __future__ import annotations

import contextlib
import copy
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from entangle._tasks.call import CALLS, Call, Gathered, MappedCalls
from entangle._tasks.layer import Decorated
from entangle.errors import ArgumentError, CycleError
from entangle.flow import COPY, PROCESS, UNCHANGING, Body, Flow, Like, Shape, Template, in_a_row, is_copied, smallest_array

_CONTAINERS = (list, tuple, dict, set, frozenset)
#: The deepest nesting of containers with calls; far below Python's recursion limit.
_DEEP = 200


class _Gathering:
    """What gathered calls say of the inputs of a node."""

    def __init__(self, together: bool) -> None:
        #: The positions of the inputs whose failure is a value for the node.
        self.accepted: set[int] = set()
        #: How many of them a worker takes at a time; 0: as many as seem best.
        self.chunk = 0
        #: Whether calls of a `map` may stand among the inputs as one (`MappedCalls`).
        self.together = together


def _flatten(value: Any, flat: list[Any], around: tuple[int, ...], said: _Gathering) -> Template:
    """Append the calls and constants of an argument to `flat`; returns its template.

    `said` gets what gathered calls say of them.
    """
    kind = type(value)
    if kind is Call or kind in UNCHANGING:
        flat.append(value)
        return None
    if kind is Gathered:
        return _flatten_gathered(value, flat, (*around, id(value)), said)
    if not isinstance(value, _CONTAINERS):
        flat.append(value)
        return COPY if is_copied(value) else None
    if id(value) in around:
        raise CycleError(f"an argument contains itself: a {kind.__name__} with a call in it is, through its items, one of its own items")
    holds_call, endless = _look_into(value)
    if not holds_call:
        flat.append(value)
        return COPY if is_copied(value) and not endless else None
    if len(around) == _DEEP:
        raise ArgumentError(
            f"an argument has calls in containers that are nested more than {_DEEP} deep; give them to a function that makes the container"
        )
    around = (*around, id(value))
    items = [part for pair in value.items() for part in pair] if isinstance(value, dict) else value
    made_by = kind if kind in _CONTAINERS or isinstance(value, (tuple, frozenset)) else Like(value)
    return (made_by, tuple([_flatten(item, flat, around, said) for item in items]))


def _flatten_gathered(value: Gathered[Any], flat: list[Any], around: tuple[int, ...], said: _Gathering) -> Template:
    """Append the items of a gathered call in its place; `around` bounds their nesting."""
    if said.together and not value.accepts and len(around) < _DEEP and (items := value.items) is not None:
        said.chunk = value.chunk or said.chunk
        flat.append(items)
        return (list, (None,) * items.count)
    if not value.args and around:
        flat.append([])  # an argument takes an input at least
        return COPY
    if len(around) == _DEEP:
        flat.append(value.node)
        return None
    said.chunk = value.chunk or said.chunk
    if set(map(type, value.args)) == {Call}:
        if value.accepts:
            said.accepted.update(range(len(flat), len(flat) + len(value.args)))
        flat += value.args
        return (list, (None,) * len(value.args))
    templates: list[Template] = []
    for item in value.args:
        if type(item) is Gathered and value.accepts and not item.accepts:
            # Its own failure is one value of ours, so it is a node that can be skipped.
            item = item.node
        at = len(flat)
        templates.append(_flatten(item, flat, around, said))
        if value.accepts and type(item) is Call:
            said.accepted.add(at)
    return (list, tuple(templates))


def _look_into(value: Any) -> tuple[bool, bool]:
    """Whether a container has a call in it, at any depth; and whether it is endless.

    Endless: it contains itself, or is nested too deep to follow; it is then passed on as it is.
    Uses a stack of its own, since Python's recursion is limited.
    """
    inside = {id(value)}
    done: set[int] = set()
    stack = [(id(value), _containers_in(value))]
    endless = False
    while stack:
        for part in stack[-1][1]:
            if type(part) in CALLS:
                return True, endless
            number = id(part)
            if number in inside:
                endless = True
            elif number not in done:
                inside.add(number)
                stack.append((number, _containers_in(part)))
                endless = endless or len(stack) > _DEEP
                break
        else:
            number, _ = stack.pop()
            inside.discard(number)
            done.add(number)
    return False, endless


def holds_calls(value: Any) -> bool:
    """Whether a value is a call, or a container with one in it, at any depth."""
    return type(value) in CALLS or (isinstance(value, _CONTAINERS) and _look_into(value)[0])


def _containers_in(value: Any) -> Iterator[Any]:
    """The items of a container that are calls or may contain calls."""
    parts = chain.from_iterable(value.items()) if isinstance(value, dict) else value
    return iter(
        [part for part in parts if type(part) not in UNCHANGING and (type(part) in CALLS or (isinstance(part, _CONTAINERS) and part))]
    )


_Shape = tuple[int, tuple[str, ...], "tuple[Template, ...] | None"]


def plan_of(call: Call[Any], together: bool = False) -> tuple[Sequence[Any], _Shape, _Gathering | None]:
    """The flat inputs of a call, and the shape that makes its arguments of them.

    With them what gathered calls say of the inputs, if there are any. `together`: the calls of a
    `map` may be one of the inputs (`MappedCalls`).
    """
    if together and type(call) is Gathered and not call.accepts and (items := call.items) is not None:
        said = _Gathering(together)
        said.chunk = call.chunk
        return [items], (items.count, (), None), said
    args, kwargs = call.args, call.kwargs
    for argument in args:
        kind = type(argument)
        if kind is not Call and kind not in UNCHANGING:
            break
    else:
        if not kwargs and type(call) is Call:
            return args, (len(args), (), None), None
    flat: list[Any] = []
    said = _Gathering(together)
    templates: tuple[Template, ...]
    if type(call) is Gathered:
        _, templates = _flatten_gathered(call, flat, (), said)
    else:
        templates = tuple([_flatten(argument, flat, (), said) for argument in (*args, *kwargs.values())])
    simple = templates.count(None) == len(templates)
    return flat, (len(args), tuple(kwargs), None if simple else templates), said


def compile_call(root: Call[Any]) -> Flow:
    """The flow of a call tree; leaves come first, in the order in which they are written.

    The same call twice is one node. Raises CycleError if there is a cycle.
    """
    if type(root) is Call and root.name is None and CALLS.isdisjoint(map(type, root.args)):
        return _alone(root)
    if type(root) is Gathered and not root.accepts and (items := root.items) is not None and items.count <= _MOST_ITEMS:
        return _map_alone(root, items)
    return _compiled([root])[0]


def _alone(call: Call[Any]) -> Flow:
    """The flow of a call that may take no other: that of an earlier one, with its own constants."""
    flat, shape, _ = plan_of(call, together=True)
    if not {Call, MappedCalls}.isdisjoint(map(type, flat)):
        return _compiled([call])[0]
    plans = call.task._plans
    plan = plans.get(shape)
    if plan is None:
        plan = _compiled([call])[0]
        plan.constants = [None] * len(flat)
        if len(plans) >= _MOST_PLANS:
            plans.clear()
        plans[shape] = plan
    return plan.with_constants(list(flat))


def _map_alone(root: Gathered[Any], items: MappedCalls) -> Flow:
    """The flow of a map: that of an earlier one with as many items, with its own constants."""
    plans = items.task._plans
    form = (items.count, items.width, root.name, root.chunk)
    pattern = plans.get(form)
    if pattern is None:
        pattern = _compiled([root])[0]
        pattern.constants, pattern.constants_in_short = [], None
        if len(plans) >= _MOST_PLANS:
            plans.clear()
        plans[form] = pattern
    flow = copy.copy(pattern)
    flow.constants, flow.constants_in_short, flow.pattern = items.constants, items.in_short, pattern
    return flow


#: Of maps with more items, no pattern is kept.
_MOST_ITEMS = 1 << 14
#: How many plans are kept of a task: there may be any number of shapes of arguments.
_MOST_PLANS = 16


def compile_calls(roots: Sequence[Call[Any]]) -> tuple[Flow, list[int]]:
    """The flow of several calls, and their nodes; what they share is in it once.

    A failure of one ends no other. Raises CycleError if there is a cycle.
    """
    flow, numbers = _compiled(roots)
    flow.accept(flow.accepts, sinks=True)
    flow.kept = frozenset(numbers)
    return flow, numbers


def _is_in_ranges(body: Body) -> bool:
    """Whether worker processes take nodes of this body from ranges, where these take no others."""
    return body.carrier == PROCESS and not body.gpus and body.ahead is None


def _compiled(roots: Sequence[Call[Any]]) -> tuple[Flow, list[int]]:
    """The flow of some calls, and their nodes."""
    # The number of a call: -1 while its arguments are visited; then k for the k-th leaf, and -2 -
    # k for the k-th other node, whose final number is known once all leaves are counted.
    numbers: dict[Call[Any], int] = {}
    # Of the calls of a `map`, the number of the first.
    blocks: dict[MappedCalls, int] = {}
    made = MappedCalls.made
    leaf_bodies, leaf_shapes = array("i"), array("i")
    starts, inputs, constants = array("q", (0,)), array("q"), list[Any]()
    others: list[tuple[int, int, Sequence[Any]]] = []  # body, shape, flat inputs
    bodies: list[Body] = []
    in_ranges: list[bool] = []
    body_numbers: dict[Decorated, int] = {}
    shapes: dict[Any, int] = {}
    names: dict[int, str] = {}
    accepts: dict[int, list[Call[Any]]] = {}  # nodes, and the calls whose failure is a value for them
    chunk = 0
    stack: list[Any] = [*reversed(roots)]
    while stack:
        call = stack.pop()
        if type(call) is tuple:  # all arguments of this call have been visited
            call, body, shape, flat, said = call
            number = numbers[call] = -2 - len(others)
            if said is not None:
                chunk = said.chunk or chunk
                if said.accepted:
                    # A call that is also taken as it is must not fail.
                    plain = {part for at, part in enumerate(flat) if at not in said.accepted and type(part) is Call}
                    plain.update(call for part in flat if type(part) is MappedCalls and part.are_made for call in part.calls)
                    accepts[number] = [flat[at] for at in said.accepted if flat[at] not in plain]
            if call.name is not None:
                names[number] = call.name
            others.append((body, shape, flat))
            continue
        if made != MappedCalls.made:  # calls of a `map` that is numbered already have been made one by one
            made = MappedCalls.made
            for items, number in blocks.items():
                if items.are_made:
                    numbers.update(zip(items.calls, range(number, number + items.count), strict=True))
        if type(call) is MappedCalls:
            if call in blocks:
                continue
            found = body_numbers.get(call.task)
            if found is None:
                found = body_numbers[call.task] = len(bodies)
                bodies.append(call.task.body)
                in_ranges.append(_is_in_ranges(bodies[found]))
            if not in_ranges[found] or call.are_made:
                stack += reversed(call.calls)
                continue
            shape = shapes.setdefault((call.width, (), None), len(shapes))
            blocks[call] = len(leaf_bodies)
            leaf_bodies += in_a_row("i", found, call.count, 0)
            leaf_shapes += in_a_row("i", shape, call.count, 0)
            at, width = len(constants), call.width
            constants += call.constants
            inputs += in_a_row("q", ~at, width * call.count, -1)
            first = starts[-1] + width
            if width == 1:
                starts += in_a_row("q", first, call.count)
            else:
                starts.extend(range(first, first + width * call.count, width))
            continue
        known = numbers.get(call)
        if known is not None:
            if known == -1:
                raise _cycle(call)
            continue
        task = call.task
        found = body_numbers.get(task)
        if found is None:
            found = body_numbers[task] = len(bodies)
            bodies.append(task.body)
            in_ranges.append(_is_in_ranges(bodies[found]))
        flat, plan, said = plan_of(call, together=True)
        shape = shapes.setdefault(plan, len(shapes))
        children = [part for part in flat if type(part) is Call or type(part) is MappedCalls]
        if children:
            numbers[call] = -1
            stack.append((call, found, shape, flat, said))
            if len(children) > 1:
                children.reverse()
            stack += children
        elif in_ranges[found]:
            number = numbers[call] = len(leaf_bodies)
            if call.name is not None:
                names[number] = call.name
            leaf_bodies.append(found)
            leaf_shapes.append(shape)
            if flat:
                at = len(constants)
                constants += flat
                inputs.extend(range(~at, ~len(constants), -1))
            starts.append(len(inputs))
        else:
            number = numbers[call] = -2 - len(others)
            if call.name is not None:
                names[number] = call.name
            others.append((found, shape, flat))
    leaves = len(leaf_bodies)
    first = leaves - 2
    for _, _, flat in others:
        for part in flat:
            if type(part) is Call:
                number = numbers[part]
                inputs.append(number if number >= 0 else first - number)
            elif type(part) is MappedCalls and part in blocks:
                inputs += in_a_row("q", blocks[part], part.count)
            elif type(part) is MappedCalls:
                inputs.extend([number if number >= 0 else first - number for number in map(numbers.__getitem__, part.calls)])
            else:
                inputs.append(~len(constants))
                constants.append(part)
        starts.append(len(inputs))
    flow = Flow(
        bodies,
        [Shape(*shape) for shape in shapes],
        leaf_bodies + array("i", [node[0] for node in others]),
        leaf_shapes + array("i", [node[1] for node in others]),
        starts,
        inputs,
        constants,
        leaves,
    )
    flow.names = {number if number >= 0 else first - number: name for number, name in names.items()}
    flow.chunk = chunk
    if sum(len(calls.constants) for calls in blocks if calls.numbers) == len(constants):
        flow.constants_in_short = smallest_array(constants)

    def place(call: Call[Any]) -> int:
        number = numbers[call]
        return number if number >= 0 else first - number

    if accepts:
        flow.accept({first - number: frozenset(map(place, calls)) for number, calls in accepts.items()})
    return flow, [place(root) for root in roots]


def _cycle(call: Call[Any]) -> CycleError:
    return CycleError(
        f"a call of {call.task.__name__!r} is, through its own arguments, an argument of itself; "
        "a list or dict that it was given has been changed since"
    )


def as_dict(root: Call[Any]) -> dict[str, Any]:
    """The graph below a call as nested dicts. Raises CycleError if there is a cycle.

    Built from the leaves up: nesting may be deeper than Python's recursion limit.
    """
    built: dict[Call[Any], list[dict[str, Any]]] = {}
    waiting: set[Call[Any]] = set()  # the calls above the current one
    stack = [root]
    while stack:
        call = stack[-1]
        if call in built:
            stack.pop()
            continue
        flat, (count, keywords, templates), _ = plan_of(call)
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
    """Siblings as one dict, or as a list if two have one name."""
    merged: dict[str, Any] = {}
    for child in children:
        merged.update(child)
    if not children:
        return []
    return merged if len(merged) == len(children) else children


def _text(value: object) -> str:
    text = value if isinstance(value, str) else repr(value) if type(value) in UNCHANGING else f"<{type(value).__name__}>"
    if isinstance(value, _CONTAINERS) and len(value) < 20:
        with contextlib.suppress(RecursionError):
            text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
