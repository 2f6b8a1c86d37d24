"""What is written is text and nothing else: what would steer a terminal, and what an encoding lacks, is shown escaped."""

from __future__ import annotations

import io
import re
import sys
from typing import TextIO

#: Control characters, those that turn the direction of writing, and halves of characters, which no encoding has.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def stdout() -> TextIO:
    """Where commands write. It escapes what its encoding lacks, unless the environment says what else is to be done.

    Not what a program that we run writes to: that has its own errors, as under python.
    """
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="backslashreplace")
    return stream


def plain(text: str, lines: bool = False) -> str:
    """A text of whoever, fit for a terminal. Tabs and ends of lines stay where there may be several `lines`."""
    escaped = _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    return escaped if lines else escaped.replace("\n", "\\n").replace("\t", "\\t")


def plain_json(document: str) -> str:
    """JSON whose texts are fit for a terminal, and the same JSON: what would steer it stands nowhere but in texts."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", document)
