"""Calls: tasks applied to arguments, and the ways to run them."""

from __future__ import annotations

import os
import threading
import weakref
from array import array
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NoReturn, Protocol, TypeVar, overload

from entangle import _run, _tasks
from entangle._run.progress import observer_for
from entangle._run.run import Run
from entangle._shared.masks import MASK, is_secret
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge, hide, passes_on
from entangle._tasks.layer import Decorated
from entangle._tasks.option_values import check_seconds, check_whether
from entangle._tasks.parameters import named_parameters, positional_names, takes_keyword
from entangle._tasks.unknown_options import goes_elsewhere, knows_its_options, nearest
from entangle.errors import ArgumentError, EntangleError, OptionError
from entangle.flow import FRESH, LEAST_FAN, PROCESS, UNCHANGING, Flow, smallest_array

if TYPE_CHECKING:
    from entangle._run.future import RunFuture

V = TypeVar("V")
#: What a call gives. Covariant, since a call cannot be changed.
R_co = TypeVar("R_co", covariant=True)

#: Keyword arguments of `call(...)` that say how to run it, unless the function has such a
#: parameter.
RUN_KEYWORDS = ("proc", "progress", "start")

#: How worker processes are started.
Start = Literal["auto", "fork", "forkserver", "spawn"]


class Compiler(Protocol):
    """What compiles a tree of calls. It imports `Call`, so `Call` cannot import it."""

    def compile_call(self, root: Call[Any], /) -> Flow:
        """The flow of the graph below a call."""

    def as_dict(self, root: Call[Any], /) -> dict[str, Any]:
        """The graph below a call as nested dicts."""


