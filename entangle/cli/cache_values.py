"""`entangle cache`: the values that are kept in a depot."""

from __future__ import annotations

import time
from typing import Any

from entangle._depot.entry import About
from entangle._depot.opened import depot
from entangle._depot.trimming import File
from entangle._shared.identity import nearest_difference
from entangle.cli.exit_status import ABSENT, DONE, FAILED, USAGE, Refused
from entangle.cli.json_lines import print_json
from entangle.cli.printing import console, duration, moment, print_table, size, text
from entangle.errors import DepotError

#: How many characters of a key are shown.
_SHOWN = 12
HEADS = ("key", "task", "size", "made", "used", "took", "pinned by")


def ls(where: str | None, task: str | None, limit: int, as_json: bool) -> None:
    """List values, the last used first."""
    place = _depot(where)
    found = [(file, about) for file, about in _all(place) if task is None or about.task == task]
    shown = found[:limit]
    pinned = place.pinned()
    if as_json:
        print_json([{**_told(file, about), "pinned": pinned.get(file.key, [])} for file, about in shown])
        return
    if not found:
        console().print(text(f"No value {'of this task ' if task else ''}is kept in {place.name}."), soft_wrap=True)
        return
    rows = [
        [
            text(file.key[:_SHOWN]),
            text(about.task),
            text(size(file.size)),
            text(moment(about.made)),
            text(moment(file.used)),
            text(duration(about.seconds)),
            text(", ".join(pinned.get(file.key, []))),
        ]
        for file, about in shown
    ]
    print_table(HEADS, rows, right=("size", "took"))
    total = sum(file.size for file, _ in found)
    held = sum(file.key in pinned for file, _ in found)
    told = f"{len(found):,} values, {size(total)}, in {place.name}{f'; {held:,} pinned' if held else ''}"
    console(stderr=True).print(text(told), soft_wrap=True)


def why(where: str | None, key: str, as_json: bool) -> None:
    """Say how a value differs from the nearest of the same task that was made before it."""
    place = _depot(where)
    values = _all(place)
    file, about = _one(values, key, place)
    others = [(there, known) for there, known in values if known.task == about.task and known.made < about.made]
    nearest = nearest_difference(about.parts, [known.parts for _, known in others])
    words = nearest.words if nearest is not None else []
    other = others[nearest.number][0].key if nearest is not None else None
    if as_json:
        print_json({"key": file.key, "task": about.task, "nearest": other, "differs": words, "parts": about.parts})
        return
    out = console()
    if other is None:
        out.print(text(f"{file.key[:_SHOWN]} is the oldest value of {about.task} here: there was none before it."), soft_wrap=True)
        return
    out.print(text(f"{file.key[:_SHOWN]} of {about.task} is not {other[:_SHOWN]}:"), soft_wrap=True)
    for line in words:
        out.print(text(f"  {line}"), soft_wrap=True)


def rm(where: str | None, keys: list[str], task: str | None, everything: bool, force: bool, as_json: bool) -> None:
    """Remove values; what is pinned only by force."""
    if not keys and task is None and not everything:
        raise Refused("name keys, or say --task or --all", USAGE)
    place = _depot(where)
    values = _all(place, damaged=True)
    if everything:
        chosen = [file for file, _ in values]
    else:
        chosen = [_one(values, key, place)[0] for key in keys] + [file for file, about in values if task is not None and about.task == task]
    every = list(dict.fromkeys(file.key for file in chosen))
    removed = [key for key in every if place.remove(key)] if force else place.remove_all(every)
    pinned = place.pinned()
    left = {key: pinned[key] for key in every if key in pinned and key not in removed}
    if as_json:
        print_json({"removed": removed, "pinned": left})
    else:
        console(stderr=True).print(text(f"{len(removed):,} {_values(removed)} removed"), soft_wrap=True)
    if left:
        owners = ", ".join(sorted({owner for names in left.values() for owner in names}))
        raise Refused(
            f"{len(left):,} {_values(list(left))} pinned by {owners} {'stays' if len(left) == 1 else 'stay'}: --force removes", FAILED
        )


def gc(where: str | None, as_json: bool) -> None:
    """Apply the bounds now."""
    removed = _depot(where).trim()
    if as_json:
        print_json({"removed": [file.key for file in removed], "bytes": sum(file.size for file in removed)})
        return
    told = f"{len(removed):,} {_values(removed)} removed, {size(sum(file.size for file in removed))}"
    console(stderr=True).print(text(told), soft_wrap=True)


def verify(where: str | None, as_json: bool) -> int:
    """Compare all checksums; gives the exit status."""
    place = _depot(where)
    damaged, refused, good = [], [], 0
    for file in list(place.entries()):
        try:
            if place.verify(file.key):
                good += 1
            else:
                damaged.append(file.key)
        except DepotError:
            refused.append(file.key)
    if as_json:
        print_json({"good": good, "damaged": damaged, "refused": refused})
    else:
        for key in damaged:
            console().print(text(f"{key}: damaged, moved to quarantine"), soft_wrap=True)
        for key in refused:
            console().print(text(f"{key}: not signed with ENTANGLE_KEY"), soft_wrap=True)
        console(stderr=True).print(text(f"{good:,} good, {len(damaged):,} damaged, {len(refused):,} not signed"), soft_wrap=True)
    return FAILED if damaged or refused else DONE


def _depot(where: str | None) -> Any:
    return depot(where)


def _all(place: Any, damaged: bool = False) -> list[tuple[File, About]]:
    """All values with what is known of them, the last used first."""
    found = []
    for file in sorted(place.entries(), key=lambda file: file.used, reverse=True):
        about = place.about(file.key)
        if about is not None or damaged:
            found.append((file, about or About("?", 0.0, 0.0, {})))
    return found


def _one(values: list[tuple[File, About]], key: str, place: Any) -> tuple[File, About]:
    found = [value for value in values if value[0].key.startswith(key)]
    if len(found) == 1:
        return found[0]
    many = f"the keys of {len(found):,} values begin with {key!r}" if found else f"no value has a key that begins with {key!r}"
    advice = "write more of the key" if found else "entangle cache ls lists those there"
    raise Refused(f"{many} in {place.name}; {advice}", USAGE if found else ABSENT)


def _values(found: list[Any]) -> str:
    return "value" if len(found) == 1 else "values"


def _told(file: File, about: About) -> dict[str, Any]:
    return {
        "key": file.key,
        "task": about.task,
        "bytes": file.size,
        "made": about.made,
        "used": max(file.used, about.made),
        "seconds": about.seconds,
        "age": time.time() - about.made,
    }
