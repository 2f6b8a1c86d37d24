"""The page's requests, and who may make them. The server is real and is asked by HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pty
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entangle.web.guard import Codes, Guard
from entangle.web.lanes import Stretch, timeline
from entangle.web.page_graph import OPENED, GraphPart, drawn

from .callers import ROOT
from .evidence import wait_until
from .pages import Page, served


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with served(tmp_path_factory.mktemp("page"), "small", "other", "failed", "nested", "many") as found:
        yield found


# --- authentication -------------------------------------------------------------------------------


def test_nobody_sees_anything_without_the_token(page: Page) -> None:
    for path in ("/", "/app.js", "/api/runs", "/api/events", "/nothing"):
        status, _, body = page.ask(path, token=None)
        assert (status, "token" in body) == (401, True)
    assert page.ask("/api/runs", token="wrong")[0] == 401
    assert page.ask("/?token=wrong", token=None)[0] == 401


def test_the_token_of_the_address_becomes_a_cookie_and_leaves_the_address(page: Page) -> None:
    status, headers, _ = page.ask(f"/?a=b&token={page.token}", token=None)
    assert (status, headers["location"]) == (303, "/?a=b")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    status, _, body = page.ask("/", token=None, Cookie=cookie.partition(";")[0])
    assert (status, "<title>entangle</title>" in body) == (200, True)


class Shown:
    """`entangle ui` as a user starts it, and the addresses that it prints."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "entangle", "ui", "--no-browser"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": ROOT, "PYTHONWARNINGS": "error", "ENTANGLE_RECORD_DIR": str(folder), **environment},
        )

    def address(self) -> str:
        """Wait for the next address that is printed. Return it."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.strip().startswith("http"):
                return line.strip()
        raise AssertionError(self.process.communicate()[1])

    def close(self) -> None:
        self.process.terminate()
        assert self.process.communicate(timeout=20)[1] == ""


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Shown]:
    found = Shown(tmp_path)
    try:
        yield found
    finally:
        found.close()


def answer(address: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    """The server's answer to a request for this address. Redirects are not followed."""
    parts = urllib.parse.urlsplit(address)
    with contextlib.closing(http.client.HTTPConnection(parts.netloc, timeout=20)) as connection:
        connection.request(method, f"{parts.path}?{parts.query}", headers=headers)
        found = connection.getresponse()
        found.read()
        return found


def test_the_address_that_is_shown_works_once_and_then_another_one_is_shown(shown: Shown) -> None:
    first = shown.address()
    assert "token" not in first
    # The preview of a mail or chat program does not use up the code.
    assert answer(first, "HEAD").status == 401
    assert answer(first, Host="elsewhere.example").status == 421
    assert answer(first.replace("code=", "code=x")).status == 401
    opened = answer(first + "&a=b")
    assert (opened.status, opened.headers["location"], opened.headers["referrer-policy"]) == (303, "/?a=b", "no-referrer")
    cookie = opened.headers["set-cookie"].partition(";")[0]
    assert first.partition("code=")[2] not in cookie
    runs = urllib.parse.urljoin(first, "/api/runs")
    assert (answer(runs).status, answer(runs, Cookie=cookie).status) == (401, 200)
    second = shown.address()
    assert second != first
    assert answer(first).status == 401
    assert answer(first, Cookie=cookie).status == 303  # a browser with the cookie stays logged in
    assert answer(second).status == 303


def test_a_code_is_good_at_its_own_server_alone(shown: Shown, page: Page) -> None:
    address = shown.address()
    assert page.ask("/?" + urllib.parse.urlsplit(address).query, token=None)[0] == 401
    assert answer(address).status == 303


def test_a_code_is_no_good_when_its_time_is_up() -> None:
    codes = Codes()
    late, early = codes.new(-1.0), codes.new(3600.0)
    assert [codes.use(code) for code in (late, "", "ä\0", early, early)] == [False, False, False, True, False]


@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="only root can be another user, and Linux tells whose a connection is"
)
def test_another_user_of_the_machine_cannot_use_a_code(tmp_path: Path) -> None:
    """Another user can read the code in the browser's command line, and may use it first."""
    asking = (
        "import http.client, os, sys, urllib.parse; "
        "parts = urllib.parse.urlsplit(sys.argv[1]); connection = http.client.HTTPConnection(parts.netloc, timeout=20); "
        "'idna'.encode('idna'); os.setuid(12346); "
        "connection.request('GET', '/?' + parts.query); print(connection.getresponse().status)"
    )
    # Root may ask on behalf of others (as sshd does for a forwarded port), so the server acts as
    # another user.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 12345)
        codes = Codes()
        asked = Guard(nobody, "token", 1, codes, lambda: None)
        with over_http(asked) as base:
            address = f"{base}/?code={codes.new(60.0)}"
            done = subprocess.run([sys.executable, "-c", asking, address], capture_output=True, text=True, timeout=50)
            assert (done.stdout, done.stderr) == ("401\n", "")
            assert answer(address).status == 303


async def nobody(scope: Any, receive: Any, send: Any) -> None:
    """An application that must not be reached."""
    raise AssertionError(scope)


@contextlib.contextmanager
def over_http(application: Any) -> Iterator[str]:
    """The address of an application, served in this process."""
    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(application, log_level="warning", lifespan="off", ws="none"))
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        serving.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            serving.join()


