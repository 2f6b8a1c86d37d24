"""What is left of a flow where the values of some nodes are known."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

from entangle.flow import FRESH, PROCESS, THREAD, Body, Flow, Shape


class Loaded(NamedTuple):
    """A value that a worker loads: the arguments of the flow's function that does."""

    arguments: tuple[Any, ...]


class LeftOver(NamedTuple):
    """A flow, and for each of its nodes the one of the whole flow that it is; of a node that only
    loads a value, the complement (`~node`)."""

    flow: Flow
    nodes: list[int]


def left_over(whole: Flow, wanted: list[int], known: Mapping[int, Any], load: Any) -> LeftOver:
    """The flow of the nodes that are `wanted`, in order; others have `known` values.

    A known value is a constant where it is one that cannot change; a `Loaded` is a node of its own,
    which calls `load`. So is what the caller wants to be told of.
    """
    loaded = [node for node, value in known.items() if type(value) is Loaded or node in whole.kept]
    loaded.sort()
    numbers: dict[int, int] = {}
    nodes: list[int] = []
    bodies, shapes = list(whole.bodies), list(whole.shapes)
    body_of, shape_of = array("i"), array("i")
    starts, inputs, constants = array("q", (0,)), array("q"), list[Any]()
    loaders: dict[tuple[str, int], int] = {}
    shapes_of_loads: dict[int, int] = {}

    def add_load(node: int) -> None:
        name, carrier = whole.name(node), PROCESS if whole.body(node).carrier in (PROCESS, FRESH) else THREAD
        number = loaders.get((name, carrier))
        if number is None:
            number = loaders[name, carrier] = len(bodies)
            bodies.append(Body(load, name, carrier))
        value = known[node]
        arguments = value.arguments if type(value) is Loaded else (value,)
        shape = shapes_of_loads.get(len(arguments))
        if shape is None:
            shape = shapes_of_loads[len(arguments)] = len(shapes)
            shapes.append(Shape(len(arguments)))
        numbers[node] = len(nodes)
        nodes.append(~node)
        body_of.append(number)
        shape_of.append(shape)
        inputs.extend(range(~len(constants), ~(len(constants) + len(arguments)), -1))
        constants.extend(arguments)
        starts.append(len(inputs))

    in_ranges = [node for node in loaded if whole.body(node).carrier in (PROCESS, FRESH) and not whole.inline]
    ranged = set(in_ranges)
    for node in in_ranges:
        add_load(node)
    leaves = len(nodes) + sum(1 for node in wanted if node < whole.leaves)
    given: dict[int, int] = {}  # where among the constants a known value is
    old_starts, old_inputs, old_constants = whole.starts, whole.inputs, whole.constants
    others_loaded = [node for node in loaded if node not in ranged]
    for node in wanted:
        if node >= whole.leaves and others_loaded:
            for other in others_loaded:
                add_load(other)
            others_loaded = []
        numbers[node] = len(nodes)
        nodes.append(node)
        body_of.append(whole.body_of[node])
        shape_of.append(whole.shape_of[node])
        for taken in old_inputs[old_starts[node] : old_starts[node + 1]]:
            if taken < 0:
                inputs.append(~len(constants))
                constants.append(old_constants[~taken])
            elif taken in numbers:
                inputs.append(numbers[taken])
            else:
                at = given.get(taken)
                if at is None:
                    at = given[taken] = len(constants)
                    constants.append(known[taken])
                inputs.append(~at)
        starts.append(len(inputs))
    for other in others_loaded:
        add_load(other)
    flow = Flow(bodies, shapes, body_of, shape_of, starts, inputs, constants, leaves)
    flow.inline, flow.chunk, flow.limits = whole.inline, whole.chunk, whole.limits
    if whole.inline:
        flow.fans = []
    flow.names = {numbers[node]: name for node, name in whole.names.items() if node in numbers}
    flow.kept = frozenset(numbers[node] for node in whole.kept)
    if whole.guarded is not None:
        accepts = {
            numbers[node]: frozenset([numbers[one] for one in taken if one in numbers])
            for node, taken in whole.accepts.items()
            if node in numbers
        }
        flow.accept(accepts, sinks=bool(whole.kept))
    return LeftOver(flow, nodes)
