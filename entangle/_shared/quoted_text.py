"""Quoted strings in a text, unescaped, with the place in the text that each part comes from.

JSON in JSON, a `repr` and source code escape what they quote, once or more often. Unescaped, it
needs no rules of its own.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}
#: Shorter strings cannot hold a secret.
_SHORTEST = 5


class Unescaped:
    """The content of an escaped string."""

    def __init__(self, escaped: str, start: int) -> None:
        parts: list[str] = []
        self._said = [0]
        self._origins = [start]
        length = done = 0
        for match in _patterns()[0].finditer(escaped):
            code = match[1] or match[2]
            parts += (escaped[done : match.start()], chr(int(code, 16)) if code else _LETTERS.get(match[3], match[3]))
            length += match.start() - done + 1
            done = match.end()
            self._said.append(length)
            self._origins.append(start + done)
        self.text = "".join((*parts, escaped[done:]))

    def origin(self, at: int) -> int:
        """Where in the whole text this position of the content is written."""
        known = bisect_right(self._said, at) - 1
        return self._origins[known] + at - self._said[known]


def strings(text: str) -> Iterator[Unescaped]:
    """The strings between unescaped quotes that hold an escape.

    Whether a quote opens or closes a string is not known, so the text between strings counts as
    well.
    """
    if "\\" not in text:
        return
    for quote in [quote for quote in "\"'" if quote in text] or [""]:
        start = 0
        for end in [*_unescaped_places(text, quote), len(text)]:
            if end - start >= _SHORTEST and text.find("\\", start, end) >= 0:
                yield Unescaped(text[start:end], start)
            start = end + 1


def _unescaped_places(text: str, quote: str) -> list[int]:
    return [match.start() for match in _patterns()[1].finditer(text) if match[0] == quote] if quote else []


@lru_cache(maxsize=1)
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    return re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL), re.compile(r"\\.|[\"']", re.DOTALL)