def test_no_command_line_has_the_token(tmp_path: Path) -> None:
    """`entangle ui` at a terminal opens a browser. Here that is a script, which notes its command
    line and opens the page."""
    browser, noted = tmp_path / "browser", tmp_path / "noted"
    browser.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {noted}.draft\nmv {noted}.draft {noted}\n', encoding="utf-8")
    browser.chmod(0o755)
    here, there = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "entangle", "ui"],
        stdin=there,
        stdout=there,
        stderr=there,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RECORD_DIR": str(tmp_path), "BROWSER": str(browser), "TERM": "xterm"},
    )
    try:
        os.close(there)
        wait_until(noted.exists, what="the browser")
        address = noted.read_text(encoding="utf-8").strip()
        opened = answer(address)
        assert opened.status == 303
        token = opened.headers["set-cookie"].partition(";")[0].partition("=")[2]
        assert len(token) >= 32
        assert token not in address
        assert "token" not in address
        assert answer(address).status == 401
    finally:
        process.terminate()
        process.wait()
        os.close(here)


@pytest.mark.parametrize("path", ["/%e2%82%ac", "/a%20b%0d%0aset-cookie:%20c", "/%3Fa%23b"])
def test_a_redirect_leads_to_the_same_path_whatever_its_letters(page: Page, path: str) -> None:
    status, headers, _ = page.ask(f"{path}?q=%e2%82%ac&token={page.token}", token=None)
    assert (status, headers["location"].lower()) == (303, f"{path}?q=%e2%82%ac".lower().replace(":", "%3a"))
    assert headers["set-cookie"].startswith("entangle-")


def test_a_redirect_does_not_lead_away(page: Page) -> None:
    _, headers, _ = page.ask(f"//elsewhere.example/?token={page.token}", token=None)
    assert not headers.get("location", "/").startswith("//")


@pytest.mark.parametrize("host", ["elsewhere.example", "127.0.0.1.elsewhere.example", "localhost:80:80", ""])
def test_a_name_that_points_here_by_a_trick_is_refused(page: Page, host: str) -> None:
    assert page.ask("/", Host=host)[0] == 421


