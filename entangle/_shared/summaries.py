"""Values and calls in short, as errors and records show them: bounded, without secrets, and without running code of their classes.

A value may be huge, broken, locked, or made to load itself when it is touched. So only what Python and well-known libraries define
is looked into, and always by its type: neither `repr` nor `isinstance` is asked of anything else.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from entangle._shared.masks import MASK, beginning, is_secret, masked, secret_items, secret_keys
from entangle.flow import COPY, Flow, Like, Template

#: A text of so many characters and more is noted in short.
LONG = 100

#: In errors: characters of a text, of an argument, of a call's arguments, of its name; how many arguments, and parts of a container;
#: how deep calls are shown.
_TEXT, _ARGUMENT, _CALL, _NAMED = 48, 72, 260, 60
_ARGUMENTS, _PARTS, _DEEP = 12, 4, 2

_NAME, _QUALIFIED, _MODULE, _ORDER = (vars(type)[name].__get__ for name in ("__name__", "__qualname__", "__module__", "__mro__"))

#: By identity: a class may say of itself that it equals another.
_NUMBERS = frozenset(map(id, (float, bool, complex, type(None), type(...), type(NotImplemented))))
_CONTAINERS = frozenset(map(id, (list, tuple, set, frozenset, dict)))
#: Classes of Python's own whose texts are short and run no code of anybody else.
_TOLD = {("datetime", "date"), ("datetime", "timedelta"), ("decimal", "Decimal"), ("fractions", "Fraction"), ("uuid", "UUID")}
#: Classes that have a shape, and what says which type their items have.
_SHAPED = {
    ("numpy", "ndarray"): "dtype",
    ("torch", "Tensor"): "dtype",
    ("pandas", "DataFrame"): "",
    ("pandas", "Series"): "dtype",
    ("polars", "DataFrame"): "",
    ("polars", "Series"): "dtype",
    ("pyarrow", "Table"): "",
}


def short(value: Any, longest: int = LONG, parts: int = 6, most: int = 3 * LONG) -> tuple[str, bool]:
    """A text for a value, of at most `most` characters, and whether something secret has been left out of it.

    `longest` characters are shown of a text, and `parts` of the parts of a container.
    """
    hidden = False

    def text_of(whole: str) -> str:
        nonlocal hidden
        clean, less = beginning(whole, longest)
        hidden = hidden or less
        return repr(clean)

    def told(part: Any, depth: int) -> str:
        nonlocal hidden
        kind = type(part)
        if kind is str:
            return text_of(part)
        if kind is int:
            # The decimal text of a large one takes long, and above some length it is refused.
            return repr(part) if -(1 << 200) < part < 1 << 200 else f"<int of {part.bit_length()} bits>"
        if id(kind) in _NUMBERS:
            return repr(part)
        if kind is bytes or kind is bytearray:
            return f"<{kind.__name__} of {len(part)}>"
        if id(kind) in _CONTAINERS:
            if depth > 2:
                return f"<{kind.__name__} of {len(part)}>"
            # Other threads may change it meanwhile; then its text is what it is.
            few = [item for item, _ in zip(part.items() if kind is dict else part, range(parts), strict=False)]
            rest = ["…"] if len(part) > len(few) else []
            if kind is dict:
                pairs = []
                said = secret_keys(part)
                for key, item in few:
                    if _secret_key(key) or (said and type(key) is str and key in said):
                        hidden = True
                        pairs.append(f"{told(key, depth + 1)}: {MASK}")
                    else:
                        pairs.append(f"{told(key, depth + 1)}: {told(item, depth + 1)}")
                return "{" + ", ".join(pairs + rest) + "}"
            secret = secret_items(part) if kind is list or kind is tuple else ()
            hidden = hidden or bool(secret)
            inner = ", ".join([MASK if index in secret else told(item, depth + 1) for index, item in enumerate(few)] + rest)
            if kind is tuple:
                return f"({inner},)" if len(part) == 1 else f"({inner})"
            return f"[{inner}]" if kind is list else f"{{{inner}}}"
        return _of_library(part, kind) or _of_class(part, kind)

    try:
        text = told(value, 0)
    except Exception:  # changed while we looked
        text = f"<{_NAME(type(value))}>"
    # What its parts say together: `["curl", "-u", "user:password"]`.
    clean = masked(text)
    return cut(clean, most), hidden or clean != text


def cut(text: str, most: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _secret_key(key: Any) -> bool:
    return (type(key) is str and is_secret(key)) or (type(key) is bytes and is_secret(key.decode("latin-1")))


def home_of(kind: type) -> tuple[str, str]:
    """The module of a class and its name there, as Python knows them: a metaclass is not asked."""
    return _home(kind), _QUALIFIED(kind)


def _home(kind: type) -> str:
    module = _MODULE(kind)
    return module if type(module) is str else ""


def _of_library(value: Any, kind: type) -> str:
    """What Python's own library and a few others define; an empty text for all else."""
    home, name = _home(kind), _NAME(kind)
    if (home, name) in _TOLD:
        return repr(value)
    if (home, name) == ("datetime", "datetime"):  # what a time zone says may be anybody's code
        return repr(value) if value.tzinfo is None else f"<datetime {value.replace(tzinfo=None)}>"
    if home.partition(".")[0] == "pathlib":
        return f"{name}({cut(masked(str(value)), LONG)!r})"
    if home == "numpy" and name.rstrip("0123456789_") in ("bool", "int", "uint", "float", "complex", "datetime", "timedelta"):
        return str(value)
    for base in _ORDER(kind):
        place = _home(base).partition(".")[0], _NAME(base)
        if place in _SHAPED:
            if place[0] == "torch" and base is not kind:
                break  # such a class may have a say in what is asked of it
            # What the library's own class says, whatever a class derived from it does.
            shape = tuple(getattr(base, "shape").__get__(value))  # noqa: B009
            items = _SHAPED[place]
            of = f" {getattr(base, items).__get__(value)}" if items else ""
            return cut(f"<{name}{of} {shape}>", LONG)
        if place == ("enum", "Enum"):
            return f"{_NAME(kind)}.{dict.get(_attributes(value), '_name_', '?')}"
    return ""


