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

#: Seconds in which a browser that we start must have asked, and in which a user must have opened an address that was shown.
_STARTED, _SHOWN = 120.0, 900.0


class PageServer:
    """A server of the page on 127.0.0.1. `port` 0 is any that is free. Raises OSError where the port is taken.

    `show` is given an address to open, good for one use, at once and whenever the one before is used up or too old and somebody asks.

    PageServer(0).serve()
    """

    def __init__(self, port: int = 0, show: Callable[[str], None] = lambda address: None) -> None:
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
            # Streams notice at their next look that the server ends; what does not is cut off then.
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
        """Show an address, unless the last one that was shown could still be used."""
        if not self._codes.good(self._shown):
            self._shown = self._codes.new(_SHOWN)
            # A terminal that has gone away is no reason to stop.
            with contextlib.suppress(OSError, ValueError):
                self._show(self._once(self._shown))

    def serve(self) -> None:
        """Serve until Ctrl-C or SIGTERM."""
        self._offer()
        try:
            self._server.run(sockets=[self._socket])
        except KeyboardInterrupt:  # uvicorn gives the signal back once it has ended in good order
            pass
        finally:
            self._socket.close()

    def open_browser(self) -> None:
        """Open the page in the user's browser. Its command line, which all users of the machine can read, has a code of its own and no
        token."""
        import webbrowser

        address = self._once(self._codes.new(_STARTED))
        threading.Thread(target=webbrowser.open, args=(address,), name="entangle-browser", daemon=True).start()
