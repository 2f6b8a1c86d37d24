"""A web server in a thread of the test. The test decides its answers; it counts connections."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class ScriptedServer:
    """A server on loopback. A subclass defines how it answers each request."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        #: How many connections were opened; how many requests wait for `open`.
        self.opened = self.waiting = 0
        self.loop = asyncio.new_event_loop()
        self.gate: asyncio.Event
        self.port = 0
        self._over: asyncio.Event
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self.loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        assert self._ready.wait(30)

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Open the gate: answer all requests that wait."""
        self.loop.call_soon_threadsafe(self.gate.set)

    def close(self) -> None:
        """Stop it, and close all connections."""
        self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self.loop.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. Return whether the connection stays open for another."""
        raise NotImplementedError

    async def _serve(self) -> None:
        self.gate, self._over = asyncio.Event(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=4096)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for other in others:
            other.cancel()
        if others:
            await asyncio.wait(others)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self.answer(reader, writer):
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
