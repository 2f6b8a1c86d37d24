"""Tasks, layers and calls.

A *task* is a function with a stack of *layers*, one for each decorator. Calling a task gives a
*call*, which remembers the task and its arguments. Arguments may be calls, also inside lists,
tuples, dicts and sets. Calling the call runs the graph.

A new way or place to run is a small class::

    class Loud(Layer):
        def run(self, inner, args, kwargs):
            print("before")
            return inner(*args, **kwargs)

    def loud(function):
        return task(function, Loud())
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import pickle
import sys
import types
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar, overload

from entangle import _tasks
from entangle._shared.pickling import MAIN, by_value, otherwise, travels_by_value
from entangle._shared.tracebacks import edge, hide, passes_on
from entangle._tasks import OnError, Values, tree
from entangle._tasks.attributes import Attributes
from entangle._tasks.call import Call, Gathered, MappedCalls, Start, in_short
from entangle._tasks.door import named_as_its_decorator
from entangle._tasks.layer import Decorated, Layer
from entangle._tasks.option_values import check_whether
from entangle._tasks.parameters import (
    fitting,
    in_its_order,
    positional_names,
    signature_in_short,
    still_open,
    takes_keyword,
    without_injected,
)
from entangle._tasks.resolving import resolved, resolving
from entangle._tasks.tree import compile_call
from entangle._tasks.unknown_options import goes_elsewhere, knows_its_options, nearest, of_a_stream, option_of_a_run, refuse_options
from entangle._worker.away import AwayFunction
from entangle.errors import ArgumentError, EntangleError, OptionError
from entangle.flow import AWAY, FRESH, HERE, IN_CALLER, PROCESS, THREAD, Body, Flow
from entangle.pools import Pool, merged

if TYPE_CHECKING:
    from entangle._tasks.task_arguments import NeverFits, Takes1
    from entangle._tasks.task_arguments import TaskArguments as _Arguments
else:
    _Arguments = Generic

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
V = TypeVar("V")
#: An instance of the class in which a task is a method.
Instance = TypeVar("Instance")

Call._compiler = tree


class TaskBody(Body):
    """The body of a task. It is pickled as its task is: by name, if that can be imported."""

    task: Task[..., Any]
    #: Where the outermost layer that does anything remembers values: what looks for them, and what
    #: lies below it.
    remembering: tuple[Layer, Callable[..., Any]] | None
    #: The function itself, where the body does nothing but call it and resolve its value.
    plain: Callable[..., Any] | None

    def __reduce__(self) -> tuple[Any, ...]:
        return _body_of, (self.task,)

    def is_found(self) -> bool:
        """Whether other processes find its task by a name, under which it is here as well."""
        return bool(self.task.is_found())

    def in_parts(self) -> tuple[Callable[..., Any], Callable[[Any], Any]] | None:
        """What it calls, and what makes a value of what that returns."""
        return (self.plain, resolved) if self.plain is not None else None

    def made_of(self) -> list[tuple[str, Any]]:
        """The undecorated function and the layers, which an error can name; not our wrappers."""
        made_of: list[tuple[str, Any]] = self.task.made_of()
        return made_of

    def parameters(self) -> tuple[list[str], str | None]:
        """Those of the undecorated function, without the parameters that layers fill in."""
        names, rest = positional_names(self.task.function)
        injected = {name for layer in self.task.layers for name in layer.injected}
        return [name for name in names if name not in injected], rest


def _body_of(task: Task[..., Any]) -> Body:
    return task.body


class Task(_Arguments[P, R]):
    """A decorated function: the function and its stack of layers, outermost first. Immutable.

    It keeps the function's name, docstring, module and signature. Calling it builds a `Call`;
    nothing runs.
    """

    function: Callable[..., Any]
    #: The function itself, to be called as if it were not decorated.
    __wrapped__: Callable[P, R]
    layers: tuple[Layer, ...]
    __name__: str
    __qualname__: str
    _body: Body | None
    _plans: dict[Any, Flow]
    _fits: Callable[[int, dict[str, Any]], bool] | None

    def __init__(self, function: Callable[P, R], layers: tuple[Layer, ...]) -> None:
        mine = self.__dict__  # bypasses our own __setattr__
        for name in functools.WRAPPER_ASSIGNMENTS:
            with contextlib.suppress(AttributeError):
                mine[name] = getattr(function, name)
        mine.update({name: value for name, value in getattr(function, "__dict__", {}).items() if name not in mine})
        mine["__wrapped__"] = function
        if "__name__" not in mine:  # a functools.partial, an object that can be called
            mine["__name__"] = mine["__qualname__"] = type(function).__name__
        mine.update(function=function, layers=layers, _body=None, _plans={}, _fits=None)

    @edge
    @passes_on
    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a task cannot be changed ({name!r}); decorate the function anew")

    @edge
    @passes_on
    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a task cannot be changed ({name!r}); decorate the function anew")

    if not TYPE_CHECKING:  # checkers see the overloads of TaskArguments

        def __call__(self, /, *args: Any, **kwargs: Any) -> Call[R]:
            """A call of this task with these arguments, each a value or a call.

            Raises ArgumentError if they do not fit the function.
            """
            fits = self._fits or self._learn_parameters()
            if not fits(len(args), kwargs):
                try:
                    self._complain(args, kwargs)
                except ArgumentError as error:
                    hide(error)
                    raise
            return Call(self, args, kwargs)

    # A first parameter that takes anything is no `self`: that is a static method. Nor is one that
    # takes other instances: that is an attribute that holds a task.
    @overload
    def __get__(self: Takes1[NeverFits, Q, V], instance: None, owner: Any = None) -> Task[P, R]: ...
    @overload
    def __get__(self: Takes1[NeverFits, Q, V], instance: object, owner: Any = None) -> Task[..., V]: ...
    @overload
    def __get__(self: Takes1[type[Instance], Q, V], instance: None, owner: type[Instance]) -> Method[Q, V]: ...
    @overload
    def __get__(self: Takes1[type[Instance], Q, V], instance: Instance, owner: Any = None) -> Method[Q, V]: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> Task[P, R]: ...
    @overload
    def __get__(self: Takes1[Instance, Q, V], instance: Instance, owner: Any = None) -> Method[Q, V]: ...
    @overload
    def __get__(self, instance: object, owner: Any = None) -> Task[..., R]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A task in a class is a method: the instance is the first argument of its calls."""
        return self if instance is None else Method(self, instance)

    if not TYPE_CHECKING:  # checkers see the overloads of TaskArguments

        @edge
        @passes_on
        def map(self, xs: Any, /, *more: Any, chunksize: int | None = None, **unknown: Any) -> Call[list[R]]:
            """A call whose value is the list of the values for each item of `xs`.

            With several iterables, the task gets one item of each, until the shortest ends. Each
            item is a node of its own, with its own errors, name, retries and records. An item may
            be a call. `xs` may be a call, too, whose value is iterable: the items are then mapped
            when it is there. `chunksize` is how many items a worker takes at a time, by default as
            many as seem best.

            Raises ArgumentError if `xs` is no iterable, or the items do not fit the function.

                total(square.map(range(10_000)))()
            """
            self._refuse_class_method("map")
            _refuse_keywords(self, "map", unknown)
            chunk = _chunk_of(chunksize)
            columns = (xs, *more)
            if any(isinstance(column, Call) for column in columns):
                return Call(MAP, (self, chunk, *columns), {}, f"{self.__name__}.map")
            for column in columns:
                if not _is_iterable(column):
                    raise ArgumentError(
                        f"{self.__name__}.map takes iterables, not {in_short(column)}; for one value write {self.__name__}(…)"
                    )
            rows = list(zip(*columns)) if more else xs if type(xs) is range else list(xs)  # noqa: B905
            width = len(columns) if more else 0
            fits = self._fits or self._learn_parameters()
            items = MappedCalls.of(self, rows, width) if fits(width or 1, {}) else None
            calls = items or tuple([self(*row) for row in rows] if more else map(self, rows))
            return Gathered(GATHER, calls, f"{self.__name__}.map", False, chunk)

        @edge
        @passes_on
        def starmap(self, pairs: Any, /, *, chunksize: int | None = None, **unknown: Any) -> Call[list[R]]:
            """A call whose value is the list of the values for each tuple of arguments in `pairs`.

            Like `map`, but each item is a tuple of arguments.

                power.starmap([(2, 3), (3, 2)])()
            """
            self._refuse_class_method("starmap")
            _refuse_keywords(self, "starmap", unknown)
            chunk = _chunk_of(chunksize)
            if isinstance(pairs, Call):
                return Call(STARMAP, (self, chunk, pairs), {}, f"{self.__name__}.starmap")
            if not _is_iterable(pairs):
                raise ArgumentError(f"{self.__name__}.starmap takes an iterable of tuples, not {in_short(pairs)}")
            rows: list[Any] = []
            for number, items in enumerate(pairs):
                if not isinstance(items, (tuple, list)):
                    told = f"item {number} is {in_short(items)}; for single arguments write {self.__name__}.map(…)"
                    raise ArgumentError(f"{self.__name__}.starmap takes tuples of arguments; {told}")
                rows.append(items)
            widths = set(map(len, rows))
            width = widths.pop() if len(widths) == 1 else 0
            fits = self._fits or self._learn_parameters()
            plain = MappedCalls.of(self, rows, width) if width and fits(width, {}) else None
            return Gathered(GATHER, plain or tuple([self(*row) for row in rows]), f"{self.__name__}.starmap", False, chunk)

        @knows_its_options("{}.stream", of_a_stream)
        def stream(
            self,
            xs: Iterable[Any] | AsyncIterable[Any],
            /,
            *,
            inflight: int | None = None,
            ordered: bool = True,
            on_error: OnError = "raise",
            start: str | None = None,
        ) -> Values[Any]:
            """The values for each item of `xs`, as they come, several items at a time.

            `xs` is any iterable; it may be endless, or asynchronous. Each item is one argument.
            `inflight` is the most items under way, from `xs` to the loop; None: as many as keep the
            workers busy. `xs` waits while there are so many. `ordered=False` gives values as they
            are done. `on_error` says what happens to an item with which the task fails: "raise"
            ends the stream with the error; "skip" leaves the item out and logs it; a function of
            (task, item, error) is called, and the item left out. The stream ends with `xs`, or when
            the loop is left.

            Raises ArgumentError where `xs` is no iterable or the task does not take one argument.

                for image in shrink.stream(paths): show(image)
            """
            self._refuse_class_method("stream")
            return _tasks.streams().stream_of(self, _tasks.NO_INSTANCE, xs, inflight, ordered, on_error, start)

        @edge
        @passes_on
        def __getattr__(self, name: str) -> NoReturn:
            said = f"{type(self).__name__!r} object has no attribute {name!r}"
            if (written := self._written_here(name)) is not None:
                said += f"; {written}"
            raise AttributeError(said, name=name, obj=self)

        def _written_here(self, name: str) -> str | None:
            """What is written here for a method that tasks have in other libraries."""
            form = _WRITTEN_HERE.get(name)
            return None if form is None else form.format(name=self.__name__, way=name)

    def __repr__(self) -> str:
        layers = " ".join(f"@{type(layer).__name__.lower()}" for layer in self.layers)
        return f"<task {self.__qualname__} {layers}>".replace(" >", ">")

    def __reduce__(self) -> Any:
        """For any pickler: by name, if it has one in a module.

        A task of the script is found by its name in a child of `multiprocessing`, as a function of
        the script is. In a process with another script, and without a name in a module, it is
        built again from its function and layers.
        """
        if self._is_in(self.__module__) and not travels_by_value(self.__module__):
            return _find, (self.__module__, self.__qualname__)
        of_script = self.__module__ in MAIN and self._is_in("__main__")
        try:
            made_of = by_value((type(self), self.function, self.layers))
        except Exception:
            if not of_script:
                raise
            made_of = b""
        return _make_again, (self.__qualname__ if of_script else "", _code_of(self.function), made_of)

    def for_others(self) -> Any:
        """For our own picklers: the receiver has another script, and functions travel by value."""
        if self.is_found():
            return _find, (self.__module__, self.__qualname__)
        return type(self), (self.function, self.layers)

    def is_found(self) -> bool:
        """Whether other processes find it by its name, under which it is here as well."""
        return self._is_in(self.__module__) and not travels_by_value(self.__module__)

    def _is_in(self, module: str | None) -> bool:
        """Whether this module has the task under its name."""
        return _looked_up(module, self.__qualname__) is self

    def _refuse_class_method(self, way: str) -> None:
        """Raise ArgumentError for a class method: `way` would take an item for its class.

        Up to Python 3.12 a class method of a task is a `Method`, which knows the class. Since 3.13
        it is Python's own, and asks the task for all but a call.
        """
        owner, _, name = self.__qualname__.rpartition(".")
        if not owner or _BINDS_CLASSES:
            return
        found = _looked_up(self.__module__, owner)
        kept = vars(found).get(name) if isinstance(found, type) else None
        if isinstance(kept, classmethod) and kept.__func__ is self:
            raise ArgumentError(
                f"{self.__qualname__} is a class method, and Python does not tell its `{way}` of which class; "
                f"write gather(*[{self.__qualname__}(x) for x in xs])"
            )

    def __copy__(self) -> Task[P, R]:
        return self

    def __deepcopy__(self, _: Any) -> Task[P, R]:
        return self  # as functions are

    @property
    def body(self) -> Body:
        """What the engine runs: the layers around the function, and the terms that they set."""
        body = self._body
        if body is None:
            body = self.__dict__["_body"] = _make_body(self)
        return body

    def made_of(self) -> list[tuple[str, Any]]:
        """The parts of a task that is not sent by name, each after its name for errors."""
        layers = [(f"the layer @{type(layer).__name__.lower()}", layer) for layer in self.layers]
        return [("the function", self.function), *layers]

    def _learn_parameters(self) -> Callable[[int, dict[str, Any]], bool]:
        fits = self.__dict__["_fits"] = fitting(self)
        return fits

    def _complain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        import inspect

        signature = inspect.signature(self.function)
        taken = without_injected(signature, self.layers)
        told = f"{self.__name__}{signature_in_short(signature)}"
        for keyword, value in kwargs.items():  # first: a misspelt argument is a missing one, too
            if not takes_keyword(self, keyword):
                open_ones = still_open(taken, len(args), kwargs)
                meant = nearest(keyword, open_ones) or (open_ones[0] if len(open_ones) == 1 and len(kwargs) == 1 else "")
                hint = goes_elsewhere(keyword, value) or (f"did you mean {meant!r}?" if meant else "")
                raise ArgumentError(f"{told}: got an unexpected keyword argument {keyword!r}{hint and '; ' + hint}")
        try:
            taken.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{told}: {error}") from None
        raise AssertionError(f"{self.__name__}{signature} takes what it refused")


