"""`cache=True`: a value is remembered by the function's code, what that uses, and the arguments.

The values are in a directory in the home of the process, one file each, so that every worker of the
process tree finds what another has computed. The directory goes with the process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable
from typing import Any

from entangle._shared import home as homes
from entangle._shared.pickling import dumps
from entangle._tasks.fingerprint import fingerprint
from entangle._tasks.layer import Layer


class Cache(Layer):
    """Looks a value up before the function runs, and stores it after."""

    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The remembered value, else the function's.

        Raises CacheKeyError where the function or an argument has no fixed form to be the key.
        """
        key = fingerprint(getattr(inner, "__name__", "?"), inner, args, kwargs)
        directory = os.path.join(homes.home().path, "cache")
        path = os.path.join(directory, key)
        try:
            with open(path, "rb") as file:
                return pickle.load(file)
        except FileNotFoundError:
            pass
        value = inner(*args, **kwargs)
        # A value that cannot be pickled is not remembered. If it must travel, the engine raises.
        with contextlib.suppress(Exception):
            body = dumps(value)
            os.makedirs(directory, mode=0o700, exist_ok=True)
            draft = f"{path}.{os.urandom(4).hex()}"
            try:
                with open(draft, "xb", opener=homes.private) as file:
                    file.write(body)
                os.rename(draft, path)  # readers see all of it or nothing
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(draft)
        return value
