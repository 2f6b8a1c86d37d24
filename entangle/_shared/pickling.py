"""Pickling for other processes: pickle, else cloudpickle, else an error that names the part."""

from __future__ import annotations

import contextvars
import functools
import io
import marshal
import pickle
import sys
import types
import typing
import weakref
from collections import ChainMap
from collections.abc import Callable
from typing import Any

from entangle._shared import context_variables, device_arrays, module_lookup, pickled_classes, pickled_errors
from entangle._shared.documentation import more
from entangle.errors import UnpicklableError, add_note

_OnBuffer = Callable[[pickle.PickleBuffer], Any]
_CACHED = type(functools.lru_cache(lambda: None))

#: The script's module, which no other process has; and its name in children of `multiprocessing`.
MAIN = frozenset(("__main__", "__mp_main__"))
#: Part of each pickle that refers to it.
OF_MAIN = b"_main__"
#: Modules that other processes cannot import by name: their definitions travel by value.
_by_value = set(MAIN)


def dumps(value: Any, buffer_callback: _OnBuffer | None = None, again: Callable[[], Any] | None = None, elsewhere: bool = False) -> bytes:
    """Pickle a value (protocol 5); by cloudpickle if pickle refuses (lambdas, local classes).

    With `elsewhere`, the reader may not have our `__main__`: its definitions travel by value.
    `again` is called before a second try, to reset collected buffers. Raises what cloudpickle
    raises if that refuses as well.
    """
    if device_arrays.MODULE in sys.modules:
        device_arrays.register()
    try:
        if module_lookup.travelled:
            body = by_name(value, buffer_callback)
        else:
            file = io.BytesIO()
            _Pickler(file, 5, buffer_callback=buffer_callback).dump(value)
            body = file.getvalue()
        if not (elsewhere and says_ours(body)):
            return body
    except Exception:  # a `__reduce__` may raise anything
        pass
    if again is not None:
        again()
    return by_value(value, buffer_callback, again)


#: Where the modules in pickles that earlier versions made are now.
_MOVED = {
    **{
        f"entangle._run.{before}": f"entangle._shared.{now}"
        for before, now in (
            ("classes", "pickled_classes"),
            ("pickling", "pickling"),
            ("raised", "pickled_errors"),
            ("segments", "segments"),
            ("variables", "context_variables"),
        )
    },
}
#: Classes that have other names now: layers of tasks, and their parts.
_RENAMED = {
    ("entangle._cache", "Cache"): ("entangle._tasks.cache_layer", "Remembering"),
    ("entangle._tasks.cache", "Cache"): ("entangle._tasks.cache_layer", "Remembering"),
    ("entangle._tasks.layer", "Attributes"): ("entangle._tasks.attributes", "Attributes"),
    ("entangle._dataflow.node", "Dataflow"): ("entangle._dataflow.flow_graph", "Dataflow"),
    ("entangle.interpreter", "InterpreterLayer"): ("entangle.interpreter", "Interpreter"),
    ("entangle.ssh", "Ssh"): ("entangle.ssh", "SSH"),
    **{
        (f"entangle._remote.transport.{name.lower()}", name): (f"entangle._remote.transport.{name.lower()}", f"{name}Transport")
        for name in ("Apptainer", "Docker", "Interpreter", "SSH")
    },
}


