"""Who may ask, and what a browser may do with the answers.

The server listens on loopback, where any program of any user of the machine, and any page that some browser has open, can reach it. So:

- A request needs the token of this server: in the address the first time, from then on in a cookie that pages of other sites cannot
  use and scripts cannot read. The answer to the first is a redirect to the address without it.
- The Host header must name loopback. Else a page of another site could have its name point here (DNS rebinding).
- Pages may load nothing from anywhere else, run no script but ours, and be framed by nobody.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Parameter of the address, and header for programs.
PARAMETER, BEARER = "token", "bearer "
_LOOPBACK = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)

_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """An ASGI application around another one. `port` tells the cookies of two servers on one machine apart."""

    def __init__(self, inner: Application, token: str, port: int) -> None:
        self.inner = inner
        self.token = token
        self.cookie = f"entangle-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse, or pass on."""
        if scope["type"] == "lifespan":
            return await self.inner(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if not _LOOPBACK.fullmatch(headers.get(b"host", b"")):
            return await _refuse(send, 421, "This server answers to its loopback address alone.")
        if scope["method"] not in ("GET", "HEAD"):
            return await _refuse(send, 405, "This server only shows.")
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = next((value for name, value in query if name == PARAMETER), None)
        if given is not None:
            if not self._right(given):
                return await _refuse(
                    send, 401, "That is not the token of this server. It is in the address that it printed when it started."
                )
            rest = urlencode([pair for pair in query if pair[0] != PARAMETER])
            location = "/" + quote(scope["path"].lstrip("/")) + ("?" + rest if rest else "")
            cookie = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
            await send(
                {
                    "type": "http.response.start",
                    "status": 303,
                    "headers": [*_HEADERS, (b"location", location.encode("ascii")), (b"set-cookie", cookie.encode("ascii"))],
                }
            )
            return await send({"type": "http.response.body", "body": b""})
        if not self._right(self._kept(headers)):
            return await _refuse(send, 401, "Open the address with the token, which the server printed when it started.")

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in _HEADERS}
                message["headers"] = [*_HEADERS, *(pair for pair in message["headers"] if pair[0].lower() not in own)]
            await send(message)

        await self.inner(scope, receive, guarded)

    def _right(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def _kept(self, headers: dict[bytes, bytes]) -> str | None:
        """The token that a browser has in its cookie, or a program in its Authorization header."""
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        if authorization.lower().startswith(BEARER):
            return authorization[len(BEARER) :].strip()
        try:
            found = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(self.cookie)
        except CookieError:
            return None
        return found.value if found is not None else None


async def _refuse(send: Send, status: int, text: str) -> None:
    body = text.encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*_HEADERS, (b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})
