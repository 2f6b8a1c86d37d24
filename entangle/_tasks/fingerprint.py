"""The fingerprint of a task with its arguments: the key under which `cache=True` keeps a value.

A value depends on the code of its function, on the project's own functions and classes that the
code reaches, on the globals and closures that these read, and on the arguments. All of them count
by their content: code without positions, comments and docstrings; containers by their items;
objects by their class and what pickle would keep of them. The standard library and installed
packages count by name.

The key is the same in every process of a run, however the process was started and whatever its
hash seed is. Something that has no such form is an error that names it: a weaker key would one day
give a wrong value.
"""

from __future__ import annotations
import __future__

import copyreg
import dis
import enum
import functools
import hashlib
import importlib
import importlib.util
import inspect
import logging
import os
import pickle
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from entangle._shared.pickling import MAIN, travels_by_value
from entangle._tasks.layer import peel
from entangle.errors import CacheKeyError
from entangle.task import Call, Task

_PLAIN = (type(None), bool, int, float, complex, str, type(Ellipsis), type(NotImplemented))
#: Set by `from __future__ import annotations`; it does not change what code computes.
_ANNOTATIONS: int = __future__.annotations.compiler_flag
_NUMBERS = {bool, int, float, type(None)}
#: Locks, events and loggers: no part of a value.
_MUTE = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, threading.Semaphore, logging.Logger)
#: Methods of compiled classes, and the slots of others.
_DESCRIPTORS = (
    *(types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType),
    *(types.MethodDescriptorType, types.ClassMethodDescriptorType),
)
#: Attributes of a class that do not say what it does, or differ from process to process.
_ABOUT_CLASS = frozenset(
    (
        *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__", "_abc_impl"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__abstractmethods__", "__parameters__"),
        *("__orig_bases__", "__subclasshook__", "__slotnames__", "__non_callable_proto_members__", "__protocol_attrs__"),
    )
)
_OF_ENUM = frozenset(("_member_names_", "_member_map_", "_value2member_map_", "_hashable_values_", "_unhashable_values_"))


class _Facts(NamedTuple):
    """Facts about code.

    `said`: all but its constants. `constants`: those that it uses. `reads`: the globals. `names`:
    all names, attributes included. `imports`: modules, and how many packages up each begins.
    """

    said: tuple[Any, ...]
    constants: list[Any]
    reads: list[str]
    names: frozenset[str]
    imports: list[tuple[str, int]]


_facts: dict[int, tuple[types.CodeType, _Facts]] = {}