def _of_class(value: Any, kind: type) -> str:
    name = _NAME(kind)
    if name in ("function", "builtin_function_or_method"):
        named = getattr(value, "__qualname__", None)
    else:
        named = _QUALIFIED(value) if _is_a(kind, type) else None
    return cut(f"<{name}{' ' + named if type(named) is str else ''}>", LONG)


def _is_a(kind: type, wanted: type) -> bool:
    return any(base is wanted for base in _ORDER(kind))


def _attributes(value: Any) -> dict[str, Any]:
    found = object.__getattribute__(value, "__dict__")
    return found if type(found) is dict else {}


# Calls ------------------------------------------------------------------------------------------


def call_in_short(flow: Flow, node: int, given: Sequence[Any] | None = None, known: Mapping[int, Any] | None = None) -> str:
    """The call that a node stands for, as `area(3, unit='m')`, in some 300 characters at most.

    `given` are its arguments, keywords last, where it has them; `known` are values of nodes that it takes. What is in neither is shown
    as the call that makes it. Arguments that go by the name of a secret are masked.
    """
    try:
        return masked(_call(flow, node, given, known or {}, 0))
    except Exception:  # an error that cannot be told in full is told all the same
        return f"{cut(flow.body(node).name, _NAMED)}(…)"


def argument_at(flow: Flow, node: int, position: int) -> str:
    """Which argument of a node an input is a part of: its number, from 1, or the name that it was given by."""
    shape = flow.shapes[flow.shape_of[node]]
    left = position - flow.starts[node]
    index = 0
    for template in shape.templates or ():
        left -= _width(template)
        if left < 0:
            break
        index += 1
    else:
        index += left
    return repr(shape.keywords[index - shape.positional]) if index >= shape.positional else str(index + 1)


def item_in_short(name: str, parameters: Sequence[str], value: Any) -> str:
    """A node of a dataflow with the one value that it was given, as `parse('a,b')`."""
    secret = bool(parameters) and is_secret(parameters[0])
    return f"{cut(name, _NAMED)}({MASK if secret else value_in_short(value)})"


def value_in_short(value: Any) -> str:
    """A value as errors show it."""
    return short(value, _TEXT, _PARTS, _ARGUMENT)[0]


