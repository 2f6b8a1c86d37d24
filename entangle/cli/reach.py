"""`entangle hosts check HOST...`: whether tasks can run there."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from entangle.cli.status import DONE, UNINSTALLED, UNREACHABLE, USAGE, Refused
from entangle.cli.tables import print_json
from entangle.errors import OptionError


def check(hosts: list[str], as_json: bool, **options: Any) -> int:
    """Look at each host; gives 5 where one cannot be used. The options are those of @ssh. Raises Refused where this installation has
    no way to other hosts."""
    # Looked for by name: the room is one of its own, which a slim installation may lack.
    if importlib.util.find_spec("entangle._remote") is None or importlib.util.find_spec("entangle._remote.caller.check") is None:
        raise Refused("this version of entangle does not run tasks on other hosts", UNINSTALLED)
    room: Any = importlib.import_module("entangle._remote.caller.check")
    given = {name: value for name, value in options.items() if value is not None}
    try:
        transports = [room.transport_to(word, **given) for word in hosts]
    except OptionError as error:
        raise Refused(str(error), USAGE) from None
    if not as_json:
        return UNREACHABLE if room.check_hosts(hosts, **given) else DONE
    try:
        with ThreadPoolExecutor(max(1, min(len(transports), 16))) as pool:
            reports = list(pool.map(room.look_at, transports))
    finally:
        getattr(room, "close_all", lambda: None)()
    print_json([asdict(report) for report in reports])
    sys.stdout.flush()
    return UNREACHABLE if any(report.trouble for report in reports) else DONE
