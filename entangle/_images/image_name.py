"""The name of an image, as HOST/NAME:TAG."""

from __future__ import annotations

import re
from dataclasses import dataclass

from entangle._shared.summaries import value_in_short
from entangle.errors import OptionError

#: The grammar of docker's own `reference` package.
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
)
_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LONGEST = 255


@dataclass(frozen=True)
class ImageName:
    """A name that a built image can have; `registry` is "" if the name has none."""

    name: str
    tag: str
    registry: str

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"


def image_name(text: object) -> ImageName:
    """The parts of a name. Raises OptionError, which says what is wrong with it."""
    if not isinstance(text, str) or not text:
        raise OptionError(f"the tag of an image must be a string such as 'work:1', not {value_in_short(text)}")
    if "@" in text:
        raise OptionError(f"{text!r} cannot be the tag of an image: a digest is known when the image is there; write NAME:TAG")
    name, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        name, tag = text, "latest"
    first, slash, rest = name.partition("/")
    has_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
    path = rest if has_host else name
    if any(letter.isupper() for letter in path):
        raise OptionError(f"{text!r} cannot be the tag of an image: names of images have no capital letters")
    wrong = not _TAG.fullmatch(tag) or not all(_PART.fullmatch(part) for part in path.split("/")) or len(name) > _LONGEST
    if wrong or (has_host and not _HOST.fullmatch(first)):
        raise OptionError(
            f"{text!r} cannot be the tag of an image; write NAME:TAG or HOST/NAME:TAG, as 'work:1' or 'localhost:5000/work:1'"
        )
    return ImageName(name, tag, first if has_host else "")
