"""A Flow is what can be run: bodies, and which node takes whose value, as flat arrays.

Nodes are numbered. The leaves that processes run come first, in the order in which they are
written: a range of their numbers is a piece of work whose values soon meet in one consumer. A Flow
knows nothing of decorators or calls. A body is a callable with the terms on which it runs; an
input is a constant or another node.

Flat arrays are cheap to inherit by `fork`, and cheap to send without it: about 0.2 µs a node.
"""

from __future__ import annotations

import copy
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from entangle.pools import Pool

#: The carrier of a body, which runs it: a worker process, a worker thread of the invoking process,
#: a process of the body's own, whatever runs the call (for the last node of a run, the calling
#: thread), or something elsewhere, for which a worker does not wait (`_worker/away_worker.py`).
PROCESS, THREAD, FRESH, HERE, AWAY = 0, 1, 2, 3, 4
#: The first lane of processes that serve a device. Each kind of claim on devices has one of its
#: own, since a process that has opened a device serves it for life.
DEVICE = 5
#: What runs in the process of the caller, or begins there.
IN_CALLER = (THREAD, HERE, AWAY)


class Body(NamedTuple):
    """A callable and the terms on which it runs.

    Times are seconds. `pools` are those of which it needs a cookie, in the order in which they are
    taken.
    """

    function: Callable[..., Any]
    name: str
    carrier: int = PROCESS
    timeout: float | None = None
    wait: float | None = None
    retry: int = 0
    sleep: float = 0.0
    backoff: float = 1.0
    jitter: float = 0.0
    on: tuple[type[BaseException], ...] = (Exception,)
    pools: tuple[Pool, ...] = ()
    shared_memory: bool = False
    #: Makes the replacement of a value that cannot be stored, from that value and the error.
    #: None: such a value ends the run.
    rescue: Callable[[Any, Exception], Any] | None = None
    #: The groups of the node, each with a limit of how many run at once: indexes into
    #: `Flow.limits`.
    limits: tuple[int, ...] = ()
    #: How many GPUs it needs, and into how many shares each is divided.
    gpus: int = 0
    share: int = 1
    #: Whether it may run again where nobody knows whether it has ended. `retry` says so too.
    idempotent: bool = False
    #: What is done elsewhere ahead of it, for the same arguments: a body for the away worker. The
    #: function finds the outcome by `Worker.take_ahead`, or does it itself.
    ahead: Callable[..., Any] | None = None

    @property
    def timed(self) -> bool:
        """Whether this body has a deadline, or its arguments have."""
        return self.timeout is not None or self.wait is not None

    @property
    def repeatable(self) -> bool:
        """Whether it may run again where nobody knows whether it has ended."""
        return self.idempotent or self.retry > 0

    @property
    def may_be_away(self) -> bool:
        """Whether it runs elsewhere, and whoever calls it only waits."""
        return getattr(self.function, "may_be_away", False)

    @property
    def ours(self) -> bool:
        """Whether it is entangle's own: an end of a dataflow, or what makes a list of values."""
        return getattr(self.function, "of_entangle", False)

    def made_of(self) -> list[tuple[str, Any]]:
        """The parts that travel with the body when it is sent, each after its name for errors."""
        return [("the function", self.function)]

    def is_found(self) -> bool:
        """Whether other processes find it by a name, under which it is here as well."""
        return False

    def in_parts(self) -> tuple[Callable[..., Any], Callable[[Any], Any]] | None:
        """Where it only calls a function: that, and what makes a value of what it returns. Numbers
        are values as they are."""
        return None

    def parameters(self) -> tuple[list[str], str | None]:
        """The names of the positional parameters, and of the one that takes the rest, if known."""
        return [], None


#: A template says how one argument is made of flat inputs. None takes the next input as it is.
#: COPY takes a copy of the next input: a body that changes its list must not change that of
#: another. A pair of a container type (or a Like) and templates takes as many inputs as these
#: need.
Template = Any
COPY = "copy"


