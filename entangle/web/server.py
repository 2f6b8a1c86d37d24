"""The server behind `entangle ui`: uvicorn on loopback, and the address to open."""

from __future__ import annotations

import secrets
import socket
import threading
from typing import Any

from entangle.web.guard import Guard
from entangle.web.pages import application


class PageServer:
    """A server of the page on 127.0.0.1. `port` 0 is any that is free. Raises OSError where the port is taken.

    PageServer(0).serve()
    """

    def __init__(self, port: int = 0) -> None:
        import uvicorn

        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("127.0.0.1", port))
            # From here on a client that is quicker than the server waits for its answer, and is not refused.
            self._socket.listen(128)
        except BaseException:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self.token = secrets.token_urlsafe(24)
        guarded: Any = Guard(application(lambda: self._server.should_exit), self.token, self.port)
        config = uvicorn.Config(
            guarded,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            # Streams notice at their next look that the server ends; what does not is cut off then.
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)

    @property
    def url(self) -> str:
        """The address to open, with the token in it."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def serve(self) -> None:
        """Serve until Ctrl-C or SIGTERM."""
        try:
            self._server.run(sockets=[self._socket])
        except KeyboardInterrupt:  # uvicorn gives the signal back once it has ended in good order
            pass
        finally:
            self._socket.close()

    def open_browser(self) -> None:
        """Open the page in the user's browser."""
        import webbrowser

        threading.Thread(target=webbrowser.open, args=(self.url,), name="entangle-browser", daemon=True).start()