def _call(flow: Flow, node: int, given: Sequence[Any] | None, known: Mapping[int, Any], depth: int) -> str:
    body, shape = flow.body(node), flow.shapes[flow.shape_of[node]]
    name = cut(body.name, _NAMED)
    taken = flow.inputs[flow.starts[node] : flow.starts[node + 1]]
    if not len(taken):
        return f"{name}()"
    if depth > _DEEP:
        return f"{name}(…)"
    names, rest = body.parameters()
    templates: Sequence[Template] = shape.templates or (None,) * len(taken)
    told: list[str] = []
    room = _CALL if depth == 0 else _ARGUMENT
    flat = iter(taken)
    for index, template in enumerate(templates):
        inputs = [next(flat) for _ in range(_width(template))]
        keyword = shape.keywords[index - shape.positional] if index >= shape.positional else ""
        parameter = keyword or (names[index] if index < len(names) else rest or "")
        if is_secret(parameter) or (template is None and inputs[0] >= 0 and is_secret(flow.body(inputs[0]).name)):
            text = MASK
        elif given is not None and index < len(given) and not (template in (None, COPY) and inputs[0] < 0):
            text = value_in_short(given[index])
            if template is None and text.startswith("<"):
                text += f" from {cut(flow.body(inputs[0]).name, _TEXT)}"
        else:
            # A constant as it was written: the body may have changed its own copy.
            text = cut(_argument(flow, template, iter(inputs), known, depth), _ARGUMENT)
        text = f"{keyword if keyword.isidentifier() else repr(keyword)}={text}" if keyword else text
        room -= len(text) + 2
        left = len(templates) - index
        if told and (room < 0 or (len(told) >= _ARGUMENTS and left > 1)):
            told.append(f"… {left} more")
            break
        told.append(text)
    return f"{name}({', '.join(told)})"


def _argument(flow: Flow, template: Template, flat: Iterator[int], known: Mapping[int, Any], depth: int) -> str:
    """One argument, made of as many of the flat inputs as its template needs."""
    if template is None or template == COPY:
        taken = next(flat)
        if taken < 0:
            return value_in_short(flow.constants[~taken])
        if is_secret(flow.body(taken).name):
            return MASK
        return value_in_short(known[taken]) if taken in known else _call(flow, taken, None, known, depth + 1)
    kind, parts = template
    if isinstance(kind, Like):
        kind = type(kind.container)
    told: list[str] = []
    is_dict = _is_a(kind, dict)
    shown = 2 * _PARTS if is_dict else _PARTS
    fields = vars(kind).get("_fields", ())  # of a named tuple
    secret = False
    for index, part in enumerate(parts):
        inputs = [next(flat) for _ in range(_width(part))]
        if index >= shown:
            continue
        if is_dict and index % 2 == 0:
            secret = inputs[0] < 0 and _secret_key(flow.constants[~inputs[0]])
        masked_here = (secret and is_dict and index % 2 == 1) or (index < len(fields) and is_secret(fields[index]))
        told.append(MASK if masked_here else _argument(flow, part, iter(inputs), known, depth + 1))
    rest = ["…"] if len(parts) > shown else []
    if is_dict:
        return "{" + ", ".join([f"{key}: {item}" for key, item in zip(told[::2], told[1::2], strict=True)] + rest) + "}"
    inner = ", ".join(told + rest)
    if kind is tuple:
        return f"({inner},)" if len(parts) == 1 else f"({inner})"
    if kind is list:
        return f"[{inner}]"
    return f"{{{inner}}}" if kind is set else f"{_NAME(kind)}({inner})"


def _width(template: Template) -> int:
    """How many of the flat inputs an argument takes."""
    return sum(_width(part) for part in template[1]) if isinstance(template, tuple) else 1


# Values that a process which is gone was given --------------------------------------------------


class _Plain(pickle.Unpickler):
    """Reads what is made of plain types alone."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError("not plain")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("not plain")


def plain_value(pickled: bytes) -> Any:
    """The value of a pickle that is made of plain types alone, so that nothing is imported and no code run. Raises UnpicklingError."""
    return _Plain(io.BytesIO(pickled)).load()
