"""`entangle graph send`: send the runs that a Gremlin server has missed."""

from __future__ import annotations

import os

from entangle.cli.exit_status import UNREACHABLE, USAGE, Refused, need
from entangle.cli.json_lines import print_json
from entangle.cli.printing import console, text
from entangle.cli.runs import run_called


def send(runs: list[str], to: str | None, everything: bool, as_json: bool) -> None:
    """Send these runs; without any, those that were meant for the server and are not there. Raises
    Refused where no server is named, there is no such run, or the server does not answer."""
    address = to or os.environ.get("ENTANGLE_GRAPH")
    if not address:
        raise Refused("no server is named; use --to, as --to ws://localhost:8182/gremlin, or set ENTANGLE_GRAPH", USAGE)
    need("gremlin_python", "graph", "sending to a graph server")
    from entangle import records
    from entangle.errors import GraphError

    ids = [run_called(name).id for name in runs] or None
    try:
        count = records.send(address, ids, everything)
    except GraphError as error:
        raise Refused(str(error), UNREACHABLE) from None
    if as_json:
        print_json({"sent": count, "to": address})
    else:
        console().print(text(f"{count} run{'' if count == 1 else 's'} sent to {address}"), soft_wrap=True)
