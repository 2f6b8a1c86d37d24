"""Secrets are recognised by their name or their look, and are never written down.

All code that records something of a run masks it here first. A secret with neither a telling name
nor a telling look is missed; `ENTANGLE_SECRETS=pin,salt` adds names. Texts may be long, and
hostile: all functions take time linear in the length of what they read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from entangle._shared import secret_looks, secret_names, secret_values
from entangle._shared.quoted_text import strings
from entangle._shared.secret_names import any_secret, is_secret
from entangle._shared.spans import Span, lowered, merged, places

__all__ = [
    "MASK",
    "beginning",
    "cleaned",
    "hides_one",
    "is_secret",
    "masked",
    "masked_text",
    "name_of",
    "secret_fields",
    "secret_items",
    "secret_keys",
    "suspicious",
]

MASK = "***"

#: How deep strings within strings are read: JSON in JSON is two deep, shown in a list three.
_DEPTH = 3

#: Opcodes of short strings in a pickle: the next byte is the length.
_SHORT_STRINGS = "\x8cCU"
#: The opcode that follows every string in pickles of protocol 4 and up.
_MEMOIZE = "\x94"
#: How many characters are read beyond those that are shown. The last of them are never shown: they
#: may be half of a secret.
_MARGIN, _HALF = 1_200, 400
#: How many items of a list are searched for names.
_MANY = 100
#: Longer texts are not names.
_LONGEST_NAME = 100
#: Pickles and buffers above this many bytes are read for names and quickly for looks.
_SEARCHED = 1 << 20
#: Where classes of Python and of libraries name their fields.
_FIELDS = ("_fields", "__slots__", "__dataclass_fields__", "__annotations__", "__struct_fields__", "__match_args__", "_fields_")
#: Shorter constants of code are no secrets.
_SHORTEST_CONSTANT = 4


def suspicious(text: str) -> bool:
    """Whether a text may hold a secret.

    A quick test: most texts lack what each secret must have.
    """
    low = text.lower()
    if secret_values.possible(text):
        for needle in secret_values.NEEDLES:
            if needle in low:
                return True
        if any(name in low for name in secret_names.further()):
            return True
    return secret_looks.possible(text, low)


def masked(text: str) -> str:
    """The text without what looks like a secret."""
    if not suspicious(text):
        return text
    spans = merged(_spans(text, _DEPTH))
    if not spans:
        return text
    left: list[str] = []
    done = 0
    for start, end in spans:
        left += (text[done:start], MASK)
        done = end
    return "".join((*left, text[done:]))


def _spans(text: str, depth: int) -> list[Span]:
    """Where secrets lie in a text, and in the strings that it quotes."""
    low = lowered(text)
    found = secret_looks.spans(text, low) + secret_values.spans(text, low)
    if depth:
        for string in strings(text):
            if suspicious(string.text):
                found += [(string.origin(start), string.origin(end)) for start, end in _spans(string.text, depth - 1)]
    return found


def beginning(text: str, length: int) -> tuple[str, bool]:
    """The first `length` characters of a text, masked; and whether something was masked.

    Reads little more of a long text than it shows: a margin, as half a secret is not recognised.
    """
    near = text[: length + _MARGIN]
    clean = masked(near)
    cut = clean if len(near) == len(text) else clean[:-_HALF]
    return (cut if len(cut) <= length and len(near) == len(text) else cut[: length - 1] + "…"), clean != near


def cleaned(value: object, name: str = "") -> object:
    """A JSON value without secrets: by name, at any depth, or by look."""
    if name and is_secret(name):
        return MASK
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        hidden = secret_keys(value)
        return {
            masked(key) if isinstance(key, str) else key: MASK if key in hidden else cleaned(part, name_of(key))
            for key, part in value.items()
        }
    if isinstance(value, (list, tuple)):
        hidden_items = secret_items(value)
        return [MASK if index in hidden_items else cleaned(part) for index, part in enumerate(value)]
    return value


def masked_text(value: object) -> str:
    """The masked text of a value that JSON cannot hold."""
    return masked(str(value))


def name_of(key: object) -> str:
    """The text of a key; empty if it is neither text nor bytes."""
    kind = type(key)
    if kind is str:
        return str(key)
    return bytes(key).decode("latin-1") if kind is bytes else ""  # type: ignore[call-overload]


def secret_items(items: Any) -> set[int]:
    """Which items are secrets by the item before them: ("password", "x"), ["--password", "x"]."""
    found = set()
    pair = len(items) == 2
    name = ""
    for index, item in zip(range(_MANY), items, strict=False):
        if name and (pair or name[0] == "-") and is_secret(name.lstrip("-")):
            found.add(index)
        kind = type(item)
        name = name_of(item) if (kind is str or kind is bytes) and len(item) <= _LONGEST_NAME else ""
    return found


def secret_keys(value: dict[Any, Any]) -> tuple[str, ...]:
    """The keys whose values another key marks as secret: {"name": "PASSWORD", "value": "x"}."""
    for key in ("name", "Name", "NAME", "key", "Key"):
        if type(said := value.get(key)) is str and is_secret(said):
            return ("value", "Value", "VALUE")
    return ()


def secret_fields(kind: type) -> bool:
    """Whether a class has a field with the name of a secret, or is made from an argument with one.
    Runs no code of the class."""
    for base in type.__dict__["__mro__"].__get__(kind):
        known = vars(base)
        for fields in _FIELDS:
            names = known.get(fields, ())
            if type(names) is str:
                names = (names,)
            if fields == "_fields_" and type(names) in (tuple, list):  # of ctypes: names and types
                names = [field[0] for field in names if type(field) is tuple and field]
            if type(names) in (tuple, list, dict) and any(type(name) is str and is_secret(name) for name in names):
                return True
        for making in (known.get("__init__"), known.get("__new__")):
            making = making.__func__ if type(making) is staticmethod else making
            if type(making) is FunctionType and _secret_parameters(making.__code__):
                return True
    return False


def _secret_parameters(code: CodeType) -> bool:
    return any(map(is_secret, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]))


def hides_one(pickled: bytes | memoryview, buffers: Iterable[bytes | memoryview] = ()) -> bool:
    """Whether a pickle, with its buffers, holds something with a secret's name, or its look.

    Keys, attributes and texts are plain in a pickle, at any depth. Fields of a class may not be:
    its class is asked. Nor are names in code. A long pickle is read for names thoroughly, and for
    looks quickly: more of them then count as secrets.
    """
    if len(pickled) > _SEARCHED:
        names = _names_in(pickled)
        return _name_one(pickled, names) or suspicious(str(pickled, "latin-1")) or _buffers_hide_one(buffers, names)
    texts, names = _read_pickle(str(pickled, "latin-1"))
    if _name_one(pickled, names):
        return True
    if any(masked(text) != text for text in texts):
        return True
    text = texts[0]
    if any(name.startswith("-") for name in names) and masked(joined := " ".join(names)) != joined:
        return True  # a command line, word by word
    # UTF-16, and texts in numpy arrays, have zeros between the letters.
    if text.count("\0") > len(text) // 3 and masked(plain := text.replace("\0", "")) != plain:
        return True
    return _buffers_hide_one(buffers, names)


def _name_one(pickled: bytes | memoryview, names: list[str]) -> bool:
    if any_secret(names) or _definitions_have_one(names):
        return True
    return "marshal" in names and any(map(_code_hides_one, _codes_in(pickled)))


def _names_in(pickled: bytes | memoryview) -> list[str]:
    """The short strings of a pickle, which are all memoized."""
    view = memoryview(pickled)
    names: dict[str, None] = {}
    for found in re.finditer(rb"[\x8cCU](?=([\x01-\x64]))", view):
        start = found.end() + 1
        end = start + found[1][0]
        if end < len(view) and view[end] == 0x94:
            names[str(view[start:end], "latin-1")] = None
    return list(names)


def _buffers_hide_one(buffers: Iterable[bytes | memoryview], names: list[str]) -> bool:
    """Whether buffers of a pickle hold texts that look like a secret. Numbers, which look like
    anything, are not searched: numpy names its types, and the columns of a structure too."""
    if "dtype" in names and not any(re.fullmatch(r"[USV]\d+", name) or name.startswith("pyarrow") for name in names):
        return False
    for buffer in buffers:
        text = str(buffer, "latin-1").replace("\0", "")
        if suspicious(text) and (len(text) > _SEARCHED or masked(text) != text):
            return True
    return False


def _codes_in(pickled: bytes | memoryview) -> Iterator[CodeType]:
    """The code in a pickle that our pickler has made: it is marshalled."""
    import marshal
    import pickletools

    for _, part, _ in pickletools.genops(bytes(pickled)):
        if type(part) is not bytes:
            continue
        if part.startswith(b"\x80\x05"):  # a pickle in this one, as of a task
            yield from _codes_in(part)
        elif part[:1] in (b"c", b"\xe3"):
            try:
                found = marshal.loads(part)
            except (ValueError, EOFError, TypeError):
                continue
            if isinstance(found, CodeType):
                yield found


def _code_hides_one(code: CodeType) -> bool:
    """Whether code, or what comes with it, may hold a secret: the default of a parameter, a
    variable of a function around it, or a constant. Which name a constant is for is not read."""
    if _secret_parameters(code) or any(map(is_secret, code.co_freevars)):
        return True
    texts: list[str] = []
    left = list(code.co_consts)
    while left:
        constant = left.pop()
        if isinstance(constant, CodeType):
            if _code_hides_one(constant):
                return True
        elif type(constant) in (tuple, frozenset):
            left += constant
        else:
            texts.append(name_of(constant))
    if not any(map(is_secret, (*code.co_names, *code.co_varnames, *code.co_cellvars, *texts))):
        return False
    return any(len(text) >= _SHORTEST_CONSTANT and not _any_space(text) and not is_secret(text) for text in texts)


def _any_space(text: str) -> bool:
    return any(map(str.isspace, text))


def _read_pickle(text: str) -> tuple[list[str], list[str]]:
    """A pickle's text with line breaks in place of lengths, which may look like letters.

    The second item is what may be its short strings: keys and names are among them. A letter of a
    string may look like the start of another one. So there are two texts, if they differ: with all
    that may be a string parted, and without those that lie in another one.
    """
    names: list[str] = []
    pieces: list[str] = []
    outer: list[str] = []
    done = outer_done = end = 0
    for opcode in sorted(at for letter in _SHORT_STRINGS for at in places(text, letter)):
        start = opcode + 2
        length = ord(text[opcode + 1]) if start <= len(text) else 0
        if 0 < length <= _LONGEST_NAME:
            names.append(text[start : start + length])
        if text[start + length : start + length + 1] == _MEMOIZE and opcode >= done:
            pieces += (text[done:opcode], "\n\n")
            done = start
            if opcode >= end:
                outer += (text[outer_done:opcode], "\n\n")
                outer_done, end = start, start + length
    texts = ["".join((*pieces, text[done:]))]
    if len(outer) < len(pieces):
        texts.append("".join((*outer, text[outer_done:])))
    return texts, names


def _definitions_have_one(names: list[str]) -> bool:
    """Whether a class or a function that a pickle names has a field or a parameter with the name of
    a secret."""
    modules = [vars(module) for module in (sys.modules.get(name) for name in dict.fromkeys(names)) if module is not None]
    for known in modules:
        for name in names:
            found: Any = known.get(name.partition(".")[0])
            for part in name.split(".")[1:]:
                found = vars(found).get(part) if isinstance(found, type) else None
            if isinstance(found, type) and secret_fields(found):
                return True
            if type(found) is FunctionType and _secret_parameters(found.__code__):
                return True
    return False
