"""Errors as what they are: how one travels whose class takes other arguments than its `args` hold.

Pickle makes an error again by calling its class with `args`. A class with an `__init__` of its own often takes something else:
the call fails, or it builds another text of what is a text already. Such an error is made here as it was, without its `__init__`.
A class that says itself how it is pickled is asked, as always.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

from entangle.errors import ProcessRetryException, RemoteTraceback

#: The flag of classes that a class statement has made (CPython, `Py_TPFLAGS_HEAPTYPE`).
_WRITTEN = 1 << 9
#: What a class has that says how it is pickled, and what makes that we do not leave it to pickle.
_SAYS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")
_MAKES = ("__init__", "__new__", "__setattr__")

#: An error's parts: class, the compiled class below it, arguments; its attributes, what that class keeps beside them, its slots.
_Parts = tuple[type[BaseException], type[BaseException], tuple[Any, ...], dict[str, Any], dict[str, Any], dict[str, Any]]


def reduced(error: BaseException) -> Any:
    """How an error is written, as `__reduce__` says it; None where pickle's own way is right."""
    kind = type(error)
    known = [vars(one) for one in _written(kind)]
    if any(name in attributes for attributes in known for name in _SAYS):
        return None
    if not (any(name in attributes for attributes in known for name in _MAKES) or _slots(kind) or _around(error)):
        return None
    return _reduced(_parts(error))


def lighter(error: BaseException, fits: Callable[[Any], bool]) -> Any:
    """What pickles as an error without those of its parts that do not fit; a note names these. None where its class does not.

    In place of an argument stands the name of its type.
    """
    kind, base, args, attributes, others, slots = _parts(error)
    if not fits(kind):
        return None
    left: list[str] = []

    def fitting(what: str, part: Any) -> bool:
        if fits(part):
            return True
        left.append(f"{what} (a {type(part).__qualname__})")
        return False

    args = tuple(one if fitting(f"argument {number}", one) else f"<{type(one).__qualname__}>" for number, one in enumerate(args, 1))
    attributes, slots = (
        {name: part for name, part in parts.items() if fitting(f"attribute {name!r}", part)} for parts in (attributes, slots)
    )
    others = {name: part for name, part in others.items() if fits(part)}
    if left:
        told = f"left in the worker, since it cannot travel: {', '.join(left)}"
        attributes["__notes__"] = [*attributes.get("__notes__", ()), told]
    return _Lighter((kind, base, args, attributes, others, slots))


class _Lighter:
    """Pickles as an error of these parts."""

    def __init__(self, parts: _Parts) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return _reduced(self.parts)


def _reduced(parts: _Parts) -> Any:
    return _made, parts[:3], parts[3:], None, None, _filled


def _written(kind: type) -> Iterator[type]:
    """The classes of a class that are written in Python."""
    return (one for one in kind.__mro__ if one.__flags__ & _WRITTEN)


def _slots(kind: type) -> dict[str, Any]:
    """The descriptors of the slots of classes written in Python."""
    found = [(name, slot) for one in _written(kind) for name, slot in vars(one).items() if isinstance(slot, types.MemberDescriptorType)]
    return dict(reversed(found))


def _around(error: BaseException) -> dict[str, BaseException]:
    """The errors around an error that are a part of it: the last attempt's, and the one in whose handling it was raised.

    What arrives has the worker's traceback as its cause; a cause that was given is then its context.
    """
    cause = error.__cause__
    if isinstance(error, ProcessRetryException):
        return {"__cause__": cause} if cause is not None and not isinstance(cause, RemoteTraceback) else {}
    around = cause or (None if error.__suppress_context__ else error.__context__)
    return {"__context__": around} if around is not None and not isinstance(around, RemoteTraceback) else {}


def _parts(error: BaseException) -> _Parts:
    kind = type(error)
    base: Any = kind
    while base.__flags__ & _WRITTEN:
        base = base.__base__
    _, args, *more = base.__reduce__(error)
    attributes = dict(vars(error))
    others = {name: value for name, value in ((more and more[0]) or {}).items() if name not in attributes}
    slots = {}
    for name, slot in _slots(kind).items():
        try:
            slots[name] = slot.__get__(error)
        except AttributeError:  # it has none
            continue
    return kind, base, args, attributes, {**others, **_around(error)}, slots


def _made(kind: type[BaseException], base: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    error = base.__new__(kind, *args)
    base.__init__(error, *args)
    return error


def _filled(error: BaseException, state: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> None:
    """Give an error its attributes, past a `__setattr__` of its class: a frozen dataclass refuses them."""
    attributes, others, slots = state
    error.__dict__.update(attributes)
    for name, value in others.items():
        BaseException.__setattr__(error, name, value)
    descriptors = _slots(type(error))
    for name, value in slots.items():
        if name in descriptors:
            descriptors[name].__set__(error, value)