def test_nothing_can_be_changed(page: Page) -> None:
    connection = http.client.HTTPConnection(page.base.split("/")[2], timeout=20)
    try:
        for method in ("POST", "PUT", "DELETE"):
            connection.request(method, "/api/runs", headers={"Authorization": f"Bearer {page.token}"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 405
    finally:
        connection.close()


def test_a_browser_is_told_to_be_careful(page: Page) -> None:
    for path in ("/", "/api/runs", "/app.js", "/nothing"):
        _, headers, _ = page.ask(path)
        policy = headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"


def test_only_our_own_files_are_served(page: Page) -> None:
    for path in ("/../pages.py", "/%2e%2e/pages.py", "/vendor/../../pages.py", "/vendor/%2e%2e/%2e%2e/guard.py"):
        status, _, body = page.ask(path)
        assert (status, "import" in body) == (404, False)
    for path in ("/layout.js", "/vendor/cytoscape.min.js", "/vendor/cytoscape.LICENSE"):
        assert page.ask(path)[0] == 200


def test_the_page_asks_nobody_else() -> None:
    static = Path(__file__).parents[1] / "web" / "static"
    for path in [*static.glob("*.js"), *static.glob("*.html"), *static.glob("*.css")]:
        text = path.read_text(encoding="utf-8")
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), path.name


# --- answers --------------------------------------------------------------------------------------


def test_runs_are_found_by_words(page: Page) -> None:
    every = page.get("/api/runs")["runs"]
    assert len(every) == 5
    assert [run["tags"]["kind"] for run in every] == ["many", "nested", "failed", "other", "small"]
    assert [run["tags"]["kind"] for run in page.get("/api/runs?query=failed")["runs"]] == ["failed"]
    assert [run["tags"]["kind"] for run in page.get("/api/runs?query=add+small")["runs"]] == ["small"]
    assert page.get("/api/runs?query=100%25")["runs"] == []
    assert page.get("/api/runs?limit=2")["more"] is True


def test_a_small_graph_is_drawn_node_by_node(page: Page) -> None:
    graph = page.get(f"/api/runs/{page.id_of('small')}/graph")
    assert graph["total"] == len(graph["nodes"]) == 7
    labels = {node["id"]: f"{node['label']}({node['call']}) = {node['value']}" for node in graph["nodes"]}
    edges = {(labels[edge["source"]], labels[edge["target"]]) for edge in graph["edges"]}
    assert edges == {
        ("num(6) = 6", "add(6, 1) = 7"),
        ("num(1) = 1", "add(6, 1) = 7"),
        ("num(5) = 5", "subtract(5, 2) = 3"),
        ("num(2) = 2", "subtract(5, 2) = 3"),
        ("add(6, 1) = 7", "add(7, 3) = 10"),
        ("subtract(5, 2) = 3", "add(7, 3) = 10"),
    }
    # In the order of the arguments.
    into = [edge["source"] for edge in graph["edges"] if labels[edge["target"]] == "add(7, 3) = 10"]
    assert [labels[source] for source in into] == ["add(6, 1) = 7", "subtract(5, 2) = 3"]


def test_a_large_graph_is_drawn_by_task_and_opened_as_far_as_it_can_be_looked_at(page: Page) -> None:
    run = page.id_of("many")
    graph = page.get(f"/api/runs/{run}/graph")
    assert graph["total"] == 9999
    assert {node["label"]: node["count"] for node in graph["nodes"]} == {"num": 5000, "add": 4999}
    assert {(edge["source"], edge["target"]): edge["count"] for edge in graph["edges"]} == {
        ("task:num", "task:add"): 5000,
        ("task:add", "task:add"): 4998,
    }
    opened = page.get(f"/api/runs/{run}/graph?open=add,unknown")
    assert len(opened["nodes"]) == OPENED + 2
    assert sum(edge["count"] for edge in opened["edges"]) == 9998


def test_runs_inside_nodes_are_drawn_on_them(page: Page) -> None:
    run = page.id_of("nested")
    graph = page.get(f"/api/runs/{run}/graph")
    assert graph["total"] == 7
    assert sum(edge.get("part", False) for edge in graph["edges"]) == 2
    inner = next(node["id"] for node in graph["nodes"] if ":" in node["id"])
    assert page.get(f"/api/runs/{run}/nodes/{inner}")["task"] in ("add", "num")
    outer = next(node["id"] for node in graph["nodes"] if node["task"] == "inside")
    assert page.get(f"/api/runs/{run}/nodes/{outer}")["nested"][0]["nodes"] == 2


def test_a_node_tells_what_it_took_and_gave_and_where_its_time_went(page: Page) -> None:
    run = page.id_of("small")
    nodes = page.get(f"/api/runs/{run}/nodes")["nodes"]
    number = next(node["node"] for node in nodes if node["task"] == "subtract")
    node = page.get(f"/api/runs/{run}/nodes/{number}")
    assert node["output"]["text"] == "3"
    assert len(node["output"]["hash"]) == 64
    assert [(given["name"], given["task"], given["value"]["text"]) for given in node["inputs"]] == [("a", "num", "5"), ("b", "num", "2")]
    assert "def subtract(a, b):" in node["source"]
    assert node["attributes"] == {"part": "wing"}
    assert set(node["spans"]) == {"arguments", "queue", "cookie", "tried", "pauses", "moving", "elsewhere", "running"}
    assert node["pid"] > 0


def test_what_failed_is_shown_with_its_traceback(page: Page) -> None:
    run = page.id_of("failed")
    info = page.get(f"/api/runs/{run}")
    assert (info["state"], info["error"]["message"]) == ("failed", "<b>no</b> 2")
    node = page.get(f"/api/runs/{run}/nodes/{info['error']['node']}")
    assert node["task"] == "broken"
    assert "raise ValueError" in node["error"]["traceback"]


@pytest.fixture(scope="module")
def further(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with served(tmp_path_factory.mktemp("further"), "retried", "partial", "stream") as found:
        yield found


def test_each_attempt_is_told_with_its_time_and_why_it_failed(further: Page) -> None:
    run = further.id_of("retried")
    nodes = further.get(f"/api/runs/{run}/nodes?query=flaky")["nodes"]
    one, other = (further.get(f"/api/runs/{run}/nodes/{node['node']}") for node in nodes)
    assert [(tried["number"], tried["error"]) for tried in one["tries"]] == [(1, "TimeoutError: <i>not yet</i> 2"), (2, None)]
    assert [tried["number"] for tried in other["tries"]] == [1, 2, 3]
    assert {tried["error"] for tried in other["tries"]} == {"TimeoutError: <i>not yet</i> 9"}
    for node in (one, other):
        times = [moment for tried in node["tries"] for moment in (tried["began"], tried["ended"])]
        assert times == sorted(times)
        # Pauses do not count as time that it waited for a worker.
        assert node["spans"]["pauses"] >= 0.19 * (len(node["tries"]) - 1)
        assert node["spans"]["tried"] > 0
    assert one["printed"] == "try 1 of 2\ntry 2 of 2\n"
    bars = further.get(f"/api/runs/{run}/timeline?width=4000")["bars"]
    attempts = [bar for bar in bars if bar[6] == 2]
    assert sum(bar[5] for bar in attempts) == 3
    assert all(bar[7].startswith("TimeoutError: <i>not yet</i>") for bar in attempts)
    assert [bar[6] for bar in bars].count(1) == 1


def test_a_failed_run_says_its_error_in_the_list(further: Page) -> None:
    found = {run["tags"]["kind"]: run for run in further.get("/api/runs")["runs"]}
    assert found["retried"]["error"]["message"].startswith("task 'flaky' failed 3 times")
    assert found["retried"]["program"].endswith("runs.py")
    assert found["partial"]["error"] is None
    assert [run["tags"]["kind"] for run in further.get("/api/runs?state=failed")["runs"]] == ["retried"]
    assert further.get("/api/runs?state=killed")["runs"] == []


def test_what_was_skipped_names_the_failure_that_is_why(further: Page) -> None:
    run = further.id_of("partial")
    info = further.get(f"/api/runs/{run}")
    assert info["state"] == "done"
    assert info["counts"] == {"done": 3, "failed": 1, "skipped": 1}
    found = further.get(f"/api/runs/{run}/nodes?state=skipped")
    assert found["counts"] == info["counts"]
    (lost,) = found["nodes"]
    assert (lost["name"], lost["task"]) == ("lost", "add")
    node = further.get(f"/api/runs/{run}/nodes/{lost['node']}")
    assert node["cause"]["task"] == "broken"
    failed = further.get(f"/api/runs/{run}/nodes/{node['cause']['node']}")
    assert (failed["state"], failed["error"]["message"]) == ("failed", "<b>no</b> 4")
    assert "raise ValueError" in failed["error"]["traceback"]
    labels = {node["label"]: node for node in further.get(f"/api/runs/{run}/graph")["nodes"]}
    assert labels["lost"]["states"] == {"skipped": 1}
    assert labels["good"]["call"] == "1, 2"
    tasks = {task["task"]: task for task in further.get(f"/api/runs/{run}/tasks")["tasks"]}
    assert [tasks["add"][name] for name in ("count", "done", "failed", "skipped")] == [2, 1, 0, 1]
    assert [node["name"] for node in further.get(f"/api/runs/{run}/nodes?query=good")["nodes"]] == ["good"]


def test_a_stream_is_a_node_a_stage_with_its_items(further: Page) -> None:
    run = further.id_of("stream")
    info = further.get(f"/api/runs/{run}")
    assert (info["state"], info["nodes"], info["counts"]) == ("done", 3, {"done": 3})
    told = info["stream"]
    assert (told["pulled"], told["taken"], told["left_out"]) == (100, 90, 10)
    assert told["waited"] >= 0
    assert [sum(items) for items in zip(*told["bins"], strict=True)] == [100, 100, 100]
    graph = further.get(f"/api/runs/{run}/graph")
    assert [(node["label"], node["states"]) for node in graph["nodes"]] == [(name, {"done": 1}) for name in ("load", "parse", "save")]
    numbers = [tuple(node["items"][name] for name in ("done", "failed", "skipped")) for node in graph["nodes"]]
    assert numbers == [(100, 0, 0), (90, 10, 0), (90, 0, 10)]
    assert all(node["items"]["rate"] > 0 for node in graph["nodes"])
    timeline = further.get(f"/api/runs/{run}/timeline")
    assert set(timeline["tasks"]) == {"load", "parse", "save"}
    assert sum(bar[5] for bar in timeline["bars"]) == 300
    node = further.get(f"/api/runs/{run}/nodes/1")
    assert (node["task"], node["items"]["failed"], node["spans"]) == ("parse", 10, {})
    assert "def parse(n):" in node["source"]
    assert [task["skipped"] for task in further.get(f"/api/runs/{run}/tasks")["tasks"]] == [0, 0, 10]


def test_a_large_run_is_shown_before_its_segment_is_ingested(tmp_path: Path) -> None:
    with served(tmp_path) as page:
        page.run("many")
        (segment,) = (tmp_path / "records" / "sheets").iterdir()
        with open(segment, "ab") as file:
            # As large as a segment of 100,000 nodes; nothing is read beyond the tail.
            file.truncate(2 << 20)
        (run,) = page.get("/api/runs")["runs"]
        assert (run["state"], run["nodes"], run["done"]) == ("done", 9999, 9999)
        before = page.get(f"/api/runs/{run['id']}"), page.get(f"/api/runs/{run['id']}/graph")
        times = page.get(f"/api/runs/{run['id']}/timeline")
        opened = page.get(f"/api/runs/{run['id']}/graph?open=add")
        assert segment.exists()
        assert page.get(f"/api/runs/{run['id']}/nodes?limit=1")["total"] == 9999
        assert not segment.exists()
        info, graph = page.get(f"/api/runs/{run['id']}"), page.get(f"/api/runs/{run['id']}/graph")
        assert {name: before[0][name] for name in ("id", "task", "counts", "nodes", "error")} == {
            name: info[name] for name in ("id", "task", "counts", "nodes", "error")
        }
        told = [{node["id"]: (node["count"], node["states"]) for node in one["nodes"]} for one in (before[1], graph)]
        assert told[0] == told[1]
        assert times == page.get(f"/api/runs/{run['id']}/timeline")
        assert len(opened["nodes"]) == len(page.get(f"/api/runs/{run['id']}/graph?open=add")["nodes"])
        links = [{(edge["source"], edge["target"]): edge["count"] for edge in one["edges"]} for one in (before[1], graph)]
        assert links[0] == links[1]


def test_what_made_a_value_and_what_it_led_to(page: Page) -> None:
    run = page.id_of("small")
    nodes = page.get(f"/api/runs/{run}/nodes")["nodes"]
    root = next(node["node"] for node in nodes if node["value"] == "10")
    five = next(node["node"] for node in nodes if node["value"] == "5")
    made = page.get(f"/api/runs/{run}/ancestors/{root}")
    assert (made["total"], len(made["list"])) == (6, 6)
    assert [one["task"] for one in page.get(f"/api/runs/{run}/descendants/{five}")["list"]] == ["subtract", "add"]
    digest = page.get(f"/api/runs/{run}/nodes/{five}")["output"]["hash"]
    makers = page.get(f"/api/values/{digest}")["makers"]
    assert {maker["run"] for maker in makers} >= {run, page.id_of("other")}
    assert makers[0]["from"][0]["text"] == "n=5"


def test_two_runs_are_compared(page: Page) -> None:
    found = page.get(f"/api/compare?a={page.id_of('small')}&b={page.id_of('other')}")
    assert found["same_graph"]
    assert [(value["task"], value["a"], value["b"]) for value in found["values"]] == [
        ("num", "2", "3"),
        ("subtract", "3", "2"),
        ("add", "10", "9"),
    ]
    assert {"what": "tag kind", "a": "small", "b": "other"} in found["differences"]
    assert {task["task"]: task["code_changed"] for task in found["tasks"]} == {"num": False, "add": False, "subtract": False}
    assert page.get(f"/api/compare?a={page.id_of('small')}&b={page.id_of('failed')}")["same_graph"] is False


def test_nodes_are_found_sorted_and_counted(page: Page) -> None:
    run = page.id_of("many")
    found = page.get(f"/api/runs/{run}/nodes?limit=10&query=add&order=seconds&state=done")
    assert (found["total"], len(found["nodes"])) == (4999, 10)
    lasted = [node["seconds"] for node in found["nodes"]]
    assert lasted == sorted(lasted, reverse=True)
    assert page.get(f"/api/runs/{run}/nodes?state=failed")["total"] == 0


def test_a_timeline_has_no_more_bars_than_can_be_seen(page: Page) -> None:
    run = page.id_of("many")
    for by in ("worker", "cpu"):
        found = page.get(f"/api/runs/{run}/timeline?by={by}&width=500")
        assert sum(bar[5] for bar in found["bars"]) == 9999
        assert len(found["bars"]) <= 500 * len(found["lanes"])
        near = page.get(f"/api/runs/{run}/timeline?by={by}&width=500&start={found['total'] / 2}&end={found['total'] / 2 + 0.001}")
        assert sum(bar[5] for bar in near["bars"]) < 9999


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("svg", "<svg"),
        ("mermaid", "flowchart"),
        ("dot", "digraph"),
        ("trace", "traceEvents"),
        ("prov", "wasGeneratedBy"),
        ("json", "nodes"),
    ],
)
def test_a_run_can_be_taken_away(page: Page, form: str, expected: str) -> None:
    status, headers, body = page.ask(f"/api/runs/{page.id_of('small')}/export/{form}")
    assert (status, expected in body) == (200, True)
    assert headers["content-disposition"].startswith('attachment; filename="add-')


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/runs/beef", 404),
        ("/api/runs/beef/graph", 404),
        ("/api/runs/{run}/nodes/99", 404),
        ("/api/runs/{run}/nodes/x", 400),
        ("/api/runs/{run}/nodes/%C2%B2", 400),
        ("/api/runs/{run}/ancestors/%D9%A1", 400),
        ("/api/runs/{run}/nodes/9999999999999999999999", 400),
        ("/api/runs/{run}/timeline?width=none", 400),
        ("/api/runs/{run}/timeline?by=hand", 400),
        ("/api/runs/{run}/export/gif", 400),
        ("/api/runs?limit=0", 400),
        ("/api/values/beef", 404),
        ("/api/values/not-hex", 404),
        ("/api/compare?a=beef", 400),
        ("/api/compare?a=beef&b=beef", 404),
        ("/api/nothing", 404),
    ],
)
def test_a_question_that_makes_no_sense_gets_a_short_answer(page: Page, path: str, status: int) -> None:
    found, _, body = page.ask(path.replace("{run}", page.id_of("small")))
    assert found == status
    assert json.loads(body)["error"]


