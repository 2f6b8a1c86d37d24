"""The parameters of a task, and whether arguments fit them: asked of every call, so it is quick."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from entangle._shared.masks import MASK, is_secret
from entangle._shared.summaries import value_in_short
from entangle._tasks.layer import Decorated, Layer

if TYPE_CHECKING:
    import inspect


def without_injected(signature: inspect.Signature, layers: Sequence[Layer]) -> inspect.Signature:
    """The signature that a call has to fit: without the parameters that layers fill in."""
    injected = {name for layer in layers for name in layer.injected}
    if not injected:
        return signature
    return signature.replace(parameters=[p for p in signature.parameters.values() if p.name not in injected])


class _Told:
    """A text that stands for a value in a signature."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def signature_in_short(signature: inspect.Signature) -> str:
    """A signature as errors show it: defaults in short, those of secrets masked, and no code of
    their classes run."""
    told = [
        p if p.default is p.empty else p.replace(default=_Told(MASK if is_secret(p.name) else value_in_short(p.default)))
        for p in signature.parameters.values()
    ]
    return str(signature.replace(parameters=told))


def in_its_order(function: Callable[..., Any], layers: Sequence[Layer]) -> Callable[..., Any]:
    """The function, called with its parameters in their order.

    Layers fill in parameters by name, and a call counts its positional arguments without these. If
    such a parameter stands before others, or is positional-only, each argument is put in its place.
    """
    injected = {name for layer in layers for name in layer.injected}
    if not injected:
        return function
    import inspect

    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # a builtin without a signature
        return function
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    while by_place and by_place[-1].name in injected and by_place[-1].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
        by_place.pop()  # nothing comes after it
    names = [p.name for p in by_place if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    if injected.isdisjoint(names):
        return function

    def ordered(*args: Any, **kwargs: Any) -> Any:
        given = iter(args)
        placed: list[Any] = []
        for name in names:
            if name in injected and name in kwargs:
                placed.append(kwargs.pop(name))
                continue
            try:
                placed.append(next(given))
            except StopIteration:  # this and all later ones are given by name, or not at all
                break
        return function(*placed, *given, **kwargs)

    return ordered


def fitting(task: Decorated) -> Callable[[int, dict[str, Any]], bool]:
    """A quick test whether this many positional arguments and these keywords fit a task."""
    if any(layer.takes_arguments for layer in task.layers):
        return lambda count, kwargs: True
    function = task.function
    if (
        isinstance(function, types.FunctionType)
        and not (code := function.__code__).co_kwonlyargcount
        and not hasattr(function, "__wrapped__")
        and not any(layer.injected for layer in task.layers)
    ):
        least = code.co_argcount - len(function.__defaults__ or ())
        most = sys.maxsize if code.co_flags & _VARARGS else code.co_argcount
        return lambda count, kwargs: least <= count <= most if not kwargs else _slow_fit(task, count, kwargs)
    return functools.partial(_slow_fit, task)


_VARARGS = 0x04  # inspect.CO_VARARGS


def _slow_fit(task: Decorated, count: int, kwargs: dict[str, Any]) -> bool:
    """Whether arguments fit, for parameters of every kind."""
    known = task.__dict__
    if "_signature" not in known:
        import inspect

        try:
            known["_signature"] = without_injected(inspect.signature(task.function), task.layers)
        except (ValueError, TypeError):  # a builtin without a signature
            known["_signature"] = None
    signature = known["_signature"]
    if signature is None:
        return True
    try:
        signature.bind(*(None,) * count, **kwargs)
    except TypeError:
        return False
    return True


def takes_keyword(task: Decorated, keyword: str) -> bool:
    """Whether a call of a task may give this argument by name."""
    import inspect

    if any(layer.takes_arguments for layer in task.layers):
        return True
    try:
        taken = without_injected(inspect.signature(task.function), task.layers).parameters
    except (ValueError, TypeError):  # a builtin without a signature
        return True
    if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return True
    return keyword in taken and taken[keyword].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def still_open(signature: inspect.Signature, count: int, kwargs: dict[str, Any]) -> list[str]:
    """The parameters that may be given by name, beside so many positional arguments and these
    keywords."""
    parameters = list(signature.parameters.values())
    by_name = [p.name for p in parameters[count:] if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_name += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return [name for name in by_name if name not in kwargs]


def named_parameters(task: Decorated) -> frozenset[str]:
    import inspect

    try:
        return frozenset(inspect.signature(task.function).parameters)
    except (ValueError, TypeError):
        return frozenset()


def code_of(function: Any) -> Any:
    """The code object of a function, a method or a partial; None where there is none."""
    inner = _innermost(function)[0]
    return getattr(getattr(inner, "__func__", inner), "__code__", None)


def _innermost(function: Any) -> tuple[Any, int]:
    """The function inside partials and wrappers, and how many parameters partials have filled.

    Stops after 20 steps: an object such as a Mock has a wrapper in every wrapper.
    """
    filled = 0
    for _ in range(20):
        if hasattr(function, "func"):  # functools.partial
            filled += len(getattr(function, "args", ()))
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            break
    return function, filled


def positional_names(function: Any) -> tuple[list[str], str | None]:
    """The names of the positional parameters, and of the one that takes the rest.

    Read from the code object: importing `inspect` takes longer than many a run.
    """
    inner, filled = _innermost(function)
    if isinstance(inner, type):
        inner, filled = inner.__init__, filled + 1  # type: ignore[misc]
    elif hasattr(inner, "__self__"):
        filled += 1
    elif not hasattr(inner, "__code__"):
        inner, filled = type(inner).__call__, filled + 1
    code = getattr(getattr(inner, "__func__", inner), "__code__", None)
    if code is None:
        return [], None
    names = list(code.co_varnames[: code.co_argcount])
    rest = code.co_varnames[code.co_argcount + code.co_kwonlyargcount] if code.co_flags & _VARARGS else None
    return names[filled:], rest
