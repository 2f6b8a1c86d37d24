"""What has changed between two identities, in words; and which of several is the nearest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

#: What is told first: what its author can change.
_ORDER = ("version", "the function ", "the class ", "the global ", "the variable ", "argument ", "package ", "Python ")


class Difference(NamedTuple):
    """How an identity differs from the nearest that is stored: its place there, and the words."""

    number: int
    words: list[str]


def nearest_difference(wanted: Mapping[str, str], stored: Iterable[Mapping[str, str]]) -> Difference | None:
    """The nearest of the stored parts, the first of several; None where nothing is stored."""
    nearest: Difference | None = None
    for number, parts in enumerate(stored):
        words = difference(wanted, parts)
        if nearest is None or len(words) < len(nearest.words):
            nearest = Difference(number, words)
    return nearest


def difference(wanted: Mapping[str, str], stored: Mapping[str, str]) -> list[str]:
    """What has changed from the stored parts to the wanted, each in a few words.

    Parts that have moved to another module are the same. Of an argument there is only a digest, so
    its values are not told.
    """
    changed = [name for name in wanted if name in stored and wanted[name] != stored[name]]
    new = [name for name in wanted if name not in stored]
    gone = [name for name in stored if name not in wanted]
    for name in list(new):
        moved = next((other for other in gone if stored[other] == wanted[name] and _without_module(other) == _without_module(name)), None)
        if moved is not None and not name.startswith(("package ", "Python ")):
            new.remove(name)
            gone.remove(moved)
    told = [(name, f"{name} is another" if name.startswith(("argument ", "version")) else f"{name} has changed") for name in changed]
    for name in new:
        before = next((other for other in gone if _family(other) and _family(other) == _family(name)), None)
        if before is not None:
            gone.remove(before)
            told.append((name, f"{name}, was {before.rpartition(' ')[2]}"))
        elif name == "version":
            told.append((name, "version is given in place of the code"))
        else:
            told.append((name, f"{name} is used now, and was not"))
    told += [(name, f"{name} is used no more") for name in gone]
    return [words for name, words in sorted(told, key=lambda one: (_rank(one[0]), one[0]))]


def _family(name: str) -> str:
    """A package or Python, without the version."""
    return name.rpartition(" ")[0] if name.startswith(("package ", "Python ")) else ""


def _without_module(name: str) -> tuple[str, str]:
    """What a part is, wherever it lies: "function" and "scale" of "the function study.scale"."""
    return name.split(" ")[1], name.rpartition(".")[2]


def _rank(name: str) -> int:
    return next((number for number, start in enumerate(_ORDER) if name.startswith(start)), len(_ORDER))