@pytest.mark.parametrize(
    "query",
    [
        " ".join(f"word{number}" for number in range(3000)),
        "add " * 3000,
        "x" * 60_000,
        "%00",
        "add%00",
        "' OR 1=1 --",
        '"add" NEAR(add small) * ^ : ( ) - + {',
        "\\ % _ \\%",
        "[a-z]* ?",
        "%ff%fe",
        "\u0130\u00df\U0001f600\u202e",
        "%ed%a0%80",
        "\t\n ",
    ],
    ids=lambda query: f"{query[:12]!a} of {len(query)}",
)
def test_any_query_has_an_answer(page: Page, query: str) -> None:
    said = urllib.parse.quote(query, safe="%")
    for path in ("/api/runs", f"/api/runs/{page.id_of('small')}/nodes"):
        found = page.get(f"{path}?query={said}")
        assert path.rpartition("/")[2] in found


def test_many_words_are_looked_for_as_few_are(page: Page) -> None:
    words = "add+small+done+" + "+".join("adds"[: 1 + number % 3] for number in range(3000))
    assert [run["tags"]["kind"] for run in page.get(f"/api/runs?query={words}")["runs"]] == ["small"]
    run = page.id_of("small")
    many = "+".join(["ADD", "%41dd"] + ["a", "d"] * 1500)
    assert page.get(f"/api/runs/{run}/nodes?query={many}")["total"] == page.get(f"/api/runs/{run}/nodes?query=add")["total"] == 2
    assert page.get(f"/api/runs/{run}/nodes?query={many}+{'x' * 2000}")["total"] == 0


