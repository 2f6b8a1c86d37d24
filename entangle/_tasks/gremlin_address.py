"""Addresses of Gremlin servers."""

from __future__ import annotations

from urllib.parse import urlsplit

from entangle._shared.masks import masked
from entangle.errors import GraphError


def check_address(address: str) -> str:
    """The address, where it is one. Raises GraphError."""
    name_of(address)
    return address


def name_of(address: str) -> str:
    """The address without what may be secret in it: by that name records know a server. Raises GraphError where it is none."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:  # a port that is no number, or too large; half a bracket
        raise GraphError(f"{masked(address)!r} is not the address of a Gremlin server: {error}") from None
    if parts.scheme not in ("ws", "wss") or not host or port == 0:
        raise GraphError(f"{masked(address)!r} is not the address of a Gremlin server; it looks like ws://localhost:8182/gremlin")
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"