class Like:
    """The type of a container in a template, where the type is not enough (a defaultdict)."""

    def __init__(self, container: Any) -> None:
        self.container = copy.copy(container)
        self.container.clear()

    def filled(self, items: list[Any]) -> Any:
        """Such a container with these items; for a dict, its keys and values in turn."""
        made = copy.copy(self.container)
        if isinstance(made, dict):
            # One by one, as pickle does: `update` may be overridden, and a Counter would count
            # pairs.
            for key, item in zip(items[::2], items[1::2], strict=True):
                made[key] = item
        elif isinstance(made, set):
            made.update(items)
        else:
            made.extend(items)
        return made


class Shape(NamedTuple):
    """How the flat inputs of a node become arguments: `positional` by position, then `keywords`.

    Where an argument is a container, `templates` has one template for each argument.
    """

    positional: int
    keywords: tuple[str, ...] = ()
    templates: tuple[Template, ...] | None = None


#: Every function gets its own copy of an array up to this size (bytes). Larger arrays are shared:
#: a thousand calls would make a thousand copies.
LARGE = 64 << 20


#: If the names in a call path have more characters than this, each name is cut.
LONGEST_PATH = 300

#: Types of values that cannot change. Checked by type alone: a list may hold millions of them.
UNCHANGING = frozenset((int, str, float, bool, type(None), bytes, complex))


def is_copied(value: Any) -> bool:
    """Whether a function gets a copy of a value that is written in a call.

    Without the copy, others would see a change that the function makes.
    """
    kind = type(value)
    if kind in UNCHANGING:
        return False
    if kind in (list, dict, set, bytearray, tuple, OrderedDict, defaultdict, Counter, deque):
        return True
    if kind.__module__ == "numpy":
        return kind.__name__ == "ndarray" and bool(value.nbytes <= LARGE)
    return isinstance(value, tuple) and hasattr(kind, "_make")


def copy_containers(value: Any, known: dict[int, Any] | None = None) -> Any:
    """A copy of the containers and arrays that `value` is made of; their other contents are shared.

    A container that occurs twice is one in the copy, too: `known` has the copies by the `id` of the
    originals.
    """
    if not is_copied(value):
        return value
    if known is None:
        known = {}
    elif id(value) in known:
        return known[id(value)]
    kind = type(value)
    inside: Any = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, deque)) else ()
    flat = UNCHANGING.issuperset(map(type, inside))
    made: Any
    if isinstance(value, tuple):
        made = known[id(value)] = value if flat else getattr(kind, "_make", kind)([copy_containers(x, known) for x in value])
        return made
    made = known[id(value)] = copy.copy(value)
    if not flat:
        for place, x in value.items() if isinstance(value, dict) else enumerate(value):
            made[place] = copy_containers(x, known)
    return made


#: A fan has at least this many leaves.
LEAST_FAN = 16


#: Numbers in a row, as columns have them: making them one by one takes longer than copying them.
_rows: dict[tuple[str, int], array[int]] = {}
#: Longer ones are not kept.
_LONGEST_ROW = 1 << 16


def in_a_row(form: str, first: int, count: int, step: int = 1) -> array[int]:
    """The numbers `first`, `first + step`, …, as an array of this type code; step is 1, 0 or -1."""
    if not step:
        return array(form, (first,)) * count
    low = first if step > 0 else ~first
    if low < 0 or low + count > _LONGEST_ROW:
        return array(form, range(first, first + step * count, step))
    row = _rows.get((form, step))
    if row is None or len(row) < low + count:
        size = min(_LONGEST_ROW, max(1024, 2 * (low + count)))
        row = _rows[form, step] = array(form, range(size) if step > 0 else range(-1, ~size, -1))
    return row[low : low + count]


def smallest_array(numbers: list[int]) -> array[int] | None:
    """These numbers as an array of few bytes; None if some have more than 64 bits, or if there are
    none."""
    for form in "hiq" if numbers else "":
        try:
            return array(form, numbers)
        except OverflowError:
            continue
    return None


