"""`entangle ui`: look at runs in a browser."""

from __future__ import annotations

import sys

from entangle.cli.exit_status import UNREACHABLE, Refused, need
from entangle.cli.json_lines import print_json
from entangle.cli.printing import console


def ui(port: int, browser: bool, as_json: bool) -> None:
    """Serve the page until Ctrl-C. Raises Refused where the extra `web` is missing or the port is
    taken."""
    need("starlette", "web", "the page")
    need("uvicorn", "web", "the page")
    from entangle.web.server import PageServer

    out = console()
    first = True

    def show(address: str) -> None:
        nonlocal first
        out.print("Runs, live and remembered, are at" if first else "For another browser:")
        print(f"\n    {address}\n", flush=True)
        if first:
            out.print("Only you can use the address, and only once; then another one is shown. Ctrl-C ends the server.", style="dim")
        first = False
        sys.stdout.flush()

    try:
        server = PageServer(port) if as_json else PageServer(port, show)
    except OSError as error:
        raise Refused(f"port {port} on 127.0.0.1 cannot be used: {error.strerror}; --port 0 takes a free one", UNREACHABLE) from None
    if as_json:
        print_json({"url": server.url, "port": server.port, "token": server.token})
    if browser and not as_json and sys.stdout.isatty():
        server.open_browser()
    server.serve()