#: The page's requests, with all their parameters.
QUESTIONS = {
    "/api/runs": ("limit", "query"),
    "/api/runs/{run}": (),
    "/api/runs/{run}/graph": ("open",),
    "/api/runs/{run}/timeline": ("by", "width", "start", "end"),
    "/api/runs/{run}/tasks": (),
    "/api/runs/{run}/nodes": ("limit", "order", "state", "query"),
    "/api/runs/{run}/nodes/{node}": (),
    "/api/runs/{run}/ancestors/{node}": (),
    "/api/runs/{run}/descendants/{node}": (),
    "/api/runs/{run}/export/{form}": (),
    "/api/compare": ("a", "b"),
    "/api/values/{digest}": (),
}
ODD = st.one_of(
    st.text(max_size=30),
    st.binary(max_size=10),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", "0", "-1", "1e400", "nan", "inf", "9" * 400, "last", "running", "seconds", "svg", "a" * 5000, "\0", "%", "'", "\ud7ff"]
    ),
)


@given(
    st.sampled_from(sorted(QUESTIONS)), st.booleans(), st.dictionaries(st.sampled_from(["run", "node", "form", "digest"]), ODD), st.data()
)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_question_has_an_answer_or_is_told_why_not(
    page: Page, path: str, known: bool, places: dict[str, Any], data: st.DataObject
) -> None:
    taken = data.draw(st.dictionaries(st.sampled_from([*QUESTIONS[path], "other"]), ODD))
    usual = {"run": page.id_of("small") if known else "beef", "node": "1", "form": "json", "digest": "00"}
    asked = path.format(**{name: urllib.parse.quote(places.get(name, value), safe="") for name, value in usual.items()})
    status, headers, body = page.ask(f"{asked}?{urllib.parse.urlencode(taken)}")
    assert status in (200, 400, 404), (status, body)
    if status != 200 and headers["content-type"] == "application/json":
        assert json.loads(body)["error"]


