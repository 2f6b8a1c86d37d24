"""The server behind `entangle ui`: uvicorn on loopback, and the address to open."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Callable
from typing import Any

from entangle.web.guard import CODE, PARAMETER, Codes, Guard
from entangle.web.pages import application

#: Seconds within which a browser that we start must ask, and within which a user must open an
#: address that was shown.
_STARTED, _SHOWN = 120.0, 900.0


class PageServer:
    """A server of the page on 127.0.0.1. `port` 0 is any free port. Raises OSError if the port is
    taken.

    `show` is called with an address to open, which is good for one use: at once, and again whenever
    a browser asks and the last one is used up or too old.

    PageServer(0).serve()
    """

    def __init__(self, port: int = 0, show: Callable[[str], None] = lambda address: None) -> None:
        import uvicorn

        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("127.0.0.1", port))
            # Listen now: a client that is quicker than the server then waits, and is not refused.
            self._socket.listen(128)
        except BaseException:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self.token = secrets.token_urlsafe(24)
        self._codes = Codes()
        self._show = show
        self._shown = ""
        guarded: Any = Guard(application(lambda: self._server.should_exit), self.token, self.port, self._codes, self._offer)
        config = uvicorn.Config(
            guarded,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            # Streams end at their next look. Connections that take longer are cut off.
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)

    @property
    def url(self) -> str:
        """The address for programs, with the token in it."""
        return f"http://127.0.0.1:{self.port}/?{PARAMETER}={self.token}"

    def _once(self, code: str) -> str:
        return f"http://127.0.0.1:{self.port}/?{CODE}={code}"

    def _offer(self) -> None:
        """Show an address, unless the last one that was shown is still good."""
        if not self._codes.good(self._shown):
            self._shown = self._codes.new(_SHOWN)
            # If the terminal is gone, go on serving.
            with contextlib.suppress(OSError, ValueError):
                self._show(self._once(self._shown))

    def serve(self) -> None:
        """Serve until Ctrl-C or SIGTERM."""
        self._offer()
        try:
            self._server.run(sockets=[self._socket])
        except KeyboardInterrupt:  # uvicorn raises the signal again when it has shut down
            pass
        finally:
            self._socket.close()

    def open_browser(self) -> None:
        """Open the page in the user's browser. All users of the machine can read the browser's
        command line, so the address has a code for one use, and not the token."""
        import webbrowser

        address = self._once(self._codes.new(_STARTED))
        threading.Thread(target=webbrowser.open, args=(address,), name="entangle-browser", daemon=True).start()