otherwise(Task, lambda task: task.for_others())


class Method(_Arguments[P, R]):
    """A task in a class, of one instance: its calls have the instance as their first argument."""

    __slots__ = ("__func__", "__self__", "__weakref__")

    __func__: Task[..., R]
    __self__: Any

    def __init__(self, task: Task[..., R], instance: Any) -> None:
        self.__func__ = task
        self.__self__ = instance

    if not TYPE_CHECKING:  # checkers see the overloads of TaskArguments

        @edge
        @passes_on
        def __call__(self, /, *args: Any, **kwargs: Any) -> Call[R]:
            """A call of the method with these arguments, each a value or a call."""
            call: Call[R] = self.__func__(self.__self__, *args, **kwargs)
            return call

        @edge
        @passes_on
        def map(self, xs: Any, /, *more: Any, chunksize: int | None = None, **unknown: Any) -> Call[list[R]]:
            """As the `map` of a task, with the instance as the first argument of every call."""
            _refuse_keywords(self.__func__, "map", unknown)
            if any(isinstance(column, Call) for column in (xs, *more)):
                return Call(MAP, (self, _chunk_of(chunksize), xs, *more), {}, f"{self.__name__}.map")
            mapped: Call[list[R]] = self.__func__.map(itertools.repeat(self.__self__), xs, *more, chunksize=chunksize)
            return mapped

        @edge
        @passes_on
        def starmap(self, pairs: Any, /, *, chunksize: int | None = None, **unknown: Any) -> Call[list[R]]:
            """As the `starmap` of a task, with the instance as the first argument of every call."""
            _refuse_keywords(self.__func__, "starmap", unknown)
            if isinstance(pairs, Call):
                return Call(STARMAP, (self, _chunk_of(chunksize), pairs), {}, f"{self.__name__}.starmap")
            if isinstance(pairs, Iterable):
                pairs = [(self.__self__, *items) if isinstance(items, (tuple, list)) else items for items in pairs]
            mapped: Call[list[R]] = self.__func__.starmap(pairs, chunksize=chunksize)
            return mapped

        @knows_its_options("{}.stream", of_a_stream)
        def stream(
            self,
            xs: Iterable[Any] | AsyncIterable[Any],
            /,
            *,
            inflight: int | None = None,
            ordered: bool = True,
            on_error: OnError = "raise",
            start: str | None = None,
        ) -> Values[Any]:
            """As the `stream` of a task, with the instance as the first argument of every call."""
            return _tasks.streams().stream_of(self.__func__, self.__self__, xs, inflight, ordered, on_error, start)

    if TYPE_CHECKING:  # what it has of its task
        __name__: str
        __qualname__: str
        function: Callable[..., Any]
        layers: tuple[Layer, ...]
        body: Body
    else:

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__func__, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Method) and self.__self__ is other.__self__ and self.__func__ is other.__func__

    def __hash__(self) -> int:
        return hash((id(self.__self__), self.__func__))

    def __repr__(self) -> str:
        return f"<method {self.__func__.__qualname__} of {in_short(self.__self__)}>"

    def __reduce__(self) -> Any:
        return Method, (self.__func__, self.__self__)

    @property
    def __signature__(self) -> Any:
        import inspect

        signature = inspect.signature(self.__func__.function)
        return signature.replace(parameters=[*signature.parameters.values()][1:])