def _climbing(numbers: array[int], at: int, most: int) -> int:
    """How many of these numbers, from that place on, are each one more than the one before."""
    if most <= 1:
        return most
    first = numbers[at]
    if numbers[at : at + most] == in_a_row("q", first, most):
        return most
    length = 1
    while length < most and numbers[at + length] == first + length:
        length += 1
    return length


def rebuild(template: Template, flat: Iterator[Any]) -> Any:
    """One argument, made of as many flat inputs as its template needs."""
    if template is None:
        return next(flat)
    if template == COPY:
        return copy_containers(next(flat))
    kind, parts = template
    items = [rebuild(part, flat) for part in parts]
    if isinstance(kind, Like):
        return kind.filled(items)
    if kind is dict:
        return dict(zip(items[::2], items[1::2], strict=True))
    make = getattr(kind, "_make", kind)  # a namedtuple is made by _make
    return make(items)


def _width(template: Template) -> int:
    """How many flat inputs a template needs."""
    return 1 if template is None or template == COPY else sum(map(_width, template[1]))


def _packed(column: array[int], guess: int) -> tuple[Any, ...]:
    """A column as it is pickled: numbers in a row at its beginning, then the others as bytes.

    `guess` is where the first row may end; a second one may reach to the end.
    """
    rows = []
    at = 0
    for length in (guess, len(column) - guess):
        if not LEAST_FAN <= length <= len(column) - at:
            break
        step = column[at + 1] - column[at]
        if step not in (1, 0, -1) or column[at : at + length] != in_a_row(column.typecode, column[at], length, step):
            break
        rows.append((column[at], length, step))
        at += length
    return column.typecode, rows, column[at:].tobytes()


def _unpacked(form: str, rows: list[tuple[int, int, int]], rest: bytes) -> array[int]:
    column = array(form)
    for row in rows:
        column += in_a_row(form, *row)
    column.frombytes(rest)
    return column


_COLUMNS = ("body_of", "shape_of", "starts", "inputs", "stage_of", "pending", "consumers", "consumer_starts")


