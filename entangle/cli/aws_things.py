"""What `entangle aws ls` tells beside instances; `entangle aws gc`: remove what was not used."""

from __future__ import annotations

from dataclasses import asdict

from entangle._aws.account import Account
from entangle._aws.inventory import DAY, Thing, functions, remove_functions
from entangle.cli.exit_status import UNREACHABLE, Refused, need
from entangle.cli.json_lines import print_json
from entangle.cli.printing import console, print_table, text
from entangle.errors import EntangleError


def show(found: list[Thing]) -> None:
    """A line for each, as people read it."""
    if found:
        rows = [[text(one.kind), text(one.name), text(age(one.unused)), text(one.about)] for one in found]
        print_table(("kind", "name", "unused", "about"), rows)


def gc(account: Account, days: float, dry: bool, as_json: bool) -> None:
    """Remove functions of @lmbda that were not used for so many days, or say which. Raises Refused
    where AWS cannot be asked."""
    need("boto3", "aws", "entangle aws gc")
    what = "would be removed" if dry else "removed"

    def tell(thing: Thing) -> None:
        if not as_json:
            console().print(text(f"{thing.name} {what}: not used for {age(thing.unused)}"), soft_wrap=True)

    try:
        if dry:
            gone = [thing for thing in functions(account) if (thing.unused or 0.0) >= days * DAY]
            for thing in gone:
                tell(thing)
        else:
            gone = remove_functions(account, days, tell)
    except EntangleError as error:
        raise Refused(str(error), UNREACHABLE) from None
    if as_json:
        print_json([asdict(thing) for thing in gone])
    elif not gone:
        console().print(text(f"every function of @lmbda was used in the last {days:g} days, or there is none"), soft_wrap=True)


def age(seconds: float | None) -> str:
    """An age as people say it; a dash where nobody knows."""
    if seconds is None:
        return "—"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
