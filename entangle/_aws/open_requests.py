"""Requests of boto3 that wait for an answer, and can be ended by another thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import weakref
from typing import Any


def list_connections(client: Any, connections: weakref.WeakSet[Any], stopped: threading.Event) -> None:
    """Have the connections of a client listed, so that a request that waits can be ended. botocore
    has no way for that, so this looks into it; where that fails, a request ends by itself."""
    with contextlib.suppress(AttributeError):
        kinds = client._endpoint.http_session._pool_classes_by_scheme
        for scheme, pool in list(kinds.items()):
            kinds[scheme] = _listing(pool, connections, stopped)


def _listing(pool: Any, connections: weakref.WeakSet[Any], stopped: threading.Event) -> Any:
    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            connections.add(self)
            if stopped.is_set():
                end_request(self)

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})


def end_request(connection: Any) -> None:
    """End what waits for an answer on a connection."""
    wire = getattr(connection, "sock", None)
    if isinstance(wire, socket.socket):
        with contextlib.suppress(OSError):
            # Not the method of TLS, which another thread is using.
            socket.socket.shutdown(wire, socket.SHUT_RDWR)
