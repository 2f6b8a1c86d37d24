"""Addresses of Gremlin servers."""

from __future__ import annotations

from urllib.parse import urlsplit

from entangle._shared.masks import masked
from entangle.errors import GraphError


def check_address(address: str) -> str:
    """Return the address. Raises GraphError if it is none."""
    name_of(address)
    return address


def name_of(address: str) -> str:
    """The address without parts that may be secret; records name a server so.

    Raises GraphError if it is no address of a Gremlin server.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:  # the port is no number or too large; a bracket is missing
        raise GraphError(f"{masked(address)!r} is not the address of a Gremlin server: {error}") from None
    if parts.scheme not in ("ws", "wss") or not host or port == 0:
        raise GraphError(f"{masked(address)!r} is not the address of a Gremlin server; it looks like ws://localhost:8182/gremlin")
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"
