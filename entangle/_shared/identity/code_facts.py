"""What counts of a code object, and what it names. It is remembered as long as the code lives."""

from __future__ import annotations

import hashlib
import inspect
import types
import weakref
from typing import Any, NamedTuple

from entangle._shared.identity.instructions import graph_of, steps_of
from entangle._shared.identity.values import Content

_GLOBALS = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"))
#: The flags that say what calling it does. Others say that there is a docstring, or how
#: annotations are written.
_FLAGS = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)


class CodeFacts(NamedTuple):
    """Facts about a code object and those within it.

    `digest`: what it does. `reads`: the globals that it names, sorted. `names`: all names,
    attributes included, and texts that could be names. `imports`: modules, and how many packages up
    each begins.
    """

    digest: bytes
    reads: tuple[str, ...]
    names: frozenset[str]
    imports: tuple[tuple[str, int], ...]


#: By the `id` of the code. A warm worker gets a function that travels by value anew with each run,
#: so holding the code would keep a copy for each run that asked.
_known: dict[int, tuple[weakref.ref[types.CodeType], CodeFacts]] = {}


def facts_of(code: types.CodeType) -> CodeFacts:
    """The facts about a code object."""
    known = _known.get(id(code))
    if known is not None and known[0]() is code:
        return known[1]
    steps = steps_of(code)
    reads: set[str] = set()
    names = set(code.co_names)
    imports: set[tuple[str, int]] = set()
    for number, step in enumerate(steps):
        if step.is_constant and isinstance(step.argument, str) and step.argument.isidentifier():
            names.add(step.argument)  # as of getattr(module, "name")
        elif step.name in _GLOBALS:
            reads.add(step.argument.removeprefix("NULL + ").removesuffix(" + NULL"))
        elif step.name == "IMPORT_NAME":
            imports.add((step.argument, steps[number - 2].argument))  # the level is loaded before the names
    content = Content()
    parameters = code.co_varnames[: _parameters(code)]
    said = [
        repr((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _FLAGS)).encode(),
        repr((parameters, code.co_freevars, code.co_cellvars)).encode("utf-8", "surrogatepass"),
    ]
    for step, name, following in graph_of(code, steps):
        said.append(f"{name} {None if step.is_constant else step.argument!r} {following}".encode("utf-8", "surrogatepass"))
        if step.is_constant:
            said.append(_constant(step.argument, content))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = facts_of(constant)
            reads.update(inner.reads)
            names.update(inner.names)
            imports.update(inner.imports)
    digest = hashlib.sha256(b"".join([b"%d:%b" % (len(one), one) for one in said])).digest()
    facts = CodeFacts(digest, tuple(sorted(reads)), frozenset(names), tuple(sorted(imports)))
    if len(_known) > 4000:
        _known.clear()
    key = id(code)

    def forget(gone: weakref.ref[types.CodeType]) -> None:
        known = _known.get(key)
        if known is not None and known[0] is gone:  # else another code has this `id` by now
            del _known[key]

    _known[key] = weakref.ref(code, forget), facts
    return facts


def _parameters(code: types.CodeType) -> int:
    """How many of the variables are parameters. Others count where they are used."""
    flags = code.co_flags
    return code.co_argcount + code.co_kwonlyargcount + bool(flags & inspect.CO_VARARGS) + bool(flags & inspect.CO_VARKEYWORDS)


def _constant(value: Any, content: Content) -> bytes:
    if isinstance(value, types.CodeType):
        return b"code %b %b" % (value.co_name.encode("utf-8", "surrogatepass"), facts_of(value).digest)
    return content.of(value)
