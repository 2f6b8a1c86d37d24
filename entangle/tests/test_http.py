"""`@request`: the response of a web server as a function's first argument. The server is a real
one, on this machine."""

# Decorators are passed around as values here, and have no types then.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from entangle.errors import EntangleError, OptionError, RequestError
from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow

from . import bodies
from .evidence import notes_of
from .ways import installed

installed("httpx")

from entangle.http import request  # noqa: E402


class _Handler(BaseHTTPRequestHandler):
    """Returns the request as JSON, or fails if the path says so."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        parts = urlsplit(self.path)
        if parts.path == "/hang":
            self.server.release.wait(30)  # type: ignore[attr-defined]
        if parts.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        told = {
            "method": self.command,
            "path": parts.path,
            "query": parse_qs(parts.query, keep_blank_values=True),
            "type": self.headers.get("Content-Type", ""),
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": body.decode(),
        }
        status = int(parts.path.removeprefix("/status/")) if parts.path.startswith("/status/") else 200
        answer = json.dumps(told).encode() if status < 400 else b"this is what went wrong " + b"." * 100_000
        if parts.path == "/binary":
            answer = bytes(range(256))
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def __getattr__(self, name: str) -> Any:
        """All methods have the same response: `do_GET`, `do_POST` and the rest."""
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.release = threading.Event()
        self.running: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server() -> Iterator[_Server]:
    """A web server in a thread."""
    with _Server() as ready:
        runs = threading.Thread(target=ready.serve_forever, args=(0.01,))
        runs.start()
        try:
            yield ready
        finally:
            ready.release.set()
            ready.shutdown()
            runs.join()


@pytest.mark.parametrize("under", [process, thread, workflow, lambda f: f], ids=["process", "thread", "workflow", "alone"])
def test_get(server: _Server, under: Any) -> None:
    @under
    @request(url=server.url + "/data", method="GET")
    def ask(data: Any) -> Any:
        return json.loads(data)

    told = ask(drilldowns="Nation", measures="Population & more", n=3)()
    assert told["method"] == "GET"
    assert told["path"] == "/data"
    assert told["query"] == {"drilldowns": ["Nation"], "measures": ["Population & more"], "n": ["3"]}
    assert told["body"] == ""


def test_get_is_the_default(server: _Server) -> None:
    ask = request(url=server.url)(json.loads)
    assert ask()()["method"] == "GET"


def test_a_query_that_the_url_has_is_kept(server: _Server) -> None:
    ask = request(url=server.url + "/x?fixed=1")(json.loads)
    assert ask(more=2)()["query"] == {"fixed": ["1"], "more": ["2"]}


def test_calls_as_keywords(server: _Server) -> None:
    ask = process(request(url=server.url)(json.loads))
    assert ask(n=process(bodies.add)(1, 2))()["query"] == {"n": ["3"]}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "post"])
def test_other_methods_send_a_body(server: _Server, method: str) -> None:
    ask = process(request(url=server.url, method=method)(json.loads))
    told = ask(key1="value 1", key2="2")()
    assert told["method"] == method.upper()
    assert told["query"] == {}
    sent = json.loads(told["body"]) if "json" in told["type"] else {k: v[0] for k, v in parse_qs(told["body"]).items()}
    assert sent == {"key1": "value 1", "key2": "2"}


def test_a_json_body(server: _Server) -> None:
    ask = process(request(url=server.url, method="POST", headers={"Content-Type": "application/json"})(json.loads))
    told = ask(deep={"a": [1, None, True]}, text="ö")()
    assert "json" in told["type"]
    assert json.loads(told["body"]) == {"deep": {"a": [1, None, True]}, "text": "ö"}


def test_headers(server: _Server) -> None:
    ask = process(request(url=server.url, headers={"X-Colour": "blue"})(json.loads))
    assert ask()()["headers"]["x-colour"] == "blue"


def test_the_content_as_it_is(server: _Server) -> None:
    @request(url=server.url + "/binary")
    def size(data: Any) -> tuple[int, Any]:
        return len(data), data[0]

    assert size()()[0] == 256


def test_a_function_whose_own_name_is_request(server: _Server) -> None:
    made: Any = request

    @process
    @made(url=server.url, method="POST")
    def request_(data: Any) -> Any:
        return json.loads(data)["method"]

    assert request_(key1="a", key2="b")() == "POST"


def test_redirects_are_followed(server: _Server) -> None:
    assert request(url=server.url + "/moved")(json.loads)()()["path"] == "/"


@pytest.mark.parametrize("status", [400, 401, 404, 500, 503])
@pytest.mark.parametrize("under", [process, thread])
def test_a_status_that_is_an_error(server: _Server, status: int, under: Any) -> None:
    address = server.url.removeprefix("http://")

    @under
    @request(url=f"http://somebody:hunter2@{address}/status/{status}?token=s3cret", headers={"Authorization": "Bearer t0psecret"})
    def ask(data: Any) -> Any:
        return data

    with pytest.raises(RequestError) as caught:
        ask(api_key="k3y", page=3)()
    told = str(caught.value)
    assert str(status) in told
    assert f"{address}/status/{status}" in told
    assert "this is what went wrong" in told
    assert len(told) < 2000
    everything = told + notes_of(caught.value) + str(caught.value.__cause__)
    for secret in ("hunter2", "s3cret", "k3y", "t0psecret"):
        assert secret not in everything


def test_nobody_answers() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        ask = process(request(url=f"http://127.0.0.1:{port}/x")(json.loads))
        with pytest.raises(RequestError, match=str(port)):
            ask()()


def test_an_answer_that_takes_too_long(server: _Server) -> None:
    ask = process(request(url=server.url + "/hang", timeout=0.3)(json.loads))
    with pytest.raises(EntangleError, match="hang"):
        ask()()


def test_retry_of_a_request(server: _Server) -> None:
    from entangle.errors import ProcessRetryException

    ask = process(retry=2)(request(url=server.url + "/status/503")(json.loads))
    with pytest.raises(ProcessRetryException) as caught:
        ask()()
    assert isinstance(caught.value.__cause__, RequestError)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"url": ""},
        {"url": "no-url"},
        {"url": "ftp://x/y"},
        {"url": "http://x", "method": "FLY"},
        {"url": "http://x", "headers": 3},
        {"url": "http://x", "headers": {"a": 1}},
    ],
    ids=str,
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        request(**options)(json.loads)


def test_arguments_that_are_not_by_name(server: _Server) -> None:
    """The first argument is the response; other positional parameters follow it."""
    with pytest.raises((TypeError, EntangleError)):
        request(url=server.url)(lambda data: data)(1, 2)()


def test_the_documented_composition(server: _Server) -> None:
    @process
    @request(url=server.url, method="GET")
    def mydata(data: Any) -> int:
        return len(json.loads(data)["query"])

    two, add = process(bodies.two), process(bodies.add)

    @workflow
    def workflow1() -> Any:
        return add(mydata(drilldowns="Nation", measures="Population"), two())

    @workflow
    def workflow2(value: Any) -> Any:
        return add(value(), two())

    assert workflow2(workflow1)() == 6
