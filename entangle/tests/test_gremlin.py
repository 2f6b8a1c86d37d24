"""Records in a Gremlin server: a real one, queried by gremlinpython."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import entangle
from entangle import records
from entangle.errors import GraphError, OptionError
from entangle.process import process
from entangle.workflow import workflow

from .bodies import add, one
from .callers import Caller
from .evidence import wait_until
from .gremlins import Gremlin, free_port
from .ways import installed, missing


def _needs_gremlinpython() -> None:
    try:
        import gremlin_python  # noqa: F401
    except ImportError:
        missing("gremlinpython: pip install 'py-entangle[graph]'")


@pytest.fixture(scope="module")
def gremlin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gremlin]:
    """A Gremlin server."""
    _needs_gremlinpython()
    server = Gremlin(tmp_path_factory.mktemp("gremlin"))
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record directory of its own for each test. The courier forgets which servers have
    failed."""
    from entangle._records import courier

    monkeypatch.setattr(courier, "_failed", {})
    monkeypatch.setattr(courier, "_told", set())
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    return tmp_path / "records"


@contextlib.contextmanager
def asking(server: Gremlin) -> Iterator[Any]:
    """A traversal source of gremlinpython itself."""
    from gremlin_python.driver.driver_remote_connection import DriverRemoteConnection
    from gremlin_python.process.anonymous_traversal import traversal

    driver = DriverRemoteConnection(server.address, "g")
    try:
        source = traversal()
        yield source.with_(driver) if hasattr(source, "with_") else source.with_remote(driver)
    finally:
        driver.close()


def counts(g: Any) -> tuple[dict[str, int], dict[str, int]]:
    """The number of vertices and edges of each label."""
    from gremlin_python.process.traversal import T

    return g.V().group_count().by(T.label).next(), g.E().group_count().by(T.label).next()


def sent() -> bool:
    """Whether the courier has exited."""
    from entangle._records import courier

    return courier.wait(20)


def inner(x: int) -> Any:
    return process(add)(x, 1)


def test_a_run_is_sent_with_all_that_it_consists_of(gremlin: Gremlin) -> None:
    with entangle.tags(project="wing"):
        assert process(add)(process(add)(1, 2), process(one)())() == 4
    assert records.send(gremlin.address, everything=True) == 1
    run = records.run()
    with asking(gremlin) as g:
        mine = g.V(f"run:{run.id}")
        told = mine.clone().value_map("name", "state", "tag_project", "calls").next()
        assert told == {"name": ["add"], "state": ["done"], "tag_project": ["wing"], "calls": [3]}
        assert mine.clone().in_("part_of").has_label("call").count().next() == 3
        assert mine.clone().in_("part_of").out("made").count().next() == 3
        assert sorted(mine.clone().in_("part_of").out_e("takes").values("argument").to_list()) == ["a", "a", "b", "b"]
        assert set(mine.clone().in_("part_of").out("ran").values("name").to_list()) == {"add", "one"}
        source = mine.clone().in_("part_of").out("ran").has("name", "one").dedup().values("source").next()
        assert source.startswith("def one()")
        assert mine.clone().in_("part_of").has("pid").count().next() == 3


def test_names_errors_and_what_was_skipped_are_sent(gremlin: Gremlin) -> None:
    def breaks(x: int) -> int:
        raise ValueError(f"no {x}")

    entangle.gather(process(add)(process(breaks)(3).named("fold 3"), 1), process(one)(), return_exceptions=True)()
    run = records.run()
    assert records.send(gremlin.address, [run.id]) == 1
    with asking(gremlin) as g:
        mine = g.V(f"run:{run.id}")
        assert mine.clone().value_map("state", "failed", "skipped").next() == {"state": ["done"], "failed": [1], "skipped": [1]}
        failed = mine.clone().in_("part_of").has("name", "fold 3").value_map("state", "error").next()
        assert failed == {"state": ["failed"], "error": ["ValueError: no 3"]}
        skipped = mine.clone().in_("part_of").has("state", "skipped").value_map("name", "cause").next()
        assert skipped == {"name": ["add"], "cause": [run.node("fold 3").number]}


def test_what_made_a_value_is_a_path(gremlin: Gremlin) -> None:
    from gremlin_python.process.graph_traversal import __

    call: Any = process(one)()
    for _ in range(4):
        call = process(add)(call, 100)
    assert call() == 401
    records.send(gremlin.address, everything=True)
    run = records.run()
    with asking(gremlin) as g:
        value = g.V().has("value", "hash", records.hash_of(401))
        names = value.repeat(__.in_("made").out("takes")).emit().until(__.not_(__.in_("made"))).in_("made").values("name").to_list()
        assert names == ["add", "add", "add", "one"]
        first = g.V(f"value:{run.id}:0").repeat(__.in_("takes").out("made")).times(4).values("text").next()
        assert first == "401"