class Call(Generic[R_co]):
    """A task applied to arguments, not yet run. Immutable, hashable by identity.

    Calling it runs the graph below it.
    """

    __slots__ = ("__weakref__", "args", "kwargs", "name", "task")

    task: Decorated
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: The name that the user has given it, if any.
    name: str | None
    #: Filled in by `entangle.task`, which every call needs for its task.
    _compiler: ClassVar[Compiler]
    #: What runs a call after values that are kept have taken the place of calls; filled in once a
    #: task remembers values.
    _after_hits: ClassVar[Any] = None
    _each_after_hits: ClassVar[Any] = None

    def __init__(self, task: Decorated, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None = None) -> None:
        _set_task(self, task)
        _set_args(self, args)
        _set_kwargs(self, kwargs)
        _set_name(self, name)

    @edge
    @passes_on
    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a call cannot be changed ({name!r}); build another one")

    @edge
    @passes_on
    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a call cannot be changed ({name!r}); build another one")

    def __reduce__(self) -> tuple[Any, ...]:
        return Call, (self.task, self.args, self.kwargs, self.name)

    def __repr__(self) -> str:
        names, rest = positional_names(self.task.function)
        named = [*zip(names, self.args, strict=False), *((rest or "", argument) for argument in self.args[len(names) :])]
        parts = [MASK if is_secret(name) else in_short(argument) for name, argument in named]
        parts += [f"{name}={MASK if is_secret(name) else in_short(argument)}" for name, argument in self.kwargs.items()]
        named_as = f" {self.name!r}" if self.name is not None else ""
        return f"<call {self.task.__name__}({', '.join(parts)}){named_as}>"

    def _repr_html_(self) -> str | None:
        """The graph drawn, where a cell of a notebook ends with this call."""
        try:
            return _tasks.drawings().html_of(self._compiler.compile_call(self))
        except EntangleError:  # it cannot be run, either: its text remains
            return None

    if TYPE_CHECKING:

        def __hash__(self) -> Any:
            """The hash of an object. Any: by this, checkers tell a call from other arguments."""

        #: By this, they tell a call from other values that a workflow may return.
        __dir__: None  # type: ignore[assignment]

    # Hidden from type checkers: they refuse all but `bool` anyway, and would take code after a
    # `__bool__` that does not return for unreachable.
    if not TYPE_CHECKING:

        @edge
        @passes_on
        def __bool__(self) -> NoReturn:
            raise self._not_run("is neither true nor false")

        @edge
        @passes_on
        def __len__(self) -> NoReturn:
            raise self._not_run("has no length")

        @edge
        @passes_on
        def __iter__(self) -> NoReturn:
            raise self._not_run("has nothing to iterate over")

        @edge
        @passes_on
        def __contains__(self, item: object) -> NoReturn:
            raise self._not_run("contains nothing")

        @edge
        @passes_on
        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("_") or name in Call.__slots__:
                raise AttributeError(f"'Call' object has no attribute {name!r}", name=name, obj=self)
            said = f"{self!r} has not run and has no {name!r}; run it first: `call()` gives its value"
            raise AttributeError(said, name=name, obj=self)

        @edge
        @passes_on
        def __format__(self, form: str) -> str:
            if form:
                raise self._not_run(f"cannot be formatted as {form!r}")
            return str(self)

        def _not_run(self, what: str) -> TypeError:
            return TypeError(f"{self!r} has not run and {what}; run it first: `call()` gives its value")

    @overload
    def __call__(
        self: Call[Call[V]], /, *args: Any, proc: Literal[True], progress: bool | None = None, start: Start | None = None, **kwargs: Any
    ) -> RunFuture[V]: ...
    @overload
    def __call__(
        self: Call[Coroutine[Any, Any, V]],
        /,
        *args: Any,
        proc: Literal[True],
        progress: bool | None = None,
        start: Start | None = None,
        **kwargs: Any,
    ) -> RunFuture[V]: ...
    @overload
    def __call__(
        self: Call[V], /, *args: Any, proc: Literal[True], progress: bool | None = None, start: Start | None = None, **kwargs: Any
    ) -> RunFuture[V]: ...
    @overload
    def __call__(
        self: Call[Call[Call[V]]],
        /,
        *args: Any,
        proc: Literal[False] = False,
        progress: bool | None = None,
        start: Start | None = None,
        **kwargs: Any,
    ) -> V: ...
    @overload
    def __call__(
        self: Call[Call[V]],
        /,
        *args: Any,
        proc: Literal[False] = False,
        progress: bool | None = None,
        start: Start | None = None,
        **kwargs: Any,
    ) -> V: ...
    @overload
    def __call__(
        self: Call[Coroutine[Any, Any, V]],
        /,
        *args: Any,
        proc: Literal[False] = False,
        progress: bool | None = None,
        start: Start | None = None,
        **kwargs: Any,
    ) -> V: ...
    @overload
    def __call__(
        self: Call[V], /, *args: Any, proc: Literal[False] = False, progress: bool | None = None, start: Start | None = None, **kwargs: Any
    ) -> V: ...
    @overload
    def __call__(self, /, *args: Any, proc: bool, progress: bool | None = None, start: Start | None = None, **kwargs: Any) -> Any: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the graph and give its value. Arguments given here are added to those of the call.

        `proc=True` starts the run and gives a future at once; `progress=True` shows how far it is;
        `start=` says how workers are started (auto, fork, forkserver, spawn). Raises the error of
        the first task that fails.
        """
        try:
            options: dict[str, Any] = {}
            if kwargs:
                named = named_parameters(self.task)
                options = {name: kwargs.pop(name) for name in RUN_KEYWORDS if name in kwargs and name not in named}
            call: Call[Any] = self
            if args or kwargs:
                call = self._with(args, kwargs)
            proc = options.pop("proc", False)
            check_whether("call", proc=proc)
            if proc:
                future = _future_of(self, call, options)
                future.start()
                return future
            if _pending and self in _pending:
                future = _future_of(self, call, options)
                if future.run_first():
                    return future.result()
            return call._run_after_hits(options).value()
        except BaseException as error:
            hide(error)
            raise

    @edge
    def named(self, name: str) -> Call[R_co]:
        """This call with a name, which errors, records, progress and pages show.

        It is a call of its own: used beside this one, both are run. Raises OptionError unless
        `name` is a string that is not empty.

            gather(*[fit(data, fold).named(f"fold {fold}") for fold in range(5)])
        """
        if not isinstance(name, str) or not name.strip():
            raise OptionError(f"named({value_in_short(name)}): a name is a string that is not empty")
        return self._named(name)

    def _named(self, name: str) -> Call[R_co]:
        return Call(self.task, self.args, self.kwargs, name)

    def _with(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[Any]:
        """The same call with these arguments added."""
        try:
            call: Call[Any] = self.task(*self.args, *args, **{**self.kwargs, **kwargs})
        except ArgumentError as refused:
            if "did you mean" not in str(refused) and (hint := _option_meant(kwargs, self.task)):
                raise ArgumentError(f"{refused}; {hint}") from None
            raise
        return call if self.name is None else call._named(self.name)

    @overload
    def run(
        self: Call[Call[Call[V]]],
        *,
        timeout: float | None = None,
        workers: int | None = None,
        start: Start | None = None,
        progress: bool | None = None,
    ) -> V: ...
    @overload
    def run(
        self: Call[Call[V]],
        *,
        timeout: float | None = None,
        workers: int | None = None,
        start: Start | None = None,
        progress: bool | None = None,
    ) -> V: ...
    @overload
    def run(
        self: Call[Coroutine[Any, Any, V]],
        *,
        timeout: float | None = None,
        workers: int | None = None,
        start: Start | None = None,
        progress: bool | None = None,
    ) -> V: ...
    @overload
    def run(
        self: Call[V],
        *,
        timeout: float | None = None,
        workers: int | None = None,
        start: Start | None = None,
        progress: bool | None = None,
    ) -> V: ...
    @knows_its_options("call.run")
    def run(
        self,
        *,
        timeout: float | None = None,
        workers: int | None = None,
        start: Start | None = None,
        progress: bool | None = None,
    ) -> Any:
        """Run the graph and give its value, as `call()` does, with options for the whole run.

        - `timeout`: seconds. Then all that runs is stopped, and RunTimeoutException raised. The
          error is the run's own: no task gets it as a value.
        - `workers`: at most so many processes, and so many threads, run tasks at a time, also in
          runs that bodies call. By default as many as there are CPUs, more while some only wait.
        - `start`: how worker processes are started: "auto", "fork", "forkserver" or "spawn".
        - `progress`: whether to show how far it is.

        Raises OptionError for bad options, else what `call()` raises.

            report.run(timeout=600, workers=4)
        """
        try:
            check_seconds("run", timeout=timeout)
            if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
                raise OptionError(f"run: workers={value_in_short(workers)}; it must be a whole number, at least 1, or None for no limit")
            options: dict[str, Any] = {"progress": progress, "start": start, "timeout": timeout, "workers": workers}
            if _pending and self in _pending:
                future = _future_of(self, self, options)
                if future.run_first():
                    return future.result()
            return self._run_after_hits(options).value()
        except BaseException as error:
            hide(error)
            raise

    def _run(
        self,
        progress: bool | None = None,
        start: str | None = None,
        timeout: float | None = None,
        workers: int | None = None,
    ) -> Run:
        """The next execution of this graph."""
        check_whether("run", progress=progress)
        flow, observer = self._compiler.compile_call(self), observer_for(progress)
        if _run.elsewhere is not None and (elsewhere := _run.elsewhere()) is not None:
            run: Run | None = elsewhere.run_of(flow, start, observer, timeout, workers)
            if run is not None:
                return run
        return Run(flow, start, observer, timeout, workers)

    def _run_after_hits(self, options: dict[str, Any]) -> Any:
        """The next execution of what is left of this graph where kept values take the place of
        calls."""
        if _tasks.keeping is not None and (kept := _tasks.keeping()) is not None:
            return kept.run_kept(self._run(**options))
        if self._after_hits is None:
            return self._run(**options)
        return self._after_hits(self, lambda left: left._run(**options))

    @overload
    def future(self: Call[Call[V]], callback: Callable[[RunFuture[V]], object] | None = None) -> RunFuture[V]: ...
    @overload
    def future(self: Call[Coroutine[Any, Any, V]], callback: Callable[[RunFuture[V]], object] | None = None) -> RunFuture[V]: ...
    @overload
    def future(self: Call[V], callback: Callable[[RunFuture[V]], object] | None = None) -> RunFuture[V]: ...
    @knows_its_options("call.future")
    def future(self, callback: Callable[[Any], object] | None = None) -> RunFuture[Any]:
        """A `concurrent.futures.Future` of the next run of this call.

        The next `call()` or `call(proc=True)` is that run. Until then, the future's `entangle()`,
        `result()` or `exception()` starts one. `callback` gets the future when it is done.
        """
        check_callback(callback)
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
    @edge
    def __await__(self) -> Any:
        """Run the graph without blocking the event loop.

        Cancelling the waiting task cancels the run and stops its processes.
        """
        return _future_of(self, self, {}).wait_in_loop().__await__()

    @edge
    def graph(self, wait: bool = True) -> Any:
        """The graph as nested dicts: each task's name with what it takes; constants by their text.

        What the outermost call takes is a list, and so are siblings of which two have one name.
        `wait=False` gives a future of the graph. Raises OptionError for a `wait` that is no bool.
        """
        check_whether("graph", wait=wait)
        if wait:
            return self._compiler.as_dict(self)
        from entangle._run.future import RunFuture

        return RunFuture(lambda: self._compiler.as_dict(self), lambda: None)


#: Operators that a call refuses, by the methods that Python calls for them. The first ones also
#: have a method for the right side.
_TWO_SIDED = {
    **{"add": "+", "sub": "-", "mul": "*", "matmul": "@", "truediv": "/", "floordiv": "//", "mod": "%", "divmod": "divmod()"},
    **{"pow": "**", "lshift": "<<", "rshift": ">>", "and": "&", "xor": "^", "or": "|"},
}
_ONE_SIDED = {
    **{"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "neg": "-", "pos": "+", "invert": "~", "abs": "abs()", "round": "round()"},
    **{"int": "int()", "float": "float()", "complex": "complex()"},
}


def _refuse_operators() -> None:
    """Give calls methods that say that a call has not run, where Python would only say that it has
    no such operator."""

    def refuse(method: str, what: str) -> None:
        @edge
        @passes_on
        def refused(self: Call[Any], *_: Any) -> NoReturn:
            raise self._not_run(what)  # type: ignore[attr-defined]

        setattr(Call, method, refused)

    for side in ("", "r"):
        for name, written in _TWO_SIDED.items():
            refuse(f"__{side}{name}__", f"is no operand of `{written}`")
    for name, written in _ONE_SIDED.items():
        refuse(f"__{name}__", f"is no operand of `{written}`")
    for name in ("getitem", "setitem", "delitem"):
        refuse(f"__{name}__", "has no items")
    refuse("__index__", "is no whole number")


_refuse_operators()

# The descriptors of the slots bypass `__setattr__`, in a third of the time of `object.__setattr__`.
_set_task, _set_args, _set_kwargs, _set_name = (vars(Call)[name].__set__ for name in ("task", "args", "kwargs", "name"))


class MappedCalls:
    """Calls of one task with plain arguments, as `map` builds them: made one by one only where
    somebody asks for single ones.

    `constants` has the arguments of one call after the other, `width` of each.
    """

    __slots__ = ("_calls", "_in_short", "constants", "count", "numbers", "task", "width")

    #: How many have been made one by one in this process.
    made: ClassVar[int] = 0

    def __init__(self, task: Decorated, constants: list[Any], width: int, numbers: bool) -> None:
        self.task = task
        #: Whether all arguments are of type int.
        self.numbers = numbers
        self.constants = constants
        self.width = width
        self.count = len(constants) // width
        self._calls: tuple[Call[Any], ...] | None = None
        self._in_short: array[int] | None = None

    @staticmethod
    def of(task: Decorated, rows: Sequence[Any], width: int) -> MappedCalls | None:
        """The calls of a task with these arguments; with `width` 0, each row is the one argument.

        None where they must be looked at one by one.
        """
        constants = [argument for row in rows for argument in row] if width else list(rows)
        kinds = set(map(type, constants)) if type(rows) is not range else {int}
        if len(rows) < LEAST_FAN or not all(map(_passed_on, kinds)):
            return None
        return MappedCalls(task, constants, width or 1, kinds == {int})

    @property
    def calls(self) -> tuple[Call[Any], ...]:
        """The calls, each once for all who ask."""
        with _making:
            if self._calls is None:
                task, constants, width = self.task, self.constants, self.width
                self._calls = tuple([Call(task, tuple(constants[at : at + width]), {}) for at in range(0, len(constants), width)])
                MappedCalls.made += 1
            return self._calls

    @property
    def in_short(self) -> array[int] | None:
        """The constants as an array, if all are of type int and have at most 64 bits."""
        if self._in_short is None and self.numbers:
            self._in_short = smallest_array(self.constants)
        return self._in_short

    @property
    def are_made(self) -> bool:
        """Whether the calls have been made one by one."""
        return self._calls is not None

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedCalls, (self.task, self.constants, self.width, self.numbers)


_making = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_making=threading.Lock()))


def _passed_on(kind: type) -> bool:
    """Whether all arguments of this type are passed on as they are: neither calls, nor containers
    that may hold some, nor copied."""
    if kind in UNCHANGING:
        return True
    if issubclass(kind, (Call, list, tuple, dict, set, frozenset)) or kind.__module__ in _COPIED:
        return False
    return (kind.__module__, kind.__name__) != ("numpy", "ndarray")


#: Modules with types of which arguments are copied (`is_copied` in `flow.py`), besides containers.
_COPIED = ("builtins", "collections")


class Gathered(Call[R_co]):
    """A call whose value is the list of the values of its arguments, which are calls.

    As an argument of another call it is that list: it has no node of its own. `accepts`: a failure
    of one of the calls is a value in the list. `chunk`: how many of them a worker takes at a time.
    """

    __slots__ = ("_accepts", "_chunk", "_items", "_node")

    #: The same task for worker processes. Filled in by `entangle.task`.
    in_process: ClassVar[Decorated]

    _accepts: bool
    _chunk: int
    _items: MappedCalls | None
    _node: Call[R_co] | None

    def __init__(self, task: Decorated, args: tuple[Any, ...] | MappedCalls, name: str | None, accepts: bool, chunk: int) -> None:
        super().__init__(task, () if isinstance(args, MappedCalls) else args, {}, name)
        _set_items(self, args if isinstance(args, MappedCalls) else None)
        _set_accepts(self, accepts)
        _set_chunk(self, chunk)
        _set_node(self, None)

    @property
    def args(self) -> tuple[Any, ...]:  # type: ignore[override]
        """The calls."""
        items = self._items
        return _get_args(self) if items is None else items.calls

    @property
    def items(self) -> MappedCalls | None:
        """The calls, where they have not been made one by one."""
        items = self._items
        return items if items is not None and not items.are_made else None

    @property
    def accepts(self) -> bool:
        """Whether a failure of one of the calls is a value in the list."""
        return self._accepts

    @property
    def chunk(self) -> int:
        """How many of the calls a worker takes at a time; 0: as many as seem best."""
        return self._chunk

    @property
    def node(self) -> Call[R_co]:
        """The same call with a node of its own; one and the same however often it is asked for.

        Where processes make the values, one makes the list: the caller need not take part.
        """
        node = self._node
        if node is None:
            there = any(task.body.carrier in (PROCESS, FRESH) for task in {call.task for call in self.args})
            node = Call(self.in_process if there else self.task, self.args, {}, self.name)
            _set_node(self, node)
        return node

    def __reduce__(self) -> tuple[Any, ...]:
        return Gathered, (self.task, self._given, self.name, self.accepts, self.chunk)

    @property
    def _given(self) -> tuple[Any, ...] | MappedCalls:
        return self._items or self.args

    def _named(self, name: str) -> Call[R_co]:
        return Gathered(self.task, self._given, name, self.accepts, self.chunk)

    def _with(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[Any]:
        for name, value in kwargs.items():
            hint = goes_elsewhere(name, value).replace("gather(call,", "gather(*calls,")
            hint = hint or _option_meant({name: value}) or "calls are given by position"
            raise ArgumentError(f"{self!r} takes more calls as arguments, and has no parameter {name!r}; {hint}")
        for argument in args:
            if not isinstance(argument, Call):
                raise ArgumentError(f"{self!r} takes more calls as arguments, not {in_short(argument)}; build one by calling a task")
        return Gathered(self.task, (*self.args, *args) if args else self._given, self.name, self.accepts, self.chunk)


_set_accepts, _set_chunk, _set_items, _set_node = (vars(Gathered)[name].__set__ for name in ("_accepts", "_chunk", "_items", "_node"))
_get_args = vars(Call)["args"].__get__

#: The types of calls, for a quick look at a value's type.
CALLS = frozenset((Call, Gathered))

#: Futures that wait for the next run of their call.
_pending: weakref.WeakKeyDictionary[Call[Any], RunFuture[Any]] = weakref.WeakKeyDictionary()


def _option_meant(kwargs: dict[str, Any], task: Decorated | None = None) -> str:
    """What to write for a misspelt option of a call or a run; an empty text if there is none."""
    for name, value in kwargs.items():
        if (task is not None and takes_keyword(task, name)) or goes_elsewhere(name, value):
            continue
        meant = nearest(name, (*RUN_KEYWORDS, "timeout", "workers"), 0.6)
        return "a call's own options are proc=, progress= and start=" if meant in RUN_KEYWORDS else goes_elsewhere(meant, value)
    return ""


def _future_of(owner: Call[Any], call: Call[Any], options: dict[str, Any]) -> RunFuture[Any]:
    """The future that waits for the next run of `owner`, else a new one that runs `call`."""
    from entangle._run.future import RunFuture

    run = call._run_after_hits(options)
    waiting = _pending.pop(owner, None)
    if waiting is not None and waiting.instead(run.value, run.cancel):
        return waiting  # now of this run, which may have arguments and options of its own
    return RunFuture(run.value, run.cancel)


def check_callback(callback: object) -> None:
    """Raise OptionError for a callback that cannot be called.

    A future would find that out when it is done, and only log it.
    """
    if callback is not None and not callable(callback):
        raise OptionError(f"future: callback={in_short(callback)}; it is a function that takes the future")


def in_short(value: object) -> str:
    """A value as the text of a call shows it: plain values as they are, others by their type."""
    if isinstance(value, Call):
        return f"{value.task.__name__}(…)"
    return value_in_short(value) if type(value) in (int, float, str, bool, type(None)) else f"<{type(value).__name__}>"
