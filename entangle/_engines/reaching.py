"""Whether somebody listens where an engine should be, before a library tries again and again."""

from __future__ import annotations

import socket

#: Seconds for a connection.
_PATIENCE = 10.0


def why_unreachable(address: str) -> str:
    """Why nobody can be reached at `host:port`; empty if somebody listens there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return ""
