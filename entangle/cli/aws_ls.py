"""`entangle aws ls`: what is in an account of AWS because of tasks, and costs money."""

from __future__ import annotations

import time

from entangle._aws.account import Account
from entangle._aws.instances import OWNER, PROGRAM, ours
from entangle.cli.exit_status import UNREACHABLE, Refused
from entangle.cli.json_lines import print_json
from entangle.cli.printing import console, print_table, text
from entangle.errors import EntangleError


def ls(account: Account, as_json: bool) -> None:
    """List the instances of @ec2. Raises Refused where AWS cannot be asked."""
    try:
        found = ours(account)
    except EntangleError as error:
        raise Refused(str(error), UNREACHABLE) from None
    told = [
        {
            "instance": one.id,
            "type": one.type,
            "state": one.state,
            "spot": one.spot,
            "age": round(max(0.0, time.time() - one.since), 1),
            "owner": one.tags.get(OWNER, ""),
            "for": one.tags.get(PROGRAM, ""),
            "address": one.address,
        }
        for one in found
    ]
    if as_json:
        print_json(told)
    elif not told:
        console().print(text("no instances of @ec2"), soft_wrap=True)
    else:
        rows = [
            [
                text(str(one["instance"])),
                text(f"{one['type']} spot" if one["spot"] else str(one["type"])),
                text(str(one["state"])),
                text(_age(float(str(one["age"])))),
                text(str(one["owner"])),
                text(str(one["for"])),
            ]
            for one in told
        ]
        print_table(("instance", "type", "state", "age", "owner", "for"), rows)


def _age(seconds: float) -> str:
    """An age as people say it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
