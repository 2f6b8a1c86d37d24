"""The keys of the nodes of a flow, before any of them has run.

A node is known by the code of its task, by its arguments, and by the keys of the nodes whose values
it takes. Beside its key it has a *place*: the same with code by name alone. So a node whose code
was changed has another key and the same place.
"""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Sequence
from typing import NamedTuple

from entangle._shared.documentation import more
from entangle._shared.identity import project
from entangle._shared.identity.arguments import parameters
from entangle._shared.identity.key import PYTHON, References, reach_of, why_refused
from entangle._shared.identity.reach import Reach
from entangle._shared.identity.values import LEAVES, Content, NoContent
from entangle._shared.identity.wrapped import unwrapped
from entangle.errors import CacheKeyError, add_note
from entangle.flow import COPY, Flow, Like, Shape, Template

#: How long keys and places are (bytes).
LENGTH = 16


class FlowKeys(NamedTuple):
    """The keys and places of the nodes of a flow, in order; and of each task's code the parts, by
    the name of the task."""

    keys: list[bytes]
    places: list[bytes]
    parts: dict[str, dict[str, str]]


def digest(content: bytes) -> bytes:
    """A hash of the length of keys."""
    return hashlib.blake2b(content, digest_size=LENGTH).digest()


def keys_of(flow: Flow) -> FlowKeys:
    """The keys of the nodes of a flow.

    Raises CacheKeyError that names what has no content: an open file, a lock.
    """
    codes = [_Code(flow, number) for number in range(len(flow.bodies))]
    prefixes: dict[tuple[int, int], tuple[bytes, bytes, tuple[int, ...] | None]] = {}
    keys: list[bytes] = []
    places: list[bytes] = []
    starts, inputs, constants, accepts = flow.starts, flow.inputs, flow.constants, flow.accepts
    body_of, shape_of, leaves = flow.body_of, flow.shape_of, LEAVES
    first = 0
    for node in range(flow.count):
        last = starts[node + 1]
        pair = body_of[node], shape_of[node]
        known = prefixes.get(pair)
        if known is None:
            known = prefixes[pair] = codes[pair[0]].prefixes(flow.shapes[pair[1]])
        said, named, order = known
        taken: Sequence[int] = inputs[first:last]
        first = last
        if order is not None:
            taken = [taken[at] for at in order]
        of_key, of_place = [said], [named]
        references: tuple[References, References] | None = None
        for number in taken:
            if number >= 0:
                of_key.append(keys[number])
                of_place.append(places[number])
                continue
            value = constants[~number]
            if type(value) in leaves:
                content = marshal.dumps(value, 2)
                content = b"=" + content if len(content) < 64 else b"#" + digest(content)
                of_key.append(content)
                of_place.append(content)
                continue
            code = codes[pair[0]]
            references = references or code.references()
            try:
                of_key.append(Content(references[0].of, mute=False).of(value))
                of_place.append(Content(references[1].of, mute=False).of(value) if references[0].asked else of_key[-1])
            except NoContent as error:
                raise _refused(
                    f"task {code.name!r} in a durable run: its call cannot be told from others by {''.join(error.where) or 'an argument'} "
                    f"({why_refused(error)}). Give it plain data instead, and open or make such a thing in the body"
                ) from None
        if references is not None:
            of_key += [reach.digest for reach in references[0].reached]
        if node in accepts:
            of_key.append(b"accepts")
        keys.append(digest(b"".join(of_key)))
        places.append(digest(b"".join(of_place)))
    return FlowKeys(keys, places, {code.name: code.reach.parts for code in codes if code.reach is not None})


def _refused(told: str) -> CacheKeyError:
    error = CacheKeyError(told)
    add_note(error, more("durable"))
    return error


class _Code:
    """What is known of the code of a body."""

    def __init__(self, flow: Flow, number: int) -> None:
        body = flow.bodies[number]
        self.name = body.name
        self.reach: Reach | None = None
        task = getattr(body, "task", None)
        layers, self.target = unwrapped(body.function if task is None else task)
        self.home = project.home_of(getattr(self.target, "__module__", None) or "")
        if not body.ours:
            try:
                self.reach = reach_of((tuple(layers), self.target), self.home)
            except NoContent as error:
                raise _refused(
                    f"task {self.name!r} in a durable run: its code cannot be told from other code by {''.join(error.where) or 'a part'} "
                    f"({why_refused(error)}). Open or make such a thing in the body"
                ) from None

    def references(self) -> tuple[References, References]:
        """What stands for functions and classes in arguments: in keys, and in places."""
        return References(self.reach, self.home), References(None, self.home)

    def prefixes(self, shape: Shape) -> tuple[bytes, bytes, tuple[int, ...] | None]:
        """What the keys and places of all nodes of a shape begin with; and the order in which their
        inputs count, unless it is that in which they stand."""
        names = list(parameters(self.target)[0][: shape.positional])
        names += [str(number) for number in range(len(names), shape.positional)]
        names += shape.keywords
        order: tuple[int, ...] | None = None
        if shape.keywords and shape.templates is None:
            order = tuple(sorted(range(len(names)), key=names.__getitem__))
            names.sort()
            if order == tuple(range(len(names))):
                order = None
        templates = "" if shape.templates is None else "".join(map(_said, shape.templates))
        place = marshal.dumps((self.name, names, templates), 2)
        code = b"" if self.reach is None else self.reach.digest
        return marshal.dumps((place, code, PYTHON), 2), place, order


def _said(template: Template) -> str:
    """How an argument is made of inputs, as a text."""
    if template is None or template == COPY:
        return "."
    kind, parts = template
    made = type(kind.filled([])) if isinstance(kind, Like) else kind
    return f"{made.__qualname__}({''.join(map(_said, parts))})"