def sent_by_many(address: str, ids: list[str]) -> list[BaseException]:
    """Send runs from several threads that begin together. Return their errors."""
    failures: list[BaseException] = []
    together = threading.Barrier(6)

    def send() -> None:
        together.wait(20)
        try:
            records.send(address, ids)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=send) for _ in range(together.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def test_sent_twice_and_by_two_at_once_it_is_there_once(gremlin: Gremlin) -> None:
    records.clear_graph(gremlin.address)
    assert process(add)(process(inner)(1), 2)() == 4
    assert records.send(gremlin.address, everything=True) == 2
    with asking(gremlin) as g:
        before = counts(g)
    assert before == (
        {"run": 2, "call": 3, "task": 2, "value": 3 + 2 + 2},
        {"part_of": 4, "ran": 3, "made": 3, "takes": 5},
    )
    ids = [run.id for run in records.runs(nested=True)]
    assert records.send(gremlin.address, ids) == 2
    for _ in range(5):
        records.clear_graph(gremlin.address)
        assert sent_by_many(gremlin.address, ids) == []
    assert records.send(gremlin.address, everything=True) == 0
    with asking(gremlin) as g:
        assert counts(g) == before
        nested = g.V().has_label("run").out("part_of").has_label("call").values("name").to_list()
        assert nested == ["inner"], "the run that was called in a body is part of that call"


def test_runs_are_sent_as_they_end_where_a_server_is_named(gremlin: Gremlin, monkeypatch: pytest.MonkeyPatch) -> None:
    records.clear_graph(gremlin.address)
    monkeypatch.setenv("ENTANGLE_GRAPH", gremlin.address)
    for number in range(3):
        assert process(add)(number, 1)() == number + 1
    assert sent()
    with asking(gremlin) as g:
        assert g.V().has_label("run").count().next() == 3
        assert counts(g)[0]["call"] == 3


def test_a_workflow_names_the_server_that_its_runs_go_to(gremlin: Gremlin) -> None:
    records.clear_graph(gremlin.address)
    flow = workflow(graph=gremlin.address)(inner)
    assert process(add)(1, 1)() == 2
    assert flow(5)() == 6
    assert sent()
    with asking(gremlin) as g:
        assert sorted(g.V().has_label("run").values("name").to_list()) == ["add", "inner"]
        assert g.V().has("run", "name", "add").out("part_of").values("name").to_list() == ["inner"]
    with pytest.raises(OptionError, match="graph="):
        workflow(graph="localhost")


def test_pipelines_of_several_processes_land_in_one_graph(gremlin: Gremlin, tmp_path: Path) -> None:
    records.clear_graph(gremlin.address)
    script = """
        from entangle.process import process

        def add(a, b):
            return a + b

        assert process(add)(process(add)(1, 2), 3)() == 6
    """
    callers = []
    try:
        for name in "abc":
            (tmp_path / name).mkdir()
            environment = {"ENTANGLE_GRAPH": gremlin.address, "ENTANGLE_RECORD_DIR": str(tmp_path / name / "own")}
            callers.append(Caller(tmp_path / name, script, **environment).start())
        for caller in callers:
            status, _, err = caller.finish()
            assert (status, err) == (0, ""), "its process waits until its runs are sent"
    finally:
        for caller in callers:
            caller.stop()
    with asking(gremlin) as g:
        vertices, edges = counts(g)
        assert vertices["run"] == 3
        assert (vertices["call"], vertices["value"]) == (6, 15)
        assert edges["takes"] == 12


def test_a_server_that_is_down_delays_and_nothing_is_lost(
    gremlin: Gremlin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    records.clear_graph(gremlin.address)
    nowhere = f"ws://me:hunter2@127.0.0.1:{free_port()}/gremlin"
    monkeypatch.setenv("ENTANGLE_GRAPH", nowhere)
    with caplog.at_level(logging.WARNING, "entangle"):
        for _ in range(3):
            assert process(one)()() == 1
        assert sent()
    assert sum("cannot be reached" in record.message for record in caplog.records) == 1
    assert "hunter2" not in caplog.text
    assert records.run().graph == nowhere.replace("me:hunter2@", "")
    with pytest.raises(GraphError, match="does not answer"):
        records.send(nowhere)
    assert records.send(gremlin.address) == 0, "they were to go somewhere else"
    assert records.send(gremlin.address, everything=True) == 3


def test_a_server_that_is_killed_in_the_middle_gets_the_rest_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _needs_gremlinpython()
    server = Gremlin(tmp_path)
    try:
        for _ in range(3):
            call: Any = process(one)()
            for _ in range(400):
                call = process(add)(call, 1)
            assert call() == 401
        from entangle._records.gremlin import Connection

        put, batches = Connection.put_edges, 0

        def put_and_kill(self: Connection, edges: Any) -> None:
            nonlocal batches
            batches += 1
            if batches == 2:
                server.kill()
            put(self, edges)

        monkeypatch.setattr(Connection, "put_edges", put_and_kill)
        with pytest.raises(GraphError):
            records.send(server.address, everything=True)
        monkeypatch.undo()
        monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
        server.start()  # its content is lost
        assert records.send(server.address, everything=True) == 2
        assert records.send(server.address, [run.id for run in records.runs()]) == 3
        with asking(server) as g:
            vertices, edges = counts(g)
            assert (vertices["run"], vertices["call"]) == (3, 1203)
            assert (edges["made"], edges["takes"]) == (1203, 2400)
    finally:
        server.kill()


def test_runs_can_be_sent_from_inside_an_event_loop(gremlin: Gremlin) -> None:
    import asyncio

    async def main() -> int:
        assert await process(one)() == 1
        return records.send(gremlin.address, everything=True)

    assert asyncio.run(main()) == 1


def test_an_address_that_is_none_is_refused() -> None:
    for address in ("", "localhost:8182", "http://localhost:8182/gremlin"):
        with pytest.raises(GraphError, match="ws://localhost:8182/gremlin"):
            records.send(address)


def test_without_gremlinpython_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process(one)()() == 1
    monkeypatch.setitem(__import__("sys").modules, "gremlin_python.driver.driver_remote_connection", None)
    with pytest.raises(GraphError, match="pip install"):
        records.send("ws://127.0.0.1:1/gremlin", everything=True)


# --- Neptune --------------------------------------------------------------------------------------

NEPTUNE = "wss://db.cluster-abc.eu-west-1.neptune.amazonaws.com:8182/gremlin"


def test_a_handshake_with_neptune_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials
    except ImportError:
        missing("botocore: pip install 'py-entangle[aws]'")
    from entangle._records.gremlin import signed_headers, wants_signature

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "an example")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert wants_signature(NEPTUNE)
    assert not wants_signature("ws://localhost:8182/gremlin")
    headers = signed_headers(NEPTUNE)
    assert headers["Host"] == "db.cluster-abc.eu-west-1.neptune.amazonaws.com:8182"
    date = headers["X-Amz-Date"]
    assert f"Credential=AKIDEXAMPLE/{date[:8]}/eu-west-1/neptune-db/aws4_request" in headers["Authorization"]
    # As the server does: sign what was received, and compare.
    received = AWSRequest("GET", NEPTUNE.replace("wss://", "https://"))
    received.context["timestamp"] = date
    received.headers["X-Amz-Date"] = date
    auth = SigV4Auth(Credentials("AKIDEXAMPLE", "an example"), "neptune-db", "eu-west-1")
    signature = auth.signature(auth.string_to_sign(received, auth.canonical_request(received)), received)
    assert headers["Authorization"].endswith(f"Signature={signature}")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(GraphError, match="credentials"):
        signed_headers(NEPTUNE)


def test_the_signed_headers_reach_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The server notes the handshake and hangs up. What it received was signed for it."""
    import socket

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "an example")
    monkeypatch.setenv("AWS_REGION", "us-east-2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-2")
    monkeypatch.setenv("ENTANGLE_GRAPH_AUTH", "sigv4")
    installed("botocore")
    installed("gremlin_python")
    assert process(one)()() == 1
    seen: list[bytes] = []
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)

        def listen() -> None:
            while not over.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(5)
                    seen.append(connection.recv(65536))
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            with pytest.raises(GraphError):
                records.send(f"ws://127.0.0.1:{server.getsockname()[1]}/gremlin", everything=True)
        finally:
            over.set()
            thread.join()
    text = seen[0].decode("latin-1")
    assert text.startswith("GET /gremlin HTTP/1.1\r\n")
    assert "us-east-2/neptune-db/aws4_request" in text
    assert text.lower().count("\r\nhost:") == 1


def test_waiting_for_a_courier_that_has_gone_takes_no_time() -> None:
    assert sent()
    wait_until(lambda: not any(thread.name == "entangle-courier" for thread in threading.enumerate()), 5, "couriers to go")
