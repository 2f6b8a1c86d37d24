"""Classes that no module has under their name: how they travel, and keep their identity.

A class made in a function, or by a script, travels as its parts. A process that has the class
already must use its own. Otherwise an enum member that comes back is not itself, and `isinstance`
is false. So each such class travels with

- its number: the process that gave it, and any that made the class from a pickle, finds it by that;
- the address of the original: a forked child has its parent's classes at the same addresses, also
  those that nobody had pickled before the fork. Classes that the child makes lie at addresses that
  mean nothing to the parent. The garbage collector tells them apart: a child freezes, at its start,
  all that it has inherited;
- the name under which a module has it after all (`Row = namedtuple("_Row", …)`).

A class that is found is left as it is. One that was made from a pickle takes on what later pickles
say.
"""

from __future__ import annotations

import enum
import functools
import gc
import importlib
import itertools
import os
import sys
import types
import weakref
from abc import ABCMeta
from collections.abc import Callable
from typing import Any

#: Where the original of a class lies: its process, its address, the address of its `__mro__`.
_Home = tuple[str, int, int]
#: What identifies a class: its number, its home, and the module and name where it can be found.
_Name = tuple[str, _Home, tuple[str, str] | None]

#: This process, and its parent if it has inherited that one's classes by a fork.
_here = os.urandom(8).hex()
_parent = _born_of = ""
_numbers = itertools.count()
_names: weakref.WeakKeyDictionary[type, tuple[str, _Home]] = weakref.WeakKeyDictionary()
_classes: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()
#: Classes of ours by the numbers that other processes have given them, as far as remembered.
_originals: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()
#: Classes that were made here from a pickle.
_copies: weakref.WeakSet[type] = weakref.WeakSet()


def _after_fork() -> None:
    global _here, _parent, _born_of
    _parent, _born_of, _here = "", _here, os.urandom(8).hex()


os.register_at_fork(after_in_child=_after_fork)


def inherit() -> None:
    """In a child just forked: freeze what it has inherited, to tell it from what it makes."""
    global _parent
    gc.freeze()
    _parent = _born_of


def _is_inherited(kind: type) -> bool:
    """Whether a class comes from the parent process: the garbage collector tracks it no longer."""
    return bool(_parent) and not any(other is kind for other in gc.get_objects())


def _name_of(kind: type, importable: bool) -> _Name:
    """What identifies a class to others; `importable`: other processes can have its module."""
    known = _names.get(kind)
    if known is None:
        whose = _parent if _is_inherited(kind) else _here
        known = _names[kind] = f"{_here}.{next(_numbers)}", (whose, id(kind), id(kind.__mro__))
        _classes[known[0]] = kind
    return *known, _place_in_module(kind) if importable else None


def _place_in_module(kind: type) -> tuple[str, str] | None:
    """The module, and the name in it, of a class that is not found by its own name."""
    module = sys.modules.get(kind.__module__)
    if module is None or getattr(module, "__spec__", None) is None:
        return None
    return next(((kind.__module__, name) for name, value in list(vars(module).items()) if value is kind), None)


def _found(name: _Name, qualname: str, bases: tuple[type, ...]) -> type | None:
    """The class so identified, if this process has it."""
    number, home, place = name
    found = _classes.get(number) or _originals.get(number)
    if found is None:
        found = _at(home, qualname, bases) or _in_module(place, qualname)
        if found is not None:
            # The number it got elsewhere is not its number here: others know it by ours.
            if len(_originals) > 1000:
                _originals.clear()
            _originals[number] = found
    return found


def _at(home: _Home, qualname: str, bases: tuple[type, ...]) -> type | None:
    whose, address, order = home
    if whose not in (_here, _parent):
        return None
    for base in bases[:1]:
        known: list[type] = type.__subclasses__(base)
        for kind in known:
            if id(kind) == address and id(kind.__mro__) == order and kind.__qualname__ == qualname:
                return kind if whose == _here or _is_inherited(kind) else None
    return None


def _in_module(place: tuple[str, str] | None, qualname: str) -> type | None:
    if place is None:
        return None
    try:
        found = vars(importlib.import_module(place[0])).get(place[1])
    except Exception:  # its module is missing or raises: make the class from its parts
        return None
    return found if isinstance(found, type) and found.__qualname__ == qualname else None


# Writing and making classes ---------------------------------------------------------------------

#: As `__reduce__` gives it: maker, arguments, state, two that are None, what sets the state.
_Reduced = tuple[Any, ...]


