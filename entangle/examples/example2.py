"""Workflows are values: one takes another as an argument, and decides when and how often to use it.

`forecast` takes a workflow, and does not know that this one asks a web server. `@request` turns the
keyword arguments of a call into the query, and gives the function the content of the answer. The
server is part of this program, on the loopback interface, so no network is needed.

Prints what the server was asked, and the two forecasts.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from entangle.http import request
from entangle.process import process
from entangle.workflow import workflow

RAINFALL = {"april": [4, 0, 11, 2], "may": [1, 3, 0, 0], "june": [0, 9, 22, 5]}


class WeatherStation(BaseHTTPRequestHandler):
    """Answers `GET /?month=may` with the month's rainfall, week by week, as JSON."""

    def do_GET(self) -> None:
        print(f"  the server is asked for {self.path}", flush=True)
        month = parse_qs(urlsplit(self.path).query)["month"][0]
        body = json.dumps({"month": month, "millimetres": RAINFALL[month]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: the line above says it all."""


@contextmanager
def weather_station() -> Iterator[str]:
    """Serve on a free port of the loopback interface; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), WeatherStation)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@process
def add(a: int, b: int) -> int:
    return a + b


@process
def mean(total: int, months: int) -> float:
    return total / months


@workflow
def forecast(season: Any, months: int) -> Any:
    """A forecast from any workflow that gives the rain of a season."""
    return mean(season(), months)


def main() -> None:
    if find_spec("httpx") is None:
        print("@request needs httpx: pip install 'py-entangle[http]'")
        return
    # A proxy could not reach the server, which is on this machine.
    os.environ["NO_PROXY"] = "127.0.0.1"

    with weather_station() as address:
        # The port is known only now, so this task is made here; decorators work anywhere.
        @process
        @request(url=address, method="GET", timeout=10)
        def rain(body: bytes) -> int:
            return sum(json.loads(body)["millimetres"])

        @workflow
        def spring() -> Any:
            return add(rain(month="april"), rain(month="may"))

        @workflow
        def half_year() -> Any:
            return add(spring(), rain(month="june"))

        print("Two workflows for one forecast:")
        print(f"  from spring alone:    {forecast(spring, 2)():.1f} mm a month")
        print(f"  from spring and June: {forecast(half_year, 3)():.1f} mm a month")


if __name__ == "__main__":
    main()
