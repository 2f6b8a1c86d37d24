"""Tasks, layers and calls; and how a tree of calls becomes a Flow.

A *task* is a function with a stack of *layers*, one for each decorator. Calling a task gives a *call*, which remembers the
task and its arguments; arguments may be calls, also inside lists, tuples, dicts and sets. Calling the call runs the graph.

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
import os
import sys
import types
import weakref
from array import array
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, ParamSpec, Protocol, TypeVar, overload

from entangle._run.run import Observer, Run
from entangle.errors import ArgumentError, CycleError, OptionError
from entangle.flow import COPY, HERE, PROCESS, Body, Flow, Like, Shape, Template

if TYPE_CHECKING:
    import inspect

    from entangle._run.future import RunFuture

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")
#: What a call gives. A call cannot be changed, so one of a narrower type serves as one of a wider.
R_co = TypeVar("R_co", covariant=True)

#: Keyword arguments of `call(...)` that say how to run it, unless the function has a parameter of that name.
RUN_KEYWORDS = ("proc", "progress", "start")


class Layer:
    """What one decorator adds: code that runs around the next layer, the innermost being the function.

    `carrier` says who carries the part below (PROCESS, THREAD, FRESH, HERE of `entangle.flow`); None leaves that to
    other layers. `terms` are fields of `entangle.flow.Body` that the engine sees to: deadlines, retries, cookies.
    """

    carrier: int | None = None

    #: Parameters of the function that the layer fills in itself, by name.
    injected: tuple[str, ...] = ()
    #: Whether the arguments of a call are the layer's business and not the function's parameters.
    takes_arguments = False
    #: Whether the layers below run in another place, to which `ship` takes them.
    ships = False

    def terms(self) -> dict[str, Any]:
        """What the engine must know: fields of `Body`."""
        return {}

    def accept(self, function: Callable[..., Any]) -> None:
        """Look at the function that is decorated; raise OptionError where the layer cannot do with it."""

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """`inner` with this layer around it."""
        if type(self).run is Layer.run:
            return inner
        return functools.partial(_peel, self, inner)

    def ship(self, rest: Task[..., Any]) -> Callable[..., Any]:
        """Where the layer `ships`: what runs here for `rest`, the function with the layers below this one."""
        raise NotImplementedError

    def lift(self, rest: Task[..., Any]) -> dict[str, Any]:
        """Where the layer `ships`: the terms of the layers below that are seen to here all the same."""
        return {}

    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the layers below; the place to do something before, after or instead."""
        return inner(*args, **kwargs)


