"""`entangle hosts check HOST...`: whether tasks can run there."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from entangle.cli.exit_status import DONE, UNREACHABLE, USAGE, Refused
from entangle.cli.json_lines import print_json
from entangle.errors import OptionError


def check(hosts: list[str], as_json: bool, **options: Any) -> int:
    """Check each host; gives 5 where one cannot be used. The options are those of @ssh. Raises
    Refused for a word that names no host."""
    from entangle._remote.caller.check import check_hosts, look_at, transport_to
    from entangle._remote.caller.open_channels import close_all

    given = {name: value for name, value in options.items() if value is not None}
    try:
        transports = [transport_to(word, **given) for word in hosts]
    except OptionError as error:
        raise Refused(str(error), USAGE) from None
    if not as_json:
        return UNREACHABLE if check_hosts(hosts, **given) else DONE
    try:
        with ThreadPoolExecutor(max(1, min(len(transports), 16))) as pool:
            reports = list(pool.map(look_at, transports))
    finally:
        close_all()
    print_json([asdict(report) for report in reports])
    sys.stdout.flush()
    return UNREACHABLE if any(report.trouble for report in reports) else DONE