def _list_of(*values: Any) -> list[Any]:
    return list(values)


def _list_there(*values: Any) -> list[Any]:
    return list(values)


class _InProcess(Layer):
    """Runs the body in a worker process."""

    carrier = PROCESS


def _map(function: Task[..., Any] | Method[..., Any], chunk: int, *columns: Any) -> Call[list[Any]]:
    return function.map(*columns, chunksize=chunk or None)


def _starmap(function: Task[..., Any] | Method[..., Any], chunk: int, pairs: Any) -> Call[list[Any]]:
    return function.starmap(pairs, chunksize=chunk or None)


def _ours(function: Callable[..., R], name: str, title: str, *layers: Layer) -> Task[..., R]:
    """A task of this module, which pickles find under `name`; errors and records show `title`."""
    function.__qualname__, function.__name__ = name, title
    function.of_entangle = True  # type: ignore[attr-defined]
    return Task(function, layers)


#: The list of its arguments; the list of a task's values for items that are known when it runs.
GATHER = _ours(_list_of, "GATHER", "gather")
GATHER_THERE = _ours(_list_there, "GATHER_THERE", "gather", _InProcess())
MAP = _ours(_map, "MAP", "map")
STARMAP = _ours(_starmap, "STARMAP", "starmap")


def _refuse_keywords(task: Task[..., Any], way: str, unknown: dict[str, Any]) -> None:
    """Raise ArgumentError for keywords that `map` does not take, and say how it is written."""
    name = task.__name__
    argument, items = ("x", "xs") if way == "map" else ("*pair", "pairs")
    each = f"for {argument.removeprefix('*')} in {items}"
    for keyword, value in unknown.items():
        option = option_of_a_run(keyword)
        if takes_keyword(task, keyword):
            hint = f"write gather(*[{name}({argument}, {keyword}=…) {each}])"
        elif keyword == "return_exceptions":
            raise ArgumentError(f"{name}.{way} takes no {keyword}; write gather(*[{name}({argument}) {each}], return_exceptions=True)")
        elif option:
            hint = f"for the whole run write {name}.{way}({items}).run({option}={in_short(value)})"
        elif nearest(keyword, ["chunksize"]):
            hint = "did you mean 'chunksize'?"
        else:
            hint = "its one option is chunksize"
        raise ArgumentError(f"{name}.{way} takes no {keyword!r}; {hint}")


