"""What travels between processes: pickle, where that cannot, cloudpickle, and where neither can, an error that names the part."""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
from collections import ChainMap
from collections.abc import Callable
from typing import Any

from entangle.errors import UnpicklableError

_Aside = Callable[[pickle.PickleBuffer], Any]
_CACHED = type(functools.lru_cache(lambda: None))

#: The script: its module, which no other process has, and what `multiprocessing` calls it in a child that it has not forked.
MAIN = frozenset(("__main__", "__mp_main__"))
#: What a pickle has in it that takes something from there.
OF_MAIN = b"_main__"
#: Modules that other processes do not have, or not by their name: what is defined there travels along.
_by_value = set(MAIN)


def dumps(value: Any, buffer_callback: _Aside | None = None, again: Callable[[], Any] | None = None) -> bytes:
    """Pickle a value (protocol 5). What plain pickle refuses (lambdas, local functions and classes) goes by cloudpickle.

    `again` is called before the second try, for those who collect buffers. Raises what cloudpickle raises where that
    refuses the value too.
    """
    try:
        return pickle.dumps(value, 5, buffer_callback=buffer_callback)
    except Exception:  # what a __reduce__ raises is anybody's guess
        if again is not None:
            again()
        return by_value(value, buffer_callback)


def travel_by_value(module: types.ModuleType) -> None:
    """From now on, what is defined in this module goes along with what is pickled for others, as that of `__main__` does."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(module)
    _by_value.add(module.__name__)


def travels_by_value(module: str) -> bool:
    """Whether what is defined in the module of this name goes along."""
    return module in _by_value


def dumps_for_others(value: Any) -> bytes:
    """Pickle a value for a process that does not have our `__main__`: what is defined there goes along."""
    try:
        body = pickle.dumps(value, 5)
    except Exception:  # what a __reduce__ raises is anybody's guess
        return by_value(value)
    if any(name.encode() in body for name in _by_value):
        body = by_value(value)
    return body


def by_value(value: Any, buffer_callback: _Aside | None = None) -> bytes:
    """Pickle a value by cloudpickle: functions and classes that the other side cannot import go along."""
    file = io.BytesIO()
    pickler_by_value(file, buffer_callback).dump(value)
    return file.getvalue()


def pickler_by_value(file: Any, buffer_callback: _Aside | None = None) -> pickle.Pickler:
    """The pickler of `by_value`, which writes to `file`."""
    made: pickle.Pickler = _kind_by_value()(file, 5, buffer_callback)
    return made


@functools.cache
def _kind_by_value() -> Any:
    """cloudpickle's pickler, which is not loaded before it is needed, with what it lacks.

    A table of its own, since `copyreg` would change what everybody else in this process pickles.
    """
    import cloudpickle

    if "__mp_main__" in sys.modules and sys.modules["__mp_main__"].__name__ == "__mp_main__":
        cloudpickle.register_pickle_by_value(sys.modules["__mp_main__"])  # it takes that for a module like any other
    table = ChainMap({_CACHED: _reduce_cached}, cloudpickle.Pickler.dispatch_table)
    return type("PicklerByValue", (cloudpickle.Pickler,), {"dispatch_table": table})


def _reduce_cached(function: Any) -> Any:
    """A function under `functools.lru_cache` knows its name alone, by which it is not found where nobody can import it.

    It then goes as what it is made of. What it remembers stays here.
    """
    name = getattr(function, "__qualname__", "")
    module = getattr(function, "__module__", None) or ""
    found: Any = sys.modules.get(module) if not travels_by_value(module) else None
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is function:
        return name
    known = {key: value for key, value in vars(function).items() if key != "__wrapped__"}
    return _cached_again, (function.__wrapped__, function.cache_parameters()), known


def _cached_again(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def why_not(value: Any, what: str) -> UnpicklableError:
    """The error for a value that cannot be pickled; `what` says whose it is, as `the value of task 'load'`."""
    where, part, error = _offending_part(value)
    place = f" at {where}" if where else ""
    return UnpicklableError(
        f"{what} cannot travel to another process: {type(part).__module__}.{type(part).__qualname__}{place} "
        f"cannot be pickled ({type(error).__name__}: {error}). Give back something that can, or let a @thread do it"
    )


def _refusal(value: Any) -> Exception | None:
    try:
        dumps(value)
    except Exception as error:
        return error
    return None


def _offending_part(value: Any) -> tuple[str, Any, Exception]:
    """The smallest part of `value` that cannot be pickled: how to reach it, the part, and what pickling it raises."""
    error = _refusal(value) or TypeError("it could not be pickled a moment ago")
    path = ""
    for _ in range(32):
        for step, part in _parts(value):
            found = _refusal(part)
            if found is not None:
                path, value, error = path + step, part, found
                break
        else:
            break
    return path, value, error


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [(f"{{{item!r}}}", item) for item in value]
    parts = [(f".{name}", item) for name, item in getattr(value, "__dict__", {}).items()]
    if isinstance(value, BaseException):
        parts = [(f".args[{index}]", item) for index, item in enumerate(value.args)] + parts
    closure = getattr(value, "__closure__", None)
    if closure:
        names = value.__code__.co_freevars
        parts += [(f" (its variable {name!r})", cell.cell_contents) for name, cell in zip(names, closure, strict=True)]
    return parts
