"""Values and calls in short, as errors and records show them: bounded, masked, and safe to make.

A value may be huge, broken, locked, or load itself when touched. So only values of Python and
well-known libraries are looked into, always by their type. `repr` and `isinstance`, which may run
code of a class, are not applied to any other.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from entangle._shared.masks import MASK, beginning, is_secret, masked, secret_items, secret_keys
from entangle.flow import COPY, Flow, Like, Template

#: Texts of this many characters or more are shortened.
LONG = 100

#: In errors: characters of a text, of an argument, of a call's arguments, of its name; numbers of
#: arguments, of parts of a container; depth of calls.
_TEXT, _ARGUMENT, _CALL, _NAMED = 48, 72, 260, 60
_ARGUMENTS, _PARTS, _DEEP = 12, 4, 2
#: In a path of calls: the most calls, and characters.
_STEPS, _PATH = 24, 600

_NAME, _QUALIFIED, _MODULE, _ORDER = (vars(type)[name].__get__ for name in ("__name__", "__qualname__", "__module__", "__mro__"))

#: By identity, since a class may claim to equal another.
_NUMBERS = frozenset(map(id, (float, bool, complex, type(None), type(...), type(NotImplemented))))
_CONTAINERS = frozenset(map(id, (list, tuple, set, frozenset, dict)))
#: Classes of Python whose `repr` is short and runs no other code.
_TOLD = {("datetime", "date"), ("datetime", "timedelta"), ("decimal", "Decimal"), ("fractions", "Fraction"), ("uuid", "UUID")}
#: Classes with a shape, and the attribute that has the type of their items.
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
    """A value's text, of at most `most` characters; and whether something secret was left out.

    Shows `longest` characters of a text, and `parts` parts of a container.
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
            # The decimal text of a large int takes long, and is refused above some length.
            return repr(part) if -(1 << 200) < part < 1 << 200 else f"<int of {part.bit_length()} bits>"
        if id(kind) in _NUMBERS:
            return repr(part)
        if kind is bytes or kind is bytearray:
            return f"<{kind.__name__} of {len(part)}>"
        if id(kind) in _CONTAINERS:
            if depth > 2:
                return f"<{kind.__name__} of {len(part)}>"
            # Other threads may change it meanwhile; then the text is of either state.
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
    except Exception:  # changed while being read
        text = f"<{_NAME(type(value))}>"
    # Parts may form a secret together: `["curl", "-u", "user:password"]`.
    clean = masked(text)
    return cut(clean, most), hidden or clean != text


def cut(text: str, most: int) -> str:
    """The text, cut to that many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _secret_key(key: Any) -> bool:
    return (type(key) is str and is_secret(key)) or (type(key) is bytes and is_secret(key.decode("latin-1")))


def home_of(kind: type) -> tuple[str, str]:
    """The module and qualified name of a class, without asking its metaclass."""
    return _home(kind), _QUALIFIED(kind)


def _home(kind: type) -> str:
    module = _MODULE(kind)
    return module if type(module) is str else ""


def _of_library(value: Any, kind: type) -> str:
    """The text of a value of Python's library or a few others; empty for any other."""
    home, name = _home(kind), _NAME(kind)
    if (home, name) in _TOLD:
        return repr(value)
    if (home, name) == ("datetime", "datetime"):  # a time zone may run anyone's code
        return repr(value) if value.tzinfo is None else f"<datetime {value.replace(tzinfo=None)}>"
    if home.partition(".")[0] == "pathlib":
        return f"{name}({cut(masked(str(value)), LONG)!r})"
    if home == "numpy" and name.rstrip("0123456789_") in ("bool", "int", "uint", "float", "complex", "datetime", "timedelta"):
        return str(value)
    for base in _ORDER(kind):
        place = _home(base).partition(".")[0], _NAME(base)
        if place in _SHAPED:
            if place[0] == "torch" and base is not kind:
                break  # a derived class may intercept what it is asked
            # Asks the library's class, whatever a derived class overrides.
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
    """A node's call, as `area(3, unit='m')`, in some 300 characters at most.

    `given` are its arguments, keywords last; `known` are values of nodes that it takes. An argument
    in neither is shown as its call. Arguments with the name of a secret are masked.
    """
    try:
        return masked(_call(flow, node, given, known or {}, 0))
    except Exception:  # show less, but report the error all the same
        return f"{cut(flow.body(node).name, _NAMED)}(…)"


