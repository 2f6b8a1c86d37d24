"""The arguments of a call by the names of their parameters."""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any

from entangle._shared.identity.wrapped import unwrapped
from entangle.errors import OptionError

_GATHERING = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS


def named_arguments(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    """The arguments by the names of their parameters, defaults included.

    A wrapper that takes `*args` may see whether an argument was given by position, so these stay
    apart from keywords, and get no defaults. The order of keywords counts where they are
    gathered: the function sees it.
    """
    if isinstance(function, types.FunctionType) and not (
        function.__code__.co_flags & inspect.CO_VARARGS and hasattr(function, "__wrapped__")
    ):
        bound = _bound(function, args, kwargs)
        if bound is not None:
            return bound
    names, takes_others = parameters(function)
    given = [(names[number] if number < len(names) else str(number), (value,)) for number, value in enumerate(args)]
    return [*given, *((name, [value]) for name, value in (kwargs if takes_others else dict(sorted(kwargs.items()))).items())]


def _bound(function: types.FunctionType, args: Sequence[Any], kwargs: dict[str, Any]) -> list[tuple[str, Any]] | None:
    """The arguments in the order of the parameters; None if they do not fit."""
    code = function.__code__
    names, flags = code.co_varnames, code.co_flags
    positional, keyword_only = code.co_argcount, code.co_kwonlyargcount
    defaults = function.__defaults__ or ()
    if not (kwargs or keyword_only or flags & _GATHERING) and positional - len(defaults) <= len(args) <= positional:
        return [*zip(names, (*args, *defaults[len(defaults) - positional + len(args) :]), strict=False)]
    found = dict(zip(names[:positional], args, strict=False))
    more: dict[str, Any] = {}
    by_keyword = names[code.co_posonlyargcount : positional + keyword_only]
    for name, value in kwargs.items():
        if name in by_keyword:
            if name in found:
                return None
            found[name] = value
        elif flags & inspect.CO_VARKEYWORDS:
            more[name] = value
        else:
            return None
    bound: list[tuple[str, Any]] = []
    for number, name in enumerate(names[:positional]):
        if name in found:
            bound.append((name, found[name]))
        elif number >= positional - len(defaults):
            bound.append((name, defaults[number - positional]))
        else:
            return None
    after = positional + keyword_only
    if flags & inspect.CO_VARARGS:
        bound.append((names[after], tuple(args[positional:])))
        after += 1
    elif len(args) > positional:
        return None
    of_keywords = function.__kwdefaults__ or {}
    for name in names[positional : positional + keyword_only]:
        if name in found:
            bound.append((name, found[name]))
        elif name in of_keywords:
            bound.append((name, of_keywords[name]))
        else:
            return None
    if flags & inspect.CO_VARKEYWORDS:
        bound.append((names[after], more))
    return bound


def gathering(function: Any) -> str:
    """The name of the parameter `**name`, or ""."""
    if type(function) is not types.FunctionType or not function.__code__.co_flags & inspect.CO_VARKEYWORDS:
        return ""
    code = function.__code__
    return code.co_varnames[code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)]


_known: weakref.WeakKeyDictionary[Any, tuple[tuple[str, ...], bool]] = weakref.WeakKeyDictionary()


def parameters(function: Any) -> tuple[tuple[str, ...], bool]:
    """The names of the parameters as users see them, and whether others are taken by keyword."""
    try:
        known = _known.get(function)
    except TypeError:  # cannot be referred to weakly, or hashed
        known = None
    if known is not None:
        return known
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature
        return (), True
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    gathering = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = tuple(name for name, kind in kinds.items() if kind not in gathering), inspect.Parameter.VAR_KEYWORD in kinds.values()
    try:
        _known[function] = found
    except TypeError:
        pass
    return found


def check_ignored(function: Callable[..., Any], ignore: Collection[str], option: str = "ignore") -> None:
    """Check names of arguments that are left out of keys.

    Raises OptionError for a name that is no parameter of the function, and lists those that are.
    """
    if isinstance(ignore, str) or not all(isinstance(name, str) for name in ignore):
        raise OptionError(f"{option}={ignore!r}; it is a list of names of parameters")
    target = unwrapped(function)[1]
    names, takes_others = parameters(target)
    if isinstance(target, types.FunctionType):
        gathering = target.__code__.co_varnames[len(names) :] if not hasattr(target, "__wrapped__") else ()
        names += tuple(name for name in gathering[:2] if name in inspect.signature(target).parameters)
    for name in ignore:
        if name not in names and not takes_others:
            called = getattr(target, "__name__", type(target).__name__)
            told = f"its parameters are {', '.join(names)}" if names else "it has none"
            raise OptionError(f"{option}=[{name!r}]: {called} has no parameter {name!r}; {told}")
