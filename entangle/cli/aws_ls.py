"""`entangle aws ls`: what is in an account of AWS because of tasks."""

from __future__ import annotations

import time
from dataclasses import asdict

import typer

from entangle._aws.account import Account
from entangle._aws.instances import OWNER, PROGRAM, ours
from entangle._aws.inventory import inventory
from entangle.cli.aws_things import age, show
from entangle.cli.exit_status import UNREACHABLE, Refused
from entangle.cli.json_lines import print_json
from entangle.cli.printing import console, print_table, text
from entangle.errors import EntangleError


def ls(account: Account, as_json: bool) -> None:
    """List the instances of @ec2, and functions, definitions and boxes. Raises Refused where AWS
    cannot be asked for any of them."""
    found, others, troubles = [], *inventory(account)
    try:
        found = ours(account)
    except EntangleError as error:
        troubles = [str(error), *troubles]
        if len(troubles) > 2 and not others:
            raise Refused(troubles[0], UNREACHABLE) from None
    told = [
        {
            "kind": "instance",
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
        print_json([*told, *map(asdict, others)])
    elif not told:
        console().print(text("no instances of @ec2"), soft_wrap=True)
    else:
        rows = [
            [
                text(str(one["instance"])),
                text(f"{one['type']} spot" if one["spot"] else str(one["type"])),
                text(str(one["state"])),
                text(age(float(str(one["age"])))),
                text(str(one["owner"])),
                text(str(one["for"])),
            ]
            for one in told
        ]
        print_table(("instance", "type", "state", "age", "owner", "for"), rows)

    if not as_json:
        show(others)
    for trouble in troubles:
        console(stderr=True).print(text(trouble, style="yellow"), soft_wrap=True)
    if troubles:
        raise typer.Exit(UNREACHABLE)