def test_records_that_cannot_be_read_are_told_and_hide_nothing_that_lasts(tmp_path: Path) -> None:
    with served(tmp_path) as page:
        (tmp_path / "records").mkdir(exist_ok=True)
        (tmp_path / "records" / "records.sqlite").write_bytes(b"no database" * 1000)
        status, _, body = page.ask("/api/runs")
        assert status == 500
        assert "records.sqlite" in json.loads(body)["error"]
        stream = events(page, "/api/events")
        assert next(stream) == ("runs", {"live": [], "version": ANY})
        stream.close()  # type: ignore[attr-defined]


def test_what_is_damaged_among_the_records_is_told_and_hides_no_run(tmp_path: Path) -> None:
    with served(tmp_path, "small", "other") as page:
        (spoiled, kept) = (page.id_of(kind) for kind in ("small", "other"))
        os.mkfifo(tmp_path / "records" / "sheets" / "x.run")
        connection = sqlite3.connect(tmp_path / "records" / "records.sqlite")
        connection.execute("UPDATE runs SET tags = '[' WHERE id = ?", (spoiled,))
        connection.commit()
        connection.close()
        found = page.get("/api/runs")
        assert [run["id"] for run in found["runs"]] == [kept]
        assert ["x.run" in line or spoiled in line for line in found["left_out"]] == [True, True]
        status, _, body = page.ask(f"/api/runs/{spoiled}")
        assert (status, "damaged" in json.loads(body)["error"]) == (500, True)
        assert page.get(f"/api/runs/{kept}/graph")["total"] == 7
        (tmp_path / "records" / "sheets" / "x.run").unlink()
        assert len(page.get("/api/runs")["left_out"]) == 1


def test_a_place_of_records_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("not a directory")
    with served(tmp_path) as page:
        status, _, body = page.ask("/api/runs")
        assert (status, "ENTANGLE_RECORD_DIR" in json.loads(body)["error"]) == (500, True)


# --- while a run lasts ----------------------------------------------------------------------------


def events(page: Page, path: str) -> Iterator[tuple[str, Any]]:
    """The events of a stream as they arrive."""
    connection = http.client.HTTPConnection(page.base.split("/")[2], timeout=20)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {page.token}"})
        answer = connection.getresponse()
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        while True:
            line = answer.readline().decode().rstrip("\n")
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                yield name, json.loads(line[6:])
            elif not line and answer.isclosed():
                return
    finally:
        connection.close()


def test_a_run_is_followed_from_its_table_to_its_record(tmp_path: Path) -> None:
    with served(tmp_path) as page:
        script = page.start("live")
        try:
            live: list[Any] = []
            for name, message in events(page, "/api/events"):
                assert name == "runs"
                live = message["live"]
                if live and live[0]["running"] == 2:
                    break
            run = live[0]["id"]
            assert page.get(f"/api/runs/{run}")["live"] is True
            wait_until(lambda: page.get(f"/api/runs/{run}/graph")["total"] > 5)
            nodes = {node["task"]: node for node in page.get(f"/api/runs/{run}/graph")["nodes"]}
            assert nodes["grow"]["states"] == {"running": 1}
            assert page.get(f"/api/runs/{run}/nodes?state=running")["total"] == 2
            assert page.get(f"/api/runs/{run}/nodes/{nodes['grow']['id']}")["state"] == "running"
            assert page.get(f"/api/runs/{run}/timeline")["lanes"]
            assert {task["task"] for task in page.get(f"/api/runs/{run}/tasks")["tasks"]} == {"num", "wait", "add", "grow"}
            totals = []
            for name, message in events(page, f"/api/runs/{run}/events"):
                if name == "ended":
                    break
                assert name == "look"
                if "graph" in message:
                    totals.append(message["graph"]["total"])
                page.go()
            assert totals == sorted(totals)  # a graph grows
            assert script.communicate(timeout=20)[0] == "9\n"
        finally:
            script.kill()
            script.communicate()
        info = wait_until(lambda: (found := page.get(f"/api/runs/{run}"))["state"] == "done" and found)
        assert info["live"] is False
        assert page.ask(f"/api/runs/{run}/events")[2].startswith("event: ended")


