"""A flow as parcels for another engine: plans for nodes that are alike, a payload for each node."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

from entangle._engines.node_task import NodePlan
from entangle._shared.pickling import dumps_for_others, why_not
from entangle._shared.summaries import argument_at, path_in_short
from entangle.flow import UNCHANGING, Body, Flow

#: What is larger (bytes) is handed to the engine's store, once, instead of to each node.
LARGE = 64 << 10
#: A plan that is larger (bytes) is no part of each node's message either.
LONG_PLAN = 4 << 10


class Parcel(NamedTuple):
    """A node as the engine gets it: it takes the values of `sources`, and the large constants whose
    numbers are `constants`, in this order."""

    node: int
    plan: int
    payload: bytes
    sources: Sequence[int]
    constants: Sequence[int]


class Shipment:
    """The nodes of a flow that go to an engine, but for those `here`.

    Raises UnpicklableError, which names what cannot travel.
    """

    def __init__(self, run: str, flow: Flow, here: frozenset[int], noting: int) -> None:
        self.flow = flow
        #: The plans, pickled.
        self.plans: list[bytes] = []
        #: Large constants by their numbers.
        self.large: dict[int, Any] = {}
        self._run, self._noting, self._here = run, noting, here
        #: Whether the caller must hear when nodes begin: `wait` counts from then.
        self._announced = any(body.wait is not None for body in flow.bodies)
        self._caller = os.uname().nodename, os.getpid()
        self._known: dict[Any, int] = {}
        self._bodies: dict[int, bytes] = {}
        self._numbers: dict[int, int] = {}
        self.parcels = [self._parcel(node) for node in range(flow.count) if node not in here]

    def _parcel(self, node: int) -> Parcel:
        flow = self.flow
        constants: list[Any] = []
        places: dict[int, int] = {}
        large: dict[int, int] = {}
        layout: list[int] = []
        sources = flow.sources(node)
        for at, source in enumerate(sources):
            places[source] = at
        first = flow.starts[node]
        for position, taken in enumerate(flow.inputs[first : flow.starts[node + 1]], first):
            if taken >= 0:
                layout.append(places[taken])
                continue
            value = flow.constants[~taken]
            if type(value) in UNCHANGING and not (type(value) in (str, bytes) and len(value) > LARGE):
                layout.append(~len(constants))
                constants.append(value)
                continue
            number = self._large(value, node, position)
            if number is None:
                layout.append(~len(constants))
                constants.append(value)
            else:
                layout.append(large.setdefault(number, len(sources) + len(large)))
        guarded = flow.guarded is not None and flow.guarded[node]
        path = f"call path: {path_in_short(flow, node)}" if guarded else ""
        told = constants, flow.names.get(node, ""), path
        try:
            payload = pickle.dumps(told, 5) if UNCHANGING.issuperset(map(type, constants)) else dumps_for_others(told)
        except Exception as error:
            raise self._cannot_travel(node, error) from None
        return Parcel(node, self._plan(node, tuple(layout), sources), payload, sources, tuple(large))

    def _large(self, value: Any, node: int, position: int) -> int | None:
        """The number of a constant that is large; None for a small one. One object has one
        number: what many calls are given is sent once."""
        known = self._numbers.get(id(value))
        if known is not None:
            return known if known >= 0 else None
        size = getattr(value, "nbytes", None)
        if not isinstance(size, int):
            try:
                size = len(dumps_for_others(value))
            except Exception:
                raise self._no_argument(value, node, position) from None
        number = len(self.large) if size > LARGE else -1
        self._numbers[id(value)] = number
        if number < 0:
            return None
        self.large[number] = value
        return number

    def _plan(self, node: int, layout: tuple[int, ...], sources: Sequence[int]) -> int:
        flow = self.flow
        body, shape = flow.body_of[node], flow.shape_of[node]
        may_repeat = flow.bodies[body].repeatable
        accepts = flow.accepts.get(node, frozenset())
        accepted = frozenset(at for at, source in enumerate(sources) if source in accepts)
        seen_by_others = frozenset(
            at for at, source in enumerate(sources) if may_repeat or source in flow.kept or len(flow.takers(source)) > 1
        )
        key = body, shape, layout, accepted, seen_by_others
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = len(self.plans)
            plan = NodePlan(
                self._run,
                flow.bodies[body].name,
                self._body(body),
                flow.shapes[shape],
                layout,
                accepted,
                seen_by_others,
                self._noting,
                self._caller,
                self._announced,
            )
            self.plans.append(dumps_for_others(plan))
        return known

    def _body(self, index: int) -> bytes:
        pickled = self._bodies.get(index)
        if pickled is None:
            body = self.flow.bodies[index]
            try:
                pickled = self._bodies[index] = dumps_for_others(body)
            except Exception as error:
                raise _no_body(body, error) from None
        return pickled

    def _cannot_travel(self, node: int, error: Exception) -> Exception:
        """The error that names the argument which cannot be sent."""
        flow = self.flow
        first = flow.starts[node]
        for position, taken in enumerate(flow.inputs[first : flow.starts[node + 1]], first):
            if taken < 0:
                try:
                    dumps_for_others(flow.constants[~taken])
                except Exception:
                    return self._no_argument(flow.constants[~taken], node, position)
        return error

    def _no_argument(self, value: Any, node: int, position: int) -> Exception:
        what = f"argument {argument_at(self.flow, node, position)} of task {self.flow.name(node)!r}"
        return why_not(value, what, dumps_for_others, "make it inside the task")


def _no_body(body: Body, error: Exception) -> Exception:
    for what, part in body.made_of():
        try:
            dumps_for_others(part)
        except Exception:
            return why_not(part, f"{what} of task {body.name!r}", dumps_for_others, "make it inside the task")
    return error
