"""The graph of a dataflow as data: nodes, and their children. Nothing here runs anything.

The children of a node are what stands in its parentheses. `plan.py` compiles a graph; `node.py` has
`Node`, which users hold and push values into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, NoReturn, TypeVar

from entangle import _tasks
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge, passes_on
from entangle.errors import ArgumentError, OptionError
from entangle.flow import AWAY, HERE, PROCESS, THREAD
from entangle.task import Call, Layer, Task

#: What a node takes, and the tuple of what the leaves below it give.
In_contra = TypeVar("In_contra", contravariant=True)
Leaves_co = TypeVar("Leaves_co", bound=tuple[Any, ...], covariant=True)

_CARRIERS = {"thread": THREAD, "process": PROCESS}

#: Called in the invoking process with the function of a node and a value that it gave.
Callback = Callable[[Any, Any], object]


class Dataflow(Layer):
    """The layer of @dataflow: what runs the function, how often at once, who is called back."""

    def __init__(self, callback: Callback | None, executor: str | None, maxworkers: int | None) -> None:
        if callback is not None and not callable(callback):
            raise OptionError(f"@dataflow: callback={value_in_short(callback)}; it is a function of a node's function and its value")
        if executor is not None and not (isinstance(executor, str) and executor in _CARRIERS):
            raise OptionError(f"@dataflow: executor={value_in_short(executor)}; choose 'thread' or 'process'")
        if maxworkers is not None and (isinstance(maxworkers, bool) or not isinstance(maxworkers, int) or maxworkers < 1):
            raise OptionError(f"@dataflow: maxworkers={value_in_short(maxworkers)}; it is a whole number, 1 or above, or None for no limit")
        self.callback = callback
        self.executor = executor
        self.maxworkers = maxworkers

    def __reduce__(self) -> Any:
        # Without the callback: it need not be picklable, since a worker process never calls it.
        return Dataflow, (None, self.executor, self.maxworkers)

    def terms(self) -> dict[str, Any]:
        """The carrier of the function, if `executor` says it."""
        return {} if self.executor is None else {"carrier": _CARRIERS[self.executor]}


class GraphNode(Generic[In_contra, Leaves_co]):
    """A node or a window, with its children. Immutable, so there are no cycles."""

    __slots__ = ("__weakref__", "children")

    children: tuple[Any, ...]

    @edge
    @passes_on
    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a node cannot be changed ({name!r}); build another one")

    __name__: str

    def _repr_html_(self) -> str:
        """The graph drawn, where a cell of a notebook ends with this node."""
        return _tasks.drawings().html_of_nodes(*_names_and_links(self))


class FunctionNode(GraphNode[In_contra, Leaves_co]):
    """A task of a dataflow with its children."""

    __slots__ = ("compiled", "task")

    task: Task[..., Any]
    #: The `Plan` of this node, once it has been compiled.
    compiled: Any

    def __init__(self, task: Task[..., Any], children: tuple[Any, ...]) -> None:
        for name, value in (("task", task), ("children", children), ("compiled", None)):
            object.__setattr__(self, name, value)

    @property
    def __name__(self) -> str:  # type: ignore[override]
        name: str = self.task.__name__
        return name

    def __repr__(self) -> str:
        return f"<node {self.task.__name__}({', '.join(_name(child) for child in self.children)})>"

    @property
    def dataflow(self) -> Dataflow:
        """The layer of @dataflow, the outermost if there are several."""
        return next(layer for layer in self.task.layers if isinstance(layer, Dataflow))

    @property
    def carrier(self) -> int:
        """What runs the function: PROCESS, THREAD or FRESH of `entangle.flow`."""
        carrier = self.task.body.carrier
        return THREAD if carrier in (HERE, AWAY) else carrier


def check_children(name: str, children: Iterable[Any]) -> tuple[Any, ...]:
    """Check nodes, windows and lambdas, and flatten lists of them. Raises ArgumentError."""
    found: list[Any] = []
    for child in children:
        if isinstance(child, (list, tuple)):
            found += check_children(name, child)
        elif isinstance(child, GraphNode):
            found.append(child)
        elif isinstance(child, Task):
            raise ArgumentError(f"{child.__name__} in {name}(…) is a task, not a node; write {child.__name__}()")
        elif isinstance(child, Call):
            raise ArgumentError(
                f"{child.task.__name__}(…) in {name}(…) is a call of a workflow; decorate {child.task.__name__} with @dataflow as well"
            )
        elif callable(child):
            found.append(child)
        else:
            raise ArgumentError(f"{name}(…) takes nodes and lambdas that choose nodes, not {type(child).__name__}: {value_in_short(child)}")
    return tuple(found)


def _name(child: Any) -> str:
    return str(getattr(child, "__name__", type(child).__name__))


def _names_and_links(root: GraphNode[Any, Any]) -> tuple[list[str], list[tuple[int, int]]]:
    """The nodes and lambdas of a graph, each once, by name; and which gives its value to which."""
    numbers: dict[int, int] = {}
    names: list[str] = []
    links: list[tuple[int, int]] = []
    stack: list[tuple[Any, int]] = [(root, -1)]
    while stack:
        node, parent = stack.pop()
        known = id(node) in numbers
        number = numbers.setdefault(id(node), len(names))
        if parent >= 0:
            links.append((parent, number))
        if not known:
            names.append(_name(node))
            stack += [(child, number) for child in reversed(node.children)] if isinstance(node, GraphNode) else []
    return names, links


def as_dict(root: Any) -> dict[str, Any]:
    """The graph of a node as nested dicts.

    Built from the leaves up: nesting may be deeper than Python's recursion limit.
    """
    built: dict[int, dict[str, Any]] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        children = node.children if isinstance(node, GraphNode) else ()
        missing = [child for child in children if id(child) not in built]
        if missing:
            stack += reversed(missing)
            continue
        stack.pop()
        parts = [built[id(child)] for child in children]
        merged = {name: below for part in parts for name, below in part.items()}
        built[id(node)] = {_name(node): [] if not parts else merged if len(merged) == len(parts) else parts}
    return built[id(root)]