def test_a_live_stream_says_how_far_its_stages_are(tmp_path: Path) -> None:
    with served(tmp_path) as page:
        script = page.start("streaming")
        try:
            run = str(wait_until(lambda: (found := live_runs(page)) and found[0]["stream"] and found[0]["id"]))
            told = wait_until(lambda: (found := page.get(f"/api/runs/{run}")["stream"]) and found["left_out"] and found)
            assert [stage["name"] for stage in told["stages"]] == ["load", "parse", "save"]
            assert told["pulled"] >= told["taken"] + told["left_out"]
            graph = page.get(f"/api/runs/{run}/graph")
            assert (graph["total"], len(graph["nodes"])) == (3, 3)
            assert graph["nodes"][1]["items"]["failed"] > 0
            assert page.get(f"/api/runs/{run}/timeline")["bars"]
            assert page.get(f"/api/runs/{run}/nodes")["total"] == 3
            assert page.get(f"/api/runs/{run}/nodes/2")["items"]["skipped"] > 0
            assert page.ask(f"/api/runs/{run}/nodes/3")[0] == 404
            assert [task["task"] for task in page.get(f"/api/runs/{run}/tasks")["tasks"]] == ["load", "parse", "save"]
            page.go()
            assert script.communicate(timeout=30)[1] == ""
        finally:
            script.kill()
            script.communicate()
        info = wait_until(lambda: (found := page.get(f"/api/runs/{run}"))["state"] == "done" and found)
        assert info["stream"]["pulled"] == info["stream"]["taken"] + info["stream"]["left_out"]


def live_runs(page: Page) -> Any:
    """The live runs, as in the page's list of runs."""
    stream = events(page, "/api/events")
    try:
        return next(stream)[1]["live"]
    finally:
        stream.close()  # type: ignore[attr-defined]


def test_a_live_run_says_its_attempts_its_load_and_what_its_bodies_print(tmp_path: Path) -> None:
    with served(tmp_path) as page:
        script = page.start("patient")
        try:
            run = str(wait_until(lambda: (found := live_runs(page)) and found[0]["counts"].get("running") and found[0]["id"]))
            wait_until(lambda: page.get(f"/api/runs/{run}/graph")["total"] == 2 and page.get(f"/api/runs/{run}")["load"])
            node = wait_until(
                lambda: (found := page.get(f"/api/runs/{run}/nodes/0"))["tries"] and found["printed"] and found["name"] and found
            )
            assert node["tries"][0]["error"].startswith("TimeoutError: <i>not yet</i> password=")
            assert node["printed"].startswith("waits with password=")
            assert "hunter2" not in json.dumps(node)
            assert node["name"] == "the patient one"
            assert [bar[6] for bar in page.get(f"/api/runs/{run}/timeline")["bars"]].count(2) == 1
            seconds, cpus, memory = page.get(f"/api/runs/{run}")["load"][-1]
            assert seconds > 0
            assert cpus >= 0
            assert memory >= 0
            page.go()
            assert script.communicate(timeout=30) == ("waits with password=hunter2hunter2\n" * 2 + "4\n", "")
        finally:
            script.kill()
            script.communicate()


def test_a_live_run_says_where_its_calls_are_and_why_they_wait(tmp_path: Path) -> None:
    with served(tmp_path) as page:
        script = page.start("queued")
        try:
            run = str(wait_until(lambda: (found := live_runs(page)) and found[0]["id"]))
            why = "pending because 1 jobs run already"
            there = [{"place": "local", "why": told, "nodes": 1} for told in ("", why)]
            info = wait_until(
                lambda: (found := page.get(f"/api/runs/{run}")) and sorted(found["away"], key=lambda one: one["why"]) == there and found, 60
            )
            assert info["counts"] == {"running": 1, "ready": 1, "waiting": 1}
            nodes = [page.get(f"/api/runs/{run}/nodes/{node}") for node in range(3)]
            running, queued, waiting = sorted(nodes, key=lambda node: ["running", "ready", "waiting"].index(node["state"]))
            assert [node["state"] for node in (running, queued, waiting)] == ["running", "ready", "waiting"]
            assert [node["place"] for node in (running, queued, waiting)] == ["local", "local", None]
            assert [node["why"] for node in (running, queued, waiting)] == ["", why, ""]
            assert running["ticket"]
            assert running["ticket"] != queued["ticket"]
            assert [list(node["spans"]) for node in (running, queued)] == [["running"], ["elsewhere"]]
            assert page.get(f"/api/runs/{run}/timeline?by=place")["lanes"] == ["local"]
            told = subprocess.run(
                [sys.executable, "-m", "entangle", "top"], env=page.environment, capture_output=True, text=True, check=True
            ).stdout
            assert f"  local  1 there, 1 {why}\n" in told
            assert "0 of 3 done, 1 running, 2 waiting" in told
            page.go()
            # What it prints begins with the path of the call that waits for it.
            said = script.communicate(timeout=60)[0].splitlines()
            assert sorted(said) == ["3", "[local add → lasting] lasts 1", "[local add → lasting] lasts 2"]
            late = page.get(f"/api/runs/{run}/nodes/{queued['node']}")
            assert late["ticket"] == queued["ticket"]
            assert late["queued"] > queued["spans"]["elsewhere"]
            # The records of the other side have arrived: its own run, with a nested run inside.
            (inner,) = late["nested"]
            assert (inner["task"], inner["nodes"]) == ("lasting", 1)
            assert page.get(f"/api/runs/{inner['id']}/nodes/0")["nested"][0]["task"] == "num"
        finally:
            script.kill()
            script.communicate()


