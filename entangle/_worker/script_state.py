"""What calls leave in the globals of a script: it is there for the next call, as in a module.

A function of the script travels with copies of the globals that it uses. In a pool of the standard
library, whose workers have the script itself, each worker has such a global once: an initializer
fills a table, a function keeps a connection. So it is here. What a function brings is taken where
the caller's value is another one than the last time; else the worker's own is put in its place,
with all that calls have done to it. Attributes of the script's classes likewise.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
from hashlib import blake2b
from typing import Any

from entangle._shared.pickling import dumps, travels_by_value

_CACHED = type(functools.lru_cache(lambda: None))
_ATOMS = frozenset((int, float, complex, str, bytes, bool, type(None)))
#: Values that calls do not change, and that come with each function.
_DEFINITIONS = (types.FunctionType, types.ModuleType, type)
_NO_DATA = (
    types.FunctionType,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    type,
    classmethod,
    staticmethod,
    property,
    functools.cached_property,
)
#: The digest of what a call has made itself: no caller's value has it.
_MADE_HERE = object()

#: Data attributes of classes.
_Saved = dict[type, dict[str, Any]]


class Brought:
    """The globals that one function has brought along."""

    __slots__ = ("definitions", "digests", "fresh", "space")

    def __init__(self, space: dict[str, Any]) -> None:
        self.space = space
        self.definitions = {name for name, value in space.items() if name.startswith("__") or isinstance(value, _DEFINITIONS)}
        #: What they were worth when they came, by name.
        self.digests = {name: _digest(value) for name, value in space.items() if name not in self.definitions}
        #: Whether no call has had them yet.
        self.fresh = True


class _Kept:
    """A global of the script in this worker, and what the caller's was worth when it was taken."""

    __slots__ = ("digest", "value")

    def __init__(self, digest: Any, value: Any) -> None:
        self.digest = digest
        self.value = value


class ScriptState:
    """The globals of the script, and the attributes of its classes, as the calls of this worker
    have left them."""

    def __init__(self) -> None:
        #: By the name of the module, since definitions of others may travel by value as well.
        self._modules: dict[str, dict[str, _Kept]] = {}
        self._classes: dict[type, dict[str, Any]] = {}

    def before_loading(self) -> _Saved:
        """The attributes of classes, which a pickle that is loaded sets to the caller's."""
        return {kind: _attributes(kind) for kind in self._classes}

    def loaded(self, saved: _Saved) -> None:
        """Put back the attributes of classes that are the same at the caller as before."""
        for kind, attributes in saved.items():
            digests = self._classes[kind]
            for name, now in _attributes(kind).items():
                if name in attributes and attributes[name] is not now:
                    self._put_back(kind, name, now, digests, attributes[name])

    @staticmethod
    def _put_back(kind: type, name: str, now: Any, digests: dict[str, Any], before: Any) -> None:
        digest = _digest(now)
        if digest is not None and digests.get(name) == digest:
            type.__setattr__(kind, name, before)
        digests[name] = digest

    def receive(self, function: Any, saved: _Saved) -> Brought | None:
        """What a function has brought that has just been loaded; None if it has no globals of its
        own."""
        space = own_globals(function)
        found = Brought(space) if space else None
        self.loaded(saved)
        if found is not None:
            for kind in space.values():
                if isinstance(kind, type) and kind not in self._classes and _is_of_script(kind):
                    self._classes[kind] = {name: _digest(value) for name, value in _attributes(kind).items()}
        return found

    def enter(self, brought: Brought) -> bool:
        """Have the call of a function find what others have left. Gives whether it can: if not, the
        function is to be loaded anew, as the caller's globals are no longer what it came with."""
        space = brought.space
        kept = self._modules.setdefault(space.get("__name__", ""), {})
        for name, digest in brought.digests.items():
            if digest is None:
                continue
            known = kept.get(name)
            if known is not None and known.digest == digest:
                space[name] = known.value
            elif brought.fresh:
                kept[name] = _Kept(digest, space[name])
            else:
                return False
        for name, known in kept.items():
            if name not in space:
                space[name] = known.value
        brought.fresh = False
        return True

    def leave(self, brought: Brought) -> None:
        """Keep what a call has left."""
        space = brought.space
        kept = self._modules.setdefault(space.get("__name__", ""), {})
        for name, value in space.items():
            known = kept.get(name)
            if known is not None:
                known.value = value
            elif name not in brought.definitions and name not in brought.digests:
                kept[name] = _Kept(_MADE_HERE, value)


def stays(function: Any) -> bool:
    """Whether all calls may use the same function object: what it keeps for itself is in its
    globals."""
    if type(function) is _CACHED:
        function = function.__wrapped__
    return type(function) is types.FunctionType and not function.__closure__ and not function.__dict__


def own_globals(function: Any) -> dict[str, Any]:
    """The globals of a function that has come by value; such functions of one module have them each
    for itself. An empty dict for any other."""
    while type(function) is not types.FunctionType:
        inner = function.func if isinstance(function, functools.partial) else getattr(function, "__wrapped__", None)
        if inner is None:
            break
        function = inner
    space: dict[str, Any] = getattr(getattr(function, "__func__", function), "__globals__", {})
    module = sys.modules.get(space.get("__name__", ""))
    return space if space is not getattr(module, "__dict__", None) else {}


def _is_of_script(kind: type) -> bool:
    return isinstance(kind.__module__, str) and travels_by_value(kind.__module__) and not issubclass(kind, enum.Enum)


def _attributes(kind: type) -> dict[str, Any]:
    """The data that a class has itself."""
    return {name: value for name, value in vars(kind).items() if not name.startswith("__") and not isinstance(value, _NO_DATA)}


def _digest(value: Any) -> Any:
    """Equal for values that are worth the same; None if that cannot be told."""
    if type(value) in _ATOMS:
        return type(value), value
    buffers: list[Any] = []
    try:
        body = dumps(value, buffers.append, buffers.clear)
        found = blake2b(body, digest_size=16)
        for buffer in buffers:
            found.update(buffer.raw())
    except Exception:  # it cannot be pickled here, or a `__reduce__` raises
        return None
    return found.digest()