def _is_iterable(value: object) -> bool:
    return hasattr(type(value), "__iter__") or hasattr(type(value), "__getitem__")


Gathered.in_process = GATHER_THERE


def _chunk_of(chunksize: object) -> int:
    if chunksize is None:
        return 0
    if isinstance(chunksize, bool) or not isinstance(chunksize, int) or chunksize < 1:
        raise OptionError(f"chunksize={in_short(chunksize)}; it must be a whole number, at least 1, or None for what seems best")
    return chunksize


def gathered(calls: tuple[Any, ...], return_exceptions: bool, unknown: dict[str, Any]) -> Call[list[Any]]:
    """A call whose value is the list of the values of these calls. `entangle.gather` is this."""
    refuse_options("gather", ("return_exceptions",), unknown)
    for call in calls:
        if not isinstance(call, Call):
            hint = "write gather(*calls)" if isinstance(call, (list, tuple, types.GeneratorType)) else "build one by calling a task"
            raise ArgumentError(f"gather takes calls, not {in_short(call)}; {hint}")
    check_whether("gather", return_exceptions=return_exceptions)
    return Gathered(GATHER, calls, None, bool(return_exceptions), 0)


_BUILDS = "{name}(…) builds a call: `call()` gives its value, `call(proc=True)` a future at once"
_IS_SUCH = "{name}(…) is already a call that has not run: `call()` gives its value"
_BUILD_FIRST = "build a call first: {name}(…).{way}(…)"
_STREAMS = "write {name}.stream(xs), or {name}.stream(xs, ordered=False)"
#: Methods that tasks have in other libraries, or calls have here, and what is written instead.
_WRITTEN_HERE = {
    **dict.fromkeys(("remote", "submit", "delay", "apply", "apply_async", "call_async", "spawn", "start"), _BUILDS),
    **dict.fromkeys(("delayed", "s", "si", "signature", "bind", "partial"), _IS_SUCH),
    **dict.fromkeys(("run", "future", "named", "graph"), _BUILD_FIRST),
    **dict.fromkeys(("result", "compute", "get"), "build a call first: `{name}(…)()` gives its value"),
    **dict.fromkeys(("imap", "imap_unordered", "map_unordered", "as_completed"), _STREAMS),
    **dict.fromkeys(("map_async", "amap"), "write {name}.map(xs)(proc=True), a future of the list"),
    "starmap_async": "write {name}.starmap(pairs)(proc=True), a future of the list",
}

