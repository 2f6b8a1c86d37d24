"""What the page asks for, and who may: a real server, asked by HTTP."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from entangle.web.graphs import OPENED, Part, drawn
from entangle.web.lanes import Stretch, timeline

from .evidence import wait_until
from .pages import Page, served


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with served(tmp_path_factory.mktemp("page"), "small", "other", "failed", "nested", "many") as found:
        yield found


# --- who may ask ------------------------------------------------------------------------------------------------------


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
    for path in ("/vendor/cytoscape.min.js", "/vendor/cytoscape-dagre.min.js", "/vendor/cytoscape.LICENSE", "/vendor/dagre.LICENSE"):
        assert page.ask(path)[0] == 200


def test_the_page_asks_nobody_else() -> None:
    static = Path(__file__).parents[1] / "web" / "static"
    for path in [*static.glob("*.js"), *static.glob("*.html"), *static.glob("*.css")]:
        text = path.read_text(encoding="utf-8")
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), path.name


# --- what is answered -------------------------------------------------------------------------------------------------


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
    labels = {node["id"]: node["label"] for node in graph["nodes"]}
    edges = {(labels[edge["source"]], labels[edge["target"]]) for edge in graph["edges"]}
    assert edges == {
        ("num = 6", "add = 7"),
        ("num = 1", "add = 7"),
        ("num = 5", "subtract = 3"),
        ("num = 2", "subtract = 3"),
        ("add = 7", "add = 10"),
        ("subtract = 3", "add = 10"),
    }


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
    assert set(node["spans"]) == {"arguments", "queue", "cookie", "moving", "running"}
    assert node["pid"] > 0


def test_what_failed_is_shown_with_its_traceback(page: Page) -> None:
    run = page.id_of("failed")
    info = page.get(f"/api/runs/{run}")
    assert (info["state"], info["error"]["message"]) == ("failed", "<b>no</b> 2")
    node = page.get(f"/api/runs/{run}/nodes/{info['error']['node']}")
    assert node["task"] == "broken"
    assert "raise ValueError" in node["error"]["traceback"]


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


def test_a_place_of_records_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("not a directory")
    with served(tmp_path) as page:
        status, _, body = page.ask("/api/runs")
        assert (status, "ENTANGLE_RECORD_DIR" in json.loads(body)["error"]) == (500, True)


# --- while a run lasts ------------------------------------------------------------------------------------------------


def events(page: Page, path: str) -> Iterator[tuple[str, Any]]:
    """The events of a stream, as they come."""
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


def test_a_server_ends_while_somebody_listens(tmp_path: Path) -> None:
    with served(tmp_path) as page:
        stream = events(page, "/api/events")
        assert next(stream)[0] == "runs"
        began = time.monotonic()
    assert time.monotonic() - began < 15
    stream.close()  # type: ignore[attr-defined]


# --- pictures of graphs and times, without a server -------------------------------------------------------------------


def part(tasks: list[str], states: str = "done", edges: list[tuple[int, int]] | None = None) -> Part:
    names = list(dict.fromkeys(tasks))
    return Part("run", names, [names.index(task) for task in tasks], [states] * len(tasks), edges or [])


def test_more_tasks_than_can_be_drawn_share_one_place() -> None:
    graph = drawn([part([f"task{n}" for n in range(400)])])
    assert graph["total"] == 400
    assert len(graph["nodes"]) == 251
    assert max(graph["nodes"], key=lambda node: node["count"])["label"] == "other tasks"


def test_an_empty_graph_and_one_without_edges() -> None:
    assert drawn([part([])]) == {"total": 0, "nodes": [], "edges": []}
    assert len(drawn([part(["a", "b"])])["nodes"]) == 2


def test_a_failure_among_a_thousand_is_not_joined_away() -> None:
    bars = timeline([Stretch((1,), "1", n * 1e-6, (n + 1) * 1e-6, "t", str(n), n == 500) for n in range(1000)], 1.0, 100)["bars"]
    assert sum(bar[5] for bar in bars) == 1000
    assert [bar[6] for bar in bars if bar[6]] == [1]


def test_a_timeline_of_nothing() -> None:
    assert timeline([], 0.0, 100) == {"total": 0.0, "lanes": [], "tasks": [], "bars": [], "busy": 0.0}
