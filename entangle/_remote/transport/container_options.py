"""The options that all doors to containers share, checked when the function is decorated."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from entangle._shared.summaries import value_in_short
from entangle.errors import OptionError


def check_common(
    decorator: str,
    image: object,
    packages: object,
    env: object,
    volumes: object,
    memory: object,
    cpus: object,
    python: object,
) -> dict[str, Any]:
    """The options as a transport takes them. Raises OptionError."""
    if image is None:
        raise OptionError(f"@{decorator} needs an image: @{decorator}(image='name')")
    for option, value in (("image", image), ("python", python)):
        if not isinstance(value, str) or not value.strip() or value.startswith("-"):
            raise OptionError(f"@{decorator}: {option}={value_in_short(value)}; it must be a name or a path, without a dash first")
    if memory is not None and not (
        (isinstance(memory, int) and not isinstance(memory, bool) and memory > 0)
        or (isinstance(memory, str) and re.fullmatch(r"0*[1-9][0-9]*[bkmgBKMG]?", memory))
    ):
        raise OptionError(
            f"@{decorator}: memory={value_in_short(memory)}; it must be a number of bytes, or a string such as '512m' or '2g'"
        )
    if cpus is not None and (isinstance(cpus, bool) or not isinstance(cpus, (int, float)) or not math.isfinite(cpus) or cpus <= 0):
        raise OptionError(f"@{decorator}: cpus={value_in_short(cpus)}; it must be a number above 0")
    if env is not None and not isinstance(env, Mapping):
        raise OptionError(f"@{decorator}: env={value_in_short(env)}; it must be a dict of environment variables")
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise OptionError(f"@{decorator}: env={value_in_short(env)}; {name!r} cannot be the name of an environment variable")
        if not isinstance(value, (str, int, float, os.PathLike)) or "\0" in str(value):
            raise OptionError(f"@{decorator}: env={value_in_short(env)}; the value of {name!r} must be a string or a number")
    return {
        "image": image,
        "packages": words(decorator, "packages", packages),
        "environment": pairs(env or {}),
        "volumes": _volumes(decorator, volumes),
        "memory": memory,
        "cpus": cpus,
        "python": python,
    }


def words(decorator: str, option: str, given: object) -> tuple[str, ...]:
    """A list of strings as a tuple. A single string is refused: it would count as its letters."""
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(word, str) and word.strip() for word in given):
        raise OptionError(f"@{decorator}: {option}={value_in_short(given)}; it must be a list of strings")
    found = tuple(word.strip() for word in given)
    if any(word.startswith("-") for word in found):
        raise OptionError(f"@{decorator}: {option}={value_in_short(given)}; an entry must be a name, not an option with a dash")
    return found


def pairs(given: Mapping[Any, Any]) -> tuple[tuple[str, str], ...]:
    """A dict of environment variables as pairs, which can be compared and hashed."""
    return tuple(sorted((str(name), str(value)) for name, value in given.items()))


def _volumes(decorator: str, given: object) -> tuple[str, ...]:
    """Volumes as `here:there` or `here:there:ro`, with absolute paths."""
    items = [f"{here}:{there}" for here, there in given.items()] if isinstance(given, Mapping) else list(words(decorator, "volumes", given))
    found = []
    for item in items:
        here, _, there = item.partition(":")
        if not here or not there.startswith("/"):
            raise OptionError(
                f"@{decorator}: volumes={value_in_short(given)}; write {{'/path/here': '/path/there'}}, or '/path/there:ro' to read only"
            )
        if here.startswith((".", "~", "/")):  # anything else names a volume of docker's
            here = os.path.abspath(os.path.expanduser(here))
        found.append(f"{here}:{there}")
    return tuple(found)