#: Whether `classmethod` asks what it wraps to bind itself to the class.
_BINDS_CLASSES = sys.version_info < (3, 13)


def _looked_up(module: str | None, name: str) -> Any:
    """What a module that is imported has under this dotted name; None for nothing."""
    found: Any = sys.modules.get(module or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _find(module: str, name: str) -> Any:
    """A task by its name; imports its module."""
    import importlib

    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _make_again(name: str, code: bytes, made_of: bytes) -> Any:
    """A task of the script by its name, if this is that script; else built from its parts."""
    if name:
        found: Any = sys.modules["__main__"]
        for part in name.split("."):
            found = getattr(found, part, None)
        if isinstance(found, Task) and (_code_of(found.function) == code or not made_of):
            return found
    if not made_of:
        raise EntangleError(
            f"task {name!r} belongs to a script that does not run here, and it cannot be pickled; put the task into a module"
        )
    kind, function, layers = pickle.loads(made_of)
    return kind(function, layers)


def _code_of(function: Any) -> bytes:
    """What tells a function from another one of its name: its code."""
    code = getattr(function, "__code__", None)
    return b"" if code is None else bytes(code.co_code)


def _make_body(task: Task[..., Any]) -> Body:
    function = task.function
    if (module := getattr(function, "__module__", None)) and module not in sys.modules:
        travels_by_value(module)  # run by `runpy`: a forked worker must not import it to pickle
    ordered = in_its_order(function, task.layers)
    inner = _as_written(resolving(ordered), task)
    outer = inner
    # What lies below a layer that ships it is enforced in the other place: terms, cookies, carrier.
    near = task.layers
    terms: dict[str, Any] = {}
    for index, layer in enumerate(task.layers):
        if layer.ships:
            near = task.layers[: index + 1]
            rest: Task[..., Any] = Task(task.function, task.layers[index + 1 :])
            outer = _as_written(layer.ship(rest), task)
            terms.update(layer.lift(rest))
            break
    pools: tuple[Pool, ...] = terms.pop("pools", ())
    ahead: Callable[..., Any] | None = None
    remembering: tuple[Layer, Callable[..., Any]] | None = None
    for index in reversed(range(len(near))):
        within, outer = outer, near[index].around(outer)
        if outer is not within:  # of the layers that run anything, the outermost has a say
            ahead = near[index].ahead(Task(task.function, task.layers[index + 1 :]))
            memory = near[index].remembering
            remembering = None if memory is None else (memory, within)
    away = isinstance(outer, AwayFunction)  # no layer of the user's stands around it: nothing waits for it
    if outer is not inner and not away:
        outer = resolving(outer)
    carrier = next((layer.carrier for layer in near if layer.carrier is not None), HERE)
    if not away and any(layer.carrier == AWAY for layer in near):
        carrier = HERE if carrier in (HERE, AWAY) else THREAD  # it waits in the process that has the place
    carried = False
    for layer in near:
        if layer.carrier is not None:
            if carried:
                continue  # only the outermost carrier counts: the terms of the others are dropped
            carried = True
        stated = dict(layer.terms())
        pools = merged(pools, stated.pop("pools", ()))
        terms.update(stated)
    carrier = terms.pop("carrier", AWAY if isinstance(outer, AwayFunction) and not outer.may_wait else carrier)
    if terms.get("gpus") and carrier in IN_CALLER:
        raise OptionError(_no_device(task.layers, f"task {task.__name__!r}"))
    body = TaskBody(outer, task.__name__, carrier, pools=pools, ahead=ahead, **terms)
    body.task = task
    body.remembering = remembering
    body.plain = ordered if outer is inner else None
    return body


def _as_written(function: Callable[..., Any], task: Task[..., Any]) -> Callable[..., Any]:
    """Give a wrapper of ours the name, signature and attributes of the task's function.

    A layer or a scheduler of the user's own then sees the function as the user has written it.
    """
    functools.update_wrapper(function, task.function)
    # A partial or a callable object has no name; its task has one.
    function.__name__, function.__qualname__ = task.__name__, task.__qualname__
    return function


# Making decorators --------------------------------------------------------------------------------


#: A task of any type, which stays what it is under one more decorator.
AnyTask = TypeVar("AnyTask", bound=Task[..., Any])


class Decorator(Protocol):
    """What a decorator with options gives: it takes a function, or a task with layers."""

    @overload
    def __call__(self, function: AnyTask, /) -> AnyTask: ...
    @overload
    def __call__(self, function: type[R], /) -> Task[..., R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class InjectingDecorator(Protocol):
    """A decorator that fills in parameters of the function: no checker knows what is left."""

    @overload
    def __call__(self, function: Task[..., R], /) -> Task[..., R]: ...
    @overload
    def __call__(self, function: Callable[..., R], /) -> Task[..., R]: ...


def refuse_unknown(decorator: str, known: Sequence[str], unknown: dict[str, Any]) -> None:
    """Raise OptionError for options that a decorator does not have; names the nearest one."""
    refuse_options(f"@{decorator}", known, unknown)


@overload
def task(function: AnyTask, /, *layers: Layer) -> AnyTask: ...
@overload
def task(function: type[R], /, *layers: Layer) -> Task[..., R]: ...
@overload
def task(function: Callable[P, R], /, *layers: Layer) -> Task[P, R]: ...
@overload
def task(function: None = None, /, *layers: Layer, attributes: dict[str, Any] | None = None) -> Decorator: ...
@edge
def task(function: Any = None, /, *layers: Layer, attributes: dict[str, Any] | None = None, **unknown: Any) -> Any:
    """Make a function a task, with these layers around it. All decorators are made of this one.

    Takes a function, or a task, whose layers then come below. `attributes` are kept with the
    records of its runs: a dict from names to text, numbers, lists and dicts of these. Raises
    OptionError for anything that is no function, and for other attributes.

        @task(attributes={"owner": "aerodynamics"})
        def double(x): return 2 * x
    """
    refuse_unknown("task", ("attributes",), unknown)
    if attributes is not None:
        layers = (*layers, Attributes(attributes))
    if function is None:
        return edge(lambda inner: decorate("task", inner, *layers))
    return decorate("task", function, *layers)


def decorate(decorator: str, function: Any, *layers: Layer) -> Task[..., Any]:
    """A task of `function` with `layers` on top of those that it has; errors name `decorator`."""
    if isinstance(function, (staticmethod, classmethod)):
        raise OptionError(f"@{decorator} goes below @{type(function).__name__}, next to the function")
    if not callable(function):
        raise OptionError(f"@{decorator} decorates a function, not {type(function).__name__}: {in_short(function)}")
    if isinstance(function, Call):
        raise OptionError(f"@{decorator} decorates a function; {function!r} is a call of one")
    inner: Callable[..., Any] = function.function if isinstance(function, Task) else function
    below: tuple[Layer, ...] = function.layers if isinstance(function, Task) else ()
    for layer in layers:
        layer.accept(inner)
    _refuse_lost_options(decorator, layers, below)
    above = (*layers, *below)
    for index, layer in enumerate(above):
        if layer.carrier in IN_CALLER:  # it may stand below a carrier that is still to come
            if any(other.terms().get("gpus") for other in (above[:index] if layer.ships else above)):
                raise OptionError(_no_device(above, f"@{decorator}"))
            break
    _refuse_own_process(above)
    kind = type(function) if isinstance(function, Task) else Task  # a task of a dataflow stays one
    return kind(inner, (*layers, *below))


def _door(layer: Layer) -> str:
    """The decorator that a layer comes from."""
    return layer.door or type(layer).__name__.lower()


def _refuse_own_process(layers: tuple[Layer, ...]) -> None:
    """Raise OptionError if a layer above one whose body is away wants a process of its own here."""
    away = next((index for index, layer in enumerate(layers) if layer.carrier == AWAY), 0)
    for layer in layers[:away]:
        option = "fresh=True" if layer.carrier == FRESH else "shared_memory=True" if layer.terms().get("shared_memory") else ""
        if option:
            other, place = _door(layer), _door(layers[away])
            raise OptionError(
                f"@{other}({option}) above @{place}: the body runs elsewhere, and no process here is its own. Put @{other}({option}) "
                f"below @{place}, where it counts for the body, or leave the option out"
            )


def _no_device(layers: tuple[Layer, ...], whose: str) -> str:
    """Why the body of these layers cannot have a GPU of its own."""
    number = next(gpus for layer in layers if (gpus := layer.terms().get("gpus")))
    if other := next((_door(layer) for layer in layers if layer.ships), ""):
        why = f"@{other} runs the body in another place, which has GPUs of its own; put @scheduler(gpus={number}) below @{other}"
    else:
        why = "a body in the caller's process shares its GPUs with all that runs there; put @process on top"
    whose = "" if whose == "@scheduler" else f"{whose}: "
    return f"{whose}@scheduler(gpus={number}) needs a process of its own: {why}"


def _refuse_lost_options(decorator: str, layers: tuple[Layer, ...], below: tuple[Layer, ...]) -> None:
    """Raise OptionError if a new carrier makes options of the one below count for nothing."""
    if not any(layer.carrier is not None and not layer.ships for layer in layers):
        return
    for layer in below:
        if layer.ships:
            return  # the layers below have a carrier of their own, in the other place
        if layer.stated:
            other, options = type(layer).__name__.lower(), ", ".join(layer.stated)
            raise OptionError(
                f"@{decorator} above @{other}({options}): the upper decorator runs the body, so these options of the lower one would be "
                f"ignored. Put @{other}({options}) on top, or leave one of them out"
            )


named_as_its_decorator(__name__)

__all__ = [
    "AnyTask",
    "Attributes",
    "Call",
    "Decorated",
    "Decorator",
    "InjectingDecorator",
    "Layer",
    "Method",
    "Start",
    "Task",
    "compile_call",
    "decorate",
    "refuse_unknown",
    "task",
]
