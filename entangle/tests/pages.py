"""Servers of the web page for tests, with their own records and runs to show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .callers import ROOT

#: The program that makes the runs. Each word on the command line is a run.
RUNS = """
    import logging, os, sys, time
    import entangle
    from entangle.dataflow import dataflow
    from entangle.dataflow import process as flowing
    from entangle.process import process
    from entangle.task import task
    from entangle.workflow import workflow

    @process
    def num(n):
        return n

    @process
    def add(a, b):
        return a + b

    @task(attributes={"part": "wing"})
    @process
    def subtract(a, b):
        return a - b

    @process
    def broken(n):
        raise ValueError(f"<b>no</b> {n}")

    @workflow
    def inside(n):
        return add(num(n), 1)

    @process
    def wait(n):
        while not os.path.exists("go"):
            time.sleep(0.01)
        return n

    def lasting(n, folder):
        print("lasts", n)
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.01)
        return num(n)()

    @process
    def grow(n):
        wait(0)()
        return add(num(n), wait(n))()

    @process(retry=2, sleep=0.2)
    def flaky(n):
        with open(f"tries-{n}", "a") as file:
            file.write("x")
        print("try", os.path.getsize(f"tries-{n}"), "of", n)
        if os.path.getsize(f"tries-{n}") < n:
            raise TimeoutError(f"<i>not yet</i> {n}")
        return n

    @process(retry=9)
    def patient(n):
        sys.stdout.write("waits with password=hunter2hunter2\\n")
        if not os.path.exists("tried"):
            open("tried", "w").close()
            raise TimeoutError("<i>not yet</i> password=hunter2hunter2")
        while not os.path.exists("go"):
            time.sleep(0.01)
        return n

    @process
    def some(values):
        return [value for value in values if isinstance(value, int)]

    @dataflow
    @flowing
    def load(n):
        return n

    @dataflow
    @flowing
    def parse(n):
        if n % 10 == 3:
            raise ValueError(f"no {n}")
        return n

    @dataflow
    @flowing
    def save(n):
        return n

    def counting():
        n = 0
        while n < 40 or not os.path.exists("go"):
            yield n
            n += 1
            if n >= 40:
                time.sleep(0.01)

    def tree(n):
        level = [num(k) for k in range(n)]
        while len(level) > 1:
            level = [add(*level[at:at + 2]) if at + 1 < len(level) else level[at] for at in range(0, len(level), 2)]
        return level[0]

    for word in sys.argv[1:]:
        with entangle.tags(kind=word):
            if word == "small":
                print(add(add(num(6), num(1)), subtract(num(5), num(2)))())
            elif word == "other":
                print(add(add(num(6), num(1)), subtract(num(5), num(3)))())
            elif word == "failed":
                try:
                    add(num(1), broken(2))()
                except ValueError:
                    pass
            elif word == "nested":
                print(add(inside(1), inside(2))())
            elif word == "far":
                from entangle.interpreter import interpreter
                print(add(interpreter(num)(3), 1)())
            elif word == "queued":
                from entangle.service import service
                from entangle.tests.local_jobs import LocalJobs
                there = service(LocalJobs(os.getcwd(), jobs=1), mailbox="mailbox")(lasting)
                print(add(there(1, os.getcwd()), there(2, os.getcwd()))())
            elif word == "many":
                print(tree(5000)())
            elif word == "retried":
                try:
                    add(flaky(2), flaky(9))()
                except Exception:
                    pass
            elif word == "wide":
                print(some([add(num(n), n) for n in range(50)])())
            elif word == "patient":
                print(add(patient(3).named("the patient one"), 1)())
            elif word == "partial":
                good, bad = add(num(1), 2).named("good"), add(broken(4), 5).named("lost")
                print(some(entangle.gather(good, bad, return_exceptions=True))())
            elif word == "stream":
                logging.disable(logging.WARNING)
                print(sum(n for (n,) in load(parse(save())).stream(range(100), on_error="skip")))
            elif word == "streaming":
                logging.disable(logging.WARNING)
                print(sum(1 for _ in load(parse(save())).stream(counting(), on_error="skip")))
            elif word == "durable":
                with entangle.durable("ann's night"):
                    print(add(num(1), wait(2))())
            elif word == "live":
                print(add(add(num(1), wait(2)), grow(3))())
"""


class Page:
    """A server of the page in a process of its own, with requests as a browser would send them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "runs").mkdir()
        (folder / "runs.py").write_text(textwrap.dedent(RUNS), encoding="utf-8")
        self.environment = {
            **os.environ,
            "PYTHONPATH": ROOT,
            "PYTHONWARNINGS": "error",
            "ENTANGLE_RUN_DIR": str(folder / "runs"),
            "ENTANGLE_RECORD_DIR": str(folder / "records"),
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "entangle", "ui", "--no-browser", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=self.environment,
        )
        assert self._server.stdout is not None
        said = self._server.stdout.readline()
        if not said:
            raise AssertionError(self._server.communicate()[1])
        told = json.loads(said)
        self.url: str = told["url"]
        self.token: str = told["token"]
        self.base = self.url.partition("?")[0]

    def run(self, *words: str) -> None:
        """Make these runs."""
        subprocess.run(
            [sys.executable, "runs.py", *words], cwd=self.folder, env=self.environment, check=True, timeout=50, stdout=subprocess.DEVNULL
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start these runs, and return at once. Those that wait continue after `go`."""
        return subprocess.Popen(
            [sys.executable, "runs.py", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def go(self) -> None:
        """Let runs that wait continue."""
        (self.folder / "go").touch()

    def ask(self, path: str, token: str | None = "", **headers: str) -> tuple[int, dict[str, str], str]:
        """Send a request, and return its status, headers and body. Redirects are not followed."""
        if token is not None:
            headers["Authorization"] = f"Bearer {token or self.token}"
        request = urllib.request.Request(self.base.rstrip("/") + path, headers=headers)
        opener = urllib.request.build_opener(_Stay)
        try:
            with opener.open(request, timeout=20) as answer:
                return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read().decode()

    def get(self, path: str) -> Any:
        """Return the JSON of a path that must succeed."""
        status, _, body = self.ask(path)
        assert status == 200, (status, body)
        return json.loads(body)

    def id_of(self, kind: str) -> str:
        """The id of the latest run that was made by this word."""
        return str(self.get(f"/api/runs?query={kind}")["runs"][0]["id"])

    def close(self) -> None:
        """End the server. It must exit without an error."""
        self._server.terminate()
        try:
            _, complaint = self._server.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.communicate()
            raise AssertionError("the server did not end within 15 s") from None
        assert not re.search(r"Traceback|ERROR", complaint), complaint


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@contextmanager
def served(folder: Path, *words: str) -> Iterator[Page]:
    """A server of the page, with these runs made before."""
    page = Page(folder)
    try:
        if words:
            page.run(*words)
        yield page
    finally:
        page.close()