class Flow:
    """What can be run: `n` nodes as flat arrays.

    Takes, for each node in order: `body_of` and `shape_of` (indexes into `bodies` and `shapes`),
    and its slice of `inputs` (`starts` has n + 1 offsets). An input `x >= 0` is the value of node
    x; an input `x < 0` is `constants[~x]`. Nodes `0 … leaves-1` take no other node, and processes
    run them. Derives the consumers of each node (`consumers`, `consumer_starts`), how many inputs
    are pending, and the sinks.
    """

    def __init__(
        self,
        bodies: Sequence[Body],
        shapes: Sequence[Shape],
        body_of: array[int],
        shape_of: array[int],
        starts: array[int],
        inputs: array[int],
        constants: list[Any],
        leaves: int,
    ) -> None:
        self.bodies = list(bodies)
        self.shapes = list(shapes)
        self.body_of = body_of
        self.shape_of = shape_of
        self.starts = starts
        self.inputs = inputs
        self.constants = constants
        self.leaves = leaves
        self.count = len(body_of)
        #: Whether the nodes are sets of rows that are armed again and again (`_run/rearmed.py`).
        self.rearmed = False
        #: Whether the calling thread runs all bodies (`_worker/inline.py`).
        self.inline = False
        #: For each row of such a flow, its stage (`_run/history.py`); -1 for a source or a gather.
        self.stage_of = array("i")
        #: How many nodes of each group may run at once.
        self.limits: list[int] = []
        #: The names that users have given to calls, by their nodes.
        self.names: dict[int, str] = {}
        #: How many leaves a worker claims at a time; 0: as many as seem best.
        self.chunk = 0
        #: For nodes that take failures as values: the nodes whose failures they take.
        self.accepts: dict[int, frozenset[int]] = {}
        #: For each node whether the run goes on if it fails; None: for none it does.
        self.guarded: bytearray | None = None
        #: Ranges of leaves with one body and one consumer, all of plain arguments: the first leaf,
        #: and the one after the last.
        self.fans: list[tuple[int, int]] = []
        #: For each fan, the index of its first constant, if its leaves take constants in a row;
        #: else -1.
        self.fan_constants: list[int] = []
        #: The constants as an array, where that is known to be the same: it travels for less.
        self.constants_in_short: array[int] | None = None
        #: The nodes whose outcomes the caller takes as soon as they are there, besides the end.
        self.kept: frozenset[int] = frozenset()
        #: For the flow of one call alone: the flow of an earlier such call, with which it shares
        #: all but the constants.
        self.plan: Flow | None = None
        #: For the flow of one map alone: that of an earlier one of the same task, with as many
        #: items.
        self.pattern: Flow | None = None
        #: In a durable run, the ledger in which its workers record its nodes (`_depot/ledger.py`).
        self.ledger: Any = None
        #: All pools of its bodies.
        self.pools = sorted({pool for body in self.bodies for pool in body.pools})
        self.pending: array[int]
        self._connect()
        if not self.rearmed:
            self._find_fans()

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled. Columns as bytes: as objects, they take longer than all the rest of a
        small flow."""
        state = self.__dict__.copy()
        state["plan"] = state["pattern"] = None
        if self.constants_in_short is not None:
            state["constants"] = None
        rows = self.fans[0][1] if self.fans and not self.fans[0][0] else 0
        for name in _COLUMNS:
            state[name] = _packed(state[name], self.starts[rows] if name == "inputs" else rows)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in _COLUMNS:
            state[name] = _unpacked(*state[name])
        if state["constants"] is None:
            state["constants"] = state["constants_in_short"]  # as good as a list for those who only read
        self.__dict__.update(state)

    def with_constants(self, constants: list[Any]) -> Flow:
        """This flow, as a plan for others, with these constants."""
        made = copy.copy(self)
        made.constants, made.plan = constants, self
        return made

    def __copy__(self) -> Flow:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def without_constants(self) -> Flow:
        """This flow, without what its bodies are given."""
        made = self.with_constants([])
        made.plan = None
        return made

    def _connect(self) -> None:
        count = self.count
        pending, number = [0] * count, [0] * count
        starts, inputs = self.starts, self.inputs
        froms, tos = array("i"), array("i")
        link_from, link_to = froms.append, tos.append
        #: Nodes that take many in a row: how many links stand before, the first that is taken, how
        #: many, and the node.
        rows: list[tuple[int, int, int, int]] = []
        first = starts[self.leaves] if count else 0
        for node in range(self.leaves, count):
            last = starts[node + 1]
            taken_here: Iterable[int] = inputs[first:last]
            if last - first > 1:
                low = inputs[first]
                if last - first >= LEAST_FAN and low >= 0 and taken_here == in_a_row("q", low, last - first):
                    high = low + last - first
                    rows.append((len(froms), low, last - first, node))
                    pending[node] = last - first
                    first_takers = not froms and len(rows) == 1
                    if first_takers or not any(number[low:high]):
                        number[low:high] = [1] * (last - first)
                    else:
                        number[low:high] = [takers + 1 for takers in number[low:high]]
                    first = last
                    continue
                taken_here = set(taken_here)
            first = last
            for taken in taken_here:
                if taken >= 0:
                    pending[node] += 1
                    number[taken] += 1
                    link_from(taken)
                    link_to(node)
        # The first nodes often have one consumer each.
        single = rows[0][2] if rows and not rows[0][1] else 0
        if single and (froms or len(rows) > 1) and number[:single] != [1] * single:
            single = 0
        offsets = in_a_row("i", 0, single)
        offsets.extend(accumulate(number[single:] if single else number, initial=single))
        consumers = array("i", bytes(4 * offsets[count]))
        cursor: list[int] | None = None
        done = 0
        for at, low, length, node in (*rows, (len(froms), 0, 0, -1)):
            if done < at:
                cursor = cursor or offsets.tolist()
                for taken, taker in zip(froms[done:at] if rows else froms, tos[done:at] if rows else tos, strict=True):
                    consumers[cursor[taken]] = taker
                    cursor[taken] += 1
                done = at
            if offsets[low + length] - offsets[low] == length:  # each has a consumer, so it is this one
                consumers[offsets[low] : offsets[low + length]] = in_a_row("i", node, length, 0)
                continue
            cursor = cursor or offsets.tolist()
            for taken in range(low, low + length):
                consumers[cursor[taken]] = node
                cursor[taken] += 1
        self.pending = in_a_row("i", 0, self.leaves, 0)  # which take no other node
        self.pending.extend(pending[self.leaves :])
        self.consumers = consumers
        self.consumer_starts = offsets
        self.sinks = [node for node, takers in enumerate(number[single:] if single else number, single) if not takers]

    def _find_fans(self) -> None:
        """Find the fans below nodes that take many leaves, in the order in which they stand."""
        starts, inputs, consumers = self.starts, self.inputs, self.consumer_starts
        found: list[tuple[tuple[int, int], int]] = []
        for node in range(self.leaves, self.count):
            if starts[node + 1] - starts[node] < LEAST_FAN:
                continue
            taken = inputs[starts[node] : starts[node + 1]]
            at = 0
            while at < len(taken):
                first = taken[at]
                most = min(len(taken) - at, self.leaves - first) if first >= 0 else 0
                length = _climbing(taken, at, most)
                while length >= LEAST_FAN:
                    part = self._alike(first, length)
                    shape = self.shapes[self.shape_of[first]]
                    plain = shape.templates is None and not shape.keywords
                    # Each has this consumer; so if there are as many as leaves, none has another.
                    if plain and part >= LEAST_FAN and consumers[first + part] - consumers[first] == part:
                        found.append(((first, first + part), self._first_constant(first, first + part)))
                    first, at, length = first + part, at + part, length - part
                at += max(1, length)
        found.sort()
        self.fans, self.fan_constants = [fan for fan, _ in found], [constant for _, constant in found]

    def _first_constant(self, first: int, last: int) -> int:
        """The index of the first constant of these leaves, if they take constants in a row."""
        taken = self.inputs[self.starts[first] : self.starts[last]]
        return ~taken[0] if taken and taken[0] < 0 and taken == in_a_row("q", taken[0], len(taken), -1) else -1

    def _alike(self, first: int, most: int) -> int:
        """How many leaves from `first` on, at most `most`, have its body and its shape."""
        body, shape = self.body_of[first], self.shape_of[first]
        bodies, shapes = self.body_of, self.shape_of
        alike, step = 1, LEAST_FAN
        while alike < most:
            # Pieces that grow: many short fans must not each look at all that follows.
            at, end = first + alike, first + min(alike + step, most)
            if bodies[at:end] != in_a_row("i", body, end - at, 0) or shapes[at:end] != in_a_row("i", shape, end - at, 0):
                return next(leaf for leaf in range(at, end) if bodies[leaf] != body or shapes[leaf] != shape) - first
            alike, step = end - first, 2 * step
        return most

    def accept(self, accepts: dict[int, frozenset[int]], sinks: bool = False) -> None:
        """Let these nodes take the failures of those nodes as values.

        A failure ends the run if some path from it to a sink meets no node that takes it; with
        `sinks`, the caller takes those of the sinks.
        """
        self.accepts = accepts
        self.guarded = guarded = bytearray(self.count)
        none: frozenset[int] = frozenset()
        for node in range(self.count - 1, -1, -1):  # a node stands before those that take it
            takers = self.takers(node)
            guarded[node] = (sinks or len(takers) > 0) and all(guarded[taker] or node in accepts.get(taker, none) for taker in takers)

    def bodies_used(self) -> set[int]:
        """The bodies that nodes have, as indexes."""
        return set(self._once_a_fan(self.body_of))

    def pairs(self) -> set[tuple[int, int]]:
        """The pairs of a body and a shape that nodes have."""
        return set(zip(self._once_a_fan(self.body_of), self._once_a_fan(self.shape_of), strict=True))

    def _once_a_fan(self, column: array[int]) -> array[int]:
        """A column in which each fan, whose leaves are alike in it, has one entry."""
        if len(self.fans) > 100:
            return column
        found, at = array(column.typecode), 0
        for first, last in self.fans:
            found += column[at : first + 1]
            at = last
        return found + column[at:]

    def takers(self, node: int) -> array[int]:
        """The nodes that take the value of `node`, each once."""
        return self.consumers[self.consumer_starts[node] : self.consumer_starts[node + 1]]

    def sources(self, node: int) -> list[int]:
        """The nodes whose values `node` takes, each once, in the order of its parameters."""
        taken = self.inputs[self.starts[node] : self.starts[node + 1]]
        return list(dict.fromkeys(x for x in taken if x >= 0))

    def behind(self, node: int) -> set[int]:
        """All nodes that `node` depends on, also through others."""
        seen: set[int] = set()
        waiting = self.sources(node)
        while waiting:
            source = waiting.pop()
            if source not in seen:
                seen.add(source)
                waiting += self.sources(source)
        return seen

    def body(self, node: int) -> Body:
        """The body of a node."""
        return self.bodies[self.body_of[node]]

    def name(self, node: int) -> str:
        """The name of a node: the one that its call was given, else its task's."""
        return self.names.get(node) or self.body(node).name

    def way_to(self, node: int) -> list[int]:
        """The nodes from a sink down to `node`, each taken by the one before it."""
        way = [node]
        for _ in range(self.count):
            takers = self.takers(way[-1])
            if not takers:
                break
            way.append(takers[0])
        way.reverse()
        return way

    def path(self, node: int) -> str:
        """The call path from a sink down to `node`, as `add → subtract → five`.

        Of a very long path, the middle is left out.
        """
        names = [self.name(at) for at in self.way_to(node)]
        if len(names) > 24:
            names = [*names[:8], f"… {len(names) - 20} more …", *names[-12:]]
        if sum(map(len, names)) > LONGEST_PATH:
            most = max(LONGEST_PATH // len(names), 8)
            names = [name if len(name) <= most else f"{name[: most - 1]}…" for name in names]
        return " → ".join(names)

    def keyword_arguments(self, node: int, value: Callable[[int], Any]) -> dict[str, Any]:
        """The keyword arguments of `node` alone, as `arguments` gives them."""
        shape = self.shapes[self.shape_of[node]]
        if not shape.keywords:
            return {}
        templates = shape.templates
        skipped = shape.positional if templates is None else sum(map(_width, templates[: shape.positional]))
        taken = self.inputs[self.starts[node] + skipped : self.starts[node + 1]]
        flat = [self.constants[~x] if x < 0 else value(x) for x in taken]
        if templates is not None:
            source = iter(flat)
            flat = [rebuild(template, source) for template in templates[shape.positional :]]
        return dict(zip(shape.keywords, flat, strict=True))

    def arguments(self, node: int, value: Callable[[int], Any]) -> tuple[list[Any], dict[str, Any]]:
        """The positional and keyword arguments of `node`; `value` gives its inputs' values."""
        constants = self.constants
        taken = self.inputs[self.starts[node] : self.starts[node + 1]]
        flat = [constants[~x] if x < 0 else value(x) for x in taken]
        shape = self.shapes[self.shape_of[node]]
        if shape.templates is not None:
            source = iter(flat)
            flat = [rebuild(template, source) for template in shape.templates]
        if shape.keywords:
            return flat[: shape.positional], dict(zip(shape.keywords, flat[shape.positional :], strict=True))
        return flat, {}
