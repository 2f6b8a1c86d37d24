"""`cache=True`: a value is remembered by the function's code and its arguments.

The memory is a directory in the home of the process, one file a value, so that every worker of the process tree finds
what another has computed. It goes with the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import types
from collections.abc import Callable
from typing import Any

from entangle._run import home as homes
from entangle._run.pickling import dumps, dumps_for_others
from entangle.task import Layer


class Cache(Layer):
    """Looks a value up before the function runs, and writes it down after."""

    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The remembered value, else the function's. Arguments that have no fixed form as bytes are not remembered."""
        key = _key(inner, args, kwargs)
        if key is None:
            return inner(*args, **kwargs)
        directory = os.path.join(homes.home().path, "cache")
        path = os.path.join(directory, key)
        try:
            with open(path, "rb") as file:
                return pickle.load(file)
        except FileNotFoundError:
            pass
        value = inner(*args, **kwargs)
        # A value that cannot be written down is not remembered; whether it can travel is for others to say.
        with contextlib.suppress(Exception):
            body = dumps(value)
            os.makedirs(directory, mode=0o700, exist_ok=True)
            draft = f"{path}.{os.urandom(4).hex()}"
            try:
                with open(draft, "xb", opener=homes.private) as file:
                    file.write(body)
                os.rename(draft, path)  # whoever reads sees all of it or nothing
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(draft)
        return value


def _key(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    digest = hashlib.sha256()
    try:
        _add_function(digest, function, set())
        digest.update(dumps_for_others((args, sorted(kwargs.items()))))
    except Exception:
        return None
    return digest.hexdigest()


def _add_function(digest: Any, function: Any, seen: set[int]) -> None:
    """What a function does, as far as its code, its defaults and the variables that it closes over tell."""
    if id(function) in seen:
        return
    seen.add(id(function))
    code = getattr(function, "__code__", None)
    if code is None:
        partial = getattr(function, "func", None)
        if partial is not None:
            for part in (partial, *function.args):
                _add_function(digest, part, seen) if callable(part) else digest.update(dumps_for_others(part))
            return
        digest.update(dumps_for_others(function))
        return
    digest.update(f"{function.__module__}.{function.__qualname__}".encode())
    _add_code(digest, code)
    digest.update(dumps_for_others((function.__defaults__, function.__kwdefaults__)))
    for cell in function.__closure__ or ():
        held = cell.cell_contents
        _add_function(digest, held, seen) if isinstance(held, types.FunctionType) else digest.update(dumps_for_others(held))


def _add_code(digest: Any, code: types.CodeType) -> None:
    digest.update(code.co_code)
    digest.update(repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _add_code(digest, constant)
        else:
            digest.update(repr(constant).encode())
