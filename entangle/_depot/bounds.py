"""How much a depot may hold, and for how long.

By default 10 GiB, and values that were used in the last 90 days. ENTANGLE_DEPOT_SIZE (bytes, or as
"500M", "20G") and ENTANGLE_DEPOT_AGE (seconds, or as "12h", "30d") override these; "0" is no bound.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from entangle.errors import DepotError

SIZE, AGE = 10 << 30, 90 * 86400.0
_SIZES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_TIMES = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


class Bounds(NamedTuple):
    """The most bytes, and the most seconds since the last use; 0: no bound."""

    size: int
    age: float


def bounds() -> Bounds:
    """The bounds as the environment says. Raises DepotError."""
    size, age = os.environ.get("ENTANGLE_DEPOT_SIZE", ""), os.environ.get("ENTANGLE_DEPOT_AGE", "")
    return Bounds(
        int(_read("ENTANGLE_DEPOT_SIZE", size, _SIZES, "bytes, or as 500M or 20G")) if size else SIZE,
        _read("ENTANGLE_DEPOT_AGE", age, _TIMES, "seconds, or as 12h or 30d") if age else AGE,
    )


def _read(name: str, text: str, units: Mapping[str, float], written: str) -> float:
    said = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([a-z]?)(i?b)?\s*", text.lower())
    if said is None or said[2] not in units or (said[3] and units is _TIMES):
        raise DepotError(f"{name}={text!r}; it is written in {written}; 0 is no bound")
    return float(said[1]) * units[said[2]]
