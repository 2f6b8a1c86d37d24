"""Runs as pictures and documents, each parsed by an independent reader."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import entangle
from entangle import records
from entangle._records.property_graph import vertices_of
from entangle.errors import RecordsError
from entangle.process import process

from .bodies import add, one
from .ways import missing, needed

SVG = "{http://www.w3.org/2000/svg}"


def quoting(x: Any) -> str:
    return '"<b>&`|]\\ \x07 ü ' + str(x)


def inner(x: int) -> Any:
    return process(add)(x, 1)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> records.Run:
    """A run of four nodes with values that are hard to quote. One of the nodes ran another."""
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    with entangle.tags(project="a b"):
        process(add)(process(quoting)(process(one)()), process(quoting)(process(inner)(2)))()
    return records.run()


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> records.Run:
    """A run with too many nodes to draw each of them."""
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    process(len)([process(one)() for _ in range(300)])()
    return records.run()


@pytest.fixture
def failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> records.Run:
    """A run that failed before its root began."""
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    with pytest.raises(TypeError):
        process(add)(process(add)(1, "x"), process(one)())()
    return records.run()


def test_mermaid(run: records.Run, large: records.Run) -> None:
    text = run.to_mermaid()
    lines = text.splitlines()
    assert lines[0] == "flowchart LR"
    assert sum(" -->" in line for line in lines) == len(run.edges)
    assert sum(line.endswith(":::done") for line in lines) == 5
    label = next(line for line in lines if line.strip().startswith("n0["))
    assert label.count('"') == 2
    assert len(large.to_mermaid().splitlines()) < 12
    assert "300 calls" in large.to_mermaid()


def test_dot(run: records.Run, large: records.Run) -> None:
    if shutil.which("dot") is None:
        for each in (run, large):
            assert each.to_dot().startswith('digraph "')
            assert each.to_dot().count("->") == len({(e.source, e.target) for e in each.edges}) or each is large
        return
    for each in (run, large):
        drawn = subprocess.run(["dot", "-Tsvg"], input=each.to_dot(), capture_output=True, text=True, check=True)
        assert "<svg" in drawn.stdout


def test_svg(run: records.Run, large: records.Run, failed: records.Run) -> None:
    for each, boxes in ((run, 5), (large, 2), (failed, 3)):
        root = ElementTree.fromstring(each.to_svg())
        rectangles = root.findall(f".//{SVG}rect")
        assert len(rectangles) == boxes
        wide, high = float(root.attrib["width"]), float(root.attrib["height"])
        places = [(float(r.attrib["x"]), float(r.attrib["y"]), float(r.attrib["width"]), float(r.attrib["height"])) for r in rectangles]
        assert all(x >= 0 and y >= 0 and x + w <= wide and y + h <= high for x, y, w, h in places)
        for at, (x, y, w, h) in enumerate(places):
            for x2, y2, w2, h2 in places[at + 1 :]:
                assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y, "two boxes overlap"
    assert len(ElementTree.fromstring(run.to_svg()).findall(f".//{SVG}path[@class='link']")) == 4


def test_a_task_that_feeds_itself_is_drawn_by_task_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    call: Any = process(one)()
    for number in range(300):
        call = process(add)(call, 1) if number % 2 else process(max)(call, 0)
    assert call() == 151
    drawn = records.run()
    assert len(ElementTree.fromstring(drawn.to_svg()).findall(f".//{SVG}rect")) >= 3
    assert "-->" in drawn.to_mermaid()


def test_a_task_that_is_one_box_names_its_slowest_node_and_those_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))

    def whole(n: int) -> int:
        time.sleep(0.2 if n == 77 else 0)
        if n in (3, 90):
            raise ValueError(f"no {n}")
        return n

    from entangle import gather
    from entangle.thread import thread

    gather(*[thread(whole)(n) for n in range(160)], return_exceptions=True)()
    run = records.run()
    slowest = max(run.nodes, key=lambda node: node.seconds or 0.0)
    for drawn in (run.to_mermaid(), run.to_dot(), run.to_svg()):
        assert f"(#{slowest.number}) · 2 failed (#3, #90)" in drawn


def test_a_run_of_one_node_and_one_that_goes_on_can_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    drawn: list[records.Run] = []

    def look() -> int:
        drawn.append(records.run())
        return len(drawn[-1].to_svg()) + len(drawn[-1].to_trace()) + len(drawn[-1].to_prov()) + len(drawn[-1].to_dot())

    from entangle.thread import thread

    assert thread(look)()() > 0
    assert (drawn[0].state, drawn[0].node_count) == ("running", 1)
    assert records.run().to_mermaid().count(":::done") == 1


def test_trace(run: records.Run, failed: records.Run) -> None:
    trace = json.loads(run.to_trace())
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert sorted(event["name"] for event in slices) == sorted(["add", "add", "inner", "one", "quoting", "quoting"])
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in slices)
    assert len({event["pid"] for event in slices}) == 2, "a nested run has a process of its own"
    assert sum(event["ph"] == "s" for event in trace["traceEvents"]) == sum(event["ph"] == "f" for event in trace["traceEvents"]) == 4
    assert json.loads(failed.to_trace())["otherData"]["run"] == failed.id


def test_prov_as_the_reference_reader_sees_it(run: records.Run, failed: records.Run) -> None:
    try:
        from prov.model import ProvActivity, ProvDocument, ProvEntity, ProvGeneration, ProvUsage
    except ImportError:
        missing("the package prov: pip install prov")
    document = ProvDocument.deserialize(content=run.to_prov(), format="json")
    again = ProvDocument.deserialize(content=document.serialize(format="json"), format="json")
    assert again == document
    assert len(list(document.get_records(ProvActivity))) == 1 + run.node_count
    assert len(list(document.get_records(ProvGeneration))) == run.node_count
    assert len(list(document.get_records(ProvUsage))) == sum(len(node.inputs) for node in run.nodes)
    entities = {str(entity.identifier) for entity in document.get_records(ProvEntity)}
    for usage in document.get_records(ProvUsage):
        assert str(usage.args[1]) in entities, "what is used is told of"
    text = document.get_provn()
    assert "wasGeneratedBy" in text
    short = ProvDocument.deserialize(content=failed.to_prov(), format="json")
    assert len(list(short.get_records(ProvGeneration))) < failed.node_count


def breaks(x: int) -> int:
    raise ValueError(f'no "{x}" <b>\nand more')


@pytest.fixture
def went_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> records.Run:
    """A run that continued after a named call failed, and skipped what depends on that call."""
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    entangle.gather(process(add)(process(breaks)(3).named("fold <3>"), 1), process(one)(), return_exceptions=True)()
    return records.run()


def test_every_form_has_states_names_and_errors(went_on: records.Run) -> None:
    networkx = needed("networkx")
    failed, skipped = went_on.node("fold <3>"), went_on.node("add")
    message = 'ValueError: no "3" <b>\nand more'

    plain = {node["number"]: node for node in json.loads(json.dumps(went_on.to_dict()))["node_list"]}
    assert (plain[failed.number]["name"], plain[failed.number]["state"]) == ("fold <3>", "failed")
    assert plain[failed.number]["error"]["message"] == 'no "3" <b>\nand more'
    assert (plain[skipped.number]["state"], plain[skipped.number]["cause"]) == ("skipped", failed.number)
    assert (went_on.to_dict()["failed"], went_on.to_dict()["skipped"]) == (1, 1)

    mermaid = went_on.to_mermaid()
    assert f'n{failed.number}["fold #lt;3#gt;<br/>' in mermaid
    assert ":::failed" in mermaid
    assert ":::skipped" in mermaid
    assert "classDef skipped" in mermaid

    svg = ElementTree.fromstring(went_on.to_svg())
    tips = {box.attrib["class"]: box.findtext(f"{SVG}title") or "" for box in svg.findall(f".//{SVG}g")}
    assert tips["box failed"] == f"fold <3> (breaks): failed, {message}".replace("\n", "\ufffd")
    assert tips["box skipped"] == f"add: skipped, since fold <3> (node {failed.number}) failed"
    assert ".skipped rect" in went_on.to_svg()

    dot = went_on.to_dot()
    assert "skipped, since fold <3>" in dot
    assert json.dumps(f"fold <3> (breaks): failed, {message}") in dot

    graph = went_on.to_networkx()
    assert networkx.get_node_attributes(graph, "error")[failed.number] == message
    assert graph.nodes[failed.number]["task"] == "breaks"
    assert graph.nodes[skipped.number]["cause"] == failed.number

    events = json.loads(went_on.to_trace())["traceEvents"]
    (slice_of,) = [event for event in events if event["ph"] == "X" and event["cat"] == "failed"]
    assert (slice_of["name"], slice_of["args"]["error"], slice_of["args"]["task"]) == ("fold <3>", message, "breaks")
    (instant,) = [event for event in events if event["ph"] == "i"]
    assert (instant["name"], instant["cat"], instant["tid"]) == ("add", "skipped", slice_of["tid"])
    assert instant["ts"] == slice_of["ts"] + slice_of["dur"]

    activities = json.loads(went_on.to_prov())["activity"]
    about = activities[f"call:{went_on.id}-{failed.number}"]
    assert (about["prov:label"], about["entangle:state"], about["entangle:error"]) == ("fold <3>", "failed", message)
    assert activities[f"call:{went_on.id}-{skipped.number}"]["entangle:cause"] == f"call:{went_on.id}-{failed.number}"

    vertices = {vertex.id: vertex.properties for vertex in vertices_of(went_on)}
    assert vertices[f"call:{went_on.id}:{failed.number}"]["error"] == message
    assert vertices[f"call:{went_on.id}:{skipped.number}"]["cause"] == failed.number
    assert vertices[f"run:{went_on.id}"]["failed"] == 1


def test_networkx(run: records.Run) -> None:
    networkx = needed("networkx")
    graph = run.to_networkx()
    assert (graph.number_of_nodes(), graph.number_of_edges()) == (run.node_count, len(run.edges))
    assert networkx.is_directed_acyclic_graph(graph)
    assert networkx.ancestors(graph, run.root.number) == {node.number for node in run.ancestors(run.root)}
    assert graph.nodes[run.root.number]["name"] == "add"


def test_networkx_where_it_is_missing(run: records.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "networkx", None)
    with pytest.raises(RecordsError, match="pip install"):
        run.to_networkx()
