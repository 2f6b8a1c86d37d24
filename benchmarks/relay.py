"""A TCP relay on the loopback interface that delays every byte: it stands for a long network.

    python -m benchmarks.relay PORT SECONDS

It relays to PORT of this machine, prints the port on which it listens, and ends with its stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Write what is read `seconds` later."""
    loop = asyncio.get_running_loop()
    held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def write() -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = await held.get()
                await asyncio.sleep(due - loop.time())
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()

    writing = asyncio.create_task(write())
    data = b"-"
    while data:
        try:
            data = await reader.read(1 << 18)
        except OSError:
            data = b""
        held.put_nowait((loop.time() + seconds, data))
    await writing


async def _relay(port: int, seconds: float) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_carry(reader, back, seconds), _carry(there, writer, seconds))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_relay(int(sys.argv[1]), float(sys.argv[2])))
