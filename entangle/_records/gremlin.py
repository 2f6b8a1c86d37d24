"""Sending runs to a Gremlin server: batches of vertices, then of edges. Each is made unless it is
there already.

So a run may be sent twice, by two processes at once, or again after half of it: what is there
stays, and what is missing is added. If two processes make the same thing at once, servers refuse
one of them ("id already exists", ConcurrentModificationException), which then sends its batch
again. A run counts as sent when its last batch has been answered. Only `clear` ever removes
anything.

Amazon Neptune takes the same over `wss://`, with a handshake signed by SigV4. It is known by its
host name; `neptune://host:8182`, `?auth=iam` and ENTANGLE_GRAPH_AUTH=sigv4 ask for the same
elsewhere. What is sent is what Neptune takes: ids that are texts, no lambdas, no transaction over
several requests.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any
from urllib.parse import urlsplit

from entangle._records import queries
from entangle._records.database import opened
from entangle._records.ingest import ingest, note_sent
from entangle._records.property_graph import LABELS, GraphEdge, Vertex, edges_of, stubs_of, vertices_of
from entangle._records.reading import run_of
from entangle._records.views import record_of
from entangle._tasks.gremlin_address import check_address, name_of, server_of
from entangle.errors import GraphError

BATCH = 200
#: Seconds that a server may take for a batch.
PATIENCE = 60.0
#: How often a batch is sent that the server refuses, and the longest pause in between (seconds).
_TRIES, _PAUSE = 6, 0.2
_UNHEARD = logging.NullHandler()


class Connection:
    """A connection to a Gremlin server. Raises GraphError where gremlinpython is missing, or the
    server cannot be reached."""

    def __init__(self, address: str) -> None:
        self.address = check_address(address)
        try:
            from gremlin_python.driver.aiohttp.transport import AiohttpTransport
            from gremlin_python.driver.driver_remote_connection import DriverRemoteConnection
            from gremlin_python.process.anonymous_traversal import traversal
        except ImportError:
            raise GraphError("sending records to a Gremlin server needs gremlinpython: pip install 'py-entangle[graph]'") from None
        # Where nobody listens to it, what it logs would be on stderr, beside our error.
        logging.getLogger("gremlinpython").addHandler(_UNHEARD)
        server = server_of(address)
        signed = wants_signature(address)
        if signed:
            signed_headers(address)  # so that what is missing is said at once

        class Transport(AiohttpTransport):  # type: ignore[misc]
            def connect(self, url: str, headers: Any = None) -> None:
                # A signature is good for some minutes, and a connection may be made again later.
                super().connect(url, signed_headers(address) if signed else headers)

        self._transports: list[Any] = []

        def transport() -> Any:
            made = Transport(read_timeout=PATIENCE, write_timeout=PATIENCE, call_from_event_loop=False)
            self._transports.append(made)
            return made

        self._driver = DriverRemoteConnection(server.url, "g", pool_size=1, max_workers=1, transport_factory=transport)
        source = traversal()
        # `with_remote` is called `with_` since 3.8, and warns.
        self.g = source.with_(self._driver) if hasattr(source, "with_") else source.with_remote(self._driver)

    def close(self) -> None:
        """Close the connection."""
        # The driver does not close transports that never connected.
        for part in (self._driver, *self._transports):
            try:
                part.close()
            except Exception:  # it is broken, or never connected
                pass

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Ask the server for something of its graph. Raises GraphError where it does not answer."""
        try:
            return question(self.g)
        except Exception as error:  # the driver and the layers below it raise many types
            raise self._failed(error) from error

    def _put(self, question: Callable[[Any], Any]) -> None:
        """Have the server make what is not there. Raises GraphError where it does not answer, or
        goes on refusing."""
        from gremlin_python.driver.protocol import GremlinServerError

        for left in reversed(range(_TRIES)):
            try:
                question(self.g)
                return
            except GremlinServerError as error:
                if not left:
                    raise self._failed(error) from error
            except Exception as error:
                raise self._failed(error) from error
            time.sleep(random.uniform(0, _PAUSE))

    def _failed(self, error: Exception) -> GraphError:
        text = str(error) or type(error).__name__
        # The driver has either aiohttp's error, or one of its own with a text.
        refused = getattr(error, "status", None) == 403 or "HTTP Error code 403" in text
        if refused and wants_signature(self.address):
            return GraphError(
                f"{name_of(self.address)} refuses the signed handshake (403): AWS does not know these "
                "credentials, they are for another region (name it: ?auth=iam&region=…), or they may not neptune-db:connect "
                "(deploy/aws/neptune.json is the policy that is needed)"
            )
        return GraphError(f"the Gremlin server at {name_of(self.address)} does not answer: {text[:500]}")

    def put_vertices(self, vertices: Iterable[Vertex]) -> None:
        """Make vertices that are not there, and complete those that are."""
        from gremlin_python.process.graph_traversal import __
        from gremlin_python.process.traversal import Merge, T

        def put(batch: list[Any], g: Any) -> Any:
            keyed = [{"key": {T.id: one.id, T.label: one.label}, "said": one.properties} for one in batch]
            merged = g.inject(keyed).unfold().as_("one").merge_v(__.select("one").select("key"))
            said = __.select("one").select("said")
            return merged.option(Merge.on_create, said).option(Merge.on_match, said).count().next()

        for batch in _batches(vertices):
            self._put(partial(put, batch))

    def put_edges(self, edges: Iterable[GraphEdge]) -> None:
        """Make edges that are not there. Both ends must be there."""
        from gremlin_python.process.graph_traversal import __
        from gremlin_python.process.traversal import Direction, Merge, T

        def put(batch: list[Any], g: Any) -> Any:
            keyed = [
                {
                    "key": {T.id: one.id, T.label: one.label, Direction.OUT: one.source, Direction.IN: one.target},
                    "said": one.properties,
                }
                for one in batch
            ]
            merged = g.inject(keyed).unfold().as_("one").merge_e(__.select("one").select("key"))
            said = __.select("one").select("said")
            return merged.option(Merge.on_create, said).option(Merge.on_match, said).count().next()

        for batch in _batches(edges):
            self._put(partial(put, batch))