def _peel(layer: Layer, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return layer.run(inner, args, kwargs)


class Attributes(Layer):
    """What the author says of a task, for those who look at its records."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        if not isinstance(attributes, dict) or not all(isinstance(name, str) for name in attributes):
            raise OptionError(f"@task: attributes={_short(attributes)}; it is a dict whose keys are names")
        for name, value in attributes.items():
            if not _is_plain_data(value):
                raise OptionError(
                    f"@task: attributes[{name!r}] is of type {type(value).__name__}; it can be text, a number, True, False, None, "
                    "and lists and dicts of these"
                )
        self.attributes = dict(attributes)


def _is_plain_data(value: Any, depth: int = 0) -> bool:
    if value is None or isinstance(value, (str, int, float, bool)):
        return True
    if depth > 20:
        return False
    if isinstance(value, (list, tuple)):
        return all(_is_plain_data(part, depth + 1) for part in value)
    return isinstance(value, dict) and all(isinstance(key, str) and _is_plain_data(part, depth + 1) for key, part in value.items())


class TaskBody(Body):
    """The body of a task. It travels as its task does: by name where that can be imported."""

    task: Task[..., Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return _body_of, (self.task,)


def _body_of(task: Task[..., Any]) -> Body:
    return task.body


class Task(Generic[P, R]):
    """A decorated function: the function and its stack of layers, outermost first. Immutable; keeps the function's name,
    docstring, module and signature. Calling it builds a `Call`; nothing runs."""

    function: Callable[..., Any]
    layers: tuple[Layer, ...]
    __name__: str
    __qualname__: str
    _body: Body | None
    _fits: Callable[[int, dict[str, Any]], bool] | None

    def __init__(self, function: Callable[P, R], layers: tuple[Layer, ...]) -> None:
        mine = self.__dict__  # the way around our own __setattr__
        for name in functools.WRAPPER_ASSIGNMENTS:
            with contextlib.suppress(AttributeError):
                mine[name] = getattr(function, name)
        mine.update({name: value for name, value in getattr(function, "__dict__", {}).items() if name not in mine})
        mine["__wrapped__"] = function
        if "__name__" not in mine:  # a functools.partial, an object that can be called
            mine["__name__"] = mine["__qualname__"] = type(function).__name__
        mine.update(function=function, layers=layers, _body=None, _fits=None)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a task cannot be changed ({name!r}); decorate the function anew")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a task cannot be changed ({name!r}); decorate the function anew")

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...
    @overload
    def __call__(self, *args: Any, **kwargs: Any) -> Call[R]: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Call[R]:
        """A call of this task with these arguments, each a value or a call. Raises ArgumentError where they do not fit."""
        fits = self._fits or self._learn_parameters()
        if not fits(len(args), kwargs):
            self._complain(args, kwargs)
        return Call(self, args, kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A task in a class is a method: the instance is the first argument of its calls."""
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        layers = " ".join(f"@{type(layer).__name__.lower()}" for layer in self.layers)
        return f"<task {self.__qualname__} {layers}>".replace(" >", ">")

    def __reduce__(self) -> Any:
        module = sys.modules.get(self.__module__ or "")
        if module is not None and self.__module__ != "__main__":
            found: Any = module
            for name in self.__qualname__.split("."):
                found = getattr(found, name, None)
            if found is self:
                return _find, (self.__module__, self.__qualname__)
        return type(self), (self.function, self.layers)

    @property
    def body(self) -> Body:
        """What the engine runs: the layers around the function, and the terms they ask for."""
        body = self._body
        if body is None:
            body = self.__dict__["_body"] = _make_body(self)
        return body

    def _learn_parameters(self) -> Callable[[int, dict[str, Any]], bool]:
        fits = self.__dict__["_fits"] = _fitting(self)
        return fits

    def _complain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        import inspect

        signature = inspect.signature(self.function)
        try:
            _without(signature, self.layers).bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{self.__name__}{signature}: {error}") from None
        raise AssertionError(f"{self.__name__}{signature} takes what it refused")


def _find(module: str, name: str) -> Any:
    """A task by its name, in a process that has to import its module first."""
    import importlib

    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _without(signature: inspect.Signature, layers: Sequence[Layer]) -> inspect.Signature:
    """The signature that a call has to fit: without what layers fill in."""
    injected = {name for layer in layers for name in layer.injected}
    if not injected:
        return signature
    return signature.replace(parameters=[p for p in signature.parameters.values() if p.name not in injected])


def _fitting(task: Task[..., Any]) -> Callable[[int, dict[str, Any]], bool]:
    """A quick test whether so many positional arguments and these keywords fit the parameters of a task."""
    if any(layer.takes_arguments for layer in task.layers):
        return lambda count, kwargs: True
    function = task.function
    if (
        isinstance(function, types.FunctionType)
        and not (code := function.__code__).co_kwonlyargcount
        and not hasattr(function, "__wrapped__")
        and not any(layer.injected for layer in task.layers)
    ):
        least = code.co_argcount - len(function.__defaults__ or ())
        most = sys.maxsize if code.co_flags & _VARARGS else code.co_argcount
        return lambda count, kwargs: least <= count <= most if not kwargs else _slow_fit(task, count, kwargs)
    return functools.partial(_slow_fit, task)


_VARARGS, _COROUTINE = 0x04, 0x80  # inspect.CO_VARARGS, CO_COROUTINE


def _slow_fit(task: Task[..., Any], count: int, kwargs: dict[str, Any]) -> bool:
    """Whether arguments fit, for parameters of every kind."""
    known = task.__dict__
    if "_signature" not in known:
        import inspect

        try:
            known["_signature"] = _without(inspect.signature(task.function), task.layers)
        except (ValueError, TypeError):  # a builtin that does not tell
            known["_signature"] = None
    signature = known["_signature"]
    if signature is None:
        return True
    try:
        signature.bind(*(None,) * count, **kwargs)
    except TypeError:
        return False
    return True


def _make_body(task: Task[..., Any]) -> Body:
    function = task.function
    _remember_local_classes(function, set())
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is not None and code.co_flags & _COROUTINE:
        function = functools.partial(_await_it, function)
    inner = _resolving(function)
    outer = inner
    # What lies below a layer that ships it is another place's business: its terms, its cookies, what carries it.
    near = task.layers
    terms: dict[str, Any] = {}
    for index, layer in enumerate(task.layers):
        if layer.ships:
            near = task.layers[: index + 1]
            rest: Task[..., Any] = Task(task.function, task.layers[index + 1 :])
            outer = layer.ship(rest)
            terms.update(layer.lift(rest))
            break
    for layer in reversed(near):
        outer = layer.around(outer)
    if outer is not inner:
        outer = _resolving(outer)
    carrier = next((layer.carrier for layer in near if layer.carrier is not None), HERE)
    carried = False
    for layer in near:
        if layer.carrier is not None:
            if carried:
                continue  # only the outermost carrier carries; what the others would see to is not asked of the engine
            carried = True
        terms.update(layer.terms())
    carrier = terms.pop("carrier", carrier)
    body = TaskBody(outer, task.__name__, carrier, **terms)
    body.task = task
    return body


def _remember_local_classes(function: Any, seen: set[int]) -> None:
    """Have cloudpickle know the classes that a function closes over, before it is forked: it then gives the class itself when
    an instance, or an error, comes back, and not another of the same name."""
    if id(function) in seen:
        return
    seen.add(id(function))
    for cell in getattr(function, "__closure__", None) or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not bound yet
            continue
        if isinstance(held, type) and "<locals>" in held.__qualname__:
            import cloudpickle

            with contextlib.suppress(Exception):  # a class that cannot travel is named when it has to
                cloudpickle.dumps(held)
        elif isinstance(held, (types.FunctionType, Task)):
            _remember_local_classes(held.function if isinstance(held, Task) else held, seen)


def _resolving(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, and where its value is a call, that call's value: it is run where it was made."""

    def body(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        while type(value) is Call:
            value = value()
        return value

    return body


def _await_it(function: Callable[..., Coroutine[Any, Any, Any]], /, *args: Any, **kwargs: Any) -> Any:
    import asyncio

    async def main() -> Any:
        return await function(*args, **kwargs)

    return asyncio.run(main())


class Call(Generic[R_co]):
    """A task applied to arguments, not yet run. Immutable, hashable by identity. Calling it runs the graph below it."""

    __slots__ = ("__weakref__", "args", "kwargs", "task")

    task: Task[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __init__(self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _set_task(self, task)
        _set_args(self, args)
        _set_kwargs(self, kwargs)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a call cannot be changed ({name!r}); build another one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a call cannot be changed ({name!r}); build another one")

    def __reduce__(self) -> tuple[Any, ...]:
        return Call, (self.task, self.args, self.kwargs)

    def __repr__(self) -> str:
        parts = [_short(argument) for argument in self.args]
        parts += [f"{name}={_short(argument)}" for name, argument in self.kwargs.items()]
        return f"<call {self.task.__name__}({', '.join(parts)})>"

    @overload
    def __call__(self: Call[Call[V]], *args: Any, proc: Literal[True], **kwargs: Any) -> RunFuture[V]: ...
    @overload
    def __call__(self: Call[V], *args: Any, proc: Literal[True], **kwargs: Any) -> RunFuture[V]: ...
    @overload
    def __call__(self: Call[Call[Call[V]]], *args: Any, **kwargs: Any) -> V: ...
    @overload
    def __call__(self: Call[Call[V]], *args: Any, **kwargs: Any) -> V: ...
    @overload
    def __call__(self: Call[Coroutine[Any, Any, V]], *args: Any, **kwargs: Any) -> V: ...
    @overload
    def __call__(self: Call[V], *args: Any, **kwargs: Any) -> V: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph and give its value; arguments given here are added to those that the call has.

        `proc=True` starts it and gives a future at once; `progress=True` shows how far it is; `start=` says how workers
        are started (auto, fork, forkserver, spawn). Raises what the first task to fail has raised.
        """
        options: dict[str, Any] = {}
        if kwargs:
            named = _named_parameters(self.task)
            options = {name: kwargs.pop(name) for name in RUN_KEYWORDS if name in kwargs and name not in named}
        call: Call[Any] = self
        if args or kwargs:
            call = self.task(*self.args, *args, **{**self.kwargs, **kwargs})
        proc = options.pop("proc", False)
        if proc:
            future = _future_of(self, call, options)
            future.start()
            return future
        if _pending:
            waiting = _pending.pop(self, None)
            if waiting is not None:
                return waiting.entangle()
        return call._run(**options).value()

    def _run(self, progress: bool | None = None, start: str | None = None) -> Run:
        """The next execution of this graph."""
        if progress is None:
            progress = os.environ.get("ENTANGLE_PROGRESS", "") not in ("", "0")
        observer: Observer | None = None
        if progress:
            from entangle._run.progress import Bar

            observer = Bar()
        return Run(compile_call(self), start, observer)

    def future(self, callback: Callable[[Any], object] | None = None) -> RunFuture[R_co]:
        """A `concurrent.futures.Future` of the next run of this call; `callback` gets the future when it is done.

        `call(proc=True)` or the future's `entangle()` starts that run.
        """
        future = _future_of(self, self, {})
        _pending[self] = future
        if callback is not None:
            future.add_done_callback(callback)
        return future

    @overload
    def __await__(self: Call[Call[Call[V]]]) -> Generator[Any, None, V]: ...
    @overload
    def __await__(self: Call[Call[V]]) -> Generator[Any, None, V]: ...
    @overload
    def __await__(self: Call[Coroutine[Any, Any, V]]) -> Generator[Any, None, V]: ...
    @overload
    def __await__(self: Call[V]) -> Generator[Any, None, V]: ...
    def __await__(self) -> Any:
        """Run it without blocking the event loop; cancelling the waiting task cancels the run and stops its processes."""
        return _future_of(self, self, {}).wait_in_loop().__await__()

    def graph(self, wait: bool = True) -> Any:
        """The graph as nested dicts: each task's name with what it takes; constants by their text.

        The outermost level is a list, and so is one where two siblings have one name. `wait=False` gives a future of it.
        """
        if wait:
            return _as_dict(self)
        from entangle._run.future import RunFuture

        return RunFuture(lambda: _as_dict(self), lambda: None)


# The slots' own descriptors, which go around `__setattr__`: a third of the time of `object.__setattr__`.
_set_task, _set_args, _set_kwargs = (vars(Call)[name].__set__ for name in ("task", "args", "kwargs"))

#: Futures that wait for the next run of their call.
_pending: weakref.WeakKeyDictionary[Call[Any], RunFuture[Any]] = weakref.WeakKeyDictionary()


def _future_of(owner: Call[Any], call: Call[Any], options: dict[str, Any]) -> RunFuture[Any]:
    """The future that waits for the next run of `owner`, else a new one that runs `call`."""
    from entangle._run.future import RunFuture

    waiting = _pending.pop(owner, None)
    if waiting is not None:
        return waiting
    run = call._run(**options)
    return RunFuture(run.value, run.cancel)


def _named_parameters(task: Task[..., Any]) -> frozenset[str]:
    import inspect

    try:
        return frozenset(inspect.signature(task.function).parameters)
    except (ValueError, TypeError):
        return frozenset()


def _short(value: object) -> str:
    if isinstance(value, Call):
        return f"{value.task.__name__}(…)"
    text = repr(value) if isinstance(value, (int, float, str, bytes, bool, type(None))) else f"<{type(value).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."


# From a tree of calls to a Flow -------------------------------------------------------------------------------------

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
        return COPY if kind in (list, dict, set, bytearray) or kind is tuple else None
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
                raise CycleError(
                    f"{call.task.__name__!r} is, through its own arguments, an argument of itself; "
                    "a list or dict that it was given has been changed afterwards"
                )
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


def _as_dict(root: Call[Any]) -> dict[str, Any]:
    """The graph below a call as nested dicts, built from the leaves up, since nesting may be deep."""
    built: dict[Call[Any], list[dict[str, Any]]] = {}
    stack = [root]
    while stack:
        call = stack[-1]
        if call in built:
            stack.pop()
            continue
        flat, (count, keywords, templates) = _plan(call)
        missing = [part for part in flat if type(part) is Call and part not in built]
        if missing:
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


# Making decorators --------------------------------------------------------------------------------------------------


class Decorator(Protocol):
    """What a decorator with options gives: it takes a function, or a task that has layers already."""

    @overload
    def __call__(self, function: Task[P, R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


def refuse_unknown(decorator: str, known: Sequence[str], unknown: dict[str, Any]) -> None:
    """Raise OptionError for options that a decorator does not have, with the nearest that it has."""
    for name in unknown:
        import difflib

        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise OptionError(f"@{decorator} has no option {name!r}{hint} It has: {', '.join(known) or 'none'}")


@overload
def task(function: Task[P, R], /, *layers: Layer) -> Task[P, R]: ...
@overload
def task(function: Callable[P, R], /, *layers: Layer) -> Task[P, R]: ...
@overload
def task(function: None = None, /, *layers: Layer, attributes: dict[str, Any] | None = None) -> Decorator: ...
def task(function: Any = None, /, *layers: Layer, attributes: dict[str, Any] | None = None, **unknown: Any) -> Any:
    """Make a function a task, with these layers around it: the one decorator that the others are made of.

    Takes a function, or a task, whose layers then come below. `attributes` are remembered with every run of it: names, and text,
    numbers, lists and dicts of these. Raises OptionError for what is no function, and for other attributes.

        @task(attributes={"owner": "aerodynamics"})
        def double(x): return 2 * x
    """
    refuse_unknown("task", ("attributes",), unknown)
    if attributes is not None:
        layers = (*layers, Attributes(attributes))
    if function is None:
        return lambda inner: task(inner, *layers)
    return decorate("task", function, *layers)


def decorate(decorator: str, function: Any, *layers: Layer) -> Task[..., Any]:
    """A task of `function` with `layers` on top of those that it has. `decorator` is the name for errors."""
    if isinstance(function, (staticmethod, classmethod)):
        raise OptionError(f"@{decorator} goes below @{type(function).__name__}, next to the function")
    if not callable(function):
        raise OptionError(f"@{decorator} decorates a function, not {type(function).__name__}: {_short(function)}")
    if isinstance(function, Call):
        raise OptionError(f"@{decorator} decorates a function; {function!r} is a call of one")
    inner: Callable[..., Any] = function.function if isinstance(function, Task) else function
    below: tuple[Layer, ...] = function.layers if isinstance(function, Task) else ()
    for layer in layers:
        layer.accept(inner)
    kind = type(function) if isinstance(function, Task) else Task  # a dataflow's task stays one under further decorators
    return kind(inner, (*layers, *below))


__all__ = ["Attributes", "Call", "Decorator", "Layer", "Task", "compile_call", "decorate", "refuse_unknown", "task"]
