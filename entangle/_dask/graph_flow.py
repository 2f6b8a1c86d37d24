"""Compiles a graph of dask to a Flow.

A task of the graph is a node whose body is the task's own function, and which takes the values of
other nodes: workers need nothing of dask to run it. Data of the graph are constants. An alias is
another key of the same node.
"""

from __future__ import annotations

import functools
import operator
import pickle
from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from entangle._shared.pickling import dumps_for_others
from entangle._shared.tracebacks import passes_on
from entangle._tasks.parameters import positional_names
from entangle.errors import CycleError
from entangle.flow import HERE, PROCESS, THREAD, UNCHANGING, Body, Flow, Shape, Template


class GraphFlow:
    """The flow of a graph, and where its keys are.

    `places` maps a key to the node that gives its value, or to `~index` of a constant; `key_of` has
    the key of the task of each node, or DATA. A flow of several keys has one more node, which takes
    their values. `flow` is None where all keys that are wanted are data. `by_fork` says that
    workers must be forked: only so do they have the large arrays of this process.
    """

    def __init__(
        self, flow: Flow | None, places: dict[Hashable, int], key_of: list[Hashable], constants: list[Any], by_fork: bool = False
    ) -> None:
        self.flow = flow
        self.places = places
        self.key_of = key_of
        self.constants = constants
        self.by_fork = by_fork


#: The key of a node that gives an array of this process to workers.
DATA = object()
#: Arrays of at least this many bytes go to workers through the store, or by fork: pickled with the
#: flow, each worker would have a copy.
_LARGE = 1 << 20
#: If the large arrays have this many bytes together, workers are forked: they inherit the arrays at
#: no cost. Where a fork is not safe, threads of this process cut chunks out of them, as those of
#: dask's `threads` do.
MUCH = 64 << 20


def compile_graph(graph: Mapping[Hashable, Any], keys: Sequence[Hashable], forks: Callable[[int], bool]) -> GraphFlow:
    """The flow that gives the values of these keys: the value of one, a tuple of several.

    `graph` has nodes of dask by their keys. What the keys do not need is left out. Raises KeyError
    for a key that the graph does not have, ValueError where a task needs one, CycleError for a
    cycle.
    """
    return _Compiler(graph).compile(keys, forks)


class _Nested(Exception):
    """Raised for an argument that holds another task, which then runs in the body of the outer
    task."""


class _TaskBody(Body):
    """The body of a task: its function. Errors show it with the names of its parameters."""

    def parameters(self) -> tuple[list[str], str | None]:
        """The parameters of the function, if they are known."""
        return positional_names(self.function)


