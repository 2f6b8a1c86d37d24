"""Threads for what waits and processes for what computes, in one graph.

`fetch` only waits for a web server: threads are enough for that, one for each page at once.
`count` computes: it gets processes, as many as there are CPUs. The server is part of this program,
on the loopback interface; it takes 0.2 seconds to answer.

Prints which processes did what, how long it took, and the commonest words.
"""

import os
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from entangle.process import process
from entangle.thread import thread

PAGES = 10
SECONDS = 0.2
VOCABULARY = ("river", "stone", "willow", "heron", "otter", "reed", "trout", "ferry", "bridge", "mill", "weir", "island")


class Library(BaseHTTPRequestHandler):
    """Answers `GET /7` with page 7, in its own time."""

    def do_GET(self) -> None:
        time.sleep(SECONDS)
        page = int(self.path[1:])
        # By a rule, so that every run counts the same words.
        words = [VOCABULARY[n * n * (page + 3) % 97 % len(VOCABULARY)] for n in range(20_000)]
        body = " ".join(words).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


class Server(ThreadingHTTPServer):
    """A server for many connections at once."""

    request_queue_size = PAGES  # with a shorter queue, some would retry after a second


@contextmanager
def library() -> Iterator[str]:
    """Serve on a free port of the loopback interface; gives the address."""
    server = Server(("127.0.0.1", 0), Library)
    serving = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


@thread
def fetch(url: str) -> tuple[str, int]:
    """The text of a page, and the process that fetched it."""
    # Without proxies: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as response:
        return response.read().decode(), os.getpid()


@process
def count(page: tuple[str, int]) -> tuple[Counter[str], set[int], set[int]]:
    """The words of a page, the process that fetched it, and the one that counted them."""
    text, fetcher = page
    return Counter(text.split()), {fetcher}, {os.getpid()}


@process
def merge(*counts: tuple[Counter[str], set[int], set[int]]) -> tuple[Counter[str], set[int], set[int]]:
    words: Counter[str] = Counter()
    fetchers: set[int] = set()
    counters: set[int] = set()
    for page_words, fetched_by, counted_by in counts:
        words += page_words
        fetchers |= fetched_by
        counters |= counted_by
    return words, fetchers, counters


def main() -> None:
    with library() as address:
        started = time.perf_counter()
        words, fetchers, counters = merge(*(count(fetch(f"{address}/{page}")) for page in range(PAGES)))()
        seconds = time.perf_counter() - started
    print(f"Fetched in threads of process {fetchers}, counted in processes {counters}; the caller is {os.getpid()}.")
    print(f"{PAGES} pages took {seconds:.2f} s; waiting for one after another would take {PAGES * SECONDS:.1f} s alone.")
    for word, times in words.most_common(3):
        print(f"  {word:<8}{times:>7,}")


if __name__ == "__main__":
    main()
