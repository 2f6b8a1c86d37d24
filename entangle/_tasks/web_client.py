"""The web client of a process: one thread, in which all requests of its runs are under way.

::

    away worker ──▶ begin(calls) ──▶ event loop: a task a call ──▶ done(content), failed(error)
                    cancel(call) ──▶ the task is cancelled: its connection is closed

The thread is started by the first request. It ends with the last run of the process; in a session,
with the session. Connections to AWS stay open after it: the next run goes on with its loop, in
another thread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import heapq
import http.cookiejar
import os
import resource
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

from entangle._run.start import session
from entangle._tasks.web_exchange import Exchange, Later, Pauses, imported
from entangle._worker.away import AwayCall
from entangle.errors import EntangleError, RunCancelledError

#: The most requests of a process that are under way at once. Each has a connection.
MOST = 1000
#: So many of them share a pool of connections.
PART = 10
#: What httpx tells of a request: it opens a connection; its answer begins.
_OPENED = "connection.connect_tcp.started"
_ANSWERED = "http11.receive_response_headers.complete"
#: How many names of servers are looked up at once: each lookup takes a thread.
_LOOKUPS = 2
#: How long requests have to end when they are aborted with the client (seconds).
_GRACE = 5.0
#: So many redirects are followed, as by httpx.
_REDIRECTS = 20


class Asking:
    """A request under way."""

    def __init__(self, call: AwayCall, exchange: Exchange) -> None:
        self.call, self.exchange = call, exchange
        self.begun = self.cancelled = False
        self.client: WebClient | None = None
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Abort it. From any thread."""
        self.cancelled = True
        client = self.client
        if client is not None:
            client.run_soon(self.abort)

    def abort(self) -> None:
        """Abort it. In the thread of the client."""
        if self.task is not None:
            self.task.cancel()


