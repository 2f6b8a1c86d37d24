"""What the values of options may be."""

from __future__ import annotations

import math
import os

from entangle._shared.summaries import value_in_short
from entangle.errors import OptionError


def check_seconds(where: str, **options: object) -> None:
    """Raise OptionError for an option that is neither None nor a number of seconds above 0."""
    for name, value in options.items():
        if value is not None and not (isinstance(value, (int, float)) and is_number(value) and value > 0):
            raise OptionError(f"{where}: {name}={value_in_short(value)}; it must be a number of seconds above 0, or None for no limit")


def check_whether(where: str, **options: object) -> None:
    """Refuse an option that is neither true nor false: a string such as "no" would count as true.

    Raises OptionError.
    """
    for name, value in options.items():
        if value is not None and not isinstance(value, int) and type(value).__name__ not in ("bool_", "bool"):
            raise OptionError(f"{where}: {name}={value_in_short(value)}; it must be True or False")


def check_strings(where: str, **options: object) -> None:
    """Raise OptionError for an option that is neither None nor a string with something in it."""
    for name, value in options.items():
        if value is not None and not (isinstance(value, str) and value.strip()):
            raise OptionError(f"{where}: {name}={value_in_short(value)}; it must be a string that is not empty")


def check_path(where: str, name: str, value: object) -> None:
    """Refuse an option that is no path. Raises OptionError."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise OptionError(f"{where}: {name}={value_in_short(value)}; it must be a path: a string or a pathlib.Path")


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and no bool."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False
