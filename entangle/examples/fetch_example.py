"""Download, parse, add up: with retries, a limit of the host, and one bad page.

The shop answers 503 to the first request for each page. `@limit` keeps all workers to three
requests at once. One page is no JSON: it is an error in the list, and the others are added up.
"""

import json
import threading
import time
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from entangle import gather
from entangle.limit import limit
from entangle.process import process
from entangle.thread import thread


@limit("the shop", at_once=3)
@thread(retry=3, sleep=0.02, backoff=2, on=(HTTPException, OSError))
def download(port: int, page: int) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", f"/{page}")
    answer = connection.getresponse()
    if answer.status != 200:
        raise HTTPException(f"status {answer.status}")
    return answer.read()


@process
def parse(text: bytes) -> int:
    return int(json.loads(text)["cents"])


asked, inside, crowd = set[str](), list[str](), list[int]()


class Shop(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        inside.append(self.path)
        crowd.append(len(inside))
        time.sleep(0.01)
        self.send_response(200 if self.path in asked else 503)
        asked.add(self.path)
        inside.remove(self.path)
        self.end_headers()
        self.wfile.write(b"<html>" if self.path == "/13" else b'{"cents": %d}' % (100 * int(self.path[1:])))

    def log_message(self, *_: object) -> None: ...


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pages = [parse(download(server.server_port, page)).named(f"page {page}") for page in range(20)]
        found = gather(*pages, return_exceptions=True)()
        server.shutdown()
    for page, bad in ((page, cents) for page, cents in zip(pages, found, strict=True) if not isinstance(cents, int)):
        print(f"{page.name}: {type(bad).__name__}: {bad}")
    print(f"{sum(cents for cents in found if isinstance(cents, int)) / 100:.2f} in all, at most {max(crowd)} requests at once")
