"""Requests to the server of a mailbox, over connections that stay open: a handshake, and reading
whom to trust, takes longer than a request.

This file comes with the program itself. It needs the standard library only.
"""

from __future__ import annotations

import http.client
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

#: The module that signs requests to addresses which nobody has signed: those have a "#". The
#: command of the job has brought it.
ROLE = "entangle._aws.job_role"
#: How long an answer may take (seconds).
PATIENCE = 60.0
#: urllib's own default says that it is a form.
_PLAIN = {"Content-Type": "application/octet-stream"}
#: Connections that a thread has open, by scheme and server.
_open = threading.local()


def request(method: str, address: str, data: Any = None, headers: Mapping[str, str] | None = None) -> tuple[int, Any, bytes]:
    """The status, the headers and the body of an answer. Raises OSError where there is none."""
    headers = {**_PLAIN, **(headers or {})}
    if "#" in address:
        headers = sys.modules[ROLE].headers_of(method, address, data, headers)
        address = address.partition("#")[0]
    parts = urlsplit(address)
    where = f"{parts.scheme}://{parts.netloc}"
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(parts.netloc):
        return _by_urllib(method, address, data, headers)
    connections: dict[str, http.client.HTTPConnection] = vars(_open)
    connection = connections.pop(where, None)
    kept = connection is not None
    target = address[len(where) :]
    while True:
        if connection is None:
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            connection = kind(parts.netloc, timeout=PATIENCE)
        try:
            connection.request(method, target, data, headers)
            answer = connection.getresponse()
            body = answer.read()
            break
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            connection = None
            if not kept:
                raise error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}") from None
            kept = False  # the server may have closed it just then
    if answer.will_close:
        connection.close()
    else:
        connections[where] = connection
    if answer.status in (301, 302, 303, 307, 308):
        return _by_urllib(method, address, data, headers)
    return answer.status, answer.headers, body


def _by_urllib(method: str, address: str, data: Any, headers: Mapping[str, str]) -> tuple[int, Any, bytes]:
    """The same, through proxies, and to where a server sends on."""
    try:
        asked = urllib.request.Request(address, data, dict(headers), method=method)
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()
