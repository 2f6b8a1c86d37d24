"""`@request` while the server is slow or gone: a call that waits for it uses no thread. The server
is a real one."""

# Decorators are passed as values here, and are untyped.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

import entangle
from entangle import records
from entangle._shared.table import SINCE
from entangle._tasks import web_client
from entangle._worker.worker import here
from entangle.dataflow import dataflow
from entangle.errors import ProcessRetryException, ProcessTimeoutException, RequestError, RunTimeoutException, ThreadTimeoutException
from entangle.limit import limit
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.task import Layer, task
from entangle.thread import thread
from entangle.workflow import workflow

from . import bodies
from .evidence import note, notes, wait_until
from .services.scripted_server import ScriptedServer
from .ways import installed

installed("httpx")

from entangle.http import request  # noqa: E402

#: The size of the large content (bytes).
LARGE = 100 << 20


class Server(ScriptedServer):
    """The path of a request says how the server behaves."""

    def __init__(self) -> None:
        self.cookies: list[str] = []
        #: How many connections the client closed while its request waited.
        self.left = self.most = 0
        super().__init__()

    def open_later(self) -> None:
        """Open the gate after 0.6 s."""
        time.sleep(0.6)
        self.open()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        target = head.split(" ", 2)[1]
        lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        await reader.readexactly(int(lines.get("content-length", 0)))
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        number = self.asked.count(path)
        self.asked.append(path)
        content, status, more = b"content", "200 OK", ""
        if path in ("/gate", "/hang"):
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            left = asyncio.ensure_future(reader.read(1))
            opens = asyncio.ensure_future(self.gate.wait() if path == "/gate" else asyncio.sleep(600))
            await asyncio.wait([left, opens], return_when=asyncio.FIRST_COMPLETED)
            self.waiting -= 1
            opens.cancel()
            if left.done():
                self.left += 1
                return False
            left.cancel()
            await asyncio.wait([left])
        elif path == "/middle":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nthe first part")
            return False
        elif path == "/reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        elif path == "/stale" and self.opened == 1 and number:
            return False  # a connection that was used before closes without an answer
        elif path == "/large":
            content = bytes(LARGE)
        elif path == "/empty":
            content = b""
        elif path == "/twice":
            content = b"good" if number else b"bad"
        elif path == "/set":
            more, status = "Set-Cookie: number=7; Path=/\r\nLocation: /cookies\r\n", "302 Found"
        elif path == "/cookies":
            content = lines.get("cookie", "none").encode()
        elif path == "/echo":
            content = query["n"][0].encode()
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n{more}\r\n".encode() + content)
        return True


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server."""
    made = Server()
    yield made
    made.close()


@contextlib.contextmanager
def when(ready: Any, then: Any) -> Iterator[None]:
    """While the block runs, a thread waits for a condition and then acts."""
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            wait_until(ready, 60, "the requests to be under way")
        except BaseException as error:
            failed.append(error)
        then()

    waits = threading.Thread(target=wait)
    waits.start()
    yield
    waits.join()
    assert not failed, failed


def ours() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("entangle")]


def size(content: bytes, *others: Any) -> Any:
    return (len(content), *others)


def echo(content: bytes) -> int:
    return int(content)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Raises the limit on descriptors as far as possible, up to 8192."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], min(before[1], 8192)), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_thousand_requests_under_way_cost_two_threads(server: Server, many_files: None) -> None:
    threads: list[list[str]] = []

    def open_gate() -> None:
        threads.append(ours())
        server.open()

    with when(lambda: server.waiting == 1000, open_gate):
        assert entangle.gather(*(thread(request(url=server.url + "/gate")(size))(k, n=k) for k in range(1000)))() == [
            (7, k) for k in range(1000)
        ]
    assert {"entangle-away", "entangle-request"} <= set(threads[0])
    assert len(threads[0]) <= 4


def test_what_is_too_much_at_once_waits(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_client, "MOST", 2)
    with when(lambda: server.waiting == 2, server.open):
        assert thread(request(url=server.url + "/gate")(size)).starmap([()] * 20)() == [(7,)] * 20
    assert server.most == 2


@pytest.mark.parametrize("under", [process, thread, workflow, lambda f: f], ids=["process", "thread", "workflow", "alone"])
def test_many_at_once_whatever_runs_the_function(server: Server, under: Any) -> None:
    with when(lambda: server.waiting == 20, server.open):
        asked = under(request(url=server.url + "/gate")(size))
        given = [process(bodies.same)(0), *range(1, 20)]
        assert process(bodies.gather)(*(asked(k, "more", n=k) for k in given))() == (tuple((7, k, "more") for k in range(20)), {})
    wait_until(lambda: not ours())


def test_values_of_bodies_here_are_asked_with(server: Server) -> None:
    asked = request(url=server.url + "/echo")(echo)
    for by in (process, thread):
        for under in (process, thread):
            assert by(bodies.add)(under(asked)(n=by(bodies.add)(3, 4)), 1)() == 8


@pytest.mark.parametrize("way", ["fork", "forkserver", "spawn"])
def test_in_every_way_of_starting(server: Server, way: str) -> None:
    assert (
        entangle.gather(
            process(request(url=server.url + "/echo")(echo)).starmap(
                [()],
            ),
            process(bodies.pid)(),
        )
        is not None
    )
    call = process(bodies.add)(process(request(url=server.url + "/echo")(echo))(n=4), 1)
    assert call.run(start=way) == 5  # type: ignore[call-overload]


@pytest.mark.parametrize("path", ["/middle", "/reset"])
@pytest.mark.parametrize("under", [process, thread])
def test_a_server_that_closes(server: Server, path: str, under: Any) -> None:
    with pytest.raises(RequestError, match=f"GET {server.url}{path}: (RemoteProtocolError|ReadError)"):
        under(request(url=server.url + path)(size))()()
    assert server.asked == [path]


def test_a_connection_that_the_server_has_closed_meanwhile(server: Server) -> None:
    """The second request uses a kept connection, which the server closes without an answer."""
    with entangle.session():
        assert process(request(url=server.url + "/stale")(size))()() == (7,)
        assert process(request(url=server.url + "/stale")(size))()() == (7,)
        assert server.opened == 2
        assert process(request(url=server.url + "/stale", method="POST")(size))()() == (7,)
        # A request that may change something never uses a kept connection.
        assert server.opened == 3


@pytest.mark.parametrize(("under", "kind"), [(process, ProcessTimeoutException), (thread, ThreadTimeoutException)])
def test_past_the_timeout_of_the_body_the_request_is_aborted(server: Server, under: Any, kind: type[Exception]) -> None:
    asked = under(timeout=0.3)(request(url=server.url + "/hang")(size))
    with pytest.raises(kind, match=r"'size' ran longer than its timeout of 0\.3 s"):
        asked()()
    wait_until(lambda: server.left == 1)


def taken(content: bytes) -> float:
    """How long the body has run, as its deadline counts it (seconds)."""
    worker = here.worker
    assert worker is not None
    return (time.monotonic_ns() - worker.site.table.slots[worker.base + SINCE]) / 1e9


@pytest.mark.parametrize("under", [process, thread])
def test_the_time_of_the_request_counts_for_the_timeout_of_the_body(server: Server, under: Any) -> None:
    with when(lambda: server.waiting == 1, server.open_later):
        assert under(timeout=60)(request(url=server.url + "/gate")(taken))()() >= 0.5


def test_a_run_that_is_cancelled_aborts_what_is_under_way(server: Server) -> None:
    asked = process(request(url=server.url + "/hang")(size))

    async def begin_and_cancel() -> None:
        async def wait() -> None:
            await entangle.gather(*(asked() for _ in range(10)))

        waiting = asyncio.create_task(wait())
        while server.waiting < 10:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(begin_and_cancel())
    wait_until(lambda: server.left == 10)
    wait_until(lambda: not ours())


def test_a_failure_and_the_timeout_of_a_run_abort_what_is_under_way(server: Server) -> None:
    hangs = process(request(url=server.url + "/hang")(size))
    fails = process(request(url=server.url + "/gate")(int))
    with when(lambda: server.waiting == 3, server.open), pytest.raises(ValueError, match="content"):
        entangle.gather(hangs(), hangs(), fails())()
    wait_until(lambda: server.left == 2)
    with pytest.raises(RunTimeoutException, match="size"):
        hangs().run(timeout=1.5)
    wait_until(lambda: server.left == server.asked.count("/hang"))


def test_a_large_content_and_one_that_is_empty(server: Server) -> None:
    def look(content: bytes) -> tuple[int, bytes]:
        return len(content), content[-1:]

    assert process(request(url=server.url + "/large")(look))()() == (LARGE, b"\0")
    for under in (process, thread):
        assert under(request(url=server.url + "/empty")(bodies.same))()() == b""
    falsy: list[Any] = [None, 0, "", []]
    for value in falsy:
        assert process(request(url=server.url + "/empty")(lambda content, given: given))(value)() == value


def test_a_function_that_fails_is_tried_again_with_another_answer(server: Server) -> None:
    def good(content: bytes) -> str:
        if content != b"good":
            raise ValueError(content)
        return "good"

    assert process(retry=1)(request(url=server.url + "/twice")(good))()() == "good"
    assert server.asked == ["/twice", "/twice"]
    with pytest.raises(ProcessRetryException, match="failed 3 times"):
        thread(retry=2, sleep=0.01)(request(url=server.url + "/reset")(size))()()
    assert server.asked.count("/reset") == 3


def test_a_process_that_is_killed_asks_again_only_with_retry(server: Server, tmp_path: Path) -> None:
    def killed_once(content: bytes, log: str) -> str:
        note(log, os.getpid())
        if len(notes(log)) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    log = str(tmp_path / "log")
    assert process(retry=1)(request(url=server.url + "/post", method="POST")(killed_once))(log)() == "survived"
    assert server.asked == ["/post", "/post"]


def test_redirects_have_their_cookies_and_no_other_call_has_them(server: Server) -> None:
    with entangle.session():
        for _ in range(2):
            assert process(request(url=server.url + "/set")(bodies.same))()() == b"number=7"
            assert process(request(url=server.url + "/cookies")(bodies.same))()() == b"none"


def test_limits_hold_for_requests_and_cpus_for_functions(server: Server) -> None:
    asked = request(url=server.url + "/gate")(size)
    with when(lambda: server.waiting == 2, server.open):
        limit("two", at_once=2)(process(asked)).starmap([()] * 6)()
    assert server.most == 2
    began = time.monotonic()
    limit("slowly", per_second=20)(process(request(url=server.url + "/echo")(echo)))
    assert [limit("rate", per_second=20)(process(request(url=server.url + "/echo")(echo)))(n=k)() for k in range(3)] == [0, 1, 2]
    assert time.monotonic() - began >= 0.09
    server.loop.call_soon_threadsafe(server.gate.clear)
    with when(lambda: server.waiting == 5, server.open):
        assert scheduler(cpus=1)(process(asked)).starmap([()] * 5)() == [(7,)] * 5
    assert server.asked.count("/gate") == 6 + 5  # none that waited for a cookie was sent again


def test_in_a_session_the_connection_stays_and_ends_with_it(server: Server) -> None:
    asked = process(request(url=server.url + "/echo")(echo))
    with entangle.session():
        assert [asked(n=k)() for k in range(5)] == list(range(5))
        assert ours() == ["entangle-request"]
        assert server.opened < 5
        if (pid := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                os._exit(asked(n=3)())
            os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        assert asked(n=7)() == 7
    wait_until(lambda: not ours())


def test_where_a_thread_must_wait(server: Server) -> None:
    class Loud(Layer):
        def run(self, inner: Any, args: Any, kwargs: Any) -> Any:
            return "loud", inner(*args, **kwargs)

    asked = request(url=server.url + "/echo")(echo)
    assert task(asked, Loud())(n=3)() == ("loud", 3)
    # A layer may run below it.
    assert request(url=server.url + "/empty")(task(asked.function, Loud()))
    assert list(process(asked).stream([], inflight=2)) == []
    assert dataflow(process(request(url=server.url + "/empty")(size)))()(4) == ((0, 4),)

    def within(url: str) -> int:
        return sum(entangle.gather(*(process(request(url=url)(echo))(n=k) for k in range(3)))())

    assert process(within)(server.url + "/echo")() == 3


def test_records_know_the_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    with when(lambda: server.waiting == 2, server.open_later):
        entangle.gather(process(request(url=server.url + "/gate")(size))(), thread(request(url=server.url + "/gate")(size))())()
    nodes = [node for node in records.run("last").nodes if node.task.name == "size"]
    assert [node.place for node in nodes] == [f"127.0.0.1:{server.port}"] * 2
    assert min(node.times.running for node in nodes) >= 0.25