def _batches(things: Iterable[Any]) -> Iterator[list[Any]]:
    source = iter(things)
    while batch := list(islice(source, BATCH)):
        yield batch


def unsent(directory: str, address: str, everything: bool = False) -> list[tuple[int, str]]:
    """Keys and ids of the runs that are meant for that server and are not there yet, the oldest
    first; of all runs that are not there yet, if `everything`."""
    ingest(directory)
    with opened(directory) as connection:
        return queries.unsent(connection, name_of(address), everything)


def send(directory: str, address: str, run_ids: list[str] | None = None, everything: bool = False) -> int:
    """Send runs to a server: these, even if they are there already; without `run_ids`, those that
    are not. Gives how many were sent. Raises GraphError where the server fails; runs sent before
    that stay sent."""
    check_address(address)
    sent: int = _outside_of_a_loop(lambda: _send(directory, address, run_ids, everything))
    return sent


def _outside_of_a_loop(work: Callable[[], Any]) -> Any:
    """Do some work in a thread without a running event loop: the driver runs one of its own, and a
    thread can run only one."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()


def _send(directory: str, address: str, run_ids: list[str] | None, everything: bool) -> int:
    if run_ids is not None:
        wanted = [(run._key, run.id) for run in (run_of(directory, run_id) for run_id in run_ids) if run._key is not None]
    else:
        wanted = list(unsent(directory, address, everything))
    if not wanted:
        return 0
    with Connection(address) as connection:
        for key, run_id in wanted:
            run = record_of(run_of(directory, run_id))
            connection.put_vertices(chain(vertices_of(run), stubs_of(run)))
            connection.put_edges(edges_of(run))
            note_sent(directory, key, name_of(address))
    return len(wanted)


def clear(address: str) -> None:
    """Remove everything that any entangle has sent to a server. Raises GraphError."""

    def work() -> None:
        with Connection(address) as connection:
            connection.ask(lambda g: g.V().has_label(*LABELS).drop().count().next())

    _outside_of_a_loop(work)


# Neptune ------------------------------------------------------------------------------------------


def wants_signature(address: str) -> bool:
    """Whether the handshake must be signed."""
    server = server_of(address)
    return (
        server.signed
        or os.environ.get("ENTANGLE_GRAPH_AUTH", "").lower() == "sigv4"
        or server.host.endswith((".neptune.amazonaws.com", ".neptune.amazonaws.com.cn"))
    )


def signed_headers(address: str) -> dict[str, str]:
    """The headers of a signed handshake, with the credentials that botocore finds. Raises
    GraphError."""
    try:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:
        raise GraphError("a Neptune database needs signed requests, and those need botocore: pip install 'py-entangle[aws]'") from None
    server = server_of(address)
    parts = urlsplit(server.url)
    labels = server.host.split(".")
    try:
        session = Session()
        of_host = labels[labels.index("neptune") - 1] if "neptune" in labels[1:] else None
        region = server.region or of_host or session.get_config_variable("region") or os.environ.get("AWS_REGION")
        credentials = session.get_credentials()
    except BotoCoreError as error:  # such as a profile that is not there
        raise GraphError(f"{server.name} needs signed requests: {error}") from None
    if credentials is None:
        raise GraphError(
            f"{server.name} needs signed requests, and no credentials of AWS are found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if not region:
        raise GraphError(
            f"{server.name} needs signed requests, and no region is known; name it, ?region=eu-central-1, or set AWS_DEFAULT_REGION"
        )
    # The handshake is an HTTP GET. The scheme is no part of what is signed.
    request = AWSRequest("GET", f"https://{parts.netloc}{parts.path or '/gremlin'}")
    SigV4Auth(credentials.get_frozen_credentials(), "neptune-db", region).add_auth(request)
    return {**dict(request.headers.items()), "Host": parts.netloc}