class _OfAnyVersion(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(*_RENAMED.get((module, name), (_MOVED.get(module, module), name)))


def loads_kept(pickled: bytes) -> Any:
    """Load a pickle that was kept, perhaps by an earlier version."""
    return _OfAnyVersion(io.BytesIO(pickled)).load()


def travel_by_value(module: types.ModuleType) -> None:
    """Send the definitions of this module by value from now on, as those of `__main__`."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(module)
    _by_value.add(module.__name__)


def travels_by_value(module: str) -> bool:
    """Whether the definitions of the module of this name travel by value."""
    if module in _by_value:
        return True
    if module_lookup.is_found(module):
        return False
    module_lookup.travelled.add(module)
    return True


def dumps_for_others(value: Any, buffer_callback: _OnBuffer | None = None, again: Callable[[], Any] | None = None) -> bytes:
    """Pickle a value for a process that may lack our `__main__` and other modules of ours.

    Their definitions travel by value. `again` is called before a second try, to reset collected
    buffers.
    """
    module_lookup.look_afresh()
    try:
        body = by_name(value, buffer_callback)
        if not says_ours(body):
            return body
    except Exception:  # a `__reduce__` may raise anything
        pass
    if again is not None:
        again()
    return by_value(value, buffer_callback, again)


def says_ours(pickled: bytes) -> bool:
    """Whether a pickle names definitions that another process does not find: those of our script,
    and of modules that travel by value."""
    return any(name.encode() in pickled for name in _by_value)


class _Along(Exception):
    """Raised when a function or a class must travel by value."""


class _Pickler(pickle.Pickler):
    """pickle's own, but for errors: one may lie anywhere in a value, as a failure that is one."""

    def reducer_override(self, value: Any) -> Any:
        """Pickle errors so that they can be made again."""
        return pickled_errors.reduced(value) or NotImplemented if isinstance(value, BaseException) else NotImplemented


class PicklerByName(pickle.Pickler):
    """A pickler that raises where plain pickle would import a module to look up a name."""

    def reducer_override(self, value: Any) -> Any:
        """Pickle functions and classes by name, and everything else as usual."""
        module = value.__module__ if isinstance(value, (types.FunctionType, type)) else None
        if isinstance(module, str) and module not in MAIN and travels_by_value(module):
            raise _Along(module)
        if isinstance(value, BaseException):
            return pickled_errors.reduced(value) or NotImplemented
        return _for_others(value)


def by_name(value: Any, buffer_callback: _OnBuffer | None = None) -> bytes:
    """Pickle a value whose functions and classes the reader finds by name; raises if it cannot."""
    device_arrays.register()
    file = io.BytesIO()
    PicklerByName(file, 5, buffer_callback=buffer_callback).dump(value)
    return file.getvalue()


def by_value(value: Any, buffer_callback: _OnBuffer | None = None, again: Callable[[], Any] | None = None) -> bytes:
    """Pickle a value by cloudpickle: definitions that the reader cannot import travel along.

    `again` is called before a second try, to reset collected buffers.
    """
    file = io.BytesIO()
    try:
        pickler_by_value(file, buffer_callback).dump(value)
    except pickle.PicklingError as error:
        if sys.version_info >= (3, 12) or not isinstance(error.__cause__, RecursionError) or (buffer_callback and not again):
            raise
        if again is not None:
            again()
        # Up to Python 3.11, each nested list takes two levels of the recursion limit; later, none.
        file = io.BytesIO()
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(4 * limit)
        try:
            pickler_by_value(file, buffer_callback).dump(value)
        finally:
            sys.setrecursionlimit(limit)
    return file.getvalue()


def pickler_by_value(file: Any, buffer_callback: _OnBuffer | None = None) -> pickle.Pickler:
    """The pickler that `by_value` uses, writing to `file`."""
    device_arrays.register()
    made: pickle.Pickler = _kind_by_value()(file, 5, buffer_callback)
    return made


@functools.cache
def _kind_by_value() -> Any:
    """cloudpickle's pickler, loaded on first use, with our additions.

    They are in a table of their own: `copyreg` would change what all other code here pickles.
    """
    import cloudpickle

    if "__mp_main__" in sys.modules and sys.modules["__mp_main__"].__name__ == "__mp_main__":
        # cloudpickle would take it for a module that others can import.
        cloudpickle.register_pickle_by_value(sys.modules["__mp_main__"])
    table = ChainMap(_OURS, cloudpickle.Pickler.dispatch_table)
    usual = cloudpickle.Pickler.reducer_override

    def reducer_override(self: Any, value: Any) -> Any:
        if isinstance(value, (types.FunctionType, type)):
            _take_along(value.__module__)
        elif isinstance(value, BaseException):
            return pickled_errors.reduced(value) or NotImplemented
        elif (reduced := _for_others(value)) is not NotImplemented:
            return reduced
        reduced = usual(self, value)
        # cloudpickle gives six parts for a class that it does not pickle by name.
        if isinstance(value, type) and reduced is not NotImplemented and len(reduced) == 6:
            return pickled_classes.reduced(value, reduced, not travels_by_value(value.__module__))
        return reduced

    return type("PicklerByValue", (cloudpickle.Pickler,), {"dispatch_table": table, "reducer_override": reducer_override})


#: Types that our processes pickle in another way than a user's own pickle would, and how.
_otherwise: list[tuple[type, Callable[[Any], Any]]] = []


def otherwise(kind: type, reduce: Callable[[Any], Any]) -> None:
    """Have our picklers use `reduce` for values of this type, instead of their `__reduce__`."""
    _otherwise.append((kind, reduce))


def _for_others(value: Any) -> Any:
    for kind, reduce in _otherwise:
        if issubclass(type(value), kind):
            return reduce(value)
    return NotImplemented


#: Modules that travel by value only while they are being imported.
_for_now: set[str] = set()


def _take_along(module: str | None) -> None:
    """Have cloudpickle pickle a module's definitions by value if others cannot find the module."""
    import cloudpickle

    for name in list(_for_now):
        if module_lookup.is_found(name):
            _for_now.discard(name)
            cloudpickle.unregister_pickle_by_value(sys.modules[name])
    if not isinstance(module, str) or module in _by_value or module in _for_now or module not in sys.modules:
        return
    if not travels_by_value(module):
        return
    cloudpickle.register_pickle_by_value(sys.modules[module])
    _for_now.add(module)


def _reduce_file(file: Any) -> Any:
    """Refuse an open text file: cloudpickle would send its text.

    Standard streams are sent by name: each process has its own.
    """
    for name in ("stdout", "stderr"):
        if file is getattr(sys, name):
            return getattr, (sys, name)
    raise TypeError(f"cannot pickle {type(file).__qualname__!r} object, the open file {getattr(file, 'name', '')!r}")


def _reduce_code(code: types.CodeType) -> Any:
    """Keep the file name of code for tracebacks and `inspect`; cloudpickle 3.1.3 drops it."""
    try:
        return marshal.loads, (marshal.dumps(code),)
    except ValueError:  # a constant put there by `replace`, which no compiler makes
        return _code_again, (marshal.dumps(code.replace(co_consts=())), code.co_consts)


def _code_again(marshalled: bytes, constants: tuple[Any, ...]) -> types.CodeType:
    code: types.CodeType = marshal.loads(marshalled)
    return code.replace(co_consts=constants)


def _reduce_variable(variable: Any) -> Any:
    """Send a context variable as its module and name; the reader makes one if it has none."""
    module = context_variables.module_of(variable)
    if not module:
        raise TypeError(f"cannot pickle {variable!r}: no module has it under its own name; assign it to {variable.name!r} in a module")
    try:
        default: tuple[Any, ...] = (contextvars.Context().run(variable.get),)
    except LookupError:
        default = ()
    return context_variables.variable_of, (module, variable.name, default)


def _reduce_cached(function: Any) -> Any:
    """Send a `functools.lru_cache` function as its parts if it cannot be found by name.

    Its cache stays here.
    """
    name = getattr(function, "__qualname__", "")
    module = getattr(function, "__module__", None) or ""
    found: Any = sys.modules.get(module) if not travels_by_value(module) else None
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is function:
        return name
    known = {key: value for key, value in vars(function).items() if key != "__wrapped__"}
    return _cached_again, (function.__wrapped__, function.cache_parameters()), known


def _cached_again(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _reduce_weak_keys(table: Any) -> Any:
    """Send a table with weak keys as a dict: its keys must travel by other references too.

    `functools.singledispatch` has one.
    """
    return type(table), (dict(table),)


def _reduce_cached_property(value: Any) -> Any:
    """Leave out its lock, which it has before Python 3.12."""
    return _cached_property_again, (value.func, value.attrname, value.__doc__)


def _cached_property_again(function: Callable[[Any], Any], name: str | None, text: str | None) -> Any:
    made = functools.cached_property(function)
    made.attrname, made.__doc__ = name, text
    return made


def _reduce_dispatching(method: Any) -> Any:
    """Leave out its cache of instances, which it has from Python 3.13 on."""
    return functools.singledispatchmethod, (method.func,), {"dispatcher": method.dispatcher}


def _reduce_new_type(made: Any) -> Any:
    """Send a `typing.NewType` of a script or a function as its parts: its name is not found."""
    name: str = made.__name__
    module = sys.modules.get(made.__module__) if not travels_by_value(made.__module__) else None
    if getattr(module, name, None) is made:
        return name
    return typing.NewType, (name, made.__supertype__), {"__module__": made.__module__}


#: What our pickler does otherwise than cloudpickle, by exact type.
_OURS: dict[type, Callable[[Any], Any]] = {
    _CACHED: _reduce_cached,
    types.CodeType: _reduce_code,
    contextvars.ContextVar: _reduce_variable,
    io.TextIOWrapper: _reduce_file,
    functools.cached_property: _reduce_cached_property,
    functools.singledispatchmethod: _reduce_dispatching,
    typing.NewType: _reduce_new_type,
    weakref.WeakKeyDictionary: _reduce_weak_keys,
    weakref.WeakValueDictionary: _reduce_weak_keys,
}


def why_not(value: Any, what: str, pickled_by: Callable[[Any], bytes] = dumps, instead: str = "let a @thread do it") -> UnpicklableError:
    """The error for a value that `pickled_by` refuses; `what` names it, as `the value of task
    'load'`, and `instead` says who needs not pickle it."""
    path, part, error = offending_part(value, lambda part: _refusal(part, pickled_by))
    kind = type(part).__qualname__ if type(part).__module__ == "builtins" else f"{type(part).__module__}.{type(part).__qualname__}"
    if path.startswith(_OF_FUNCTION):
        named = f"{path.removeprefix(_OF_FUNCTION)} (a {kind})"
        advice = "Make it inside the function"
    else:
        named = f"{kind} at {path}" if path else kind
        advice = "Give back something that can" if what.startswith(("the value of", "the error of")) else "Pass something that can"
    refused = UnpicklableError(
        f"{what} cannot travel to another process: {named} cannot be pickled ({type(error).__name__}: {error}). {advice}, or {instead}"
    )
    add_note(refused, more("how_to/errors"))
    return refused


def _refusal(value: Any, pickled_by: Callable[[Any], bytes]) -> Exception | None:
    try:
        pickled_by(value)
    except Exception as error:
        return error
    return None


def offending_part(value: Any, refusal: Callable[[Any], Exception | None]) -> tuple[str, Any, Exception]:
    """The smallest part of `value` that cannot be pickled: the way to it, the part, the error.

    `refusal` gives the error of pickling a part, or None.
    """
    seen = {id(value): value}  # holds the values, so that ids stay unique

    def look(value: Any, path: str, error: Exception, depth: int) -> tuple[str, Any, Exception] | None:
        around = False
        for step, part in _parts(value) if depth else ():
            if id(part) in seen:
                # Functions that call each other: the fault lies beside that one.
                around = around or part is not value
                continue
            refused = refusal(part)
            if refused is not None:
                seen[id(part)] = part
                found = look(part, path + step, refused, depth - 1)
                if found is not None:
                    return found
                around = True
        return None if around else (path, value, error)

    error = refusal(value) or TypeError("it could not be pickled a moment ago")
    return look(value, "", error, 32) or ("", value, error)


#: The first step to what a function uses.
_OF_FUNCTION = " → "


def _parts(value: Any) -> list[tuple[str, Any]]:
    """The parts of a value, each with the step that leads there."""
    if isinstance(value, dict):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [(f"{{{item!r}}}", item) for item in value]
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value)
    if isinstance(value, types.MethodType):
        return [("", value.__func__), (".__self__", value.__self__)]
    if isinstance(value, functools.partial):
        named = [(f".keywords[{name!r}]", item) for name, item in value.keywords.items()]
        return [("", value.func), *((f".args[{index}]", item) for index, item in enumerate(value.args)), *named]
    if isinstance(value, (staticmethod, classmethod)):
        return [("", value.__func__)]
    if isinstance(value, property):
        return [("", value.fget)]
    parts = [("" if name == "__wrapped__" else f".{name}", item) for name, item in getattr(value, "__dict__", {}).items()]
    if isinstance(value, BaseException):
        parts = [(f".args[{index}]", item) for index, item in enumerate(value.args)] + parts
    if isinstance(value, type):
        return [(step, part) for step, part in parts if type(part).__name__ not in _MADE_WITH_ITS_CLASS]
    kind = type(value)
    # Any other class is found by its name.
    along = travels_by_value(kind.__module__) or "<locals>" in kind.__qualname__
    return [*parts, (f"{_OF_FUNCTION}its class", kind)] if along else parts


#: Type names of attributes of a class that are not sent with it.
_MADE_WITH_ITS_CLASS = ("getset_descriptor", "member_descriptor", "_abc_data")


def _parts_of_function(function: types.FunctionType) -> list[tuple[str, Any]]:
    """What travels with a function sent by value: globals and closures that it uses, defaults."""
    parts = []
    space = function.__globals__
    parts += [(f"{_OF_FUNCTION}its global {name!r}", space[name]) for name in _globals_used(function.__code__) if name in space]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            parts.append((f"{_OF_FUNCTION}its variable {name!r}", cell.cell_contents))
        except ValueError:  # an unbound variable
            continue
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return parts + [(f"{_OF_FUNCTION}a default value of its parameters", item) for item in defaults]


def _globals_used(code: types.CodeType) -> list[str]:
    """The globals that code and its inner functions use; `co_names` has attributes as well."""
    import dis

    names = {step.argval: None for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(_globals_used(constant)))
    return list(names)
