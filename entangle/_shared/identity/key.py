"""The key of a call, and the digests of the parts that it is made of."""

from __future__ import annotations

import functools
import hashlib
import marshal
import sys
import types
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from entangle._shared.documentation import more
from entangle._shared.identity import project
from entangle._shared.identity.arguments import gathering, named_arguments
from entangle._shared.identity.packages import version_of
from entangle._shared.identity.reach import Reach
from entangle._shared.identity.values import Content, NoContent, by_name
from entangle._shared.identity.wrapped import unwrapped
from entangle.errors import CacheKeyError, add_note

#: Code of another minor version is other code.
PYTHON = f"Python {sys.version_info[0]}.{sys.version_info[1]}"


class Identity(NamedTuple):
    """What a call is: `key` (hexadecimal) is equal for equal calls, in every process.

    `parts` are the digests of what it is made of, by names in words: "the function study.scale",
    "the class study.Grid", "the global study.N", "argument n", "package numpy 2.1.0", "version",
    "Python 3.13".
    """

    key: str
    parts: dict[str, str]


def identify(
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    version: Any = None,
    ignore: Collection[str] = (),
    packages: Collection[str] = (),
    imports: bool = True,
) -> Identity:
    """The identity of a call of task `name`; `function` is what lies below the cache.

    `version` replaces the code. Arguments of the names in `ignore` do not count. `packages` count
    by their versions. `imports`: what the function would import is imported.

    Raises CacheKeyError that names what has no content, or may not be imported, and OptionError for
    a package that is not installed.
    """
    layers, target = unwrapped(function)
    home = project.home_of(getattr(target, "__module__", None) or "")
    try:
        code = None if version is not None else reach_of((tuple(layers), target), home, imports)
        said: list[str | bytes] = [name]
        if code is None:
            content = Content().of(version)
            said += ("version", content)
            parts = {"version": _digest(content)}
        else:
            said.append(code.digest)
            parts = dict(code.parts)
        references = References(code, home)
        content_of = Content(references.of, mute=False).of
        arguments = named_arguments(target, args, kwargs)
        for parameter, value in _without(arguments, target, ignore) if ignore else arguments:
            try:
                content = content_of(value)
            except NoContent as error:
                raise error.within(f"argument {parameter}") from None
            parts["argument " + parameter] = _digest(content)
            said += (parameter, content)
    except NoContent as error:
        raise _refused(name, error) from None
    for reach in references.reached:
        said.append(reach.digest)
        for title, digest in reach.parts.items():
            if parts.setdefault(title, digest) != digest:
                parts[f"{title} (of an argument)"] = digest
    if code is not None or references.reached:
        said.append(PYTHON)
        parts[PYTHON] = _digest(b"")
    for package in sorted(packages) if packages else ():
        found = f"package {package} {version_of(package)}"
        said.append(found)
        parts[found] = _digest(b"")
    return Identity(hashlib.sha256(marshal.dumps(said, 2)).hexdigest(), parts)


@functools.lru_cache(maxsize=1024)  # most arguments are often the same
def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _without(arguments: list[tuple[str, Any]], function: Any, ignore: Collection[str]) -> list[tuple[str, Any]]:
    """The arguments without some; also of the keywords that a function gathers."""
    kept = [(name, value) for name, value in arguments if name not in ignore]
    if kept and type(kept[-1][1]) is dict and kept[-1][0] == gathering(function):
        kept[-1] = kept[-1][0], {name: value for name, value in kept[-1][1].items() if name not in ignore}
    return kept


class References:
    """What stands for functions and classes in the content of arguments."""

    def __init__(self, code: Reach | None, home: str) -> None:
        self._code = code
        self._home = home
        self._labels: dict[int, bytes] = {}
        self.reached: list[Reach] = []
        #: Whether there were any.
        self.asked = False

    def of(self, value: Any) -> bytes:
        """A name, if it is a library's; else its place in the code, or among what is reached."""
        self.asked = True
        if self._code is not None:
            label = self._code.label(value)
            if label is not None:
                return b"code " + label
        elif isinstance(value, (types.FunctionType, type)) and (name := _importable(value)) is not None:
            return by_name(*name)
        label = self._labels.get(id(value))
        if label is None:
            if isinstance(value, (types.FunctionType, type)) and (library := project.library_name(value, self._home)):
                return by_name(*library, project.compiled(library[0]))
            self.reached.append(reach_of(((), value), self._home))
            label = self._labels[id(value)] = b"reached %d" % len(self.reached)
        return label


def _importable(value: types.FunctionType | type) -> tuple[str, str] | None:
    """The module and name of a function or class that lies in a module under its name."""
    module = value.__module__ or ""
    found: Any = sys.modules.get(module)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return (project.named(module), value.__qualname__) if unwrapped(found)[1] is value else None


#: Code that has been walked through, by the `id` of its root, which the Reach holds.
_walked: dict[tuple[int, str], Reach] = {}


def reach_of(roots: tuple[tuple[Any, ...], Any], home: str, imports: bool = True) -> Reach:
    """What layers and a function, or a class, reach: as walked before if all is as it was.

    A function within a function is walked each time: it would be held here with its variables.
    """
    key = id(roots[1]), home
    known = _walked.get(key)
    if known is not None and known.roots[1] is roots[1] and _same(known.roots[0], roots[0]) and known.holds():
        return known
    reach = Reach(roots, home, imports)
    if "<locals>" not in getattr(roots[1], "__qualname__", "<locals>"):
        if len(_walked) > 500:
            _walked.clear()
        _walked[key] = reach
    return reach


def _same(some: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def why_refused(error: NoContent) -> str:
    """What has no content, and why not."""
    kind = type(error.value)
    named = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    why = error.why if isinstance(error.why, str) else f"{type(error.why).__name__}: {error.why}"
    return f"a {named}, since its content cannot be read ({why})"


def _refused(task: str, error: NoContent) -> CacheKeyError:
    what, _, why = why_refused(error).partition(", ")
    refused = CacheKeyError(
        f"cache=True of task {task!r}: no cache key can be made of {''.join(error.where) or 'a part of it'} ({what}), "
        f"{why}. Give the function plain data instead, leave the argument out with ignore=[…], or say version=… in place "
        "of the code"
    )
    add_note(refused, more("caching"))
    return refused
