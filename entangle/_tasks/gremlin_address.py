"""Addresses of Gremlin servers."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit

from entangle._shared.masks import masked
from entangle.errors import GraphError

#: The port of Amazon Neptune.
_PORT = 8182


@dataclass(frozen=True)
class Server:
    """A Gremlin server, as it is reached."""

    #: "ws://…" or "wss://…".
    url: str
    host: str
    port: int
    #: The address without parts that may be secret; records name a server so.
    name: str
    #: Whether the address asks for a handshake that is signed for AWS, and for which region.
    signed: bool = False
    region: str | None = None


def server_of(address: str) -> Server:
    """The server of an address: `ws://…`, `wss://…`, or `neptune://host:8182` for `wss://` with
    signed handshakes; `?auth=iam` asks for those, and `region=` says of which region.

    Raises GraphError if it is no address of a Gremlin server.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
        options = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError as error:  # the port is no number or too large; a bracket is missing
        raise GraphError(f"{masked(address)!r} is not the address of a Gremlin server: {error}") from None
    if parts.scheme not in ("ws", "wss", "neptune") or not host or port == 0:
        raise GraphError(
            f"{masked(address)!r} is not the address of a Gremlin server; it looks like ws://localhost:8182/gremlin, or neptune://host:8182"
        )
    ours = {name: value for name, value in options if name in ("auth", "region")}
    if ours.get("auth", "iam") != "iam":
        raise GraphError(f"{masked(address)!r}: auth={ours['auth']!r}; it can only be auth=iam, for a handshake that is signed for AWS")
    neptune = parts.scheme == "neptune"
    scheme, path = "wss" if neptune else parts.scheme, parts.path
    if neptune:
        port, path = port or _PORT, path.rstrip("/") or "/gremlin"
    bracketed = f"[{host}]" if ":" in host else host
    name = f"{scheme}://{host}{f':{port}' if port else ''}{path}"
    if neptune or ours:
        query = urlencode([(name, value) for name, value in options if name not in ours])
        address = f"{scheme}://{bracketed}{f':{port}' if port else ''}{path}{f'?{query}' if query else ''}"
    return Server(address, host, port or (443 if scheme == "wss" else 80), name, neptune or "auth" in ours, ours.get("region") or None)


def check_address(address: str) -> str:
    """Return the address. Raises GraphError if it is none."""
    server_of(address)
    return address


def name_of(address: str) -> str:
    """The address without parts that may be secret; records name a server so.

    Raises GraphError if it is no address of a Gremlin server.
    """
    return server_of(address).name