def test_durable_runs_that_are_unfinished_are_told_and_left_as_they_are(tmp_path: Path) -> None:
    with served(tmp_path) as page:
        assert page.get("/api/unfinished") == {"runs": [], "count": 0}
        script = page.start("durable")
        try:
            wait_until(lambda: [(run["ended"], run["open"]) for run in page.get("/api/unfinished")["runs"]] == [(1, ["wait"])])
            assert page.get("/api/unfinished")["runs"][0]["state"] == "in use"
        finally:
            script.kill()
            script.communicate()
        wait_until(lambda: page.get("/api/unfinished")["runs"][0]["state"] == "unfinished")
        kept = tmp_path / "records" / "durable"
        there = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in kept.rglob("*")}
        (told,) = page.get("/api/unfinished")["runs"]
        assert {name: told[name] for name in ("name", "ended", "open", "more_open", "program", "command")} == {
            "name": "ann's night",
            "ended": 1,
            "open": ["wait"],
            "more_open": 0,
            "program": "runs.py durable",
            "command": """entangle resume 'ann'"'"'s night'""",
        }
        assert told["begun"] <= told["changed"] <= time.time()
        assert there == {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in there}
        assert set(there) == set(kept.rglob("*"))
        assert page.ask("/api/unfinished", token=None)[0] == 401
        page.go()
        subprocess.run(
            [sys.executable, "-m", "entangle", "resume", "ann's night", "--again", "all"], cwd=tmp_path, env=page.environment, check=True
        )
        page.run("durable")  # its program resumes it
        assert page.get("/api/unfinished") == {"runs": [], "count": 0}


def test_a_server_ends_while_somebody_listens(tmp_path: Path) -> None:
    with served(tmp_path) as page:
        stream = events(page, "/api/events")
        assert next(stream)[0] == "runs"
        began = time.monotonic()
    assert time.monotonic() - began < 15
    stream.close()  # type: ignore[attr-defined]


# --- pictures of graphs and times, without a server -----------------------------------------------


def part(tasks: list[str], states: str = "done", edges: list[tuple[int, int]] | None = None) -> GraphPart:
    names = list(dict.fromkeys(tasks))
    return GraphPart("run", names, [names.index(task) for task in tasks], [states] * len(tasks), edges or [])


def test_more_tasks_than_can_be_drawn_share_one_place() -> None:
    graph = drawn([part([f"task{n}" for n in range(400)])])
    assert graph["total"] == 400
    assert len(graph["nodes"]) == 251
    assert max(graph["nodes"], key=lambda node: node["count"])["label"] == "other tasks"


def test_an_empty_graph_and_one_without_edges() -> None:
    assert drawn([part([])]) == {"total": 0, "nodes": [], "edges": []}
    assert len(drawn([part(["a", "b"])])["nodes"]) == 2


def test_a_failure_among_a_thousand_is_not_joined_away() -> None:
    bars = timeline(
        [Stretch((1,), "1", n * 1e-6, (n + 1) * 1e-6, "t", str(n), "ValueError: no" if n == 500 else "") for n in range(1000)], 1.0, 100
    )["bars"]
    assert sum(bar[5] for bar in bars) == 1000
    assert [bar[6:] for bar in bars if bar[6]] == [[1, "ValueError: no"]]


def test_a_failure_looks_no_larger_than_it_is_and_many_of_them_take_bounded_room() -> None:
    why = dict.fromkeys(range(0, 100_000, 2), "ValueError: no")
    few = [Stretch((1,), "1", n * 1e-3, (n + 1) * 1e-3, "t", str(n), "ValueError: no" if n == 500 else "") for n in range(1000)]
    failed = [bar for bar in timeline(few, 1.0, 100)["bars"] if bar[6]]
    assert len(failed) == 1
    assert failed[0][2] - failed[0][1] <= 0.021
    many = [Stretch((1,), "1", n * 1e-5, (n + 1) * 1e-5, "t", str(n), why.get(n, "")) for n in range(100_000)]
    bars = timeline(many, 1.0, 500)["bars"]
    assert len(bars) <= 1000
    assert sum(bar[5] for bar in bars) == 100_000


def test_a_timeline_of_nothing() -> None:
    assert timeline([], 0.0, 100) == {"total": 0.0, "lanes": [], "tasks": [], "bars": [], "busy": 0.0}
