"""Records in a graph server that requires signed handshakes, as Amazon Neptune does: a real Gremlin
server behind a relay that checks each signature."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from entangle import records
from entangle._tasks.gremlin_address import name_of, server_of
from entangle.errors import GraphError
from entangle.process import process

from ..bodies import add
from ..callers import Caller
from ..gremlins import Gremlin
from ..signed_relay import KEY, REGION, SECRET, SignedRelay
from ..test_gremlin import asking, counts
from ..ways import installed, missing


@pytest.fixture(scope="module")
def gremlin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gremlin]:
    """A Gremlin server, which does not check signatures."""
    installed("gremlin_python")
    installed("botocore")
    server = Gremlin(tmp_path_factory.mktemp("gremlin"))
    yield server
    server.kill()


@pytest.fixture
def relay(gremlin: Gremlin) -> Iterator[SignedRelay]:
    """The relay that checks the signatures."""
    relay = SignedRelay(gremlin.port)
    yield relay
    relay.close()


@pytest.fixture(autouse=True)
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The credentials that the relay accepts, and a directory of its own for the records."""
    nowhere = str(tmp_path / "none")
    given = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}
    given |= {"AWS_CONFIG_FILE": nowhere, "AWS_SHARED_CREDENTIALS_FILE": nowhere, "ENTANGLE_RECORD_DIR": str(tmp_path / "records")}
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "ENTANGLE_GRAPH", "ENTANGLE_GRAPH_AUTH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)


def test_the_graph_arrives(gremlin: Gremlin, relay: SignedRelay) -> None:
    add_ = process(add)
    assert add_(add_(1, 2), 3)() == 6
    address = f"ws://127.0.0.1:{relay.port}/gremlin?auth=iam&region={REGION}"
    records.clear_graph(address)
    assert records.send(address, everything=True) == 1
    assert records.send(address, everything=True) == 0
    assert relay.verdicts == ["", ""]
    with asking(gremlin) as g:
        vertices, _ = counts(g)
    assert vertices["call"] == 2
    assert vertices["run"] == 1


def test_another_key_is_refused(relay: SignedRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    assert process(add)(1, 2)() == 3
    address = f"ws://127.0.0.1:{relay.port}/gremlin"
    with pytest.raises(GraphError, match="does not answer"):
        records.send(address, everything=True)
    assert {*relay.verdicts} == {"Missing Authentication Token"}
    relay.verdicts.clear()
    with pytest.raises(GraphError, match=r"refuses the signed handshake \(403\).*another region"):
        records.send(f"{address}?auth=iam&region=eu-west-1", everything=True)
    assert "Credential should be scoped" in relay.verdicts[0]
    relay.verdicts.clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(GraphError, match=r"refuses the signed handshake \(403\).*neptune-db:connect"):
        records.send(f"{address}?auth=iam&region={REGION}", everything=True)
    assert {*relay.verdicts} == {"The signature does not match"}


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process(add)(1, 2)() == 3
    with pytest.raises(GraphError, match="no region is known"):
        records.send("neptune://localhost:1", everything=True)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(GraphError, match="no credentials of AWS are found"):
        records.send(f"neptune://localhost:1?region={REGION}", everything=True)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(GraphError, match="nobody"):
        records.send(f"neptune://localhost:1?region={REGION}", everything=True)


PROGRAM = """
    from entangle.process import process

    @process
    def add(a, b):
        return a + b

    if __name__ == "__main__":
        print(add(add(1, 2), 3)())
"""


def test_a_program_sends_its_runs_to_neptune(gremlin: Gremlin, tmp_path: Path) -> None:
    """With TLS, configured by the environment variable alone."""
    certificate = tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "-", "-out", "-"]
    try:
        made = subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError:
        missing("openssl")
    certificate.write_bytes(made.stdout)
    with asking(gremlin) as g:
        g.V().drop().count().next()
    relay = SignedRelay(gremlin.port, str(certificate))
    try:
        graph = f"neptune://localhost:{relay.port}?region={REGION}"
        # The driver closes its event loop before TLS has shut down, so the socket is closed late.
        given = {"ENTANGLE_GRAPH": graph, "SSL_CERT_FILE": str(certificate), "PYTHONWARNINGS": "error,ignore::ResourceWarning"}
        caller = Caller(tmp_path, PROGRAM, **given).start()
        assert caller.started is not None
        out, err = caller.started.communicate(timeout=60)
        assert (out, err) == ("6\n", "")
    finally:
        relay.close()
    assert relay.verdicts == [""]
    with asking(gremlin) as g:
        vertices, _ = counts(g)
    assert vertices["call"] == 2


@pytest.mark.parametrize(
    ("address", "url", "signed"),
    [
        ("neptune://db.example", "wss://db.example:8182/gremlin", True),
        ("neptune://db.example:8183/", "wss://db.example:8183/gremlin", True),
        ("wss://db.example:8182/gremlin?auth=iam", "wss://db.example:8182/gremlin", True),
        ("wss://db.example/gremlin?auth=iam&a=b", "wss://db.example/gremlin?a=b", True),
        ("ws://localhost:8182/gremlin", "ws://localhost:8182/gremlin", False),
    ],
)
def test_addresses(address: str, url: str, signed: bool) -> None:
    server = server_of(address)
    assert (server.url, server.signed) == (url, signed)
    assert name_of(address) == url.partition("?")[0]


def test_addresses_that_are_none() -> None:
    with pytest.raises(GraphError, match="neptune://host:8182"):
        server_of("http://localhost")
    with pytest.raises(GraphError, match="auth=iam"):
        server_of("wss://localhost?auth=basic")
