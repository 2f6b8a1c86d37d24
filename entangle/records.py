"""What is remembered of runs: find them, walk through their graphs, draw them, ask what made a value.

    from entangle import records

    run = records.run("last")
    for node in run.critical_path():
        print(node.name, node.seconds)

Every run is remembered unless ENTANGLE_RECORD=0 says no: in the nearest directory called `.entangle` upward from where it was
called, else in the user's state directory; ENTANGLE_RECORD_DIR names another place. Values are remembered in short (type, size,
hash, text); ENTANGLE_RECORD=values keeps them whole. What goes by the name of a secret, or looks like one, is masked.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from entangle._records.directory import find_directory
from entangle._records.rows import Edge, Error, Git, Input, Times, Value
from entangle._records.rows import TaskRecord as Task
from entangle._records.views import NodeRecord as Node
from entangle._records.views import RunRecord as Run
from entangle._records.views import record_of
from entangle._shared.tracebacks import edge
from entangle.errors import GraphError, RecordsError

__all__ = [
    "Edge",
    "Error",
    "Git",
    "GraphError",
    "Input",
    "Node",
    "RecordsError",
    "Run",
    "Task",
    "Times",
    "Value",
    "absorb",
    "clear_graph",
    "forget",
    "hash_of",
    "made",
    "place",
    "retain",
    "run",
    "runs",
    "send",
    "take_home",
]


@edge
def place() -> str:
    """The directory in which runs are remembered that are called here and now.

    print(records.place())
    """
    return find_directory()


@edge
def runs(
    limit: int | None = 100,
    *,
    name: str | None = None,
    state: str | None = None,
    tags: dict[str, Any] | None = None,
    since: float | datetime | None = None,
    nested: bool = False,
) -> list[Run]:
    """The runs that are remembered, the latest first, at most `limit` (None: all); those that go on are among them.

    `name` is that of the task whose value a run gives; `state` done, failed, cancelled, killed or running; `tags` those that it
    must have; `since` a time (seconds since 1970, or a datetime). Runs called in the bodies of others are left out unless `nested`.
    Raises RecordsError where the records cannot be read.

        for run in records.runs(state="failed"):
            print(run.id, run.error.message)
    """
    from entangle._records.reading import find_runs

    when = since.timestamp() if isinstance(since, datetime) else since
    found = find_runs(find_directory(), limit=limit, name=name, state=state, tags=tags, since=when, nested=nested)
    return [record_of(row) for row in found]


@edge
def run(run_id: str = "last") -> Run:
    """A run by its id, or by the beginning of one; `last` is the latest. Raises RecordsError where there is none, or several.

    print(records.run("last").to_mermaid())
    """
    from entangle._records.reading import find_run

    return record_of(find_run(find_directory(), run_id))


@edge
def hash_of(value: Any) -> str:
    """The hash by which a value is remembered: the SHA-256 of its pickle, in hex. Raises what pickling it raises.

    records.hash_of(42) == node.value.hash
    """
    import hashlib

    from entangle._shared.pickling import dumps

    return hashlib.sha256(dumps(value)).hexdigest()


@edge
def made(value_hash: str) -> list[Node]:
    """What made this value: the nodes that gave a value of this hash (hex), the latest first. Raises RecordsError for no hash.

    for node in records.made(records.hash_of(result)):
        print(node.run.id, node.name, [input.argument for input in node.inputs])
    """
    from entangle._records.database import is_there
    from entangle._records.ingest import ingest
    from entangle._records.views import made as made_by

    try:
        digest = bytes.fromhex(value_hash)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise RecordsError(f"{value_hash!r} is no SHA-256 in hex; records.hash_of(value) gives that of a value")
    directory = find_directory()
    ingest(directory)
    if not is_there(directory):
        return []
    return made_by(directory, digest)


@edge
def forget(run_id: str) -> None:
    """Remove a run, with those called in it, from the records. Raises RecordsError where there is none.

    records.forget(records.run("last").id)
    """
    from entangle._records.reading import to_be_forgotten
    from entangle._records.retention import forget_run

    directory = find_directory()
    forget_run(directory, to_be_forgotten(directory, run_id))


@edge
def retain(days: float | None = None, size: int | None = None) -> int:
    """Forget runs that are older than so many days, then the oldest until the file takes at most `size` bytes; gives how many went.

    Without arguments, what is usual: ENTANGLE_RECORD_DAYS (90) and ENTANGLE_RECORD_BYTES (1 GiB), which is done now and then anyway.

        records.retain(days=7)
    """
    from entangle._records.retention import retain as retain_in

    return retain_in(find_directory(), days, size)


@edge
def send(address: str | None = None, run_ids: list[str] | None = None, everything: bool = False) -> int:
    """Send runs to a Gremlin server (`ws://…`, `wss://…`; None: ENTANGLE_GRAPH); gives how many were sent.

    Without `run_ids`, those that were to go there and have not, or all that have not where `everything` is said. Sending twice changes
    nothing. Needs gremlinpython (`pip install 'py-entangle[graph]'`). Raises GraphError where the server fails.

        records.send("ws://localhost:8182/gremlin", everything=True)
    """
    import os

    from entangle._records.gremlin import send as send_to

    return send_to(find_directory(), address or os.environ.get("ENTANGLE_GRAPH", ""), run_ids, everything)


@edge
def clear_graph(address: str) -> None:
    """Remove all that any entangle has ever sent to that Gremlin server. Raises GraphError where it fails.

    records.clear_graph("ws://localhost:8182/gremlin")
    """
    from entangle._records.gremlin import clear

    clear(address)


@edge
def take_home(run_ids: list[str]) -> list[bytes]:
    """The records of runs of this machine that are over, in the form in which they travel: each becomes somebody else's.

    channel.send(records.take_home([run.id]))
    """
    from entangle._records.ingest import take_segments

    return take_segments(find_directory(), run_ids)


@edge
def absorb(sheets: list[bytes], parent: tuple[str, int] | None = None) -> list[str]:
    """Remember runs that took place elsewhere, as `take_home` gave them; `parent` is the run and the node that wanted them. Gives
    their ids. What is there already stays as it is. Raises RecordsError for what is no record.

        records.absorb(channel.receive(), parent=(run_id, node))
    """
    from entangle._records.ingest import absorb_segments

    return absorb_segments(find_directory(), sheets, parent)
