"""Strings as a text quotes them: what each says, and where in the text each stretch of it comes from.

JSON in JSON, the `repr` of a text, a source: what is written there is escaped, once or more often. Read as it was before,
it needs no rules of its own.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}
#: There is nothing to be found in shorter ones.
_SHORTEST = 5


class Unescaped:
    """What an escaped text says."""

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
        """Where in the whole text that place of this one is written."""
        known = bisect_right(self._said, at) - 1
        return self._origins[known] + at - self._said[known]


def strings(text: str) -> Iterator[Unescaped]:
    """What stands between quotes that are not escaped, where something in it is. Whether a quote opens or closes is not asked."""
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