class WebClient:
    """The thread, and what it has open."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._closed = self._resting = False
        #: Whether its connections may stay open between runs: all of its exchanges allow it.
        self._stays = True
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._verify: Any = None
        self._parts: dict[int, _Part] = {}
        #: As many as may be under way at once, and the part of each place that is free: the first
        #: ones first, so that few connections are used again and again.
        self._places: asyncio.Semaphore
        self._free: list[int] = []
        try:
            self._start()
        except BaseException:
            self._loop.close()
            raise

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._serve, name="entangle-request", daemon=True)
        self._thread.start()

    # From any thread ------------------------------------------------------------------------

    def begin(self, asked: Sequence[Asking]) -> bool:
        """Take over these requests. False if it has ended."""
        for asking in asked:
            asking.client = self
        return self.run_soon(functools.partial(self._begin, asked))

    def run_soon(self, function: Callable[[], object]) -> bool:
        """Call this in the thread. False if it has ended."""
        with self._guard:
            if not self._closed:
                self._loop.call_soon_threadsafe(function)
                if self._resting:
                    self._resting = False
                    self._start()
            return not self._closed

    def rest(self) -> bool:
        """Abort all that is under way, and end the thread; connections stay for the next run. False
        if they may not."""
        with self._guard:
            if self._closed or self._resting:
                return True
            if not self._stays or threading.current_thread() is self._thread:
                return False
            self._resting = True
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            return True

    def close(self) -> None:
        """Abort all that is under way, and end the thread."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            if self._resting:  # in this thread: no other can be started while the interpreter ends
                self._end_loop()
                return
            self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # The thread -----------------------------------------------------------------------------

    def _serve(self) -> None:
        loop = self._loop
        names = futures.ThreadPoolExecutor(_LOOKUPS, "entangle-names")
        loop.set_default_executor(names)
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            try:
                if self._closed:
                    self._end_loop()
                else:
                    loop.run_until_complete(self._end(at_most=1))
            finally:
                names.shutdown(wait=False, cancel_futures=True)
                asyncio.set_event_loop(None)

    def _end_loop(self) -> None:
        try:
            self._loop.run_until_complete(self._end())
        finally:
            self._loop.close()

    async def _end(self, at_most: int = 0) -> None:
        """End all that is under way, and all parts of the connections but so many."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_GRACE)
        for number in sorted(self._parts)[at_most:]:
            await self._parts.pop(number).close()

    def _begin(self, asked: Sequence[Asking]) -> None:
        for asking in asked:
            self._stays = self._stays and asking.exchange.stays
            if not asking.cancelled:
                asking.task = task = self._loop.create_task(self._ask(asking))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _ask(self, asking: Asking) -> None:
        call, exchange = asking.call, asking.exchange
        try:
            sent = exchange.sent(*call.take())
            self._open()
            pauses = Pauses(exchange)
            while True:
                try:
                    content = await self._content(asking, sent)
                    break
                except Later as later:
                    seconds = pauses.after(later)
                    asking.begun, call.waits = False, later.why
                    await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            call.failed(RunCancelledError("the web client has ended"))  # ignored by a call that was cancelled
            raise
        except EntangleError as error:
            call.failed(error.with_traceback(None))  # our own frames, and what they hold, tell nobody anything
        except Exception as error:
            call.failed(error)
        else:
            call.done(content)

    async def _content(self, asking: Asking, sent: dict[str, Any]) -> Any:
        """Send the request, as soon as there is a place, and give what its answer means."""
        call, exchange = asking.call, asking.exchange
        if self._places.locked():
            call.waits = "many requests are under way already"
        async with self._places:
            number = heapq.heappop(self._free)
            try:
                part = self._parts.get(number)
                if part is None:
                    part = self._parts[number] = _Part(self._verify)
                if exchange.signs:
                    waits = exchange.waits_to_sign()
                    sent = await self._loop.run_in_executor(None, exchange.signed, sent) if waits else exchange.signed(sent)
                call.runs()
                asking.begun = True
                try:
                    answer = await part.answer(exchange, sent)
                except Exception as error:
                    failure = exchange.failure(error)
                    if failure is error:
                        raise
                    raise failure from error
                if exchange.ticket:
                    call.ticket = answer.headers.get(exchange.ticket, "")
                return exchange.content(answer)
            finally:
                heapq.heappush(self._free, number)

    def _open(self) -> None:
        if self._verify is not None:
            return
        most = most_at_once()
        # Requests wait here for a place, and never in a pool, where that would count for their
        # timeouts.
        self._places = asyncio.Semaphore(most)
        self._free = [place // PART for place in range(most)]
        self._verify = _certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


class _Part:
    """A part of the connections. httpx looks at all connections of a pool for each request, so a
    thousand in one pool would take it seconds."""

    def __init__(self, verify: Any) -> None:
        httpx = imported()
        # A cookie that one answer sets must not reach another call.
        jar = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=()))
        self._make = functools.partial(httpx.AsyncClient, verify=verify, cookies=jar)
        self._pooled = self._make(limits=httpx.Limits(max_connections=None, max_keepalive_connections=PART))
        self._fresh: Any = None

    async def answer(self, exchange: Exchange, sent: dict[str, Any]) -> Any:
        """The answer to a request, and to those to which it is sent on."""
        httpx = imported()
        request = self._pooled.build_request(**sent)
        cookies = httpx.Cookies()
        for _ in range(_REDIRECTS + 1):
            answer = await self._send(exchange, request)
            if not exchange.follows or answer.next_request is None:
                return answer
            request = answer.next_request
            cookies.extract_cookies(answer)
            cookies.set_cookie_header(request)
        raise httpx.TooManyRedirects("Exceeded maximum allowed redirects.", request=request)

    async def _send(self, exchange: Exchange, request: Any) -> Any:
        """Send a request by a connection that is open, if there is one.

        A server may close that just then. So a request that may change something there gets a
        connection of its own, and another one is sent once more if nothing was answered.
        """
        httpx = imported()
        if exchange.keeps:
            seen: set[str] = set()

            async def note(event: str, _: Any) -> None:
                seen.add(event)

            request.extensions = {**request.extensions, "trace": note}
            try:
                return await self._pooled.send(request, follow_redirects=False)
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                if not exchange.follows or _OPENED in seen or _ANSWERED in seen:
                    raise
        if self._fresh is None:
            self._fresh = self._make(limits=httpx.Limits(max_connections=None, max_keepalive_connections=0))
        return await self._fresh.send(request, follow_redirects=False)

    async def close(self) -> None:
        """Close the connections."""
        for client in (self._pooled, self._fresh):
            if client is not None:
                with contextlib.suppress(Exception):
                    await client.aclose()


@functools.lru_cache(4)
def _certificates(file: str | None, directory: str | None) -> Any:
    """The certificates to trust, from the variables that httpx reads. Loading them takes 20 ms."""
    return imported().create_ssl_context()


def most_at_once() -> int:
    """How many requests may be under way at once: half of the descriptors that are left."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST
    try:
        taken = len(os.listdir("/proc/self/fd"))
    except OSError:
        taken = 64
    return max(1, min(MOST, (soft - taken) // 2))


_clients: dict[Any, WebClient] = {}
_guard = threading.Lock()


def client_here() -> WebClient:
    """The client of this process: of the session that is open, else of its runs."""
    owner = session()
    with _guard:
        client = _clients.get(owner)
        if client is None:
            client = _clients[owner] = WebClient()
            if owner is None:
                return client
        else:
            return client
    owner.at_end(functools.partial(_close, owner, client))
    return client


def _close(owner: Any, client: WebClient) -> None:
    with _guard:
        if _clients.get(owner) is client:
            del _clients[owner]
    client.close()


def end_with_runs() -> None:
    """End the thread of the client that belongs to runs."""
    client = _clients.get(None)
    if client is not None and not client.rest():
        _close(None, client)


@atexit.register
def close_connections() -> None:
    """Close the connections that stay open between runs."""
    client = _clients.get(None)
    if client is not None and client.rest():
        with contextlib.suppress(RuntimeError):  # an event loop runs in this thread
            _close(None, client)


def _after_fork() -> None:
    """A child has no such thread. It leaves the connections to its parent."""
    global _guard
    _guard = threading.Lock()
    _kept.extend(_clients.values())
    _clients.clear()


#: In a forked child, the clients of its parent: ending their loops would close what both share.
_kept: list[WebClient] = []

os.register_at_fork(after_in_child=_after_fork)