def fingerprint(name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The key of a call of task `name`; `function` is what lies below the cache.

    Raises CacheKeyError.
    """
    key = _Key(name)
    layers, target = _below(function)
    for layer in layers:
        key.add(layer, f"the layer {type(layer).__name__}")
    key.add((target.__module__, target.__qualname__) if isinstance(target, types.FunctionType) else None, "the function")
    key.add(target, "the function")
    for what, value in _arguments(target, args, kwargs):
        key.say(what)
        key.add(value, f"argument {what}")
    return key.digest()


def _below(function: Any) -> tuple[list[Any], Any]:
    """The user's own layers around a function, and that function; our layers do not count."""
    layers: list[Any] = []
    while True:
        if isinstance(function, Task):
            layers += function.layers
            function = function.function
        elif isinstance(function, functools.partial) and function.func is peel:
            layers.append(function.args[0])
            function = function.args[1]
        elif isinstance(function, types.FunctionType) and _is_entangle(function.__globals__.get("__name__", "")) and function.__closure__:
            inner = [one for one in (cell.cell_contents for cell in function.__closure__) if _is_inner(one)]
            if len(inner) != 1:
                break
            function = inner[0]
        else:
            break
    return [layer for layer in layers if not _is_entangle(type(layer).__module__)], function


def _is_inner(held: Any) -> bool:
    """Whether an object that a wrapper of ours holds is what it wraps."""
    return isinstance(held, (Task, functools.partial)) or (callable(held) and not _is_entangle(type(held).__module__))


def _arguments(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    """The arguments by the names of their parameters, defaults included."""
    if isinstance(function, types.FunctionType):
        try:
            bound = inspect.signature(function, follow_wrapped=False).bind(*args, **kwargs)
        except (TypeError, ValueError):
            pass
        else:
            bound.apply_defaults()
            more = _gathering(function)
            return [(name, dict(sorted(value.items())) if name == more else value) for name, value in bound.arguments.items()]
    return [(str(number), value) for number, value in enumerate(args)] + sorted(kwargs.items())


def _gathering(function: types.FunctionType) -> str:
    """The name of the parameter `**name`, or "". The order of its arguments does not count."""
    code = function.__code__
    if not code.co_flags & inspect.CO_VARKEYWORDS:
        return ""
    return code.co_varnames[code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)]


class _Key:
    """A hash to which values are added, each with its name for errors."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._hash = hashlib.sha256()
        #: Objects that have been added, by `id`; held, so that no other object gets that `id`.
        self._seen: dict[int, tuple[int, Any]] = {}
        #: The names that have been read from modules of the project.
        self._read_of: set[tuple[str, str]] = set()

    def digest(self) -> str:
        return self._hash.hexdigest()

    def say(self, *facts: Any) -> None:
        """Add plain facts, each with its type and length: no two lists of facts look alike."""
        for one in facts:
            body = one if isinstance(one, bytes) else repr(one).encode("utf-8", "surrogatepass")
            self._hash.update(b"%s %d:" % (type(one).__name__.encode(), len(body)))
            self._hash.update(body)

    def add(self, value: Any, what: str) -> None:
        """Add a value of any kind."""
        kind = type(value)
        if kind in _PLAIN or kind is bytes:
            self.say(value)
        elif kind is tuple:
            self.say("tuple", len(value))
            for number, part in enumerate(value):
                self.add(part, f"{what}[{number}]")
        elif kind in (set, frozenset):
            self.say(kind.__name__, *sorted(self._apart(part, f"an item of {what}") for part in value))
        elif isinstance(value, _MUTE):
            self.say("mute", kind.__qualname__)
        elif isinstance(value, pickle.PickleBuffer):
            self._buffer(value)
        elif id(value) in self._seen:
            self.say("again", self._seen[id(value)][0])
        else:
            self._seen[id(value)] = len(self._seen), value
            try:
                self._add_object(value, kind, what)
            except CacheKeyError:
                raise
            except Exception as error:  # raised by some __reduce__, or an endless recursion
                raise self._error(value, what, error) from None

    def _error(self, value: Any, what: str, why: Exception) -> CacheKeyError:
        kind = type(value)
        named = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        return CacheKeyError(
            f"cache=True of task {self._task!r}: no cache key can be made of {what} (a {named}), since its content cannot be read "
            f"({type(why).__name__}: {why}). Give the function plain data instead, or leave cache=True out"
        )

    def _apart(self, value: Any, what: str) -> str:
        other = _Key(self._task)
        other.add(value, what)
        return other.digest()

    def _buffer(self, buffer: pickle.PickleBuffer) -> None:
        with buffer.raw() as raw:
            self._hash.update(b"buffer %d:" % raw.nbytes)
            self._hash.update(raw)

    def _add_object(self, value: Any, kind: type, what: str) -> None:
        if kind is list and len(value) > 1000 and set(map(type, value)) <= _NUMBERS:
            self.say("numbers", pickle.dumps(value, 5))
        elif kind is list:
            self.say("list", len(value))
            for number, part in enumerate(value):
                self.add(part, f"{what}[{number}]")
        elif kind is dict:
            self.say("dict", len(value))
            for key, part in value.items():
                self.add(key, f"a key of {what}")
                self.add(part, f"{what}[{key!r}]")
        elif isinstance(value, types.ModuleType):
            self.say("module", _named(value.__name__))
        elif isinstance(value, (types.FunctionType, type)) and (name := _library_name(value)):
            self.say("by name", *name)
        elif isinstance(value, types.FunctionType):
            self._function(value, what)
        elif isinstance(value, type):
            self._class(value, what)
        elif isinstance(value, types.CodeType):
            self._code(value, what)
        elif isinstance(value, types.MethodType):
            self.add((value.__func__, value.__self__), what)
        elif isinstance(value, types.BuiltinFunctionType):
            itself = value.__self__
            self.say("builtin", value.__qualname__)
            self.add(None if itself is None or isinstance(itself, types.ModuleType) else itself, what)
        elif isinstance(value, Task):
            layers, function = _below(value)
            self.say("task")
            self.add((function, layers), f"task {value.__name__!r}")
        elif isinstance(value, Call):
            self.add((value.task, value.args, value.kwargs), what)
        elif _is_entangle(kind.__module__):
            self.say("ours", kind.__qualname__)
        elif isinstance(value, (staticmethod, classmethod)):
            self.say(kind.__name__)
            self.add(value.__func__, what)
        elif isinstance(value, property):
            self.add((value.fget, value.fset, value.fdel), what)
        elif isinstance(value, functools.cached_property):
            self.add(value.func, what)
        elif isinstance(value, functools._lru_cache_wrapper):
            self.add(value.__wrapped__, what)
        elif isinstance(value, types.MappingProxyType):
            self.add(dict(value), what)
        elif isinstance(value, _DESCRIPTORS):
            self.say("descriptor", value.__name__)
        elif kind.__module__.startswith("numba.") and isinstance(getattr(value, "py_func", None), types.FunctionType):
            self.add((kind, value.py_func), what)
        else:
            self._instance(value, kind, what)

    def _instance(self, value: Any, kind: type, what: str) -> None:
        """Add an object, by what pickle would write of it."""
        reduced = copyreg.dispatch_table[kind](value) if kind in copyreg.dispatch_table else value.__reduce_ex__(5)
        self.say("instance")
        self.add(kind, f"the class of {what}")
        if isinstance(reduced, str):
            self.say(reduced)
            return
        make, args, state, items, pairs = (*reduced[:5], None, None, None)[:5]
        self.add(make, what)
        self.add(args, what)
        if isinstance(state, dict):
            self.say("state", len(state))
            for name, part in state.items():
                self.add(name, what)
                self.add(part, f"{what}.{name}")
        else:
            self.add(state, what)
        self.add(None if items is None else list(items), what)
        self.add(None if pairs is None else [tuple(pair) for pair in pairs], what)

    def _function(self, function: types.FunctionType, what: str) -> None:
        self.say("function")
        facts = self._code(function.__code__, what)
        self.add(function.__defaults__, f"a default value of {what}")
        self.add(sorted((function.__kwdefaults__ or {}).items()), f"a default value of {what}")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.say(name)
            try:
                held = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            self.add(held, f"variable {name!r} of {function.__qualname__}")
        self._attributes(function, facts)
        space = function.__globals__
        if not _is_of_project(space.get("__name__", "")):
            return  # a library, which counts by its name
        for name in facts.reads:
            if name in space:
                self.say(name)
                self._read(space[name], facts, f"the global {name!r} that {function.__qualname__} uses")
            else:
                self.say(name, "builtin")
        for module, level in facts.imports:
            self._import(module, level, space, facts, function.__qualname__)

    def _attributes(self, function: types.FunctionType, facts: _Facts) -> None:
        """Add the attributes of a function that code reads."""
        for name in sorted(facts.names & vars(function).keys()):
            if not (name.startswith("__") and name.endswith("__")):
                self.say(name)
                self.add(vars(function)[name], f"the attribute {name!r} of {function.__qualname__}")

    def _read(self, value: Any, facts: _Facts, what: str) -> None:
        """Add what code reads: of functions and modules of the project, the attributes it names."""
        self.add(value, what)
        if isinstance(value, types.FunctionType):
            self._attributes(value, facts)
        if not isinstance(value, types.ModuleType) or not _is_of_project(value.__name__):
            return
        for name in sorted(facts.names & vars(value).keys()):
            part = vars(value)[name]
            if not (name.startswith("__") and name.endswith("__")) and (value.__name__, name) not in self._read_of:
                self._read_of.add((value.__name__, name))
                self.say(name)
                self._read(part, facts, f"{value.__name__}.{name}")

    def _import(self, module: str, level: int, space: dict[str, Any], facts: _Facts, who: str) -> None:
        """Add a module that a function imports when it runs; imports it, as the function would."""
        try:
            name = importlib.util.resolve_name("." * level + module, space.get("__package__") or "") if level else module
            self.say("import", name)
            if _is_of_project(name):
                importlib.import_module(name)
        except ImportError:
            self.say("missing")
            return
        for one in dict.fromkeys((name.partition(".")[0], name)):
            if one in sys.modules:
                self._read(sys.modules[one], facts, f"module {one} that {who} imports")

    def _code(self, code: types.CodeType, what: str) -> _Facts:
        facts = _facts_of(code)
        self.say(*facts.said)
        for constant in facts.constants:
            if isinstance(constant, types.CodeType):
                self._code(constant, what)
            else:
                self.add(constant, f"a constant of {what}")
        return facts

    def _class(self, kind: type, what: str) -> None:
        self.say("class", kind.__qualname__)
        for base in kind.__bases__:
            self.add(base, f"a base of class {kind.__qualname__}")
        self.add(type(kind), f"the metaclass of {kind.__qualname__}")
        skipped = _ABOUT_CLASS
        if isinstance(kind, enum.EnumMeta):
            members: dict[str, Any] = dict(kind.__members__)
            skipped |= _OF_ENUM | members.keys()
            self.add([(name, member.value) for name, member in members.items()], f"a member of {kind.__qualname__}")
        for name, value in sorted(vars(kind).items()):
            if name not in skipped and not isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
                self.say(name)
                self.add(value, f"{kind.__qualname__}.{name}")


def _facts_of(code: types.CodeType) -> _Facts:
    known = _facts.get(id(code))
    if known is not None:
        return known[1]
    used: dict[int, Any] = {}
    reads: set[str] = set()
    imports: set[tuple[str, int]] = set()
    names = set(code.co_names)
    before: list[Any] = [0, 0]
    for step in dis.get_instructions(code):
        if step.opname in ("EXTENDED_ARG", "CACHE"):
            continue
        if step.opcode in dis.hasconst and step.arg is not None:
            used[step.arg] = code.co_consts[step.arg]
        elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            reads.add(str(step.argval))
        elif step.opname == "IMPORT_NAME":
            imports.add((str(step.argval), before[-2]))  # the level is loaded before the names
        before = [before[-1], step.argval]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _facts_of(constant)
            reads.update(inner.reads)
            names.update(inner.names)
            imports.update(inner.imports)
    said = (
        *(code.co_code, getattr(code, "co_exceptiontable", b""), code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars),
        *(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & ~_ANNOTATIONS),
    )
    facts = _Facts(said, [used[number] for number in sorted(used)], sorted(reads), frozenset(names), sorted(imports))
    if len(_facts) > 1000:
        _facts.clear()
    _facts[id(code)] = code, facts  # holds the code, so that no other gets its `id`
    return facts


def _named(module: str) -> str:
    return "__main__" if module in MAIN else module


def _is_entangle(module: str) -> bool:
    return module.partition(".")[0] == "entangle" and not module.startswith(("entangle.tests", "entangle.examples"))


#: Where the standard library lies, and the directories of installed packages.
_STANDARD = os.path.dirname(os.__file__) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


@functools.lru_cache(maxsize=4096)
def _is_library(module: str) -> bool:
    """Whether a module belongs to the standard library, to entangle or to an installed package.

    Decided by where it lies, not by its name: a file of the project may be called `queue`.
    """
    if _is_entangle(module) or module in sys.builtin_module_names:
        return True
    loaded = sys.modules.get(module)
    origin = getattr(loaded, "__file__", None)
    if loaded is None:
        try:
            spec = importlib.util.find_spec(module.partition(".")[0])
        except (ImportError, ValueError):
            return False
        origin = spec.origin if spec is not None else None
    if origin is None:
        return False
    return (
        origin == "frozen" or origin.startswith(_STANDARD) or not origin.endswith((".py", ".pyc")) or any(at in origin for at in _INSTALLED)
    )


def _is_of_project(module: str) -> bool:
    return module in MAIN or not _is_library(module)


def _library_name(value: Any) -> tuple[str, str] | None:
    """The module and name of a function or class of a library; None for others and local ones."""
    module = getattr(value, "__module__", None) or ""
    if not isinstance(module, str) or module not in sys.modules or _is_of_project(module) or travels_by_value(module):
        return None
    found: Any = sys.modules[module]
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return (module, value.__qualname__) if found is value else None