class _Compiler:
    def __init__(self, graph: Mapping[Hashable, Any]) -> None:
        from dask import _task_spec as spec
        from dask.utils import funcname, key_split

        self.graph = graph
        self.reference, self.node_kind, self.alias, self.data = spec.TaskRef, spec.GraphNode, spec.Alias, spec.DataNode
        self.containers = {spec.List: list, spec.Tuple: tuple, spec.Set: set, spec.Dict: dict}
        self.cast, self.subgraph = spec._identity_cast, spec._execute_subgraph
        self.task_kind, self.usual_call = spec.Task, spec.Task.__call__
        self.key_split, self.name_of = key_split, funcname
        #: For each key met, an index of `nodes`, or ~index of a constant; None while its inputs are
        #: being visited.
        self.places: dict[Hashable, int | None] = {}
        self.nodes: list[tuple[int, int, list[int]]] = []  # body, shape, inputs
        self.key_of: list[Hashable] = []
        self.constants: list[Any] = []
        #: The places of the large arrays among the constants.
        self.large: list[int] = []
        #: The bytes of arrays in tasks that dask has fused with them, by key.
        self.held: dict[Hashable, int] = {}
        self.bodies: list[Body] = []
        self.body_numbers: dict[tuple[int, str, int], int] = {}
        self.shapes: dict[tuple[int, tuple[str, ...], tuple[Template, ...] | None], int] = {}
        self.prefixes: dict[Hashable, str] = {}

    @passes_on
    def compile(self, keys: Sequence[Hashable], forks: Callable[[int], bool]) -> GraphFlow:
        for key in keys:
            if key not in self.graph:
                raise KeyError(key)
        self._visit(keys)
        size = sum(self.constants[~place].nbytes for place in self.large) + sum(self.held.values())
        by_fork = size >= _LARGE and forks(size)
        if size >= MUCH and not by_fork:
            self._read_here()
        data = self._add_data() if self.large and not by_fork else []
        in_workers = [body.carrier == PROCESS for body in self.bodies]
        leaves = [number for number, (body, _, inputs) in enumerate(self.nodes) if in_workers[body] and max(inputs, default=-1) < 0]
        wanted = [self._place(key) for key in keys]
        several = len(wanted) > 1
        if several:
            self.nodes.append((len(self.bodies), self.shapes.setdefault((len(wanted), (), None), len(self.shapes)), wanted))
            self.bodies.append(_COMPUTE)
        final = [-1] * len(self.nodes)
        for at, number in enumerate((*leaves, *data)):
            final[number] = at
        order = [*leaves, *data, *(number for number, at in enumerate(final) if at < 0)]
        for at, number in enumerate(order):
            final[number] = at
        places = {key: final[place] if place >= 0 else place for key, place in self.places.items() if place is not None}
        key_of = [self.key_of[number] for number in order[: len(self.key_of)]]
        starts, inputs = array("q", [0]), array("q")
        for number in order:
            inputs.extend([final[x] if x >= 0 else x for x in self.nodes[number][2]])
            starts.append(len(inputs))
        if max(wanted, default=-1) < 0:
            return GraphFlow(None, places, [], self.constants)
        shapes = [Shape(*shape) for shape in self.shapes]
        body_of = array("i", [self.nodes[number][0] for number in order])
        shape_of = array("i", [self.nodes[number][1] for number in order])
        flow = Flow(self.bodies, shapes, body_of, shape_of, starts, inputs, self.constants, len(leaves))
        flow.names = {node: str(key) for node, key in enumerate(key_of) if key is not DATA}
        return GraphFlow(flow, places, key_of, self.constants, by_fork)

    def _read_here(self) -> None:
        """Make tasks that cut chunks out of large arrays run in threads of this process."""
        large, here = set(self.large), dict[int, int]()
        for at, (number, shape, inputs) in enumerate(self.nodes):
            body = self.bodies[number]
            if body.carrier != PROCESS or (large.isdisjoint(inputs) and self.key_of[at] not in self.held):
                continue
            module, name = getattr(body.function, "__module__", ""), getattr(body.function, "__name__", "")
            if body.function in (operator.getitem, self.subgraph) or (module == "dask.array.core" and name.startswith("getter")):
                if number not in here:
                    here[number] = len(self.bodies)
                    self.bodies.append(_TaskBody(body.function, body.name, THREAD))
                self.nodes[at] = (here[number], shape, inputs)

    def _add_data(self) -> list[int]:
        """Give large arrays nodes of their own, which put them into the store for workers; gives
        the nodes."""
        takers = [inputs for body, _, inputs in self.nodes if self.bodies[body].carrier == PROCESS]
        taken = set().union(*takers)
        node_of = {place: len(self.nodes) + at for at, place in enumerate(place for place in self.large if place in taken)}
        for inputs in takers if node_of else ():
            inputs[:] = [node_of.get(place, place) for place in inputs]
        for place in node_of:
            self.nodes.append((len(self.bodies), self._shape(1, (), None), [place]))
            self.key_of.append(DATA)
        if node_of:
            self.bodies.append(_DATA)
        return list(node_of.values())

    def _place(self, key: Hashable) -> int:
        place = self.places[key]
        assert place is not None
        return place

    @passes_on
    def _visit(self, keys: Sequence[Hashable]) -> None:
        """Place the tasks that the keys need, each after what it takes."""
        places, graph, reference = self.places, self.graph, self.reference
        stack: list[tuple[Hashable, Any]] = [(key, None) for key in reversed(keys)]
        while stack:
            key, plan = stack.pop()
            if plan is None:
                if key in places:
                    continue
                task = graph[key]
                if type(task) is self.data:
                    places[key] = self._constant(task.value)
                    continue
                if not task.dependencies and isinstance(task, self.task_kind) and self._is_owner(task):
                    places[key] = self._constant(pickle.loads(dumps_for_others(task))())
                    continue
                plan = (None, None, [reference(task.target)]) if type(task) is self.alias else self._plan(key, task)
                places[key] = None
                stack.append((key, plan))
                for part in reversed(plan[2]):
                    if type(part) is reference:
                        taken = part.key
                        if taken not in places:
                            if taken not in graph:
                                raise ValueError(f"task {key!r} takes the value of {taken!r}, which is not in the graph")
                            stack.append((taken, None))
                        elif places[taken] is None:
                            raise CycleError(f"the graph has a cycle: task {taken!r} takes, through {key!r}, its own value")
                continue
            body, shape, flat = plan
            inputs = [self._place(part.key) if type(part) is reference else self._constant(part) for part in flat]
            if body is None:
                places[key] = inputs[0]
                continue
            places[key] = len(self.nodes)
            self.nodes.append((body, shape, inputs))
            self.key_of.append(key)

    def _constant(self, value: Any) -> int:
        self.constants.append(value)
        if _size(value) >= _LARGE:
            self.large.append(-len(self.constants))
        return -len(self.constants)

    def _plan(self, key: Hashable, task: Any) -> tuple[int, int, list[Any]]:
        """The body and the shape of a task, and its flat inputs: references and constants."""
        flat: list[Any] = []
        carrier = THREAD if isinstance(task, self.task_kind) and self._stays(task) else PROCESS
        if type(task).__call__ is self.usual_call:
            function, args, kwargs = task.func, task.args, task.kwargs
            if function is self.subgraph and (size := self._size_inside(args[0])):
                self.held[key] = size
            try:
                templates = tuple([self._flatten(argument, flat) for argument in (*args, *kwargs.values())])
            except _Nested:
                pass
            else:
                plain = templates.count(None) == len(templates)
                return self._body(key, function, carrier), self._shape(len(args), tuple(kwargs), None if plain else templates), flat
        taken = tuple(task.dependencies)
        flat = [task, taken, *map(self.reference, taken)]
        return self._body(key, _evaluate, carrier), self._shape(len(flat), (), None), flat

    def _stays(self, task: Any) -> bool:
        """Whether a task must run in a thread of this process: it takes a lock, which excludes
        nothing in other processes, or it stores into an object of this process."""
        function = task.func
        if getattr(function, "__name__", "") in _STORING and function.__module__ == "dask.array.core":
            return True
        for part in (*task.args, *task.kwargs.values()):
            kind = type(part)
            if kind in UNCHANGING or kind is self.reference:
                continue
            inner = part.values() if kind is dict and function is self.subgraph else (part,)
            if any(self._stays(one) for one in inner if isinstance(one, self.task_kind)):
                return True
            if hasattr(kind, "acquire") and hasattr(kind, "release"):
                return True
        return False

    def _size_inside(self, inner: dict[Hashable, Any]) -> int:
        """The bytes of the arrays in the tasks that dask has fused into one."""
        size = 0
        for task in inner.values():
            if isinstance(task, self.data):
                size += _size(task.value)
            elif isinstance(task, self.task_kind):
                size += sum(map(_size, task.args))
        return size

    def _is_owner(self, task: Any) -> bool:
        """Whether a task makes files of partd, on which bags and dataframes shuffle.

        The files are removed together with the object that made them. A worker would drop that
        object at its end. So this process makes them, and they stay as long as the graph.
        """
        function = task.func
        while isinstance(function, functools.partial):
            function = function.func
        home = getattr(function, "__module__", None) or ""
        if home.partition(".")[0] == "partd" or type(function).__name__ == "maybe_buffered_partd":
            return True
        return any(isinstance(part, self.task_kind) and self._is_owner(part) for part in task.args)

    def _flatten(self, argument: Any, flat: list[Any]) -> Template:
        """Append the references and constants of an argument to `flat`; gives its template."""
        kind = type(argument)
        if kind in UNCHANGING or not isinstance(argument, (self.reference, self.node_kind)):
            flat.append(argument)
            return None
        if isinstance(argument, self.reference):
            flat.append(argument if kind is self.reference else self.reference(argument.key))
            return None
        if kind is self.alias:
            flat.append(self.reference(argument.target))
            return None
        if kind is self.data:
            flat.append(argument.value)
            return None
        container = self.containers.get(kind)
        if container is None and kind.__call__ is self.usual_call and argument.func is self.cast:
            container = argument.kwargs["typ"]
            container = container if container in (list, tuple, set, frozenset) else None
        if container is None:
            raise _Nested
        parts: list[Any] = []
        templates = tuple([self._flatten(part, parts) for part in argument.args])
        if not any(type(part) is self.reference for part in parts):
            flat.append(argument())
            return None
        flat += parts
        return (container, templates)

    def _shape(self, positional: int, keywords: tuple[str, ...], templates: tuple[Template, ...] | None) -> int:
        return self.shapes.setdefault((positional, keywords, templates), len(self.shapes))

    def _body(self, key: Hashable, function: Any, carrier: int) -> int:
        """The number of the body of a task. Tasks of one function and one kind of key share it:
        progress counts them together, and admission learns what they take."""
        first = key[0] if type(key) is tuple and key else key
        prefix = self.prefixes.get(first)
        if prefix is None:
            prefix = str(self.key_split(first))
            # A key without a hash or a number at its end is the user's own, and names one task.
            prefix = self.prefixes[first] = "" if prefix == first and type(key) is not tuple else prefix
        found = self.body_numbers.get((id(function), prefix, carrier))
        if found is None:
            found = self.body_numbers[id(function), prefix, carrier] = len(self.bodies)
            self.bodies.append(_TaskBody(function, prefix or self.name_of(function), carrier))
        return found


def _size(value: Any) -> int:
    """The bytes of an array of numpy; 0 for anything else."""
    return int(value.nbytes) if type(value).__module__ == "numpy" and hasattr(value, "nbytes") else 0


#: Functions of dask.array that write into the target of `store`.
_STORING = frozenset(("load_store_chunk", "store_chunk"))


def _evaluate(task: Any, taken: tuple[Hashable, ...], *values: Any) -> Any:
    """Run a task that has other tasks in its arguments, as dask does."""
    return task(dict(zip(taken, values, strict=True)))


def _compute(*values: Any) -> tuple[Any, ...]:
    """The values of several keys."""
    return values


def _data(array: Any) -> Any:
    """An array of this process."""
    return array


_compute.of_entangle = _data.of_entangle = True  # type: ignore[attr-defined]
_COMPUTE = Body(_compute, "compute", HERE)
_DATA = Body(_data, "data", THREAD)
