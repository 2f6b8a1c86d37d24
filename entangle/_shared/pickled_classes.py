"""Classes that no module has under their name, and which is which where they come to another process.

A class that was made in a function, or by a script, travels as what it consists of. A process that has the class already must give
its own, else an enum member that comes back is not itself, and `isinstance` is false. So each such class goes with

- its number: who has made the class from a pickle knows it by that, and so does the process that has given the number;
- where the original lies: a forked child has the very classes of its parent, at the same addresses, also those that nobody had
  pickled before the fork. What the child has made since then lies at addresses that mean nothing to the parent: the collector tells
  which is which, since at its birth a child freezes all that it has inherited;
- the name under which a module has it after all (`Row = namedtuple("_Row", …)`).

A class that is found is left as it is. One that was made from a pickle takes on what a later pickle says of it.
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

#: Where the original of a class lies: the process that has made it, the address of the class, and that of its `__mro__`.
_Home = tuple[str, int, int]
#: What a class is called: its number, its home, and the module and the name there by which it can be found.
_Name = tuple[str, _Home, tuple[str, str] | None]

#: This process, and the one that it was forked from, if it has inherited the classes of that.
_here = os.urandom(8).hex()
_parent = _born_of = ""
_numbers = itertools.count()
_names: weakref.WeakKeyDictionary[type, tuple[str, _Home]] = weakref.WeakKeyDictionary()
_classes: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()
#: Classes of ours by the numbers that others have given them, as far as we remember: they are found again.
_originals: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()
#: Those that were made here from a pickle.
_copies: weakref.WeakSet[type] = weakref.WeakSet()


def _after_fork() -> None:
    global _here, _parent, _born_of
    _parent, _born_of, _here = "", _here, os.urandom(8).hex()


os.register_at_fork(after_in_child=_after_fork)


def inherit() -> None:
    """In a child that was just forked: tell what it has inherited from what it makes. The collector then leaves the former alone."""
    global _parent
    gc.freeze()
    _parent = _born_of


def _is_inherited(kind: type) -> bool:
    """Whether this process has a class from its parent. Exact: what was there at the fork is with the collector no longer."""
    return bool(_parent) and not any(other is kind for other in gc.get_objects())


def _name_of(kind: type, importable: bool) -> _Name:
    """What a class is called where it is sent. `importable` says that other processes can have its module."""
    known = _names.get(kind)
    if known is None:
        whose = _parent if _is_inherited(kind) else _here
        known = _names[kind] = f"{_here}.{next(_numbers)}", (whose, id(kind), id(kind.__mro__))
        _classes[known[0]] = kind
    return *known, _place_in_module(kind) if importable else None


def _place_in_module(kind: type) -> tuple[str, str] | None:
    """The module and the name in it where another process finds a class that is not found by its own name."""
    module = sys.modules.get(kind.__module__)
    if module is None or getattr(module, "__spec__", None) is None:
        return None
    return next(((kind.__module__, name) for name, value in list(vars(module).items()) if value is kind), None)


def _found(name: _Name, qualname: str, bases: tuple[type, ...]) -> type | None:
    """The class of that name, if this process has it."""
    number, home, place = name
    found = _classes.get(number) or _originals.get(number)
    if found is None:
        found = _at(home, qualname, bases) or _in_module(place, qualname)
        if found is not None:
            # What it is called where it came from is no name for it here: others know it by ours.
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
    except Exception:  # what anybody's module raises, or it is not there: then the class is made from what has come
        return None
    return found if isinstance(found, type) and found.__qualname__ == qualname else None


# Writing and making classes ---------------------------------------------------------------------

#: As `__reduce__` says it: what makes it, of what; its state; two that are nothing; what gives it the state.
_Reduced = tuple[Any, ...]


def reduced(kind: type, usual: _Reduced, importable: bool) -> _Reduced:
    """How a class is written; `usual` is how cloudpickle would do that. `importable` says that other processes can have its module."""
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
    """The class of that name: the one that is here, else one that is made, by `make` or, where that knows too little, of a skeleton."""
    found = _found(name, qualname, bases)
    if found is None:
        if skeleton is not None and ("__slots__" in skeleton[2] or _asks_for_more(bases)):
            found = _make(*skeleton, bases)
        else:
            found = make(*args)
        found = _classes.setdefault(name[0], found)  # another thread may have been quicker
        _names[found] = name[:2]
        _copies.add(found)
    return found


def _fill(fill: Callable[[type, Any], Any], kind: type, state: Any) -> None:
    """Give a class its attributes, unless it is an original."""
    if kind in _copies:
        fill(kind, state)


def _is_made_by_type(metaclass: type) -> bool:
    """Whether `type` makes the instances of a metaclass, and no other compiled code."""
    return not any("__new__" in vars(kind) and not isinstance(vars(kind)["__new__"], staticmethod) for kind in metaclass.__mro__[:-2])


def _asks_for_more(bases: tuple[type, ...]) -> bool:
    """Whether a base takes arguments that a class statement gives (`class Part(Base, name="part")`), which nobody remembers."""
    around = (kind for base in bases for kind in base.__mro__)
    hook: Any = next((vars(kind)["__init_subclass__"] for kind in around if "__init_subclass__" in vars(kind)), None)
    function = getattr(hook, "__func__", None)
    if not isinstance(function, types.FunctionType):
        return False
    code = function.__code__
    keywords = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    return code.co_argcount - len(function.__defaults__ or ()) > 1 or not set(function.__kwdefaults__ or ()).issuperset(keywords)


def _make(metaclass: type, name: str, space: dict[str, Any], bases: tuple[type, ...]) -> type:
    """A class without its attributes, but with room for its slots, which cannot be made later.

    What its metaclass and its bases do with new classes, they have done with the original.
    """
    maker: Any = ABCMeta if issubclass(metaclass, ABCMeta) else type
    made: type
    if not _asks_for_more(bases):
        made = maker.__new__(metaclass, name, bases, space)
        return made
    # A first base keeps the others from being asked, and goes again. It has the layout of the one that it stands before, since bases
    # can be changed for such of the same layout alone.
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
    """What must be known when a class is made."""
    mine = vars(kind)
    kept = {name: mine[name] for name in ("__module__", "__orig_bases__") if name in mine}
    kept["__qualname__"] = kind.__qualname__
    if "__slots__" in mine:
        kept["__slots__"] = tuple(name for name, value in mine.items() if _is_slot(kind, value))
    return kept


def _is_slot(kind: type, value: Any) -> bool:
    """Whether an attribute is what gives a slot of this class; `__dict__` and `__weakref__` are such, too."""
    return isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)) and value.__objclass__ is kind


#: What says where an enum member stands in its class.
_OF_MEMBER = ("_value_", "_name_", "__objclass__", "_sort_order_")


def _attributes_of(member: Any) -> dict[str, Any]:
    return {name: value for name, value in getattr(member, "__dict__", {}).items() if name not in _OF_MEMBER}


def _fill_enum(fill: Callable[[type, Any], Any], kind: Any, state: Any) -> None:
    """What cloudpickle leaves out: other names of members, and what their `__init__` or `__new__` has set."""
    *usual, members = state
    fill(kind, tuple(usual))
    for name, (first, attributes) in members.items():
        member = kind._member_map_.setdefault(name, kind._member_map_[first])
        member.__dict__.update(attributes)
        if name != first and name not in vars(kind):
            type.__setattr__(kind, name, vars(kind).get(first, member))
