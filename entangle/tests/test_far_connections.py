"""The connections of the far program to the server of its mailbox."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from entangle._services.far import connections

from .services.scripted_server import ScriptedServer


class _Server(ScriptedServer):
    """Repeats the request. Depending on the path, it closes the connection or redirects."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        verb, path, _ = head.split(" ", 2)
        size = [int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")]
        body = await reader.readexactly(size[0]) if size else b""
        self.asked.append(f"{verb} {path}")
        if path == "/silent":
            return False
        status = "307 -\r\nLocation: /there" if path == "/on" else "404 -" if path == "/none" else "200 -"
        said = f"{verb} {path} ".encode() + body
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(said)}\r\n\r\n".encode() + said)
        return path != "/last"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(connections, "_open", threading.local())
    made = _Server()
    yield made
    for one in vars(connections._open).values():
        one.close()
    made.close()


def _body(method: str, address: str, data: bytes | None = None) -> str:
    return connections.request(method, address, data)[2].decode()


def test_requests_share_a_connection(server: _Server) -> None:
    assert _body("GET", f"{server.url}/a?b=c%2Fd") == "GET /a?b=c%2Fd "
    assert _body("PUT", f"{server.url}/a", b"all") == "PUT /a all"
    assert connections.request("GET", f"{server.url}/none")[0] == 404
    assert server.opened == 1


def test_one_that_was_closed_meanwhile_is_made_anew(server: _Server) -> None:
    assert _body("GET", f"{server.url}/last") == "GET /last "
    assert _body("PUT", f"{server.url}/a", b"all") == "PUT /a all"
    assert server.opened == 2


def test_no_answer_is_an_error(server: _Server) -> None:
    for _ in range(2):
        with pytest.raises(OSError, match="closed connection"):
            connections.request("GET", f"{server.url}/silent")
    assert server.asked == ["GET /silent"] * 2
    assert _body("GET", f"{server.url}/a") == "GET /a "
    with pytest.raises(OSError, match="closed connection"):
        connections.request("GET", f"{server.url}/silent")
    # The request was repeated: the server might have closed the idle connection before it.
    assert server.asked[-2:] == ["GET /silent"] * 2


def test_where_it_is_sent_on(server: _Server) -> None:
    assert _body("GET", f"{server.url}/on") == "GET /there "
    assert connections.request("PUT", f"{server.url}/on", b"all")[0] == 307  # as urllib does: data is not redirected


def test_through_a_proxy(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "_opener", None)  # the opener caches the proxies that it found first
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    assert _body("GET", "http://bucket.invalid/a") == "GET http://bucket.invalid/a "