def reduced(kind: type, usual: _Reduced, importable: bool) -> _Reduced:
    """How to pickle a class; `usual` is cloudpickle's way.

    `importable` says that other processes can have its module.
    """
    make, args, state, _, _, fill = usual
    attributes, others = state
    skeleton = None
    if isinstance(kind, enum.EnumMeta):
        found: dict[str, Any] = dict(kind.__members__)
        members = {name: (member.name, _attributes_of(member)) for name, member in found.items()}
        attributes = {name: value for name, value in attributes.items() if name not in members}
        state, fill = (attributes, others, members), functools.partial(_fill_enum, fill)
    elif _is_made_by_type(type(kind)):
        skeleton = type(kind), kind.__name__, _skeleton(kind)
        state = {name: value for name, value in attributes.items() if not _is_slot(kind, value)}, others
    whole = _name_of(kind, importable), kind.__qualname__, kind.__bases__, skeleton, make, args
    return _class, whole, state, None, None, functools.partial(_fill, fill)


def _class(
    name: _Name,
    qualname: str,
    bases: tuple[type, ...],
    skeleton: tuple[type, str, dict[str, Any]] | None,
    make: Callable[..., type],
    args: tuple[Any, ...],
) -> type:
    """The class so identified, if it is here; else a new one.

    `make` makes it, or, if that lacks something, its skeleton.
    """
    found = _found(name, qualname, bases)
    if found is None:
        if skeleton is not None and ("__slots__" in skeleton[2] or _asks_for_more(bases)):
            found = _make(*skeleton, bases)
        else:
            found = make(*args)
        found = _classes.setdefault(name[0], found)  # another thread may have been faster
        _names[found] = name[:2]
        _copies.add(found)
    return found


def _fill(fill: Callable[[type, Any], Any], kind: type, state: Any) -> None:
    """Set the attributes of a class, unless it is an original."""
    if kind in _copies:
        fill(kind, state)


def _is_made_by_type(metaclass: type) -> bool:
    """Whether `type`, and no other compiled code, makes the instances of a metaclass."""
    return not any("__new__" in vars(kind) and not isinstance(vars(kind)["__new__"], staticmethod) for kind in metaclass.__mro__[:-2])


def _asks_for_more(bases: tuple[type, ...]) -> bool:
    """Whether a base takes keywords of the class statement (`class Part(Base, name="part")`).

    No class remembers them.
    """
    around = (kind for base in bases for kind in base.__mro__)
    hook: Any = next((vars(kind)["__init_subclass__"] for kind in around if "__init_subclass__" in vars(kind)), None)
    function = getattr(hook, "__func__", None)
    if not isinstance(function, types.FunctionType):
        return False
    code = function.__code__
    keywords = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    return code.co_argcount - len(function.__defaults__ or ()) > 1 or not set(function.__kwdefaults__ or ()).issuperset(keywords)


def _make(metaclass: type, name: str, space: dict[str, Any], bases: tuple[type, ...]) -> type:
    """A class without its attributes, but with its slots, which cannot be added later.

    Hooks of its metaclass and its bases do not run: they ran for the original.
    """
    maker: Any = ABCMeta if issubclass(metaclass, ABCMeta) else type
    made: type
    if not _asks_for_more(bases):
        made = maker.__new__(metaclass, name, bases, space)
        return made
    # A temporary first base silences `__init_subclass__` of the others. Bases can be replaced only
    # by those of the same layout, so it has the layout of the base behind it.
    base = bases[0]
    below: Any = base.__base__
    added = [
        slot
        for slot, at in (("__dict__", "__dictoffset__"), ("__weakref__", "__weakrefoffset__"))
        if getattr(base, at) != getattr(below, at)
    ]
    first = _make(type(below), "Silent", {"__init_subclass__": _silent, "__slots__": tuple(added)}, (below,))
    made = maker.__new__(metaclass, name, (first, *bases), space)
    made.__bases__ = bases
    return made


def _silent(*_: Any, **__: Any) -> None:
    """An `__init_subclass__` that does nothing."""


def _skeleton(kind: type) -> dict[str, Any]:
    """What must be known when a class is made, not later."""
    mine = vars(kind)
    kept = {name: mine[name] for name in ("__module__", "__orig_bases__") if name in mine}
    kept["__qualname__"] = kind.__qualname__
    if "__slots__" in mine:
        kept["__slots__"] = tuple(name for name, value in mine.items() if _is_slot(kind, value))
    return kept


def _is_slot(kind: type, value: Any) -> bool:
    """Whether an attribute is the descriptor of a slot of this class; `__dict__` is one, too."""
    return isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)) and value.__objclass__ is kind


#: Attributes that place an enum member in its class.
_OF_MEMBER = ("_value_", "_name_", "__objclass__", "_sort_order_")


def _attributes_of(member: Any) -> dict[str, Any]:
    return {name: value for name, value in getattr(member, "__dict__", {}).items() if name not in _OF_MEMBER}


def _fill_enum(fill: Callable[[type, Any], Any], kind: Any, state: Any) -> None:
    """Add what cloudpickle leaves out: aliases of members, and what their constructor has set."""
    *usual, members = state
    fill(kind, tuple(usual))
    for name, (first, attributes) in members.items():
        member = kind._member_map_.setdefault(name, kind._member_map_[first])
        member.__dict__.update(attributes)
        if name != first and name not in vars(kind):
            type.__setattr__(kind, name, vars(kind).get(first, member))
