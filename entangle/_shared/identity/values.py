"""The content of a value as bytes: equal for equal values, in every process.

Containers count by their items, in order (sets have none); objects by their class and what pickle
would keep of them; files, generators and the like have no content. What is long is replaced by its
hash. Which objects are shared makes no difference, except that an object may hold itself.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import marshal
import pickle
import sys
import threading
import types
from collections.abc import Callable
from itertools import chain
from typing import Any

from entangle._shared.identity import arrays, project
from entangle._shared.identity.wrapped import is_call, is_task, unwrapped

_Reference = Callable[[Any], bytes]

#: What `marshal` writes by content, in its version 2, which has no references.
LEAVES = frozenset((type(None), bool, int, float, complex, str, bytes, type(Ellipsis)))
#: How many bytes a content may have before its hash stands for it.
_LONG = 64
#: Types that do not count: locks, events and the state of threads change no result.
_MUTE = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, threading.Semaphore, threading.local)
#: Methods of compiled classes, and the slots of others.
DESCRIPTORS = (
    *(types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType),
    *(types.MethodDescriptorType, types.ClassMethodDescriptorType),
)
_FAR = 1 << 30


class NoContent(Exception):
    """A value has no content that could be told. `where` leads to it, from the outside in."""

    def __init__(self, value: Any, why: BaseException | str) -> None:
        super().__init__(value, why)
        self.value = value
        self.why = why
        self.where: list[str] = []

    def within(self, where: str) -> NoContent:
        """The same, seen from what holds it."""
        self.where.insert(0, where)
        return self


def is_mute(value: Any) -> bool:
    """Whether a value does not count: a lock or another of these, or a logger."""
    return isinstance(value, (_MUTE, _known("logging", "Logger"), _known("logging", "LoggerAdapter")))


def _known(module: str, name: str) -> Any:
    """A class of a module, for `isinstance`; () where the module is not loaded. Importing it takes
    longer than most keys, and a value of such a class is in no process that has not loaded it."""
    return getattr(sys.modules.get(module), name, ())


def _of_library(value: Any) -> bytes:
    name = project.library_name(value) if isinstance(value, (types.FunctionType, type)) else None
    if name is None:
        raise NoContent(value, "it is no plain value")
    return by_name(*name)


def by_name(*names: str) -> bytes:
    """What stands for something that counts by its name."""
    return b"@" + marshal.dumps(names, 2)


def attributes_of(function: types.FunctionType) -> dict[str, Any]:
    """What a function of the project has been given: whoever is handed the function may read it."""
    if not vars(function) or project.is_library(function.__globals__.get("__name__") or ""):
        return {}
    return {name: value for name, value in sorted(vars(function).items()) if name == "__wrapped__" or not name.startswith("__")}


def hashed(content: bytes) -> bytes:
    """A content, or its hash if it is long."""
    return content if len(content) <= _LONG else b"#" + hashlib.sha256(content).digest()


class Content:
    """Tells the content of values. `reference` tells that of functions, classes and modules.

    With `mute`, locks and loggers are no content; else they are refused. An object of it may be
    used once more after `NoContent`, and by one thread at a time.
    """

    def __init__(self, reference: _Reference = _of_library, mute: bool = True) -> None:
        self._reference = reference
        self._mute = mute
        #: The depths of the objects that are being told, by `id`.
        self._open: dict[int, int] = {}
        #: The least depth to which something within the current object leads back.
        self._back = _FAR
        #: What has been told, with the objects, so that no other gets the `id`.
        self._told: dict[int, tuple[bytes, Any]] = {}

    def of(self, value: Any) -> bytes:
        """The content of a value, of at most 65 bytes. Raises NoContent."""
        if type(value) in LEAVES:
            if type(value) is bytes and len(value) > _LONG:
                return b"bytes " + hashlib.sha256(value).digest()  # without a copy
            content = b"=" + marshal.dumps(value, 2)
            return content if len(content) <= _LONG else hashed(content)
        key = id(value)
        told = self._told.get(key)
        if told is not None:
            return told[0]
        depth = self._open.get(key)
        if depth is not None:
            self._back = min(self._back, depth)
            return b"^%d;" % (len(self._open) - depth)
        mine = len(self._open)
        outside, self._back = self._back, _FAR
        self._open[key] = mine
        try:
            content = self._of_object(value, type(value))
        except NoContent:
            raise
        except Exception as error:  # raised by some __reduce__, or nested too deep
            raise NoContent(value, error) from None
        finally:
            del self._open[key]
            back, self._back = self._back, min(outside, self._back)
        if len(content) > _LONG:
            content = b"#" + hashlib.sha256(content).digest()
            if back >= mine:  # else it depends on what it is in
                self._told[key] = content, value
        return content

    def _of_object(self, value: Any, kind: type) -> bytes:
        if kind is list or kind is tuple:
            return self._items(value, kind)
        if kind is dict:
            return self._pairs(value)
        if kind is set or kind is frozenset:
            return b"%b %d:" % (kind.__name__.encode(), len(value)) + b"".join(sorted(map(self.of, value)))
        if isinstance(value, types.FunctionType):
            attributes = attributes_of(value)
            return self._reference(value) + (b" with " + self.of(attributes) if attributes else b"")
        if isinstance(value, (type, types.ModuleType, types.CodeType)):
            return self._reference(value)
        if is_mute(value):
            if self._mute or isinstance(value, _known("logging", "Logger")):
                return b"mute " + kind.__qualname__.encode()
            raise NoContent(value, "it is the state of a process")
        special = _SPECIAL.get(kind)
        if special is not None:
            return kind.__qualname__.encode() + b" " + self.of(special(value))
        if isinstance(value, pickle.PickleBuffer):
            with value.raw() as raw:
                return b"buffer " + hashlib.sha256(raw).digest()
        if isinstance(value, _known("pathlib", "PurePath")) and project.library_name(kind):
            return b"path " + self.of((kind.__name__, str(value)))
        if isinstance(value, types.BuiltinFunctionType):
            return self._builtin(value)
        if isinstance(value, DESCRIPTORS):
            owner = getattr(value, "__objclass__", None)
            return b"descriptor " + self.of((value.__name__, getattr(owner, "__qualname__", "")))
        if is_task(value):
            return b"task " + self.of(unwrapped(value))
        if is_call(value):
            return b"call " + self.of((value.task, value.args, value.kwargs))
        of_array = arrays.content(value, kind)
        if of_array is not None:
            return b"array " + b"".join(part if type(part) is bytes else self.of(part) for part in of_array)
        return self._instance(value, kind)

    def _items(self, value: Any, kind: type) -> bytes:
        kinds = set(map(type, value))
        if kinds <= LEAVES or (kinds == {tuple} and LEAVES.issuperset(map(type, chain.from_iterable(value)))):
            return b"+" + marshal.dumps(value, 2)
        parts = [b"%b %d:" % (kind.__name__.encode(), len(value))]
        for number, item in enumerate(value):
            try:
                parts.append(self.of(item))
            except NoContent as error:
                raise error.within(f"[{number}]") from None
        return b"".join(parts)

    def _pairs(self, value: dict[Any, Any]) -> bytes:
        if LEAVES.issuperset(map(type, value)) and LEAVES.issuperset(map(type, value.values())):
            return b"+" + marshal.dumps(value, 2)
        parts = [b"dict %d:" % len(value)]
        for key, item in value.items():
            try:
                parts.append(self.of(key))
                parts.append(self.of(item))
            except NoContent as error:
                raise error.within(f"[{key!r:.80}]") from None
        return b"".join(parts)

    def _builtin(self, value: types.BuiltinFunctionType) -> bytes:
        itself = value.__self__
        if itself is None or isinstance(itself, types.ModuleType):
            module = value.__module__ or ""
            return b"builtin " + self.of((module, value.__qualname__, project.compiled(module)))
        return b"builtin " + self.of((value.__qualname__, itself))

    def _instance(self, value: Any, kind: type) -> bytes:
        """What pickle would write of an object."""
        reduced = copyreg.dispatch_table[kind](value) if kind in copyreg.dispatch_table else value.__reduce_ex__(5)
        parts = [b"object ", self.of(kind)]
        if isinstance(reduced, str):
            parts.append(self.of((reduced, project.compiled(getattr(value, "__module__", None) or ""))))
            return b"".join(parts)
        make, args, state, items, pairs = (*reduced[:5], None, None, None)[:5]
        parts += [self.of(make), self.of(args)]
        if type(state) is dict:
            parts.append(b"state %d:" % len(state))
            for name, part in state.items():
                try:
                    parts += [self.of(name), self.of(part)]
                except NoContent as error:
                    raise error.within(f".{name}") from None
        else:
            parts.append(self.of(state))
        parts.append(self.of(None if items is None else list(items)))
        parts.append(self.of(None if pairs is None else [tuple(pair) for pair in pairs]))
        return b"".join(parts)


#: What counts of objects of these types.
_SPECIAL: dict[type, Callable[[Any], Any]] = {
    types.MethodType: lambda value: (value.__func__, value.__self__),
    types.MethodWrapperType: lambda value: (value.__name__, value.__objclass__, value.__self__),
    types.MappingProxyType: dict,
    staticmethod: lambda value: value.__func__,
    classmethod: lambda value: value.__func__,
    property: lambda value: (value.fget, value.fset, value.fdel),
    functools.cached_property: lambda value: (value.func, value.attrname),
    functools.partial: lambda value: (value.func, value.args, value.keywords),
    functools._lru_cache_wrapper: lambda value: (value.__wrapped__, *value.cache_parameters().items()),
    memoryview: lambda value: (value.format, value.shape, value.tobytes()),
    type(NotImplemented): lambda value: "NotImplemented",
}
