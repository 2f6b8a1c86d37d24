"""How errors travel whose classes take other arguments than `args` holds.

Pickle makes an error again by calling its class with `args`. A class with its own `__init__` often
takes other arguments: the call fails, or makes a text of what is a text already. Such an error is
made as it was, without calling `__init__`. A class that defines how it is pickled is left to
pickle.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

from entangle.errors import ProcessRetryException, RemoteTraceback

#: The flag of classes made by a class statement (CPython, `Py_TPFLAGS_HEAPTYPE`).
_WRITTEN = 1 << 9
#: Methods by which a class defines how it is pickled; methods that pickle's own way may not suit.
_SAYS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")
_MAKES = ("__init__", "__new__", "__setattr__")

#: The parts of an error: its class, the compiled class below it, arguments, attributes, what the
#: compiled class keeps beside them, slots.
_Parts = tuple[type[BaseException], type[BaseException], tuple[Any, ...], dict[str, Any], dict[str, Any], dict[str, Any]]


def reduced(error: BaseException) -> Any:
    """How to pickle an error, in the form of `__reduce__`; None if pickle's own way is right."""
    kind = type(error)
    known = [vars(one) for one in _written(kind)]
    if any(name in attributes for attributes in known for name in _SAYS):
        return _noted(error)
    if not (any(name in attributes for attributes in known for name in _MAKES) or _slots(kind) or _around(error)):
        return None
    return _reduced(_parts(error))


def _noted(error: BaseException) -> Any:
    """How to pickle an error whose class says how, with its notes and the worker's traceback, of
    which the class knows nothing. None if it has neither, or says it in another form."""
    notes, cause = getattr(error, "__notes__", None), error.__cause__
    told = {
        name: part for name, part in (("__notes__", notes), ("__cause__", cause if isinstance(cause, RemoteTraceback) else None)) if part
    }
    if not told:
        return None
    made = error.__reduce_ex__(5)
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        return None
    return _made_by_class, (made[0], made[1]), (made[2] if len(made) == 3 else None, told), None, None, _told


def _made_by_class(make: Callable[..., BaseException], args: tuple[Any, ...]) -> BaseException:
    return make(*args)


def _told(error: BaseException, state: tuple[Any, dict[str, Any]]) -> None:
    own, told = state
    if own is not None:
        error.__setstate__(own)
    for name, part in told.items():
        BaseException.__setattr__(error, name, part)


def lighter(error: BaseException, fits: Callable[[Any], bool]) -> Any:
    """An object that pickles as this error, without the parts that do not fit; a note names these.

    The name of its type replaces an argument. None if the error's class does not fit.
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
    """Pickles as an error with these parts."""

    def __init__(self, parts: _Parts) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return _reduced(self.parts)


def _reduced(parts: _Parts) -> Any:
    return _made, parts[:3], parts[3:], None, None, _filled


def _written(kind: type) -> Iterator[type]:
    """The classes written in Python that a class inherits from, itself included."""
    return (one for one in kind.__mro__ if one.__flags__ & _WRITTEN)


def _slots(kind: type) -> dict[str, Any]:
    """The descriptors of the slots of classes written in Python."""
    found = [(name, slot) for one in _written(kind) for name, slot in vars(one).items() if isinstance(slot, types.MemberDescriptorType)]
    return dict(reversed(found))


def _around(error: BaseException) -> dict[str, BaseException]:
    """The error that is part of an error: its last attempt's, or the one handled at its raise.

    On arrival the worker's traceback becomes the cause; the original cause then is the context.
    """
    cause = error.__cause__
    if isinstance(error, ProcessRetryException):
        return {"__cause__": cause} if cause is not None and not isinstance(cause, RemoteTraceback) else {}
    if isinstance(cause, RemoteTraceback):  # of an error that is a value
        return {"__cause__": cause}
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
        except AttributeError:  # the slot is empty
            continue
    return kind, base, args, attributes, {**others, **_around(error)}, slots


def _made(kind: type[BaseException], base: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    error = base.__new__(kind, *args)
    base.__init__(error, *args)
    return error


def _filled(error: BaseException, state: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> None:
    """Set the attributes of an error. Avoids its `__setattr__`: a frozen dataclass would refuse."""
    attributes, others, slots = state
    error.__dict__.update(attributes)
    for name, value in others.items():
        BaseException.__setattr__(error, name, value)
    descriptors = _slots(type(error))
    for name, value in slots.items():
        if name in descriptors:
            descriptors[name].__set__(error, value)