def path_in_short(flow: Flow, node: int) -> str:
    """The calls from a sink down to a node, as `total(load('a'), 2) → load`, in some 600 characters
    at most. Of a very long path, the middle is left out.

    The last one is shown by its name alone: its arguments may be known by their values elsewhere.
    """
    path = flow.way_to(node)
    parts = [named_call(flow, at) for at in path[:-1]]
    parts.append(_one_line(flow.name(node)))
    if len(path) > _STEPS:
        first, last = _STEPS // 3, _STEPS // 2
        parts = [*parts[:first], f"… {len(path) - first - last} more …", *parts[-last:]]
    if sum(map(len, parts)) > _PATH:
        most = max(_PATH // len(parts), 16)
        parts = [cut(part, most) for part in parts]
    return " → ".join(parts)


def named_call(flow: Flow, node: int) -> str:
    """A call in some 140 characters at most: its name, if it was given one, and its arguments, of
    which calls are shown by their names alone."""
    try:
        told = masked(_call(flow, node, None, {}, _DEEP))
    except Exception:  # show less, but report the error all the same
        told = f"{cut(flow.body(node).name, _NAMED)}(…)"
    if node not in flow.names:
        return told
    name = _one_line(flow.names[node])
    # `square.map` says more than that it is a gather.
    return f"{name}{told.removeprefix('gather')}" if flow.body(node).name == "gather" else f"{name}: {told}"


def _one_line(name: str) -> str:
    """A name in short: what could move the cursor or end the line is written as in Python."""
    return cut(name if name.isprintable() else repr(name)[1:-1], _NAMED)


def argument_at(flow: Flow, node: int, position: int) -> str:
    """The argument that an input belongs to: its number, from 1, or its keyword."""
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
    """A dataflow node and its one argument, as `parse('a,b')`."""
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
    told: list[str] = []
    room = _CALL if depth == 0 else _ARGUMENT
    count = len(shape.templates or taken)
    for index, (template, inputs, keyword, parameter) in enumerate(arguments_in_turn(flow, node)):
        if is_secret(parameter) or (template is None and inputs[0] >= 0 and is_secret(flow.body(inputs[0]).name)):
            text = MASK
        elif given is not None and index < len(given) and not (template in (None, COPY) and inputs[0] < 0):
            text = value_in_short(given[index])
            if template is None and text.startswith("<"):
                text += f" from {cut(flow.body(inputs[0]).name, _TEXT)}"
        else:
            # A constant as the flow has it: the body may have changed its own copy.
            text = cut(_argument(flow, template, iter(inputs), known, depth), _ARGUMENT)
        text = _after(keyword, text)
        room -= len(text) + 2
        left = count - index
        if told and (room < 0 or (len(told) >= _ARGUMENTS and left > 1)):
            told.append(f"… {left} more")
            break
        told.append(text)
    return f"{name}({', '.join(told)})"


def arguments_in_turn(flow: Flow, node: int) -> Iterator[tuple[Template, list[int], str, str]]:
    """Each argument of a node: its template, its inputs, its keyword if it has one, and the name of
    the parameter that it is for, if that is known."""
    shape = flow.shapes[flow.shape_of[node]]
    taken = flow.inputs[flow.starts[node] : flow.starts[node + 1]]
    names, rest = flow.body(node).parameters()
    flat = iter(taken)
    for index, template in enumerate(shape.templates or (None,) * len(taken)):
        inputs = [next(flat) for _ in range(_width(template))]
        keyword = shape.keywords[index - shape.positional] if index >= shape.positional else ""
        yield template, inputs, keyword, keyword or (names[index] if index < len(names) else rest or "")


def _after(keyword: str, text: str) -> str:
    return f"{keyword if keyword.isidentifier() else repr(keyword)}={text}" if keyword else text


def constants_in_short(flow: Flow, node: int) -> str:
    """The arguments of a node that no call is part of, as `'a.csv', unit='m'`."""
    told = []
    for template, inputs, keyword, parameter in arguments_in_turn(flow, node):
        if all(taken < 0 for taken in inputs):
            text = MASK if is_secret(parameter) else cut(_argument(flow, template, iter(inputs), {}, 0), _ARGUMENT)
            told.append(_after(keyword, text))
            if len(told) == _ARGUMENTS:
                break
    return masked(", ".join(told))


def _argument(flow: Flow, template: Template, flat: Iterator[int], known: Mapping[int, Any], depth: int) -> str:
    """The text of one argument. Takes as many of the flat inputs as its template needs."""
    if template is None or template == COPY:
        taken = next(flat)
        if taken < 0:
            return value_in_short(flow.constants[~taken])
        if is_secret(flow.body(taken).name):
            return MASK
        if taken in known:
            return value_in_short(known[taken])
        return cut(flow.names[taken], _NAMED) if taken in flow.names else _call(flow, taken, None, known, depth + 1)
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


# Arguments of a process that is gone -------------------------------------------------------------


class _Plain(pickle.Unpickler):
    """Loads values of plain types only."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError("not plain")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("not plain")


def plain_value(pickled: bytes) -> Any:
    """Load a pickle of plain types only. Imports nothing, runs no code, else UnpicklingError."""
    return _Plain(io.BytesIO(pickled)).load()
