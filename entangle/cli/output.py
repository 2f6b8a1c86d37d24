"""How commands print: JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

from rich.console import Console

#: How a state looks.
COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "cancelled": "yellow",
    "ended abruptly": "red",
    "ready": "blue",
    "waiting": "dim",
}
MARKS = {"done": "✓", "running": "▶", "failed": "✗", "cancelled": "○", "ready": "·", "waiting": "·"}


def console(stderr: bool = False) -> Console:
    """Where people read. Not soft-wrapped: what is piped on stays one line."""
    return Console(stderr=stderr, highlight=False)


def print_json(value: Any) -> None:
    """One line of JSON; what it does not know as its text."""
    sys.stdout.write(json.dumps(value, default=str, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def duration(seconds: float | None) -> str:
    """A time span in the unit that fits: 12 µs, 3.4 ms, 1.2 s, 2 min 5 s, 1 h 3 min."""
    if seconds is None:
        return "—"
    for below, unit, factor in ((1e-3, "µs", 1e6), (1.0, "ms", 1e3), (60.0, "s", 1.0)):
        if seconds < below:
            return f"{seconds * factor:.3g} {unit}"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(seconds: float | None) -> str:
    """A point in time, by the clock of this place."""
    if seconds is None:
        return "—"
    then = datetime.fromtimestamp(seconds)
    return then.strftime("%H:%M:%S" if then.date() == datetime.now().date() else "%Y-%m-%d %H:%M")


def size(count: float | None) -> str:
    """Bytes in the unit that fits."""
    if count is None:
        return "—"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
