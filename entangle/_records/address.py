"""Addresses of Gremlin servers."""

from __future__ import annotations

from urllib.parse import urlsplit

from entangle.errors import GraphError


def check_address(address: str) -> str:
    """The address, where it is one. Raises GraphError."""
    parts = urlsplit(address)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise GraphError(f"{address!r} is not the address of a Gremlin server; it looks like ws://localhost:8182/gremlin")
    return address


def name_of(address: str) -> str:
    """The address without what may be secret in it: by that name records know a server."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
