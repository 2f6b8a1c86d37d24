"""Circles: bodies that wait for each other's keys, in several processes.

A body that computes a key and waits for another key says so where the others can read it. If it
finds that it waits for itself, by way of others, it computes the value that it wants without the
right to. In a circle, only the body that wants the least key does so: one value is computed twice,
not all.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import NamedTuple


class Wait(NamedTuple):
    """Who computes the keys `around` waits for the key `wants`."""

    wants: str
    around: tuple[str, ...]

    def written(self) -> bytes:
        """The bytes that others read."""
        return json.dumps({"wants": self.wants, "around": self.around}).encode()


def read_wait(text: bytes) -> Wait | None:
    """What another has written; None where that is damaged."""
    try:
        told = json.loads(text)
        return Wait(str(told["wants"]), tuple(map(str, told["around"])))
    except (ValueError, KeyError, TypeError):
        return None


def breaks_a_circle(wait: Wait, others: Collection[Wait]) -> bool:
    """Whether a wait is for itself, and the one of its circle that is to give way."""
    path = _way(wait, others)
    return path is not None and wait.wants == min(path)


def _way(wait: Wait, others: Iterable[Wait]) -> list[str] | None:
    """The keys from the wanted one to one that this body computes, each of which waits for the
    next; None where there is no such way."""
    next_of: dict[str, list[str]] = {}
    for other in others:
        for key in other.around:
            next_of.setdefault(key, []).append(other.wants)
    goals, before = set(wait.around), {wait.wants: ""}
    stack = [wait.wants]
    while stack:
        key = stack.pop()
        if key in goals:
            path = []
            while key:
                path.append(key)
                key = before[key]
            return path
        for there in next_of.get(key, ()):
            if there not in before:
                before[there] = key
                stack.append(there)
    return None
