"""Which requests are answered, and what a browser may do with the answers.

The server listens on loopback. Any program of any user of the machine can reach it there, and so
can any page that a browser has open. Hence:

- A request needs the token of this server, in a cookie that scripts cannot read and pages of other
  sites cannot use. A browser gets the cookie for a code in the address, and is redirected to the
  address without the code. A browser's command line has the address, and all users can read that:
  so a code is good for one use within some minutes and, where the kernel tells whose connection it
  is, for this user alone. Programs may send the token itself in the address, or in a header.
- The Host header must name loopback. Otherwise the name of another site could point here, and a
  browser would take this server for that site (DNS rebinding).
- Pages may load nothing from elsewhere, run no script but ours, and be framed by no other page.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: The parameters of an address, and the beginning of the header of programs.
PARAMETER, CODE, BEARER = "token", "code", "bearer "
_LOOPBACK = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)

_NO_TOKEN = "This address has no token and no code. Open the address that `entangle ui` printed in its terminal."
_NO_CODE = (
    "This address has been used, or is too old: it is good for one use, within some minutes, by the user who started the server. "
    "The terminal of `entangle ui` shows a new one. If you have not used this address, another user has: end the server with Ctrl-C."
)

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


class Codes:
    """The codes that are good: each for one use, until its time is up."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def new(self, seconds: float) -> str:
        """A new code that is good for so many seconds."""
        code = secrets.token_urlsafe(24)
        self._until[code] = time.monotonic() + seconds
        return code

    def good(self, code: str) -> bool:
        """Whether a code is good now."""
        return self._until.get(code, 0.0) > time.monotonic()

    def use(self, given: str) -> bool:
        """Use a code up; gives whether it was good. The time that this takes reveals nothing about
        the codes."""
        found = [code for code in list(self._until) if hmac.compare_digest(code.encode(), given.encode())]
        good = any(self.good(code) for code in found)
        for code in [*found, *(code for code in list(self._until) if not self.good(code))]:
            self._until.pop(code, None)
        return good


class Guard:
    """An ASGI application around another one. `port` is in the name of the cookie, since browsers
    send cookies to all ports. `used` is called after every code that was given, good or not."""

    def __init__(self, inner: Application, token: str, port: int, codes: Codes, used: Callable[[], None]) -> None:
        self.inner = inner
        self.token = token
        self.codes = codes
        self.used = used
        self.cookie = f"entangle-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse, or pass on."""
        if scope["type"] == "lifespan":
            return await self.inner(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if not _LOOPBACK.fullmatch(headers.get(b"host", b"")):
            return await _refuse(send, 421, "This server answers only to its loopback address: 127.0.0.1, localhost or [::1].")
        if scope["method"] not in ("GET", "HEAD"):
            return await _refuse(send, 405, "This server is read-only: it answers GET and HEAD.")
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = next((value for name, value in query if name == PARAMETER), None)
        code = next((value for name, value in query if name == CODE), None)
        if given is not None and not self._right(given):
            return await _refuse(
                send, 401, "The token in this address is not the token of this server. `entangle ui --json` prints the right one."
            )
        # A browser with the cookie needs no code, and may open an old address again.
        if given is None and code is not None and not self._right(self._kept(headers)) and not self._code_is_good(code, scope):
            return await _refuse(send, 401, _NO_CODE)
        if given is not None or code is not None:
            rest = urlencode([pair for pair in query if pair[0] not in (PARAMETER, CODE)])
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
            return await _refuse(send, 401, _NO_TOKEN)

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in _HEADERS}
                message["headers"] = [*_HEADERS, *(pair for pair in message["headers"] if pair[0].lower() not in own)]
            await send(message)

        await self.inner(scope, receive, guarded)

    def _code_is_good(self, code: str, scope: Scope) -> bool:
        if scope["method"] != "GET" or not _is_ours(scope.get("client"), scope.get("server")):
            return False  # the code stays good: this request would not have got the cookie anyway
        good = self.codes.use(code)
        self.used()
        return good

    def _right(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def _kept(self, headers: dict[bytes, bytes]) -> str | None:
        """The token: in the cookie of a browser, or in the Authorization header of a program."""
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        if authorization.lower().startswith(BEARER):
            return authorization[len(BEARER) :].strip()
        try:
            found = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(self.cookie)
        except CookieError:
            return None
        return found.value if found is not None else None


def _is_ours(client: tuple[str, int] | None, server: tuple[str, int] | None) -> bool:
    """Whether the connection between these IPv4 addresses belongs to this user, or to root (ssh
    forwards ports as root). Also true where the kernel does not tell."""
    try:
        ends = [_as_listed(*end) for end in (client, server) if end]
        with open("/proc/net/tcp", encoding="ascii") as file:
            for line in file:
                fields = line.split()
                if fields[1:3] == ends:
                    return int(fields[7]) in (os.getuid(), 0)
    except (OSError, ValueError, IndexError):
        pass
    return True


def _as_listed(host: str, port: int) -> str:
    return f"{int.from_bytes(bytes(map(int, host.split('.'))), sys.byteorder):08X}:{port:04X}"


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
