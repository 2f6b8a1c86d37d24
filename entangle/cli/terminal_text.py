"""Text for terminals: what would control a terminal, and what an encoding lacks, is shown
escaped."""

from __future__ import annotations

import io
import re
import sys
from typing import TextIO

#: Control characters, characters that change the direction of writing, and surrogates, which no
#: encoding has.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def stdout() -> TextIO:
    """Where commands write. It escapes what its encoding lacks, unless the environment says
    otherwise.

    A program that we run does not write here: it must see the same errors as under python.
    """
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="backslashreplace")
    return stream


def plain(text: str, lines: bool = False) -> str:
    """A text from anywhere, made safe for a terminal. Tabs and ends of lines stay if it may have
    `lines`."""
    escaped = _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    return escaped if lines else escaped.replace("\n", "\\n").replace("\t", "\\t")


def plain_json(document: str) -> str:
    """JSON that is safe for a terminal, and is the same JSON: only its texts can contain such
    characters."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", document)
