"""Spans of a text: pairs of the first position and the one after the last."""

from __future__ import annotations

Span = tuple[int, int]


def places(low: str, needle: str) -> list[int]:
    """Where the needle lies, each occurrence."""
    found = []
    at = low.find(needle)
    while at >= 0:
        found.append(at)
        at = low.find(needle, at + 1)
    return found


def merged(spans: list[Span]) -> list[Span]:
    """The spans from left to right, with touching ones merged."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def lowered(text: str) -> str:
    """The text in lower case, of the same length: one letter (İ) would become two."""
    low = text.lower()
    return low if len(low) == len(text) else text.replace("\u0130", "i").lower()
